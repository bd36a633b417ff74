"""Approximate search with FAISS, which sees a small part of the vectors: HNSW graphs and inverted lists.

``HnswSearch`` and ``IvfpqSearch`` keep what they build beside an index's LMDB; ``HnswIndex`` is made of vectors in memory and
forgotten.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from data.errors import BadInput
from data.index.derived import DerivedFiles
from data.index.reader import EmbeddingIndex
from data.progress import ProgressBar, said_when_slow
from data.search.base import FeatureIndexBackend, SearchOptions
from data.search.exact import ExactSearch
from data.search.topk import ABSENT, checked_queries, exact_scores, in_order
from data.storage.atomic import atomic_file
from data.storage.file_facts import file_crc32
from data.storage.locks import only_writer

VERSION = 3  # of the files beside an index
ADDED_AT_ONCE = 1000  # vectors between two moves of the progress bar
SEARCHED_AT_ONCE = 256  # queries between two moves, when an index is tuned
HALVINGS = 3  # trials between the effort that reaches a target and its half
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

    def __post_init__(self) -> None:
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

    def __init__(self, vectors: np.ndarray, options: HnswOptions | None = None):
        options = options or HnswOptions()
        faiss = _faiss()
        self.vectors = np.ascontiguousarray(vectors, np.float32)
        if self.vectors.ndim != 2 or not len(self.vectors):
            raise BadInput(f"HNSW: vectors of shape {self.vectors.shape}, expected [N,D] with at least one")
        self._graph = faiss.IndexHNSWFlat(self.vectors.shape[1], options.m, faiss.METRIC_INNER_PRODUCT)
        self._graph.hnsw.efConstruction = options.ef_construction
        self._graph.hnsw.efSearch = options.ef_search
        with _threads(faiss, 1), ProgressBar(what="linking", total=len(self), unit="vector") as bar:
            for start in range(0, len(self), ADDED_AT_ONCE):
                part = self.vectors[start : start + ADDED_AT_ONCE]
                self._graph.add(part)
                bar.update(len(part))

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries: ArrayLike, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows that the walk finds, as ``SearchBackend.search`` returns them.

        Args:
            queries: [Q,D], anything NumPy takes
            k: results per query; more than the index holds gives all it holds

        Returns:
            scores [Q,k] float32: dot products summed in fp64, best first, equal scores in row order; rows [Q,k] int64.
            Where the walk found fewer than k, the last rows are -1 (``ABSENT``) with score -inf: no result, never a row.

        Raises:
            BadInput: wrong width, NaN or infinity in a query, or k < 1.
        """
        queries = checked_queries(queries, k, self.vectors.shape[1], len(self), "HNSW")
        _, rows = self._graph.search(queries, min(k, len(self)))
        return in_order(exact_scores(queries, self.vectors.__getitem__, rows), rows)


class FaissSearch(FeatureIndexBackend):
    """A FAISS index of a feature index's vectors, in files beside the LMDB: built when absent, unfit or stale.

    ``NAME.faiss`` is FAISS's file, ``NAME.json`` says which state of which index it was made from, and the share of the exact
    top 10 that was measured with how much effort. FAISS names candidates; their scores are dot products of the stored
    vectors, and where it names fewer than k rows the exact search answers.

    Args:
        options: ``target_recall``: the least effort that reaches it on sampled queries is kept. None: what was tuned before,
            0.99 at first. Where no effort reaches it the exact search answers

    Attributes:
        about: once it is prepared, what ``NAME.json`` says: ``bytes`` and ``crc32`` of the file, ``effort``, ``recall``, ``target_recall``,
            ``tuned_with`` so many queries, ``exact`` where the exact search answers

    Raises:
        BadInput: an empty index, faiss is not installed; when it is prepared, a damaged index, or the folder cannot be written.
    """

    name: str
    _faiss: Any
    _found: Any

    def __init__(self, index: str | Path | EmbeddingIndex, options: SearchOptions | None = None):
        super().__init__(index, options)
        self._faiss, self._found = _faiss(), None  # the library, and its index
        if not self.count:
            raise BadInput(f"{self.place}: the index is empty; build it from a database with entries")
        self._files = DerivedFiles(self.index, self.name, VERSION)
        self._file = self._files.path("faiss")
        self._known_parameters: dict[tuple[int, int], tuple] = {}
        self.about: dict = {}

    def prepare(self, queries: ArrayLike | None = None) -> None:
        """Build the files where they are absent, unfit or stale; tune where that was not done, or to another target.

        Args:
            queries: [Q,D] queries to tune with, then in any case; none: sums of two stored vectors
        """
        self.about = self.about or self._opened()
        target = self.options.target_recall
        if "effort" in self.about and queries is None and target in (None, self.about["target_recall"]):
            return
        with only_writer(self._file):
            self.about = self.about or self._built()
            self._tune(target or self.about.get("target_recall", TARGET_RECALL), queries)

    @abstractmethod
    def _untrained(self, sample: np.ndarray) -> tuple[np.ndarray, dict]:
        """Make ``self._found``, FAISS's index without vectors, for vectors such as ``sample`` [n,D].

        Returns: [D] what is to be taken from every vector before it goes in; what NAME.json is to say of the index
        """

    @abstractmethod
    def _new_parameters(self, effort: int, k: int) -> tuple:
        """How many rows FAISS is to name for the k best, so that their exact scores may change the order; and its own
        parameters for how it is to look for them."""

    @cached_property
    def _exact(self) -> ExactSearch:
        return ExactSearch(self.index)

    def search(self, queries: ArrayLike, k: int, effort: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The k best of the rows that FAISS finds: see ``SearchBackend``. ``effort``: another than what is tuned."""
        queries = checked_queries(queries, k, self.dim, self.count, self.place)
        if not self.about:
            self.prepare()
        if effort is None and self.about["exact"]:
            return self._exact.search(queries, k)
        k, effort = min(k, self.count), effort or self.about["effort"]
        num_candidates, parameters = self._parameters(effort, k)
        _, rows = self._found.search(queries, num_candidates, params=parameters)
        rows[(rows < 0) | (rows >= self.count)] = ABSENT
        scores, rows = (each[:, :k] for each in in_order(exact_scores(queries, self.index.vectors, rows), rows))
        short = np.flatnonzero(rows[:, -1] == ABSENT)
        if len(short):
            scores[short], rows[short] = self._exact.search(queries[short], k)
        return scores, rows

    def _parameters(self, effort: int, k: int) -> tuple:
        if (effort, k) not in self._known_parameters:
            self._known_parameters[effort, k] = self._new_parameters(effort, k)
        return self._known_parameters[effort, k]

    def _opened(self) -> dict:
        """Read the files: what they say of themselves, or nothing where they do not fit."""
        try:
            about = self._files.description()
            if about is None:
                return {}
            fits = self._files.fit(about) and about["bytes"] == self._file.stat().st_size
            if fits and about["crc32"] != file_crc32(self._file):
                raise BadInput(f"{self._file}: is not what was written")
            self._found = self._faiss.read_index(str(self._file)) if fits else None
            if fits and self._found.ntotal == self.count:
                return about
            why = "stale"
        except FileNotFoundError:
            return {}
        except (OSError, BadInput, KeyError, TypeError, RuntimeError):  # faiss raises RuntimeError
            why = "damaged"
        print(f"{self._file}: {why}, built again", file=sys.stderr)
        return {}

    def _built(self) -> dict:
        """Make the files: what they say of themselves, which is no effort yet."""
        faiss, count = self._faiss, self.count
        rows = np.random.default_rng(0).permutation(count)[:TRAINED_WITH]
        sample = self.index.vectors(np.sort(rows))
        mean, facts = self._untrained(sample)
        with said_when_slow(f"building {self.name}: learning from {len(sample):,} vectors"):
            self._found.train(np.resize(sample - mean, (max(256, len(sample)), self.dim)))
        with ProgressBar(what=f"building {self.name}", total=count, unit="vector") as bar:
            for _, block in self.index.blocks():
                for first in range(0, len(block), ADDED_AT_ONCE):
                    part = np.asarray(block[first : first + ADDED_AT_ONCE], np.float32) - mean
                    self._found.add(part)
                    bar.update(len(part))
        with atomic_file(self._file) as path:
            self._files.disown()
            try:
                faiss.write_index(self._found, str(path))
            except RuntimeError as error:
                reason = str(error).rsplit(": ", 1)[-1].strip()
                raise BadInput(f"{self._file}: cannot be written ({reason}); free disk space or copy the index") from None
        about = facts | {"bytes": self._file.stat().st_size, "crc32": file_crc32(self._file)}
        self._files.describe(about)
        return about

    def _tune(self, target: float, queries: ArrayLike | None) -> None:
        """Double the effort until the target is reached, by more than the standard error; then halve the last step."""
        if queries is None:
            rows = np.random.default_rng(0).integers(self.count, size=(2, TUNED_WITH))
            queries = self.index.vectors(rows).sum(axis=0)  # as far from any vector as captions are from images
        queries = np.ascontiguousarray(np.asarray(queries)[:TUNED_WITH], np.float32)
        k = min(10, self.count)
        parts = [queries[first : first + SEARCHED_AT_ONCE] for first in range(0, len(queries), SEARCHED_AT_ONCE)]
        with ProgressBar(what=f"tuning {self.name}", total=(2 + HALVINGS) * len(queries), unit="queries") as bar:

            def scores(search: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
                found = []
                for part in parts:
                    found.append(search(part)[0])
                    bar.update(len(part))
                return np.concatenate(found)

            worst = scores(lambda part: self._exact.search(part, k))[:, -1:]

            def recall(effort: int) -> tuple[float, float]:
                """The share of the exact top k, and what it is at least."""
                bar.say(remark=f"effort {effort}")
                shares = (scores(lambda part: self.search(part, k, effort)) >= worst).mean(axis=1)
                return float(shares.mean()), float(shares.mean() - shares.std() / len(shares) ** 0.5)

            low, high = 0, 8
            found, surely = recall(8)
            while surely < target and high < MOST_EFFORT:
                low, high = high, 2 * high
                bar.total += len(queries)
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
        self._files.describe(self.about)


class HnswSearch(FaissSearch):
    """A graph over the vectors' main axes, in bf16 (Malkov and Yashunin, 2016); effort is ``ef_search``."""

    name = "hnsw"

    def _untrained(self, sample: np.ndarray) -> tuple[np.ndarray, dict]:
        faiss, graph = self._faiss, HnswOptions()
        mean = sample.mean(axis=0, dtype=np.float64).astype(np.float32)  # a query's product with it is the same for all
        sample = sample - mean
        axes = main_axes(sample)
        size = float(np.sqrt(np.mean(sample.astype(np.float64) ** 2))) or 1.0  # products of tiny numbers would be zero
        self._turn = faiss.LinearTransform(*axes.shape, False)
        faiss.copy_array_to_vector(np.ascontiguousarray(axes.T / size, np.float32).ravel(), self._turn.A)
        self._turn.is_trained = True
        self._graph = faiss.IndexHNSWSQ(axes.shape[1], faiss.ScalarQuantizer.QT_bf16, graph.m, faiss.METRIC_INNER_PRODUCT)
        self._graph.hnsw.efConstruction = graph.ef_construction
        self._found = faiss.IndexPreTransform(self._turn, self._graph)  # which does not keep its two parts alive
        return mean, {"axes": axes.shape[1]}

    def _new_parameters(self, effort: int, k: int) -> tuple:
        num_candidates = min(max(2 * k, effort // 4), self.count)
        of_graph = self._faiss.SearchParametersHNSW(efSearch=max(effort, num_candidates))
        return num_candidates, self._faiss.SearchParametersPreTransform(index_params=of_graph)


class IvfpqSearch(FaissSearch):
    """Clusters of product-quantised vectors, which take a thirtieth of fp32's memory (Jégou, Douze and Schmid, 2011); effort
    is the number of clusters that a query looks into."""

    name = "ivfpq"

    def _untrained(self, sample: np.ndarray) -> tuple[np.ndarray, dict]:
        faiss, dim = self._faiss, self.dim
        lists = max(1, min(int(4 * self.count**0.5), self.count // 39))
        parts = next(parts for parts in range(max(1, dim // 8), 0, -1) if dim % parts == 0)
        self._centres = faiss.IndexFlatIP(dim)
        self._found = faiss.IndexIVFPQ(self._centres, dim, lists, parts, 8, faiss.METRIC_INNER_PRODUCT)
        self._found.cp.min_points_per_centroid = self._found.pq.cp.min_points_per_centroid = 1
        return np.zeros(dim, np.float32), {}

    def _new_parameters(self, effort: int, k: int) -> tuple:
        num_candidates = min(4 * k + 16 * effort, self.count)
        return num_candidates, self._faiss.SearchParametersIVF(nprobe=min(effort, self._found.nlist))


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


def _faiss() -> Any:
    try:
        import faiss  # only when it is asked for: it takes half a second
    except ImportError as error:
        raise BadInput(f"HNSW search needs faiss, which cannot be imported ({error}): pip install faiss-cpu") from None
    return faiss


@contextmanager
def _threads(faiss: Any, number: int) -> Iterator[None]:
    before = faiss.omp_get_max_threads()  # where faiss and torch share one OpenMP library this is torch's number too
    faiss.omp_set_num_threads(number)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
