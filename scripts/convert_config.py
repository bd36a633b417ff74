#!/usr/bin/env python
"""Translate one of the original's JSON configs into a YAML config, with a comment on everything that was translated.

python scripts/convert_config.py old.json                                   # shows it
python scripts/convert_config.py old.json --out new.yaml                    # pretrain.py, train_itm.py or eval_itm.py --config new.yaml
python scripts/convert_config.py old.json --out new.yaml --keep-going       # leave out what has no counterpart
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

from configs import cli
from data.errors import BadInput
from data.storage.atomic import atomic_file
from data.storage.text_files import read_json
from model.original.recipe import COMMANDS, convert_settings, guess_kind, render_recipe
from model.original.settings import Kind


@dataclass
class Options:
    """Translate one of the original's JSON configs into a YAML config of pretrain.py, train_itm.py or eval_itm.py.

    Args:
        old: the JSON config
        out: YAML file to write; none: standard output
        kind: what it configures; none: guessed from its keys
        keep_going: leave out keys that are unknown or refused, and say so in the file, instead of stopping
    """

    old: str
    out: str | None = None
    kind: Kind | None = None
    keep_going: bool = False


def config_class(kind: Kind) -> type:
    """The settings of the kind's command."""
    if kind == "pretrain":
        from optim.tasks.pretraining import PretrainConfig  # slow to import

        return PretrainConfig
    if kind == "finetune":
        from optim.tasks.retrieval import RetrievalConfig  # slow to import

        return RetrievalConfig
    from eval_itm import EvalConfig  # slow to import

    return EvalConfig


def main(options: Options) -> None:
    old = read_json(options.old, "a mapping of settings was expected")
    conversion = convert_settings(old, options.kind or guess_kind(old))
    if conversion.problems and not options.keep_going:
        raise BadInput(f"{options.old}: {'; '.join(conversion.problems)}. --keep-going leaves them out")
    text = render_recipe(conversion, Path(options.old).name)
    _check_loads(text, conversion.kind, options.old)
    for problem in conversion.problems:
        print(f"left out: {problem}", file=sys.stderr)
    if options.out is None:
        print(text, end="")
        return
    with atomic_file(options.out) as path:
        path.write_text(text, encoding="utf-8")
    print(f"wrote {options.out}: python {COMMANDS[conversion.kind]} --config {options.out}")


def _check_loads(text: str, kind: Kind, source: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "new.yaml")
        path.write_text(text, encoding="utf-8")
        try:
            cli.parse(config_class(kind), ["--config", str(path)])
        except BadInput as error:
            reason = str(error).replace(str(path), "the translation")
            raise BadInput(f"{source}: as a config of {COMMANDS[kind]} it does not load: {reason}") from error


if __name__ == "__main__":
    cli.run(main, Options, positional=("old",))
