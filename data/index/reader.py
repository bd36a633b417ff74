"""Feature index: embeddings in one LMDB, read in place on the memory map. ``data.index.writer`` makes one, ``data.index.editor``
changes it, ``data.search`` searches it.

    index = EmbeddingIndex("index/img")                  # reads the header only
    index.vectors([0, 7])                                # [2,D] float32
    index.ids([0, 7])

What stands where in the LMDB: ``data.index.layout``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from data.errors import BadInput
from data.index.dtypes import DTYPES, decode, dequantize
from data.index.layout import (
    BlockIds,
    block_key,
    check_block,
    check_num_row_records,
    check_row,
    split_codes,
    stored_header,
    stored_row,
    stored_value,
)
from data.notices import say_once
from data.storage.lmdb_env import let_go, reader


def data_fingerprint(source: str, ids: Iterable[str]) -> str:
    """Short hex of what an index was built from: the database's fingerprint and the ids that were taken."""
    digest = hashlib.sha256(source.encode())
    for name in ids:
        digest.update(b"\0" + name.encode())
    return digest.hexdigest()[:16]


def check_model_settings(place: object, made_with: dict | None, settings: dict | None) -> None:
    """Refuse an index whose vectors the same weights made with other settings, as ``similarity``.

    Args:
        place: the index, for messages
        made_with: what it says of them; None: it is older than that, or from elsewhere, and is let pass with a line
        settings: of the model that asks; None: nothing is asked

    Raises:
        BadInput: others; each is named.
    """
    if settings is None:
        return
    if made_with is None:
        say_once(f"{place}: made by these weights, and does not say with which settings of the model: taken to be those of its config.json")
        return
    names = sorted({*made_with, *settings})
    other = [f"{n} was {made_with.get(n, 'the default')}, now {settings.get(n, 'the default')}" for n in names if made_with.get(n) != settings.get(n)]
    if other:
        raise BadInput(
            f"{place}: the index was made by the same weights with other settings in the checkpoint's config.json ({'; '.join(other)}): "
            "put them back, or build the index again"
        )


class EmbeddingIndex:
    """A feature index, read only. Opening reads the header; vectors and ids are read where a call touches them, and a block is
    compared with its checksums when it is touched first.

    >>> index = EmbeddingIndex("index/img")
    >>> index.kind, index.count, index.vectors([0, 1]).shape == (2, index.dim), len(index.ids([0, 1]))
    ('img', 40, True, 2)

    Args:
        folder: what ``IndexWriter`` wrote; the object goes on showing it as it was when opened
        incomplete: read it also when its building was interrupted

    Attributes: ``kind`` "img" | "txt", ``dim`` D, ``dtype``, ``count`` N, ``header`` all of it.

    Raises:
        BadInput: missing, truncated or damaged LMDB, not a feature index, one of a newer format, or half of one.
    """

    def __init__(self, folder: str | Path, incomplete: bool = False):
        self.folder = Path(folder)
        self._txn: Any = reader(self.folder)
        self._arrays: dict[tuple[bytes, int], np.ndarray] = {}  # views of the memory map that were asked for: the map is searched once
        self._ids: dict[int, BlockIds] = {}  # the same
        self._has_checksums: dict[tuple[bytes, int], bool] = {}  # of the blocks that were touched
        self.header = stored_header(self._txn, self.folder)
        if not (incomplete or self.header["complete"]):
            raise BadInput(
                f"{folder}: an index whose building was interrupted ({self.header['count']} vectors): run the same "
                "scripts/build_index.py command again, it goes on"
            )
        self.kind, self.dim, self.dtype = (self.header[name] for name in ("kind", "dim", "dtype"))
        self.count: int = self.header["count"]
        self._per_block: int = self.header["rows_per_block"]

    def __len__(self) -> int:
        return self.count

    def __contains__(self, name: str) -> bool:
        return self._row(name) is not None

    def close(self) -> None:
        """Say that neither the index nor a view that it gave is used any more. Where the index was replaced on disk since it was
        opened, this gives back its memory and its place on the disk."""
        self._arrays, self._ids = {}, {}
        txn, self._txn = self._txn, None
        if txn is not None:
            let_go(txn)

    @property
    def stamp(self) -> dict:
        """What changes whenever the vectors or their rows do: kept by files that are made from an index."""
        created = self.header["created"]
        names = ("kind", "dim", "dtype", "count", "model", "data", "commits")
        return {name: self.header[name] for name in names} | {"time": created.get("time")}

    def check_model(self, fingerprint: str | None, settings: dict | None = None) -> None:
        """Raise BadInput unless the model with this fingerprint, and these settings of its vectors, made the index."""
        if fingerprint != self.header["model"]:
            raise BadInput(
                f"{self.folder}: the index was made by model {self.header['model']}, the query comes from model "
                f"{fingerprint}: give the checkpoint that made the index, or build it again"
            )
        check_model_settings(self.folder, self.header["created"].get("model_settings"), settings)

    def check_contents(self, database: Path, contents: str) -> None:
        """Raise BadInput where the index was built from other contents of a database than ``contents``, its fingerprint. An
        index that was changed since, or that does not say, is let pass."""
        built_from = self.header["created"].get("contents")
        if built_from is not None and contents not in built_from.split("+"):  # of several databases, or those of a third view behind a +
            raise BadInput(
                f"{database}: does not hold what {self.folder} was built from (contents {contents}, the index says {built_from}): "
                "give the database of the index, or build the index again with scripts/build_index.py"
            )

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """All vectors in row order: (first row, [n,D]); read-only views of the memory map for fp32 and fp16, else fp32."""
        for start in range(0, self.count, self._per_block):
            yield start, self.block(start // self._per_block)

    def vectors(self, rows: ArrayLike) -> np.ndarray:
        """Vectors of the given rows (any shape) → rows.shape + [D] float32. IndexError for a row that is not there."""
        rows = self._checked_rows(rows)
        if 0 < rows.size <= self.num_blocks:  # few, and hardly two of a block
            size = self._per_block
            found = np.concatenate([self.block(row // size, row % size) for row in rows.ravel().tolist()], dtype=np.float32)
            return found.reshape(*rows.shape, self.dim)
        distinct, back = np.unique(rows, return_inverse=True)
        found = np.empty((len(distinct), self.dim), np.float32)
        for number, part in self._by_block(distinct):
            found[part] = self.block(number, distinct[part] - number * self._per_block)
        return found[back.reshape(rows.shape)]

    def ids(self, rows: ArrayLike | None = None) -> list[str]:
        """Ids of the given rows [n], or of all rows in order. IndexError for a row that is not there."""
        rows = np.arange(self.count) if rows is None else self._checked_rows(rows)
        order = np.argsort(rows, kind="stable")
        names: list[str] = [""] * len(rows)
        for number, part in self._by_block(rows[order]):
            ids, first = self._ids_of(number), number * self._per_block
            for position in order[part].tolist():
                names[position] = ids[int(rows[position]) - first]
        return names

    def row_of(self, name: str) -> int:
        """Row number of an id; BadInput when the index does not hold it, or its record is damaged."""
        row = self._row(name)
        if row is None:
            raise BadInput(f"{self.folder}: no id {name!r} among the {self.count} of this index")
        return row

    def _row(self, name: str) -> int | None:
        row = stored_row(self._txn, name, self.folder)
        if row is not None:
            number, place = divmod(row, self._per_block)
            check_row(name, row, self._ids_of(number)[place] if row < self.count else None, self.folder)
        return row

    def check_num_row_records(self) -> None:
        """Raise BadInput where there are more or fewer records of rows than ids."""
        check_num_row_records(self._txn, self.count, self.folder)

    @property
    def num_blocks(self) -> int:
        return -(-self.count // self._per_block)

    def rows_in(self, number: int) -> int:
        """Rows of a block."""
        return min(self._per_block, self.count - number * self._per_block)

    def block(self, number: int, rows: slice | int | np.ndarray = slice(None)) -> np.ndarray:
        """Vectors of a block, or of some of its rows, or of one: as ``blocks`` yields them."""
        if self.dtype == "int8":
            scales, codes = self.codes(number)
            return dequantize(scales[rows], codes[rows])
        stored = self._array(b"vec", number)[rows]
        return decode(stored, self.dtype) if self.dtype == "bf16" else stored

    def check(self, number: int) -> None:
        """Read a whole block; BadInput when its bytes are not those that were written."""
        check_block(self._txn, number, self.header, self.folder)

    def check_vectors(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """BadInput when vectors [n,D] of ascending rows [n], of blocks without checksums, are farther from their 8-bit copies than any
        was when it was written."""
        if self.dtype == "int8" or self.header["max_error"] is None:
            return
        for number, part in self._by_block(np.asarray(rows)):
            if self._has_checksums.get((b"vec", number)):
                continue
            scales, codes = (stored[rows[part] - number * self._per_block] for stored in self.codes(number))
            off = np.linalg.norm(vectors[part] - dequantize(scales, codes).astype(np.float64), axis=1)
            if not (off <= self.header["max_error"] * (1 + 1e-6)).all():
                raise BadInput(
                    f"{self.folder}: damaged index, vec/{number:08d} does not fit int8/{number:08d}: copy it again or build it again"
                )

    def codes(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The 8-bit copy of a block, views of the memory map: scales [n] float32, codes [n,D] int8."""
        return split_codes(self._array(b"int8", number), self.rows_in(number))

    def _array(self, kind: bytes, number: int) -> np.ndarray:
        """A block as an array on the memory map: vectors [n,D], or the bytes of scales and codes."""
        array = self._arrays.get((kind, number))
        if array is None:
            key, rows = block_key(kind, number), self.rows_in(number)
            dtype, extra = (DTYPES[self.dtype], 0) if kind == b"vec" else (np.dtype("i1"), 4)
            value, expected = self._value(kind, number), rows * (self.dim * dtype.itemsize + extra)
            if len(value) != expected:
                raise BadInput(
                    f"{self.folder}: damaged index, {key.decode()} has {len(value)} bytes, expected {expected}: build it again"
                )
            array = np.frombuffer(value, dtype)
            self._arrays[kind, number] = array = array if extra else array.reshape(rows, self.dim)
        return array

    def _checked_rows(self, rows: ArrayLike) -> np.ndarray:
        rows = np.asarray(rows, np.int64)
        if rows.size and not (rows.min() >= 0 and rows.max() < self.count):  # a library's -1 must not mean the last row
            raise IndexError(f"{self.folder}: rows {rows.min()}..{rows.max()} asked, it has 0..{self.count - 1}")
        return rows

    def _by_block(self, rows: np.ndarray) -> Iterator[tuple[int, slice]]:
        """Sorted rows → (block number, slice of ``rows`` that stands in it)."""
        numbers, starts = np.unique(rows // self._per_block, return_index=True)
        for number, start, stop in zip(numbers, starts, [*starts, len(rows)][1:], strict=True):
            yield int(number), slice(start, stop)

    def _ids_of(self, number: int) -> BlockIds:
        if number not in self._ids:
            where = f"{self.folder}: damaged index, ids/{number:08d}"
            self._ids[number] = BlockIds(self._value(b"ids", number), self.rows_in(number), where)
        return self._ids[number]

    def _value(self, kind: bytes, number: int) -> memoryview:
        """What is stored of a block; BadInput when it is absent or not what was written."""
        key = block_key(kind, number)
        value = stored_value(self._txn, key, self.folder)
        if value is None:
            raise BadInput(f"{self.folder}: damaged index, no key {key.decode()}: build it again")
        if (kind, number) not in self._has_checksums:
            self._has_checksums[kind, number] = check_block(self._txn, number, self.header, self.folder, kinds=(kind,))
        return value
