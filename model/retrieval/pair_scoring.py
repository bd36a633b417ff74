"""A re-ranker's scores of captions and images, in batches: for evaluation, for distillation and for search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from data.batches.batch import collate_images, collate_texts
from data.batches.pairs import PairDataset
from data.batches.ragged import Joined
from data.errors import BadInput
from data.progress import ProgressBar
from data.regions.db import Regions
from data.storage.memory import keep_freed_memory
from model.distributed import SINGLE, Ranks
from model.precision import Precision, autocast, dropout_off
from model.uniter import Reranker

IMAGES_AT_A_TIME = 2048  # whose features are in memory: 0.5 GB of 60 boxes each


@dataclass
class PairScorer:
    """A re-ranker, and how it is run.

    Args:
        device: where the re-ranker is
        precision: of matrix products: fp32, or bf16 or fp16 for autocast
        batch_size: pairs per batch
        progress: whether a bar shows on the screen
    """

    reranker: Reranker
    device: torch.device | str = "cpu"
    precision: Precision = "fp32"
    batch_size: int = 256
    progress: bool = True

    def score(
        self,
        texts: Mapping[int, np.ndarray] | Sequence[np.ndarray],
        images: Mapping[int, Regions] | Sequence[Regions],
        text_of: np.ndarray,
        image_of: np.ndarray,
        done: Callable[[int], object] = lambda pairs: None,
    ) -> np.ndarray:
        """Scores of P pairs of texts and images that are in memory, without dropout.

        Args:
            texts: [CLS] words [SEP] of each
            images: regions of each
            text_of, image_of: [P] which text and which image a pair is made of
            done: called with the number of pairs after each batch

        Returns: [P] float32, higher is a better match
        """
        scores = np.empty(len(text_of), np.float32)
        lengths = [len(texts[t]) + len(images[i]) for t, i in zip(text_of.tolist(), image_of.tolist(), strict=True)]
        order = np.argsort(np.negative(lengths), kind="stable")  # longest first: memory runs out early
        with torch.no_grad(), dropout_off(self.reranker):
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                some_texts, texts_of_pairs = np.unique(text_of[rows], return_inverse=True)
                some_images, images_of_pairs = np.unique(image_of[rows], return_inverse=True)
                some = (
                    collate_texts([texts[t] for t in some_texts.tolist()]),
                    collate_images([images[i] for i in some_images.tolist()]),
                )
                pairs = Joined.of(*some, texts_of_pairs, images_of_pairs)
                with autocast(self.device, self.precision):
                    found = self.reranker.score(some[0].to(self.device), some[1].to(self.device), pairs.to(self.device))
                scores[rows] = found.float().cpu().numpy()
                done(len(rows))
        return scores


def score_pairs(
    scorer: PairScorer, dataset: PairDataset, captions: np.ndarray, images: np.ndarray, ranks: Ranks = SINGLE
) -> np.ndarray:
    """Scores of any captions and images of a dataset; each image is read once.

    Args:
        captions: [P] rows of ``dataset.ids``
        images: [P] rows of ``dataset.images``
        ranks: each scores its share

    Returns: [P] float32, the same on all ranks

    Raises:
        BadInput: a score is NaN or infinite.
    """
    keep_freed_memory()
    meta, scores = dataset.captions.meta, np.zeros(len(captions), np.float32)
    cls, sep = (np.array([meta[name]], np.int64) for name in ("CLS", "SEP"))
    rows = np.unique(captions)
    words = {row: np.concatenate([cls, own, sep]) for row, own in zip(rows.tolist(), dataset.words(rows), strict=True)}
    blocks = list(_blocks(images, ranks))
    with ProgressBar(what="re-ranking", total=sum(map(len, blocks)), unit="pair", show=scorer.progress) as bar:
        for block in blocks:
            regions = {
                row: dataset.regions.get(dataset.images[row], soft_labels=False) for row in np.unique(images[block]).tolist()
            }
            scores[block] = scorer.score(words, regions, captions[block], images[block], bar.update)
    scores = ranks.sum_array(scores)
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        caption, image = dataset.ids[captions[bad[0]]], dataset.images[images[bad[0]]]
        raise BadInput(
            f"{dataset.regions.folder}: the score of caption {caption} and image {image} is NaN or infinite: so are its stored "
            "features, or the re-ranker's training diverged"
        )
    return scores


def _blocks(images: np.ndarray, ranks: Ranks) -> Iterator[np.ndarray]:
    """Pairs by image, so many images at a time, of each the last pair first; each image on one rank."""
    order = np.argsort(images, kind="stable")
    distinct = np.unique(images)[ranks.rank :: ranks.size]
    order = order[np.isin(images[order], distinct)]
    cuts = np.searchsorted(images[order], distinct[IMAGES_AT_A_TIME::IMAGES_AT_A_TIME])
    yield from (block[::-1] for block in np.split(order, cuts) if len(block))
