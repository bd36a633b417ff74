"""A folder of photographs as an image DB that is brought up to date: a photograph that is as it was (its size and time) is not extracted
again, one that is new or changed is, and one that is gone leaves. ``photos.json`` beside the image DB says how the photographs were:
``photos`` those that are in it, ``coming`` those of the extraction that was begun last, which goes on where it was killed.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from data.errors import BadInput
from data.notices import say
from data.regions.db import BoxOptions, Found, Regions, SoftLabels, layout_names, layout_of, read_keys
from data.regions.extractor_record import ExtractorRecord, described_apart, read_extractor
from data.regions.photos import Photo, find_photos
from data.regions.pictures import pictures_of, read_pictures
from data.regions.records import CheckedRecords
from data.regions.writer import forget_begun, was_begun
from data.storage.regular_files import is_there
from data.storage.shapes import check_shape, shape_of
from data.storage.text_files import read_json, write_json
from model.extractors.base import Extractor, ExtractorOptions
from model.extractors.extraction import Extraction, ExtractionSettings, build_extractor, extractor_record
from model.extractors.pool import PhotoImages, one_thread

STATE = "photos.json"  # key → the photograph's name, size and time, when its regions were extracted
_SETTINGS = {"image_key?": str, "list?": (str, None), "compressed?": bool, "soft_labels?": str}  # and others, which are told alone
_STATES = {"photos": {str: object}, "since?": float, "coming?": {str: object}}


class Maker(Protocol):
    """Who makes regions: an extractor, which is loaded when it is asked first, and the boxes that readers use."""

    device: torch.device

    @property
    def record(self) -> ExtractorRecord: ...

    @property
    def boxes(self) -> BoxOptions: ...

    @property
    def extractor(self) -> Extractor: ...


class StoredMaker:
    """Who made the regions of an image DB of photographs, to make more of them.

    Args:
        regions: the image DB, of which at least a part is there
        weights: where the extractor's weights are now; None: where they were then
        device: where the extractor computes
    """

    def __init__(self, regions: Path, weights: str | None, device: torch.device):
        self.device, self._weights = device, weights
        self._folder = next(path.parent for path in sorted(regions.glob("*/data.mdb")) if layout_of(path.parent.name.removesuffix(".partial")))

    @property
    def record(self) -> ExtractorRecord:
        record = read_extractor(self._folder)
        if record is None:
            raise BadInput(f"{self._folder}: does not say who made its regions, so that none can be added; delete it to extract all of them")
        return record

    @property
    def boxes(self) -> BoxOptions:
        layout = layout_of(self._folder.name.removesuffix(".partial"))
        return layout.boxes if layout is not None and layout.boxes is not None else BoxOptions()

    @cached_property
    def extractor(self) -> Extractor:
        return rebuilt_extractor(self.record, self.boxes, self._weights, str(self._folder), "was made by")


def rebuilt_extractor(record: ExtractorRecord, boxes: BoxOptions, weights: str | None, source: str, verb: str) -> Extractor:
    """The extractor that a record tells.

    Args:
        boxes: which boxes readers use
        weights: where its weights are now; None: where they were then
        source, verb: who remembers it, for messages: SOURCE was made by EXTRACTOR

    Raises:
        BadInput: it cannot be loaded here, or gives other features with these weights.
    """
    known = {name.removesuffix("?"): shape for name, shape in shape_of(ExtractorOptions).items() if name not in ("boxes?", "weights?")} | {"max_bb": int}
    if unknown := [name for name in record.options if name not in known]:
        raise BadInput(f"{source}: {verb} {record.described()}, and no extractor here has the option {unknown[0]}; update the code, or copy the file again that says so")
    check_shape(record.options, {f"{name}?": shape for name, shape in known.items()}, f"{source}: {verb} {record.name}, and its options", "copy the file again that says so")
    options = ExtractorOptions(boxes=replace(boxes), weights=weights or record.source)
    for name, value in record.options.items():
        setattr(options.boxes if name == "max_bb" else options, name, value)
    try:
        extractor = build_extractor(record.name, options)
    except BadInput as error:
        raise BadInput(f"{source}: its regions were made by {record.described()}, which cannot be loaded here: {error}") from None
    found = extractor_record(record.name, extractor, options)
    if not found.is_same(record):
        now, then = described_apart(found, record)
        raise BadInput(f"{source}: {verb} {then}, here is {now}; give the weights that it was")
    return extractor


class Form(NamedTuple):
    """How an image DB of photographs is made of them.

    Args:
        image_key: makes keys of names
        listing: file that names the photographs; None: all
        compressed: whether records are
        soft_labels: whether they are kept
    """

    image_key: str = "{stem}.npz"
    listing: str | None = None
    compressed: bool = False
    soft_labels: SoftLabels = "keep"


def is_kept_up_to_date(out: Path) -> bool:
    """Whether there is at least a part of an image DB, and the states of its photographs, so that `extract_photos` takes up what is new."""
    return _stored_states(out) is not None and any(layout_of(path.parent.name.removesuffix(".partial")) for path in out.glob("*/data.mdb"))


def made_with(regions: Path) -> dict[str, Any]:
    """The settings by name with which an image DB of photographs was made, as its report says them; none where it says nothing."""
    path = regions / "report.json"
    return read_json(path, f"delete {regions}", {"settings": _SETTINGS})["settings"] if is_there(path) else {}


def _form_of(regions: Path) -> Form:
    settings = made_with(regions)
    names = {"image_key": "image_key", "listing": "list", "compressed": "compressed", "soft_labels": "soft_labels"}
    return Form(**{field: settings[name] for field, name in names.items() if name in settings})


def extract_photos(photos: str, maker: Maker, out: Path, workers: int, image_key: str | None = None) -> None:
    """Bring the image DB ``out`` of a folder of photographs (or of a tar file) up to date, as far as it is kept with the photographs'
    states; one that another command made is used as it is, which is said. Photographs that cannot be read are said, too, and the rest
    goes on.

    Args:
        workers: processes that extract; 0: this one alone
        image_key: makes a photograph's id of its name; None: as in ``out``, at first ``{stem}.npz``

    Raises:
        BadInput: no photographs, two of one key, regions in ``out`` of another extractor or of other photographs.
    """
    form = _form_of(out) if image_key is None else _form_of(out)._replace(image_key=image_key)
    there = sorted(path.parent for path in out.glob("*/data.mdb") if layout_of(path.parent.name) and not was_begun(path.parent))
    states = _stored_states(out)
    if there and states is None:
        say(f"{out}: is there already and used as it is{_told_absent(photos, form, there[0])}; delete it to extract the regions again")
        return
    found, made_by = find_photos(photos, form.listing, form.image_key), maker.record
    if there:
        _check_maker(there[0], maker)
    now = {photo.key: _state_of(photo) for photo in found}
    before = (states or {}) if there else {}
    settings = _settings(out, photos, maker, form, bool(there))
    if states is not None:
        coming = _read_states(out).get("coming", {}) if before != now else {}
        forget_begun(out, settings.of_records, {key for key in now if coming.get(key) == now[key]})
    if there and before == now:
        say(f"{out}: up to date, {len(read_keys(there[0])):,} photographs")
        return
    kept = {key for key in read_keys(there[0]) if key in now and before.get(key) == now[key]} if there else set()
    if there:
        _check_folder(out, there[0], photos, kept)
        say(f"{out}: {_told_changes(before, now)}")
    write_json(out / STATE, {"photos": states or {}, "coming": now}, indent=None)  # whenever this ends, it is known who makes the image DB
    extraction = Extraction(settings)
    with one_thread():  # so that the sums are those of any other run
        extractor = maker.extractor
        device = torch.device("cpu") if extractor.only_on_cpu else maker.device
        images = PhotoImages([photo for photo in found if photo.key not in kept], extractor, workers, device)
        records = CheckedRecords(there[0]) if kept else None
        report = extraction.run(_WithKept(found, kept, records, images), made_by, pictures_of(found, photos, form.image_key))
    write_json(out / STATE, {"photos": now}, indent=None)
    say(report.summary(extraction))


@contextmanager
def states_of_command(photos: str, out: Path) -> Iterator[None]:
    """Remember how the photographs are of an image DB that another command makes of them in the block, so that `extract_photos` brings
    it up to date later. What changes after that command first began is not remembered, and extracted again then.
    """
    if not is_there(out / STATE):
        write_json(out / STATE, {"photos": {}, "since": time.time()})
    try:
        yield
    except BadInput:
        if not any(out.glob("*/data.mdb")):
            (out / STATE).unlink()
            with suppress(OSError):
                out.rmdir()
        raise
    settle_states(photos, out)


def settle_states(photos: str, out: Path) -> None:
    """What `states_of_command` does in the end, where it was killed before."""
    since = _read_states(out).get("since")
    if since is None:
        return
    form, pictures = _form_of(out), read_pictures(out)
    is_same_folder = pictures is not None and os.path.realpath(pictures.photos) == os.path.realpath(photos)
    stored = set(pictures.names) if pictures is not None and is_same_folder else set()
    bad = read_json(out / "report.json", f"delete {out}", {"bad_photos": dict})["bad_photos"]
    states = {}
    for photo in find_photos(photos, form.listing, form.image_key):
        with suppress(OSError):
            if os.stat(photo.path).st_ctime < since and (photo.key in stored or photo.name in bad):
                states[photo.key] = _state_of(photo)
    write_json(out / STATE, {"photos": states}, indent=None)


def _read_states(out: Path) -> dict[str, Any]:
    return read_json(out / STATE, f"delete {out}", _STATES) if is_there(out / STATE) else {}


def _stored_states(out: Path) -> dict[str, Any] | None:
    """Key → state of the photographs of an image DB that is kept up to date; None for another one, and where a command still makes it."""
    states = _read_states(out)
    return None if "since" in states or not states else states["photos"]


def _check_maker(folder: Path, maker: Maker) -> None:
    made_by, layout = read_extractor(folder), layout_of(folder.name)
    if made_by is None or not made_by.is_same(maker.record) or layout is None or layout.boxes != maker.boxes:
        raise BadInput(
            f"{folder.parent}: holds {folder.name} of {made_by.described() if made_by else 'an extractor that is not known'}, the checkpoint was "
            f"trained on {layout_names(maker.boxes)[0]} of {maker.record.described()}; give another folder"
        )


def _check_folder(out: Path, folder: Path, photos: str, kept: set[str]) -> None:
    """Refuse to replace the regions of one folder of photographs by those of another one."""
    pictures = read_pictures(folder)
    if pictures is not None and not kept and os.path.realpath(pictures.photos) != os.path.realpath(photos):
        raise BadInput(f"{out}: holds the photographs of {pictures.photos}, and {photos} has none of them; put new ones beside them, or give another folder to write")


def _told_absent(photos: str, form: Form, folder: Path) -> str:
    """How many photographs an image DB of the same folder lacks, where that can be seen."""
    pictures = read_pictures(folder)
    if pictures is None or os.path.realpath(pictures.photos) != os.path.realpath(photos):
        return ""
    with suppress(BadInput):
        absent = [photo for photo in find_photos(photos, form.listing, form.image_key) if photo.key not in pictures.names]
        return f", without {len(absent):,} photographs, the first: {absent[0].name}" if absent else ""
    return ""


def _told_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    new, gone = len(now.keys() - before.keys()), len(before.keys() - now.keys())
    changed = sum(now[key] != before[key] for key in now.keys() & before.keys())
    return f"of {len(now):,} photographs {new:,} are new and {changed:,} changed, their regions are extracted; gone: {gone:,}"


def _settings(out: Path, photos: str, maker: Maker, form: Form, there: bool) -> ExtractionSettings:
    before = {name: value for name, value in made_with(out).items() if name != "states"}  # which former versions wrote
    command = before | {"photos": photos, "image_key": form.image_key, "extractor": maker.record.described(), "boxes": vars(maker.boxes)}
    return ExtractionSettings(out, maker.boxes, form.compressed, (1, 1), there, command, form.soft_labels)


@dataclass
class _WithKept:
    """Photographs (`model.extractors.extraction.Images`) of which some are taken from an image DB as they were."""

    photos: list[Photo]
    kept: set[str]
    records: CheckedRecords | None
    images: PhotoImages

    def found(self, is_wanted: Callable[[str, str], bool]) -> tuple[int, Iterator[Found]]:
        wanted = [photo for photo in self.photos if is_wanted(photo.name, photo.key)]
        keys = {photo.key for photo in wanted}
        _, extracted = self.images.found(lambda name, key: key in keys)
        return len(wanted), itertools.chain(self._stored([photo for photo in wanted if photo.key in self.kept]), extracted)

    def _stored(self, photos: list[Photo]) -> Iterator[Found]:
        if self.records is not None:
            for photo in photos:
                yield Found(photo.name, photo.key, Regions(**self.records.arrays(photo.key)))


def _state_of(photo: Photo) -> list:
    """A photograph's name, size and time (of a tar that of the whole file)."""
    with suppress(OSError):
        info = os.stat(photo.path)
        return [photo.inside, photo.size if photo.offset is not None else info.st_size, info.st_mtime_ns]
    return [photo.inside, None, None]
