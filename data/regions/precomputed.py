"""Region features that somebody else has extracted: the public files' forms, read into Regions.

`precomputed_images` takes

- bottom-up attention's TSV, without a header: 6 columns (image_id, image_w, image_h, num_boxes, boxes, features) or LXMERT's 10
  (img_id, img_h, img_w, objects_id, objects_conf, attrs_id, attrs_conf, num_boxes, boxes, features), arrays in base64;
- a folder of one file per image: `.npz` (UNITER's: norm_bb, features, conf, soft_labels; bottom-up attention's: x, bbox, image_w,
  image_h), `.h5` (data sets of these names), `.npy` (a map of grid features [rows, columns, F], merged by k x k
  means to at most max_bb regions; or [n, F] with the boxes in `STEM_boxes.npy` or `STEM.boxes.npy`);
- an HDF5 file of all images: groups named by image, or data sets `ID_features`, `ID_boxes`, `ID_cls_prob`.

Boxes may be in pixels where the file or `sizes` says how large the image is. Where there are no confidences they are 1: every box
counts. Soft labels are the file's own (background at position 0); or, from the likeliest class and its probability, that at
position class + 1 and the rest at the background; or none.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data.errors import BadInput
from data.regions.conversion import to_regions
from data.regions.db import Found, Problem, Regions
from data.regions.keys import key_of_image
from data.regions.photos import PICTURE_SUFFIXES
from data.storage.text_files import read_json

TSV = {
    6: ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features"),
    10: (
        "image_id", "image_h", "image_w", "classes", "class_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes", "features",
    ),
}  # fmt: skip
FEATURE_SUFFIXES = (".npz", ".npy", ".h5", ".hdf5")
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
THEIR_NAMES = [other for others in NAMES.values() for other in others]
Item = tuple[str, str, Callable[[], Regions]]  # name for reports, key, and what reads it


@dataclass
class PrecomputedImages:
    """The images of a file or folder of features, in its order; they can be gone through once.

    Args:
        count: how many images there are; None where only reading tells
        items: what they are
    """

    count: int | None
    items: Iterator[Item]

    def keys(self) -> Iterator[str]:
        return (key for _, key, _ in self.items)

    def found(self, is_wanted: Callable[[str, str], bool]) -> tuple[int | None, Iterator[Found]]:
        """See `model.extractors.extraction.Images`."""
        wanted = (item for item in self.items if is_wanted(*item[:2]))
        return self.count, (Found(name, key, _regions_or_problem(key, read)) for name, key, read in wanted)


def _regions_or_problem(key: str, read: Callable[[], Regions]) -> Regions | Problem:
    try:
        key.encode()
        return read()
    except Exception as error:  # numpy, zip and HDF5 raise almost anything on damaged files
        return Problem(f"{type(error).__name__}: {error}")


def precomputed_images(
    source: str,
    template: str = "{stem}.npz",
    num_labels: int = 1601,
    size_order: str = "wh",
    sizes: str | None = None,
    max_bb: int = 100,
) -> PrecomputedImages:
    """The images of a file or folder (see the module).

    Args:
        source: TSV or HDF5 file, or folder
        template: see `key_of_image`
        num_labels: width of the soft labels that are made from likeliest classes, with the background; 0 for none
        size_order: wh or hw, the order of width and height in a TSV of 6 columns (both are in circulation)
        sizes: JSON of image sizes, {name: [width, height]} or a COCO annotation file (its "images"), for files without
        max_bb: most regions of a map of grid features

    Raises:
        BadInput: no such file, an unknown form, h5py is missing.
    """
    path = Path(source)
    known = image_sizes(sizes) if sizes else {}

    def item(name: str, stem: str, read: Callable[[], dict[str, Any]]) -> Item:
        image = stem if PurePosixPath(stem).suffix.lower() in PICTURE_SUFFIXES else f"{stem}.jpg"
        size = known.get(stem_of(image))
        return name, key_of_image(image, template), lambda: to_regions(read(), num_labels, size, max_bb)

    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in FEATURE_SUFFIXES and not _is_companion(p))
        if not files:
            raise BadInput(f"--photos {source}: found no feature files, expected names ending in {', '.join(FEATURE_SUFFIXES)}")
        if any(p.suffix.lower() in (".h5", ".hdf5") for p in files):
            _h5py(source)
        return PrecomputedImages(len(files), (item(str(p), p.stem, lambda p=p: arrays_of_file(p)) for p in files))
    if not path.is_file():
        raise BadInput(f"--photos {source}: no such file or folder; give the features that are to be read")
    if path.suffix.lower() in (".h5", ".hdf5"):
        images = images_of_hdf5(path)
        items = (item(f"{source}:{i}", i, lambda m=m: arrays_of_hdf5(path, m)) for i, m in images.items())
        return PrecomputedImages(len(images), items)
    if path.suffix.lower() == ".tsv":
        return PrecomputedImages(None, _tsv_items(path, size_order, item))
    raise BadInput(f"--photos {source}: not a form that is read, expected .tsv, .h5, .hdf5 or a folder of {', '.join(FEATURE_SUFFIXES)}")


def stem_of(image: str) -> str:
    return key_of_image(image, "{stem}")


def image_sizes(path: str) -> dict[str, tuple[float, float]]:
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


def _tsv_items(path: Path, size_order: str, item: Callable[..., Item]) -> Iterator[Item]:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            columns = line.rstrip("\r\n").split("\t")
            if columns[0] in ("image_id", "img_id"):
                continue  # a header, which some copies have
            name = f"{path}: line {number}"

            def read(columns=columns) -> dict[str, Any]:
                return parse_tsv(columns, size_order)

            yield item(f"{name} ({columns[0][:60]})", columns[0], read)


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


def arrays_of_file(path: Path) -> dict[str, Any]:
    """The arrays of one image's file, under our names.

    Raises:
        OSError, ValueError: it is damaged or holds Python objects.
    """
    suffix = path.suffix.lower()
    if suffix in (".h5", ".hdf5"):
        return arrays_of_hdf5(path, None)
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return _under_our_names({name: name for name in archive.files}, lambda name: archive[name])
    arrays = {"features": np.load(path, allow_pickle=False)}
    for companion in (path.with_name(f"{path.stem}_boxes.npy"), path.with_name(f"{path.stem}.boxes.npy")):
        if companion.is_file():
            arrays["boxes"] = np.load(companion, allow_pickle=False)
    return arrays


def _is_companion(path: Path) -> bool:
    return path.suffix.lower() == ".npy" and path.stem.endswith(("_boxes", ".boxes", "_info"))


def _h5py(source: str | Path):
    try:
        import h5py  # optional
    except ImportError:
        raise BadInput(f"--photos {source}: reading HDF5 needs h5py, which is not installed: pip install h5py") from None
    return h5py


def images_of_hdf5(path: Path) -> dict[str, dict[str, str]]:
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
                if name in THEIR_NAMES:
                    continue  # image_features is all images' rows
                member = max((m for m in THEIR_NAMES if name.endswith(f"_{m}")), key=len, default="")
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


def arrays_of_hdf5(path: Path, members: Mapping[str, str] | None) -> dict[str, Any]:
    """The arrays of one image; all of a file's when `members` is None."""
    with _h5py(path).File(path, "r") as file:
        return _under_our_names(members or {name: name for name in file}, lambda where: file[where][()])


def _under_our_names(members: Mapping[str, str], read: Callable[[str], Any]) -> dict[str, Any]:
    found = {}
    for name, others in NAMES.items():
        for other in others:
            if other in members:
                found.setdefault(name, read(members[other]))
    return found
