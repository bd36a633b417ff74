"""Make a feature index; ``data.index.editor`` changes one.

    with IndexWriter("index/img", "img", dim=768, model=model.fingerprint, data=fingerprint) as writer:
        writer.add(["a.npz", "b.npz"], vectors)

Interrupted, it goes on where its last commit was, when it is started again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import lmdb
import numpy as np

from data.errors import BadInput
from data.index.derived import delete_derived_files
from data.index.dtypes import DTYPES, decode, dequantize, encode, quantize, round_to
from data.index.reader import KINDS, VERSION, EmbeddingIndex, check_block, names_of, read, read_header, split_codes
from data.storage.lmdb_env import MAX_KEY_BYTES, LmdbWriter, is_whole

MAX_ID_BYTES = MAX_KEY_BYTES - len(b"row/")
BLOCK_BYTES = 8 << 20  # cheap to rewrite when rows are added later, and long enough to be read at full speed
COMMIT_SECONDS = 5.0  # of work that a kill may cost


class BlockWriter(LmdbWriter):
    """The rows of an index as blocks in an LMDB of its own; `_flush` writes changed blocks and the header together."""

    header: dict

    def __init__(self, folder: str | Path):
        super().__init__(folder, commit_every=1 << 60)  # commits are made here, where the header fits the blocks
        self._blocks: dict[int, tuple[list[str], np.ndarray]] = {}  # ids and [rows_per_block,D] float32, to be written
        self._lock = None

    def add(self, ids: Sequence[str], vectors) -> None:
        """Append vectors.

        Args:
            ids: n names, each new to the index
            vectors: [n,D], anything NumPy takes; stored rounded to the index's dtype

        Raises:
            BadInput: wrong width, NaN or infinite (or too large for the dtype), a duplicate, empty or over-long id.
        """
        ids = list(ids)
        vectors = self._checked(ids, vectors)
        self._check_ids(ids)
        done, per_block = 0, self.header["rows_per_block"]
        while done < len(ids):
            number, filled = divmod(self.header["count"], per_block)
            names, block = self._block(number)
            taken = ids[done : done + per_block - filled]
            block[filled : filled + len(taken)] = vectors[done : done + len(taken)]
            names += taken
            done += len(taken)
            self._placed(taken, self.header["count"])
            self.header["count"] += len(taken)
            self._after_rows()

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None:
                self._finish()
        except (OSError, lmdb.Error) as error:
            raise self._cannot_write(error) from None
        finally:
            self._env.close()
            if not self._worth_keeping():
                shutil.rmtree(self.partial, ignore_errors=True)
            unlock(self._lock)

    def _open(self) -> None:
        """The LMDB in ``partial``, new or as it stands there; a commit survives a kill and, in order, a power cut."""
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            file = self.partial / "data.mdb"
            if file.exists() and not is_whole(self.partial):  # writing to it would kill the process
                print(f"{file}: damaged, the index is begun anew", file=sys.stderr)
                file.unlink()
            self._env = lmdb.open(str(self.partial), map_size=self._map_size, lock=False, metasync=False)
        except (OSError, lmdb.Error) as error:
            raise self._cannot_write(error) from None

    def _block(self, number: int) -> tuple[list[str], np.ndarray]:
        """A block to be changed, from memory or from the LMDB."""
        if number not in self._blocks:
            shape = (self.header["rows_per_block"], self.header["dim"])
            names, block = [], np.zeros(shape, np.float32)
            with self._env.begin() as txn:
                ids, codes = (read(txn, b"%s/%08d" % (kind, number), self.folder) for kind in (b"ids", b"int8"))
                if ids is not None:
                    check_block(txn, number, self.header["dtype"], self.folder)
                    size = len(codes) // (4 + shape[1])  # not by the header's count, which runs ahead of the block
                    names = names_of(ids, size)
                    block[:size] = self._stored(txn, number, size, codes)
            self._blocks[number] = names, block
        return self._blocks[number]

    def _stored(self, txn, number: int, size: int, codes: bytes) -> np.ndarray:
        if self.header["dtype"] == "int8":
            return dequantize(*split_codes(np.frombuffer(codes, "i1"), size))
        value = read(txn, b"vec/%08d" % number, self.folder)
        return decode(np.frombuffer(value, DTYPES[self.header["dtype"]]), self.header["dtype"]).reshape(size, -1)

    def _checked(self, ids, vectors) -> np.ndarray:
        """→ the vectors as they will read back, [n,D] float32; the header's bounds grow with them."""
        vectors = np.asarray(vectors, np.float32)
        if vectors.shape != (len(ids), self.header["dim"]):
            expected = (len(ids), self.header["dim"])
            raise BadInput(f"{self.folder}: vectors of shape {vectors.shape} for {len(ids)} ids, expected {expected}")
        finite = np.isfinite(vectors).all(axis=1)
        stored = round_to(np.where(finite[:, None], vectors, 0), self.header["dtype"])
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.linalg.norm(stored.astype(np.float64), axis=1)  # in fp32 those of tiny vectors would be 0
            norms = np.where(finite & (norms < np.finfo(np.float32).max), norms, np.nan)
        bad = np.flatnonzero(~np.isfinite(norms))
        if len(bad):
            what = "is too large for the dtype" if finite[bad[0]] else "holds NaN or infinity"
            raise BadInput(
                f"{self.folder}: the vector of {ids[bad[0]]!r} {what} ({len(bad)} such in this batch, dtype "
                f"{self.header['dtype']}); nothing of the batch is added: check the checkpoint and the features"
            )
        if len(norms):
            errors = np.linalg.norm(stored - dequantize(*quantize(stored)).astype(np.float64), axis=1)
            self.header["max_norm"] = max(self.header["max_norm"], float(norms.max()))
            self.header["max_error"] = max(self.header["max_error"], float(errors.max()) * (1 + 1e-6))
        return stored

    def _check_ids(self, ids) -> None:
        for name in ids:
            if not 0 < len(name.encode()) <= MAX_ID_BYTES:
                raise BadInput(f"{self.folder}: id {name!r} has {len(name.encode())} bytes, expected 1..{MAX_ID_BYTES}")
        twice = {name for name in ids if self._holds(name)} or {name for name, n in Counter(ids).items() if n > 1}
        if twice:
            raise BadInput(f"{self.folder}: id {min(twice)!r} is added twice; ids of an index are unique")

    def _flush(self) -> None:
        """Write and commit what changed; the last block stays at hand when it has room."""
        per_block, last = self.header["rows_per_block"], self.header["count"] // self.header["rows_per_block"]
        for number, (names, block) in self._blocks.items():
            self._put_block(number, names, block[: len(names)])
        self.put(b"header", json.dumps(self.header).encode())
        self._commit()
        self._blocks = {n: kept for n, kept in self._blocks.items() if n == last and len(kept[0]) < per_block}

    def _put_block(self, number: int, ids: list[str], vectors: np.ndarray) -> None:
        names = [name.encode() for name in ids]
        for row, name in enumerate(names, number * self.header["rows_per_block"]):
            self.put(b"row/" + name, row.to_bytes(8, "little"))
        offsets = np.cumsum([0, *map(len, names)], dtype="<u4")
        scales, codes = quantize(vectors)
        values = {b"ids": offsets.tobytes() + b"".join(names), b"int8": scales.tobytes() + codes.tobytes()}
        if self.header["dtype"] != "int8":
            values[b"vec"] = encode(vectors, self.header["dtype"]).tobytes()
        for kind, value in values.items():
            self.put(b"%s/%08d" % (kind, number), value)
        self.put(b"crc/%08d" % number, b"".join(zlib.crc32(value).to_bytes(4, "little") for value in values.values()))

    def _finish(self) -> None:
        """The last commit; the new file takes the old one's place, with nothing between the two."""
        self._flush()
        self._env.sync(True)
        self._env.close()
        if not self.folder.exists():
            self.partial.rename(self.folder)
            return
        os.replace(self.partial / "data.mdb", self.folder / "data.mdb")
        delete_derived_files(self.folder)


class IndexWriter(BlockWriter):
    """Write a new feature index; it appears under ``folder`` when the ``with`` block ends well, and not otherwise.

    What was committed of an interrupted one (every few seconds, in ``<folder>.partial``) is kept when kind, dim, dtype,
    model, data and ``info`` are the same: `done` names its ids, and only the others are to be added.

    Args:
        folder: the index; an index that stands there already is replaced, anything else is refused
        kind: "img" or "txt", what the vectors are embeddings of
        dim: width D of a vector
        model: fingerprint of the model that made the vectors
        data: fingerprint of what they were made from (``data_fingerprint``)
        dtype: "fp32", "fp16", "bf16" or "int8" (a scale per row), how they are stored
        info: anything JSON that says how they were made; kept in the header under ``created``

    Raises:
        BadInput: an unknown kind or dtype, no model fingerprint, a folder that holds something else or that another
            process writes.
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
        commits = 0
        if self.folder.exists():
            try:
                commits = EmbeddingIndex(folder).header["commits"]
            except BadInput as error:
                raise BadInput(f"{folder}: not overwritten, choose another name or delete it: {error}") from None
        row_bytes = max(1, dim * DTYPES[dtype].itemsize)
        rows_per_block = 1 << min(12, max(8, (BLOCK_BYTES // row_bytes).bit_length() - 1))
        created = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **(info or {})}
        self.header = {
            "format": "feature-index", "version": VERSION, "kind": kind, "dim": dim, "dtype": dtype, "count": 0,
            "rows_per_block": rows_per_block, "max_norm": 0.0, "max_error": 0.0, "complete": False,
            "commits": commits + 1, "model": model, "data": data, "created": created,
        }  # fmt: skip
        self.done: set[str] = set()
        self._committed = time.monotonic()

    def __enter__(self) -> IndexWriter:
        self._lock = only_writer(self.partial)
        self._open()
        if not self._go_on():
            self._env.close()
            shutil.rmtree(self.partial)
            self._open()
        return self

    def _go_on(self) -> bool:
        """Take over what is committed of the same index; False where it is another's."""
        try:
            with self._env.begin(buffers=True) as txn:
                header = read_header(txn, self.partial)
        except BadInput:
            return False
        same = set(self.header) - {"count", "max_norm", "max_error", "commits", "created"}
        made = [{k: v for k, v in h["created"].items() if k != "time"} for h in (header, self.header)]
        if header["count"] == 0 or made[0] != made[1] or any(header[n] != self.header[n] for n in same):
            return False
        self.header = header | {"commits": self.header["commits"]}
        for number in range(-(-header["count"] // header["rows_per_block"])):
            self.done.update(self._block(number)[0])
            del self._blocks[number]
        return True

    def _worth_keeping(self) -> bool:
        return self.partial.exists() and bool(self._saved_rows) and not self.header["complete"]

    _saved_rows = 0

    def _holds(self, name: str) -> bool:
        return name in self.done

    def _placed(self, names, row) -> None:
        self.done.update(names)

    def _after_rows(self) -> None:
        full = self.header["count"] % self.header["rows_per_block"] == 0
        if full or time.monotonic() - self._committed >= COMMIT_SECONDS:
            self._flush()

    def _flush(self) -> None:
        super()._flush()
        self._committed, self._saved_rows = time.monotonic(), self.header["count"]

    def _finish(self) -> None:
        self.header["complete"] = True
        super()._finish()


def only_writer(partial: Path):
    """Hold the right to write there until ``unlock``; BadInput while another process has it."""
    path = partial.with_name(f".{partial.name.lstrip('.')}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path, "w")
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise BadInput(f"{partial}: another process is writing this index; wait for it, or end it") from None
    except OSError:  # a file system without locks
        pass
    return lock


def unlock(lock) -> None:
    if lock is not None:
        with suppress(OSError):
            os.unlink(lock.name)
        lock.close()
