"""Region features that somebody else has extracted: the public files' forms, read into Regions.

`PrecomputedImages` takes

- bottom-up attention's TSV, without a header: 6 columns (image_id, image_w, image_h, num_boxes, boxes, features) or LXMERT's 10
  (img_id, img_h, img_w, objects_id, objects_conf, attrs_id, attrs_conf, num_boxes, boxes, features), arrays in base64;
- a folder of one file per image: `.npz` (UNITER's: norm_bb, features, conf, soft_labels; bottom-up attention's: x, bbox, image_w,
  image_h), `.h5` (data sets of these names), `.npy` (a map of grid features [rows, columns, F] or [F, rows, columns], merged by k x k
  means to at most max_bb regions; or [n, F] with the boxes in `STEM_boxes.npy` or `STEM.boxes.npy`);
- an HDF5 file of all images: groups named by image, or data sets `ID_features`, `ID_boxes`, `ID_cls_prob`.

Boxes may be fractions, or pixels where the file or `sizes` says how large the image is: the form is recognised, of the whole source
(`data.regions.box_forms`). Where there are no confidences they are 1: every box counts. Soft labels are the file's own (background at
position 0); or, from the likeliest class and its probability, that at position class + 1 and the rest at the background; or none.
"""

from __future__ import annotations

import base64
import binascii
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, get_args

import numpy as np

from data.errors import BadInput, reason_of
from data.regions.box_forms import BoxForm, StoredBoxes, recognise_form
from data.regions.conversion import Conversion, GridOrder, image_rows, is_grid, stored_boxes, to_regions
from data.regions.db import Found, Problem
from data.regions.keys import key_of_image
from data.regions.photos import PICTURE_SUFFIXES
from data.storage.arrays import read_array, read_arrays
from data.storage.inflating import check_inflated
from data.storage.regular_files import check_regular, open_regular
from data.storage.text_files import bounded_lines, read_json

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
    "num_boxes": ("num_boxes", "num_bbox", "num_bb", "nbb", "n_boxes", "num_box"),
}
THEIR_NAMES = [other for others in NAMES.values() for other in others]


@dataclass
class PrecomputedOptions:
    """How features of somebody else are read.

    Args:
        image_key: see `key_of_image`
        form: of the boxes, as far as the user says it
        num_labels: width of the soft labels that are made from likeliest classes, with the background; 0 for none
        sizes: JSON of image sizes, {name: [width, height]} or a COCO annotation file (its "images"), for files without
        max_bb: most regions of a map of grid features
        grid_order: axes of such a map
    """

    image_key: str = "{stem}.npz"
    form: BoxForm = field(default_factory=BoxForm)
    num_labels: int = 1601
    sizes: str | None = None
    max_bb: int = 100
    grid_order: GridOrder = "auto"

    def __post_init__(self) -> None:
        if self.num_labels < 0 or self.num_labels == 1:
            raise BadInput(f"--num-labels: found {self.num_labels}, expected 0 (none) or at least 2 (with background)")
        if self.grid_order not in get_args(GridOrder):
            raise BadInput(f"--grid-order: found {self.grid_order}, expected one of {', '.join(get_args(GridOrder))}")


class Item(NamedTuple):
    """An image of a source: its name for reports, its stem, and what reads its arrays (under our names)."""

    name: str
    stem: str
    read: Callable[[], dict[str, Any]]


class PrecomputedImages:
    """The images of a file or folder of features, in its order.

    Args:
        source: TSV or HDF5 file, or folder
        options: how it is read

    Attributes:
        count: how many images there are; None where only reading tells

    Raises:
        BadInput: no such file, an unknown form, h5py is missing.
    """

    def __init__(self, source: str, options: PrecomputedOptions):
        self._source, self._options = source, options
        self._sizes = image_sizes(options.sizes) if options.sizes else {}
        self.count, self._items = source_items(source)

    def keys(self) -> Iterator[str]:
        return (self._key(item) for item in self._items())

    def found(self, is_wanted: Callable[[str, str], bool]) -> tuple[int | None, Iterator[Found]]:
        """See `model.extractors.extraction.Images`.

        Raises:
            BadInput: the form of the boxes cannot be told.
        """
        reading = self._conversion()
        items = ((item, self._key(item)) for item in self._items())
        wanted = ((item, key) for item, key in items if is_wanted(item.name, key))
        return self.count, (self._regions_or_problem(item, key, reading) for item, key in wanted)

    def _key(self, item: Item) -> str:
        return key_of_image(_picture_name(item.stem), self._options.image_key)

    def _size(self, item: Item) -> tuple[float, float] | None:
        return self._sizes.get(stem_of(_picture_name(item.stem)))

    def _regions_or_problem(self, item: Item, key: str, reading: Conversion) -> Found:
        try:
            key.encode()
            return Found(item.name, key, *to_regions(item.read(), reading, self._size(item)))
        except Exception as error:  # numpy, zip and HDF5 raise almost anything on damaged files
            return Found(item.name, key, Problem(f"{type(error).__name__}: {error}"))

    def _conversion(self) -> Conversion:
        options = self._options
        forms = [self._form(member) for member in ("boxes", "norm_bb")]
        return Conversion(*forms, options.num_labels, options.max_bb, options.grid_order)

    def _form(self, member: str) -> BoxForm:
        """The form of the boxes in arrays of one name, which is told to the user."""
        form = recognise_form(partial(self._stored_boxes, member), self._options.form, f"--photos {self._source}")
        if any(True for _ in self._stored_boxes(member)):
            print(f"{self._source}: {member} are read as {form}", file=sys.stderr)
        return form

    def _stored_boxes(self, member: str) -> Iterator[tuple[str, StoredBoxes]]:
        """Name and boxes of the images that have such an array; those that cannot be read are left to who reports them."""
        for item in self._items():
            try:
                arrays = item.read()
                if is_grid(arrays) or (member == "boxes") == ("norm_bb" in arrays):
                    continue
                boxes = stored_boxes(arrays, image_rows(arrays)[0], self._size(item))
            except Exception:  # as above
                continue
            yield item.name, boxes


def _picture_name(stem: str) -> str:
    return stem if PurePosixPath(stem).suffix.lower() in PICTURE_SUFFIXES else f"{stem}.jpg"


def source_items(source: str) -> tuple[int | None, Callable[[], Iterator[Item]]]:
    """How many images a file or folder has, where that is known, and what goes through them. Raises BadInput as above."""
    path = Path(source)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in FEATURE_SUFFIXES and not _is_companion(p))
        if not files:
            raise BadInput(f"--photos {source}: found no feature files, expected names ending in {', '.join(FEATURE_SUFFIXES)}")
        if any(p.suffix.lower() in (".h5", ".hdf5") for p in files):
            _h5py(source)
        return len(files), lambda: (Item(str(p), p.stem, partial(arrays_of_file, p)) for p in files)
    if not path.is_file():
        raise BadInput(f"--photos {source}: no such file or folder; give the features that are to be read")
    if path.suffix.lower() in (".h5", ".hdf5"):
        images = images_of_hdf5(path)
        return len(images), lambda: (Item(f"{source}:{i}", i, partial(arrays_of_hdf5, path, m)) for i, m in images.items())
    if path.suffix.lower() == ".tsv":
        return None, partial(_tsv_items, path)
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


def _tsv_items(path: Path) -> Iterator[Item]:
    with open_regular(path, "r", encoding="utf-8-sig", errors="replace", newline="\n") as file:
        for number, line in enumerate(bounded_lines(file, path), 1):
            columns = line.rstrip("\r\n").split("\t")
            if columns[0] in ("image_id", "img_id"):
                continue  # a header, which some copies have
            yield Item(f"{path}: line {number} ({columns[0][:60]})", columns[0], partial(parse_tsv, columns))


def parse_tsv(columns: list[str]) -> dict[str, Any]:
    """The values of one line, under our names.

    Raises:
        ValueError: another number of columns, text that is not base64, arrays that do not fit num_boxes.
    """
    if len(columns) not in TSV:
        raise ValueError(f"{len(columns)} columns, expected {' or '.join(map(str, TSV))}")
    values: dict[str, Any] = dict(zip(TSV[len(columns)], columns))
    values["image_w"], values["image_h"] = float(values["image_w"]), float(values["image_h"])
    values["size_order"] = "unknown" if len(columns) == 6 else "known"  # copies of the former differ in it
    values["num_boxes"] = n = int(values["num_boxes"])
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
        arrays = read_arrays(path, "extract it again", THEIR_NAMES)
        return _under_our_names({name: name for name in arrays}, lambda name: arrays[name])
    arrays = {"features": read_array(path, "extract it again")}
    for companion in (path.with_name(f"{path.stem}_boxes.npy"), path.with_name(f"{path.stem}.boxes.npy")):
        if companion.is_file():
            arrays["boxes"] = read_array(companion, "extract it again")
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
    check_regular(path)
    try:
        with h5py.File(path, "r") as file:
            images: dict[str, dict[str, str]] = {}
            for name in file:
                node = _own_node(h5py, file, name)
                if isinstance(node, h5py.Group):
                    images[name] = {member: f"{name}/{member}" for member in node}
                    continue
                if name in THEIR_NAMES:
                    continue  # image_features is all images' rows
                member = max((m for m in THEIR_NAMES if name.endswith(f"_{m}")), key=len, default="")
                image = name.removesuffix(f"_{member}")
                if image and member:
                    images.setdefault(image, {})[member] = name
    except Exception as error:  # of a damaged file h5py raises OSError, KeyError, RuntimeError and more
        raise BadInput(f"--photos {path}: cannot be read as HDF5 ({reason_of(error)})") from None
    images = {image: members for image, members in images.items() if set(NAMES["features"]) & set(members)}
    if not images:
        raise BadInput(
            f"--photos {path}: found no group with features and no data set named ID_features; if images are rows of "
            "one array, write one file per image"
        )
    return images


def arrays_of_hdf5(path: Path, members: Mapping[str, str] | None) -> dict[str, Any]:
    """The arrays of one image; all of a file's when `members` is None."""
    h5py = _h5py(path)
    check_regular(path)
    with h5py.File(path, "r") as file:
        return _under_our_names(members or {name: name for name in file}, lambda where: _hdf5_array(h5py, file, where))


def _own_node(h5py: Any, group: Any, name: str) -> Any:
    """A group or data set; None for a link to another file, which is not followed."""
    is_own = isinstance(group, h5py.Group) and not isinstance(group.get(name, getlink=True), h5py.ExternalLink)
    return group[name] if is_own else None


def _hdf5_array(h5py: Any, file: Any, where: str) -> np.ndarray:
    """A data set that is in the file itself, and no larger than its bytes warrant. ValueError for any other."""
    data = file
    for name in where.split("/"):
        data = _own_node(h5py, data, name)
    if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
        raise ValueError(f"{where} is no array of this file")
    check_inflated(data.size * data.dtype.itemsize, data.id.get_storage_size(), where)
    return data[()]


def _under_our_names(members: Mapping[str, str], read: Callable[[str], Any]) -> dict[str, Any]:
    found = {}
    for name, others in NAMES.items():
        for other in others:
            if other in members:
                found.setdefault(name, read(members[other]))
    return found
