"""Arrays as other people's files hold them → `Regions` as the database stores them.

The arrays come under the names of `data.regions.precomputed.NAMES`: `features` with `boxes` (in pixels, or fractions) or `norm_bb`, or
a map of grid features alone; where they are known also `conf`, `soft_labels` or `classes` and `class_conf`, `image_w` and `image_h`
(with `size_order`, as in `StoredBoxes`, where it is not `named`), and `num_boxes`. Arrays may have an axis of one image in front; rows of padding, which files of one length have, are no regions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from data.regions.box_forms import SLACK, BoxForm, StoredBoxes, corners_of
from data.regions.db import Regions

CHANNELS = 64  # a feature map has at least so many channels, and a side of a grid fewer
GridOrder = Literal["auto", "hwc", "chw"]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Conversion:
    """How arrays are read.

    Args:
        boxes: form of the array `boxes`, without ``auto``
        norm_bb: form of the array `norm_bb`, the same
        num_labels: width of soft labels that are made from likeliest classes; 0 for none
        max_bb: most regions of a map of grid features
        grid_order: axes of such a map: hwc [rows, columns, F] or chw [F, rows, columns]; auto: recognised
    """

    boxes: BoxForm
    norm_bb: BoxForm
    num_labels: int
    max_bb: int = 100
    grid_order: GridOrder = "auto"


def to_regions(
    arrays: Mapping[str, Any], reading: Conversion, size: tuple[float, float] | None = None
) -> tuple[Regions, int]:
    """What a file holds of one image → what the database stores, most confident first (equal ones as in the file).

    Args:
        arrays: see the module
        size: width, height, where the file does not say them

    Returns: the regions, and how many rows of padding were left out

    Raises:
        ValueError: arrays that do not fit each other, boxes in pixels of an image of unknown size, values beyond fp16,
            inverted boxes, confidences or soft labels that are no probabilities.
    """
    if "features" not in arrays:
        raise ValueError(f"no features; found {', '.join(arrays) or 'nothing'}")
    if np.asarray(arrays["features"]).dtype.kind not in "fiu":
        raise ValueError(f"features are {np.asarray(arrays['features']).dtype}, expected numbers")
    padding = 0
    if is_grid(arrays):
        grid = _grid(np.asarray(arrays["features"]), reading.grid_order)
        features, corners = _pool_grid(grid.astype(np.float32), reading.max_bb)
        rows: Arrays = {name: _of_one_image(arrays, name, 1) for name in ("conf",) if name in arrays}
    else:
        rows, padding = image_rows(arrays)
        features = rows["features"].astype(np.float32)
        form = reading.norm_bb if "norm_bb" in rows else reading.boxes
        corners = corners_of(stored_boxes(arrays, rows, size), form)
    n = len(features)
    conf = rows.get("conf", rows.get("class_conf"))
    conf = np.ones(n, np.float32) if conf is None else conf.astype(np.float32).reshape(n)
    labels = _soft_labels(rows, n, reading.num_labels)
    boxes = np.concatenate([corners, corners[:, 2:] - corners[:, :2]], 1)
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
    found = (None if v is None else v[order].astype(np.float16) for v in (features, boxes, conf, labels))
    return Regions(*found), padding


# ---- rows ------------------------------------------------------------------------------------------------------------

ROWS = {"features": 2, "norm_bb": 2, "boxes": 2, "conf": 1, "soft_labels": 2, "classes": 1, "class_conf": 1}  # their axes


def image_rows(arrays: Mapping[str, Any]) -> tuple[Arrays, int]:
    """The arrays that have a row for each region, without an axis of one image and without rows of padding; and the number of
    the latter. Padding is what `num_boxes` does not count, and rows of zeros.

    Raises:
        ValueError: arrays of other shapes, or that do not fit each other.
    """
    rows = {name: _of_one_image(arrays, name, axes) for name, axes in ROWS.items() if name in arrays}
    box_name = "norm_bb" if "norm_bb" in rows else "boxes"
    if box_name not in rows:
        raise ValueError("no boxes, and the features are no grid [rows, columns, F]")
    boxes, n = rows[box_name], len(rows["features"])
    if not 4 <= boxes.shape[1] <= 7:
        raise ValueError(f"{box_name} have the shape {list(boxes.shape)}, expected 4 to 7 columns")
    stored = max(n, len(boxes))
    if "num_boxes" in arrays:
        n = int(scalar(arrays, "num_boxes"))
        if not 1 <= n <= min(stored, len(rows["features"])):
            raise ValueError(f"num_boxes is {n}, and {len(rows['features'])} features are stored")
        rows = {name: values[:n] for name, values in rows.items()}
    for name, values in rows.items():
        if len(values) != n or n == 0:
            raise ValueError(f"{n} features and {len(values)} {name}, expected as many of each and at least one")
    no_box, no_feature = ~rows[box_name].any(1), ~rows["features"].any(1)
    no_conf = ~rows["conf"].astype(bool) if "conf" in rows else no_feature
    padding = no_feature | (no_box & no_conf)
    if (odd := no_box & ~padding).any():
        raise ValueError(f"box {odd.argmax()} is all zeros, and its features are not")
    if padding.all():
        raise ValueError(f"all {n} rows are padding: zeros")
    return {name: values[~padding] for name, values in rows.items()}, stored - n + int(padding.sum())


def _of_one_image(arrays: Mapping[str, Any], name: str, axes: int) -> np.ndarray:
    """An array with that many axes: those of length 1 in front and behind are left out. Raises ValueError for other shapes."""
    values = np.asarray(arrays[name])
    shape = list(values.shape)
    while len(shape) > axes and shape[0] == 1:
        shape = shape[1:]
    while len(shape) > axes and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != axes:
        expected = {1: "[n]", 2: "[n, columns]"}[axes]
        raise ValueError(f"{name} have the shape {list(values.shape)}, expected {expected} (or [1, n, ...]) of one image")
    return values.reshape(shape)


def scalar(arrays: Mapping[str, Any], name: str) -> float:
    """A number, which may be stored as an array of one. Raises ValueError for another."""
    values = np.asarray(arrays[name])
    if values.size != 1 or values.dtype.kind not in "fiu":
        raise ValueError(f"{name} has the shape {list(values.shape)} and type {values.dtype}, expected one number")
    return float(values.reshape(()))


def stored_boxes(arrays: Mapping[str, Any], rows: Arrays, size: tuple[float, float] | None = None) -> StoredBoxes:
    """The boxes of `image_rows`, and what is known of the image's size."""
    name = "norm_bb" if "norm_bb" in rows else "boxes"
    if "image_w" in arrays and "image_h" in arrays:
        size = scalar(arrays, "image_w"), scalar(arrays, "image_h")
    order = arrays.get("size_order", "named")
    return StoredBoxes(rows[name].astype(np.float64), size, order, name == "norm_bb")


# ---- grids -----------------------------------------------------------------------------------------------------------


def is_grid(arrays: Mapping[str, Any]) -> bool:
    """Whether the features are a map, which brings its own boxes: two axes of more than one cell beside the channels."""
    return np.ndim(arrays["features"]) in (3, 4) and not {"boxes", "norm_bb"} & arrays.keys()


def _grid(grid: np.ndarray, order: GridOrder) -> np.ndarray:
    """The map as [rows, columns, F].

    Raises:
        ValueError: a batch of several, regions without boxes, or nothing tells which axis the features are.
    """
    shape = list(grid.shape)
    if grid.ndim == 4:
        if len(grid) != 1:
            raise ValueError(f"features have the shape {shape}, expected a map of one image")
        grid = grid[0]
    elif len(grid) == 1 and order == "auto":
        raise ValueError(
            f"features have the shape {shape} and there are no boxes: regions without boxes, or a grid of one row? "
            "say which: --grid-order hwc or chw"
        )
    if order == "auto":
        first, middle, last = grid.shape
        if last >= max(first, middle) and not (first >= CHANNELS and last < 4 * first):
            order = "hwc"
        elif first <= max(middle, last) and first < CHANNELS:
            order = "hwc"
        elif first >= CHANNELS and first > middle and (last < CHANNELS or first >= 4 * last):
            order = "chw"
        else:
            raise ValueError(f"features have the shape {shape}: say which axis they are, --grid-order hwc or chw")
    return grid.transpose(1, 2, 0) if order == "chw" else grid


def window_side(rows: int, columns: int, max_bb: int) -> int:
    """The smallest k with which the k x k windows of a grid are at most `max_bb`; those at the edges may be cut off."""
    return next(k for k in range(1, rows + columns) if -(-rows // k) * -(-columns // k) <= max_bb)


def _pool_grid(grid: np.ndarray, max_bb: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of the windows (see `window_side`) of a map [rows, columns, F]: [n, F], and their boxes [n, 4]; a window at the
    edge averages what is there."""
    rows, columns = grid.shape[:2]
    k = window_side(rows, columns, max_bb)
    y, x = np.arange(0, rows, k), np.arange(0, columns, k)
    height, width = (k + y).clip(max=rows) - y, (k + x).clip(max=columns) - x
    sums = np.add.reduceat(np.add.reduceat(grid, y, 0), x, 1)
    y, x = (axis.ravel() for axis in np.meshgrid(y, x, indexing="ij"))
    corners = [x / columns, y / rows, (x + k).clip(max=columns) / columns, (y + k).clip(max=rows) / rows]
    means = sums / (height[:, None] * width)[..., None]
    return means.reshape(-1, grid.shape[2]), np.stack(corners, 1)


def _soft_labels(rows: Arrays, n: int, num_labels: int) -> np.ndarray | None:
    if num_labels == 0:
        return None
    if "soft_labels" in rows:
        return rows["soft_labels"].astype(np.float32)
    if "classes" not in rows or "class_conf" not in rows:
        return None
    classes = rows["classes"].astype(np.int64)
    if classes.min() < 0 or classes.max() + 1 >= num_labels:
        raise ValueError(f"class {classes.max()} does not fit {num_labels} soft labels with the background; see --num-labels")
    labels = np.zeros((n, num_labels), np.float32)
    labels[np.arange(n), classes + 1] = rows["class_conf"]
    labels[:, 0] = 1 - labels[:, 1:].sum(1)
    return labels
