"""Search backends: who finds the vectors of an index that have the largest dot product with a query.

    backend = open_backend("index/img")                              # the exact search
    backend = open_backend("index/img", SearchOptions("hnsw"))       # an approximate one, built beside the index
    scores, rows = backend.search(queries, k=10)                     # queries [Q,D] -> [Q,k], [Q,k], best first
    backend.ids(rows[0])

This is the registry: a new backend is a ``SearchBackend`` in a file of its own, and a line in ``BACKENDS``.
"""

from __future__ import annotations

from pathlib import Path

from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.search.base import SearchBackend, SearchOptions
from data.search.exact import ExactSearch
from data.search.faiss import HnswSearch, IvfpqSearch
from data.search.milvus import MilvusSearch

BACKENDS: dict[str, type[SearchBackend]] = {
    "exact": ExactSearch,
    "hnsw": HnswSearch,
    "ivfpq": IvfpqSearch,
    "milvus": MilvusSearch,
}


def open_backend(index: str | Path | EmbeddingIndex, options: SearchOptions | None = None) -> SearchBackend:
    """The backend that the options name, over an index.

    >>> import numpy as np
    >>> backend = open_backend("index/img", SearchOptions("hnsw"))
    >>> scores, rows = backend.search(np.ones((1, backend.dim)), k=3)
    >>> scores.shape, rows.shape, len(backend.ids(rows[0]))
    ((1, 3), (1, 3), 3)

    Args:
        index: folder of a feature index, or one that is open; with "milvus" the name of a collection

    Raises:
        BadInput: an unknown backend, one whose library is absent, or an index that cannot be opened.
    """
    options = options or SearchOptions()
    if options.backend not in BACKENDS:
        raise BadInput(f"search backend {options.backend!r}, expected one of {', '.join(BACKENDS)}")
    return BACKENDS[options.backend](index, options)  # type: ignore[call-arg]  # as every backend is made
