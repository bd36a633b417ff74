"""A digest of all arrays of a ``.npz`` file, in the file: the archive's own checksums do not notice an array whose name is damaged.

    write_arrays(path, arrays)
    arrays = read_own_arrays(path, "score the pairs again")
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from data.errors import BadInput
from data.storage.arrays import read_arrays
from data.storage.atomic import atomic_file

DIGEST = "digest"  # the array beside the others


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], compress: bool = True) -> None:
    """Write the file and the digest with it. Raises BadInput when the disk is full or not writable."""
    save = np.savez_compressed if compress else np.savez
    with atomic_file(path) as partial, open(partial, "wb") as file:
        save(file, **arrays, **{DIGEST: np.array(_digest_of(arrays))})


def read_own_arrays(path: str | Path, advice: str) -> dict[str, np.ndarray]:
    """As `read_arrays`, without the digest, with which they are compared where there is one.

    Raises:
        BadInput: as `read_arrays`; they are not what was written.
    """
    arrays = read_arrays(path, advice)
    compare_digest(path, arrays, advice)
    return arrays


def compare_digest(path: str | Path, arrays: dict[str, np.ndarray], advice: str) -> None:
    """Take the digest out of ``arrays``. Raises BadInput where it is there and is that of other arrays."""
    digest = arrays.pop(DIGEST, None)
    if digest is not None and str(digest) != _digest_of(arrays):
        raise BadInput(f"{path}: damaged, its arrays are not those that were written; {advice}")


def _digest_of(arrays: Mapping[str, np.ndarray]) -> str:
    total = hashlib.blake2b(digest_size=8)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total.update(f"{name}\0{array.dtype.str}\0{list(array.shape)}\0".encode("utf-8", "surrogateescape"))
        total.update(array.reshape(-1).view(np.uint8))
    return total.hexdigest()
