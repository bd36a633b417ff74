"""A feature index that is searched while others change it: what is on the disk is taken up between two queries.

    index = FollowedIndex("index/img", retriever, {"exact": SearchOptions()})
    with index.use() as state:
        state["exact"].nearest(vectors, 10)      # this state stays open and whole until the block ends
    index.look()                                 # takes up what was published since, where it is the model's
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data.errors import BadInput, Unavailable
from data.index.reader import EmbeddingIndex
from data.notices import say
from data.search import open_backend
from data.search.base import SearchOptions
from model.retrieval.region_reranker import RegionReranker
from model.retrieval.retriever import Retriever, check_kind


class IndexState:
    """An index as it was when it was opened, with what searches it.

    Attributes:
        index: the vectors and ids
        retrievers: backend → the model over it
        users: how many blocks use it now
    """

    def __init__(self, index: EmbeddingIndex, retrievers: dict[str, Retriever]):
        self.index, self.retrievers, self.users = index, retrievers, 0

    def __getitem__(self, backend: str) -> Retriever:
        return self.retrievers[backend]

    def close(self) -> None:
        """Give back its memory, where the index was replaced on disk."""
        for retriever in self.retrievers.values():
            retriever.backend.close()
        self.retrievers = {}
        self.index.close()


class FollowedIndex:
    """An index in a folder, in the state that was last found to be whole and the model's.

    Args:
        folder: the index
        kind: "img" or "txt", what it must be of
        retriever: of the model that the index is of, over any index
        searches: backend → how it searches
        collection: of Milvus, that "milvus" searches

    Attributes:
        taken_up: how often a state that was published later was taken up
        refused: why what is on the disk now is not taken up; None where it is

    Raises:
        BadInput: the index is missing, damaged, of another kind or of another model, or has images that a re-ranker has no regions of.
    """

    def __init__(
        self, folder: str | Path, kind: str, retriever: Retriever, searches: Mapping[str, SearchOptions], collection: str = ""
    ):
        self.folder, self.kind = Path(folder), kind
        self.taken_up, self.refused = 0, None
        self._searches, self._collection = dict(searches), collection
        self._lock = threading.Lock()
        self._looked_at = self._waiting_for = self._stamp()
        self._retriever = retriever
        self._state = self._opened()

    def _stamp(self) -> tuple | None:
        """Which file is there; None where there is none."""
        try:
            info = os.stat(self.folder / "data.mdb")
        except OSError:
            return None
        return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns

    def _opened(self) -> IndexState:
        index = EmbeddingIndex(self.folder)
        try:
            if self.kind == "img" and isinstance(self._retriever.reranker, RegionReranker):
                self._retriever.reranker.look_up(index.ids())
            found = {}
            for name, options in sorted(self._searches.items(), key=lambda each: each[0] != "milvus"):  # first what may not answer
                backend = open_backend(self._collection if name == "milvus" else index, options)
                check_kind(backend, self.kind, str(self.folder))
                found[name] = self._retriever.over(backend)  # checks the model
                backend.prepare()
                if name != "milvus" and index.count:  # pages in what every search reads
                    backend.search(np.zeros((1, index.dim), np.float32), 1)
            return IndexState(index, found)
        except BaseException:
            index.close()
            raise

    @property
    def backends(self) -> list[str]:
        """What can search it."""
        return list(self._searches)

    @contextmanager
    def use(self) -> Iterator[IndexState]:
        """The state as it is now; it stays open while the block lasts, whatever is taken up meanwhile."""
        with self._lock:
            state = self._state
            state.users += 1
        try:
            yield state
        finally:
            self._leave(state)

    def _leave(self, state: IndexState) -> None:
        with self._lock:
            state.users -= 1
            is_over = state is not self._state and not state.users
        if is_over:
            state.close()

    def look(self) -> bool:
        """Take up what was published since, if anything was: whether it was taken up. What cannot be read, or is of another kind
        or model, is refused and said once, and the state that was there stays; where it is Milvus that does not answer, it is tried
        again. A change counts when it is the same at two looks, since who publishes deletes afterwards what was made of the state before.
        """
        stamp = self._stamp()
        changed, self._waiting_for = stamp != self._waiting_for, stamp
        if changed or stamp == self._looked_at:
            return False
        before, self._looked_at = (self._looked_at, self.refused), stamp
        try:
            state = self._opened()
        except BadInput as error:
            self.refused = str(error)
            if isinstance(error, Unavailable):
                self._looked_at = before[0]
            if self.refused != before[1]:
                say(f"{self.folder}: what is there now is not taken up, the index before it answers: {error}")
            return False
        with self._lock:
            old, self._state, self.refused = self._state, state, None
            old.users += 1
        self._leave(old)
        self.taken_up += 1
        return True

    def reopen(self, state: IndexState, backend: str) -> Retriever:
        """The backend opened once more, where it lives elsewhere and was exported anew or stopped. Raises BadInput as it does."""
        fresh = open_backend(self._collection, self._searches[backend])
        check_kind(fresh, self.kind, str(self.folder))
        state.retrievers[backend] = self._retriever.over(fresh)
        return state.retrievers[backend]

    def as_json(self) -> dict:
        """What is searched, for statistics."""
        with self.use() as state:
            facts = {"count": state.index.count, "dim": state.index.dim, "dtype": state.index.dtype, "commits": state.index.header["commits"]}
        return facts | {"folder": str(self.folder), "backends": self.backends, "taken_up": self.taken_up, "refused": self.refused}
