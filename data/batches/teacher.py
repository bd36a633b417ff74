"""A re-ranker's scores of caption–image pairs, kept in a file for distillation.

The file is a ``.npz`` without pickles: ``txt_ids`` [T] and ``img_keys`` [I], text; ``candidates`` int32 [T,K], for each
caption the images that were scored, as positions in ``img_keys``, -1 where fewer than K; ``scores`` float32 [T,K]; ``data``, a
text in JSON: digests of the databases that were scored.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.errors import BadInput
from data.storage.atomic import atomic_file


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
    """
    with atomic_file(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(
            file,
            txt_ids=np.array(txt_ids, dtype=str),
            img_keys=np.array(img_keys, dtype=str),
            candidates=np.asarray(candidates, dtype=np.int32),
            scores=np.asarray(scores, dtype=np.float32),
            data=np.array(json.dumps(data or {})),
        )


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
    try:
        with np.load(path, allow_pickle=False) as file:
            ids, keys, candidates, scores = (file[name] for name in ("txt_ids", "img_keys", "candidates", "scores"))
            scored = json.loads(str(file["data"])) if "data" in file else {}  # older files do not say
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}") from None
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path}: no re-ranker scores (txt_ids, img_keys, candidates, scores): {error}") from None
    for name, digest in (data or {}).items():
        if scored.get(name, digest) != digest:
            raise BadInput(
                f"{path}: the {name} that were scored are not those of the training data (contents {scored[name]}, now {digest}): "
                "score them again with scripts/score_pairs.py"
            )
    if candidates.shape != scores.shape or len(candidates) != len(ids) or candidates.max(initial=-1) >= len(keys):
        raise BadInput(
            f"{path}: candidates {candidates.shape} and scores {scores.shape} do not fit {len(ids)} captions, {len(keys)} images"
        )
    row = {name: n for n, name in enumerate(ids.tolist())}
    missing = next((name for name in txt_ids if name not in row), None)
    if missing is not None:
        raise BadInput(f"{path}: has no scores for caption {missing}; score the captions that are trained on")
    number = {key: n for n, key in enumerate(images)}
    renumbered = np.array([*(number.get(key, -1) for key in keys.tolist()), -1])  # the last one: -1 stays -1
    rows = [row[name] for name in txt_ids]
    return renumbered[candidates[rows]], scores[rows]
