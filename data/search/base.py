"""What a search backend is: one interface for all of them, and one set of options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from data.errors import BadInput
from data.index.reader import EmbeddingIndex


@dataclass
class SearchOptions:
    """What searches an index.

    Args:
        backend: a name in ``data.search.BACKENDS``
        target_recall: share of the exact top 10 that an approximate backend is tuned to; none: what it is tuned to already,
            0.99 at first
        uri: of Milvus: a file ending in .db or a server's address; the index is then the name of a collection
        token: of a Milvus server that asks for one, "user:password"
        device: where the exact search computes, "cpu" or "cuda"
    """

    backend: str = "exact"
    target_recall: float | None = None
    uri: str | None = None
    token: str = ""
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.target_recall is not None and not 0 < self.target_recall <= 1:
            raise BadInput(f"target_recall is {self.target_recall}, expected more than 0 and at most 1")
        if (self.backend == "milvus") != (self.uri is not None):
            raise BadInput("--backend milvus and --uri go together")


class SearchBackend(ABC):
    """Finds the rows of an index whose vectors have the largest dot product with a query.

    A backend is made by ``Backend(index, options)``: the index that it is about, and ``SearchOptions``, of which it reads
    what concerns it. That opens the index and no more; ``prepare`` builds what the search needs.

    Attributes:
        place: where the index is, for messages
        kind: "img" | "txt", what the vectors are embeddings of
        dim: width D of a vector
        count: N vectors
    """

    place: str
    kind: str
    dim: int
    count: int

    def __len__(self) -> int:
        return self.count

    def prepare(self) -> None:  # noqa: B027  (most backends have nothing to build)
        """Build and tune what the search needs, where that is absent or stale; otherwise the first search does it."""

    def close(self) -> None:  # noqa: B027  (a backend may hold nothing)
        """Let go of what the backend holds; it is not used any more."""

    @abstractmethod
    def search(self, queries: ArrayLike, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows that the backend finds.

        Args:
            queries: [Q,D], anything NumPy takes
            k: results per query; more than the index holds gives all it holds

        Returns:
            scores [Q,k] float32: dot products of the stored vectors, summed in fp64, best first, equal ones in row order;
            rows [Q,k] int64

        Raises:
            BadInput: wrong width, NaN or infinity in a query, k < 1, an empty index, or a damaged one.
        """

    @abstractmethod
    def ids(self, rows: ArrayLike) -> list[str]:
        """Ids of the given rows [n]."""

    def check_contents(self, database: Path, contents: str) -> None:  # noqa: B027  (a backend may not know)
        """Raise BadInput where the index was built from other contents of a database than ``contents``, its fingerprint."""

    @abstractmethod
    def check_model(self, fingerprint: str | None, settings: dict | None = None) -> None:
        """Raise BadInput unless the model with this fingerprint, and these settings of its vectors, made the index."""


class FeatureIndexBackend(SearchBackend):
    """A backend that reads the vectors of a feature index where they are.

    Args:
        index: a folder, or an index that is open
        options: what concerns the backend of them
    """

    def __init__(self, index: str | Path | EmbeddingIndex, options: SearchOptions | None = None):
        self.index = index if isinstance(index, EmbeddingIndex) else EmbeddingIndex(index)
        self.options = options or SearchOptions()
        self.place = str(self.index.folder)
        self.kind, self.dim, self.count = self.index.kind, self.index.dim, self.index.count

    def ids(self, rows: ArrayLike) -> list[str]:
        return self.index.ids(rows)

    def check_contents(self, database: Path, contents: str) -> None:
        self.index.check_contents(database, contents)

    def check_model(self, fingerprint: str | None, settings: dict | None = None) -> None:
        self.index.check_model(fingerprint, settings)
