"""COCO's captions: ``captions_train2014.json``, ``captions_val2017.json`` and their like."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.annotations.records import ADVICE, STRICT, AnnotationFormat, Caption, ReadingOptions, kept_if_valid, require
from data.storage.text_files import read_json


def read_coco(path: str | Path, settings: ReadingOptions = STRICT) -> Iterator[Caption]:
    """Captions of COCO's ``captions_train2014.json``, ``captions_val2017.json`` and their like, by picture, all English.

    Caption ids are the file's numbers of annotations. The split is the one in the file's name, else ``settings.split``.

    Raises:
        BadInput: a file that is not of this form; and, reported, an annotation without its picture, an empty caption or
            an id used twice.
    """
    content = read_json(path, ADVICE, expected=None)
    for name in ("images", "annotations"):
        value = content.get(name) if isinstance(content, dict) else None
        require(isinstance(value, list), str(path), name, value, "a list, as in COCO's captions_*.json")
    named = re.search(r"(train|val|test)\d{4}", Path(path).name)
    split = named[1] if named else settings.split
    annotations: dict[Any, list[tuple[str, dict]]] = {}
    known: dict[Any, str] = {}
    for n, image in enumerate(content["images"]):
        if isinstance(image, dict) and isinstance(image.get("file_name"), str) and isinstance(image.get("id"), int):
            known[image["id"]] = image["file_name"]
        else:
            settings.on_bad_record(f"{path}: images[{n}] is {str(image)[:60]!r}, expected an object with id and file_name")
    for n, annotation in enumerate(content["annotations"]):
        where = f"{path}: annotations[{n}]"
        if not isinstance(annotation, dict) or not {"id", "image_id", "caption"} <= annotation.keys():
            settings.on_bad_record(f"{where} is {str(annotation)[:60]!r}, expected an object with id, image_id and caption")
        elif isinstance(annotation["image_id"], (list, dict)) or annotation["image_id"] not in known:
            settings.on_bad_record(f"{where}: image_id {annotation['image_id']} is not among the file's images")
        else:
            annotations.setdefault(annotation["image_id"], []).append((where, annotation))
    seen: set[str] = set()
    for image_id, name in known.items():
        for where, annotation in annotations.get(image_id, []):
            caption = Caption(name, annotation["caption"], str(annotation["id"]), split, "en", None, image_id)
            yield from kept_if_valid(where, caption, seen, settings)


def data_set_of(name: str) -> str | None:
    """The published data set of a file's name."""
    found = re.fullmatch(r"captions_(train|val)(2014|2017)\.json", name)
    return f"coco{found[2]}-{found[1]}" if found else None


FORMAT = AnnotationFormat(read_coco, ("captions_*.json*",), data_set_of)
