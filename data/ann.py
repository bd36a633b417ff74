"""Approximate search beside the exact one of ``data.index``: the same ``search(queries, k) -> (scores, rows)``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from data.errors import BadInput

ABSENT = -1  # row of a result that was not found; its score is -inf
VALUES_AT_ONCE = 1 << 23  # fp64 terms of dot products held at a time: 64 MiB
ADDED_AT_ONCE = 1000  # vectors between two moves of the progress bar


@dataclass
class HnswOptions:
    """The graph of an HNSW index (Malkov and Yashunin, 2016).

    Args:
        m: links of a vector in each layer, twice as many in the lowest; more find more and take more memory
        ef_construction: candidates looked at when a vector is linked; more make a better graph, more slowly
        ef_search: candidates looked at by a query (at least k); more find more, more slowly
    """

    m: int = 32
    ef_construction: int = 200
    ef_search: int = 128

    def __post_init__(self):
        for name, least in (("m", 2), ("ef_construction", 1), ("ef_search", 1)):
            if getattr(self, name) < least:
                raise BadInput(f"hnsw.{name} must be at least {least}, found {getattr(self, name)}")


class HnswIndex:
    """Vectors linked to their neighbours by dot product; a query walks the graph and sees a small part of them.

    Built on one thread, so that the same vectors give the same graph and the same results every time.

    Args:
        vectors: [N,D], anything NumPy takes; kept as float32

    Raises:
        BadInput: no vectors, or faiss is not installed.
    """

    def __init__(self, vectors, options: HnswOptions | None = None):
        options = options or HnswOptions()
        faiss = _faiss()
        self.vectors = np.ascontiguousarray(vectors, np.float32)
        if self.vectors.ndim != 2 or not len(self.vectors):
            raise BadInput(f"HNSW: vectors of shape {self.vectors.shape}, expected [N,D] with at least one")
        self._graph = faiss.IndexHNSWFlat(self.vectors.shape[1], options.m, faiss.METRIC_INNER_PRODUCT)
        self._graph.hnsw.efConstruction = options.ef_construction
        self._graph.hnsw.efSearch = options.ef_search
        with _threads(faiss, 1), tqdm(total=len(self), desc="linking", unit="vector", delay=2) as bar:
            for start in range(0, len(self), ADDED_AT_ONCE):
                part = self.vectors[start : start + ADDED_AT_ONCE]
                self._graph.add(part)
                bar.update(len(part))

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows that the walk finds, as ``EmbeddingIndex.search`` returns them.

        Args:
            queries: [Q,D], anything NumPy takes
            k: results per query; more than the index holds gives all it holds

        Returns:
            scores [Q,k] float32: dot products summed in fp64, best first, equal scores in row order; rows [Q,k] int64.
            Where the walk found fewer than k, the last rows are -1 (``ABSENT``) with score -inf: no result, never a row.

        Raises:
            BadInput: wrong width, NaN or infinity in a query, or k < 1.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise BadInput(f"HNSW: queries of shape {queries.shape}, expected [Q,{self.vectors.shape[1]}]")
        if k < 1:
            raise BadInput(f"HNSW: k is {k}, expected at least 1")
        if not np.isfinite(queries).all():
            raise BadInput("HNSW: a query holds NaN or infinity; check the checkpoint it was encoded with")
        _, rows = self._graph.search(queries, min(k, len(self)))
        scores = dot_products(queries, self.vectors, rows)
        order = np.lexsort((rows, -scores), axis=1)
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def dot_products(queries: np.ndarray, vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Scores of given rows: queries [Q,D], vectors [N,D], rows [Q,k] → [Q,k] float32, -inf for an absent row."""
    scores = np.empty(rows.shape, np.float32)
    at_once = max(1, VALUES_AT_ONCE // max(1, rows.shape[1] * vectors.shape[1]))
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        found = vectors[np.maximum(rows[part], 0)].astype(np.float64)
        scores[part] = np.einsum("qd,qkd->qk", queries[part].astype(np.float64), found)
    scores[rows == ABSENT] = -np.inf
    return scores


def share_found(queries: np.ndarray, vectors: np.ndarray, scores: np.ndarray) -> float:
    """Share of the exact best k that an approximate search found: queries [Q,D], vectors [N,D], its scores [Q,k].

    A result counts when it scores no less than the exact k-th, so that it does not matter which of equals was found.
    """
    import torch

    k, at_once = scores.shape[1], max(1, (1 << 24) // len(vectors))
    found, gallery = 0, torch.from_numpy(vectors)
    for start in range(0, len(queries), at_once):
        part = slice(start, start + at_once)
        best = torch.topk(torch.from_numpy(queries[part]) @ gallery.T, k, dim=1).indices.numpy()
        worst = dot_products(queries[part], vectors, best).min(axis=1, keepdims=True)
        found += int((scores[part] >= worst).sum())
    return found / scores.size


def _faiss():
    try:
        import faiss  # only when it is asked for: it takes half a second
    except ImportError as error:
        raise BadInput(f"HNSW search needs faiss, which cannot be imported ({error}): pip install faiss-cpu") from None
    return faiss


@contextmanager
def _threads(faiss, number: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()  # where faiss and torch share one OpenMP library this is torch's number too
    faiss.omp_set_num_threads(number)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
