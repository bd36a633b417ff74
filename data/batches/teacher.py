"""A re-ranker's scores of caption–image pairs, kept in a file for distillation.

The file is a ``.npz`` without pickles: ``txt_ids`` [T] and ``img_keys`` [I], text; ``candidates`` int32 [T,K], for each
caption the images that were scored, as positions in ``img_keys``, -1 where fewer than K; ``scores`` float32 [T,K]; ``data``, a
text in JSON: digests of the databases that were scored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.errors import BadInput
from data.storage.array_digest import read_own_arrays, write_arrays
from data.storage.shapes import check_shape
from data.storage.text_files import parse_json

ARRAYS = ("txt_ids", "img_keys", "candidates", "scores")


def write_teacher_scores(
    path: str | Path,
    txt_ids: Sequence[str],
    img_keys: Sequence[str],
    candidates: np.ndarray,
    scores: np.ndarray,
    data: dict[str, str] | None = None,
) -> None:
    """Write the file; arrays as described above.

    Args:
        data: digests of the databases that were scored, by name (``data.batches.identity``)

    Raises:
        BadInput: a score is NaN or infinite, or the disk is full.
    """
    arrays = {
        "txt_ids": np.array(txt_ids, dtype=str),
        "img_keys": np.array(img_keys, dtype=str),
        "candidates": np.asarray(candidates, dtype=np.int32),
        "scores": np.asarray(scores, dtype=np.float32),
        "data": np.array(json.dumps(data or {})),
    }
    check_candidates(path, arrays)
    write_arrays(path, arrays)


def check_candidates(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Raise BadInput unless candidates and scores, described above, fit each other and the ids, and every pair has a finite score."""
    ids, keys, candidates, scores = (arrays[name] for name in ARRAYS)
    if odd := [name for name in ARRAYS[:2] if arrays[name].dtype.kind != "U" or arrays[name].ndim != 1]:
        raise BadInput(f"{path}: {odd[0]} is no list of texts; score the captions again with scripts/score_pairs.py")
    if scores.dtype.kind != "f":
        raise BadInput(f"{path}: scores are {scores.dtype}, expected float32; score the captions again with scripts/score_pairs.py")
    whole = candidates.ndim == 2 and candidates.shape == scores.shape and len(candidates) == len(ids)
    if not whole or candidates.dtype.kind not in "iu" or candidates.max(initial=-1) >= len(keys) or candidates.min(initial=-1) < -1:
        raise BadInput(
            f"{path}: candidates {candidates.shape} from {candidates.min(initial=0)} to {candidates.max(initial=0)} and scores "
            f"{scores.shape} do not fit {len(ids)} captions, {len(keys)} images; a candidate is the number of an image, or -1"
        )
    bad = (candidates >= 0) & ~np.isfinite(scores)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise BadInput(
            f"{path}: the score of caption {ids[row]} and image {keys[candidates[row, column]]} is {scores[row, column]} ({bad.sum():,} "
            "such); score them again"
        )


def scored_data(path: str | Path, arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """Digests of the databases that were scored, by name; none of older files, which do not say. Raises BadInput for something else."""
    if "data" not in arrays:
        return {}
    scored = parse_json(str(arrays["data"]), f"{path}: data")
    check_shape(scored, {str: str}, f"{path}: data", "score the captions again with scripts/score_pairs.py")
    return scored


def read_teacher_scores(
    path: str | Path, txt_ids: Sequence[str], images: Sequence[str], data: dict[str, str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The scores of some captions.

    Args:
        txt_ids: T caption ids
        images: image keys of the data set; candidates that are not among them are left out
        data: digests of its databases, by name; scores that were made from others are refused

    Returns: for each caption, candidates [T,K] int64 as positions in ``images``, -1 for none; scores [T,K] float32

    Raises:
        BadInput: the file is missing, damaged or of other arrays, or has no scores for one of the captions.
    """
    arrays = read_own_arrays(path, "score the captions again with scripts/score_pairs.py")
    if absent := [name for name in ARRAYS if name not in arrays]:
        raise BadInput(f"{path}: no re-ranker scores ({', '.join(ARRAYS)}): it has no {' and no '.join(absent)}")
    check_candidates(path, arrays)
    ids, keys, candidates, scores = (arrays[name] for name in ARRAYS)
    scored = scored_data(path, arrays)
    for name, digest in (data or {}).items():
        if scored.get(name, digest) != digest:
            raise BadInput(
                f"{path}: the {name} that were scored are not those of the training data (contents {scored[name]}, now {digest}): "
                "score them again with scripts/score_pairs.py"
            )
    row = {name: n for n, name in enumerate(ids.tolist())}
    missing = next((name for name in txt_ids if name not in row), None)
    if missing is not None:
        raise BadInput(f"{path}: has no scores for caption {missing}; score the captions that are trained on")
    number = {key: n for n, key in enumerate(images)}
    renumbered = np.array([*(number.get(key, -1) for key in keys.tolist()), -1])  # the last one: -1 stays -1
    rows = [row[name] for name in txt_ids]
    return renumbered[candidates[rows]], scores[rows]
