"""A picture of one's own as a query: its regions, extracted as those that a checkpoint was trained on."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch

from data.errors import BadInput
from data.regions.db import BoxOptions, Problem, Regions, count_boxes
from data.regions.extractor_record import ExtractorRecord
from data.regions.photos import PICTURE_SUFFIXES, Photo
from model.extractors.base import Extractor
from model.extractors.photo_folder import rebuilt_extractor
from model.extractors.pool import one_thread, regions_of_photo, set_up_worker
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
    def boxes(self) -> BoxOptions:
        """Which boxes of its training it reads."""
        return self.made_from.boxes

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
        return rebuilt_extractor(self.record, self.boxes, self.weights, str(self.checkpoint), "was trained on")

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
        count = count_boxes(found.conf, self.boxes)
        return Regions(found.features[:count], found.norm_bb[:count], found.conf[:count])
