"""Search backends, one interface: ``search(queries [Q,D], k) -> (scores [Q,k] float32, rows [Q,k] int64)``, best first.

    backend = open_backend("hnsw", EmbeddingIndex("index/img"))       # or exact, ivfpq
    scores, rows = backend.search(queries, k=10)

Scores are true dot products of the stored vectors, summed in fp64 and rounded to fp32, and equal scores stand in row order,
whichever backend found the rows. ``exact`` finds the best ones always, the others (``data.ann``) most of them.
"""

from __future__ import annotations

import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

from data.errors import BadInput
from data.index.reader import EmbeddingIndex

BACKENDS = ("exact", "hnsw", "ivfpq")
QUERIES_AT_ONCE = 256
FEW_QUERIES = 8  # that torch's own threads search for: right after an encoder they still hold the cores
SCORES_AT_ONCE = 1 << 22  # fp32 scores held before they are reduced to the best: 16 MiB
GROUP = 32  # rows of which only the best counts when the k-th best is bounded
SPARE = 4096  # candidates of a query beyond 8k that are still scored one by one
VALUES_AT_ONCE = 1 << 22  # fp64 terms of dot products held at a time: 32 MiB
HALF = 2.0**-24  # largest relative error of rounding to fp32


def open_backend(name: str, index: EmbeddingIndex, device: str = "cpu", target_recall: float | None = None):
    """A backend over an index, by name; BadInput for an unknown one, or where its library is absent."""
    if name not in BACKENDS:
        raise BadInput(f"search backend {name!r}, expected one of {', '.join(BACKENDS)}")
    if name == "exact":
        return ExactSearch(index, device)
    from data.search.faiss import AnnSearch

    return AnnSearch(index, name, target_recall)


def checked_queries(queries, k: int, dim: int, count: int, where) -> np.ndarray:
    """Queries as [Q,D] float32.

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


class ExactSearch:
    """The k rows of largest dot product, provably: a rough pass over all rows, exact scores of those that it leaves open.

    A pass gives every row a score that is off by at most E. Rows whose score is more than 2E below the k-th best cannot
    be among the k best; the others are scored exactly. Passes, from fast to fine: 8-bit codes (a quarter of fp32's bytes),
    fp32, and at last fp64 for queries where rounding leaves too many rows open, as among equal vectors.

    Args:
        index: an open index; searched in place on the CPU, copied once to a GPU's memory
        device: "cpu" or "cuda"
    """

    def __init__(self, index: EmbeddingIndex, device: str = "cpu"):
        self.index = index
        self.device = torch.device(device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise BadInput(f"{index.folder}: search on {device}, but there is no GPU: choose cpu")
        codes = index.header["max_error"] is not None and self.device.type == "cpu" and index.dim < 2**17
        # without VNNI instructions 8-bit products may saturate on the way
        self._passes = [self._pass_int8] * (codes and _has_vnni()) + [self._pass_fp32]

    def search(self, queries, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows. The result does not depend on how many queries are asked together, nor on the device.

        Args:
            queries: [Q,D], anything NumPy takes
            k: results per query; more than the index holds gives all it holds

        Returns:
            scores [Q,k] float32, best first; rows [Q,k] int64

        Raises:
            BadInput: wrong width, NaN or infinity in a query, k < 1, an empty index, a block that is not what was written.
        """
        queries = checked_queries(queries, k, self.index.dim, self.index.count, self.index.folder)
        k = min(k, self.index.count)
        scores = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            part = slice(start, start + QUERIES_AT_ONCE)
            scores[part], rows[part] = self._search(queries[part], k)
        return scores, rows

    def _search(self, queries, k):
        scores = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        unsure = np.arange(len(queries))
        for rough in self._passes:
            if not len(unsure):
                break
            asked = queries[unsure]
            of, found, settled = self._candidates(*rough(asked), len(asked), k)
            if settled.any():
                done = unsure[settled]
                scores[done], rows[done] = best_pairs(asked[settled], self._checked_vectors, of, found, k)
            unsure = unsure[~settled]
        if len(unsure):
            scores[unsure], rows[unsure] = self._search_fp64(queries[unsure], k)
        return scores, rows

    def _checked_vectors(self, rows) -> np.ndarray:
        vectors = self.index.vectors(rows)
        self.index.check_vectors(rows, vectors)
        return vectors

    def _candidates(self, scores_of, window: Tensor, num: int, k: int):
        """Rows that a rough pass leaves open.

        Args:
            scores_of: ``(first row, rows) -> [rows,Q]`` rough scores
            window: [Q] 2E in the same units

        Returns: query and row of each candidate [M], [M], and which queries [Q] have few enough of them
        """
        num_blocks, per_block = self.index.num_blocks, self.index.header["rows_per_block"]
        split = self.device.type == "cpu" and num > FEW_QUERIES
        shards = min(torch.get_num_threads(), num_blocks) if split else 1
        bounds = [min(self.index.count, num_blocks * i // shards * per_block) for i in range(shards + 1)]

        def look(shard):
            return self._open_rows(scores_of, window, num, k, *bounds[shard : shard + 2])

        best, of, row, score, few = zip(*_on_threads(look, shards), strict=True)
        best, few = torch.cat(best), torch.stack(few).all(0)
        of, row, score = (torch.cat(parts) for parts in (of, row, score))
        bar = best.topk(k, dim=0).values[-1] - window if len(best) >= k else torch.full_like(window, -torch.inf)
        stays = score >= bar[of]
        counts = torch.bincount(of[stays], minlength=num)
        settled = window.isfinite() & few & (counts <= _most(k)) & (counts >= k)
        stays &= settled[of]
        number = settled.cumsum(0) - 1  # among the settled
        return number[of[stays]].cpu().numpy(), row[stays].cpu().numpy(), settled.cpu().numpy()

    def _open_rows(self, scores_of, window, num: int, k: int, begin: int, end: int):
        """Of the rows begin..end: the best scores [<=k,Q], of different rows; query, row, score of open rows [M]; and
        which queries [Q] have few enough of them (the others' rows are left out)."""
        per_block = self.index.header["rows_per_block"]
        span = max(1, SCORES_AT_ONCE // num // per_block) * per_block  # rows between two reductions
        group = GROUP if k * 2 * GROUP <= end - begin else 1
        best = torch.empty((0, num), device=self.device)
        few = torch.ones(num, dtype=torch.bool, device=self.device)
        kept = []
        for first in range(begin, end, span):
            scores = scores_of(first, min(span, end - first))
            whole = len(scores) // group * group
            best = torch.cat([best, scores[:whole].view(-1, group, num).amax(1), scores[whole:]])
            best = best.topk(min(k, len(best)), dim=0).values  # of k groups, so no more than the k best rows
            bar = best[-1] - window if len(best) == k else torch.full_like(window, -torch.inf)
            row, of = (scores >= torch.where(few, bar, torch.inf)).nonzero(as_tuple=True)
            few &= torch.bincount(of, minlength=num) <= _most(k)
            kept.append((of, row + first, scores[row, of]))
        of, row, score = (torch.cat(parts) for parts in zip(*kept, strict=True))
        stays = (score >= bar[of]) & few[of]  # the bar has risen since the first rows were kept
        few &= torch.bincount(of[stays], minlength=num) <= _most(k)
        stays &= few[of]
        return best, of[stays], row[stays], score[stays], few

    def _pass_int8(self, queries):
        """8-bit codes of rows times two 8-bit parts of each query, summed exactly in int32."""
        header = self.index.header
        scale = np.abs(queries).max(axis=1, keepdims=True).astype(np.float64) / 127
        scale[scale == 0] = 1
        high = np.rint(queries / scale)
        low = np.rint((queries / scale - high) * 254)
        near = scale * (high + low / 254)
        norms = np.linalg.norm(near, axis=1)
        error = norms * header["max_error"] + np.linalg.norm(queries - near, axis=1) * header["max_norm"]
        error += 64 * HALF * (norms + 1e-30) * (header["max_norm"] + header["max_error"])  # of the few fp32 operations
        parts = torch.from_numpy(np.concatenate([high, low]).astype(np.int8)).T.contiguous()
        per_block, num = header["rows_per_block"], len(queries)

        def scores_of(first: int, width: int) -> Tensor:
            sums = torch.empty((width, 2 * num), dtype=torch.int32)
            for start in range(first, first + width, per_block):
                codes = self._codes[start // per_block]
                torch._int_mm(codes, parts, out=sums[start - first : start - first + len(codes)])
            scores = sums[:, :num].float().add_(sums[:, num:], alpha=1 / 254)
            return scores.mul_(self._scales[first : first + width, None])

        return scores_of, _window(error, norms * header["max_norm"], scale[:, 0])

    def _pass_fp32(self, queries):
        """An fp32 dot product of D terms is off by at most D 2^-24 |q||v|, in whatever order it is summed (Higham,
        Accuracy and Stability, 3.1); half as much again leaves room for rounding the exact score."""
        norms = np.linalg.norm(queries.astype(np.float64), axis=1) * self.index.header["max_norm"]
        error = 1.5 * (self.index.dim + 2) * (norms * HALF + 2.0**-126)
        asked = torch.from_numpy(queries).to(self.device).T.contiguous()
        per_block = self.index.header["rows_per_block"]

        def scores_of(first: int, width: int) -> Tensor:
            scores = torch.empty((width, len(queries)), device=self.device)
            for start in range(first, first + width, per_block):
                block = self._block(start // per_block).float()
                torch.mm(block, asked, out=scores[start - first : start - first + len(block)])
            return scores

        return scores_of, _window(error, norms).to(self.device)

    def _search_fp64(self, queries, k):
        """Every row in fp64, reduced block by block."""
        queries = queries.astype(np.float64)
        best = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        for start, block in self.index.blocks():
            scores = (queries @ block.astype(np.float64).T).astype(np.float32)
            rows = np.broadcast_to(np.arange(start, start + len(block)), scores.shape)
            scores, rows = np.hstack([best[0], scores]), np.hstack([best[1], rows])
            order = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # rows ascend among equals
            best = np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)
        return best

    def _block(self, number: int) -> Tensor:
        if self.device.type == "cpu":
            return _tensor(self.index.block(number))
        return self._on_device[number]

    @cached_property
    def _on_device(self) -> list[Tensor]:
        return [_tensor(block).to(self.device) for _, block in self.index.blocks()]

    @cached_property
    def _codes(self) -> list[Tensor]:
        return [_tensor(self.index.checked_codes(number)[1]) for number in range(self.index.num_blocks)]

    @cached_property
    def _scales(self) -> Tensor:
        return torch.from_numpy(np.concatenate([self.index.codes(n)[0] for n in range(self.index.num_blocks)]))


def best_pairs(queries, vectors_of, of, rows, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact scores of candidates, and the k best of each query, equal scores in row order.

    Args:
        queries: [Q,D] float32
        vectors_of: ``rows -> [n,D]``
        of, rows: [M], [M] number of the query, and the row; ``vectors_of`` gets rows in ascending order
        k: results per query; each has at least as many candidates
    """
    order = np.argsort(rows, kind="stable")  # each place of the memory map is visited once
    of, rows = of[order], rows[order]
    scores = np.empty(len(rows), np.float32)
    at_once = max(1, VALUES_AT_ONCE // queries.shape[1])
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        pairs = queries[of[part]].astype(np.float64), vectors_of(rows[part]).astype(np.float64)
        scores[part] = np.einsum("nd,nd->n", *pairs)
    order = np.lexsort((rows, -scores, of))
    first = np.searchsorted(of[order], np.arange(len(queries)))
    chosen = order[first[:, None] + np.arange(k)]
    return scores[chosen], rows[chosen]


def _most(k: int) -> int:
    return 8 * k + SPARE


def _window(error, largest, scale=1.0) -> Tensor:
    """[Q] 2E in units of ``scale``, float32; infinite where scores may overflow, which is left to fp64."""
    return torch.from_numpy(np.where(largest < 1e38, 2 * error / scale * (1 + 4 * HALF), np.inf)).float()


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor on the memory map; torch warns that it must not be written to, and it is not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(array)


def _on_threads(function, number: int) -> list:
    """``function(0), function(1), ...`` at the same time, each on one core: a few long walks instead of a meeting of
    all cores after every block: batches take about 0.7 of the time, and half on a busy machine."""
    return [function(0)] if number == 1 else list(_pool(os.getpid(), number).map(function, range(number)))


@cache
def _pool(_process: int, number: int) -> ThreadPoolExecutor:
    """Threads in which torch uses one core; a forked child has none of its parent's."""
    before = torch.get_num_threads()
    started = threading.Barrier(number + 1)

    def start():
        torch.get_num_threads()  # the first call in a thread sets it to the default
        torch.set_num_threads(1)  # of this thread; but it becomes the default of later ones
        started.wait()

    pool = ThreadPoolExecutor(number, "search", initializer=start)
    for _ in range(number):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(before)
    return pool


def _has_vnni() -> bool:
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    return bool(supported and supported() and torch.backends.mkldnn.is_available())
