"""Karpathy's JSON: ``dataset_flickr30k.json``, ``dataset_coco.json`` and their like."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
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
    is_storable,
    names_file,
    number_of_id,
    photo_of_flickr,
    require,
    require_split_name,
)
from data.errors import BadInput
from data.storage.text_files import is_utf8, read_json


def read_karpathy(path: str | Path, settings: ReadingOptions = STRICT) -> Iterator[Caption]:
    """Captions of Karpathy's ``dataset_flickr30k.json``, ``dataset_coco.json`` and their like, all English.

    Caption ids are the file's ``sentid``. A picture is its ``filename``, with its ``filepath`` in front where the file has that
    name in several folders.

    Raises:
        BadInput: a file that is not of this form, an empty caption or an id used twice; names file and picture.
    """
    content = read_json(path, ADVICE, expected=object)
    images = content.get("images") if isinstance(content, dict) else None
    require(isinstance(images, list), str(path), "images", images, "a list, as in Karpathy's dataset_*.json")
    seen: set[str] = set()
    folders = _folders_of_names(images)

    def captions_of_image(where: str, image: object) -> Iterator[Caption]:
        sentences = image.get("sentences") if isinstance(image, dict) else None
        try:
            name, split, number = _head_of_image(where, image, folders)
        except BadInput as error:
            settings.on_bad_record(str(error), max(1, len(sentences)) if isinstance(sentences, list) else 1)
            return
        where += f" ({name})"
        if not sentences and isinstance(sentences, list):
            settings.on_picture_without_captions(name)

        def caption_of(at: str, sentence: dict) -> Caption:
            caption_id = id_text(at, "sentid", sentence["sentid"])
            tokens = sentence.get("tokens") or []
            right = isinstance(tokens, list) and all(isinstance(word, str) and is_utf8(word) for word in tokens)
            require(right, at, "tokens", tokens, "a list of words")
            return Caption(name, sentence["raw"], caption_id, split, "en", tuple(tokens) or None, number)

        yield from captions_of_sentences(where, sentences, caption_of, seen, settings)

    return captions_of_records(((f"{path}: images[{n}]", image) for n, image in enumerate(images)), captions_of_image, settings)


def _head_of_image(where: str, image: object, folders: Mapping[str, set[str]]) -> tuple[str, str, int | None]:
    """File name, split and COCO's number of a picture. Raises BadInput when one is not as it should be."""
    require(isinstance(image, dict), where, "it", image, "an object with filename, split and sentences")
    name, split, number = image.get("filename"), image.get("split"), image.get("cocoid")
    require(is_storable(name) and names_file(name), where, "filename", name, "a file name")
    where += f" ({name})"
    require_split_name(where, split)
    if number is not None:
        text = id_text(where, "cocoid", number) if isinstance(number, int | float | str) else ""
        require(number_of_id(text) is not None, where, "cocoid", number, "a number")
        number = number_of_id(text)
    if len(folders[name]) > 1:  # else files and patterns of keys go by the name alone
        name = str(PurePosixPath(image.get("filepath") or "", name))
    return name, split, number


def _folders_of_names(images: list) -> dict[str, set[str]]:
    """File name -> the folders that the file says it is in."""
    folders: dict[str, set[str]] = defaultdict(set)
    for image in images:
        if isinstance(image, dict) and isinstance(image.get("filename"), str):
            path = image.get("filepath")
            folders[image["filename"]].add(path if isinstance(path, str) else "")
    return folders


def data_set_of(name: str) -> str | None:
    """The published data set of a file's name."""
    found = re.fullmatch(r"dataset_(flickr30k|flickr8k|coco)\.json", name)
    return found[1] if found else None


FORMAT = AnnotationFormat(read_karpathy, ("*.json",), data_set_of, photo_of_flickr, names_splits=True)
