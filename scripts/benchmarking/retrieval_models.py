"""Models of real sizes and random weights, which are as fast as trained ones, and what they look at."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from data.errors import BadInput
from data.regions.db import RegionDB, Regions
from data.regions.writer import RegionWriter
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.precision import Precision, for_inference
from model.retrieval.encoding import Encoding
from model.retrieval.indexing import build_index
from model.retrieval.region_reranker import RegionReranker
from model.retrieval.sources import image_source
from model.transformer import EncoderConfig
from model.uniter import Reranker, UniterConfig
from scripts.benchmarking.measuring import refuse_empty_lists
from scripts.benchmarking.retrieval_report import BATCH


@dataclass(kw_only=True)
class RetrievalSettings:
    """What is measured.

    Args:
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
    """

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

    def __post_init__(self):
        refuse_empty_lists(self)
        if min(self.rounds, self.k, *self.galleries, *self.rerank_top) < 1:
            raise BadInput("rounds, k, galleries and rerank_top must be at least 1")
        if max(self.rerank_top) > min(self.encoded, *self.galleries):
            raise BadInput(
                f"the best {max(self.rerank_top)} cannot be ranked again among {min(self.encoded, *self.galleries)} images: "
                "lower rerank_top, or raise encoded and galleries"
            )


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


def make_models(settings: RetrievalSettings, work: Path, device: torch.device) -> Models:
    """Write checkpoints and a region database, and encode its images."""
    names = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size".split()
    sizes = EncoderConfig(**{name: getattr(settings, name) for name in names})
    widths = {"project_dim": settings.dim, "feature_dim": settings.feature_dim}
    torch.manual_seed(0)
    folder = work / "model"
    LightningDOT(LightningDOTConfig(txt=sizes, img=sizes, **widths)).save_pretrained(folder)
    letters = itertools.product("abcdefghijklmnopqrstuvwxyz", repeat=4)
    words = ["".join(each) for each in itertools.islice(letters, settings.vocab_size - 5)]
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))

    rng = np.random.default_rng(0)
    keys = [f"{n:012d}.npz" for n in range(settings.encoded)]
    with RegionWriter(work / "regions") as writer:
        for key in keys:
            corners = np.sort(rng.random((settings.regions, 2, 2)), axis=1)
            size = corners[:, 1] - corners[:, 0]
            boxes = np.concatenate([corners[:, 0], corners[:, 1], size], axis=1)
            features = np.abs(rng.standard_normal((settings.regions, settings.feature_dim)))
            writer.add(key, Regions(features, boxes, np.full(settings.regions, 0.5), None))
    regions = RegionDB(work / "regions")
    encoding, rerankers = {}, {}
    for precision in settings.precision:
        model = LightningDOT.from_pretrained(folder).to(device)
        for_inference(model, device, precision)
        build_index(image_source(model, regions, keys[:16]), work / f"first_{precision}", Encoding(device, precision))
        started = time.perf_counter()
        build_index(image_source(model, regions, keys), work / f"all_{precision}", Encoding(device, precision))
        encoding[precision] = len(keys) / (time.perf_counter() - started)
        reranker = Reranker(UniterConfig(sizes, settings.feature_dim))
        for_inference(reranker, device, precision)
        rerankers[precision] = RegionReranker(reranker, regions, device, precision)
    texts = [" ".join(rng.choice(words, settings.words)) for _ in range(BATCH)]
    return Models(folder, model.fingerprint, rerankers, keys, texts, encoding)
