"""Change a feature index.

    with IndexEditor("index/img", model=model.fingerprint) as editor:
        editor.delete(["a.npz"])
        editor.replace(["b.npz"], vectors)
        editor.add(["c.npz"], vectors)

One transaction: the index is as it was until the ``with`` block ends well, whatever kills the process. It works on a copy,
since readers hold no locks: who reads meanwhile goes on reading what was opened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import ArrayLike

from data.errors import BadInput
from data.index.layout import VERSION
from data.index.reader import EmbeddingIndex
from data.index.store import BlockStore
from data.index.writer import check_new_ids
from data.storage.atomic import beside

BLOCKS_AT_ONCE = 16  # held in memory while an index is changed


class IndexEditor:
    """Add, replace and delete rows of an index in one transaction, on a copy that takes its place at the end.

    Files beside the LMDB that were made from it (approximate search) are deleted, since rows move.

    Args:
        folder: the index
        model: fingerprint of the model that made the new vectors; another than the index's is refused

    Raises:
        BadInput: no index, another model, or another process changes it; an id whose record does not lead to its row, or a record of
            no id, which an edit would carry along.
    """

    def __init__(self, folder: str | Path, model: str | None):
        self.folder = Path(folder)
        self._model = model
        self._store = BlockStore(self.folder, beside(self.folder, ".", ".edit"))
        self._rows: dict[str, int | None] = {}  # of the ids that moved, came or, with None, went

    @property
    def header(self) -> dict:
        return self._store.header

    def __enter__(self) -> IndexEditor:
        index = EmbeddingIndex(self.folder)
        try:
            index.check_model(self._model)
            if index.header["version"] < VERSION:
                raise BadInput(f"{self.folder}: index format {index.header['version']} can be read, not changed: build it again")
        finally:
            index.close()
        self._store.open(copy_of=self.folder / "data.mdb")
        try:
            self._store.header = self._store.committed_header()  # what was opened above may have been replaced since
            self._store.check_rows()  # so that an id without a record is new, and no row is another's
        except BaseException:
            self._store.close(keep=False)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.header["commits"] += 1
                self.header["created"].pop("contents", None)  # rows of another state of the database, or of another one
                self._store.commit()
                self.header["data"] = self._store.digest()
                self._store.publish(gone=[name for name, row in self._rows.items() if row is None])
        finally:
            self._store.close(keep=False)

    def add(self, ids: Sequence[str], vectors: ArrayLike) -> None:
        """Append vectors: as ``IndexWriter.add``."""
        ids = list(ids)
        vectors = self._store.as_stored(ids, vectors)
        check_new_ids(ids, lambda name: self._row(name) is not None, self.folder)
        while ids:
            row = self.header["count"]
            taken = self._store.append(ids, vectors)
            self._rows.update(zip(ids[:taken], range(row, row + taken), strict=True))
            ids, vectors = ids[taken:], vectors[taken:]
            self._bound_memory()

    def replace(self, ids: Sequence[str], vectors: ArrayLike) -> None:
        """Other vectors for ids that the index holds, in their rows. Raises BadInput as `add`, or for an absent id."""
        ids = list(ids)
        vectors = self._store.as_stored(ids, vectors)
        rows = self._rows_of(ids)
        for row, name, vector in zip(rows, ids, vectors, strict=True):
            self._put_row(row, name, vector)

    def delete(self, ids: Sequence[str]) -> None:
        """Take ids away; the last rows move into their places. Raises BadInput for an absent id."""
        ids = list(ids)
        rows = self._rows_of(ids)
        for row, name in sorted(zip(rows, ids, strict=True), reverse=True):  # so the last row is never one that goes later
            self._rows[name] = None
            last_name, vector = self._take_last_row()
            if row != self.header["count"]:
                self._rows[last_name] = row
                self._put_row(row, last_name, vector)
            self._bound_memory()

    def _take_last_row(self) -> tuple[str, np.ndarray]:
        number = (self.header["count"] - 1) // self.header["rows_per_block"]
        block = self._store.get(number)
        self.header["count"] -= 1
        name = block.ids.pop()
        self._store.put(number, block)
        return name, block.vectors[len(block.ids)].copy()

    def _put_row(self, row: int, name: str, vector: np.ndarray) -> None:
        number, place = divmod(row, self.header["rows_per_block"])
        block = self._store.get(number)
        block.ids[place], block.vectors[place] = name, vector
        self._store.put(number, block)
        self._bound_memory()

    def _rows_of(self, ids: list[str]) -> list[int]:
        rows = [self._row(name) for name in ids]
        if None in rows:
            raise BadInput(f"{self.folder}: no id {ids[rows.index(None)]!r} in this index")
        found = [row for row in rows if row is not None]
        if len(set(found)) < len(found):
            raise BadInput(f"{self.folder}: id {Counter(ids).most_common(1)[0][0]!r} is named twice")
        return found

    def _row(self, name: str) -> int | None:
        return self._rows[name] if name in self._rows else self._store.committed_row(name)

    def _bound_memory(self) -> None:
        if self._store.num_changed > BLOCKS_AT_ONCE:
            self._store.commit()
