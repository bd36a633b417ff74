"""Images → image DB: what a run stores, how it goes on after it was stopped, and how the parts of several are joined.

    extraction = Extraction(ExtractionSettings(out, boxes, ...))
    report = extraction.run(PhotoImages(photos, build_extractor("butd", options), workers, device))
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from data.errors import BadInput, CannotWrite
from data.progress import ProgressBar
from data.regions.db import BoxOptions, Found, Problem, Regions, SoftLabels, read_keys
from data.regions.extractor_record import ExtractorRecord, described_apart, read_extractor
from data.regions.pictures import Pictures
from data.regions.records import CheckedRecords
from data.regions.writer import RegionWriter
from data.storage.environment import number_in_environment
from data.storage.regular_files import is_there
from data.storage.text_files import read_json, write_json
from model.extractors import EXTRACTORS
from model.extractors.base import Extractor, ExtractorOptions

_REPORT = {"written": int, "bad_photos": dict, "padding_rows?": int, "settings": {str: object}}
NOT_IN_RECORDS = ("out", "shard", "workers", "device", "overwrite", "merge")  # settings on which no stored byte depends


class NothingWritten(BadInput):
    """No image of the run can be read."""


class Images(Protocol):
    """Where regions come from: photographs and an extractor (`pool.PhotoImages`), or features that are there already
    (`data.regions.precomputed.PrecomputedImages`)."""

    def found(self, is_wanted: Callable[[str, str], bool]) -> tuple[int | None, Iterator[Found]]:
        """How many images are wanted, where that is known, and of each its name, its key and its regions or problem.

        Args:
            is_wanted: takes name and key, and is called once for each image, in their order; nothing is read of the others
        """
        ...


@dataclass
class ExtractionSettings:
    """What a run writes.

    Args:
        out: folder of the image DB
        boxes: which boxes readers will use
        compressed: write compressed records
        shard: (I, N): every N-th image from the I-th (1 to N) into ``part-I-of-N`` below `out`; (1, 1) for all
        overwrite: replace the database that is there
        command: every setting of the run by name, as JSON-able values: those on which stored bytes depend tell whether a run
            goes on from another, and report.json keeps them all. `photos` is named when there is nothing to write
        soft_labels: keep them where the images have them, or none: leave them out of the records
    """

    out: Path
    boxes: BoxOptions
    compressed: bool
    shard: tuple[int, int]
    overwrite: bool
    command: dict[str, Any]
    soft_labels: SoftLabels = "keep"

    @property
    def of_records(self) -> dict[str, Any]:
        """The settings on which the stored bytes depend; those that older runs did not have only where they change something."""
        found = {name: value for name, value in self.command.items() if name not in NOT_IN_RECORDS}
        return {name: value for name, value in found.items() if (name, value) != ("soft_labels", "keep")}


@dataclass
class Report:
    """What a run did: report.json beside the database.

    Args:
        photos: images of the run, written or not
        written: images in the database
        skipped: images that are not, of which `bad_photos` tells name → reason
        from_an_earlier_run: of those written
        padding_rows: rows of the input that were no regions, in the images that this run added
        regions_per_photo: boxes that readers use, on average
        seconds: of this run
        photos_per_second: those that it added
        settings: all of the command
    """

    photos: int
    written: int
    skipped: int
    from_an_earlier_run: int
    padding_rows: int
    regions_per_photo: float
    seconds: float
    photos_per_second: float
    bad_photos: dict[str, str]
    settings: dict[str, Any]

    def summary(self, extraction: Extraction) -> str:
        """What a user is told at the end, in lines."""
        lines = [f"{self.written} photos, {self.regions_per_photo:.1f} regions each, in {extraction.folder}"]
        if self.from_an_earlier_run:
            lines.append(f"{self.from_an_earlier_run} of them were there from an earlier run")
        if self.padding_rows:
            lines.append(f"{self.padding_rows} rows of padding (zeros, or beyond num_boxes) are no regions and were left out")
        if self.skipped:
            report = extraction.out / "report.json"
            name, reason = next(iter(self.bad_photos.items()))
            lines.append(f"{self.skipped} photos could not be read and were skipped; {report} lists them, the first: {name} ({reason})")
        return "\n".join(lines)


def build_extractor(name: str, options: ExtractorOptions) -> Extractor:
    """The extractor called `name`, such as ``butd`` or ``hf:facebook/dinov2-base``.

    Raises:
        BadInput: an unknown name or an impossible setting.
    """
    kind, _, model = name.partition(":")
    extractor = EXTRACTORS.get(kind)
    if extractor is None or extractor.takes_name != bool(model):
        known = [f"{kind}:NAME" if extractor.takes_name else kind for kind, extractor in EXTRACTORS.items()]
        raise BadInput(f"--extractor: found {name}, expected one of {', '.join(known)}, precomputed")
    if options.weights is not None and not extractor.takes_weights:
        raise BadInput(f"--weights {options.weights}: {kind} takes none; leave it out")
    return extractor.build(model, options)


def extractor_record(name: str, extractor: Extractor, options: ExtractorOptions) -> ExtractorRecord:
    """What a database remembers of the extractor called `name`, which was built from `options`."""
    values = asdict(options) | {"max_bb": options.boxes.max_bb}
    features = {name: values[name] for name in extractor.feature_options}
    return ExtractorRecord(name, features, extractor.weights_digest(), options.weights)


def parse_shard(shard: str | None, merging: bool) -> tuple[int, int]:
    """(I, N) of ``I/N``, or else of torchrun's environment; (1, 1) for all images, which `merging` wants.

    Raises:
        BadInput: another form, or a shard to merge.
    """
    if shard is None and not merging and (count := number_in_environment("WORLD_SIZE", 1)) > 1:
        shard = f"{number_in_environment('RANK') + 1}/{count}"
    if shard is None:
        return 1, 1
    index, slash, count = shard.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and len(shard) < 20 and 1 <= int(index) <= int(count)):
        raise BadInput(f"--shard: found {shard[:40]}, expected I/N with I from 1 to N, such as 1/4")
    if merging:
        raise BadInput(f"--shard {shard} --merge: merging takes all parts; leave --shard out")
    return int(index), int(count)


class Extraction:
    """Writes one image DB, or a shard of it, with its report.

    Attributes:
        out: where it writes: the folder of the settings, or the shard's below
        folder: the LMDB folder in it
    """

    def __init__(self, settings: ExtractionSettings):
        self.settings = settings
        index, count = settings.shard
        self.out = settings.out if count == 1 else settings.out / f"part-{index}-of-{count}"
        self._writer = RegionWriter(self.out, settings.boxes, settings.compressed, settings.of_records)
        self.folder = self._writer.folder
        self._padding_rows = 0

    def finished_report(self) -> dict | None:
        """What an earlier run with these settings reported of this shard; None when there is no shard, or no such run."""
        report = _read_report(self.out) if self.settings.shard[1] > 1 and not self.settings.overwrite else None
        return report if report and not self._differing(report) else None

    def check_output(self) -> None:
        """Raises BadInput where the output folder holds a database that this run must not replace, or must not stand beside."""
        plain = self.folder.with_name(self.folder.name.removesuffix("_compressed"))
        other = plain if self.settings.compressed else plain.with_name(plain.name + "_compressed")
        if self.folder.exists() and not (self.settings.overwrite or self._writer.goes_on):
            raise BadInput(f"{self.folder}: exists already; give --overwrite to replace it, or another --out")
        if other.exists():  # two databases that may differ, and one file of box counts
            raise BadInput(
                f"{other}: the database exists in the other layout (--compressed); delete it or give another --out"
            )

    def run(self, images: Images, made_by: ExtractorRecord | None = None, pictures: Pictures | None = None) -> Report:
        """Store the regions of this shard's images, going on from where an earlier run with these settings was stopped.

        An image without regions is listed in the report, and never stops the rest. `made_by` and `pictures` are remembered.

        Raises:
            BadInput: the output folder is taken, no image has regions.
            CannotWrite: the disk is full.
        """
        self._writer.made_by, self._writer.pictures = made_by, pictures
        return self._written(partial(self._add_images, images))

    def merge(self, keys: Iterable[str], pictures: Pictures | None = None) -> Report:
        """Join what all shards have written; in the order of `keys`, those of all images. `pictures` are remembered.

        Raises:
            BadInput: parts are missing, not finished or of other settings, or as `run`.
        """
        parts = self._find_parts()
        self._writer.pictures = pictures
        self._writer.made_by = self._extractor_of(part for part, report in parts.items() if report["written"])
        return self._written(partial(self._add_parts, parts, keys))

    def _written(self, add: Callable[[dict[str, str]], Iterable[str]]) -> Report:
        """The database and its report, with what `add` adds; it fills a dict name → reason, and returns the keys in order."""
        self.check_output()
        bad: dict[str, str] = {}
        started = time.perf_counter()
        try:
            with self._writer as writer:
                before = len(writer.done)
                writer.order(add(bad))
                if not writer.done:
                    photos = self.settings.command["photos"]
                    name, reason = next(iter(bad.items()), (photos, "this shard has no photographs"))
                    raise NothingWritten(f"{photos}: none of {len(bad)} photographs can be read; {name}: {reason}")
        except NothingWritten:
            if self.settings.shard[1] == 1:  # the other parts may have some
                raise
        seconds, done = time.perf_counter() - started, self._writer.done
        report = Report(
            photos=len(done) + len(bad),
            written=len(done),
            skipped=len(bad),
            from_an_earlier_run=before,
            padding_rows=self._padding_rows,
            regions_per_photo=round(sum(done.values()) / max(len(done), 1), 2),
            seconds=round(seconds, 2),
            photos_per_second=round((len(done) - before) / seconds, 2),
            bad_photos=bad,
            settings=self.settings.command,
        )
        write_json(self.out / "report.json", asdict(report))
        self._writer.conclude()
        return report

    def _add_images(self, images: Images, bad: dict[str, str]) -> Iterable[str]:
        index, count = self.settings.shard
        turn = itertools.cycle(number == index for number in range(1, count + 1))
        keys: dict[str, bool] = {}  # of all shards' images: whether it is this one's

        def is_wanted(name: str, key: str) -> bool:
            """Of this shard and not stored yet. A file that was itself continued may hold a torn record, and later the same
            image again, which goes to the same shard: that one counts, and whole ones after it are reported."""
            is_repeated, is_turn = key in keys, next(turn)
            if not keys.setdefault(key, is_turn):
                return False
            if is_repeated and key in self._writer.done:
                bad[name] = f"another image has the key {key}, too"
            return key not in self._writer.done

        total, found = images.found(is_wanted)
        for name, key, regions, padding in ProgressBar(found, "extracting regions", total, unit="photos"):
            self._padding_rows += padding
            if isinstance(regions, Problem):
                bad[name] = regions.reason
            else:
                self._add(name, key, regions, bad)
        return keys

    def _add(self, name: str, key: str, regions: Regions, bad: dict[str, str]) -> None:
        """Add a record; one that the database refuses is a bad one."""
        if self.settings.soft_labels == "none":
            regions = replace(regions, soft_labels=None)
        try:
            self._writer.add(key, regions)
        except CannotWrite:
            raise
        except BadInput as error:
            bad[name] = str(error)

    # ---- parts ---------------------------------------------------------------------------------------------------------

    def _differing(self, report: dict) -> list[str]:
        """Names of settings on which stored bytes depend and that were others."""
        labels = {"soft_labels": "keep"}
        before = labels | report["settings"]
        return [name for name, value in (labels | self.settings.of_records).items() if before.get(name) != value]

    def _find_parts(self) -> dict[Path, dict]:
        """Folder → report of every part of a run with --shard.

        Raises:
            BadInput: no part, a part is missing or not finished, parts of other settings.
        """
        out = self.settings.out
        names = [re.fullmatch(r"part-(\d+)-of-(\d+)", path.name) for path in sorted(out.glob("part-*-of-*"))]
        counts = {int(name[2]) for name in names if name}
        if len(counts) != 1:
            found = ", ".join(name[0] for name in names if name) or "none"
            raise BadInput(f"{out}: expected the parts of one run with --shard, found {found}")
        count = counts.pop()
        parts = [out / f"part-{index}-of-{count}" for index in range(1, count + 1)]
        found = {part: _read_report(part) for part in parts}
        missing = [part.name for part, report in found.items() if report is None]
        if missing:
            raise BadInput(f"{out}: {', '.join(missing)} not finished; run these shards, then merge")
        for part, report in found.items():
            if others := self._differing(report):
                raise BadInput(f"{part}: was made with other settings of {', '.join(others)}; give the same to merge")
        return found

    def _extractor_of(self, parts: Iterable[Path]) -> ExtractorRecord | None:
        """The extractor of all parts. Raises BadInput when they have several."""
        first = None
        for part in parts:
            record = read_extractor(part / self.folder.name)
            if first is not None and record is not None and not first.is_same(record):
                then, now = described_apart(first, record)
                raise BadInput(f"{part}: was made by {now}, the parts before it by {then}; extract them with one extractor")
            first = first or record
        return first

    def _add_parts(self, parts: dict[Path, dict], keys: Iterable[str], bad: dict[str, str]) -> Iterable[str]:
        for part, report in parts.items():
            bad |= report["bad_photos"]
            self._padding_rows += report.get("padding_rows", 0)
            if not report["written"]:
                continue
            folder = part / self.folder.name
            records = CheckedRecords(folder)
            for key in ProgressBar(read_keys(folder), f"merging {part.name}", unit="photos"):
                if key not in self._writer.done:
                    self._add(key, key, Regions(**records.arrays(key)), bad)
        return keys


def _read_report(part: Path) -> dict | None:
    """The report of a finished shard."""
    path = part / "report.json"
    return read_json(path, "run this extraction again", _REPORT) if is_there(path) else None
