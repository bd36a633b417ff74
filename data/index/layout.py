"""How a feature index is laid out in its LMDB, and what is read of it wherever it is read.

Keys (all numbers little-endian):

    header           JSON: format, version, kind, dim, dtype, count, rows_per_block, max_norm, max_error, complete, commits,
                     model, data, created, and checksums: true where every block has some
    vec/%08d         block of `rows_per_block` vectors (the last one may be shorter), row-major, `dtype`; not for int8
    int8/%08d        the same rows in 8 bits: a fp32 scale per row [n], then int8 codes [n,D]; a row is scale · codes
    ids/%08d         ids of that block: uint32 offsets [n+1], then the ids' UTF-8 bytes
    crc/%08d         CRC-32 of the block's ids, int8 and vec values, uint32 each; absent in indexes made before it was written
    crc/header       uint64 `commits` of the header, and its CRC-32, uint32; the same
    row/<id>         uint64 row number of the id, in whose block the id stands, too

Row r stands in block r // rows_per_block, and rows have no gaps: a deletion moves the last row into the free place. bf16
is the upper half of a fp32. `max_norm` bounds the length of a stored vector, `max_error` its distance from scale · codes.
`commits` grows with every change. Version 1 had no int8 blocks and neither of the last four numbers; it is read.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from isal.isal_zlib import crc32  # eight times as fast as zlib's

from data.errors import BadInput
from data.index.dtypes import DTYPES, encode, quantize
from data.storage.lmdb_env import MAX_KEY_BYTES
from data.storage.shapes import check_shape
from data.storage.text_files import is_utf8

VERSION = 2
KINDS = ("img", "txt")
HEADER = {
    "kind": str, "dim": int, "dtype": str, "count": int, "rows_per_block": int, "max_norm": float, "max_error": (float, None),
    "complete": bool, "commits": int, "model": str, "data": str, "checksums?": bool,
    "created": {"time?": str, "contents?": (str, None), "model_settings?": (dict, None)},
}  # fmt: skip
ROW_BYTES = 8
MAX_ID_BYTES = MAX_KEY_BYTES - len(b"row/")
_HEADER, _HEADER_SUM = b"header", b"crc/header"
_SUM = struct.Struct("<QI")
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
    values[b"crc"] = _sums_of(values.get(kind) for kind in _CHECKED)
    return {block_key(kind, number): value for kind, value in values.items()}


def block_sums(txn: lmdb.Transaction, number: int, header: dict, folder: Path) -> bytes:
    """The checksums of a block; those of its values where it was made before they were written. BadInput where they are lost."""
    sums = _stored_sums(txn, number, header, folder)
    return bytes(sums) if sums is not None else _sums_of(stored_value(txn, block_key(kind, number), folder) for kind in _CHECKED)


def _stored_sums(txn: lmdb.Transaction, number: int, header: dict, folder: Path) -> bytes | None:
    sums = stored_value(txn, key := block_key(b"crc", number), folder)
    if sums is None and header.get("checksums"):
        raise BadInput(f"{folder}: damaged index, {key.decode()} is not there: copy it again or build it again")
    return sums


def _sums_of(values: Iterable[bytes | memoryview | None]) -> bytes:
    return b"".join(crc32(value).to_bytes(4, "little") for value in values if value is not None)


def header_values(header: dict) -> dict[bytes, bytes]:
    """What is stored of a header: key → value."""
    value = json.dumps(header).encode()
    return {_HEADER: value, _HEADER_SUM: _SUM.pack(header["commits"], crc32(value))}


def stored_value(txn: lmdb.Transaction, key: bytes, folder: Path) -> Any:
    """The value of a key, None where it is absent; a damaged page is BadInput."""
    try:
        return txn.get(key)
    except lmdb.Error as error:
        raise BadInput(f"{folder}: damaged index ({error}): copy it again or build it again") from None


def stored_row(txn: lmdb.Transaction, name: str, folder: Path) -> int | None:
    """The row that the record of an id says, None where there is none; whether the id stands there is for the caller to see."""
    if not is_utf8(name) or len(name.encode()) > MAX_ID_BYTES:
        return None  # none is stored: LMDB refuses longer keys
    value = stored_value(txn, row_key(name), folder)
    if value is not None and len(value) != ROW_BYTES:
        raise BadInput(f"{folder}: damaged index, row/{name} has {len(value):,} bytes, expected {ROW_BYTES}: copy it again or build it again")
    return None if value is None else int.from_bytes(value, "little")


def check_num_row_records(txn: lmdb.Transaction, count: int, folder: Path) -> None:
    """Raise BadInput unless so many ids have a record that says their row."""
    prefix, found = row_key(""), 0
    try:
        cursor = txn.cursor()
        if cursor.set_range(prefix):
            found = sum(1 for _ in takewhile(lambda key: bytes(key[: len(prefix)]) == prefix, cursor.iternext(values=False)))
    except lmdb.Error as error:
        raise BadInput(f"{folder}: damaged index ({error}): copy it again or build it again") from None
    if found != count:
        raise BadInput(f"{folder}: damaged index, {found:,} row/ records for {count:,} ids: copy it again or build it again")


def check_row(name: str, row: int, found: str | None, folder: Path) -> None:
    """Raise BadInput where the record of an id leads to a row in which another id, or with None nothing, stands."""
    if found != name:
        raise BadInput(f"{folder}: damaged index, row/{name} leads to row {row}, of {found or 'no id'}: copy it again or build it again")


def stored_header(txn: lmdb.Transaction, folder: Path) -> dict:
    """The header of the index in ``folder``, a version 1 with the numbers it lacks; BadInput where there is none, or a damaged one."""
    value, stored_sum = (stored_value(txn, key, folder) for key in (_HEADER, _HEADER_SUM))
    try:
        header = json.loads(bytes(value or b""))
        known = header["format"] == "feature-index"
    except (ValueError, KeyError, TypeError, RecursionError):
        known = False
    if not known and stored_sum is None:
        raise BadInput(f"{folder}: an LMDB, but not a feature index; scripts/build_index.py makes one")
    version = header.get("version") if known else None
    if isinstance(version, int) and version > VERSION:
        raise BadInput(f"{folder}: index format {version}, this code reads up to {VERSION}: update the code")
    if not known or not _fits(header, value, stored_sum):
        raise BadInput(f"{folder}: damaged index, its header is not what was written: copy it again or build it again")
    check_shape(header, {"version": int}, f"{folder}: damaged index, its header", "build it again")
    header = {"max_error": None, "complete": True, "commits": 1} | header
    needed = {"kind", "dim", "dtype", "count", "rows_per_block", "max_norm", "model", "data", "created"}
    if not needed <= header.keys() or str(header["dtype"]) not in DTYPES:
        raise BadInput(f"{folder}: damaged index, its header lacks {sorted(needed - header.keys())}: build it again")
    check_shape(header, HEADER, f"{folder}: damaged index, its header", "build it again")
    if header["dim"] < 1 or header["count"] < 0 or header["rows_per_block"] < 1:
        raise BadInput(f"{folder}: damaged index, its header has impossible sizes: build it again")
    return header


def _fits(header: dict, value: bytes, stored_sum: bytes | None) -> bool:
    """Whether a header is what was written; without a checksum of this commit, as older code leaves it, nothing is known."""
    if stored_sum is None or len(stored_sum) != _SUM.size:
        return not header.get("checksums")
    commits, checksum = _SUM.unpack(stored_sum)
    return commits != header.get("commits") or crc32(value) == checksum


def check_block(txn: lmdb.Transaction, number: int, header: dict, folder: Path, kinds: Sequence[bytes] = _CHECKED) -> bool:
    """Whether the values of a block have checksums; BadInput when those of the given kinds are not what was written."""
    sums = _stored_sums(txn, number, header, folder)
    if sums is None:
        return False
    for n, kind in enumerate(_CHECKED[:2] if header["dtype"] == "int8" else _CHECKED):
        key = block_key(kind, number)
        checksum = int.from_bytes(sums[4 * n : 4 * n + 4], "little")
        if kind in kinds and crc32(stored_value(txn, key, folder) or b"") != checksum:
            raise BadInput(f"{folder}: damaged index, {key.decode()} is not what was written: copy it again or build it again")
    return True


class BlockIds:
    """The ids of a block, decoded one by one out of its value.

    Args:
        value: what is stored
        size: how many ids it holds
        where: the value, for messages

    Raises:
        BadInput: something else is stored.
    """

    def __init__(self, value: memoryview | bytes, size: int, where: str):
        self._value, self._size, self._where = value, size, where
        try:
            self._ends = np.frombuffer(value, "<u4", size + 1)
        except ValueError:
            raise self._damaged() from None

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: int) -> str:
        first = 4 * (self._size + 1)
        try:
            return str(self._value[first + int(self._ends[place]) : first + int(self._ends[place + 1])], "utf-8")
        except UnicodeDecodeError:
            raise self._damaged() from None

    def __iter__(self) -> Iterator[str]:
        return (self[place] for place in range(self._size))

    def _damaged(self) -> BadInput:
        return BadInput(f"{self._where} holds something else than {self._size} ids: copy the index again or build it again")


def split_codes(value: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """An int8 block as bytes → scales [rows], codes [rows,D]."""
    return value[: 4 * rows].view("<f4"), value[4 * rows :].reshape(rows, -1)
