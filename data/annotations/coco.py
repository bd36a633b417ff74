"""COCO's captions: ``captions_train2014.json``, ``captions_val2017.json`` and their like."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from data.annotations.records import (
    ADVICE,
    STRICT,
    AnnotationFormat,
    Caption,
    ReadingOptions,
    id_text,
    kept_if_valid,
    number_of_id,
    require,
)
from data.errors import BadInput
from data.progress import ProgressBar
from data.storage.text_files import is_utf8, read_json


def read_coco(path: str | Path, settings: ReadingOptions = STRICT) -> Iterator[Caption]:
    """Captions of COCO's ``captions_train2014.json``, ``captions_val2017.json`` and their like, by picture, all English.

    Caption ids are the file's numbers of annotations. The split is the one in the file's name, a word of it such as
    val2017, unless ``settings.split_is_given``; else ``settings.split``.

    Raises:
        BadInput: a file that is not of this form; and, reported, an annotation without its picture or of an id that several
            pictures have, an empty caption or an id used twice.
    """
    named = None if settings.split_is_given else split_of_name(Path(path).name)
    return captions_of_coco(path, settings, named or settings.split, "en")


def captions_of_coco(
    path: str | Path, settings: ReadingOptions, split: str, language: str, mark: str = ""
) -> Iterator[Caption]:
    """The captions of a file laid out as COCO's, in one language; a ``tokenized_caption`` gives their words, parted by spaces.

    Args:
        mark: what begins every caption id, before the file's number
    """
    content = read_json(path, ADVICE, expected=object)
    for name in ("images", "annotations"):
        value = content.get(name) if isinstance(content, dict) else None
        require(isinstance(value, list), str(path), name, value, "a list, as in COCO's captions_*.json")
    names = _names_of_pictures(path, content["images"], settings)
    annotations: dict[str, list[tuple[str, str, dict]]] = defaultdict(list)
    for n, annotation in enumerate(ProgressBar(content["annotations"], f"looking through {path}", unit="annotations")):
        where = f"{path}: annotations[{n}]"
        try:
            right = isinstance(annotation, dict) and {"id", "image_id", "caption"} <= annotation.keys()
            require(right, where, "it", annotation, "an object with id, image_id and caption")
            image_id, caption_id = (id_text(where, name, annotation[name]) for name in ("image_id", "id"))
            if image_id not in names:
                raise BadInput(f"{where}: image_id {image_id} is not among the file's images")
            if len(names[image_id]) > 1:
                raise BadInput(
                    f"{where}: image_id {image_id} is the id of {' and of '.join(names[image_id])}; correct it"
                )
        except BadInput as error:
            settings.on_bad_record(str(error), 1)
        else:
            annotations[image_id].append((where, mark + caption_id, annotation))
    seen: set[str] = set()
    for image_id, (name, *others) in names.items():
        if image_id not in annotations and not others:
            settings.on_picture_without_captions(name)
        for where, caption_id, annotation in annotations[image_id]:
            words = annotation.get("tokenized_caption")
            tokens = tuple(words.split()) or None if isinstance(words, str) and is_utf8(words) else None
            caption = Caption(name, annotation["caption"], caption_id, split, language, tokens, number_of_id(image_id))
            yield from kept_if_valid(where, caption, seen, settings)


def _names_of_pictures(path: str | Path, images: list, settings: ReadingOptions) -> dict[str, list[str]]:
    """Id of a picture -> its file name; several where the file gives one id to several pictures."""
    names: dict[str, list[str]] = {}
    for n, image in enumerate(images):
        where = f"{path}: images[{n}]"
        try:
            right = isinstance(image, dict) and isinstance(image.get("file_name"), str) and image["file_name"]
            require(right, where, "it", image, "an object with id and file_name")
            of_id = names.setdefault(id_text(where, "id", image.get("id")), [])
        except BadInput as error:
            settings.on_bad_record(str(error), 0)  # its captions are counted, each by itself
            continue
        if image["file_name"] not in of_id:
            of_id.append(image["file_name"])
    return names


def split_of_name(name: str) -> str | None:
    """The split that is a word of a file's name: val of captions_val2017.json, none of captions_latest2023.json."""
    found = re.search(r"(?<![A-Za-z0-9])(train|val|test)20\d\d(?![A-Za-z0-9])", name)
    return found[1] if found else None


def data_set_of(name: str) -> str | None:
    """The published data set of a file's name."""
    found = re.fullmatch(r"captions_(train|val)(2014|2017)\.json", name)
    return f"coco{found[2]}-{found[1]}" if found else None


FORMAT = AnnotationFormat(read_coco, ("captions_*.json*",), data_set_of)
