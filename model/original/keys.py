"""A line of the table of settings: one key of the original, what it is here, and what an absent one means there."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from model.original.kinds import Kind
from model.original.values import Elsewhere, Old, Value, as_it_is, ignored


@dataclass(frozen=True)
class Key:
    """One key of the original.

    Attributes:
        name: the key
        ours: what it is here, by kind of config; a tuple where it is several settings. The kinds that are absent do not read it
        note: what changes, or why it has no effect or is refused
        value: (the original's value, the whole config) → ours, a mapping where it is several; may raise Ignored or Refused
        default: what the original takes where the key is absent, by kind; kinds that are absent: nothing is set
        idle: why it has no effect in the kinds that do not read it; empty: it is not one of their settings
    """

    name: str
    ours: dict[Kind, str | tuple[str, ...]] = field(default_factory=dict)
    note: str = ""
    value: Value = as_it_is
    default: dict[Kind, Any] = field(default_factory=dict)
    idle: str = ""

    @property
    def settings(self) -> list[str]:
        """Our names, each once."""
        found = (each if isinstance(each, tuple) else (each,) for each in self.ours.values())
        return list(dict.fromkeys(name for names in found for name in names))


def everywhere(name: str) -> dict[Kind, str | tuple[str, ...]]:
    return {"pretrain": name, "finetune": name, "eval": name}


def in_training(name: str) -> dict[Kind, str | tuple[str, ...]]:
    return {"pretrain": name, "finetune": name}


def markdown_table(keys: tuple[Key, ...]) -> list[str]:
    """The table as the documents show it: key, ours, the original's default, note; a line each."""
    lines = ["| theirs | ours | absent there | |", "|---|---|---|---|"]
    for key in keys:
        names = ", ".join(f"`{name}`" for name in key.settings) or "–"
        defaults = " / ".join(dict.fromkeys(map(_shown, key.default.values())))
        note = "; ".join(filter(None, (key.note, key.idle)))
        lines.append(f"| `{key.name}` | {names} | {defaults} | {note} |")
    return lines


def _shown(value: Any) -> str:
    """A value as JSON has it, in code type."""
    return f"`{json.dumps(value)}`"


def no_effect(name: str, why: str) -> Key:
    """A key that changes no result, whatever its value."""
    return Key(name, {}, why, ignored)


def taken_in(name: str, where: str) -> Key:
    """A key without a setting of its own, whose value another's translation takes in."""

    def value(value: Any, old: Old) -> Any:
        raise Elsewhere

    return Key(name, {}, where, value)
