"""RegionDB: image region features in the UNITER image-DB layout; `data.regions.writer` writes them.

A database folder ``img_db`` holds one LMDB per way of choosing boxes::

    feat_th{conf_th}_max{max_bb}_min{min_bb}[_compressed]/   boxes with confidence above conf_th
    feat_numbb{n}[_compressed]/                              exactly n boxes (conf_th -1)
    all[_compressed]/                                        every box; read only when the next file is missing
    nbb_th{conf_th}_max{max_bb}_min{min_bb}.json             key -> number of boxes to use

Key: picture name with ``.npz``, UTF-8. ``__keys__``: JSON list of all keys. Value: ``features`` [n, F], ``norm_bb``
[n, 6], ``conf`` [n] and ``soft_labels`` [n, C], fp16, as msgpack-numpy maps or as what `numpy.savez_compressed` writes. Beside
the LMDB, in databases of ours: ``checksums.npz`` of every record (`data.storage.record_sums`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from data.downloads.hub import DATASET, local_folder
from data.errors import BadInput
from data.progress import ProgressBar
from data.regions.arrays import PackedRegions, StoredPictures
from data.regions.arrays import Regions as Regions  # what a database gives
from data.regions.codec import MEMBERS, plain_rows
from data.regions.extractor_record import PRECOMPUTED, read_extractor
from data.regions.records import decoded_arrays, stored_record
from data.storage.columns import Numbers, Strings, Table, json_parts, load_columns, string_arrays
from data.storage.contents import content_digest
from data.storage.lmdb_env import Records, damage_is_bad_input
from data.storage.record_sums import FILE as SUMS_FILE
from data.storage.record_sums import SUM, FirstReads, read_sums
from data.storage.regular_files import is_there
from data.storage.shapes import check_shape
from data.storage.text_files import is_utf8, parse_json, read_json

_FOLDER = re.compile(
    r"(?:all|feat_numbb(?P<num_bb>\d+)|feat_th(?P<conf_th>\d[^_]*)_max(?P<max_bb>\d+)_min(?P<min_bb>\d+))"
    r"(?P<compressed>_compressed)?"
)

SoftLabels = Literal["keep", "none"]  # in records


@dataclass
class BoxOptions:
    """Which boxes of an image DB are used; the values name its folder (UNITER's layout).

    Args:
        conf_th: boxes above this confidence count; -1 takes the first num_bb
        max_bb: most boxes of an image
        min_bb: fewest boxes of an image
        num_bb: boxes of an image when conf_th is -1
    """

    conf_th: float = 0.2
    max_bb: int = 100
    min_bb: int = 10
    num_bb: int = 36


@dataclass
class BoxChoice:
    """Box settings that somebody gives; those that are left out come from a checkpoint.

    Args:
        conf_th: boxes above this confidence count; -1 takes the first num_bb
        max_bb: most boxes of an image
        min_bb: fewest boxes of an image
        num_bb: boxes of an image when conf_th is -1
    """

    conf_th: float | None = None
    max_bb: int | None = None
    min_bb: int | None = None
    num_bb: int | None = None

    def settled(self, kept: BoxOptions) -> BoxOptions:
        """``kept``, but for what is given."""
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return dataclasses.replace(kept, **given)


@dataclass(frozen=True)
class Problem:
    """Why a picture has no regions, in words for a report."""

    reason: str


class Found(NamedTuple):
    """What came of one picture.

    Args:
        name: where it is, for reports
        key: in the image DB
        regions: its regions, or why there are none
        padding: rows of zeros that were left out of them
    """

    name: str
    key: str
    regions: Regions | Problem
    padding: int = 0


def count_boxes(conf: np.ndarray, boxes: BoxOptions) -> int:
    """Number of boxes to use: clamp(count(conf > conf_th), min_bb, max_bb), or num_bb; never more than there are."""
    if boxes.conf_th == -1:
        return min(boxes.num_bb, len(conf))
    return min(max(int((conf > boxes.conf_th).sum()), boxes.min_bb), boxes.max_bb, len(conf))


def layout_names(boxes: BoxOptions) -> tuple[str, str | None]:
    """Names of the LMDB folder (without ``_compressed``) and of the box-count file."""
    if boxes.conf_th == -1:
        return f"feat_numbb{boxes.num_bb}", None
    suffix = f"th{boxes.conf_th}_max{boxes.max_bb}_min{boxes.min_bb}"
    return f"feat_{suffix}", f"nbb_{suffix}.json"


class Layout(NamedTuple):
    """What the name of an LMDB folder says.

    Args:
        boxes: which boxes of a picture it holds; None for ``all`` of them
        compressed: how its records are encoded
    """

    boxes: BoxOptions | None
    compressed: bool


def layout_of(name: str) -> Layout | None:
    """What an LMDB folder's name says; None for a name of another kind."""
    match = _FOLDER.fullmatch(name)
    if match is None:
        return None
    compressed = match["compressed"] is not None
    if match["num_bb"]:
        return Layout(BoxOptions(conf_th=-1, num_bb=int(match["num_bb"])), compressed)
    if match["conf_th"]:
        boxes = BoxOptions(float(match["conf_th"]), int(match["max_bb"]), int(match["min_bb"]))
        return Layout(boxes, compressed)
    return Layout(None, compressed)


def read_keys(folder: Path) -> list[str]:
    """Keys of the pictures in one LMDB folder: those of ``__keys__``, or without it all that are stored."""
    txn = Records(folder).txn
    with damage_is_bad_input(folder):
        value = txn.get(b"__keys__")
        if value is None:
            return [bytes(key).decode() for key in txn.cursor().iternext(values=False)]
        if (sums := read_sums(folder, txn)) is not None:
            sums.check(folder, "__keys__", value)
        text = bytes(value).decode()
    keys = parse_json(text, f"{folder}: key __keys__", "build the database again")
    check_shape(keys, [str], f"{folder}: key __keys__", "build the database again")
    return keys


def stored_keys(img_db: str | Path) -> set[str]:
    """Keys of all LMDB folders of an image DB, whatever boxes they hold."""
    folders = [path.parent for path in sorted(local_folder(img_db, DATASET).glob("*/data.mdb")) if layout_of(path.parent.name)]
    if not folders:
        raise BadInput(f"{img_db}: no image DB, expected a folder such as feat_th0.2_max100_min10 in it")
    return {key for folder in folders for key in read_keys(folder)}


def find_layout(img_db: str | Path, boxes: BoxOptions) -> Path:
    """The LMDB folder of an image DB that holds these boxes, or else all of them. Raises BadInput where there is none."""
    return _find(Path(img_db), [layout_names(boxes)[0], "all"])


def _find(img_db: Path, names: list[str]) -> Path:
    """The first of these LMDB folders that is there; of the two layouts plain comes first, since it is read faster."""
    folders = [img_db / (name + suffix) for name in names for suffix in ("", "_compressed")]
    for folder in folders:
        if folder.is_dir():
            return folder
    found = sorted(path.name for path in img_db.iterdir()) if img_db.is_dir() else "no such folder"
    raise BadInput(
        f"{img_db}: no image DB, expected {' or '.join(f.name for f in folders)}, found {found}; "
        "check the path and conf_th, max_bb, min_bb, num_bb"
    )


class RegionDB:
    """Read an image DB. Picklable; usable in forked and spawned DataLoader workers.

    >>> regions = RegionDB("regions")
    >>> image = regions[regions.keys[0]]
    >>> image.features.shape == (regions.num_regions[regions.keys[0]], regions.feature_dim), image.positions.shape[1]
    (True, 7)

    Args:
        img_db: folder that holds the LMDB folder and the box-count file
        boxes: which boxes of a picture are used; None for UNITER's own choice

    Attributes:
        keys: of its pictures; like the next one a view of `data.storage.columns`
        num_regions: key -> number of boxes to use
        made_by: the extractor of its regions; None where nothing says it

    Raises:
        BadInput: the database is missing, truncated or empty, or its parts disagree.
    """

    def __init__(self, img_db: str | Path, boxes: BoxOptions | None = None):
        self.img_db = local_folder(img_db, DATASET)
        self.boxes = boxes or BoxOptions()
        name, nbb_name = layout_names(self.boxes)
        nbb_path = self.img_db / nbb_name if nbb_name else None
        candidates = [name]
        if nbb_path and not is_there(nbb_path):
            nbb_path = None
            candidates.append("all")
        self.folder = _find(self.img_db, candidates)
        self.compressed = self.folder.name.endswith("_compressed")
        self._records = Records(self.folder, keep_views=not self.compressed)
        record = read_extractor(self.folder)
        self.made_by = record if record and record.name != PRECOMPUTED else None
        self._counted_in = nbb_path.name if nbb_path else self.folder.name  # where the number of boxes to use stands

        sources = [path for path in (self.folder / "data.mdb", nbb_path, self.folder / SUMS_FILE) if path and is_there(path)]
        build = functools.partial(self._build, nbb_path)
        self._first_reads: FirstReads | None = None
        rule = "_".join(map(str, dataclasses.astuple(self.boxes)))
        arrays = load_columns(self.folder, f"columns_{rule}", sources, build, rows="count")
        self.keys = Strings(arrays, "key")
        if SUM in arrays:
            self._first_reads = FirstReads(self.folder, arrays)
        if (none := arrays["count"] < 1).any():
            key, source = self.keys[int(none.argmax())], nbb_path or self.folder
            raise BadInput(
                f"{source}: key {key!r} has {arrays['count'][none.argmax()]} boxes to use, expected at least 1; "
                + ("delete the file to have the counts computed" if nbb_path else "extract this picture again")
            )
        self._counts = Numbers(arrays["count"])
        self.num_regions = Table(self.keys, self._counts)
        first = self._decode(self.keys[0], MEMBERS, 0)
        self.feature_dim: int = first["features"].shape[1]
        self.num_labels: int = first["soft_labels"].shape[1] if "soft_labels" in first else 0
        self._records.check_current()

    def _build(self, nbb_path: Path | None) -> dict[str, np.ndarray]:
        """The keys, and of each the number of boxes to use: as columns."""
        keys = list(dict.fromkeys(read_keys(self.folder)))
        if odd := next((key for key in keys if not is_utf8(key)), None):
            raise BadInput(f"{self.folder}: key {odd!a} of __keys__ is not UTF-8 text; build the database again")
        if not keys:
            raise BadInput(f"{self.folder}: the database is empty; extract region features into it first")
        arrays = string_arrays("key", keys)
        if (sums := read_sums(self.folder, self._records.txn)) is not None:
            arrays |= sums.columns(Strings(arrays, "key"), self.folder)
            self._first_reads = FirstReads(self.folder, arrays)
            sums.say_other_files([*self.folder.glob("*.json"), *filter(None, [nbb_path])])
        if nbb_path:
            counts: Sequence[int] | np.ndarray = self._read_nbb(nbb_path, keys)
        elif self.boxes.conf_th == -1:
            counts = [self.boxes.num_bb] * len(keys)
        else:
            bar = ProgressBar(keys, f"counting boxes in {self.folder}", unit="img")
            counts = [count_boxes(self._decode(key, ("conf",), row)["conf"], self.boxes) for row, key in enumerate(bar)]
        return arrays | {"count": np.array(counts, np.int32)}

    def _read_nbb(self, path: Path, keys: list[str]) -> np.ndarray:
        try:
            counts = read_json(path, "delete it to have the box counts computed")
            found = [counts[key] for key in keys]
            odd = next((key for key, count in zip(keys, found) if type(count) is not int), None)
            if odd is not None:
                raise ValueError(f"{odd!r} has {counts[odd]!r}, expected a whole number")
            return np.array(found, np.int32)
        except KeyError as error:
            raise BadInput(
                f"{path}: no box count for {error}, which is in {self.folder.name}; "
                "delete the file to have the counts computed"
            ) from None
        except BadInput:
            raise
        except (TypeError, ValueError, OverflowError) as error:
            raise BadInput(f"{path}: no box counts ({error}); delete it to have the box counts computed") from None

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: str) -> bool:
        return key in self.keys

    def __getitem__(self, key: str) -> Regions:
        return self.get(key)

    def get(self, key: str, soft_labels: bool = True, row: int | None = None) -> Regions:
        """The regions of one picture, trimmed to its box count; without `soft_labels` those are not decoded.

        Args:
            row: of the picture in `keys`, when the caller has looked it up

        Raises:
            BadInput: the key is absent or its value is damaged or of another width than the database.
        """
        row = self.keys.find(key) if row is None else row
        if row < 0:
            raise BadInput(f"{self.folder}: no picture {key!r}; extract its region features or leave it out")
        count = int(self._counts.array[row])
        arrays = self._decode(key, MEMBERS if soft_labels and self.num_labels else MEMBERS[:3], row)
        features, boxes = arrays["features"], arrays["norm_bb"]
        rows = len(features)
        labels = arrays.get("soft_labels")
        widths = (features.shape[1:], boxes.shape, arrays["conf"].shape)
        if widths != ((self.feature_dim,), (rows, 6), (rows,)) or rows == 0:
            raise BadInput(
                f"{self.folder}: key {key!r} has features {features.shape}, norm_bb {boxes.shape} and conf "
                f"{widths[2]}, expected [n, {self.feature_dim}], [n, 6] and [n], n > 0; extract this picture again"
            )
        if labels is not None:
            self._check_labels(key, labels, rows)
        if rows < count and count != self.boxes.min_bb:  # UNITER's tools write min_bb for a picture of fewer boxes
            raise BadInput(
                f"{self.folder}: key {key!r} stores {rows} boxes, and {count} are to be used ({self._counted_in}); extract this "
                "picture again, or delete a box-count file to have the counts computed"
            )
        labels = labels[:count] if labels is not None else None
        return Regions(features[:count], boxes[:count], arrays["conf"][:count], labels)

    def pictures(self, keys: Sequence[str]) -> StoredPictures:
        """Some pictures, to be read into one array."""
        rows = self.keys.match(keys)
        return StoredPictures(self, keys, rows, self._counts.array[rows])

    def read_into(self, packed: PackedRegions, key: str, row: int) -> None:
        """Add to ``packed`` what `get` gives without soft labels. Raises BadInput as it does."""
        if not self.compressed and row >= 0:
            value, count = self._record(key, row, only_head=True), self._counts.array.item(row)
            stored = plain_rows(value)
            if stored is not None and stored.width == self.feature_dim and stored.count >= count:
                packed.add_stored(value, stored, count)
                return
        packed.add(self.get(key, False, row))  # says what is wrong with the picture, if anything is

    def soft_labels(self, key: str, row: int) -> np.ndarray:
        """The soft labels fp16 [n, C] of the picture at ``row``, trimmed to its box count. Raises BadInput as `get` does, and where
        there are none."""
        arrays = self._decode(key, ("norm_bb", "soft_labels"), row)
        self._check_labels(key, arrays["soft_labels"], len(arrays["norm_bb"]))
        return arrays["soft_labels"][: self._counts.array.item(row)]

    def _check_labels(self, key: str, labels: np.ndarray, rows: int) -> None:
        if labels.shape != (rows, self.num_labels):
            raise BadInput(
                f"{self.folder}: key {key!r} has soft_labels {labels.shape}, expected ({rows}, {self.num_labels}); "
                "extract this picture again"
            )

    def _decode(self, key: str, members: tuple[str, ...], row: int) -> dict[str, np.ndarray]:
        """The asked members that are stored, all rows, fp16."""
        value = self._record(key, row, only_head="soft_labels" not in members)
        return decoded_arrays(value, self.folder, key, self.compressed, members)

    def _record(self, key: str, row: int, only_head: bool) -> memoryview:
        """The bytes of a record, compared with their checksum; with ``only_head`` those before the soft labels."""
        value = stored_record(self._records.txn, self.folder, key)
        if self._first_reads is not None:
            self._first_reads.check(row, key, value, only_head)
        return value

    def fingerprint(self) -> str:
        """Short hex that changes with any record and with the boxes that are used; the same for a copy of the folder."""
        digest = hashlib.blake2b(content_digest(self.folder).encode(), digest_size=8)
        self._records.check_current()
        for part in json_parts(self.num_regions):
            digest.update(part)
        return digest.hexdigest()
