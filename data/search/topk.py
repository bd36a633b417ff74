"""What every search needs: checks of the queries, exact scores of candidate rows, and the k best of many scores.

Scores are dot products of the stored vectors, summed in fp64 and rounded to fp32; equal scores stand in row order. So all
backends give the same scores, in the same order, for the rows that they find.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from data.errors import BadInput
from data.progress import ProgressBar

ABSENT = -1  # row of a result that was not found; its score is -inf
VALUES_AT_ONCE = 1 << 22  # fp64 terms of dot products held at a time: 32 MiB
SCORES_AT_ONCE = 1 << 24  # fp32 scores of an in-memory gallery held at a time: 64 MiB


def checked_queries(queries: ArrayLike, k: int, dim: int, count: int, where: object) -> np.ndarray:
    """Queries as [Q,D] float32.

    Args:
        where: name of what is searched, for the message

    Raises:
        BadInput: wrong width, NaN, infinity or overflow in a query, k < 1, nothing to search in (``count`` 0).
    """
    queries = np.ascontiguousarray(queries, np.float32)
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise BadInput(f"{where}: queries of shape {queries.shape}, expected [Q,{dim}] for this index")
    if k < 1:
        raise BadInput(f"{where}: k is {k}, expected at least 1")
    if count == 0:
        raise BadInput(f"{where}: the index is empty; build it from a database with entries")
    if not np.isfinite(np.linalg.norm(queries, axis=1)).all():
        raise BadInput(f"{where}: a query holds NaN or infinity; check the checkpoint it was encoded with")
    return queries


# ---- exact scores of candidates ----------------------------------------------------------------------------------------


def exact_scores(queries: np.ndarray, vectors_of: Callable, rows: np.ndarray) -> np.ndarray:
    """Scores of as many candidates of each query: queries [Q,D], ``vectors_of(rows) -> [...,D]``, rows [Q,k] → [Q,k]
    float32, -inf for an ``ABSENT`` row."""
    scores = np.empty(rows.shape, np.float32)
    at_once = max(1, VALUES_AT_ONCE // max(1, rows.shape[1] * queries.shape[1]))
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        vectors = vectors_of(np.maximum(rows[part], 0)).astype(np.float64)
        scores[part] = np.einsum("qd,qkd->qk", queries[part].astype(np.float64), vectors)
    scores[rows == ABSENT] = -np.inf
    return scores


def in_order(scores: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows [Q,k] of each query, best first, equal scores in row order, ``ABSENT`` ones last."""
    order = np.lexsort((rows, -scores), axis=1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def best_candidates(
    queries: np.ndarray, vectors_of: Callable, query: np.ndarray, rows: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Exact scores of candidates, of which queries have different numbers, and the k best of each query.

    Args:
        queries: [Q,D] float32
        vectors_of: ``rows -> [n,D]``; it gets the rows in ascending order, so that each place of a memory map is visited once
        query, rows: [M], [M] the query that a candidate is of, and its row
        k: results per query; each query has at least as many candidates

    Returns: scores [Q,k] float32, rows [Q,k], best first, equal scores in row order
    """
    order = np.argsort(rows, kind="stable")
    query, rows = query[order], rows[order]
    scores = np.empty(len(rows), np.float32)
    at_once = max(1, VALUES_AT_ONCE // queries.shape[1])
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        pairs = queries[query[part]].astype(np.float64), vectors_of(rows[part]).astype(np.float64)
        scores[part] = np.einsum("nd,nd->n", *pairs)
    order = np.lexsort((rows, -scores, query))
    first = np.searchsorted(query[order], np.arange(len(queries)))
    chosen = order[first[:, None] + np.arange(k)]
    return scores[chosen], rows[chosen]


def ranks_of_rows(
    queries: np.ndarray, blocks: Iterable[tuple[int, np.ndarray]], vectors_of: Callable, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How many rows stand before one row of each query, equal scores in row order, and that row's score.

    Args:
        queries: [Q,D] float32
        blocks: all vectors in row order: (first row, [n,D])
        vectors_of: ``rows -> [...,D]``
        rows: [Q] the row that is asked for of each query

    Returns: [Q] int64, 0 being first; [Q] float32
    """
    own = exact_scores(queries, vectors_of, rows[:, None])
    before, wide = np.zeros(len(rows), np.int64), queries.astype(np.float64)
    for first, block in blocks:
        at_once = max(1, VALUES_AT_ONCE // block.shape[1])
        for start in range(0, len(block), at_once):
            scores = (wide @ block[start : start + at_once].astype(np.float64).T).astype(np.float32)
            place = first + start + np.arange(scores.shape[1])
            ahead = (scores > own) | ((scores == own) & (place < rows[:, None]))
            before += (ahead & (place != rows[:, None])).sum(axis=1)
    return before, own[:, 0]


# ---- the k best of many scores -----------------------------------------------------------------------------------------


def best_columns(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest scores of each query and where they stand, equal ones by position: [Q,N] → [Q,k], [Q,k].

    A full stable sort gives the same; it is made only for queries where equal scores could change the answer.
    """
    best, columns = scores.topk(k, dim=1)
    equal = (best[:, 1:] == best[:, :-1]).any(dim=1) | ((scores >= best[:, -1:]).sum(dim=1) > k)
    if equal.any():
        sorted_scores, order = scores[equal].sort(dim=1, descending=True, stable=True)
        best[equal], columns[equal] = sorted_scores[:, :k], order[:, :k]
    return best, columns


class BestRows:
    """The k best rows of each query, of blocks of rows that come one after another.

    Attributes: ``scores`` [Q,<=k] and ``rows`` [Q,<=k] int64, best first, equal scores in row order.
    """

    def __init__(self, num_queries: int, k: int):
        self.k = k
        self.scores = torch.empty((num_queries, 0))
        self.rows = torch.empty((num_queries, 0), dtype=torch.int64)

    def add(self, first_row: int, scores: Tensor) -> None:
        """Scores [Q,n] of the rows from ``first_row`` on, which stand behind all that came before."""
        rows = torch.arange(first_row, first_row + scores.shape[1]).expand(scores.shape)
        scores, rows = torch.cat([self.scores, scores], dim=1), torch.cat([self.rows, rows], dim=1)
        self.scores, columns = best_columns(scores, min(self.k, scores.shape[1]))
        self.rows = rows.gather(1, columns)


def scores_in_parts(
    queries: Tensor, gallery: Tensor, longest: int | None = None, what: str | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Dot products of queries [Q,D] with a gallery [N,D] in memory, some queries at a time: (which ones, their [q,N]).

    Args:
        longest: a part has so many queries that products with a gallery of this length stay within 64 MiB; none: the
            gallery's own. Sums of two calls are the same to the last bit only for parts of the same size
        what: what they are for, which a progress bar says; none: there is no bar
    """
    at_once = max(1, SCORES_AT_ONCE // max(1, longest or len(gallery)))
    starts = range(0, len(queries), at_once)
    for start in starts if what is None else ProgressBar(starts, what, unit="parts"):
        part = slice(start, start + at_once)
        yield part, queries[part] @ gallery.T


def best_rows(
    queries: Tensor, gallery: Tensor, k: int, longest: int | None = None, what: str | None = None
) -> tuple[Tensor, Tensor]:
    """The k best rows of a gallery [N,D] in memory for queries [Q,D], by dot products in their own precision.

    Args:
        longest, what: as of ``scores_in_parts``

    Returns: scores [Q,k], rows [Q,k] int64 on the CPU, best first, equal scores in row order
    """
    parts = [best_columns(scores, k) for _, scores in scores_in_parts(queries, gallery, longest, what)]
    scores, rows = (torch.cat([part[n].cpu() for part in parts]) for n in (0, 1))
    return scores, rows


def share_found(queries: np.ndarray, vectors: np.ndarray, scores: np.ndarray) -> float:
    """Share of the exact best k that an approximate search found: queries [Q,D], vectors [N,D], its scores [Q,k].

    A result counts when it scores no less than the exact k-th, so that it does not matter which of equals was found.
    """
    _, rows = best_rows(torch.from_numpy(queries), torch.from_numpy(vectors), scores.shape[1])
    worst = exact_scores(queries, vectors.__getitem__, rows.numpy()).min(axis=1, keepdims=True)
    return int((scores >= worst).sum()) / scores.size
