"""Change a feature index.

    with IndexEditor("index/img", model=model.fingerprint) as editor:
        editor.delete(["a.npz"])
        editor.replace(["b.npz"], vectors)
        editor.add(["c.npz"], vectors)

One transaction: the index is as it was until the ``with`` block ends well, whatever kills the process. It works on a copy,
since readers hold no locks: who reads meanwhile goes on reading what was opened.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from data.errors import BadInput
from data.index.reader import VERSION, EmbeddingIndex, read, read_header
from data.index.writer import MAX_ID_BYTES, BlockWriter, only_writer

BLOCKS_AT_ONCE = 16  # held in memory while an index is changed
_FICLONE = 0x40049409  # Linux: share the blocks of a file on file systems that can (Btrfs, XFS)


class IndexEditor(BlockWriter):
    """Add, replace and delete rows of an index in one transaction, on a copy that takes its place at the end.

    Files beside the LMDB that were made from it (approximate search) are deleted, since rows move.

    Args:
        folder: the index
        model: fingerprint of the model that made the new vectors; another than the index's is refused

    Raises:
        BadInput: no index, another model, or another process changes it.
    """

    def __init__(self, folder: str | Path, model: str):
        super().__init__(folder)
        self.partial = self.folder.with_name(f".{self.folder.name}.edit")
        self._model = model
        self._rows: dict[str, int | None] = {}  # what changed: None is gone

    def __enter__(self) -> IndexEditor:
        index = EmbeddingIndex(self.folder)
        index.check_model(self._model)
        if index.header["version"] < VERSION:
            raise BadInput(f"{self.folder}: index format {index.header['version']} can be read, not changed: build it again")
        self._lock = only_writer(self.partial)
        try:
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
            _copy(self.folder / "data.mdb", self.partial / "data.mdb")
        except OSError as error:
            raise self._cannot_write(error) from None
        self._open()
        with self._env.begin(buffers=True) as txn:  # what was opened above may have been replaced since
            self.header = read_header(txn, self.folder)
        self._changes = hashlib.sha256(self.header["data"].encode())
        self._written = -(-self.header["count"] // self.header["rows_per_block"])  # blocks that the LMDB may hold
        return self

    def replace(self, ids: Sequence[str], vectors) -> None:
        """Other vectors for ids that the index holds, in their rows. Raises BadInput as `add`, or for an absent id."""
        ids = list(ids)
        vectors = self._checked(ids, vectors)
        rows = self._found(ids)
        self._note("replace", ids, vectors)
        for row, vector in zip(rows, vectors):
            number, place = divmod(row, self.header["rows_per_block"])
            self._block(number)[1][place] = vector
            self._after_rows()

    def delete(self, ids: Sequence[str]) -> None:
        """Take ids away; the last rows move into their places. Raises BadInput for an absent id."""
        ids = list(ids)
        rows = self._found(ids)
        self._note("delete", ids, np.empty(0, np.float32))
        for row, name in sorted(zip(rows, ids), reverse=True):  # so that the last row is never one that goes later
            self.header["count"] -= 1
            names, block = self._block(self.header["count"] // self.header["rows_per_block"])
            moved, vector = names.pop(), block[len(names)].copy()
            self._rows[name] = None
            if row != self.header["count"]:
                number, place = divmod(row, self.header["rows_per_block"])
                names, block = self._block(number)
                names[place], block[place] = moved, vector
                self._rows[moved] = row
            self._after_rows()

    def _found(self, ids) -> list[int]:
        rows = [self._row(name) for name in ids]
        if None in rows:
            raise BadInput(f"{self.folder}: no id {ids[rows.index(None)]!r} in this index")
        if len(set(rows)) < len(rows):
            raise BadInput(f"{self.folder}: id {Counter(ids).most_common(1)[0][0]!r} is named twice")
        return rows

    def _row(self, name: str) -> int | None:
        if name in self._rows:
            return self._rows[name]
        if len(name.encode()) > MAX_ID_BYTES:
            return None
        with self._env.begin() as txn:
            value = read(txn, b"row/" + name.encode(), self.folder)
        return None if value is None else int.from_bytes(value, "little")

    def _holds(self, name: str) -> bool:
        return self._row(name) is not None

    def _placed(self, names, row) -> None:
        self._rows.update(zip(names, range(row, row + len(names))))
        self._note("add", names, self._block(row // self.header["rows_per_block"])[1])

    def _note(self, what: str, ids, vectors) -> None:
        self._changes.update("\0".join([what, *ids]).encode() + vectors.tobytes())

    def _after_rows(self) -> None:
        if len(self._blocks) > BLOCKS_AT_ONCE:
            self._flush()

    def _worth_keeping(self) -> bool:
        return False

    def _flush(self) -> None:
        self._written = max([self._written, *(number + 1 for number in self._blocks)])
        super()._flush()

    def _finish(self) -> None:
        self.header["commits"] += 1
        self.header["data"] = self._changes.hexdigest()[:16]
        empty = [number for number, (names, _) in self._blocks.items() if not names]
        for number in empty:
            del self._blocks[number]
        self._flush()
        per_block = self.header["rows_per_block"]
        beyond = range(-(-self.header["count"] // per_block), self._written)
        gone = [b"row/" + name.encode() for name, row in self._rows.items() if row is None]
        gone += [b"%s/%08d" % (kind, number) for number in beyond for kind in (b"vec", b"int8", b"ids", b"crc")]
        if gone:
            self._map_size *= 2  # a deletion writes pages too
            self._env.set_mapsize(max(self._map_size, 2 * self._env.info()["map_size"]))
            with self._env.begin(write=True) as txn:
                for key in gone:
                    txn.delete(key)
        super()._finish()


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as old, open(target, "wb") as new:
        with suppress(OSError):
            fcntl.ioctl(new, _FICLONE, old.fileno())
            return
    shutil.copyfile(source, target)
