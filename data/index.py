"""Feature index: embeddings in one LMDB, searched in place on the memory map.

    with IndexWriter("index/img", "img", dim=768, model=model.fingerprint, data=fingerprint) as writer:
        writer.add(["a.npz", "b.npz"], vectors)
    index = EmbeddingIndex("index/img")                  # reads the header only
    scores, rows = index.search(queries, k=10)           # true dot products, best first
    index.ids(rows[0])

Keys of the LMDB (all numbers little-endian):

    header           JSON: format, version, kind, dim, dtype, count, rows_per_block, max_norm, model, data, created
    vec/%08d         block of `rows_per_block` vectors (the last one may be shorter), row-major, `dtype`
    ids/%08d         ids of that block: uint32 offsets [n+1], then the ids' UTF-8 bytes
    row/<id>         uint64 row number of the id

Row r stands in block r // rows_per_block. Bitmaps of deleted rows or scales of int8 rows would be one more key per
block; readers refuse a higher `version` than theirs.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data.errors import BadInput
from data.lmdb_env import MAX_KEY_BYTES, LmdbWriter, reader

VERSION = 1
DTYPES = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}
KINDS = ("img", "txt")
MAX_ID_BYTES = MAX_KEY_BYTES - len(b"row/")
BLOCK_BYTES = 4 << 20  # cheap to rewrite when rows are added later, and long enough to be read at full speed
QUERIES_AT_ONCE = 1024
SCORES_AT_ONCE = 1 << 22  # fp32 scores held before they are reduced to the best: 16 MiB
SPARE = 16  # candidates beyond k that are scored exactly


def data_fingerprint(source: str, ids: Iterable[str]) -> str:
    """Short hex of what an index was built from: the database's fingerprint and the ids that were taken."""
    digest = hashlib.sha256(source.encode())
    for name in ids:
        digest.update(b"\0" + name.encode())
    return digest.hexdigest()[:16]


class IndexWriter(LmdbWriter):
    """Write a new feature index; it appears under ``folder`` when the ``with`` block ends well, and not otherwise.

    Args:
        folder: the index; an index that stands there already is replaced, anything else is refused
        kind: "img" or "txt", what the vectors are embeddings of
        dim: width D of a vector
        model: fingerprint of the model that made the vectors
        data: fingerprint of what they were made from (``data_fingerprint``)
        dtype: "fp32" or "fp16", how they are stored
        info: anything JSON that says how they were made; kept in the header under ``created``

    Raises:
        BadInput: an unknown kind or dtype, no model fingerprint, or a folder that holds something else.
    """

    def __init__(
        self,
        folder: str | Path,
        kind: str,
        dim: int,
        model: str,
        data: str,
        dtype: str = "fp32",
        info: dict | None = None,
    ):
        super().__init__(folder)
        if kind not in KINDS or dtype not in DTYPES:
            raise BadInput(f"{folder}: kind {kind!r}, dtype {dtype!r}: expected kind {KINDS} and dtype {tuple(DTYPES)}")
        if not model:
            raise BadInput(f"{folder}: the model has no fingerprint; save it with save_pretrained and load that folder")
        if self.folder.exists():
            try:
                EmbeddingIndex(folder)
            except BadInput as error:
                raise BadInput(f"{folder}: not overwritten, choose another name or delete it: {error}") from None
        row_bytes = dim * DTYPES[dtype].itemsize
        rows_per_block = 1 << min(12, max(8, (BLOCK_BYTES // row_bytes).bit_length() - 1))
        created = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **(info or {})}
        self.header = {
            "format": "feature-index", "version": VERSION, "kind": kind, "dim": dim, "dtype": dtype, "count": 0,
            "rows_per_block": rows_per_block, "max_norm": 0.0, "model": model, "data": data, "created": created,
        }  # fmt: skip
        self._block = np.zeros((rows_per_block, dim), DTYPES[dtype])  # the block being filled
        self._block_ids: list[str] = []
        self._seen: set[str] = set()

    def add(self, ids: Sequence[str], vectors) -> None:
        """Append vectors.

        Args:
            ids: n names, each new to the index
            vectors: [n,D], anything NumPy takes; stored rounded to the index's dtype

        Raises:
            BadInput: wrong width, NaN or infinite (or too large for the dtype), a duplicate, empty or over-long id.
        """
        vectors = self._checked(ids, vectors)
        self._check_ids(ids)
        self._seen.update(ids)
        done = 0
        while done < len(ids):
            filled = len(self._block_ids)
            taken = ids[done : done + len(self._block) - filled]
            self._block[filled : filled + len(taken)] = vectors[done : done + len(taken)]
            self._block_ids += taken
            done += len(taken)
            if len(self._block_ids) == len(self._block):
                self._put_block()

    def _checked(self, ids, vectors) -> np.ndarray:
        vectors = np.asarray(vectors, np.float32)
        if vectors.shape != (len(ids), self.header["dim"]):
            expected = (len(ids), self.header["dim"])
            raise BadInput(f"{self.folder}: vectors of shape {vectors.shape} for {len(ids)} ids, expected {expected}")
        with np.errstate(over="ignore", invalid="ignore"):
            stored = vectors.astype(self._block.dtype)
            norms = np.linalg.norm(stored.astype(np.float32), axis=1)  # finite norms: no dot product can overflow
        bad = np.flatnonzero(~np.isfinite(norms))
        if len(bad):
            what = "holds NaN or infinity" if not np.isfinite(vectors[bad[0]]).all() else "is too large for the dtype"
            raise BadInput(
                f"{self.folder}: the vector of {ids[bad[0]]!r} {what} ({len(bad)} such in this batch, dtype "
                f"{self.header['dtype']}); nothing of the batch is added: check the checkpoint and the features"
            )
        if len(norms):
            self.header["max_norm"] = max(self.header["max_norm"], float(norms.max()))
        return stored

    def _check_ids(self, ids) -> None:
        twice = self._seen.intersection(ids) or {name for name, n in Counter(ids).items() if n > 1}
        if twice:
            raise BadInput(f"{self.folder}: id {min(twice)!r} is added twice; ids of an index are unique")
        for name in ids:
            if not 0 < len(name.encode()) <= MAX_ID_BYTES:
                raise BadInput(f"{self.folder}: id {name!r} has {len(name.encode())} bytes, expected 1..{MAX_ID_BYTES}")

    def _put_block(self) -> None:
        names = [name.encode() for name in self._block_ids]
        number = self.header["count"] // len(self._block)
        for row, name in enumerate(names, self.header["count"]):
            self.put(b"row/" + name, row.to_bytes(8, "little"))
        offsets = np.cumsum([0, *map(len, names)], dtype="<u4")
        self.put(b"ids/%08d" % number, offsets.tobytes() + b"".join(names))
        self.put(b"vec/%08d" % number, self._block[: len(names)].tobytes())
        self.header["count"] += len(names)
        self._block_ids = []

    def _finish(self) -> None:
        if self._block_ids:
            self._put_block()
        self.put(b"header", json.dumps(self.header).encode())
        super()._finish()


class EmbeddingIndex:
    """A feature index, read only. Opening reads the header; vectors and ids are read where a call touches them.

    Args:
        folder: what ``IndexWriter`` wrote; the object goes on showing it as it was when opened

    Attributes: ``kind`` "img" | "txt", ``dim`` D, ``dtype`` "fp32" | "fp16", ``count`` N, ``header`` all of it.

    Raises:
        BadInput: missing or truncated LMDB, not a feature index, or one of a newer format.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._txn = reader(self.folder)
        header = self._txn.get(b"header")
        try:
            self.header = json.loads(bytes(header or b""))
            known = self.header["format"] == "feature-index"
        except (ValueError, KeyError, TypeError):
            known = False
        if not known:
            raise BadInput(f"{folder}: an LMDB, but not a feature index; scripts/build_index.py makes one")
        version = self.header["version"]
        if version > VERSION:
            raise BadInput(f"{folder}: index format {version}, this code reads up to {VERSION}: update the code")
        self.kind, self.dim, self.dtype = (self.header[name] for name in ("kind", "dim", "dtype"))
        self.count: int = self.header["count"]
        self._per_block: int = self.header["rows_per_block"]

    def __len__(self) -> int:
        return self.count

    def __contains__(self, name: str) -> bool:
        return self._row(name) is not None

    def check_model(self, fingerprint: str) -> None:
        """Raise BadInput unless the model with this fingerprint made the index."""
        if fingerprint != self.header["model"]:
            raise BadInput(
                f"{self.folder}: the index was made by model {self.header['model']}, the query comes from model "
                f"{fingerprint}: give the checkpoint that made the index, or build it again"
            )

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """All vectors in row order: (first row, [n,D] read-only view of the memory map, in the stored dtype)."""
        for start in range(0, self.count, self._per_block):
            yield start, self._block(start // self._per_block)

    def vectors(self, rows) -> np.ndarray:
        """Vectors of the given rows (any shape) → rows.shape + [D] float32. IndexError for a row that is not there."""
        rows = self._checked_rows(rows)
        wanted, back = np.unique(rows, return_inverse=True)
        found = np.empty((len(wanted), self.dim), np.float32)
        for number, part in self._by_block(wanted):
            found[part] = self._block(number)[wanted[part] - number * self._per_block]
        return found[back.reshape(rows.shape)]

    def ids(self, rows=None) -> list[str]:
        """Ids of the given rows [n], or of all rows in order. IndexError for a row that is not there."""
        rows = np.arange(self.count) if rows is None else self._checked_rows(rows)
        order = np.argsort(rows, kind="stable")
        names: list[str] = [""] * len(rows)
        for number, part in self._by_block(rows[order]):
            value, size = self._value(b"ids/%08d" % number), self._rows_in(number)
            offsets = np.frombuffer(value, "<u4", size + 1) + 4 * (size + 1)
            for position in order[part]:
                row = rows[position] - number * self._per_block
                names[position] = str(value[offsets[row] : offsets[row + 1]], "utf-8")
        return names

    def row_of(self, name: str) -> int:
        """Row number of an id; BadInput when the index does not hold it."""
        row = self._row(name)
        if row is None:
            raise BadInput(f"{self.folder}: no id {name!r} among the {self.count} of this index")
        return row

    def search(self, queries, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k rows of largest dot product, exactly.

        The order does not depend on how many queries are asked together or on rounding inside the matrix product:
        scores are dot products summed in fp64 and rounded to fp32, and equal scores stand in row order.

        Args:
            queries: [Q,D], anything NumPy takes
            k: results per query; more than the index holds gives all it holds

        Returns:
            scores [Q,k] float32, best first; rows [Q,k] int64

        Raises:
            BadInput: wrong width, NaN or infinity in a query, k < 1, an empty index.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise BadInput(f"{self.folder}: queries of shape {queries.shape}, expected [Q,{self.dim}] for this index")
        if k < 1:
            raise BadInput(f"{self.folder}: k is {k}, expected at least 1")
        if self.count == 0:
            raise BadInput(f"{self.folder}: the index is empty; build it from a database with entries")
        if not np.isfinite(np.linalg.norm(queries, axis=1)).all():
            raise BadInput(f"{self.folder}: a query holds NaN or infinity; check the checkpoint it was encoded with")
        k = min(k, self.count)
        scores = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            part = slice(start, start + QUERIES_AT_ONCE)
            scores[part], rows[part] = self._search(queries[part], k)
        return scores, rows

    def _search(self, queries, k):
        """An fp32 pass finds candidates; they are scored exactly; a query whose margin could hide a better row is
        searched again in fp64."""
        keep = min(k + SPARE, self.count)
        rough, rows = self._scan(queries, keep, _topk)
        scores, rows = self._score(queries, rows, k)
        if keep == self.count:
            return scores, rows
        # An fp32 dot product of D terms is off by at most D 2^-24 |q||v| (Higham, Accuracy and Stability, 3.1); twice
        # that leaves room for rounding the exact score. No row outside the candidates scores more than
        # rough.min() + error.
        norms = np.linalg.norm(queries.astype(np.float64), axis=1) * self.header["max_norm"]
        error = 2 * self.dim * (norms * 2.0**-24 + 2.0**-126)
        unsure = np.flatnonzero(rough.min(axis=1) + error >= scores[:, -1])
        if len(unsure):
            exact, found = self._scan(queries[unsure].astype(np.float64), k, _topk_stable)
            scores[unsure], rows[unsure] = exact, found
        return scores, rows

    def _scan(self, queries, keep, topk):
        """Best ``keep`` rows per query by the product in the queries' dtype, over all blocks."""
        per_block = self._per_block
        span = max(1, SCORES_AT_ONCE // len(queries) // per_block) * per_block  # columns between two reductions
        buffer = np.empty((len(queries), min(span, self.count)), queries.dtype)
        best = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        for first in range(0, self.count, span):
            width = min(span, self.count - first)
            for start in range(first, first + width, per_block):
                block = self._block(start // per_block).astype(queries.dtype, copy=False)
                np.matmul(queries, block.T, out=buffer[:, start - first : start - first + len(block)])
            scores = buffer[:, :width].astype(np.float32, copy=False)
            rows = np.broadcast_to(np.arange(first, first + width), scores.shape)
            scores, rows = topk(scores, rows, min(keep, width))
            best = topk(np.hstack([best[0], scores]), np.hstack([best[1], rows]), min(keep, best[0].shape[1] + width))
        return best

    def _score(self, queries, rows, k):
        """Candidates [Q,c] → the best k by exact score, equal scores in row order."""
        scores = np.empty(rows.shape, np.float32)
        at_once = max(1, (1 << 23) // (rows.shape[1] * self.dim))  # 64 MiB of fp64
        for start in range(0, len(rows), at_once):
            part = slice(start, start + at_once)
            vectors = self.vectors(rows[part]).astype(np.float64)
            scores[part] = np.einsum("qd,qcd->qc", queries[part].astype(np.float64), vectors)
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)

    def _checked_rows(self, rows) -> np.ndarray:
        rows = np.asarray(rows, np.int64)
        if rows.size and not (rows.min() >= 0 and rows.max() < self.count):  # a library's -1 must not mean the last row
            raise IndexError(f"{self.folder}: rows {rows.min()}..{rows.max()} asked, it has 0..{self.count - 1}")
        return rows

    def _by_block(self, rows) -> Iterator[tuple[int, slice]]:
        """Sorted rows → (block number, slice of ``rows`` that stands in it)."""
        numbers, starts = np.unique(rows // self._per_block, return_index=True)
        for number, start, stop in zip(numbers, starts, [*starts, len(rows)][1:], strict=True):
            yield int(number), slice(start, stop)

    def _rows_in(self, number: int) -> int:
        return min(self._per_block, self.count - number * self._per_block)

    def _block(self, number: int) -> np.ndarray:
        block = np.frombuffer(self._value(b"vec/%08d" % number), DTYPES[self.dtype])
        return block.reshape(self._rows_in(number), self.dim)

    def _value(self, key: bytes) -> memoryview:
        value = self._txn.get(key)
        if value is None:
            raise BadInput(f"{self.folder}: damaged index, no key {key.decode()}: build it again")
        return value

    def _row(self, name: str) -> int | None:
        key = b"row/" + name.encode()
        value = self._txn.get(key) if len(key) <= MAX_KEY_BYTES else None  # LMDB refuses longer keys
        return None if value is None else int.from_bytes(value, "little")


def _topk(scores, rows, k):
    """The k largest of each row of ``scores``, in no order."""
    import torch

    found = torch.topk(torch.from_numpy(scores), k, dim=1, sorted=False)  # many times faster than argpartition
    columns = found.indices.numpy()
    return found.values.numpy(), np.take_along_axis(rows, columns, 1)


def _topk_stable(scores, rows, k):
    """The k largest of each row of ``scores``, best first, equal scores in row order; ``rows`` ascend among equals."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
