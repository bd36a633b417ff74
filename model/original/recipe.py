"""One of the original's JSON configs becomes a recipe of ours, with a comment on everything that was translated."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field
from typing import Any

import yaml

from model.original.settings import ALWAYS, KEYS, Ignored, Kind, Refused

COMMANDS: dict[Kind, str] = {"pretrain": "pretrain.py", "finetune": "train_itm.py", "eval": "eval_itm.py"}


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
    """What a config of the original configures, by the keys that only its kind has."""
    if "train_datasets" in old:
        return "pretrain"
    return "finetune" if {"train_txt_dbs", "train_txt_db", "num_train_epochs"} & set(old) else "eval"


def convert_settings(old: dict, kind: Kind) -> Conversion:
    """Translate every key of a config. Keys of ``model.original.settings.KEYS`` further down go over those further up."""
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


def render_recipe(conversion: Conversion, source: str) -> str:
    """Write the YAML text: settings with their origin as comments, then what is left out and why.

    Args:
        source: name of the original's file, for the first line
    """
    groups: dict[str, list[str]] = {"": []}
    for name, value in conversion.settings.items():
        head, _, leaf = name.rpartition(".")
        lines = _yaml_of_setting(leaf, value).splitlines()
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


def _yaml_of_setting(name: str, value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        block = yaml.safe_dump(value, sort_keys=False, default_flow_style=None, allow_unicode=True, width=10_000)
        return f"{name}:\n" + "".join(f"  {line}\n" for line in block.splitlines())
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return f"{name}: {text.splitlines()[0]}"
