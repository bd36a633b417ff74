"""Approximate search beside the exact one of ``data.search``: the same ``search(queries, k) -> (scores, rows)``.

``AnnSearch`` keeps what it builds beside an index's LMDB; ``HnswIndex`` is made of vectors in memory and forgotten.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from data.errors import BadInput
from data.search.exact import checked_queries
from data.storage.atomic import atomic_file
from data.storage.text_files import read_json, write_json

VERSION = 3  # of the files beside an index
ABSENT = -1  # row of a result that was not found; its score is -inf
VALUES_AT_ONCE = 1 << 23  # fp64 terms of dot products held at a time: 64 MiB
ADDED_AT_ONCE = 1000  # vectors between two moves of the progress bar
TARGET_RECALL = 0.99
SHARE_KEPT = 0.95  # of the vectors' directions, by the axes that a graph is built over
TRAINED_WITH = 65536  # vectors that quantisers are trained with
TUNED_WITH = 1024  # queries
MOST_EFFORT = 4096


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
        return _ordered(dot_products(queries, self.vectors.__getitem__, rows), rows)


class AnnSearch:
    """A FAISS index of a feature index's vectors, in files beside the LMDB: built when absent, unfit or stale.

    ``KIND.faiss`` is FAISS's file, ``KIND.json`` says which state of which index it was made from, with which parameters,
    and the share of the exact top 10 that was measured with them. FAISS names candidates; their scores are dot products of
    the stored vectors, and where it names fewer than k rows the exact search answers.

    Args:
        index: an open index
        kind: "hnsw", a graph over the vectors' main axes in bf16; or "ivfpq", clusters of product-quantised vectors, which
            take a thirtieth of fp32's memory
        target_recall: share of the exact top 10 to find; the least effort that reaches it on sampled queries is kept. None:
            what was tuned before, 0.99 at first. Where no effort reaches it the exact search answers
        queries: [Q,D] queries to tune with; none: sums of two stored vectors
        hnsw: the graph, when one is built; ``ef_search`` is tuned

    Raises:
        BadInput: an empty index, a target outside 0..1, faiss is not installed, or the folder cannot be written.
    """

    def __init__(self, index, kind: str, target_recall: float | None = None, queries=None, hnsw: HnswOptions | None = None):
        self.index, self.kind = index, kind
        self._known: dict[tuple[int, int], tuple] = {}
        self._faiss = _faiss()
        self._file, self._stamp_file = (index.folder / f"{kind}.{suffix}" for suffix in ("faiss", "json"))
        if not index.count:
            raise BadInput(f"{index.folder}: the index is empty; build it from a database with entries")
        if target_recall is not None and not 0 < target_recall <= 1:
            raise BadInput(f"target_recall is {target_recall}, expected more than 0 and at most 1")
        self.about = self._read()
        if not self.about:
            self.about = {"version": VERSION, "index": index.stamp}
            self._build(hnsw or HnswOptions())
            self.about["bytes"] = self._file.stat().st_size
        if "effort" not in self.about or queries is not None or target_recall not in (None, self.about["target_recall"]):
            self._tune(target_recall or self.about.get("target_recall", TARGET_RECALL), queries)

    def search(self, queries, k: int, effort: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """As ``ExactSearch.search``, of the rows that were found."""
        queries = checked_queries(queries, k, self.index.dim, self.index.count, self.index.folder)
        if effort is None and self.about["exact"]:
            return self.index.search(queries, k)
        k, effort = min(k, self.index.count), effort or self.about["effort"]
        wanted, how = self._parameters(effort, k)
        _, rows = self._found.search(queries, wanted, params=how)
        rows[(rows < 0) | (rows >= self.index.count)] = ABSENT
        scores, rows = (each[:, :k] for each in _ordered(dot_products(queries, self.index.vectors, rows), rows))
        short = np.flatnonzero(rows[:, -1] == ABSENT)
        if len(short):
            scores[short], rows[short] = self.index.search(queries[short], k)
        return scores, rows

    def _parameters(self, effort: int, k: int):
        """How many rows faiss is to name, so that their exact scores may change the order, and how it is to look for them."""
        if (effort, k) not in self._known:
            if self.kind == "hnsw":
                wanted = min(max(2 * k, effort // 4), self.index.count)
                how = self._faiss.SearchParametersHNSW(efSearch=max(effort, wanted))
                how = self._faiss.SearchParametersPreTransform(index_params=how)
            else:
                wanted = min(4 * k + 16 * effort, self.index.count)
                how = self._faiss.SearchParametersIVF(nprobe=min(effort, self._found.nlist))
            self._known[effort, k] = wanted, how
        return self._known[effort, k]

    def _read(self) -> dict:
        """What stands in the files, or nothing where they do not fit."""
        if not self._stamp_file.exists():
            return {}
        try:
            about = read_json(self._stamp_file)
            fits = about["version"] == VERSION and about["index"] == self.index.stamp
            fits = fits and about["bytes"] == self._file.stat().st_size
            self._found = self._faiss.read_index(str(self._file)) if fits else None
            if fits and self._found.ntotal == self.index.count:
                return about
            why = "stale"
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):  # of BadInput, too; faiss raises RuntimeError
            why = "damaged"
        print(f"{self._file}: {why}, built again", file=sys.stderr)
        return {}

    def _build(self, hnsw: HnswOptions) -> None:
        faiss, dim, count = self._faiss, self.index.dim, self.index.count
        rows = np.random.default_rng(0).permutation(count)[:TRAINED_WITH]
        sample = self.index.vectors(np.sort(rows))
        mean = np.zeros(dim, np.float32)
        if self.kind == "hnsw":
            mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)  # a query's product with it is the same for all
            sample = sample - mean
            axes = main_axes(sample)
            size = float(np.sqrt(np.mean(sample.astype(np.float64) ** 2))) or 1.0  # products of tiny numbers would be zero
            self._turn = faiss.LinearTransform(*axes.shape, False)
            faiss.copy_array_to_vector(np.ascontiguousarray(axes.T / size, np.float32).ravel(), self._turn.A)
            self._turn.is_trained = True
            kept = axes.shape[1]
            self._part = faiss.IndexHNSWSQ(kept, faiss.ScalarQuantizer.QT_bf16, hnsw.m, faiss.METRIC_INNER_PRODUCT)
            self._part.hnsw.efConstruction = hnsw.ef_construction
            self._found = faiss.IndexPreTransform(self._turn, self._part)
            self.about["axes"] = kept
        else:
            lists = max(1, min(int(4 * count**0.5), count // 39))
            parts = next(parts for parts in range(max(1, dim // 8), 0, -1) if dim % parts == 0)
            self._part = faiss.IndexFlatIP(dim)
            self._found = faiss.IndexIVFPQ(self._part, dim, lists, parts, 8, faiss.METRIC_INNER_PRODUCT)
            self._found.cp.min_points_per_centroid = self._found.pq.cp.min_points_per_centroid = 1
        self._found.train(np.resize(sample, (max(256, len(sample)), dim)))
        with tqdm(total=count, desc=f"building {self.kind}", unit="vector", delay=2) as bar:
            for start, block in self.index.blocks():
                self.index.check(start // self.index.header["rows_per_block"])
                for first in range(0, len(block), ADDED_AT_ONCE):
                    part = np.asarray(block[first : first + ADDED_AT_ONCE], np.float32) - mean
                    self._found.add(part)
                    bar.update(len(part))
        with atomic_file(self._file) as path:
            self._stamp_file.unlink(missing_ok=True)
            try:
                faiss.write_index(self._found, str(path))
            except RuntimeError as error:
                reason = str(error).rsplit(": ", 1)[-1].strip()
                raise BadInput(f"{self._file}: cannot be written ({reason}); free disk space or copy the index") from None

    def _tune(self, target: float, queries) -> None:
        """Double the effort until the target is reached, by more than the standard error; then halve the last step."""
        if queries is None:
            rows = np.random.default_rng(0).integers(self.index.count, size=(2, TUNED_WITH))
            queries = self.index.vectors(rows).sum(axis=0)  # as far from any vector as captions are from images
        queries = np.ascontiguousarray(queries[:TUNED_WITH], np.float32)
        k = min(10, self.index.count)
        least = self.index.search(queries, k)[0][:, -1:]

        def recall(effort: int) -> tuple[float, float]:
            each = (self.search(queries, k, effort)[0] >= least).mean(axis=1)
            return float(each.mean()), float(each.mean() - each.std() / len(each) ** 0.5)

        low, high = 0, 8
        found, surely = recall(8)
        while surely < target and high < MOST_EFFORT:
            low, high = high, 2 * high
            found, surely = recall(high)
        while high - low > max(1, high // 16):
            middle = (low + high) // 2
            share, at_least = recall(middle)
            if at_least >= target:
                high, found = middle, share
            else:
                low = middle
        if found < target:
            print(
                f"{self._file}: finds {found:.2%} of the exact top {k} at the most, not {target:.2%}: the exact search answers",
                file=sys.stderr,
            )
        self.about |= {"target_recall": target, "recall": found, "effort": high, "tuned_with": len(queries)}
        self.about["exact"] = found < target
        write_json(self._stamp_file, self.about)


def main_axes(sample: np.ndarray) -> np.ndarray:
    """The directions in which vectors are long: most dot products with them change little when the others are left out.

    Args:
        sample: [n,D] vectors, whose mean is zero

    Returns: [D,d] float32, orthonormal; the first eigenvectors of the second moment of the directions, which hold
    ``SHARE_KEPT`` of it, d a multiple of 16 or D
    """
    lengths = np.linalg.norm(sample.astype(np.float64), axis=1, keepdims=True)
    directions = sample / np.where(lengths > 0, lengths, 1)  # a few long vectors must not hide the others
    moment = directions.T @ directions
    values, axes = np.linalg.eigh(moment)
    values, axes = values[::-1], axes[:, ::-1]
    kept = int(np.searchsorted(np.cumsum(values), SHARE_KEPT * values.sum())) + 1
    return np.ascontiguousarray(axes[:, : min(len(moment), -(-kept // 16) * 16)], np.float32)


def _ordered(scores: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row best first, equal scores in row order, absent ones last."""
    order = np.lexsort((rows, -scores), axis=1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def dot_products(queries: np.ndarray, vectors_of: Callable, rows: np.ndarray) -> np.ndarray:
    """Scores of given rows: queries [Q,D], ``vectors_of(rows) -> [...,D]``, rows [Q,k] → [Q,k] float32, -inf for an absent
    row."""
    scores = np.empty(rows.shape, np.float32)
    at_once = max(1, VALUES_AT_ONCE // max(1, rows.shape[1] * queries.shape[1]))
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        found = vectors_of(np.maximum(rows[part], 0)).astype(np.float64)
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
        worst = dot_products(queries[part], vectors.__getitem__, best).min(axis=1, keepdims=True)
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
