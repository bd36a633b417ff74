"""A dataset's retrieval tasks, one for each language, and what a model makes of them.

    tables = evaluate(model, dataset, "cuda", "bf16")       # from memory, as after an epoch of training

``eval_itm.py`` goes through stored indexes instead: ``model/evaluation/split.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from torch import Tensor

from data.batches.pairs import PairDataset
from data.search.faiss import HnswIndex, HnswOptions
from data.search.topk import share_found
from model.bi_encoder import LightningDOT
from model.distributed import SINGLE, Ranks
from model.evaluation.recall import KS, listed_ranks, recall, retrieval_ranks, with_mean
from model.precision import Precision
from model.retrieval.encoding import embed_pairs


def evaluate(
    model: LightningDOT, dataset: PairDataset, device, precision: Precision = "fp32", ranks: Ranks = SINGLE
) -> dict[str, dict[str, float]]:
    """Recall tables of a dataset: one per language, and ``all``.

    With several languages each is a retrieval task of its own (its captions, all images), and ``all`` is their mean.
    """
    txt, img, image_of = embed_pairs(model, dataset, device, precision, ranks)
    languages = captions_by_language(dataset)
    return with_mean({name: recall(txt[rows], img, image_of[rows]) for name, rows in languages.items()})


def captions_by_language(dataset: PairDataset) -> dict[str, np.ndarray]:
    """Language → rows of its captions, in the order of their first; ``all`` → every row when there is one language."""
    languages = np.array([dataset.captions.languages.get(i, "") for i in dataset.ids])
    names = list(dict.fromkeys(languages.tolist()))
    if len(names) == 1:
        return {"all": np.arange(len(languages))}
    return {name: np.flatnonzero(languages == name) for name in names}


def wordings(dataset: PairDataset) -> np.ndarray:
    """[T] a number for each caption that is the same where the tokens are: where the model cannot tell captions apart."""
    numbers: dict[tuple, int] = {}
    return np.array([numbers.setdefault(tuple(dataset.captions.input_ids(i)), len(numbers)) for i in dataset.ids])


def ranker(txt: Tensor, img: Tensor, hnsw: HnswOptions | None = None) -> tuple[Callable, dict[str, float]]:
    """How the queries txt [T,D], img [I,D] rank their answers: exactly, or through HNSW indexes of both.

    Returns: ``rank(image_of, text_of=None) -> (t2i, i2t)`` as ``retrieval_ranks``, and the share of the exact top 10 that
    HNSW found, ``t2i`` and ``i2t``; empty for the exact search
    """
    if hnsw is None:
        return partial(retrieval_ranks, txt, img), {}
    rows, found = {}, {}
    for name, queries, gallery in (("t2i", txt.numpy(), img.numpy()), ("i2t", img.numpy(), txt.numpy())):
        scores, rows[name] = HnswIndex(gallery, hnsw).search(queries, max(KS))
        found[name] = share_found(queries, gallery, scores)
    return partial(listed_ranks, rows["t2i"], rows["i2t"]), found
