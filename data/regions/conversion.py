"""Arrays as other people's files hold them → `Regions` as the database stores them.

The arrays come under the names of `data.regions.precomputed.NAMES`: `features` with `boxes` (in pixels, or fractions) or `norm_bb`, or
a map of grid features alone; where they are known also `conf`, `soft_labels` or `classes` and `class_conf`, `image_w` and `image_h`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from data.regions.db import Regions

SLACK = 1 / 100  # of fractions: detectors round up to a pixel or two beyond the edge, half precision rounds sums


def to_regions(
    arrays: Mapping[str, Any], num_labels: int, size: tuple[float, float] | None = None, max_bb: int = 100
) -> Regions:
    """What a file holds of one image → what the database stores, most confident first (equal ones as in the file).

    Args:
        arrays: see the module
        num_labels: width of soft labels that are made from likeliest classes; 0 for none
        size: width, height, where the file does not say them
        max_bb: most regions of a map of grid features

    Raises:
        ValueError: arrays that do not fit each other, boxes in pixels of an image of unknown size, values beyond fp16,
            inverted boxes, confidences or soft labels that are no probabilities.
    """
    if "features" not in arrays:
        raise ValueError(f"no features; found {', '.join(arrays) or 'nothing'}")
    features = np.asarray(arrays["features"])
    if features.dtype.kind not in "fiu":
        raise ValueError(f"features are {features.dtype}, expected numbers")
    if features.ndim == 3 and not {"boxes", "norm_bb"} & arrays.keys():
        features, corners = _pool_grid(features.astype(np.float32), max_bb)
    else:
        corners = _corners(arrays, size)
    boxes = _norm_boxes(corners)
    features = features.reshape(-1, features.shape[-1]).astype(np.float32)
    n = len(features)
    if boxes.shape != (n, 6) or n == 0:
        raise ValueError(f"{n} features and {len(boxes)} boxes, expected as many of each and at least one")
    conf = arrays.get("conf", arrays.get("class_conf"))
    conf = np.ones(n, np.float32) if conf is None else np.asarray(conf, np.float32).reshape(n)
    labels = _soft_labels(arrays, n, num_labels)
    for name, values in (("features", features), ("boxes", boxes), ("conf", conf), ("soft_labels", labels)):
        with np.errstate(over="ignore"):
            if values is not None and not np.isfinite(values.astype(np.float16)).all():
                raise ValueError(f"{name} have values that are no finite half-precision numbers")
    if conf.min() < -SLACK or conf.max() > 1 + SLACK:
        raise ValueError(f"confidences from {conf.min():.3f} to {conf.max():.3f}, expected 0 to 1")
    if labels is not None and (labels.min() < -SLACK or not np.allclose(labels.sum(1), 1, atol=5 * SLACK)):
        sums = labels.sum(1)
        raise ValueError(
            f"a row of soft labels has values from {labels.min():.3f} and sums from {sums.min():.3f} to {sums.max():.3f}, "
            "expected probabilities, which add up to 1"
        )
    order = np.argsort(-conf, kind="stable")
    return Regions(*(None if v is None else v[order].astype(np.float16) for v in (features, boxes, conf, labels)))


def window_side(rows: int, columns: int, max_bb: int) -> int:
    """The smallest k with which the k x k windows of a grid are at most `max_bb`; those at the edges may be cut off."""
    return next(k for k in range(1, rows + columns) if -(-rows // k) * -(-columns // k) <= max_bb)


def _pool_grid(grid: np.ndarray, max_bb: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of the windows (see `window_side`) of a map [rows, columns, F], and their boxes [n, 4]; a window at the edge
    averages what is there."""
    rows, columns = grid.shape[:2]
    k = window_side(rows, columns, max_bb)
    y, x = np.arange(0, rows, k), np.arange(0, columns, k)
    height, width = (k + y).clip(max=rows) - y, (k + x).clip(max=columns) - x
    sums = np.add.reduceat(np.add.reduceat(grid, y, 0), x, 1)
    y, x = (axis.ravel() for axis in np.meshgrid(y, x, indexing="ij"))
    corners = [x / columns, y / rows, (x + k).clip(max=columns) / columns, (y + k).clip(max=rows) / rows]
    return sums / (height[:, None] * width)[..., None], np.stack(corners, 1)


def _corners(arrays: Mapping[str, Any], size: tuple[float, float] | None) -> np.ndarray:
    """float [n, 4]: x1 y1 x2 y2, as fractions of the image."""
    if "norm_bb" in arrays:
        return np.asarray(arrays["norm_bb"], np.float64)[:, :4]
    if "boxes" in arrays:
        corners = np.asarray(arrays["boxes"], np.float64)[:, :4]
        if "image_w" in arrays and "image_h" in arrays:
            size = float(np.asarray(arrays["image_w"])), float(np.asarray(arrays["image_h"]))
        if size is None and corners.size and corners.max() > 1:
            raise ValueError("boxes are in pixels and the image's size is not known; give --sizes")
        return corners / ([*size, *size] if size else 1)
    raise ValueError("no boxes, and the features are no grid [rows, columns, F]")


def _norm_boxes(corners: np.ndarray) -> np.ndarray:
    """float [n, 6]: x1 y1 x2 y2 w h, inside the image."""
    if corners.size and not ((corners >= -SLACK) & (corners <= 1 + SLACK)).all():
        raise ValueError(
            f"a box ends at {corners[:, 2].max():.3f} of the width and {corners[:, 3].max():.3f} of the height; are width "
            "and height swapped (--size-order)?"
        )
    if (inverted := (corners[:, 2:] < corners[:, :2]).any(1)).any():
        raise ValueError(f"box {inverted.argmax()} ends before it begins: {corners[inverted.argmax()].round(3).tolist()}")
    corners = corners.clip(0, 1)
    return np.concatenate([corners, corners[:, 2:] - corners[:, :2]], 1)


def _soft_labels(arrays: Mapping[str, Any], n: int, num_labels: int) -> np.ndarray | None:
    if num_labels == 0:
        return None
    if "soft_labels" in arrays:
        return np.asarray(arrays["soft_labels"], np.float32).reshape(n, -1)
    if "classes" not in arrays or "class_conf" not in arrays:
        return None
    classes = np.asarray(arrays["classes"]).reshape(n).astype(np.int64)
    if classes.min() < 0 or classes.max() + 1 >= num_labels:
        raise ValueError(f"class {classes.max()} does not fit {num_labels} soft labels with the background; see --num-labels")
    labels = np.zeros((n, num_labels), np.float32)
    labels[np.arange(n), classes + 1] = np.asarray(arrays["class_conf"]).reshape(n)
    labels[:, 0] = 1 - labels[:, 1:].sum(1)
    return labels
