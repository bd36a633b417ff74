"""Ranking again what the dot product found: candidates, their scores by a re-ranker, and where that puts the right answers.

found = candidates(txt, img, 50)                    # the 50 best of every query, both directions
scores = Scores(reranker, pairs).of(found)          # a re-ranker's scores of them
ranks = reranked(t2i, i2t, found, scores, image_of) # ranks of the right answers after it
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.batches.batch import collate_images, collate_texts
from data.batches.pairs import PairDataset
from data.errors import BadInput
from model.bi_encoder import LightningDOT
from model.distributed import SINGLE, Ranks
from model.evaluation.outcomes import captions_by_language
from model.evaluation.recall import listed_ranks, mean_table, recall_table, retrieval_ranks
from model.precision import autocast
from model.retrieval.encoding import embed_pairs
from model.uniter import Reranker

IMAGES_AT_A_TIME = 2048  # whose features are in memory: 0.5 GB of 60 boxes each


@dataclass
class Candidates:
    """What the bi-encoder found, best first.

    Attributes:
        images: [T,K] rows of images for each caption
        captions: [I,K] rows of captions for each image
        scores: [T,K] and [I,K], their dot products
    """

    images: np.ndarray
    captions: np.ndarray
    scores: tuple[np.ndarray, np.ndarray]

    def top(self, k: int) -> Candidates:
        return Candidates(self.images[:, :k], self.captions[:, :k], tuple(each[:, :k] for each in self.scores))

    def pairs(self) -> np.ndarray:
        """Every caption and image that are candidates of one another, once: [P] caption · I + image, sorted."""
        return np.unique(np.concatenate([each.ravel() for each in self.numbers()]))

    def numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """The pair of each candidate, as caption · I + image: [T,K] and [I,K]."""
        captions, images = np.arange(len(self.images)), np.arange(len(self.captions))
        return captions[:, None] * len(images) + self.images, self.captions * len(images) + images[:, None]


def candidates(txt: Tensor, img: Tensor, k: int, source: object = "the index") -> Candidates:
    """The ``k`` best images of every caption and captions of every image, equal scores by position.

    Args:
        txt: [T,D], img: [I,D] embeddings
        source: of the captions, for the message

    Raises:
        BadInput: there are fewer than ``k``.
    """
    check_count(k, len(img), len(txt), source)
    (images, t2i), (captions, i2t) = best(txt, img, k), best(img, txt, k)
    return Candidates(images, captions, (t2i, i2t))


def check_count(k: int, images: int, captions: int, source: object) -> None:
    """Refuse to rank more candidates again than there are."""
    if k > min(images, captions):
        raise BadInput(
            f"{source}: the {k} best are to be ranked again, there are {images} images and {captions} captions; lower the number"
        )


def best(queries: Tensor, gallery: Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [Q,k] of ``gallery`` [N,D] by dot product with ``queries`` [Q,D], best first, equal ones by position; and the
    products [Q,k]."""
    chunk = max(1, (1 << 24) // max(len(queries), len(gallery)))  # as in `retrieval_ranks`, whose sums are then the same
    parts = [queries[start : start + chunk] @ gallery.T for start in range(0, len(queries), chunk)]
    parts = [part.sort(dim=1, descending=True, stable=True) for part in parts]
    return tuple(torch.cat([part[n][:, :k].cpu() for part in parts]).numpy() for n in (1, 0))


def score_pairs(
    reranker: Reranker,
    pairs: PairDataset,
    captions: np.ndarray,
    images: np.ndarray,
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    progress: bool = True,
    ranks: Ranks = SINGLE,
) -> np.ndarray:
    """A re-ranker's scores of any captions and images of a dataset, in batches of one length, each image read once.

    Args:
        captions: [P] rows of ``pairs.ids``
        images: [P] rows of ``pairs.images``
        batch_size: pairs per batch
        device: where the re-ranker is
        precision: "fp32", or "bf16" or "fp16" for autocast
        ranks: each scores its share

    Returns: [P] float32

    Raises:
        BadInput: a score is NaN or infinite.
    """
    meta = pairs.captions.meta
    scores = np.zeros(len(captions), np.float32)
    ends = {name: np.array([meta[name]], np.int64) for name in ("CLS", "SEP")}
    words = {
        row: np.concatenate([ends["CLS"], pairs.captions.input_ids(pairs.ids[row]), ends["SEP"]])
        for row in np.unique(captions).tolist()
    }
    blocks = list(_blocks(images, ranks))
    modes = [module for module in reranker.modules() if module.training]
    reranker.eval()
    show = progress and ranks.is_first
    with tqdm(total=sum(map(len, blocks)), unit="pair", desc="re-ranking", disable=not show, dynamic_ncols=True) as bar:
        for block in blocks:
            regions = {
                row: pairs.regions.get(pairs.images[row], soft_labels=False) for row in np.unique(images[block]).tolist()
            }
            lengths = [len(words[c]) + len(regions[i].features) for c, i in zip(captions[block].tolist(), images[block].tolist())]
            block = block[np.argsort(lengths, kind="stable")[::-1]]  # longest first: memory runs out early
            for start in range(0, len(block), batch_size):
                rows = block[start : start + batch_size]
                texts, text_of = np.unique(captions[rows], return_inverse=True)
                shown, image_of = np.unique(images[rows], return_inverse=True)
                inputs = *collate_texts([words[c] for c in texts.tolist()], meta.get("PAD", 0)), *collate_images(
                    [regions[i] for i in shown.tolist()]
                )  # fmt: skip
                inputs = (*inputs, torch.from_numpy(text_of), torch.from_numpy(image_of))
                with torch.no_grad(), autocast(device, precision):
                    scores[rows] = reranker(*(tensor.to(device) for tensor in inputs)).float().cpu().numpy()
                bar.update(len(rows))
    for module in modes:
        module.training = True
    scores = ranks.sum_array(scores)
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        caption, image = pairs.ids[captions[bad[0]]], pairs.images[images[bad[0]]]
        raise BadInput(
            f"{pairs.regions.folder}: the score of caption {caption} and image {image} is NaN or infinite: so are its stored "
            "features, or the re-ranker's training diverged"
        )
    return scores


def _blocks(images: np.ndarray, ranks: Ranks) -> Iterator[np.ndarray]:
    """Pairs by image, so many images at a time; each image on one rank."""
    order = np.argsort(images, kind="stable")
    distinct = np.unique(images)[ranks.rank :: ranks.size]
    order = order[np.isin(images[order], distinct)]
    cuts = np.searchsorted(images[order], distinct[IMAGES_AT_A_TIME::IMAGES_AT_A_TIME])
    yield from (block for block in np.split(order, cuts) if len(block))


def score_for_distillation(
    reranker: Reranker, miner: LightningDOT, pairs: PairDataset, k: int, device, precision: str, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """What the bi-encoder learns from: a re-ranker's scores of every caption's own image and of the ``k`` that ``miner`` ranks
    first.

    Returns: images [T,k+1] as rows of ``pairs.images``, -1 for none; scores [T,k+1] float32

    Raises:
        BadInput: there are fewer than ``k`` images, or a score is NaN or infinite.
    """
    check_count(k, len(pairs.images), len(pairs), pairs.captions.folder)
    txt, img, image_of = embed_pairs(miner, pairs, device, precision)
    images, _ = best(txt, img, k)
    own = image_of.numpy()[:, None]
    images = np.concatenate([np.where((images == own).any(axis=1, keepdims=True), -1, own), images], axis=1)
    captions, column = np.nonzero(images >= 0)
    scores = np.zeros(images.shape, np.float32)
    found = images[captions, column]
    scores[captions, column] = score_pairs(reranker, pairs, captions, found, batch_size, device, precision)
    return images, scores


class Scores:
    """A re-ranker's scores of candidates; a pair that is asked for again is not computed again.

    Args:
        options: what ``score_pairs`` takes behind the pairs
    """

    def __init__(self, reranker: Reranker, pairs: PairDataset, captions: np.ndarray | None = None, **options):
        self.reranker, self.pairs, self.options = reranker, pairs, options
        self.rows = np.arange(len(pairs)) if captions is None else captions  # caption n of candidates is row rows[n]
        self.known, self.values = np.zeros(0, np.int64), np.zeros(0, np.float32)

    def of(self, found: Candidates) -> tuple[np.ndarray, np.ndarray]:
        """→ [T,K] and [I,K], the scores of the candidates."""
        images = len(found.captions)
        new = np.setdiff1d(found.pairs(), self.known, assume_unique=True)
        if len(new):
            scores = score_pairs(self.reranker, self.pairs, self.rows[new // images], new % images, **self.options)
            known, values = np.append(self.known, new), np.append(self.values, scores)
            order = np.argsort(known)
            self.known, self.values = known[order], values[order]
        return tuple(self.values[np.searchsorted(self.known, numbers)] for numbers in found.numbers())


def reranked(
    t2i: np.ndarray,
    i2t: np.ndarray,
    found: Candidates,
    scores: tuple[np.ndarray, np.ndarray],
    image_of: Tensor,
    text_of: Tensor | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the right answers when the candidates are in the order of their scores, and behind them all others in the
    bi-encoder's order. Equal scores keep the bi-encoder's order.

    Args:
        t2i: [T], i2t: [I] the bi-encoder's ranks (``retrieval_ranks``)
        found: its candidates, T × K and I × K
        scores: of them, [T,K] and [I,K]
        image_of, text_of: as in ``retrieval_ranks``

    Returns: t2i [T], i2t [I]
    """
    ordered = [
        np.take_along_axis(rows, np.argsort(-each, axis=1, kind="stable"), axis=1)
        for rows, each in zip((found.images, found.captions), scores)
    ]
    k = found.images.shape[1]
    after = listed_ranks(*ordered, image_of, text_of)
    return tuple(np.where(new < k, new, old) for new, old in zip(after, (t2i, i2t)))


@dataclass
class FirstRanking:
    """How the bi-encoder ranks the captions of one language and all images, before the re-ranker does.

    Attributes:
        rows: [T] of the captions in the dataset
        image_of: [T] int64
        t2i, i2t: ranks of the right answers
        found: candidates
    """

    rows: np.ndarray
    image_of: Tensor
    t2i: np.ndarray
    i2t: np.ndarray
    found: Candidates

    @classmethod
    def of(cls, txt: Tensor, img: Tensor, image_of: Tensor, rows: np.ndarray, k: int, source: object) -> FirstRanking:
        """From the embeddings of a whole dataset; arguments as of ``candidates``."""
        found = candidates(txt[rows], img, k, source)
        return cls(rows, image_of[rows], *retrieval_ranks(txt[rows], img, image_of[rows]), found)

    def after(self, scores: Scores, k: int, mix: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """t2i and i2t when the ``k`` best are in the order of ``scores`` + ``mix`` · the bi-encoder's."""
        found = self.found.top(k)
        both = tuple(new + np.float32(mix) * old for new, old in zip(scores.of(found), found.scores))
        return reranked(self.t2i, self.i2t, found, both, self.image_of)


def first_rankings(
    miner: LightningDOT, dataset: PairDataset, k: int, device, precision: str, ranks: Ranks = SINGLE
) -> dict[str, FirstRanking]:
    """Language → how ``miner`` ranks, its ``k`` best candidates with it. Raises BadInput when there are fewer."""
    embedded = embed_pairs(miner, dataset, device, precision, ranks)
    languages = captions_by_language(dataset)
    return {name: FirstRanking.of(*embedded, rows, k, dataset.captions.folder) for name, rows in languages.items()}


def recall_before(first: dict[str, FirstRanking]) -> dict[str, float]:
    """Recall of the bi-encoder, the mean of the languages."""
    return mean_table([recall_table(each.t2i, each.i2t) for each in first.values()])


def evaluate_reranker(
    reranker: Reranker, dataset: PairDataset, first: dict[str, FirstRanking], mix: float = 0.0, **options
) -> dict[str, dict[str, float]]:
    """Recall tables after re-ranking: one per language, and ``all``; ``mix`` as of `FirstRanking.after`, ``options`` as of
    ``score_pairs``."""
    tables = {}
    for name, each in first.items():
        k = each.found.images.shape[1]
        tables[name] = recall_table(*each.after(Scores(reranker, dataset, each.rows, **options), k, mix))
    return tables if len(tables) == 1 else tables | {"all": mean_table(list(tables.values()))}
