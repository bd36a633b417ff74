"""Region features that somebody else has extracted: the public files' forms, read into Regions.

`read_precomputed` takes

- bottom-up attention's TSV, without a header: 6 columns (image_id, image_w, image_h, num_boxes, boxes, features) or LXMERT's 10
  (img_id, img_h, img_w, objects_id, objects_conf, attrs_id, attrs_conf, num_boxes, boxes, features), arrays in base64;
- a folder of one file per image: `.npz` (UNITER's: norm_bb, features, conf, soft_labels; bottom-up attention's: x, bbox, image_w,
  image_h), `.h5` (data sets of these names), `.npy` (a map of grid features [rows, columns, F], merged by k x k
  means to at most max_bb regions; or [n, F] with the boxes
  in `STEM_boxes.npy` or `STEM.boxes.npy`);
- an HDF5 file of all images: groups named by image, or data sets `ID_features`, `ID_boxes`, `ID_cls_prob`.

Boxes may be in pixels where the file or `sizes` says how large the image is. Where there are no confidences they are 1: every box
counts. Soft labels are the file's own (background at position 0); or, from the likeliest class and its probability, that at
position class + 1 and the rest at the background; or none.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data.captions.db import key_of_image
from data.errors import BadInput
from data.regions.db import Regions
from data.regions.photos import SUFFIXES as PICTURES
from data.storage.text_files import read_json

TSV = {
    6: ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features"),
    10: (
        "image_id", "image_h", "image_w", "classes", "class_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes", "features",
    ),
}  # fmt: skip
SUFFIXES = (".npz", ".npy", ".h5", ".hdf5")
NAMES = {  # ours: what others call it
    "features": ("features", "x", "feat", "image_features"),
    "norm_bb": ("norm_bb", "spatial_features", "norm_boxes"),
    "boxes": ("boxes", "bbox", "image_bb", "box"),
    "conf": ("conf", "confidence"),
    "soft_labels": ("soft_labels", "cls_prob"),
    "classes": ("classes", "objects_id", "objects"),
    "class_conf": ("class_conf", "objects_conf"),
    "image_w": ("image_w", "img_w", "image_width", "width"),
    "image_h": ("image_h", "img_h", "image_height", "height"),
}
MEMBERS = [other for others in NAMES.values() for other in others]
SLACK = 1 / 100  # of fractions: detectors round up to a pixel or two beyond the edge, half precision rounds sums
Item = tuple[str, str, Callable[[], Regions]]  # name for reports, key, and what reads it


def read_precomputed(
    source: str,
    template: str = "{stem}.npz",
    num_labels: int = 1601,
    size_order: str = "wh",
    sizes: str | None = None,
    max_bb: int = 100,
) -> tuple[int | None, Iterator[Item]]:
    """The images of a file or folder (see the module), one after the other; the third member raises where one is bad.

    Args:
        source: TSV or HDF5 file, or folder
        template: see `key_of_image`
        num_labels: width of the soft labels that are made from likeliest classes, with the background; 0 for none
        size_order: wh or hw, the order of width and height in a TSV of 6 columns (both are in circulation)
        sizes: JSON of image sizes, {name: [width, height]} or a COCO annotation file (its "images"), for files without
        max_bb: most regions of a map of grid features

    Returns:
        How many images, None where only reading tells, and the images.

    Raises:
        BadInput: no such file, an unknown form, h5py is missing.
    """
    path = Path(source)
    known = read_sizes(sizes) if sizes else {}

    def make(name: str, stem: str, read: Callable[[], dict[str, Any]]) -> Item:
        image = stem if PurePosixPath(stem).suffix.lower() in PICTURES else f"{stem}.jpg"
        size = known.get(stem_of(image))
        return name, key_of_image(image, template), lambda: to_regions(read(), num_labels, size, max_bb)

    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and not _is_companion(p))
        if not files:
            raise BadInput(f"--photos {source}: found no feature files, expected names ending in {', '.join(SUFFIXES)}")
        if any(p.suffix.lower() in (".h5", ".hdf5") for p in files):
            _h5py(source)
        return len(files), (make(str(p), p.stem, lambda p=p: read_file(p)) for p in files)
    if not path.is_file():
        raise BadInput(f"--photos {source}: no such file or folder; give the features that are to be read")
    if path.suffix.lower() in (".h5", ".hdf5"):
        images = list_hdf5(path)
        return len(images), (make(f"{source}:{i}", i, lambda m=m: read_hdf5(path, m)) for i, m in images.items())
    if path.suffix.lower() == ".tsv":
        return None, _read_tsv(path, size_order, make)
    raise BadInput(f"--photos {source}: not a form that is read, expected .tsv, .h5, .hdf5 or a folder of {', '.join(SUFFIXES)}")


def stem_of(image: str) -> str:
    return key_of_image(image, "{stem}")


def read_sizes(path: str) -> dict[str, tuple[float, float]]:
    """Name without folders and extension (and COCO's id) → width, height."""
    content = read_json(path, "give --sizes {name: [width, height]} or COCO's images in JSON")
    try:
        if "images" in content:
            found = {}
            for image in content["images"]:
                size = image["width"], image["height"]
                found |= {stem_of(image["file_name"]): size, str(image["id"]): size}
            return found
        return {stem_of(name): (float(width), float(height)) for name, (width, height) in content.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInput(
            f"--sizes {path}: holds other values ({error!r}), expected {{name: [width, height]}} or COCO's images"
        ) from None


# ---- files → arrays --------------------------------------------------------------------------------------------------


def _read_tsv(path: Path, size_order: str, make: Callable) -> Iterator[Item]:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            columns = line.rstrip("\r\n").split("\t")
            if columns[0] in ("image_id", "img_id"):
                continue  # a header, which some copies have
            name = f"{path}: line {number}"

            def read(columns=columns) -> dict[str, Any]:
                return parse_tsv(columns, size_order)

            yield make(f"{name} ({columns[0][:60]})", columns[0], read)


def parse_tsv(columns: list[str], size_order: str = "wh") -> dict[str, Any]:
    """The values of one line, under our names.

    Raises:
        ValueError: another number of columns, text that is not base64, arrays that do not fit num_boxes.
    """
    if len(columns) not in TSV:
        raise ValueError(f"{len(columns)} columns, expected {' or '.join(map(str, TSV))}")
    values: dict[str, Any] = dict(zip(TSV[len(columns)], columns))
    if len(columns) == 6 and size_order == "hw":
        values["image_w"], values["image_h"] = values["image_h"], values["image_w"]
    values["image_w"], values["image_h"] = float(values["image_w"]), float(values["image_h"])
    n = int(values["num_boxes"])
    if n < 1:
        raise ValueError(f"num_boxes is {n}, expected at least 1")
    shapes = {"boxes": (n, 4), "features": (n, -1)}
    for name in ("boxes", "features", "class_conf", "classes"):
        if name in values:
            try:
                data = base64.b64decode(values[name], validate=True)
                array = np.frombuffer(data, "<i8" if name == "classes" else "<f4")
                values[name] = array.reshape(shapes.get(name, n))
            except (binascii.Error, ValueError) as error:
                raise ValueError(f"{name}: {error}") from None
    return values


def read_file(path: Path) -> dict[str, Any]:
    """The arrays of one image's file, under our names.

    Raises:
        OSError, ValueError: it is damaged or holds Python objects.
    """
    suffix = path.suffix.lower()
    if suffix in (".h5", ".hdf5"):
        return read_hdf5(path, None)
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return _ours({name: name for name in archive.files}, lambda name: archive[name])
    arrays = {"features": np.load(path, allow_pickle=False)}
    for companion in (path.with_name(f"{path.stem}_boxes.npy"), path.with_name(f"{path.stem}.boxes.npy")):
        if companion.is_file():
            arrays["boxes"] = np.load(companion, allow_pickle=False)
    return arrays


def _is_companion(path: Path) -> bool:
    return path.suffix.lower() == ".npy" and path.stem.endswith(("_boxes", ".boxes", "_info"))


def _h5py(source: str | Path):
    try:
        import h5py
    except ImportError:
        raise BadInput(f"--photos {source}: reading HDF5 needs h5py, which is not installed: pip install h5py") from None
    return h5py


def list_hdf5(path: Path) -> dict[str, dict[str, str]]:
    """Image → {name of an array: where it is in the file}.

    Raises:
        BadInput: no HDF5 file, or none of the forms of the module.
    """
    h5py = _h5py(path)
    try:
        with h5py.File(path, "r") as file:
            images: dict[str, dict[str, str]] = {}
            for name, node in file.items():
                if isinstance(node, h5py.Group):
                    images[name] = {member: f"{name}/{member}" for member in node}
                    continue
                if name in MEMBERS:
                    continue  # image_features is all images' rows
                member = max((m for m in MEMBERS if name.endswith(f"_{m}")), key=len, default="")
                image = name.removesuffix(f"_{member}")
                if image and member:
                    images.setdefault(image, {})[member] = name
    except OSError as error:
        raise BadInput(f"--photos {path}: cannot be read as HDF5 ({error})") from None
    images = {image: members for image, members in images.items() if set(NAMES["features"]) & set(members)}
    if not images:
        raise BadInput(
            f"--photos {path}: found no group with features and no data set named ID_features; if images are rows of "
            "one array, write one file per image"
        )
    return images


def read_hdf5(path: Path, members: Mapping[str, str] | None) -> dict[str, Any]:
    """The arrays of one image; all of a file's when `members` is None."""
    with _h5py(path).File(path, "r") as file:
        return _ours(members or {name: name for name in file}, lambda where: file[where][()])


def _ours(members: Mapping[str, str], read: Callable[[str], Any]) -> dict[str, Any]:
    found = {}
    for name, others in NAMES.items():
        for other in others:
            if other in members:
                found.setdefault(name, read(members[other]))
    return found


# ---- arrays → Regions ------------------------------------------------------------------------------------------------


def to_regions(
    arrays: Mapping[str, Any], num_labels: int, size: tuple[float, float] | None = None, max_bb: int = 100
) -> Regions:
    """What a file holds of one image → what the database stores, most confident first (equal ones as in the file).

    Args:
        arrays: under our names; see NAMES
        num_labels: as in `read_precomputed`
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


def _pool_grid(grid: np.ndarray, max_bb: int) -> tuple[np.ndarray, np.ndarray]:
    """Means of the k x k windows of a map [rows, columns, F], k the smallest with at most `max_bb` of them, and their
    boxes [n, 4]; a window at the edge averages what is there."""
    rows, columns = grid.shape[:2]
    k = next(k for k in range(1, rows + columns) if -(-rows // k) * -(-columns // k) <= max_bb)
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
