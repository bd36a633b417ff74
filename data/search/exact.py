"""The exact search: the best rows always, on the CPU or a GPU.

    scores, rows = ExactSearch("index/img").search(queries, k=10)
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.search.base import FeatureIndexBackend, SearchOptions
from data.search.topk import BestRows, best_candidates, checked_queries

QUERIES_AT_ONCE = 256
FEW_QUERIES = 8  # that torch's own threads search for: right after an encoder they still hold the cores
SCORES_AT_ONCE = 1 << 22  # fp32 scores held before they are reduced to the best: 16 MiB
GROUP = 32  # rows of which only the best counts when the k-th best is bounded
SPARE = 4096  # candidates of a query beyond 8k that are still scored one by one
HALF = 2.0**-24  # largest relative error of rounding to fp32


@dataclass
class RoughPass:
    """Fast scores of all rows for Q queries, each off by at most E.

    Attributes:
        scores: ``(first row, number of rows n) -> [n,Q]`` float32
        window: [Q] 2E in the units of these scores: a row whose score is lower than the k-th best by more than that is not
            among the k best. Infinite where scores may overflow
    """

    scores: Callable[[int, int], Tensor]
    window: Tensor


class OpenRows:
    """The rows that a rough pass leaves open: those that may be among the k best of a query. Scores come in blocks.

    Args:
        window: [Q] of the pass
        k: results per query
        num_rows: that will come

    Attributes:
        best: [<=k,Q] the best scores of different rows, so the last of k is no more than the k-th best row's
        few: [Q] whether the query has few enough open rows; those of the others are not kept
        query, row, score: [M] of the open rows, when it is closed
    """

    def __init__(self, window: Tensor, k: int, num_rows: int):
        self.window, self.k = window, k
        self._group = GROUP if k * 2 * GROUP <= num_rows else 1
        self.best = torch.empty((0, len(window)), device=window.device)
        self.few = torch.ones(len(window), dtype=torch.bool, device=window.device)
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    @property
    def _bar(self) -> Tensor:
        """[Q] what a row must score to be open still."""
        return self.best[-1] - self.window if len(self.best) == self.k else torch.full_like(self.window, -torch.inf)

    def add(self, first_row: int, scores: Tensor) -> None:
        """Scores [n,Q] of the rows from ``first_row`` on."""
        num = scores.shape[1]
        whole = len(scores) // self._group * self._group
        best = torch.cat([self.best, scores[:whole].view(-1, self._group, num).amax(1), scores[whole:]])
        self.best = best.topk(min(self.k, len(best)), dim=0).values  # of k groups, so no more than the k best rows
        row, query = (scores >= torch.where(self.few, self._bar, torch.inf)).nonzero(as_tuple=True)
        self.few &= self._are_few(query)
        self._kept.append((query, row + first_row, scores[row, query]))

    def close(self) -> None:
        """All rows have come: let go of those that the risen bar excludes, and of queries with too many."""
        self.query, self.row, self.score = (torch.cat(parts) for parts in zip(*self._kept, strict=True))
        self._kept = []
        self._keep((self.score >= self._bar[self.query]) & self.few[self.query])
        self.few &= self._are_few(self.query)
        self._keep(self.few[self.query])

    @classmethod
    def joined(cls, parts: list[OpenRows]) -> OpenRows:
        """Closed ones of different rows, together: with the k best rows of all, fewer are open."""
        whole = cls(parts[0].window, parts[0].k, 0)
        whole.best = torch.cat([part.best for part in parts])
        whole.best = whole.best.topk(min(whole.k, len(whole.best)), dim=0).values
        whole.few = torch.stack([part.few for part in parts]).all(0)
        whole._kept = [(part.query, part.row, part.score) for part in parts]
        whole.close()
        return whole

    def settled(self) -> Tensor:
        """[Q] whether the k best of a query are certainly among its open rows."""
        counts = torch.bincount(self.query, minlength=len(self.window))
        return self.window.isfinite() & self.few & (counts >= self.k)

    def _keep(self, stays: Tensor) -> None:
        self.query, self.row, self.score = self.query[stays], self.row[stays], self.score[stays]

    def _are_few(self, query: Tensor) -> Tensor:
        return torch.bincount(query, minlength=len(self.window)) <= 8 * self.k + SPARE


class ExactSearch(FeatureIndexBackend):
    """The k rows of largest dot product, provably: a rough pass over all rows, exact scores of those that it leaves open.

    A pass gives every row a score that is off by at most E. Rows whose score is more than 2E below the k-th best cannot
    be among the k best; the others are scored exactly. Passes, from fast to fine: 8-bit codes (a quarter of fp32's bytes),
    fp32, and at last fp64 for queries where rounding leaves too many rows open, as among equal vectors. The index is
    searched in place on the CPU, and copied once to a GPU's memory.
    """

    def __init__(self, index: str | Path | EmbeddingIndex, options: SearchOptions | None = None):
        super().__init__(index, options)
        self.device = torch.device(self.options.device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise BadInput(f"{self.place}: search on {self.options.device}, but there is no GPU: choose cpu")
        codes = self.index.header["max_error"] is not None and self.device.type == "cpu" and self.dim < 2**17
        # without VNNI instructions 8-bit products may saturate on the way
        self._passes = [self._int8_pass] * (codes and _has_vnni()) + [self._fp32_pass]

    def search(self, queries: ArrayLike, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows: see ``SearchBackend``. The result does not depend on how many queries are asked together, nor
        on the device."""
        queries = checked_queries(queries, k, self.dim, self.count, self.place)
        k = min(k, self.count)
        scores = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            part = slice(start, start + QUERIES_AT_ONCE)
            scores[part], rows[part] = self._search_part(queries[part], k)
        return scores, rows

    def _search_part(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        unsure = np.arange(len(queries))
        for rough_pass in self._passes:
            if not len(unsure):
                break
            asked = queries[unsure]
            query, row, settled = self._candidates(rough_pass(asked), k)
            if settled.any():
                done = unsure[settled]
                scores[done], rows[done] = best_candidates(asked[settled], self._checked_vectors, query, row, k)
            unsure = unsure[~settled]
        if len(unsure):
            scores[unsure], rows[unsure] = self._search_fp64(queries[unsure], k)
        return scores, rows

    def _checked_vectors(self, rows: np.ndarray) -> np.ndarray:
        vectors = self.index.vectors(rows)
        self.index.check_vectors(rows, vectors)
        return vectors

    def _candidates(self, rough: RoughPass, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The rows that a rough pass leaves open, for queries that have few enough of them.

        Returns: query [M] of each candidate, counted among the settled, and its row [M]; which queries [Q] are settled
        """
        num, num_blocks, per_block = len(rough.window), self.index.num_blocks, self.index.header["rows_per_block"]
        split = self.device.type == "cpu" and num > FEW_QUERIES
        shards = min(torch.get_num_threads(), num_blocks) if split else 1
        bounds = [min(self.count, num_blocks * i // shards * per_block) for i in range(shards + 1)]
        span = max(1, SCORES_AT_ONCE // num // per_block) * per_block  # rows between two reductions

        def open_rows_of(shard: int) -> OpenRows:
            begin, end = bounds[shard : shard + 2]
            rows = OpenRows(rough.window, k, end - begin)
            for first in range(begin, end, span):
                rows.add(first, rough.scores(first, min(span, end - first)))
            rows.close()
            return rows

        found = OpenRows.joined(_results_of_threads(open_rows_of, shards))
        settled = found.settled()
        stays = settled[found.query]
        number = settled.cumsum(0) - 1  # among the settled
        return number[found.query[stays]].cpu().numpy(), found.row[stays].cpu().numpy(), settled.cpu().numpy()

    def _int8_pass(self, queries: np.ndarray) -> RoughPass:
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

        def scores(first: int, width: int) -> Tensor:
            sums = torch.empty((width, 2 * num), dtype=torch.int32)
            for start in range(first, first + width, per_block):
                codes = self._codes[start // per_block]
                torch._int_mm(codes, parts, out=sums[start - first : start - first + len(codes)])
            rough = sums[:, :num].float().add_(sums[:, num:], alpha=1 / 254)
            return rough.mul_(self._scales[first : first + width, None])

        return RoughPass(scores, _window(error, norms * header["max_norm"], scale[:, 0]))

    def _fp32_pass(self, queries: np.ndarray) -> RoughPass:
        """An fp32 dot product of D terms is off by at most D 2^-24 |q||v|, in whatever order it is summed (Higham,
        Accuracy and Stability, 3.1); half as much again leaves room for rounding the exact score."""
        norms = np.linalg.norm(queries.astype(np.float64), axis=1) * self.index.header["max_norm"]
        error = 1.5 * (self.dim + 2) * (norms * HALF + 2.0**-126)
        asked = torch.from_numpy(queries).to(self.device).T.contiguous()
        per_block = self.index.header["rows_per_block"]

        def scores(first: int, width: int) -> Tensor:
            rough = torch.empty((width, len(queries)), device=self.device)
            for start in range(first, first + width, per_block):
                block = self._block(start // per_block).float()
                torch.mm(block, asked, out=rough[start - first : start - first + len(block)])
            return rough

        return RoughPass(scores, _window(error, norms).to(self.device))

    def _search_fp64(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Every row in fp64, reduced block by block."""
        best, queries = BestRows(len(queries), k), queries.astype(np.float64)
        for start, block in self.index.blocks():
            best.add(start, torch.from_numpy((queries @ block.astype(np.float64).T).astype(np.float32)))
        return best.scores.numpy(), best.rows.numpy()

    def _block(self, number: int) -> Tensor:
        if self.device.type == "cpu":
            return _mapped_tensor(self.index.block(number))
        return self._on_device[number]

    @cached_property
    def _on_device(self) -> list[Tensor]:
        return [_mapped_tensor(block).to(self.device) for _, block in self.index.blocks()]

    @cached_property
    def _codes(self) -> list[Tensor]:
        return [_mapped_tensor(self.index.codes(number)[1]) for number in range(self.index.num_blocks)]

    @cached_property
    def _scales(self) -> Tensor:
        return torch.from_numpy(np.concatenate([self.index.codes(n)[0] for n in range(self.index.num_blocks)]))


def _window(error: np.ndarray, largest: np.ndarray, scale: float | np.ndarray = 1.0) -> Tensor:
    """[Q] 2E in units of ``scale``, float32; infinite where scores may overflow, which is left to fp64."""
    return torch.from_numpy(np.where(largest < 1e38, 2 * error / scale * (1 + 4 * HALF), np.inf)).float()


def _mapped_tensor(array: np.ndarray) -> Tensor:
    """A tensor on the memory map; torch warns that it must not be written to, and it is not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(array)


def _results_of_threads(function: Callable, number: int) -> list:
    """``function(0), function(1), ...`` at the same time, each on one core: a few long walks instead of a meeting of
    all cores after every block: batches take about 0.7 of the time, and half on a busy machine."""
    return [function(0)] if number == 1 else list(_thread_pool(os.getpid(), number).map(function, range(number)))


@cache
def _thread_pool(_process: int, number: int) -> ThreadPoolExecutor:
    """Threads in which torch uses one core; a forked child has none of its parent's."""
    before = torch.get_num_threads()
    started = threading.Barrier(number + 1)

    def use_one_core() -> None:
        torch.get_num_threads()  # the first call in a thread sets it to the default
        torch.set_num_threads(1)  # of this thread; but it becomes the default of later ones
        started.wait()

    pool = ThreadPoolExecutor(number, "search", initializer=use_one_core)
    for _ in range(number):
        pool.submit(int)
    started.wait()
    torch.set_num_threads(before)
    return pool


def _has_vnni() -> bool:
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    return bool(supported and supported() and torch.backends.mkldnn.is_available())
