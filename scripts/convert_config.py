#!/usr/bin/env python
"""Translate one of the original's JSON configs into a YAML config, with a comment on everything that was translated.

python scripts/convert_config.py old.json                                   # shows it
python scripts/convert_config.py old.json --out new.yaml                    # pretrain.py, train_itm.py or eval_itm.py --config new.yaml
python scripts/convert_config.py old.json --out new.yaml --keep-going       # leave out what has no counterpart
"""

import difflib
import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

import yaml

from configs import cli
from data.errors import BadInput
from data.storage.atomic import atomic_file
from data.storage.text_files import read_json
from model.original.settings import ALWAYS, KEYS, Ignored, Kind, Refused

COMMANDS = {"pretrain": "pretrain.py", "finetune": "train_itm.py", "eval": "eval_itm.py"}


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


@dataclass
class Conversion:
    """What became of a config.

    Attributes:
        kind: what it configures
        settings: our dotted names → values
        origin: our dotted names → what they were in the original
        ignored: the original's keys without a counterpart → why
        problems: unknown and refused keys, a sentence each
    """

    kind: Kind
    settings: dict[str, Any]
    origin: dict[str, str]
    ignored: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def guess_kind(old: dict) -> Kind:
    if "train_datasets" in old:
        return "pretrain"
    return "finetune" if {"train_txt_dbs", "train_txt_db", "num_train_epochs"} & set(old) else "eval"


def convert(old: dict, kind: Kind) -> Conversion:
    """Translate every key. Keys of ``configs.original.KEYS`` further down go over those further up."""
    known = {key.name: key for key in KEYS}
    result = Conversion(kind, dict(ALWAYS[kind]), dict.fromkeys(ALWAYS[kind], "as the original always did"))
    for name in old:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.6)
            result.problems.append(f"unknown key {name}" + (f" (did you mean {near[0]}?)" if near else ""))
    for key in (key for key in KEYS if key.name in old):
        value = old[key.name]
        try:
            ours = key.value(value, old)
            if kind in key.ours:
                result.settings[key.ours[kind]] = ours
                result.origin[key.ours[kind]] = _origin(key.name, value, ours, key.note)
            else:
                result.ignored[key.name] = key.note or "not a setting of this command"
        except Ignored as reason:
            result.ignored[key.name] = str(reason) or key.note
        except Refused as reason:
            result.problems.append(f"{key.name}: {json.dumps(value)} is refused: {str(reason) or key.note}")
        except (TypeError, KeyError, AttributeError):
            result.problems.append(f"{key.name}: {json.dumps(value)} is not a value of this key")
    return result


def _origin(name: str, old: Any, ours: Any, note: str) -> str:
    was = "" if old == ours or isinstance(old, (dict, list)) else f": {json.dumps(old)}"
    return f"{name}{was}" + (f"; {note}" if note else "")


def render(conversion: Conversion, source: str) -> str:
    """The YAML file: settings with their origin as comments, then what is left out and why."""
    groups: dict[str, list[str]] = {"": []}
    for name, value in conversion.settings.items():
        head, _, leaf = name.rpartition(".")
        lines = _setting(leaf, value).splitlines()
        lines[0] += f" # {conversion.origin[name]}"
        groups.setdefault(head, []).extend(lines)
    text = [f"# {source}, translated by scripts/convert_config.py for {COMMANDS[conversion.kind]}", *groups.pop("")]
    for head, lines in groups.items():
        text += [f"{head}:", *(f"  {line}" for line in lines)]
    if conversion.ignored:
        text += ["", "# Without a counterpart:", *(f"#   {name}: {why}" for name, why in conversion.ignored.items())]
    if conversion.problems:
        text += ["", "# Left out:", *(f"#   {problem}" for problem in conversion.problems)]
    return "\n".join(text) + "\n"


def _setting(name: str, value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        block = yaml.safe_dump(value, sort_keys=False, default_flow_style=None, allow_unicode=True, width=10_000)
        return f"{name}:\n" + "".join(f"  {line}\n" for line in block.splitlines())
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return f"{name}: {text.splitlines()[0]}"


def config_class(kind: Kind) -> type:
    """The settings of the kind's command."""
    if kind == "pretrain":
        from optim.tasks.pretraining import PretrainConfig

        return PretrainConfig
    if kind == "finetune":
        from optim.tasks.retrieval import RetrievalConfig

        return RetrievalConfig
    from eval_itm import EvalConfig

    return EvalConfig


def main(options: Options) -> None:
    old = read_json(options.old, "a mapping of settings was expected")
    conversion = convert(old, options.kind or guess_kind(old))
    if conversion.problems and not options.keep_going:
        raise BadInput(f"{options.old}: {'; '.join(conversion.problems)}. --keep-going leaves them out")
    text = render(conversion, Path(options.old).name)
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
