"""Damage as disks and copies do it: one bit of a file is another, at places drawn from a seed."""

import copy
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import BadInput


def flips(path: Path, number: int, seed: int = 0, start: int = 0, stop: int | None = None) -> Iterator[str]:
    """Flip a bit of a file, in place, ``number`` times: one after the other, each undone before the next. Yields where."""
    rng = random.Random(seed)
    size = path.stat().st_size
    file = os.open(path, os.O_RDWR)
    try:
        for _ in range(number):
            place, bit = rng.randrange(start, size if stop is None else min(stop, size)), rng.randrange(8)
            whole = os.pread(file, 1, place)
            os.pwrite(file, bytes([whole[0] ^ 1 << bit]), place)
            yield f"{path.name}: bit {bit} of byte {place}"
            os.pwrite(file, whole, place)
    finally:
        os.close(file)


def assert_noticed_or_harmless(path: Path, read: Callable[[], Any], number: int, seed: int = 0, **bounds: int) -> int:
    """With each flip, ``read`` raises BadInput or returns what it returned before → how often it was noticed."""
    expected, noticed = copy.deepcopy(read()), 0  # what is mapped from the file would change with it
    for place in flips(path, number, seed, **bounds):
        try:
            found = read()
        except BadInput as error:
            assert "\n" not in str(error)
            noticed += 1
            continue
        assert same(found, expected), place
    assert same(read(), expected)
    return noticed


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal, arrays and tensors within them included."""
    if hasattr(a, "detach"):  # a tensor, without importing torch where there is none
        return hasattr(b, "detach") and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
