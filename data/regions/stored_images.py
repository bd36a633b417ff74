"""The records of an image DB that is there, to be stored again: without soft labels, or in the other layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from data.downloads.hub import DATASET, local_folder
from data.errors import BadInput
from data.regions.db import BoxOptions, Found, Problem, Regions, find_layout, read_keys
from data.regions.extractor_record import PRECOMPUTED, ExtractorRecord, read_extractor
from data.regions.pictures import Pictures, read_pictures
from data.regions.precomputed import PrecomputedImages, PrecomputedOptions
from data.regions.records import CheckedRecords


class StoredImages:
    """The images of an image DB, all rows of their records, under the keys that they have.

    Args:
        img_db: the database
        boxes: which of its LMDB folders is read; the new one has the same boxes
    """

    def __init__(self, img_db: str | Path, boxes: BoxOptions):
        self.folder = find_layout(img_db, boxes)

    def keys(self) -> Iterator[str]:
        return iter(read_keys(self.folder))

    def found(self, is_wanted: Callable[[str, str], bool]) -> tuple[int | None, Iterator[Found]]:
        """See `model.extractors.extraction.Images`."""
        keys = [key for key in dict.fromkeys(read_keys(self.folder)) if is_wanted(key, key)]
        return len(keys), map(partial(self._record, CheckedRecords(self.folder)), keys)

    def _record(self, records: CheckedRecords, key: str) -> Found:
        try:
            return Found(key, key, Regions(**records.arrays(key)))
        except BadInput as error:
            return Found(key, key, Problem(str(error)))


def given_images(
    source: str, options: PrecomputedOptions, boxes: BoxOptions
) -> tuple[PrecomputedImages | StoredImages, ExtractorRecord, Pictures | None]:
    """The images of features that somebody has extracted, or of an image DB, with the extractor and the pictures that it remembers.

    Raises:
        BadInput: as `PrecomputedImages`; settings that an image DB does not need.
    """
    source = str(local_folder(source, DATASET))
    if not list(Path(source).glob("*/data.mdb")):
        return PrecomputedImages(source, options), ExtractorRecord(PRECOMPUTED), None
    if options != PrecomputedOptions(num_labels=options.num_labels, max_bb=options.max_bb):
        raise BadInput(f"--photos {source}: an image DB says its keys and boxes; leave --image-key, --sizes and the forms of boxes out")
    images = StoredImages(source, boxes)
    return images, read_extractor(images.folder) or ExtractorRecord(PRECOMPUTED), read_pictures(images.folder)
