"""Galleries of any size to be searched: an index of drawn vectors, and the backends over it."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import faiss
import numpy as np
import torch

from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.index.writer import IndexWriter
from data.search import open_backend
from data.search.base import SearchOptions
from data.search.exact import ExactSearch
from data.storage.memory import check_memory
from data.storage.processes import starting_workers, worker_pool
from scripts.benchmarking.measuring import process_bytes
from scripts.benchmarking.retrieval_models import RetrievalSettings
from scripts.benchmarking.retrieval_report import BATCH, FLAT


class Synthetic:
    """Vectors and queries like a trained model's.

    The i-th of D eigenvalues of the covariance is i^-0.5 / (1 + (i/16)²), a fit to the image embeddings of 242 photographs by
    the model of configs/finetune/photos_small.yaml (measured 1, 0.76, 0.52, 0.32, 0.14, 0.026, 0.0073, 0.0013 for i = 1, 2,
    4, ... 128; the fit is up to 1.7 times that, which is harder to search), whose mean has 0.3 of their length, and whose captions have cosine 0.46 with their images.
    """

    def __init__(self, dim: int):
        check_memory(32 * dim**2, f"axes of vectors of width {dim:,}")
        rng = np.random.default_rng(0)
        axes = np.linalg.qr(rng.standard_normal((dim, dim)))[0]
        i = np.arange(1, dim + 1)
        values = i**-0.5 / (1 + (i / 16) ** 2)
        self.dim, self.mean = dim, (0.3 * axes[-1]).astype(np.float32)
        self.spread = (np.sqrt(0.91 * values / values.sum())[:, None] * axes).astype(np.float32)

    def vectors(self, rng: np.random.Generator, number: int) -> np.ndarray:
        """[number,D] of about length 6"""
        found = rng.standard_normal((number, self.dim), np.float32) @ self.spread + self.mean
        lengths = 6 + 0.2 * rng.standard_normal((number, 1), np.float32)
        return found * (lengths / np.linalg.norm(found, axis=1, keepdims=True))

    def queries(self, rng: np.random.Generator, images: np.ndarray, cosine: float = 0.46) -> np.ndarray:
        """[Q,D], one of each image"""
        found = images + np.sqrt(1 / cosine**2 - 1) * self.vectors(rng, len(images))
        return (6 * found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def write_drawn_index(
    folder: Path, shape: Synthetic, rng: np.random.Generator, count: int, model: str, info: dict | None = None
) -> np.ndarray:
    """An index of ``count`` drawn vectors; the first 2048 of them, [S,D]."""
    some = np.empty((0, shape.dim), np.float32)
    with IndexWriter(folder, "img", shape.dim, model=model, data="drawn", info=info) as writer:
        for first in range(0, count, 16384):
            part = shape.vectors(rng, min(16384, count - first))
            some = part[:2048] if first == 0 else some
            writer.add([f"{n:012d}.npz" for n in range(first, first + len(part))], part)
    return some


class Gallery:
    """An index with what searches it.

    Attributes:
        count: of its vectors
        index: it
        facts: what is known without timing its searches: build times, sizes, recall
        searches: system → what searches it
    """

    def __init__(self, settings: RetrievalSettings, count: int, work: Path, fingerprint: str, device: torch.device):
        self.count = count
        shape, rng = Synthetic(settings.dim), np.random.default_rng(count)
        started = time.perf_counter()
        some = write_drawn_index(work / f"index_{count}", shape, rng, count, fingerprint)
        self.index = EmbeddingIndex(work / f"index_{count}")
        self.facts: dict = {"index_seconds": time.perf_counter() - started, "index_bytes": _size(self.index.folder)}
        tuning, asked = (shape.queries(rng, some[rng.integers(len(some), size=1024)]) for _ in range(2))

        self.facts["opening"] = in_another_process(opening, str(self.index.folder), asked[:1], settings.k)

        self.searches: dict = {}
        for name in settings.backends:
            started = time.perf_counter()
            search = open_backend(self.index, SearchOptions(name, settings.target_recall, device=str(device)))
            self.searches[name] = search
            if name == "exact":
                continue
            search.prepare(tuning)
            self.facts[name] = {"build_seconds": time.perf_counter() - started, "file_bytes": search.about["bytes"]}
            self.facts[name]["effort"] = search.about["effort"]
        exact, rows = ExactSearch(self.index).search(asked, settings.k)
        for name in set(settings.backends) - {"exact"}:
            self.facts[name]["recall"] = float((self.searches[name].search(asked, settings.k)[0] >= exact[:, -1:]).mean())
        if "exact" in settings.backends and device.type == "cpu":
            self.flat = flat = _flat(self.index)
            found = flat.search(asked, settings.k)[1]
            # A library's fp32 sums may swap two that are nearly equal: those are no other ids.
            self.facts["same_ids_as_flat"] = float(np.mean(np.sort(found, 1) == np.sort(rows, 1)))
            self.searches[FLAT] = flat
        self.asked, self.k = asked, settings.k

    def calls(self, name: str) -> tuple[Callable, Callable]:
        """What a system is timed by: a function that asks one query, and one that asks ``BATCH`` of them; its argument is a number."""
        search, asked, k = self.searches[name].search, self.asked, self.k
        return lambda n: search(asked[n % len(asked)][None], k), lambda n: search(asked[:BATCH], k)


def in_another_process(measure: Callable[..., dict], *arguments: object) -> dict:
    """What a function measures where nothing else has been read. Raises BadInput where the process dies, as it does without memory."""
    try:
        with worker_pool(1, "spawn") as pool:
            with starting_workers():
                found = pool.submit(measure, *arguments)
            return found.result()
    except BrokenProcessPool:
        raise BadInput("a process that measures died, perhaps out of memory; take smaller --galleries") from None


def opening(folder: str, query: np.ndarray, k: int) -> dict:
    """Seconds and bytes of opening an index, of reading a hundred of its vectors, and of one exact search."""
    before, started = process_bytes(), time.perf_counter()
    index = EmbeddingIndex(folder)
    facts = {"seconds": time.perf_counter() - started, "bytes": process_bytes() - before}
    index.vectors(np.linspace(0, len(index) - 1, 100).astype(int))
    facts["bytes_after_100_vectors"] = process_bytes() - before
    ExactSearch(index).search(query, k)
    return facts | {"bytes_after_exact_search": process_bytes() - before}


def _flat(index: EmbeddingIndex):
    flat = faiss.IndexFlatIP(index.dim)
    for _, block in index.blocks():
        flat.add(np.ascontiguousarray(block, np.float32))
    return flat


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
