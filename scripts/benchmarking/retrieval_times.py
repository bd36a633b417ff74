"""Retrieval measured in turns: every system round after round, and what the times of a round are together."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from data.progress import ProgressBar
from model.retrieval.region_reranker import RegionReranker
from model.retrieval.retriever import Retriever
from optim.run import environment
from scripts.benchmarking.galleries import Gallery
from scripts.benchmarking.measuring import device_name, peak_bytes, reset_peak, spread, synchronize
from scripts.benchmarking.retrieval_models import Models, RetrievalSettings, make_models
from scripts.benchmarking.retrieval_report import BATCH

LEAST = 5  # calls of a measurement


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


def measured_results(settings: RetrievalSettings, work: Path, device: torch.device) -> dict:
    """Make everything in the folder ``work``, measure it, and say what came out, as ``print_table`` shows it."""
    models = make_models(settings, work, device)
    galleries = [Gallery(settings, count, work, models.fingerprint, device) for count in settings.galleries]
    systems = systems_of(settings, models, galleries, device)
    taken: dict[tuple, list[list[float]]] = {name: [] for name in systems}
    reset_peak(device)
    with ProgressBar(what="measuring", total=settings.rounds * len(systems), unit="system") as bar:
        for _ in range(settings.rounds):
            for name, call in systems.items():
                taken[name].append(durations(call, device, settings.seconds))
                bar.update()
    times = {name: spread([statistics.median(each) for each in rounds]) for name, rounds in taken.items()}
    return {
        "models": {precision: _model_results(settings, models, times, precision) for precision in settings.precision},
        "galleries": [_gallery_results(settings, models, gallery, times) for gallery in galleries],
        "peak_memory_gib": peak_bytes(device) / 2**30,
        "device": device_name(device),
        "environment": environment(),
    }


def systems_of(
    settings: RetrievalSettings, models: Models, galleries: list[Gallery], device: torch.device
) -> dict[tuple, Callable[[int], object]]:
    """What is timed, each called with a number. By name:

    (images, backend, 1 or ``BATCH``): a search of so many queries
    (precision, "text", 1 or ``BATCH``): the encoding of so many texts
    (precision, "rerank", k): a re-ranking of k images
    (images, backend, precision): an answer, from a text to ids
    """
    texts, systems = models.texts, {}
    for gallery in galleries:
        for name in gallery.searches:
            one, many = gallery.calls(name)
            systems |= {(gallery.count, name, 1): one, (gallery.count, name, BATCH): many}

    def encode(retriever: Retriever, number: int, n: int) -> None:
        retriever.encode_texts([texts[(n + i) % len(texts)] for i in range(number)])

    def answer(retriever: Retriever, n: int) -> None:
        retriever.search_images(texts[n % len(texts)], settings.k)

    def rerank(retriever: Retriever, reranker: RegionReranker, top: int, n: int) -> None:
        chosen = np.random.default_rng(n).choice(models.keys, top, replace=False).tolist()
        words = retriever.tokenizer
        ids = [words.cls_id, *words.input_ids(texts[n % len(texts)]), words.sep_id]
        reranker.rerank_images(ids, chosen)

    for precision in settings.precision:
        computing = {"device": device, "precision": precision}
        first = Retriever.from_pretrained(models.folder, galleries[0].index, **computing)
        systems |= {(precision, "text", number): partial(encode, first, number) for number in (1, BATCH)}
        for top in settings.rerank_top:
            systems[precision, "rerank", top] = partial(rerank, first, models.rerankers[precision], top)
        for gallery in galleries:
            for name in settings.backends:
                own = Retriever(first.model, gallery.searches[name], first.tokenizer, **computing)
                systems[gallery.count, name, precision] = partial(answer, own)
    return systems


def _model_results(settings: RetrievalSettings, models: Models, times: dict, precision: str) -> dict:
    top = max(settings.rerank_top)
    return {
        "text_encoding": {"one": times[precision, "text", 1], f"batch of {BATCH}": times[precision, "text", BATCH]},
        "reranking": {str(k): times[precision, "rerank", k] for k in settings.rerank_top},
        "cross_attention_seconds_per_pair": times[precision, "rerank", top]["median"] / top,
        "image_encoding_per_second": models.encoding[precision],
    }


def _gallery_results(settings: RetrievalSettings, models: Models, gallery: Gallery, times: dict) -> dict:
    count = gallery.count
    row: dict = {"images": count} | gallery.facts
    row["search"] = {
        name: {"one": times[count, name, 1], f"batch of {BATCH}": times[count, name, BATCH]} for name in gallery.searches
    }
    for precision in settings.precision:
        cross = _model_results(settings, models, times, precision)["cross_attention_seconds_per_pair"] * count
        row[precision] = {"cross_attention_seconds": cross, "encoding_seconds": count / models.encoding[precision]}
        for name in settings.backends:
            answer = times[count, name, precision]
            own = row[precision][name] = {"answer": answer, "times_faster": cross / answer["median"], "with_reranking": {}}
            together = (times[precision, "text", BATCH]["median"] + times[count, name, BATCH]["median"]) / BATCH
            own["in_batches"] = {"seconds": together, "times_faster": cross / together}
            for k in settings.rerank_top:
                seconds = answer["median"] + times[precision, "rerank", k]["median"]
                own["with_reranking"][str(k)] = {"seconds": seconds, "times_faster": cross / seconds}
    return row
