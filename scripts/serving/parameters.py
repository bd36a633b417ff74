"""What is asked by name, in a form or behind the ? of an address, checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_type_hints

from configs.settings import nearest
from data.errors import BadInput
from model.evaluation.failures import Choice
from model.retrieval.queries import described

LISTED = 100  # failures of a page, at most


def once(given: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Values by their names. Raises BadInput where a name is there twice: one of the two would be passed over."""
    found: dict[str, Any] = {}
    for name, value in given:
        if name in found:
            raise BadInput(f"{name[:60]!r} is given twice: give it once")
        found[name] = value
    return found


def number_of_query(given: Mapping[str, str], name: str, default: int, least: int = 0, most: int = 10**9) -> int:
    """A whole number. Raises BadInput for anything else, or one out of bounds."""
    text = given.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 12 and least <= int(text) <= most):
        raise BadInput(f"{name} is {described(text)}, expected a whole number of {least:,} to {most:,}")
    return int(text)


def choice_of_query(given: Mapping[str, str]) -> tuple[Choice, int, int]:
    """Which failures are listed, from which one on, and how many. Raises BadInput for what is not known."""
    hints = get_type_hints(Choice)
    names = [*hints, "offset", "limit"]
    for name in given:
        if name not in names:
            raise BadInput(f"unknown parameter {name[:60]!r}{nearest(name[:60], names) or ', expected one of ' + ', '.join(names)}")
    values: dict[str, Any] = {"k": number_of_query(given, "k", 1, 1, 1000)}
    for name in ("direction", "only", "order"):
        values[name] = given.get(name, getattr(Choice, name))
        if values[name] not in get_args(hints[name]):
            raise BadInput(f"{name} is {described(values[name])}, expected one of {', '.join(get_args(hints[name]))}")
    choice = Choice(language=given.get("language"), **values)
    return choice, number_of_query(given, "offset", 0), number_of_query(given, "limit", 20, 1, LISTED)
