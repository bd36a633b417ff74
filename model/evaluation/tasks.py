"""A dataset's retrieval tasks, one for each language, and what a model makes of them.

    tables = evaluate(model, dataset, "cuda", "bf16")       # from memory, as after an epoch of training

``eval_itm.py`` goes through stored indexes instead: ``model/evaluation/split.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from data.batches.pairs import PairDataset
from data.search.faiss import HnswIndex, HnswOptions
from data.search.topk import share_found
from model.bi_encoder import LightningDOT
from model.distributed import SINGLE, Ranks
from model.evaluation.outcomes import QueryRanks
from model.evaluation.recall import (
    KS,
    chance_table,
    image_queries,
    listed_ranks,
    mean_table,
    recall_table,
    retrieval_ranks,
    with_mean,
)
from model.precision import Precision
from model.retrieval.encoding import embed_pairs, embed_rows

CAPTIONS_AT_A_TIME = 1 << 16  # whose words are in memory


@dataclass
class RetrievalTask:
    """The captions of one language, and all images.

    Attributes:
        rows: [C] of the captions in the dataset, those that are queries first
        image_of: [C] int64, row of a caption's image
        num_images: I, the images that are candidates
        num_queries: captions that are queries; the images that they are of are, too, and all others are candidates only
    """

    rows: np.ndarray
    image_of: Tensor
    num_images: int
    num_queries: int

    @property
    def queries(self) -> np.ndarray:
        """Rows of the images that are queries."""
        return image_queries(self.image_of, self.num_queries)

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of queries."""
        return {"images": len(self.queries), "texts": self.num_queries}

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers of candidates."""
        return {"images": self.num_images, "texts": len(self.rows)}

    def chance(self, text_of: np.ndarray | None = None) -> dict[str, float]:
        """The recall of random scores; ``text_of``, a number for each wording of the dataset, makes it duplicate-aware."""
        own = None if text_of is None else text_of[self.rows]
        return chance_table(self.image_of.numpy(), self.num_images, self.num_queries, own)

    def query_ranks(self, t2i: np.ndarray, i2t: np.ndarray) -> QueryRanks:
        """Ranks of the queries, with what they are of."""
        return QueryRanks(t2i, i2t, self.image_of[: self.num_queries].numpy(), self.queries)


def retrieval_tasks(dataset: PairDataset, num_queries: int | None = None) -> dict[str, RetrievalTask]:
    """Language → its task; ``all`` where there is one language.

    Args:
        num_queries: so many captions of the dataset, the first, are queries; None: those that the dataset says
    """
    image_of = torch.from_numpy(dataset.image_of.astype(np.int64))
    last = dataset.num_queries if num_queries is None else num_queries
    return {
        name: RetrievalTask(rows, image_of[rows], len(dataset.images), int((rows < last).sum()))
        for name, rows in captions_by_language(dataset).items()
    }


def gallery_sizes(tasks: dict[str, RetrievalTask]) -> dict[str, int]:
    """What the candidates of some tasks are, as ``images`` or ``captions in de``, and how many there are of each."""
    sizes = {"images": next(iter(tasks.values())).num_images}
    return sizes | {f"captions in {name}" if len(tasks) > 1 else "captions": len(task.rows) for name, task in tasks.items()}


def total_counts(tasks: dict[str, RetrievalTask]) -> dict[str, dict[str, int]]:
    """Task → numbers of its queries; ``all``: of the queries of all tasks."""
    counts = {name: task.counts for name, task in tasks.items()}
    return counts | {"all": {kind: sum(each[kind] for each in counts.values()) for kind in ("images", "texts")}}


def chance_of_tasks(tasks: dict[str, RetrievalTask]) -> dict[str, dict[str, float]]:
    """``chance``: the recall of random scores, the mean of the tasks; and before it, where there are several, each task's."""
    tables = {f"chance {name}": task.chance() for name, task in tasks.items()}
    return (tables if len(tables) > 1 else {}) | {"chance": mean_table(list(tables.values()))}


def evaluate(
    model: LightningDOT, dataset: PairDataset, device, precision: Precision = "fp32", ranks: Ranks = SINGLE
) -> dict[str, dict[str, float]]:
    """Recall tables of a dataset: one per language, and ``all``.

    With several languages each is a retrieval task of its own (its captions, all images; an image that has no caption in it
    is a candidate and no query), and ``all`` is their mean.
    """
    txt, img, _ = embed_pairs(model, dataset, device, precision, ranks)
    return tables_of(txt, img, dataset)


def tables_of(txt: Tensor, img: Tensor, dataset: PairDataset) -> dict[str, dict[str, float]]:
    """As ``evaluate``, from the embeddings of all captions [T,D] and images [I,D] of a dataset."""
    tasks = retrieval_tasks(dataset)
    found = {name: retrieval_ranks(txt[task.rows], img, task.image_of) for name, task in tasks.items()}
    return with_mean({name: recall_table(*each) for name, each in found.items()})


def recall_of_first_images(
    model: LightningDOT, dataset: PairDataset, most: int, device, precision: Precision = "fp32", ranks: Ranks = SINGLE
) -> dict[str, float]:
    """Recall of the first ``most`` images of a dataset, or of all where there are fewer, and their captions: of each language by
    itself, and their mean. Ranks share the encoding."""
    rows = np.flatnonzero(np.asarray(dataset.image_of) < most)
    txt, img = embed_rows(model, dataset, rows, np.arange(min(most, len(dataset.images))), device, precision, ranks)
    image_of, languages = torch.from_numpy(dataset.image_of[rows].astype(np.int64)), dataset.caption_languages()[rows]
    own = [np.flatnonzero(languages == name) for name in dict.fromkeys(languages.tolist())]
    return mean_table([recall_table(*retrieval_ranks(txt[each], img, image_of[each])) for each in own])


def captions_by_language(dataset: PairDataset) -> dict[str, np.ndarray]:
    """Language → rows of its captions that are candidates, in the order of their first; ``all`` → those rows when there is one
    language. Languages that no query has are left out."""
    rows, languages = dataset.candidate_rows, dataset.caption_languages()
    names = list(dict.fromkeys(languages[: dataset.num_queries].tolist()))
    by_language = {name: rows[languages[rows] == name] for name in names}
    return by_language if len(names) > 1 else {"all": by_language[names[0]]}


def wordings(dataset: PairDataset) -> np.ndarray:
    """[T] a number for each caption that is the same where the tokens are: where the model cannot tell captions apart."""
    numbers: dict[bytes, int] = {}
    parts = np.array_split(np.arange(len(dataset)), 1 + len(dataset) // CAPTIONS_AT_A_TIME)
    return np.array([numbers.setdefault(words.tobytes(), len(numbers)) for part in parts for words in dataset.words(part)])


def ranker(
    txt: Tensor, img: Tensor, image_of: Tensor, num_queries: int | None = None, hnsw: HnswOptions | None = None
) -> tuple[Callable, dict[str, float]]:
    """How queries rank their answers: exactly, or through HNSW indexes of both sides; arguments as of ``retrieval_ranks``.

    Returns: ``rank(text_of=None) -> (t2i, i2t)`` as ``retrieval_ranks``, and the share of the exact top 10 that HNSW found,
    ``t2i`` and ``i2t``; empty for the exact search
    """
    if hnsw is None:
        return lambda text_of=None: retrieval_ranks(txt, img, image_of, text_of, num_queries), {}
    rows, found = {}, {}
    asked = img[torch.from_numpy(image_queries(image_of, num_queries))].numpy()
    sides = (("t2i", txt[:num_queries].numpy(), img.numpy()), ("i2t", asked, txt.numpy()))
    for name, queries, gallery in sides:
        scores, rows[name] = HnswIndex(gallery, hnsw).search(queries, max(KS))
        found[name] = share_found(queries, gallery, scores)
    return partial(listed_ranks, rows["t2i"], rows["i2t"], image_of, len(img)), found
