#!/usr/bin/env python
"""Translate one of the original's JSON configs into a YAML config, with a comment on everything that was translated.

python scripts/convert_config.py old.json                                   # shows it
python scripts/convert_config.py old.json --out new.yaml                    # and says the commands that run it
python scripts/convert_config.py old.json --out new.yaml --keep-going       # leave out what has no counterpart
python scripts/convert_config.py --keys                                     # the table of all keys, as in the documents
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

from configs import cli
from data.errors import BadInput
from data.storage.atomic import atomic_file
from data.storage.locks import claim_output
from data.storage.text_files import is_utf8, read_json
from model.original import settings, uniter_retrieval
from model.original.keys import markdown_table
from model.original.kinds import Kind, kind_of_config
from model.original.recipe import COMMANDS, convert_settings, render_recipe


@dataclass
class Options:
    """Translate a JSON config, or the hps.json of a run, of the original LightningDOT or of UNITER's image–text retrieval into a
    YAML config of pretrain.py, train_itm.py or eval_itm.py.

    Keys that are absent have the original's defaults, not ours. Keys without effect are listed, on the screen and in the file.

    Args:
        old: the JSON config
        out: YAML file to write; none: standard output
        kind: what it configures; none: guessed from its keys
        keep_going: leave out keys that are unknown or refused, and say so in the file, instead of stopping
        keys: print the table of all keys in Markdown, and do nothing else
    """

    old: str | None = None
    out: str | None = None
    kind: Kind | None = None
    keep_going: bool = False
    keys: bool = False

    def __post_init__(self):
        if (self.old is None) != self.keys:
            raise BadInput("give the JSON config to translate, or --keys by itself")


def config_class(kind: Kind) -> type:
    """The settings of the kind's command."""
    if kind == "pretrain":
        from optim.tasks.pretraining import PretrainConfig  # slow to import

        return PretrainConfig
    if kind == "finetune":
        from optim.tasks.retrieval import RetrievalConfig  # slow to import

        return RetrievalConfig
    if kind == "rerank":
        from optim.tasks.reranking import RerankingConfig  # slow to import

        return RerankingConfig
    from model.evaluation.settings import EvalConfig  # slow to import

    return EvalConfig


def main(options: Options) -> None:
    if options.keys:
        print(keys_of_both())
        return
    if options.out is not None:
        claim_output(options.out)
    old = read_json(options.old, "a mapping of settings was expected")
    if not isinstance(old, dict):
        raise BadInput(f"{options.old}: a mapping of settings was expected, found {type(old).__name__}")
    if odd := [name for name, value in old.items() if not is_utf8(json.dumps([name, value], ensure_ascii=False))]:
        raise BadInput(f"{options.old}: {odd[0]!a} holds half of a surrogate pair, which is no text; correct it")
    conversion = convert_settings(old, options.kind or kind_of_config(old, options.old))
    if conversion.problems and not options.keep_going:
        raise BadInput(f"{options.old}: {'; '.join(conversion.problems)}. --keep-going leaves them out")
    path = options.out or "new.yaml"
    text = render_recipe(conversion, Path(options.old).name, path)
    _check_loads(text, conversion.kind, options.old)
    for name, why in conversion.idle.items():
        print(f"without effect: {name}: {why}", file=sys.stderr)
    for remark in conversion.remarks:
        print(f"otherwise than in the original: {remark}", file=sys.stderr)
    for problem in conversion.problems:
        print(f"left out: {problem}", file=sys.stderr)
    if options.out is None:
        print(text, end="")
        return
    with atomic_file(options.out) as written:
        written.write_text(text, encoding="utf-8")
    print(f"wrote {options.out}; the commands:", *conversion.steps, *conversion.commands(path), sep="\n  ")


def keys_of_both() -> str:
    """The tables of LightningDOT's keys and of UNITER's for retrieval, in Markdown."""
    ours, uniters = markdown_table(settings.KEYS), markdown_table(uniter_retrieval.KEYS)
    return "\n".join(["### LightningDOT", "", *ours, "", "### UNITER's image–text retrieval", "", *uniters])


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
