"""The LMDB of an index that is being written: blocks are got, changed and put, and committed together with the header."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
from numpy.typing import ArrayLike

from data.errors import BadInput, CannotWrite
from data.index.derived import delete_derived_files
from data.index.dtypes import DTYPES, decode, dequantize, quantize, round_to
from data.index.layout import (
    BlockIds,
    block_key,
    block_keys,
    block_sums,
    block_values,
    check_block,
    check_num_row_records,
    check_row,
    header_values,
    row_key,
    split_codes,
    stored_header,
    stored_row,
    stored_value,
)
from data.storage.lmdb_env import is_whole, promised_bytes
from data.storage.lmdb_pages import check_pages
from data.storage.locks import only_writer
from data.storage.regular_files import open_regular

MAP_SIZE = 1 << 30  # first size of the memory map in bytes; it doubles whenever it is full
_FICLONE = 0x40049409  # Linux: share the blocks of a file on file systems that can (Btrfs, XFS)


@dataclass
class Block:
    """Consecutive rows in memory.

    Attributes:
        ids: n of them
        vectors: [rows_per_block,D] float32, of which the first n are filled
    """

    ids: list[str]
    vectors: np.ndarray


class BlockStore:
    """An index in a folder of its own, which takes the index's place when it is published.

    What was put stays in memory until ``commit`` writes it in one transaction with the header. So the LMDB always holds a
    whole index, and a kill costs what was put since.

    Args:
        folder: the index; it stays as it is until ``publish``
        partial: where the LMDB is written

    Attributes:
        header: of the index, to be changed as rows come and go
    """

    def __init__(self, folder: Path, partial: Path):
        self.folder, self.partial = folder, partial
        self.header: dict = {}
        self._changed: dict[int, Block] = {}  # put, and not committed
        self._last: dict[int, Block] = {}  # the last block as it was committed, at hand where it has room
        self._env: Any = None  # the open environment
        self._claims = ExitStack()

    def open(self, copy_of: Path | None = None) -> None:
        """Lock the folder against other writers, and open the LMDB: the one that stands there, or a new one.

        Args:
            copy_of: the LMDB file to start from, instead of what stands there

        Raises:
            BadInput: another process writes there, nothing can be written, or what is copied has damaged pages.
        """
        if copy_of is not None:
            check_pages(copy_of, for_writing=True)
        self._claims.enter_context(only_writer(self.partial))
        try:
            if copy_of is not None:
                shutil.rmtree(self.partial, ignore_errors=True)
                self.partial.mkdir(parents=True)
                _copy(copy_of, self.partial / "data.mdb")
            self._open_env()
        except (OSError, lmdb.Error) as error:
            self.close(keep=copy_of is None)
            raise self._cannot_write(error) from None

    def empty(self) -> None:
        """Begin anew, whatever stood there."""
        self._env.close()
        shutil.rmtree(self.partial)
        self._open_env()

    def _open_env(self) -> None:
        self.partial.mkdir(parents=True, exist_ok=True)
        file = self.partial / "data.mdb"
        if file.exists() and not is_whole(self.partial):  # writing to it would kill the process
            print(f"{file}: damaged, the index is begun anew", file=sys.stderr)
            file.unlink()
        # a commit survives a kill and, in order, a power cut
        self._env = lmdb.open(str(self.partial), map_size=MAP_SIZE, lock=False, metasync=False)

    # ---- reading what is there -----------------------------------------------------------------------------------------

    def committed_header(self) -> dict:
        """The header as it stands in the LMDB. BadInput where there is none."""
        with self._env.begin(buffers=True) as txn:
            return stored_header(txn, self.partial)

    def committed_row(self, name: str) -> int | None:
        """The row of an id at the last commit. BadInput where another id stands there."""
        with self._env.begin() as txn:
            row = stored_row(txn, name, self.folder)
        if row is not None:
            number, place = divmod(row, self.header["rows_per_block"])
            ids = self._committed_ids(number)
            check_row(name, row, ids[place] if place < len(ids) else None, self.folder)
        return row

    def check_rows(self) -> None:
        """Raise BadInput unless every id that is committed has a record that leads to its row, and no other id has one; a second takes
        a million of them."""
        count, per_block = self.header["count"], self.header["rows_per_block"]
        with self._env.begin() as txn:
            for first in range(0, count, per_block):
                ids = self._committed_ids(first // per_block)
                if len(ids) != min(per_block, count - first):
                    raise BadInput(f"{self.folder}: damaged index, {len(ids):,} ids in block {first // per_block}: copy it again or build it again")
                for row, name in enumerate(ids, first):
                    if stored_row(txn, name, self.folder) != row:
                        raise BadInput(f"{self.folder}: damaged index, row/{name} does not lead to row {row}: copy it again or build it again")
            check_num_row_records(txn, count, self.folder)

    def get(self, number: int) -> Block:
        """A block as it was put, committed, or an empty one. What is changed in it counts when it is put. BadInput when it is damaged,
        or has not the rows that the header's count leaves it."""
        block = self._changed.get(number) or self._last.get(number) or self._committed(number)
        rows = min(max(0, self.header["count"] - number * self.header["rows_per_block"]), self.header["rows_per_block"])
        if len(block.ids) != rows:
            raise BadInput(f"{self.folder}: damaged index, block {number} has {len(block.ids)} rows, expected {rows}: build it again")
        return block

    def _committed(self, number: int) -> Block:
        block = Block(list(self._committed_ids(number)), np.zeros((self.header["rows_per_block"], self.header["dim"]), np.float32))
        if size := len(block.ids):
            with self._env.begin() as txn:
                check_block(txn, number, self.header, self.folder)
                codes = stored_value(txn, block_key(b"int8", number), self.folder)
                block.vectors[:size] = self._stored_vectors(txn, number, size, codes)
        return block

    def _committed_ids(self, number: int) -> BlockIds | tuple[()]:
        """The ids of a block as they were committed; none where there is no such block."""
        with self._env.begin() as txn:
            value, codes = (stored_value(txn, block_key(kind, number), self.folder) for kind in (b"ids", b"int8"))
            if value is None:
                return ()
            if codes is None:
                raise BadInput(f"{self.folder}: damaged index, no key int8/{number:08d}: build it again")
            check_block(txn, number, self.header, self.folder, kinds=(b"ids",))
        size = len(codes) // (4 + self.header["dim"])
        return BlockIds(value, size, f"{self.folder}: damaged index, ids/{number:08d}")

    def _stored_vectors(self, txn: lmdb.Transaction, number: int, size: int, codes: bytes) -> np.ndarray:
        if self.header["dtype"] == "int8":
            return dequantize(*split_codes(np.frombuffer(codes, "i1"), size))
        value = stored_value(txn, block_key(b"vec", number), self.folder)
        return decode(np.frombuffer(value, DTYPES[self.header["dtype"]]), self.header["dtype"]).reshape(size, -1)

    def digest(self) -> str:
        """Short hex of all ids and vectors as they were committed, by the checksums of their blocks."""
        total, blocks = hashlib.sha256(), -(-self.header["count"] // self.header["rows_per_block"])
        with self._env.begin(buffers=True) as txn:
            for number in range(blocks):
                total.update(block_sums(txn, number, self.header, self.folder))
        return total.hexdigest()[:16]

    # ---- changing it ---------------------------------------------------------------------------------------------------

    def as_stored(self, ids: Sequence[str], vectors: ArrayLike) -> np.ndarray:
        """Vectors [n,D] of n ids as they will read back, [n,D] float32; the header's bounds grow with them.

        Raises:
            BadInput: wrong width, NaN or infinite, or too large for the dtype.
        """
        dtype, vectors = self.header["dtype"], np.asarray(vectors, np.float32)
        if vectors.shape != (len(ids), self.header["dim"]):
            expected = (len(ids), self.header["dim"])
            raise BadInput(f"{self.folder}: vectors of shape {vectors.shape} for {len(ids)} ids, expected {expected}")
        finite = np.isfinite(vectors).all(axis=1)
        stored = round_to(np.where(finite[:, None], vectors, 0), dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.linalg.norm(stored.astype(np.float64), axis=1)  # in fp32 those of tiny vectors would be 0
            norms = np.where(finite & (norms < np.finfo(np.float32).max), norms, np.nan)
        bad = np.flatnonzero(~np.isfinite(norms))
        if len(bad):
            what = "is too large for the dtype" if finite[bad[0]] else "holds NaN or infinity"
            raise BadInput(
                f"{self.folder}: the vector of {ids[bad[0]]!r} {what} ({len(bad)} such in this batch, dtype {dtype}); "
                "nothing of the batch is added: check the checkpoint and the features"
            )
        if len(norms):
            errors = np.linalg.norm(stored - dequantize(*quantize(stored)).astype(np.float64), axis=1)
            self.header["max_norm"] = max(self.header["max_norm"], float(norms.max()))
            self.header["max_error"] = max(self.header["max_error"], float(errors.max()) * (1 + 1e-6))
        return stored

    def put(self, number: int, block: Block) -> None:
        """A block as it is to be from now on; one without ids is to be gone."""
        self._changed[number] = block

    def append(self, ids: Sequence[str], vectors: np.ndarray) -> int:
        """Put rows behind the last one, as many as its block has room for (a new block, where it is full).

        Args:
            ids, vectors: n > 0 ids, [n,D] ``as_stored``

        Returns: how many were taken, at least 1
        """
        number, filled = divmod(self.header["count"], self.header["rows_per_block"])
        block = self.get(number)
        taken = ids[: self.header["rows_per_block"] - filled]
        block.vectors[filled : filled + len(taken)] = vectors[: len(taken)]
        block.ids += taken
        self.put(number, block)
        self.header["count"] += len(taken)
        return len(taken)

    @property
    def num_changed(self) -> int:
        """Blocks that wait in memory for a commit."""
        return len(self._changed)

    def commit(self, gone: Iterable[str] = ()) -> None:
        """Write what was put, and the header, in one transaction.

        Args:
            gone: ids that the index holds no longer
        """
        gone = list(gone)
        while True:
            try:
                with self._env.begin(write=True) as txn:
                    self._write(txn, gone)
                break
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])
            except (OSError, lmdb.Error) as error:
                raise self._cannot_write(error) from None
        last = self.header["count"] // self.header["rows_per_block"]
        self._last = {number: block for number, block in (self._last | self._changed).items() if number == last}
        self._changed = {}

    def _write(self, txn: lmdb.Transaction, gone: list[str]) -> None:
        for name in gone:
            txn.delete(row_key(name))
        for number, block in self._changed.items():
            if not block.ids:
                for key in block_keys(number):
                    txn.delete(key)
                continue
            for row, name in enumerate(block.ids, number * self.header["rows_per_block"]):
                txn.put(row_key(name), row.to_bytes(8, "little"))
            values = block_values(number, block.ids, block.vectors[: len(block.ids)], self.header["dtype"])
            for key, value in values.items():
                txn.put(key, value)
        for key, value in header_values(self.header).items():
            txn.put(key, value)

    # ---- the end -------------------------------------------------------------------------------------------------------

    def publish(self, gone: Iterable[str] = ()) -> None:
        """The last commit; then the new file takes the old one's place, with nothing between the two, and what was made
        from the old one is deleted."""
        self.commit(gone)
        try:
            self._fill_up()
            self._env.sync(True)
            self._env.close()
            if not self.folder.exists():
                self.partial.rename(self.folder)
                return
            os.replace(self.partial / "data.mdb", self.folder / "data.mdb")
            delete_derived_files(self.folder)
        except (OSError, lmdb.Error) as error:
            raise self._cannot_write(error) from None

    def _fill_up(self) -> None:
        """LMDB does not write free pages at the end of its file, which would then look truncated."""
        file, promised = self.partial / "data.mdb", promised_bytes(self._env)
        if file.stat().st_size < promised:
            os.truncate(file, promised)

    def close(self, keep: bool) -> None:
        """Let go of the folder. ``keep``: what was committed and not published stays in ``partial``."""
        if self._env is not None:
            self._env.close()
        if not keep:
            shutil.rmtree(self.partial, ignore_errors=True)
        self._claims.close()

    def _cannot_write(self, error: Exception) -> CannotWrite:
        return CannotWrite(
            f"{self.folder}: cannot write the database ({error}); free disk space or choose another folder"
        )


def _copy(source: Path, target: Path) -> None:
    with open_regular(source) as old, open(target, "wb") as new:
        with suppress(OSError):
            fcntl.ioctl(new, _FICLONE, old.fileno())
            return
    shutil.copyfile(source, target)
