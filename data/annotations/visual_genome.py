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
    captions_of_sentences,
    id_text,
    number_of_id,
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
    content = read_json(path, ADVICE, expected=object)
    require(isinstance(content, list), str(path), "the file", content, "a list, as in region_descriptions.json")
    seen: set[str] = set()

    def captions_of_image(where: str, image: object) -> Iterator[Caption]:
        regions = image.get("regions") if isinstance(image, dict) else None
        try:
            require(isinstance(image, dict), where, "it", image, "an object with id and regions")
            number = number_of_id(id_text(where, "id", image.get("id")))
            require(number is not None, where, "id", image.get("id"), "a number")
            require(isinstance(regions, list), where, "regions", regions, "a list of region_id and phrase")
        except BadInput as error:
            settings.on_bad_record(str(error), max(1, len(regions)) if isinstance(regions, list) else 1)
            return
        if not regions:
            settings.on_picture_without_captions(f"{number}.jpg")

        def caption_of(at: str, region: dict) -> Caption:
            caption_id = f"{number}#{id_text(at, 'region_id', region['region_id'])}"
            return Caption(f"{number}.jpg", region["phrase"], caption_id, settings.split, "en", None, number)

        yield from captions_of_sentences(where, regions, caption_of, seen, settings)

    return captions_of_records(((f"{path}: [{n}]", image) for n, image in enumerate(content)), captions_of_image, settings)


def photo_of(name: str) -> str:
    """``vg:1`` for 1.jpg: the numbers are Visual Genome's own."""
    return f"vg:{PurePosixPath(name).stem}"


FORMAT = AnnotationFormat(read_visual_genome, photo_of=photo_of)
