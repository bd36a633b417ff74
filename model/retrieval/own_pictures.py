"""A picture of one's own as a query: its regions, extracted as those that a checkpoint was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from data.errors import BadInput
from data.regions.db import BoxOptions, Problem, Regions, count_boxes
from data.regions.extractor_record import ExtractorRecord, described_apart
from data.regions.photos import PICTURE_SUFFIXES, Photo
from model.extractors.base import Extractor, ExtractorOptions
from model.extractors.extraction import build_extractor, extractor_record
from model.extractors.pool import regions_of_photo, set_up_worker
from model.made_from import MadeFrom, read_made_from


def is_picture_file(name: str | Path) -> bool:
    """Whether this names a picture that is there, and not a key of a database."""
    return Path(name).suffix.lower() in PICTURE_SUFFIXES and Path(name).is_file()


class OwnPictures:
    """Extracts regions of pictures as those that a checkpoint was trained on; the extractor is loaded when the first is asked.

    Args:
        checkpoint: its record tells extractor, options and boxes
        weights: where the extractor's weights are now; None: where they were when the regions were extracted
        device: where the extractor computes
    """

    def __init__(self, checkpoint: str | Path, weights: str | None = None, device: torch.device | str = "cpu"):
        self.checkpoint, self.weights, self.device = checkpoint, weights, torch.device(device)

    @cached_property
    def made_from(self) -> MadeFrom:
        """What the checkpoint was trained on, as far as it says so."""
        return read_made_from(self.checkpoint) or MadeFrom(BoxOptions(), (None,))

    @property
    def record(self) -> ExtractorRecord:
        """Who made the regions of its training. Raises BadInput where it does not say so, or where several did."""
        known = self.made_from.extractors
        if len(known) != 1 or known[0] is None:
            names = " and ".join("others" if each is None else each.described() for each in known)
            reason = f"was trained on regions of {names}" if len(known) > 1 else "does not say who made the regions of its training"
            raise BadInput(
                f"{self.checkpoint}: {reason}, so a picture of one's own cannot be read as they were; extract it into a "
                "database with that extractor (scripts/extract_regions.py), and give its key and --regions"
            )
        return known[0]

    @cached_property
    def extractor(self) -> Extractor:
        """The extractor of the training regions. Raises BadInput where it is not known, or its weights are not here."""
        record = self.record
        options = ExtractorOptions(boxes=replace(self.made_from.boxes), weights=self.weights or record.source)
        for name, value in record.options.items():
            setattr(options.boxes if name == "max_bb" else options, name, value)
        try:
            extractor = build_extractor(record.name, options)
        except BadInput as error:
            raise BadInput(f"{self.checkpoint}: its regions were made by {record.described()}, which cannot be loaded here: {error}") from None
        found = extractor_record(record.name, extractor, options)
        if not found.is_same(record):
            now, then = described_apart(found, record)
            raise BadInput(f"{self.checkpoint}: was trained on {then}, here is {now}; give the weights that it was")
        return extractor

    def regions(self, path: str | Path) -> Regions:
        """The regions of a picture file, as a database of the checkpoint's boxes would hold them.

        Raises:
            BadInput: the picture cannot be read, the checkpoint does not say its extractor, its weights are not here.
        """
        with one_thread():
            extractor = self.extractor
            set_up_worker(extractor, torch.device("cpu") if extractor.only_on_cpu else self.device)
            found = regions_of_photo(Photo(str(path), Path(path).name, Path(path), Path(path).name))
        if isinstance(found, Problem):
            raise BadInput(f"{path}: {found.reason}")
        count = count_boxes(found.conf, self.made_from.boxes)
        return Regions(found.features[:count], found.norm_bb[:count], found.conf[:count])


@contextmanager
def one_thread() -> Iterator[None]:
    """As scripts/extract_regions.py computes: the same sums in the same order give the same regions."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)
