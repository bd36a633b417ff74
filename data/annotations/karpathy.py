"""Karpathy's JSON: ``dataset_flickr30k.json``, ``dataset_coco.json`` and their like."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from data.annotations.records import (
    ADVICE,
    STRICT,
    AnnotationFormat,
    Caption,
    ReadingOptions,
    captions_of_records,
    kept_if_valid,
    require,
    require_split_name,
)
from data.errors import BadInput
from data.storage.text_files import read_json


def read_karpathy(path: str | Path, settings: ReadingOptions = STRICT) -> Iterator[Caption]:
    """Captions of Karpathy's ``dataset_flickr30k.json``, ``dataset_coco.json`` and their like, all English.

    Caption ids are the file's ``sentid``.

    Raises:
        BadInput: a file that is not of this form, an empty caption or an id used twice; names file and picture.
    """
    content = read_json(path, ADVICE, expected=None)
    images = content.get("images") if isinstance(content, dict) else None
    require(isinstance(images, list), str(path), "images", images, "a list, as in Karpathy's dataset_*.json")
    seen: set[str] = set()

    def captions_of_image(where: str, image: dict) -> Iterator[Caption]:
        try:
            name, split, image_id = image["filename"], image["split"], image.get("cocoid")
            where += f" ({name})"
            require(isinstance(name, str) and name, where, "filename", name, "a file name")
            require_split_name(where, split)
            require(image_id is None or isinstance(image_id, int), where, "cocoid", image_id, "a number")
            for sentence in image["sentences"]:
                caption_id, text, tokens = str(sentence["sentid"]), sentence["raw"], sentence.get("tokens")
                tokens = tuple(tokens) if tokens else None
                yield from kept_if_valid(where, Caption(name, text, caption_id, split, "en", tokens, image_id), seen, settings)
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInput(
                f"{where} lacks something ({error!r}); expected filename, split and sentences of raw and sentid"
            ) from None

    return captions_of_records(((f"{path}: images[{n}]", image) for n, image in enumerate(images)), captions_of_image, settings)


def data_set_of(name: str) -> str | None:
    """The published data set of a file's name."""
    found = re.fullmatch(r"dataset_(flickr30k|flickr8k|coco)\.json", name)
    return found[1] if found else None


FORMAT = AnnotationFormat(read_karpathy, ("*.json",), data_set_of)
