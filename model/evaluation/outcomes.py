"""Recall of a model on the pairs of a dataset, straight from memory (``eval_itm.py`` goes through a stored index)."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from data.batches.pairs import PairDataset
from data.errors import BadInput
from data.search.faiss import HnswIndex, HnswOptions
from data.search.topk import share_found
from data.storage.atomic import atomic_file
from model import distributed
from model.bi_encoder import LightningDOT
from model.evaluation.recall import KS, listed_ranks, mean_table, recall, recall_table, retrieval_ranks
from model.evaluation.statistics import QueryRanks, Units, intervals, resampled_recall
from model.retrieval.encoding import embed_pairs


def evaluate(
    model: LightningDOT,
    dataset: PairDataset,
    device,
    precision: str = "fp32",
    ranks: distributed.Ranks = distributed.SINGLE,
) -> dict[str, dict[str, float]]:
    """Recall tables of a dataset: one per language, and ``all``.

    With several languages each is a retrieval task of its own (its captions, all images), and ``all`` is their mean.
    """
    return recall_by_language(*embed_pairs(model, dataset, device, precision, ranks), dataset)


def recall_by_language(txt: Tensor, img: Tensor, image_of: Tensor, dataset: PairDataset) -> dict[str, dict[str, float]]:
    """Recall tables of embeddings ``txt`` [T,D], ``img`` [I,D]: as ``evaluate``."""
    tables = {name: recall(txt[rows], img, image_of[rows]) for name, rows in captions_by_language(dataset).items()}
    return tables if len(tables) == 1 else tables | {"all": mean_table(list(tables.values()))}


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


def summary(ranks: dict[str, QueryRanks], resamples: int, units: Units) -> tuple[dict, dict]:
    """Tables of several tasks and of their mean, ``all``: → recall {task: {metric: percent}}, and their 95% intervals
    {task: {metric: {"low", "high"}}}, empty with 0 resamples."""
    tables = {name: recall_table(task.t2i, task.i2t) for name, task in ranks.items()}
    samples = {}
    if resamples:
        by_task = resampled_recall([list(ranks.values())], resamples, units)[:, 0]  # [B,L,7]
        samples = {name: by_task[:, number] for number, name in enumerate(ranks)}
        samples.setdefault("all", by_task.mean(axis=1))
    tables.setdefault("all", mean_table(list(tables.values())))
    return tables, {name: intervals(each) for name, each in samples.items()}


# ---- outcomes of single queries, so that two evaluations can be compared ---------------------------------------------


def write_ranks(path: str | Path, img_ids: Sequence[str], txt_ids: dict[str, Sequence[str]], ranks: dict[str, QueryRanks]):
    """Write the ids and 0-based ranks of every query: .npz with ``img_ids`` and, for each task, ``TASK/txt_ids, /t2i,
    /i2t, /image_of``; a rank of at least 10 and the number of candidates says: not found."""
    arrays = {"img_ids": np.array(img_ids)}
    for name, task in ranks.items():
        arrays[f"{name}/txt_ids"] = np.array(txt_ids[name])
        arrays |= {f"{name}/{key}": np.asarray(value, np.int32) for key, value in vars(task).items()}
    with atomic_file(path) as partial_file, open(partial_file, "wb") as file:
        np.savez_compressed(file, **arrays)


def read_ranks(path: str | Path) -> tuple[list[str], dict[str, list[str]], dict[str, QueryRanks]]:
    """What ``write_ranks`` got. Raises BadInput when the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        img_ids = arrays["img_ids"].tolist()
        names = [key.removesuffix("/t2i") for key in arrays if key.endswith("/t2i")]
        txt_ids = {name: arrays[f"{name}/txt_ids"].tolist() for name in names}
        ranks = {name: QueryRanks(*(arrays[f"{name}/{key}"] for key in ("t2i", "i2t", "image_of"))) for name in names}
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); evaluate again with eval_itm.py") from None
    except (KeyError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInput(f"{path}: no ranks of queries ({error}); evaluate again with eval_itm.py") from None
    for name, task in ranks.items():
        lengths = len(txt_ids[name]), len(img_ids), len(txt_ids[name])
        if tuple(map(len, vars(task).values())) != lengths:
            raise BadInput(f"{path}: {name} has other numbers of ids and ranks; evaluate again with eval_itm.py")
    return img_ids, txt_ids, ranks
