"""Ranking again what the dot product found: the shortlist of every query, in the order of a re-ranker's scores.

    images, captions = shortlists(txt, img, 50)     # the 50 best of every query, both directions
    scores = PairScores(PairScorer(reranker), dataset)
    scores.compute(images, captions)                # a pair that is in both is scored once
    images = images.reorder(scores[images.pairs])

Where that puts the right answers: ``model/evaluation/reranked.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from data.batches.pairs import PairDataset
from data.downloads.hub import local_folder
from data.errors import BadInput
from data.notices import lowered, say_once
from data.search.topk import best_rows
from data.storage.regular_files import is_there
from data.storage.text_files import read_json
from model.bi_encoder import LightningDOT
from model.checkpoints import check_about
from model.distributed import SINGLE, Ranks
from model.retrieval.encoding import embed_pairs
from model.retrieval.pair_scoring import PairScorer, score_pairs


@dataclass
class Shortlist:
    """The best candidates of Q queries, best first.

    Attributes:
        rows: [Q,K] of the candidates in their gallery
        scores: [Q,K] float32, that they stand in the order of
        pairs: [Q,K] int64, caption · I + image of query and candidate: rows in the dataset, which has I images
    """

    rows: np.ndarray
    scores: np.ndarray
    pairs: np.ndarray

    def top(self, k: int) -> Shortlist:
        """The ``k`` best of each query."""
        return Shortlist(self.rows[:, :k], self.scores[:, :k], self.pairs[:, :k])

    def reorder(self, scores: np.ndarray) -> Shortlist:
        """The same candidates in the order of other ``scores`` [Q,K]; equal ones stay in the order that they are in."""
        order = np.argsort(-scores, axis=1, kind="stable")
        return Shortlist(*(np.take_along_axis(each, order, axis=1) for each in (self.rows, scores, self.pairs)))


def shortlists(
    txt: Tensor, img: Tensor, k: int, rows: np.ndarray | None = None, num_queries: int | None = None,
    images: np.ndarray | None = None,
) -> tuple[Shortlist, Shortlist]:  # fmt: skip
    """The ``k`` best images of captions, and captions of images, or all where there are fewer; equal scores by position.

    Args:
        txt: [T,D], img: [I,D] embeddings of the candidates
        rows: [T] of the captions in the dataset; None: 0 to T-1
        num_queries: so many captions, the first, are queries; None: all
        images: [Q'] rows of the images that are queries; None: all
    """
    rows = np.arange(len(txt)) if rows is None else rows
    asked = np.arange(len(img)) if images is None else images
    longest = max(len(txt), len(img))  # parts as in `retrieval_ranks`, whose sums are then the same
    t2i, found = (each.numpy() for each in best_rows(txt[:num_queries], img, min(k, len(img)), longest, "finding images"))
    i2t, captions = (each.numpy() for each in best_rows(img[asked], txt, min(k, len(txt)), longest, "finding captions"))
    return (
        Shortlist(found, t2i, rows[: len(found), None] * len(img) + found),
        Shortlist(captions, i2t, rows[captions] * len(img) + asked[:, None]),
    )


def say_where_fewer(k: int, galleries: dict[str, int], source: object) -> None:
    """Say, in one line, which galleries hold fewer than the ``k`` candidates that are to be ranked again.

    Args:
        galleries: what is in each, as ``images`` or ``captions in de``, and how many
        source: of the captions
    """
    few = [f"{number:,} {things}" for things, number in galleries.items() if number < k]
    if few:
        say_once(f"{source}: the {k:,} best are to be ranked again, there are only {' and '.join(few)}: all of them are")


def mixed_scores(scores: np.ndarray, first: np.ndarray, mix: float) -> np.ndarray:
    """A re-ranker's scores with the bi-encoder's, float32, of the same candidates: scores + mix · first."""
    return scores + np.float32(mix) * first


def mix_for(reranker: str | Path, given: float | None = None) -> float:
    """The mix to rank again with: the one that is given, else what the validation of the re-ranker's training chose.

    Args:
        reranker: folder; where it does not say the mix it is 0, and the user is told
    """
    if given is not None:
        return given
    path = local_folder(reranker) / "val.json"
    said = read_json(path, "copy the file again, or give the mix", {"mix?": (float, None)}) if is_there(path) else {}
    check_about(path, said)
    chosen = said.get("mix")
    if chosen is None:
        say_once(f"{reranker}: does not say which mix with the bi-encoder's score its validation chose; its score alone counts (mix 0)")
        return 0.0
    if not 0 <= chosen < float("inf"):
        raise BadInput(f"{path}: mix is {chosen!r}, expected a number of at least 0; copy the file again, or give the mix")
    return float(chosen)


class PairScores:
    """A re-ranker's scores of pairs of a dataset; a pair that is asked for again is not computed again."""

    def __init__(self, scorer: PairScorer, dataset: PairDataset, ranks: Ranks = SINGLE):
        self._scorer, self._dataset, self._ranks = scorer, dataset, ranks
        self._pairs, self._scores = np.zeros(0, np.int64), np.zeros(0, np.float32)  # by pair

    def __len__(self) -> int:
        """Number of pairs scored."""
        return len(self._pairs)

    def compute(self, *lists: Shortlist) -> None:
        """Score what the shortlists hold and is not scored yet."""
        new = np.setdiff1d(np.concatenate([each.pairs.ravel() for each in lists]), self._pairs)
        if len(new):
            captions, images = np.divmod(new, len(self._dataset.images))
            scores = score_pairs(self._scorer, self._dataset, captions, images, self._ranks)
            pairs, scores = np.append(self._pairs, new), np.append(self._scores, scores)
            order = np.argsort(pairs)
            self._pairs, self._scores = pairs[order], scores[order]

    def __getitem__(self, pairs: np.ndarray) -> np.ndarray:
        """Scores of pairs that were computed, in the shape of ``pairs``."""
        return self._scores[np.searchsorted(self._pairs, pairs)]


def score_for_distillation(
    scorer: PairScorer, miner: LightningDOT, dataset: PairDataset, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """What the bi-encoder learns from: a re-ranker's scores of every caption's own image and of the ``k`` that ``miner`` ranks
    first, or of all where there are fewer.

    Returns: images [T,k+1] as rows of ``dataset.images``, -1 for none; scores [T,k+1] float32

    Raises:
        BadInput: a score is NaN or infinite.
    """
    k = lowered(k, len(dataset.images), f"{dataset.captions.folder}: top", "images")
    txt, img, image_of = embed_pairs(miner, dataset, scorer.device, scorer.precision)
    images = best_rows(txt, img, k, max(len(txt), len(img)))[1].numpy()
    own = image_of.numpy()[:, None]
    images = np.concatenate([np.where((images == own).any(axis=1, keepdims=True), -1, own), images], axis=1)
    captions, column = np.nonzero(images >= 0)
    scores = np.zeros(images.shape, np.float32)
    scores[captions, column] = score_pairs(scorer, dataset, captions, images[captions, column])
    return images, scores
