"""Visual Genome's ``region_descriptions.json``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from data.annotations.records import (
    ADVICE,
    STRICT,
    AnnotationFormat,
    Caption,
    ReadingOptions,
    captions_of_records,
    kept_if_valid,
    require,
)
from data.errors import BadInput
from data.storage.text_files import read_json


def read_visual_genome(path: str | Path, settings: ReadingOptions = STRICT) -> Iterator[Caption]:
    """Visual Genome's ``region_descriptions.json``: every region's phrase is a caption of its picture, ``{id}.jpg``.

    Caption ids are ``{picture}#{region_id}``; the split is ``settings.split``.

    Raises:
        BadInput: a file that is not of this form; and, reported, an empty phrase or a region that occurs twice.
    """
    content = read_json(path, ADVICE, expected=None)
    require(isinstance(content, list), str(path), "the file", content, "a list, as in region_descriptions.json")
    seen: set[str] = set()

    def captions_of_image(where: str, image: dict) -> Iterator[Caption]:
        try:
            number = int(image["id"])
            for region in image["regions"]:
                caption_id = f"{number}#{region['region_id']}"
                caption = Caption(f"{number}.jpg", region["phrase"], caption_id, settings.split, "en", None, number)
                yield from kept_if_valid(where, caption, seen, settings)
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                f"{where} lacks something ({error!r}); expected id and regions of region_id and phrase"
            ) from None

    return captions_of_records(((f"{path}: [{n}]", image) for n, image in enumerate(content)), captions_of_image, settings)


def photo_of(name: str) -> str:
    """``vg:1`` for 1.jpg: the numbers are Visual Genome's own."""
    return f"vg:{PurePosixPath(name).stem}"


FORMAT = AnnotationFormat(read_visual_genome, photo_of=photo_of)
