"""How a feature index is laid out in its LMDB, and what is read of it wherever it is read.

Keys (all numbers little-endian):

    header           JSON: format, version, kind, dim, dtype, count, rows_per_block, max_norm, max_error, complete, commits,
                     model, data, created
    vec/%08d         block of `rows_per_block` vectors (the last one may be shorter), row-major, `dtype`; not for int8
    int8/%08d        the same rows in 8 bits: a fp32 scale per row [n], then int8 codes [n,D]; a row is scale · codes
    ids/%08d         ids of that block: uint32 offsets [n+1], then the ids' UTF-8 bytes
    crc/%08d         CRC-32 of the block's ids, int8 and vec values, uint32 each; absent in indexes made before it was written
    row/<id>         uint64 row number of the id

Row r stands in block r // rows_per_block, and rows have no gaps: a deletion moves the last row into the free place. bf16
is the upper half of a fp32. `max_norm` bounds the length of a stored vector, `max_error` its distance from scale · codes.
`commits` grows with every change. Version 1 had no int8 blocks and neither of the last four numbers; it is read.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from data.errors import BadInput
from data.index.dtypes import DTYPES, encode, quantize
from data.storage.lmdb_env import MAX_KEY_BYTES
from data.storage.shapes import check_shape

VERSION = 2
KINDS = ("img", "txt")
HEADER = {
    "kind": str, "dim": int, "dtype": str, "count": int, "rows_per_block": int, "max_norm": float, "max_error": (float, None),
    "complete": bool, "commits": int, "model": str, "data": str,
    "created": {"time?": str, "contents?": (str, None), "model_settings?": (dict, None)},
}  # fmt: skip
MAX_ID_BYTES = MAX_KEY_BYTES - len(b"row/")
_CHECKED = (b"ids", b"int8", b"vec")  # values of a block, in the order of its checksums


def block_key(kind: bytes, number: int) -> bytes:
    return b"%s/%08d" % (kind, number)


def row_key(name: str) -> bytes:
    return b"row/" + name.encode()


def block_keys(number: int) -> list[bytes]:
    """Every key that a block may have."""
    return [block_key(kind, number) for kind in (*_CHECKED, b"crc")]


def block_values(number: int, ids: list[str], vectors: np.ndarray, dtype: str) -> dict[bytes, bytes]:
    """What is stored of a block: n ids and their vectors [n,D] float32 → key → value."""
    names = [name.encode() for name in ids]
    offsets = np.cumsum([0, *map(len, names)], dtype="<u4")
    scales, codes = quantize(vectors)
    values = {b"ids": offsets.tobytes() + b"".join(names), b"int8": scales.tobytes() + codes.tobytes()}
    if dtype != "int8":
        values[b"vec"] = encode(vectors, dtype).tobytes()
    values[b"crc"] = b"".join(zlib.crc32(values[kind]).to_bytes(4, "little") for kind in _CHECKED if kind in values)
    return {block_key(kind, number): value for kind, value in values.items()}


def stored_value(txn: lmdb.Transaction, key: bytes, folder: Path) -> Any:
    """The value of a key, None where it is absent; a damaged page is BadInput."""
    try:
        return txn.get(key)
    except lmdb.Error as error:
        raise BadInput(f"{folder}: damaged index ({error}): copy it again or build it again") from None


def stored_row(txn: lmdb.Transaction, name: str, folder: Path) -> int | None:
    """The row of an id, None where the index does not hold it."""
    if len(name.encode()) > MAX_ID_BYTES:
        return None  # LMDB refuses longer keys
    value = stored_value(txn, row_key(name), folder)
    return None if value is None else int.from_bytes(value, "little")


def stored_header(txn: lmdb.Transaction, folder: Path) -> dict:
    """The header of the index in ``folder``, a version 1 with the numbers it lacks; BadInput where there is none."""
    value = stored_value(txn, b"header", folder)
    try:
        header = json.loads(bytes(value or b""))
        known = header["format"] == "feature-index"
    except (ValueError, KeyError, TypeError, RecursionError):
        known = False
    if not known:
        raise BadInput(f"{folder}: an LMDB, but not a feature index; scripts/build_index.py makes one")
    check_shape(header, {"version": int}, f"{folder}: damaged index, its header", "build it again")
    version = header["version"]
    if version > VERSION:
        raise BadInput(f"{folder}: index format {version}, this code reads up to {VERSION}: update the code")
    header = {"max_error": None, "complete": True, "commits": 1} | header
    needed = {"kind", "dim", "dtype", "count", "rows_per_block", "max_norm", "model", "data", "created"}
    if not needed <= header.keys() or str(header["dtype"]) not in DTYPES:
        raise BadInput(f"{folder}: damaged index, its header lacks {sorted(needed - header.keys())}: build it again")
    check_shape(header, HEADER, f"{folder}: damaged index, its header", "build it again")
    if header["dim"] < 1 or header["count"] < 0 or header["rows_per_block"] < 1:
        raise BadInput(f"{folder}: damaged index, its header has impossible sizes: build it again")
    return header


def check_block(txn: lmdb.Transaction, number: int, dtype: str, folder: Path, kinds: Sequence[bytes] = _CHECKED) -> None:
    """BadInput when values of a block are not those that were written; without checksums nothing is known."""
    sums = stored_value(txn, block_key(b"crc", number), folder)
    if sums is None:
        return
    for n, kind in enumerate(_CHECKED[:2] if dtype == "int8" else _CHECKED):
        key = block_key(kind, number)
        checksum = int.from_bytes(sums[4 * n : 4 * n + 4], "little")
        if kind in kinds and zlib.crc32(stored_value(txn, key, folder) or b"") != checksum:
            raise BadInput(f"{folder}: damaged index, {key.decode()} is not what was written: copy it again or build it again")


def ids_in_block(value: memoryview | bytes, size: int, places: Sequence[int] | np.ndarray | None = None) -> list[str]:
    """Ids out of a block's value, which holds ``size`` of them: all, or those at some places."""
    offsets = np.frombuffer(value, "<u4", size + 1) + 4 * (size + 1)
    return [str(value[offsets[p] : offsets[p + 1]], "utf-8") for p in (range(size) if places is None else places)]


def split_codes(value: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """An int8 block as bytes → scales [rows], codes [rows,D]."""
    return value[: 4 * rows].view("<f4"), value[4 * rows :].reshape(rows, -1)
