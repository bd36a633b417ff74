"""Reading files of scores: `docs/reranking.md` says what is in them.

    table = read_scores("flickr_top100.npz")                    # names its captions and images itself
    table = read_scores("results.bin", MatrixIds(captions, images))     # a matrix alone: the caller says of what
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.batches.teacher import check_candidates, scored_data
from data.errors import BadInput
from data.progress import ProgressBar
from data.storage.array_digest import compare_digest
from data.storage.arrays import read_array, read_arrays
from data.storage.plain_pickle import read_plain_pickle
from data.storage.text_files import read_json, read_lines

Side = Literal["captions", "images"]
TEXT_FILES = (".tsv", ".txt", ".tsv.gz", ".txt.gz")
WHAT_TO_SAY = "say what its rows and columns are: --rerank-ids database, or --rerank-ids CAPTION_IDS.txt IMAGE_IDS.txt"


@dataclass
class MatrixIds:
    """What the rows and columns of a matrix stand for that does not say so itself.

    Args:
        captions, images: their ids, in the order of the matrix; None: nobody said
        rows: whether a row is a caption or an image; None: as the numbers of both tell
    """

    captions: Sequence[str] | None = None
    images: Sequence[str] | None = None
    rows: Side | None = None


@dataclass
class ScoreTable:
    """Scores of pairs, all of some captions with some images (``matrix``) or those of a list.

    Attributes:
        path: of the file, for messages
        captions, images: ids [T], [I]
        matrix: [T,I] float32, NaN where a pair has no score; None for a list
        rows: [P] int64, for a list: caption · I + image of each pair, rising; positions in ``captions`` and ``images``
        scores: [P] float32 of them
        data: digests of the databases that were scored, by name, where the file says them
    """

    path: str
    captions: Sequence[str]
    images: Sequence[str]
    matrix: np.ndarray | None = None
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    data: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        for what, ids in (("caption", self.captions), ("image", self.images)):
            if len(set(ids)) < len(ids):
                seen: set[str] = set()
                twice = next(name for name in ids if name in seen or seen.add(name))
                raise BadInput(f"{self.path}: {what} {twice} stands twice among its ids")

    def look_up(self, captions: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Scores of pairs, NaN where there is none: positions in ``captions`` and ``images``, -1 for what is not there."""
        there = (captions >= 0) & (images >= 0)
        found = np.full(captions.shape, np.nan, np.float32)
        if self.matrix is not None:
            found[there] = self.matrix[captions[there], images[there]]
        elif len(self.rows):
            wanted = captions[there].astype(np.int64) * len(self.images) + images[there]
            at = np.searchsorted(self.rows, wanted).clip(max=len(self.rows) - 1)
            found[there] = np.where(self.rows[at] == wanted, self.scores[at], np.nan)
        return found


def read_scores(path: str | Path, ids: MatrixIds | None = None) -> ScoreTable:
    """The scores of a file: ``.npz``, ``.npy``, tab-separated text (``.tsv``, ``.txt``), or else a pickle of plain values.

    Args:
        ids: for a matrix that does not say what its rows and columns are

    Raises:
        BadInput: the file cannot be read or is something else; a matrix that nobody said the ids of, or that does not fit them; a
            pair with two scores, or a score that is infinite.
    """
    ids = ids or MatrixIds()
    name = Path(path).name.lower()
    if name.endswith(".npz"):
        return _read_npz(path, ids)
    if name.endswith(TEXT_FILES):
        return _read_text(path)
    if name.endswith(".npy"):
        return _table_of(path, _load_numpy(path), ids)
    return _table_of(path, read_plain_pickle(path), ids)


def read_ids(path: str | Path) -> list[str]:
    """Ids in the order of a matrix: one a line, or a JSON list."""
    if str(path).endswith((".json", ".json.gz")):
        return _texts(read_json(path, "a list of ids was expected", list))
    return [line.strip() for line in read_lines(path, "a file of ids, one a line, was expected") if line.strip()]


# ---- .npz and text -----------------------------------------------------------------------------------------------------


def _load_numpy(path: str | Path) -> Any:
    """Arrays of a numpy file, without pickles: of an ``.npz`` by their names."""
    advice = "give a file of scores"
    return read_arrays(path, advice) if str(path).lower().endswith(".npz") else read_array(path, advice)


def _read_npz(path: str | Path, ids: MatrixIds) -> ScoreTable:
    arrays = _load_numpy(path)
    compare_digest(path, arrays, "score the pairs again")
    if "scores" not in arrays:
        raise BadInput(f"{path}: holds {sorted(arrays)}, expected scores and what they are of")
    scores = arrays["scores"]
    if {"txt_ids", "img_keys", "candidates"} <= arrays.keys():  # of scripts/score_pairs.py
        return _read_teacher(path, arrays)
    if any(arrays[name].ndim != 1 for name in ("caption_ids", "image_ids") if name in arrays):
        raise BadInput(f"{path}: caption_ids and image_ids are lists of ids")
    own = [_texts(arrays[name]) if name in arrays else None for name in ("caption_ids", "image_ids")]
    if {"captions", "images"} <= arrays.keys():
        pairs = arrays["captions"], arrays["images"]
        if any(each.shape != scores.shape or each.ndim != 1 for each in pairs):
            raise BadInput(f"{path}: captions, images and scores are lists of one length, found {[each.shape for each in (*pairs, scores)]}")
        return _listed(path, *(_numbered(path, each, named) for each, named in zip(pairs, own)), scores)
    if None not in own:
        return _matrix(path, scores, MatrixIds(*own, ids.rows or "captions"))
    if any(own):
        raise BadInput(f"{path}: a matrix of scores needs caption_ids and image_ids, one of them is not there")
    return _table_of(path, scores, ids)


def _read_teacher(path: str | Path, arrays: dict[str, np.ndarray]) -> ScoreTable:
    check_candidates(path, arrays)
    candidates, scores = arrays["candidates"], arrays["scores"]
    captions, images = _texts(arrays["txt_ids"]), _texts(arrays["img_keys"])
    rows, column = np.nonzero(candidates >= 0)
    table = _listed(path, (captions, rows), (images, candidates[rows, column].astype(np.int64)), scores[rows, column])
    table.data = scored_data(path, arrays)
    return table


def _read_text(path: str | Path) -> ScoreTable:
    captions: dict[str, int] = {}
    images: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    scores: list[float] = []
    for n, line in enumerate(ProgressBar(read_lines(path, "check --rerank-scores"), f"reading {path}", unit="lines"), 1):
        cells = line.split("\t")
        if not line.strip() or (n == 1 and cells[-1].strip().lower() == "score"):
            continue
        try:
            caption, image, score = cells
            scores.append(float(score))
        except ValueError:
            raise BadInput(f"{path}: line {n} is {ascii(line)[:60]}, expected caption id, image id and score with tabs between them") from None
        pairs.append((captions.setdefault(caption.strip(), len(captions)), images.setdefault(image.strip(), len(images))))
    if not scores:
        raise BadInput(f"{path}: no scores in it")
    rows = np.array(pairs, np.int64)
    return _listed(path, (list(captions), rows[:, 0]), (list(images), rows[:, 1]), np.array(scores))


def _numbered(path: str | Path, values: np.ndarray, ids: list[str] | None) -> tuple[list[str], np.ndarray]:
    """Ids, and a position among them for each of the values: numbers of rows of ``ids``, or ids themselves."""
    if ids is None:
        names, rows = np.unique(values, return_inverse=True)
        return _texts(names), rows
    if values.dtype.kind not in "iu" or values.min(initial=0) < 0 or values.max(initial=-1) >= len(ids):
        raise BadInput(f"{path}: beside ids, captions and images are rows of them, from 0 to {len(ids) - 1}; found {values[:3].tolist()} ...")
    return ids, values.astype(np.int64)


def _listed(
    path: str | Path, captions: tuple[list[str], np.ndarray], images: tuple[list[str], np.ndarray], scores: np.ndarray
) -> ScoreTable:
    """The table of a list of pairs: ids, and positions among them, of both."""
    numbers = _numbers(path, scores)
    (caption_ids, caption_rows), (image_ids, image_rows) = captions, images
    rows = caption_rows.astype(np.int64) * len(image_ids) + image_rows
    order = np.argsort(rows, kind="stable")
    rows, numbers = rows[order], numbers[order]
    if np.isnan(numbers).any():
        caption, image = divmod(int(rows[np.isnan(numbers).argmax()]), len(image_ids))
        raise BadInput(f"{path}: the score of caption {caption_ids[caption]} and image {image_ids[image]} is NaN; leave such pairs out")
    differ = np.flatnonzero((rows[1:] == rows[:-1]) & (numbers[1:] != numbers[:-1]))
    if len(differ):
        caption, image = divmod(int(rows[differ[0]]), len(image_ids))
        two = f"{numbers[differ[0]]:g} and {numbers[differ[0] + 1]:g}"
        raise BadInput(f"{path}: caption {caption_ids[caption]} and image {image_ids[image]} have two scores, {two}; a pair has one")
    return ScoreTable(str(path), caption_ids, image_ids, None, rows, numbers)


# ---- matrices ----------------------------------------------------------------------------------------------------------


def _table_of(path: str | Path, value: Any, ids: MatrixIds) -> ScoreTable:
    """The table of a matrix: an array, a list of rows, a list or mapping of all its numbers in a row, or (matrix, captions, images)."""
    if isinstance(value, tuple | list) and len(value) == 3 and all(_is_ids(each) for each in value[1:]) and not _is_ids(value[0]):
        matrix, captions, images = value
        own = MatrixIds(_texts(captions), _texts(images), ids.rows or "captions")
        return _matrix(path, _as_array(path, matrix, own), own)
    if ids.captions is None or ids.images is None:
        raise BadInput(f"{path}: a matrix of scores without ids; {WHAT_TO_SAY}")
    return _matrix(path, _as_array(path, value, ids), ids)


def _is_ids(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and value.dtype.kind in "US"
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(each, str) for each in value)


def _as_array(path: str | Path, value: Any, ids: MatrixIds) -> np.ndarray:
    """An array of what a pickle holds, whose size is compared with the ids before it is made."""
    size = len(ids.captions) * len(ids.images)
    if isinstance(value, dict):  # position → score, as OSCAR writes
        if list(value) != list(range(len(value))):
            raise BadInput(f"{path}: a mapping of scores whose keys are not 0, 1, 2 ...; they say the position in the matrix")
        value = list(value.values())
    if isinstance(value, list | tuple):
        value = _array_of_rows(path, value if value and not isinstance(value[0], int | float) else [value], ids)
    if not isinstance(value, np.ndarray):
        raise BadInput(f"{path}: holds {type(value).__name__}, expected a matrix of scores")
    if value.ndim == 1 or (value.shape[0] == 1 and value.shape not in ((len(ids.captions), len(ids.images)), (len(ids.images), len(ids.captions)))):
        value = value.ravel()
        if value.size != size:
            raise BadInput(f"{path}: holds {value.size:,} scores; {_expected(ids)}")
        if ids.rows is None:
            raise BadInput(f"{path}: its scores stand in one row; say what was counted first: --rerank-rows captions or --rerank-rows images")
        value = value.reshape(len(ids.captions), -1) if ids.rows == "captions" else value.reshape(len(ids.images), -1)
    return value


def _array_of_rows(path: str | Path, rows: Sequence[Any], ids: MatrixIds) -> np.ndarray:
    if not all(isinstance(row, list | tuple) or (isinstance(row, np.ndarray) and row.ndim == 1) for row in rows):
        raise BadInput(f"{path}: a list of other things than rows of scores")
    if len({len(row) for row in rows}) != 1:
        raise BadInput(f"{path}: no matrix: its rows are of several lengths")
    if len(set(map(id, rows))) < len(rows) or len(rows) * len(rows[0]) != len(ids.captions) * len(ids.images):
        raise BadInput(f"{path}: holds {len(rows):,} rows of {len(rows[0]):,} scores; {_expected(ids)}")
    if not all(isinstance(row, np.ndarray) or all(isinstance(number, int | float) for number in row) for row in rows):
        raise BadInput(f"{path}: rows of other things than numbers")
    return np.array(rows, np.float64)


def _expected(ids: MatrixIds) -> str:
    return f"there are {len(ids.captions):,} captions and {len(ids.images):,} images"


def _matrix(path: str | Path, matrix: np.ndarray, ids: MatrixIds) -> ScoreTable:
    """The table of a matrix; it may stand on its side."""
    upright = len(ids.captions), len(ids.images)
    fits = [side for side, shape in (("captions", upright), ("images", upright[::-1])) if matrix.shape == shape]
    if ids.rows is None and len(fits) == 2:
        raise BadInput(f"{path}: as many captions as images; say what a row is: --rerank-rows captions or --rerank-rows images")
    rows = ids.rows or (fits[0] if fits else "captions")
    if rows not in fits:
        turned = f"; with --rerank-rows {fits[0]} it would fit" if fits else ""
        shape = " x ".join(f"{size:,}" for size in matrix.shape)
        raise BadInput(f"{path}: a matrix of {shape} scores, {_expected(ids)}, and a row is {rows[:-1]}'s{turned}")
    numbers = _numbers(path, matrix)
    return ScoreTable(str(path), list(ids.captions), list(ids.images), numbers if rows == "captions" else numbers.T)


def _numbers(path: str | Path, scores: np.ndarray) -> np.ndarray:
    if scores.dtype.kind not in "fiub":
        raise BadInput(f"{path}: scores are of type {scores.dtype}, expected numbers")
    with np.errstate(over="ignore"):
        numbers = scores.astype(np.float32)
    if np.isinf(numbers).any():
        raise BadInput(f"{path}: {int(np.isinf(numbers).sum()):,} scores are infinite; a pair that was not scored is NaN in a matrix, and absent in a list")
    return numbers


def _texts(ids: Any) -> list[str]:
    values = ids.tolist() if isinstance(ids, np.ndarray) else ids
    return [each.decode("utf-8", "replace") if isinstance(each, bytes) else str(each) for each in values]
