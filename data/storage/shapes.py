"""What a file in JSON or YAML holds, declared as a value of the same form, and the one check of it.

    str, int, float, bool, None      a text that a file's name can be, a whole number, any number, true or false, null
    object, dict, list               anything, an object of anything, a list of anything
    (A, B)                           one of several
    [A]                              a list of such
    {str: A}                         an object of any keys whose values are such
    {"name": A, "more?": B}          an object with these keys, of which that with ? may be absent; its other keys are anything's

A file of ours has one shape, beside the code that reads it, and whoever gets its content need not look at types again. Where a
dataclass is filled with it, ``shape_of`` makes the shape.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any

from data.errors import BadInput

_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", None: "null", dict: "an object", list: "a list"}
_MOST = 1 << 63  # beyond, a number fits no array


def check_shape(value: Any, shape: Any, where: str, advice: str = "") -> None:
    """Raise BadInput unless ``value`` has the shape; the message names the first place that has not.

    Args:
        where: what the value is, as the message's subject: a path
        advice: what the user is told to do
    """
    found = _misfit(value, shape, "")
    if found is not None:
        place, odd, expected = found
        said = f"{place}: found {_shown(odd)}" if place else f"holds {_shown(odd)}"
        raise BadInput(f"{where}: {said}, expected {_wanted(expected)}" + f"; {advice}" * bool(advice))


@functools.cache
def shape_of(kind: Any) -> Any:
    """The shape of a type: of a dataclass an object of its fields, of which those with a default may be absent."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        needed = {f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING}
        return {f"{f.name}{'' if f.name in needed else '?'}": shape_of(hints[f.name]) for f in dataclasses.fields(kind) if f.init}
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return tuple(map(shape_of, inner))
    if origin is typing.Literal:
        return tuple(dict.fromkeys(map(type, inner)))
    if origin in (list, tuple):
        return [shape_of(inner[0])]
    if origin in (dict, Mapping):
        return {str: shape_of(inner[1])}
    return {type(None): None, Any: object, tuple: list}.get(kind, kind)


def _misfit(value: Any, shape: Any, place: str) -> tuple[str, Any, Any] | None:
    """The first place that does not fit: where, what is there, and the shape that it should have."""
    if isinstance(shape, tuple):
        misfits = [_misfit(value, each, place) for each in shape]
        if None in misfits:
            return None
        deepest = max(misfits, key=lambda misfit: len(misfit[0]))
        return deepest if len(deepest[0]) > len(place) else (place, value, shape)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return place, value, shape
        return next((found for n, item in enumerate(value) if (found := _misfit(item, shape[0], f"{place}[{n}]"))), None)
    if isinstance(shape, dict):
        return _misfit_of_object(value, shape, place)
    return None if _is_one(value, shape) else (place, value, shape)


def _misfit_of_object(value: Any, shape: dict, place: str) -> tuple[str, Any, Any] | None:
    if not isinstance(value, dict):
        return place, value, shape
    for name, inner in shape.items():
        if name is str:
            items = value.items()
        else:
            key = name.removesuffix("?")
            if key not in value and key == name:
                return place, value, f"a key {name!r}"
            items = [(key, value[key])] if key in value else []
        for key, item in items:
            if not isinstance(key, str):
                return place, value, f"keys that are texts, not {key!r}"
            if found := _misfit(item, inner, f"{place}.{key}" if place else key):
                return found
    return None


def _is_one(value: Any, kind: Any) -> bool:
    if kind is None:
        return value is None
    if kind in (int, float):
        is_whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < _MOST
        return is_whole or (kind is float and isinstance(value, float))
    if kind is str:
        return isinstance(value, str) and "\0" not in value and (value.isascii() or value.encode(errors="ignore").decode() == value)
    return isinstance(value, kind)


def _wanted(shape: Any) -> str:
    if isinstance(shape, str):  # in words already
        return shape
    if isinstance(shape, tuple):
        return " or ".join(map(_wanted, shape))
    return _WORDS[type(shape) if isinstance(shape, dict | list) else shape]


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return _WORDS[type(value)]
    if isinstance(value, str):
        return f"the text {ascii(value)[:60]}"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, int):
        return str(value) if abs(value) < _MOST else f"{value:#x}"[:20] + "..."
    return repr(value)[:60]
