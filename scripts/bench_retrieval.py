#!/usr/bin/env python
"""The speed table: seconds from a text to its images, by dot product, with re-ranking, and by cross-attention alone.

python scripts/bench_retrieval.py --out benchmarks/retrieval_cpu.json          # the whole table; half an hour on two CPU cores
python scripts/bench_retrieval.py --galleries 1000 5000 --backends exact hnsw  # a part of it
python scripts/bench_retrieval.py --device cuda --precision fp32 fp16 --out benchmarks/retrieval_gpu.json   # on a GPU

Models have their real sizes (BERT-base) and random weights, which are as fast as trained ones. A region database with random
features is written, encoded and read again by the re-ranker. Vectors of the large galleries are drawn, as encoding a million
images takes hours: their covariance falls as that of a trained model's image embeddings does, and queries have the cosine
with an image that captions have there (see ``Synthetic``), for on these two the approximate searches depend.

All systems are measured in turns, round after round in one run, so that a machine that speeds up or slows down does so for
all of them. Cross-attention is measured on the re-ranker's pairs, and multiplied by the size of the gallery.
"""

import functools
import itertools
import multiprocessing
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

import numpy as np
import torch

from configs import cli
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.index.writer import IndexWriter
from data.regions.db import RegionDB, Regions
from data.regions.writer import RegionWriter
from data.search import open_backend
from data.search.base import SearchOptions
from data.search.exact import ExactSearch
from data.storage.text_files import write_json
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.distributed import SINGLE
from model.precision import Precision, choose_device, for_inference
from model.retrieval.encoding import Encoding
from model.retrieval.indexing import build_index
from model.retrieval.retriever import RegionReranker, Retriever
from model.retrieval.sources import image_source
from model.transformer import EncoderConfig
from model.uniter import Reranker, UniterConfig
from optim.run import environment, progress_bar
from scripts.benchmarking.measuring import device_name, peak_bytes, process_bytes, reset_peak, spread, synchronize
from scripts.retrieval_table import BATCH, FLAT, plot, print_table

LEAST = 5  # calls of a measurement


@dataclass
class Options:
    """Measure retrieval on galleries of several sizes.

    Args:
        out: JSON file to write; the same name with .png gets the plot
        work: folder for models, databases and indexes, some 6 GB with a million images; deleted at the end
        galleries: images of each gallery
        backends: exact, hnsw, ivfpq
        target_recall: share of the exact top 10 that hnsw and ivfpq are tuned to
        k: results of a query
        rerank_top: candidates that are ranked again
        encoded: images that are really encoded, and ranked again
        words: of a query
        regions: of an image
        hidden_size: of both towers and the re-ranker
        num_hidden_layers: of each of them
        num_attention_heads: of each of them
        intermediate_size: of each of them
        vocab_size: of the text encoders
        feature_dim: width of a region feature
        dim: width of an embedding
        precision: of the models' matrix products; each gets a table
        rounds: measurements of every system
        seconds: a measurement goes on for so long, and for five calls if they take no longer than five times that
        device: auto, cpu, cuda or cuda:N
        threads: of the CPU; 0: as torch chooses
    """

    out: str = "benchmarks/retrieval.json"
    work: str = "bench_retrieval_work"
    galleries: list[int] = field(default_factory=lambda: [1000, 5000, 31783, 123287, 1000000])
    backends: list[Literal["exact", "hnsw", "ivfpq"]] = field(default_factory=lambda: ["exact", "hnsw", "ivfpq"])
    target_recall: float = 0.99
    k: int = 10
    rerank_top: list[int] = field(default_factory=lambda: [20, 50, 100])
    encoded: int = 256
    words: int = 12
    regions: int = 36
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    vocab_size: int = 28996
    feature_dim: int = 2048
    dim: int = 768
    precision: list[Precision] = field(default_factory=lambda: ["fp32", "bf16"])
    rounds: int = 5
    seconds: float = 1.0
    device: str = "auto"
    threads: int = 0

    def __post_init__(self):
        if min(self.rounds, self.k, *self.galleries, *self.rerank_top) < 1:
            raise BadInput("rounds, k, galleries and rerank_top must be at least 1")
        if max(self.rerank_top) > min(self.encoded, *self.galleries):
            raise BadInput(
                f"the best {max(self.rerank_top)} cannot be ranked again among {min(self.encoded, *self.galleries)} images: "
                "lower rerank_top, or raise encoded and galleries"
            )
        if Path(self.work).exists():
            raise BadInput(f"work: {self.work} exists; it is deleted at the end: give a folder that does not")


class Synthetic:
    """Vectors and queries like a trained model's.

    The i-th of D eigenvalues of the covariance is i^-0.5 / (1 + (i/16)²), a fit to the image embeddings of 242 photographs by
    the model of configs/finetune/photos_small.yaml (measured 1, 0.76, 0.52, 0.32, 0.14, 0.026, 0.0073, 0.0013 for i = 1, 2,
    4, ... 128; the fit is up to 1.7 times that, which is harder to search), whose mean has 0.3 of their length, and whose captions have cosine 0.46 with their images.
    """

    def __init__(self, dim: int):
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


@dataclass
class Models:
    """What looks at texts and images.

    Attributes:
        folder: checkpoint of the two towers
        fingerprint: of their weights
        rerankers: precision → UNITER, with a region database of ``keys``
        texts: queries
        encoding: precision → images encoded per second
    """

    folder: Path
    fingerprint: str
    rerankers: dict[str, RegionReranker]
    keys: list[str]
    texts: list[str]
    encoding: dict[str, float]


def make_models(options: Options, work: Path, device: torch.device) -> Models:
    """Write checkpoints and a region database, and encode its images."""
    names = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size".split()
    sizes = EncoderConfig(**{name: getattr(options, name) for name in names})
    widths = {"project_dim": options.dim, "feature_dim": options.feature_dim}
    torch.manual_seed(0)
    folder = work / "model"
    LightningDOT(LightningDOTConfig(txt=sizes, img=sizes, **widths)).save_pretrained(folder)
    letters = itertools.product("abcdefghijklmnopqrstuvwxyz", repeat=4)
    words = ["".join(each) for each in itertools.islice(letters, options.vocab_size - 5)]
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))

    rng = np.random.default_rng(0)
    keys = [f"{n:012d}.npz" for n in range(options.encoded)]
    with RegionWriter(work / "regions") as writer:
        for key in keys:
            corners = np.sort(rng.random((options.regions, 2, 2)), axis=1)
            size = corners[:, 1] - corners[:, 0]
            boxes = np.concatenate([corners[:, 0], corners[:, 1], size], axis=1)
            features = np.abs(rng.standard_normal((options.regions, options.feature_dim)))
            writer.add(key, Regions(features, boxes, np.full(options.regions, 0.5), None))
    regions = RegionDB(work / "regions")
    encoding, rerankers = {}, {}
    for precision in options.precision:
        model = LightningDOT.from_pretrained(folder).to(device)
        for_inference(model, device, precision)
        build_index(image_source(model, regions, keys[:16]), work / f"first_{precision}", Encoding(device, precision))
        started = time.perf_counter()
        build_index(image_source(model, regions, keys), work / f"all_{precision}", Encoding(device, precision))
        encoding[precision] = len(keys) / (time.perf_counter() - started)
        reranker = Reranker(UniterConfig(sizes, options.feature_dim))
        for_inference(reranker, device, precision)
        rerankers[precision] = RegionReranker(reranker, regions, device, precision)
    texts = [" ".join(rng.choice(words, options.words)) for _ in range(BATCH)]
    return Models(folder, model.fingerprint, rerankers, keys, texts, encoding)


class Gallery:
    """An index with what searches it, and the calls to be timed.

    Attributes:
        facts: what is known without timing: build times, sizes, recall
        calls: system → (what answers one query, what answers ``BATCH`` at once or None); the argument is a number
    """

    def __init__(self, options: Options, count: int, work: Path, models: Models, device: torch.device):
        self.count = count
        shape, rng = Synthetic(options.dim), np.random.default_rng(count)
        started = time.perf_counter()
        some = None
        with IndexWriter(work / f"index_{count}", "img", options.dim, model=models.fingerprint, data="drawn") as writer:
            for first in range(0, count, 16384):
                part = shape.vectors(rng, min(16384, count - first))
                some = part[:2048] if some is None else some
                writer.add([f"{n:012d}.npz" for n in range(first, first + len(part))], part)
        self.index = EmbeddingIndex(work / f"index_{count}")
        self.facts: dict = {"index_seconds": time.perf_counter() - started, "index_bytes": _size(self.index.folder)}
        tuning, asked = (shape.queries(rng, some[rng.integers(len(some), size=1024)]) for _ in range(2))

        # Opening and touching are measured in a process of their own, where nothing else has been read.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            self.facts["opening"] = pool.apply(opening, (str(self.index.folder), asked[:1], options.k))

        self.searches: dict = {}
        for name in options.backends:
            started = time.perf_counter()
            search = open_backend(self.index, SearchOptions(name, options.target_recall, device=str(device)))
            self.searches[name] = search
            if name == "exact":
                continue
            search.prepare(tuning)
            self.facts[name] = {"build_seconds": time.perf_counter() - started, "file_bytes": search.about["bytes"]}
            self.facts[name]["effort"] = search.about["effort"]
        exact, rows = ExactSearch(self.index).search(asked, options.k)
        for name in set(options.backends) - {"exact"}:
            self.facts[name]["recall"] = float((self.searches[name].search(asked, options.k)[0] >= exact[:, -1:]).mean())
        if "exact" in options.backends and device.type == "cpu":
            self.flat = flat = _flat(self.index)
            found = flat.search(asked, options.k)[1]
            # A library's fp32 sums may swap two that are nearly equal: those are no other ids.
            self.facts["same_ids_as_flat"] = float(np.mean(np.sort(found, 1) == np.sort(rows, 1)))
            self.searches[FLAT] = flat
        self.asked, self.k = asked, options.k

    def calls(self, name: str) -> tuple[Callable, Callable]:
        """One query, and ``BATCH`` of them."""
        search, asked, k = self.searches[name].search, self.asked, self.k
        return lambda n: search(asked[n % len(asked)][None], k), lambda n: search(asked[:BATCH], k)


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
    import faiss

    flat = faiss.IndexFlatIP(index.dim)
    for _, block in index.blocks():
        flat.add(np.ascontiguousarray(block, np.float32))
    return flat


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def durations(call: Callable[[int], object], device: torch.device, seconds: float) -> list[float]:
    """Seconds of each call, for so long and at least five of them, of long ones fewer; the first one is not counted."""
    call(0)
    found: list[float] = []
    while not found or sum(found) < seconds or (len(found) < LEAST and sum(found) < LEAST * seconds):
        synchronize(device)
        started = time.perf_counter()
        call(len(found))
        synchronize(device)
        found.append(time.perf_counter() - started)
    return found


def main(options: Options) -> None:
    device = choose_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    work = Path(options.work)
    work.mkdir(parents=True)
    try:
        results = measure(options, work, device)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    write_json(options.out, results)
    print_table(results)
    plot(results, Path(options.out).with_suffix(".png"))
    print(f"results: {options.out} and {Path(options.out).with_suffix('.png')}")


def measure(options: Options, work: Path, device: torch.device) -> dict:
    models = make_models(options, work, device)
    galleries = [Gallery(options, count, work, models, device) for count in options.galleries]
    texts = models.texts
    systems: dict[tuple, Callable] = {}
    for gallery in galleries:
        for name in gallery.searches:
            one, many = gallery.calls(name)
            systems |= {(gallery.count, name, 1): one, (gallery.count, name, BATCH): many}
    for precision in options.precision:
        options_ = {"device": device, "precision": precision}
        first = Retriever.from_pretrained(models.folder, galleries[0].index, **options_)
        reranker = models.rerankers[precision]

        def encode(retriever: Retriever, number: int, n: int) -> None:
            retriever.encode_texts([texts[(n + i) % len(texts)] for i in range(number)])

        def answer(retriever: Retriever, n: int) -> None:
            retriever.search_images(texts[n % len(texts)], options.k)

        def rerank(retriever: Retriever, reranker: RegionReranker, top: int, n: int) -> None:
            chosen = np.random.default_rng(n).choice(models.keys, top, replace=False).tolist()
            words = retriever.tokenizer
            ids = [words.cls_id, *words.input_ids(texts[n % len(texts)]), words.sep_id]
            reranker.rerank_images(ids, chosen)

        systems |= {(precision, "text", number): functools.partial(encode, first, number) for number in (1, BATCH)}
        for top in options.rerank_top:
            systems[precision, "rerank", top] = functools.partial(rerank, first, reranker, top)
        for gallery in galleries:
            for name in options.backends:
                own = Retriever(first.model, gallery.searches[name], first.tokenizer, **options_)
                systems[gallery.count, name, precision] = functools.partial(answer, own)

    taken: dict[tuple, list[list[float]]] = {name: [] for name in systems}
    reset_peak(device)
    with progress_bar(SINGLE, total=options.rounds * len(systems), unit="system") as bar:
        for _ in range(options.rounds):
            for name, call in systems.items():
                taken[name].append(durations(call, device, options.seconds))
                bar.update()
    times = {name: spread([statistics.median(each) for each in rounds]) for name, rounds in taken.items()}
    return report(options, models, galleries, times, device)


def report(options: Options, models: Models, galleries: list[Gallery], times: dict, device: torch.device) -> dict:
    top = max(options.rerank_top)
    results: dict = {"models": {}, "galleries": []}
    for precision in options.precision:
        results["models"][precision] = {
            "text_encoding": {"one": times[precision, "text", 1], f"batch of {BATCH}": times[precision, "text", BATCH]},
            "reranking": {str(k): times[precision, "rerank", k] for k in options.rerank_top},
            "cross_attention_seconds_per_pair": times[precision, "rerank", top]["median"] / top,
            "image_encoding_per_second": models.encoding[precision],
        }
    for gallery in galleries:
        row: dict = {"images": gallery.count} | gallery.facts
        row["search"] = {
            name: {"one": times[gallery.count, name, 1], f"batch of {BATCH}": times[gallery.count, name, BATCH]}
            for name in gallery.searches
        }
        for precision, each in results["models"].items():
            cross = each["cross_attention_seconds_per_pair"] * gallery.count
            own = row[precision] = {
                "cross_attention_seconds": cross,
                "encoding_seconds": gallery.count / models.encoding[precision],
            }
            for name in options.backends:
                answer = times[gallery.count, name, precision]
                own[name] = {"answer": answer, "times_faster": cross / answer["median"], "with_reranking": {}}
                together = (times[precision, "text", BATCH]["median"] + times[gallery.count, name, BATCH]["median"]) / BATCH
                own[name]["in_batches"] = {"seconds": together, "times_faster": cross / together}
                for k in options.rerank_top:
                    seconds = answer["median"] + times[precision, "rerank", k]["median"]
                    own[name]["with_reranking"][str(k)] = {"seconds": seconds, "times_faster": cross / seconds}
        results["galleries"].append(row)
    return results | {
        "peak_memory_gib": peak_bytes(device) / 2**30,
        "device": device_name(device),
        "options": {name: value for name, value in cli.to_dict(options).items() if name not in ("work", "out")},
        "environment": environment(),
    }


if __name__ == "__main__":
    cli.run(main, Options)
