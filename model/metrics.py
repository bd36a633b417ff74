"""Recall at K, as the field reports it, in percent."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

KS = (1, 5, 10)


def retrieval_ranks(
    txt: Tensor, img: Tensor, image_of: Tensor, chunk: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rank of the right answer for every query, 0 being first. Equal scores rank by position, lower first.

    Args:
        txt: [T,D] float32 caption embeddings
        img: [I,D] float32 image embeddings
        image_of: [T] int64, row of the image each caption belongs to; an image may have any number of captions
        chunk: queries scored at a time; None takes what keeps a chunk's scores within 64 MB

    Returns:
        t2i [T]: rank of a caption's image among the I images;
        i2t [I]: rank of the best of an image's captions among the T captions; T for an image without captions
    """
    chunk = chunk or max(1, (1 << 24) // max(len(txt), len(img), 1))
    images = torch.arange(len(img), device=img.device)
    t2i = torch.cat(
        [
            _ranks(txt[i : i + chunk] @ img.T, image_of[i : i + chunk, None] == images[None, :])
            for i in range(0, len(txt), chunk)
        ]
    )
    i2t = torch.cat(
        [
            _ranks(img[i : i + chunk] @ txt.T, image_of[None, :] == images[i : i + chunk, None])
            for i in range(0, len(img), chunk)
        ]
    )
    return t2i.cpu().numpy(), i2t.cpu().numpy()


def _ranks(scores: Tensor, right: Tensor) -> Tensor:
    """``scores`` [Q,N], ``right`` [Q,N] bool → [Q] candidates before the best right one; N where none is right."""
    own = scores.masked_fill(~right, float("-inf"))
    best, where = own.max(dim=1, keepdim=True)  # the first of equals
    position = torch.arange(scores.shape[1], device=scores.device)
    ahead = (scores > best) | ((scores == best) & ~right & (position < where))
    return torch.where(right.any(dim=1), ahead.sum(dim=1), scores.shape[1])


def recall_table(t2i: np.ndarray, i2t: np.ndarray) -> dict[str, float]:
    """TR@K (image→text), IR@K (text→image) for K = 1, 5, 10, and AR, the mean of the six."""
    table = {f"TR@{k}": 100 * float((i2t < k).mean()) for k in KS}
    table |= {f"IR@{k}": 100 * float((t2i < k).mean()) for k in KS}
    return table | {"AR": float(np.mean(list(table.values())))}


def recall(txt: Tensor, img: Tensor, image_of: Tensor) -> dict[str, float]:
    """``recall_table`` of the embeddings themselves; shapes as in ``retrieval_ranks``."""
    return recall_table(*retrieval_ranks(txt, img, image_of))


def chance_table(num_captions: np.ndarray) -> dict[str, float]:
    """What random scores would give: expected recall for images with ``num_captions`` [I] captions each."""
    total, images = int(num_captions.sum()), len(num_captions)
    table = {}
    for k in KS:
        # probability that none of an image's n captions is among k drawn from all
        missed = np.ones(images)
        for drawn in range(min(k, total)):
            missed *= np.clip(total - num_captions - drawn, 0, None) / (total - drawn)
        table[f"TR@{k}"] = 100 * float((1 - missed).mean())
    table |= {f"IR@{k}": 100 * min(k / images, 1.0) for k in KS}
    return table | {"AR": float(np.mean(list(table.values())))}


def fold_tables(txt: Tensor, img: Tensor, image_of: Tensor, fold_size: int = 1000) -> list[dict[str, float]]:
    """Recall within each consecutive fold of ``fold_size`` images and their captions (COCO's 1K protocol has five)."""
    tables = []
    for start in range(0, len(img) - fold_size + 1, fold_size):
        inside = (image_of >= start) & (image_of < start + fold_size)
        tables.append(recall(txt[inside], img[start : start + fold_size], image_of[inside] - start))
    return tables


def mean_table(tables: list[dict[str, float]]) -> dict[str, float]:
    """Mean of several tables, key by key."""
    return {key: float(np.mean([table[key] for table in tables])) for key in tables[0]}


def format_table(rows: dict[str, dict[str, float]]) -> str:
    """Rows of recall tables as aligned text, one row per name."""
    columns = list(next(iter(rows.values())))
    width = max(len(name) for name in rows)
    lines = [" " * width + "".join(f"{column:>8}" for column in columns)]
    lines += [f"{name:<{width}}" + "".join(f"{row[column]:8.2f}" for column in columns) for name, row in rows.items()]
    return "\n".join(lines)
