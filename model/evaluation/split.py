"""The split of a dataset that is evaluated: its pairs, their embeddings from stored indexes, and how queries rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.batches.pairs import PairDataset
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.search.faiss import HnswOptions
from model.bi_encoder import LightningDOT
from model.evaluation.outcomes import QueryRanks
from model.evaluation.recall import folds, num_repeated
from model.evaluation.settings import EvalConfig
from model.evaluation.tasks import captions_by_language, ranker, wordings
from model.initial import check_caption_lengths, check_model_fits, check_same_tokenizer, settle_long_captions
from model.made_from import check_regions
from model.precision import for_inference
from model.retrieval.encoding import Encoding
from model.retrieval.indexing import build_index
from model.retrieval.reranking import check_count
from model.retrieval.sources import caption_source, image_source
from model.uniter import Reranker, check_reranker

FOLD = 1000  # images of a fold, COCO's 1K protocol


def open_models(
    config: EvalConfig, pairs: PairDataset, device: torch.device
) -> tuple[LightningDOT, Reranker | None]:
    """The towers, and the re-ranker where one is asked for, ready for inference on ``device``.

    Raises:
        BadInput: a checkpoint that is missing or does not fit the data; a dataset too small for what is asked.
    """
    model = LightningDOT.from_pretrained(config.checkpoint).to(device)
    for_inference(model, device, config.precision)
    check_model_fits(model.config, pairs.captions.meta, pairs.regions.feature_dim, config.checkpoint, config.regions)
    for part, _ in pairs.parts:
        check_regions(config.checkpoint, part.regions)
    check_same_tokenizer(config.checkpoint, pairs.captions)
    settle_long_captions(pairs, model.config.txt.max_tokens, config.long_captions)
    check_caption_lengths(model.config, pairs)
    if config.coco_1k and len(pairs.images) < FOLD:
        raise BadInput(f"{config.captions}: --coco-1k needs at least 1,000 images, found {len(pairs.images)}")
    if config.coco_1k and len(captions_by_language(pairs)) > 1:
        raise BadInput(f"{config.captions}: --coco-1k needs one language; choose it with --languages")
    if not config.reranker:
        return model, None
    reranker = Reranker.from_pretrained(config.reranker).to(device)
    for_inference(reranker, device, config.precision)
    check_reranker(reranker.config, config.reranker, pairs)
    settle_long_captions(pairs, reranker.config.encoder.max_tokens, config.long_captions)
    check_count(max(config.rerank_top), len(pairs.images), len(pairs), config.captions)  # before hours of encoding
    return model, reranker


@dataclass
class Split:
    """Pairs with their embeddings.

    Attributes:
        txt: [T,D] float32, of ``pairs.ids``
        img: [I,D] float32, of ``pairs.images``
    """

    pairs: PairDataset
    txt: Tensor
    img: Tensor

    @cached_property
    def image_of(self) -> Tensor:
        """[T] int64, row of the image that a caption belongs to."""
        return torch.from_numpy(self.pairs.image_of.astype(np.int64))

    @cached_property
    def languages(self) -> dict[str, np.ndarray]:
        """Language → rows of its captions; ``all`` when there is one."""
        return captions_by_language(self.pairs)


def encode_split(
    model: LightningDOT, pairs: PairDataset, out: Path, encoding: Encoding, checkpoint: str
) -> Split:
    """Embeddings of all pairs, through the feature indexes ``out/img`` and ``out/txt``, which are built or used again."""
    images = image_source(model, pairs.regions, pairs.images, pairs.image_captions)
    img = _in_order(build_index(images, out / "img", encoding, checkpoint=checkpoint), pairs.images)
    captions = caption_source(model, pairs.captions, pairs.ids)
    txt = _in_order(build_index(captions, out / "txt", encoding, checkpoint=checkpoint), pairs.ids)
    return Split(pairs, txt, img)


def _in_order(index: EmbeddingIndex, names: list[str]) -> Tensor:
    """The index's vectors in the order of ``names``: [N,D] float32."""
    row = {name: n for n, name in enumerate(index.ids())}
    return torch.from_numpy(index.vectors(np.array([row[name] for name in names])))


@dataclass
class SplitRanks:
    """How the queries of a split rank their answers.

    Attributes:
        by_language: task → ranks
        duplicate_aware: the same where captions of one wording are one answer; empty when no wording is of two images
        repeated: captions whose wording is also that of another image's caption, within their language
        found: task → share of the exact top 10 that HNSW found, ``t2i`` and ``i2t``; empty values for the exact search
    """

    by_language: dict[str, QueryRanks]
    duplicate_aware: dict[str, QueryRanks]
    repeated: int
    found: dict[str, dict[str, float]]


def rank_split(split: Split, hnsw: HnswOptions | None = None) -> SplitRanks:
    """Rank every query exactly, or through HNSW indexes of both sides."""
    pairs, text_of = split.pairs, torch.from_numpy(wordings(split.pairs))
    repeated = sum(num_repeated(pairs.image_of[rows], text_of[rows].numpy()) for rows in split.languages.values())
    ranks = SplitRanks({}, {}, repeated, {})
    for language, rows in split.languages.items():
        rank, ranks.found[language] = ranker(split.txt[rows], split.img, hnsw)
        image_of = split.image_of[rows]
        ranks.by_language[language] = QueryRanks(*rank(image_of), pairs.image_of[rows])
        if repeated:
            ranks.duplicate_aware[language] = QueryRanks(*rank(image_of, text_of[rows]), pairs.image_of[rows])
    return ranks


def rank_folds(split: Split, hnsw: HnswOptions | None = None, size: int = FOLD) -> list[QueryRanks]:
    """Ranks within consecutive folds of ``size`` images, COCO's 1K protocol."""
    ranks = []
    for images, rows in folds(split.image_of, len(split.img), size):
        image_of = split.image_of[rows] - images.start
        rank, _ = ranker(split.txt[rows], split.img[images], hnsw)
        ranks.append(QueryRanks(*rank(image_of), image_of.numpy()))
    return ranks
