"""RegionWriter: writes the image databases that `data.regions.db` reads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import lmdb
import numpy as np

from data.errors import BadInput
from data.progress import ProgressBar
from data.regions.codec import MEMBERS, bytes_before_labels, encode_compressed, encode_plain
from data.regions.db import BoxOptions, Regions, count_boxes, layout_names, layout_of
from data.regions.extractor_record import FILE as EXTRACTOR_FILE
from data.regions.extractor_record import ExtractorRecord, described_apart, read_extractor
from data.regions.pictures import FILE as PICTURES_FILE
from data.regions.pictures import Pictures
from data.regions.records import stored_arrays
from data.storage.atomic import beside
from data.storage.lmdb_env import damage_is_bad_input, is_whole
from data.storage.lmdb_writer import LmdbWriter
from data.storage.regular_files import open_regular
from data.storage.text_files import read_json

SETTINGS = "settings.json"  # in the folder of a database whose command has not come to its end: what makes the records


def was_begun(folder: Path) -> bool:
    """Whether the command that writes a database was killed behind the database and before its own end."""
    return (folder / SETTINGS).is_file()


def is_extracted(img_db: Path) -> bool:
    """Whether an image DB is there, and none whose extraction was killed: that goes on with the same command."""
    folders = [path.parent for path in img_db.glob("*/data.mdb")]
    is_begun = any(folder.name.endswith(".partial") or was_begun(folder) for folder in folders)
    return not is_begun and any(layout_of(folder.name) for folder in folders)


def forget_begun(img_db: Path, settings: dict, kept: Container[str]) -> None:
    """Of what an extraction with these settings has stored before it was killed, keep the records of some keys alone: the next one goes
    on from them. Former versions wrote ``states`` among the settings, which told of all photographs."""
    for folder in [path.parent for path in img_db.glob("*/data.mdb") if was_begun(path.parent)]:
        begun = read_json(folder / SETTINGS, f"delete {folder}", {str: object})
        if {name: value for name, value in begun.items() if name != "states"} != json.loads(json.dumps(settings)):
            continue
        partial = folder if folder.suffix == ".partial" else beside(folder, "", ".partial")
        if partial != folder:
            if partial.exists():
                continue
            folder.rename(partial)
        if not is_whole(partial):
            continue  # the next extraction says so
        size = 2 * (partial / "data.mdb").stat().st_size + (1 << 20)
        with damage_is_bad_input(partial), lmdb.open(str(partial), lock=False, map_size=size) as env, env.begin(write=True) as txn:
            stored = [key for key in txn.cursor().iternext(values=False) if key != b"__keys__"]
            stale = [key for key in stored if key.decode() not in kept]
            for key in stale:
                txn.delete(key)
        if len(stale) == len(stored):
            shutil.rmtree(partial)


class RegionWriter(LmdbWriter):
    """Write an image DB; it appears, complete with its box counts, when the ``with`` block ends without an exception.

    Args:
        img_db, boxes: as for `RegionDB`
        compressed: write the compressed layout (about 0.6 of the size, read several times slower)
        settings: what makes the records, as JSON-able values. When they are given, a block that ends otherwise leaves what it
            has written, and the next writer with the same settings goes on from there: `done` holds those keys. So it does
            until `conclude` is called

    Attributes:
        made_by: the extractor of the regions, which the database remembers; to be set before the block begins
        pictures: the pictures of the keys, which the database remembers, too; to be set before the block ends

    Raises:
        BadInput: what was begun has other settings, arrays of a wrong shape, one key twice, nothing written, a full disk.
    """

    def __init__(
        self,
        img_db: str | Path,
        boxes: BoxOptions | None = None,
        compressed: bool = False,
        settings: dict | None = None,
    ):
        self._boxes = boxes or BoxOptions()
        name, nbb_name = layout_names(self._boxes)
        folder = Path(img_db, name + "_compressed" * compressed)
        heads = None if compressed else bytes_before_labels
        super().__init__(folder, commit_every=1000 if settings is None else 32, keep=settings is not None, head_bytes=heads)
        self._settings = settings
        self.made_by: ExtractorRecord | None = None
        self.pictures: Pictures | None = None
        self._compressed = compressed
        self._nbb_path = Path(img_db, nbb_name) if nbb_name else None
        self._min_rows = self._boxes.num_bb if self._boxes.conf_th == -1 else 1
        self._encode = encode_compressed if compressed else encode_plain
        self._num_regions: dict[str, int] = {}
        self._widths: tuple | None = None  # feature and label width of the first picture: the others must have them too

    @property
    def done(self) -> Mapping[str, int]:
        """Keys that are stored already → number of boxes to use."""
        return self._num_regions

    @property
    def goes_on(self) -> bool:
        """Whether the database is there, and the command of these settings that wrote it came to no end."""
        return self.keep and was_begun(self.folder) and self._settings_of(self.folder) == self._settings_text

    @property
    def _settings_text(self) -> str:
        return json.dumps(self._settings, indent=1)

    @staticmethod
    def _settings_of(folder: Path) -> str:
        with open_regular(folder / SETTINGS, "r", encoding="utf-8", errors="replace") as file:
            return file.read()

    def conclude(self) -> None:
        """The command has written all that it writes: another one of these settings begins anew."""
        (self.folder / SETTINGS).unlink(missing_ok=True)

    def __enter__(self) -> RegionWriter:
        begun = self.partial / SETTINGS
        if self.keep:
            now = self._settings_text
            if not begun.is_file():  # nothing that can be gone on from, or what was replaced
                shutil.rmtree(self.partial, ignore_errors=True)
            if self.goes_on and not self.partial.exists():
                self.folder.rename(self.partial)
            elif begun.is_file() and self._settings_of(self.partial) != now:
                raise BadInput(
                    f"{self.partial}: was begun with other settings, see its settings.json; give the same to go on, or delete "
                    "the folder to begin anew"
                )
        super().__enter__()
        if self.keep:
            self.write_file(begun.name, now)
            self._take_up()
        if self.made_by is not None:
            self._write_extractor(self.made_by)
        return self

    def _write_extractor(self, made_by: ExtractorRecord) -> None:
        before = read_extractor(self.partial)
        if self._num_regions and before is not None and not before.is_same(made_by):
            then, now = described_apart(before, made_by)
            raise BadInput(f"{self.partial}: was begun with {then}, now it is {now}; give the same, or delete the folder to begin anew")
        self.write_file(EXTRACTOR_FILE, json.dumps(made_by.to_json(), indent=1))

    def __exit__(self, kind, error, traceback) -> None:
        super().__exit__(kind, error, traceback)
        if not self._num_regions:
            shutil.rmtree(self.partial, ignore_errors=True)

    def _take_up(self) -> None:
        """Learn what is stored already."""
        with damage_is_bad_input(self.partial), self._env.begin() as txn:
            keys = [key.decode() for key in txn.cursor().iternext(values=False) if key != b"__keys__"]
            for key in ProgressBar(keys, f"going on from {self.partial}", unit="img"):
                arrays = stored_arrays(txn, self.partial, key, self._compressed)
                labels = arrays.get("soft_labels")
                self._widths = arrays["features"].shape[1:], (0,) if labels is None else labels.shape[1:]
                self._num_regions[key] = count_boxes(arrays["conf"], self._boxes)

    def order(self, keys: Iterable[str]) -> None:
        """List the stored pictures in the order of `keys`, whatever the order in which they came."""
        self._num_regions = {key: self._num_regions[key] for key in keys if key in self._num_regions}

    def add(self, key: str, regions: Regions) -> None:
        """Store one picture under its `key` (picture name with ``.npz``); arrays are cast to fp16.

        Raises:
            CannotWrite: a full disk.
            BadInput: another picture was stored under this key, or these arrays cannot be; the writer goes on without it.
        """
        if key in self._num_regions:
            raise BadInput(f"{self.folder}: key {key!r} is added twice; picture names must differ in their base name")
        arrays = {name: getattr(regions, name) for name in MEMBERS if getattr(regions, name) is not None}
        arrays = {name: np.ascontiguousarray(array, "<f2") for name, array in arrays.items()}
        shapes = {name: array.shape for name, array in arrays.items()}
        rows = len(arrays["features"])
        widths = (shapes["features"][1:], shapes.get("soft_labels", (rows, 0))[1:])
        features, labels = (width[0] if len(width) == 1 else "F" for width in self._widths or widths)
        expected = {"features": (rows, features), "norm_bb": (rows, 6), "conf": (rows,), "soft_labels": (rows, labels)}
        if not labels:
            expected.pop("soft_labels")
        if shapes != expected or rows < self._min_rows:
            raise BadInput(
                f"{self.folder}: key {key!r} has arrays {shapes}, expected {expected} as the first picture has, "
                f"at least {self._min_rows} rows; extract all pictures with one extractor"
            )
        self.put(key.encode(), self._encode(arrays))
        self._widths = self._widths or widths
        self._num_regions[key] = count_boxes(arrays["conf"], self._boxes)

    def _finish(self) -> None:
        if not self._num_regions:
            raise BadInput(f"{self.folder}: no picture was added; give at least one")
        self.put(b"__keys__", json.dumps(list(self._num_regions)).encode())
        if self.pictures is not None:
            names = {key: name for key, name in self.pictures.names.items() if key in self._num_regions}
            self.write_file(PICTURES_FILE, replace(self.pictures, names=names).to_json())
        if self._nbb_path is None:
            super()._finish()
        else:
            self.write_file(self._nbb_path.name, json.dumps(self._num_regions))
            self._commit()
            self._nbb_path.unlink(missing_ok=True)  # never counts of one database beside another: they can be computed
            super()._finish()
            os.replace(self.folder / self._nbb_path.name, self._nbb_path)
