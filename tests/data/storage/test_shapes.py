"""The one check of what files in JSON and YAML hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from data.errors import BadInput
from data.storage.shapes import check_shape, shape_of


@dataclass
class Inner:
    name: str


@dataclass
class Outer:
    inner: Inner
    kind: Literal["a", "b"]
    words: list[str] = field(default_factory=list)
    numbers: dict[str, float] = field(default_factory=dict)
    limit: int | None = None


FITTING = [
    (3, float), (3, int), (0.5, float), (float("nan"), float), (True, bool), (None, None), ("", str), ({}, dict), ([], list),
    ({}, {str: int}), ([], [int]), ({"a": 1}, {"a": int, "b?": str}), ({"a": 1, "c": object()}, {"a": int}), ([1], object),
    (None, (int, None)), ({"a": [{"b": "x"}, {}]}, {"a": [{"b?": str}]}), ({"a": 1, "b": "x"}, {"a": int, str: object}),
]  # fmt: skip
ODD = [
    (True, int, "holds true, expected a whole number"),
    (1.0, int, "holds 1.0, expected a whole number"),
    (1 << 64, float, "holds 0x1000.*, expected a number"),
    ([10**5000], [int], r"\[0\]: found 0x.*, expected a whole number"),
    (1, bool, "holds 1, expected true or false"),
    (None, str, "holds null, expected a text"),
    ([], dict, "holds a list, expected an object"),
    ({"a": "x"}, {"a": int}, "a: found the text 'x', expected a whole number"),
    ({}, {"a": int}, "holds an object, expected a key 'a'"),
    ({"a": {}}, {"a": {"b": int}}, "a: found an object, expected a key 'b'"),
    ({"a": [1, {"b": None}]}, {"a": [(int, {"b": str})]}, r"a\[1\]\.b: found null, expected a text"),
    ({"a": []}, {"a": (str, None)}, "a: found a list, expected a text or null"),
    ({3: 1}, {str: int}, "holds an object, expected keys that are texts, not 3"),
    ({"x": 1, "y": []}, {str: int}, "y: found a list, expected a whole number"),
    ("\ud800", str, r"holds the text '\\ud800', expected a text"),
    (["a\0"], [str], r"\[0\]: found the text 'a\\x00', expected a text"),
    ({"\ud800": 1}, {str: str}, "\ud800: found 1, expected a text"),
]


@pytest.mark.parametrize(("value", "shape"), FITTING, ids=range(len(FITTING)))
def test_what_fits_is_let_pass(value, shape):
    check_shape(value, shape, "a.json")


@pytest.mark.parametrize(("value", "shape", "message"), ODD, ids=range(len(ODD)))
def test_the_first_place_that_does_not_fit_is_named(value, shape, message):
    with pytest.raises(BadInput, match=f"^a.json: {message}; copy it again$"):
        check_shape(value, shape, "a.json", "copy it again")


def test_the_shape_of_a_dataclass():
    shape = shape_of(Outer)
    check_shape({"inner": {"name": "x"}, "kind": "a"}, shape, "a")
    check_shape({"inner": {"name": "x"}, "kind": "c", "words": ["y"], "numbers": {"z": 1}, "limit": None}, shape, "a")
    whole = {"inner": {"name": "x"}, "kind": "a"}
    for odd in ({"inner": {}}, {"kind": 1}, {"words": [1]}, {"numbers": {"a": "1"}}, {"limit": "3"}, {"inner": None}):
        with pytest.raises(BadInput, match=f"^a: {next(iter(odd))}"):
            check_shape(whole | odd, shape, "a")
    with pytest.raises(BadInput, match="a key 'inner'"):
        check_shape({"kind": "a"}, shape, "a")
