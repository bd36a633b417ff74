"""Outcomes of single queries, stored so that two evaluations can be compared (``scripts/compare.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.errors import BadInput
from data.storage.array_digest import read_own_arrays, write_arrays


@dataclass
class QueryRanks:
    """The outcome of one retrieval task: 0-based ranks of every query, and which image a caption is of.

    Attributes:
        t2i: [Q] ranks among the images, of the captions that are queries
        i2t: [Q'] ranks among the captions, of the images that are queries
        image_of: [Q] row of a caption's image
        queries: [Q'] rows of the images that are queries, rising; None: the first Q', all of the images
    """

    t2i: np.ndarray
    i2t: np.ndarray
    image_of: np.ndarray
    queries: np.ndarray | None = None

    def __post_init__(self):
        if self.queries is None:
            self.queries = np.arange(len(self.i2t))


def write_ranks(
    path: str | Path, img_ids: Sequence[str], txt_ids: dict[str, Sequence[str]], ranks: dict[str, QueryRanks]
) -> None:
    """Write the ids and 0-based ranks of every query: .npz with ``img_ids`` and, for each task, ``TASK/txt_ids, /t2i,
    /i2t, /image_of, /queries``; a rank of at least 10 and the number of candidates says: not found."""
    arrays = {"img_ids": np.array(img_ids)}
    for name, task in ranks.items():
        arrays[f"{name}/txt_ids"] = np.array(txt_ids[name])
        arrays |= {f"{name}/{key}": np.asarray(value, np.int32) for key, value in vars(task).items()}
    write_arrays(path, arrays)


def read_ranks(path: str | Path) -> tuple[list[str], dict[str, list[str]], dict[str, QueryRanks]]:
    """What ``write_ranks`` got. Raises BadInput when the file is missing or damaged."""
    advice = "evaluate again with eval_itm.py"
    arrays = read_own_arrays(path, advice)
    try:
        img_ids = arrays["img_ids"].tolist()
        names = [key.removesuffix("/t2i") for key in arrays if key.endswith("/t2i")]
        txt_ids = {name: arrays[f"{name}/txt_ids"].tolist() for name in names}
        parts = {name: [arrays[f"{name}/{key}"] for key in ("t2i", "i2t", "image_of")] for name in names}
        ranks = {name: QueryRanks(*parts[name], arrays.get(f"{name}/queries")) for name in names}  # absent: all images
    except (KeyError, TypeError) as error:
        raise BadInput(f"{path}: no ranks of queries ({error}); {advice}") from None
    ids = {"img_ids": arrays["img_ids"]} | {f"{name}/txt_ids": arrays[f"{name}/txt_ids"] for name in names}
    if not names or (odd := [key for key, array in ids.items() if array.dtype.kind != "U" or array.ndim != 1 or not len(array)]):
        raise BadInput(f"{path}: {f'{odd[0]} is no list of ids' if names else 'no ranks of queries'}; {advice}")
    for name, task in ranks.items():
        if odd := [key for key, array in vars(task).items() if array.dtype.kind not in "iu" or array.ndim != 1]:
            raise BadInput(f"{path}: {name}/{odd[0]} is no list of whole numbers; evaluate again with eval_itm.py")
        images = len(task.queries) if f"{name}/queries" in arrays else len(img_ids)
        lengths = len(txt_ids[name]), images, len(txt_ids[name]), images
        if tuple(map(len, vars(task).values())) != lengths or _are_outside(task, len(img_ids)):
            raise BadInput(f"{path}: {name} has other numbers of ids and ranks; evaluate again with eval_itm.py")
    return img_ids, txt_ids, ranks


def _are_outside(task: QueryRanks, images: int) -> bool:
    rows = np.concatenate([task.queries, task.image_of])
    return bool(((rows < 0) | (rows >= images)).any() or min(task.t2i.min(initial=0), task.i2t.min(initial=0)) < 0)
