"""Values that a file, a word of the command line or a variable of the environment may hold and nobody expects."""

from __future__ import annotations

import json
import random
from typing import Any

import yaml

DEEP = 100_000
NUMBERS = [0, -1, 1, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 10**30, 10**300, -(10**30), 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), -float("inf")]
TEXTS = [
    "", " ", "\n", "\0", "x" * 5000, "\ud800", "\udcff", "é", "🙂", "%s", "{}", "{stem}", "../../x", ".", "..", "null", "nan", "-", "--", "[", "{a: ", "1e999",
    "0x10", "1_000", "true", "-1", "0", "1", "999999999999999999999", "img", "txt", "fp32", "bert", "a\tb", "'", '"', "\u2028", "\ufeff", "cuda:99", "main", "*",
]  # fmt: skip
BILLION_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefghijkl", "bcdefghijklm")
)


def odd_value(chance: random.Random) -> Any:
    """A value of a kind, a size or a depth that is not looked for."""
    kind = chance.randrange(8)
    if kind == 0:
        return chance.choice([None, True, False])
    if kind <= 2:
        return chance.choice(NUMBERS)
    if kind <= 4:
        return chance.choice(TEXTS)
    return chance.choice([[], {}, [[]], [None], {"": ""}, {"x": {"y": [1]}}, [1, "a", None], ["a"] * 3, [[1, 2], [3]], list(range(50))])


def places(value: Any, where: tuple = ()) -> list[tuple]:
    """Every place in a tree of mappings and lists; of long lists the first and last few."""
    found = [where]
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
        items = items if len(items) <= 12 else items[:6] + items[-6:]
    else:
        return found
    for key, each in items:
        found += places(each, (*where, key))
    return found


def changed_tree(tree: Any, chance: random.Random) -> tuple[Any, str]:
    """The same tree with one place changed, left out, or given twice → (tree, what was done)."""
    where = chance.choice(places(tree))
    shown = "/".join(map(str, where)) or "all of it"
    if not where:
        value = odd_value(chance)
        return value, f"all of it is {short(value)}"
    holder = tree
    for key in where[:-1]:
        holder = holder[key]
    old, last = holder[where[-1]], where[-1]
    how = chance.randrange(8)
    if how == 0:
        del holder[last]
        return tree, f"{shown} left out"
    if how == 1 and isinstance(holder, list):
        holder.insert(last, old)
        return tree, f"{shown} twice"
    if how == 1:
        holder[str(chance.choice(TEXTS))] = holder.pop(last)
        return tree, f"{shown} under another name"
    if how == 2:
        value = [old] if chance.random() < 0.5 else {"x": old}
    elif how == 3 and isinstance(old, int | float) and not isinstance(old, bool):
        value = chance.choice([-old, old + 1, old - 1, old * 2, old * 10**9, str(old), float(old) + 0.5])
    elif how == 3 and isinstance(old, str):
        value = chance.choice([old + "x", old[:-1], old.upper(), old * 50, "\ud800" + old, old + "\0", old[::-1]])
    else:
        value = odd_value(chance)
    holder[last] = value
    return tree, f"{shown} is {short(value)}"


def short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:50]}... ({len(text)})"


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def as_yaml(tree: Any) -> bytes:
    try:
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode("utf-8", "surrogatepass")
    except yaml.YAMLError:
        return as_json(tree)


def hostile_json(chance: random.Random) -> tuple[bytes, str]:
    """A whole file that takes more of its reader than its size warrants, or is no JSON after all."""
    return chance.choice([
        (b"[" * DEEP * 10, "nested 1,000,000 deep, never closed"),
        (b"[" * DEEP + b"]" * DEEP, "nested 100,000 deep"),
        (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "objects nested 100,000 deep"),
        (b"1" * 100_000, "a number of 100,000 digits"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "a key with a number of 5,000 digits"),
        (b'{"a": 1, "a": 2}', "a key twice"),
        (b"NaN", "NaN"),
        (b'"\\ud800"', "half a surrogate pair"),
        (b"\xff\xfe{\x00}\x00", "UTF-16"),
        (b"", "nothing"),
        (b"\n\n\n", "empty lines"),
        (b"null", "null"),
    ])  # fmt: skip


def hostile_yaml(chance: random.Random) -> tuple[bytes, str]:
    return chance.choice([
        (BILLION_LAUGHS.encode(), "aliases of aliases, 9^12 values"),
        (b"a: &a [*a]\n", "an alias of itself"),
        (b"&a {x: *a}\n", "a mapping in itself"),
        (b"!!python/object/apply:os.system ['touch EXECUTED']\n", "a call of os.system"),
        (b"a: !!python/name:os.system\n", "the name of a function"),
        (b"[" * 20_000 + b"]" * 20_000, "nested 20,000 deep"),
        (b"- " * 20_000 + b"x\n", "a list nested 20,000 deep"),
        (b"a: 1\na: 2\n", "a key twice"),
        (b"? [a, b]\n: 1\n", "a list as a key"),
        (b"1: 2\nnull: 3\ntrue: 4\n", "keys that are no texts"),
        (b"a: 2016-13-45\nb: 0o777\nc: 1:60:60\n", "odd scalars"),
        (b"a: 2016-02-30\n", "a day that is none"),
        (b"a: \xff\n", "not UTF-8"),
        (b"a: b: c\n", "no YAML"),
        (b"\t- a\n", "a tab"),
        (b"--- 1\n--- 2\n", "two documents"),
        (b"", "nothing"),
        (b"<<: 3\n", "a merge with a number"),
    ])  # fmt: skip
