"""One of the original's JSON configs becomes a recipe of ours, with a comment on everything that was translated."""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from model.original import settings, uniter_retrieval
from model.original.keys import Key
from model.original.kinds import Kind
from model.original.values import Elsewhere, Ignored, Old, Refused

COMMANDS: dict[Kind, str] = {
    "pretrain": "pretrain.py",
    "finetune": "train_itm.py",
    "eval": "eval_itm.py",
    "rerank": "train_itm.py --model uniter",
}
PLACEHOLDERS: dict[Kind, tuple[str, str, str]] = {  # of what the original's config does not say: setting, value, comment
    "eval": ("checkpoint", "CHECKPOINT", "the second word of the original's eval_itm; give its folder"),
    "rerank": ("reranker.miner", "MINER", "UNITER has none; give a fine-tuned LightningDOT, whose ranking is what it learns from"),
}
MAPPINGS = {"/db": "txt_db_mapping", "/img": "img_db_mapping", "/pretrain": "pretrain_mapping"}
NO_PATHS = {"txt_db_mapping", "img_db_mapping", "pretrain_mapping", "output_dir"}


@dataclass
class Conversion:
    """What became of a config.

    Attributes:
        kind: what it configures
        settings: our dotted names → values
        origin: our dotted names → what they were in the original
        idle: the original's keys that have no effect → why
        elsewhere: those without a setting of their own → what takes them in
        steps: commands that make what the recipe names
        remarks: what the recipe does otherwise than the original
        problems: unknown and refused keys, a sentence each
    """

    kind: Kind
    settings: dict[str, Any]
    origin: dict[str, str]
    idle: dict[str, str] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def commands(self, path: str) -> list[str]:
        """The commands that run the recipe at ``path``: one, or of an evaluation of two splits two."""
        words = [f"python {COMMANDS[self.kind]} --config {shlex.quote(path)}"]
        for name, placeholder, _ in filter(None, [PLACEHOLDERS.get(self.kind)]):
            if self.settings.get(name) == placeholder:
                words[0] += f" --{name} FOLDER"
        return words + [words[0] + other for other in self._other_split]

    _other_split: list[str] = field(default_factory=list)


def keys_and_fixed(kind: Kind) -> tuple[tuple[Key, ...], dict[str, Any]]:
    """The table of a kind's keys, and what its command does without any key."""
    if kind == "rerank":
        return uniter_retrieval.KEYS, uniter_retrieval.ALWAYS
    return settings.KEYS, settings.ALWAYS[kind]


def convert_settings(given: dict, kind: Kind) -> Conversion:
    """Translate a config: every key that is in it, and the original's default of every other.

    Keys further down in the table go over those further up.
    """
    keys, fixed = keys_and_fixed(kind)
    known = {key.name: key for key in keys}
    defaults = {key.name: key.default[kind] for key in keys if kind in key.default}
    old = Old(kind, defaults | {name: _path_or_value(name, value, given) for name, value in given.items()})
    result = Conversion(kind, dict(fixed), dict.fromkeys(fixed, "as the original always did"), steps=old.steps, remarks=old.remarks)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.6)
            result.problems.append(f"unknown key {name}" + (f" (did you mean {near[0]}?)" if near else ""))
    for key in (key for key in keys if key.name in old.values):
        _translate(key, old, key.name in given, result)
    _complete(result, old)
    return result


def _translate(key: Key, old: Old, is_given: bool, result: Conversion) -> None:
    value = old.values[key.name]
    try:
        if key.ours and old.kind not in key.ours:
            raise Ignored(key.idle or "no setting of this command")
        ours = key.value(value, old)
        names = key.ours[old.kind]
        found = dict(ours) if isinstance(names, tuple) else {names: ours}
        result.settings |= found
        result.origin |= dict.fromkeys(found, _origin(key, value, ours, is_given))
    except Ignored as reason:
        if is_given:
            where = result.elsewhere if isinstance(reason, Elsewhere) else result.idle
            where[key.name] = str(reason) or key.note
    except Refused as reason:
        was = json.dumps(value) if is_given else f"absent, so {json.dumps(value)},"
        result.problems.append(f"{key.name}: {was} is refused: {str(reason) or key.note}")
    except (TypeError, KeyError, AttributeError, ValueError):
        result.problems.append(f"{key.name}: {json.dumps(value)} is not a value of this key")


def _origin(key: Key, old: Any, ours: Any, is_given: bool) -> str:
    text = key.name if is_given else f"the original's default of {key.name}"
    if old == ours and old is not True:  # a switch that is on says what it does
        return text
    is_long = isinstance(old, dict) or (isinstance(old, list) and old and isinstance(old[0], dict))
    return text + ("" if is_long or old == ours else f": {json.dumps(old)}") + (f"; {key.note}" if key.note else "")


def _path_or_value(name: str, value: Any, given: Mapping) -> Any:
    """A value with the mappings of its paths written out, and the word "none" of weights as None."""
    if isinstance(value, dict):
        return {inner: _path_or_value(inner, each, given) for inner, each in value.items()}
    if isinstance(value, list):
        return [_path_or_value(name, each, given) for each in value]
    if name.endswith("checkpoint") and value == "none":
        return None
    if isinstance(value, str) and name not in NO_PATHS:
        for prefix, mapping in MAPPINGS.items():
            if given.get(mapping) and (value == prefix or value.startswith(f"{prefix}/")):
                return str(given[mapping]).rstrip("/") + value.removeprefix(prefix)
    return value


def _complete(result: Conversion, old: Old) -> None:
    """What the original's command takes from elsewhere, and what one command of ours does not do."""
    if (placeholder := PLACEHOLDERS.get(old.kind)) and placeholder[0] not in result.settings:
        name, value, why = placeholder
        result.settings[name], result.origin[name] = value, why
    if old.kind in ("pretrain", "finetune") and "model.init" not in result.settings:
        result.settings["model.cls_token_id"], result.origin["model.cls_token_id"] = 101, "as the original always did: BERT's [CLS]"
    for tower, keys in (("txt", "txt_model_config and txt_checkpoint"), ("img", "img_model_config and img_checkpoint")):
        name = f"model.{tower}_init"
        if old.kind in ("pretrain", "finetune") and not {"model.init", name} & set(result.settings):
            result.settings[name], result.origin[name] = None, f"{keys} name no weights: random ones"
    if old.kind == "eval" and old.get("test_txt_db") and old.get("val_txt_db"):
        val_regions = old.get("val_img_db") or old.get("test_img_db")
        words = ["--captions", old.get("val_txt_db").rstrip("/"), "--regions", val_regions.rstrip("/")]
        if "out" in result.settings:
            words += ["--out", f"{result.settings['out']}/val"]
        result._other_split.append(f" {shlex.join(words)}")


def render_recipe(conversion: Conversion, source: str, path: str) -> str:
    """Write the YAML text: settings with their origin as comments, then what has no effect and what is left out, and why.

    Args:
        source: name of the original's file, for the first line
        path: of the recipe, for the commands in its first lines
    """
    groups: dict[str, list[str]] = {"": []}
    for name, value in conversion.settings.items():
        head, _, leaf = name.rpartition(".")
        lines = _yaml_of_setting(leaf, value).splitlines()
        lines[0] += f" # {conversion.origin[name]}"
        groups.setdefault(head, []).extend(lines)
    text = [f"# {source}, translated by scripts/convert_config.py for {COMMANDS[conversion.kind]}", "#"]
    text += [f"#   {command}" for command in (*conversion.steps, *conversion.commands(path))]
    text += groups.pop("")
    for head, lines in groups.items():
        text += [f"{head}:", *(f"  {line}" for line in lines)]
    for title, keys in (("Without effect on the results", conversion.idle), ("Taken elsewhere", conversion.elsewhere)):
        if keys:
            text += ["", f"# {title}:", *(f"#   {name}: {why}" for name, why in keys.items())]
    if conversion.remarks:
        text += ["", "# Otherwise than in the original:", *(f"#   {remark}" for remark in conversion.remarks)]
    if conversion.problems:
        text += ["", "# Left out:", *(f"#   {problem}" for problem in conversion.problems)]
    return "\n".join(text) + "\n"


def _yaml_of_setting(name: str, value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        block = yaml.safe_dump(value, sort_keys=False, default_flow_style=None, allow_unicode=True, width=10_000)
        return f"{name}:\n" + "".join(f"  {line}\n" for line in block.splitlines())
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    return f"{name}: {text.splitlines()[0]}"
