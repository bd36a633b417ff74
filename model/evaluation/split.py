"""The split of a dataset that is evaluated: its pairs, their embeddings from stored indexes, and how queries rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.batches.gallery import GalleryPairs, index_parts, open_gallery
from data.batches.pairs import PairDataset, check_databases_exist, check_languages, open_pairs
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.notices import say_once
from data.search.faiss import HnswOptions
from model.bi_encoder import LightningDOT
from model.evaluation.outcomes import QueryRanks, write_ranks
from model.evaluation.recall import folds, mean_table, num_repeated
from model.evaluation.settings import EvalConfig
from model.evaluation.tables import Table
from model.evaluation.tasks import (
    RetrievalTask,
    captions_by_language,
    chance_of_tasks,
    ranker,
    retrieval_tasks,
    total_counts,
    wordings,
)
from model.initial import check_caption_lengths, check_model_fits, check_same_tokenizer, settle_long_captions
from model.made_from import boxes_for, check_regions
from model.precision import for_inference
from model.retrieval.encoding import Encoding
from model.retrieval.indexing import build_index
from model.retrieval.sources import caption_source, image_source

FOLD = 1000  # images of a fold, COCO's 1K protocol


def open_split(config: EvalConfig) -> PairDataset:
    """The pairs of the split, with its galleries where there are any. Raises BadInput as the databases do."""
    named = config.captions, config.regions, config.gallery, config.gallery_regions, config.image_captions
    check_databases_exist(named, config.data_root)
    boxes, languages, root = boxes_for(config.checkpoint, config.boxes), config.languages, config.data_root
    view = {"image_captions": config.image_captions, "caption_weight": config.caption_score_weight}
    pairs = open_pairs(config.captions, config.regions, boxes, languages=languages, root=root, **view)
    check_languages(pairs, languages)
    if not config.gallery:
        return pairs
    return open_gallery(pairs, config.gallery, config.gallery_regions or [config.regions], boxes, languages, root)


def open_model(config: EvalConfig, pairs: PairDataset, device: torch.device) -> LightningDOT:
    """The towers, ready for inference on ``device``.

    Raises:
        BadInput: a checkpoint that is missing or does not fit the data; a dataset too small for folds.
    """
    model = LightningDOT.from_pretrained(config.checkpoint).to(device)
    for_inference(model, device, config.precision)
    check_model_fits(model.config, pairs.captions.meta, pairs.regions.feature_dim, config.checkpoint, config.regions)
    for regions in pairs.region_databases:
        check_regions(config.checkpoint, regions)
    for part, _ in pairs.parts:
        check_same_tokenizer(config.checkpoint, part.captions)
    settle_long_captions(pairs, model.config.txt.max_tokens, config.long_captions)
    check_caption_lengths(model.config, pairs)
    if config.coco_1k and len(pairs.images) < FOLD:
        raise BadInput(f"{config.captions}: --coco-1k needs at least 1,000 images, found {len(pairs.images)}")
    if config.coco_1k and (left := len(pairs.images) % FOLD):
        say_once(f"{config.captions}: folds have 1,000 images, so the last {left:,} of {len(pairs.images):,} are in none")
    if config.coco_1k and len(captions_by_language(pairs)) > 1:
        raise BadInput(f"{config.captions}: --coco-1k needs one language; choose it with --languages")
    return model


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

    @property
    def num_images(self) -> int:
        """Images of the split itself, the first of ``pairs.images``."""
        return len(self.pairs.split.images if isinstance(self.pairs, GalleryPairs) else self.pairs.images)

    @cached_property
    def tasks(self) -> dict[str, RetrievalTask]:
        """Language → its queries and candidates; ``all`` when there is one."""
        return retrieval_tasks(self.pairs)

    @cached_property
    def text_of(self) -> np.ndarray:
        """[T] a number for each caption that is the same where the wording is."""
        return wordings(self.pairs)

    @property
    def candidates(self) -> dict[str, dict[str, int]]:
        """Row → numbers of candidates, ``images`` and ``texts``, of the rows that are of one task."""
        counts = {name: task.sizes for name, task in self.tasks.items()}
        return counts | ({"chance": counts["all"]} if len(counts) == 1 else {})

    def describe(self, config: EvalConfig) -> str:
        """One line: what was evaluated on what, and what its queries were searched for in."""
        pairs = self.pairs
        line = f"{config.checkpoint} on {config.captions}: {self.num_images} images, {pairs.num_queries} captions"
        if config.gallery:
            texts = sum(len(task.rows) for task in self.tasks.values())
            line += f", among {len(pairs.images)} images and {texts} captions with those of {', '.join(config.gallery)}"
        return line + f", {pairs.cut:,} of them cut to the model's length" * bool(pairs.cut)


def encode_split(
    model: LightningDOT, pairs: PairDataset, out: Path, encoding: Encoding, checkpoint: str
) -> Split:
    """Embeddings of all pairs, through the feature indexes ``out/img`` and ``out/txt``, which are built or used again; those of
    galleries are below ``out/gallery``, so that the split's serve with any gallery and without."""
    txt, img = [], []
    for part in index_parts(pairs):
        if len(part.images):
            images = image_source(model, part.regions, part.images, pairs.image_captions)
            img.append(_in_order(build_index(images, out / part.name / "img", encoding, checkpoint=checkpoint), part.images))
        if part.pairs is not None:
            captions = caption_source(model, part.pairs.captions, part.pairs.ids)
            txt.append(_in_order(build_index(captions, out / part.name / "txt", encoding, checkpoint=checkpoint), part.pairs.ids))
    return Split(pairs, *(each[0] if len(each) == 1 else torch.cat(each) for each in (txt, img)))


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
    text_of = torch.from_numpy(split.text_of)
    repeated = sum(
        num_repeated(task.image_of.numpy(), text_of[task.rows].numpy(), task.num_queries) for task in split.tasks.values()
    )
    ranks = SplitRanks({}, {}, repeated, {})
    for language, task in split.tasks.items():
        rank, ranks.found[language] = ranker(split.txt[task.rows], split.img, task.image_of, task.num_queries, hnsw)
        ranks.by_language[language] = task.query_ranks(*rank())
        if repeated:
            ranks.duplicate_aware[language] = task.query_ranks(*rank(text_of[task.rows]))
    return ranks


def write_split_ranks(split: Split, ranks: SplitRanks, path: Path) -> None:
    """Write the outcome of every query (`write_ranks`), with the ids of the split's own images and captions."""
    txt_ids = {name: [split.pairs.ids[row] for row in task.rows[: task.num_queries]] for name, task in split.tasks.items()}
    write_ranks(path, split.pairs.images.take(np.arange(split.num_images)), txt_ids, ranks.by_language)


def rank_folds(split: Split, hnsw: HnswOptions | None = None, size: int = FOLD) -> list[QueryRanks]:
    """Ranks within consecutive folds of ``size`` images, COCO's 1K protocol."""
    ranks = []
    for images, task in fold_tasks(split, size):
        rank, _ = ranker(split.txt[task.rows], split.img[images], task.image_of, hnsw=hnsw)
        ranks.append(task.query_ranks(*rank()))
    return ranks


def fold_tasks(split: Split, size: int = FOLD) -> list[tuple[slice, RetrievalTask]]:
    """Rows of the images of each fold, and what is ranked in it."""
    parts = folds(split.image_of, len(split.img), size)
    return [
        (images, RetrievalTask(rows.numpy(), split.image_of[rows] - images.start, size, len(rows))) for images, rows in parts
    ]


def chance_tables(split: Split, in_folds: bool = False) -> list[Table]:
    """Recall of random scores: of each task where there are several, of the folds if asked, and last ``chance``, the tasks' mean."""
    tables = [Table(name.removeprefix("chance "), table, note="chance") for name, table in chance_of_tasks(split.tasks).items()]
    for table in tables[:-1]:
        table.queries = split.tasks[table.name].counts
    mean = Table("chance", tables[-1].recall, queries=total_counts(split.tasks)["all"])
    tasks = {str(n): task for n, (_, task) in enumerate(fold_tasks(split))} if in_folds else {}
    if tasks:
        recall = mean_table([task.chance() for task in tasks.values()])
        folded = Table(f"mean of {len(tasks)} x 1K", recall, note="chance", queries=total_counts(tasks)["all"])
    return [*tables[:-1], *([folded] if tasks else []), mean]


def duplicate_aware_chance(split: Split) -> Table:
    """Recall of random scores where captions of one wording are one answer, the mean of the tasks."""
    recall = mean_table([task.chance(split.text_of) for task in split.tasks.values()])
    return Table("chance", recall, note="duplicate-aware", queries=total_counts(split.tasks)["all"])
