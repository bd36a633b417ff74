"""Recall at K, as the field reports it, in percent. How sure it is: ``model.evaluation.statistics``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from data.search.topk import scores_in_parts

KS = (1, 5, 10)
METRICS = (*(f"TR@{k}" for k in KS), *(f"IR@{k}" for k in KS), "AR")


def retrieval_ranks(
    txt: Tensor, img: Tensor, image_of: Tensor, text_of: Tensor | None = None, num_queries: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of the best right answer for every query, 0 being first. Equal scores rank by position, lower first.

    Args:
        txt: [T,D] float32 caption embeddings
        img: [I,D] float32 image embeddings
        image_of: [T] int64, row of the image each caption belongs to; an image may have any number of captions
        text_of: [T] int64, a number for each distinct wording; makes the ranks duplicate-aware: captions of one wording
            are one answer, right for the images of all of them. That is, caption and image belong together when *some*
            caption of the image has the caption's wording. Every caption keeps its place among the candidates. None: each
            caption is a wording of its own
        num_queries: so many captions Q, the first, are queries, and so are the images that one of them is of
            (``image_queries``); all others are candidates only. None: all captions

    Returns:
        t2i [Q]: rank of the best of a caption's images among the I images (it has one, unless duplicates count);
        i2t [Q']: rank of the best of an image's captions among the T captions, of the ``image_queries`` in their order
    """
    captions, images = _pairs(image_of, text_of, len(img))
    asked = torch.from_numpy(image_queries(image_of, num_queries)).to(img.device)
    place = torch.full((len(img),), -1, device=images.device)  # among the image queries
    place[asked] = torch.arange(len(asked), device=images.device)
    longest, t2i, i2t = max(len(txt), len(img)), [], []
    for part, scores in scores_in_parts(txt[:num_queries], img, longest, "ranking images"):
        t2i.append(_ranks(scores, _right(captions, images, part.start, scores)))
    for part, scores in scores_in_parts(img if len(asked) == len(img) else img[asked], txt, longest, "ranking captions"):
        i2t.append(_ranks(scores, _right(place[images], captions, part.start, scores)))
    return torch.cat(t2i).cpu().numpy(), torch.cat(i2t).cpu().numpy()


def image_queries(image_of: Tensor | np.ndarray, num_queries: int | None = None) -> np.ndarray:
    """Rows of the images [Q'] that one of the first ``num_queries`` captions is of, in order; ``image_of`` [T] is a caption's.

    An image without a caption has no right answer: it is a candidate, and no query.
    """
    return np.unique(torch.as_tensor(image_of)[:num_queries].cpu().numpy())


def _pairs(image_of: Tensor, text_of: Tensor | None, num_images: int) -> tuple[Tensor, Tensor]:
    """Every caption and image that belong together: captions [P], images [P]."""
    every = torch.arange(len(image_of), device=image_of.device)
    if text_of is None:
        return every, image_of
    wording = text_of.unique(return_inverse=True)[1]
    described = (wording * num_images + image_of).unique()  # by wording, then by image, each pair once
    number = torch.bincount(described // num_images)  # of images that a wording is of
    captions = every.repeat_interleave(number[wording])
    nth = torch.arange(len(captions), device=every.device) - _starts(number[wording])[captions]
    return captions, described[_starts(number)[wording[captions]] + nth] % num_images


def _starts(lengths: Tensor) -> Tensor:
    return lengths.cumsum(0) - lengths


def _right(queries: Tensor, answers: Tensor, first: int, scores: Tensor) -> Tensor:
    """The pairs (``queries`` [P], ``answers`` [P]) as [Q,N] bool beside ``scores`` [Q,N] of the queries from ``first`` on."""
    inside = (queries >= first) & (queries < first + len(scores))
    right = torch.zeros_like(scores, dtype=torch.bool)
    right[queries[inside] - first, answers[inside]] = True
    return right


def _ranks(scores: Tensor, right: Tensor) -> Tensor:
    """``scores`` [Q,N], ``right`` [Q,N] bool, one or more of each row → [Q] candidates before the best right one."""
    own = scores.masked_fill(~right, float("-inf"))
    best, where = own.max(dim=1, keepdim=True)  # the first of equals
    position = torch.arange(scores.shape[1], device=scores.device)
    ahead = (scores > best) | ((scores == best) & ~right & (position < where))
    return ahead.sum(dim=1)


def _miss(candidates: int) -> int:
    """Rank of an answer that is not there."""
    return max(candidates, *KS)  # not a hit at 10 because there are only 8 candidates


def listed_ranks(
    images: np.ndarray, captions: np.ndarray, image_of: Tensor, num_images: int, text_of: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """``retrieval_ranks`` from what an index found, best first; -1 is no result and never right.

    Args:
        images: [Q,K] rows of the images found for each caption that is a query, the first Q of all
        captions: [Q',K] rows of the captions found for each of the ``image_queries``
        image_of, text_of: as in ``retrieval_ranks``, of all T captions
        num_images: I, the candidates

    Returns:
        t2i [Q], i2t [Q']: where no right answer is among the K, the rank is the number of candidates, I or T, and at
            least 10
    """
    owner = image_of.cpu().numpy()
    asked = image_queries(owner, len(images))[:, None]
    wording = np.arange(len(owner)) if text_of is None else text_of.cpu().numpy()
    pairs = wording * num_images + owner  # one number for a wording and an image that belong together
    t2i = np.isin(wording[: len(images), None] * num_images + images, pairs) & (images >= 0)
    i2t = np.isin(wording[captions] * num_images + asked, pairs) & (captions >= 0)
    return _first(t2i, num_images), _first(i2t, len(owner))


def _first(right: np.ndarray, candidates: int) -> np.ndarray:
    """``right`` [Q,K] bool → [Q] column of the first right one; a miss where there is none."""
    return np.where(right.any(axis=1), right.argmax(axis=1), _miss(candidates))


def num_repeated(image_of: np.ndarray, text_of: np.ndarray, num_queries: int | None = None) -> int:
    """How many of the captions, or of the first ``num_queries``, have the wording of another image's caption, too.

    image_of, text_of: [T] of all captions
    """
    wordings = np.unique(np.stack([text_of, image_of]), axis=1)[0]
    repeated, images = np.unique(wordings, return_counts=True)
    return int(np.isin(text_of[:num_queries], repeated[images > 1]).sum())


def recall_table(t2i: np.ndarray, i2t: np.ndarray) -> dict[str, float]:
    """TR@K (image→text), IR@K (text→image) for K = 1, 5, 10, and AR, the mean of the six."""
    table = {f"TR@{k}": 100 * float((i2t < k).mean()) for k in KS}
    table |= {f"IR@{k}": 100 * float((t2i < k).mean()) for k in KS}
    return table | {"AR": float(np.mean(list(table.values())))}


def recall(txt: Tensor, img: Tensor, image_of: Tensor) -> dict[str, float]:
    """``recall_table`` of the embeddings themselves; shapes as in ``retrieval_ranks``."""
    return recall_table(*retrieval_ranks(txt, img, image_of))


def chance_table(
    image_of: np.ndarray, num_images: int, num_queries: int | None = None, text_of: np.ndarray | None = None
) -> dict[str, float]:
    """What random scores would give: the expected recall of the queries among all candidates.

    Args:
        image_of: [T] row of a caption's image, of all captions that are candidates
        num_images: I, the images that are candidates
        num_queries, text_of: as in ``retrieval_ranks``
    """
    asked = image_queries(image_of, num_queries)
    if text_of is None:
        answers, images = np.bincount(image_of)[asked], None
    else:
        pairs = _pairs(torch.as_tensor(image_of), torch.as_tensor(text_of), num_images)
        images, answers = (np.bincount(rows.numpy()) for rows in pairs)  # of each caption, and of each image
        images, answers = images[:num_queries], answers[asked]
    table = {f"TR@{k}": 100 * float(_found_by_chance(answers, len(image_of), k).mean()) for k in KS}
    for k in KS:
        found = min(k / num_images, 1.0) if images is None else float(_found_by_chance(images, num_images, k).mean())
        table[f"IR@{k}"] = 100 * found
    return table | {"AR": float(np.mean(list(table.values())))}


def _found_by_chance(answers: np.ndarray, candidates: int, k: int) -> np.ndarray:
    """Probability that one of n right answers is among k drawn from all candidates, for each n of ``answers`` [Q]."""
    missed = np.ones(len(answers))
    for drawn in range(min(k, candidates)):
        missed *= np.clip(candidates - answers - drawn, 0, None) / (candidates - drawn)
    return 1 - missed


def folds(image_of: Tensor, num_images: int, size: int = 1000) -> list[tuple[slice, Tensor]]:
    """Consecutive folds of ``size`` images (COCO's 1K protocol has five): (rows of images, rows of their captions)."""
    starts = range(0, num_images - size + 1, size)
    return [(slice(i, i + size), ((image_of >= i) & (image_of < i + size)).nonzero()[:, 0]) for i in starts]


def mean_table(tables: list[dict[str, float]]) -> dict[str, float]:
    """Mean of several tables, key by key."""
    return {key: float(np.mean([table[key] for table in tables])) for key in tables[0]}


def with_mean(tables: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Tables of several tasks and ``all``, their mean; the table of one task alone is ``all`` already."""
    return tables if len(tables) == 1 else tables | {"all": mean_table(list(tables.values()))}


def format_table(rows: dict[str, dict], cell: Callable[..., str] = "{:.2f}".format, column: int = 8) -> str:
    """Rows of tables as aligned text, one row per name; ``cell`` writes a value, in ``column`` places, and whole numbers are
    written as they are."""
    width = max(len(name) for name in rows)
    lines = [" " * width + "".join(f"{name:>{column}}" for name in max(rows.values(), key=len))]
    lines += [
        f"{name:<{width}}" + "".join(f"{value if isinstance(value, int) else cell(value):>{column}}" for value in row.values())
        for name, row in rows.items()
    ]
    return "\n".join(lines)
