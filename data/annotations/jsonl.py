"""JSON lines, our own format: a picture, its captions by language, its split."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from data.annotations.records import (
    STRICT,
    AnnotationFormat,
    Caption,
    ReadingOptions,
    captions_of_records,
    is_storable,
    kept_if_valid,
    names_file,
    numbered_lines,
    require,
    require_split_name,
)
from data.errors import BadInput
from data.storage.atomic import atomic_file
from data.storage.text_files import parse_json


def read_jsonl(path: str | Path, settings: ReadingOptions = STRICT) -> Iterator[Caption]:
    """Captions of a JSON-lines file, a picture on one line or on several; other keys of a line are ignored::

        {"image": "dog.jpg", "captions": {"en": ["a dog", "the dog"], "de": ["ein Hund"]}, "split": "train"}

    Caption ids are ``{image name without folders and extension}#{language}{number}``, for instance ``dog#en0``, numbered through
    the file; of a further picture of that name its path, ``other/dog#en0``. With several ``settings.fields`` a language
    comes from the first of them that has it; one text may stand for a list of one.

    Raises:
        BadInput: a line that is not of this form, an empty caption or an id used twice; names file and line.
    """
    seen: set[str] = set()
    count: Counter[tuple[str, str]] = Counter()
    owners: dict[str, str] = {}  # name in caption ids -> its picture

    def name_in_ids(image: str) -> str:
        names = (PurePosixPath(image).stem, str(PurePosixPath(image).with_suffix("")))
        return next((name for name in names if owners.setdefault(name, image) == image), image)

    def captions_of_line(where: str, line: str) -> Iterator[Caption]:
        record = parse_json(line, where, "every line is one object", unique=True)
        try:
            image, split = _head_of_line(where, record, settings)
            texts_of = _texts_of_line(where, record, settings.fields)
        except BadInput as error:
            settings.on_bad_record(str(error), max(1, _count_texts(record, settings.fields)))
            return
        if not any(texts_of.values()):
            settings.on_picture_without_captions(image)
        for language, texts in texts_of.items():
            if not isinstance(texts, list):
                settings.on_bad_record(
                    f"{where}: captions of language {language} is {ascii(texts)[:60]}, expected a list of texts", 1
                )
                continue
            for text in texts:
                caption_id = f"{name_in_ids(image)}#{language}{count[image, language]}"
                count[image, language] += 1
                yield from kept_if_valid(where, Caption(image, text, caption_id, split, language), seen, settings)

    return captions_of_records(numbered_lines(path), captions_of_line, settings)


def _head_of_line(where: str, record: object, settings: ReadingOptions) -> tuple[str, str]:
    """Picture and split of a line. Raises BadInput when the line is not of this form."""
    wanted = {"image", *settings.fields, *["split"] * settings.needs_split}
    if not isinstance(record, dict) or not wanted <= record.keys():
        found = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise BadInput(f"{where} has {found}, expected an object with image, {', '.join(settings.fields)} and split")
    image, split = record["image"], record.get("split", settings.split)
    require(is_storable(image) and names_file(image), where, "image", image, "a file name")
    require_split_name(where, split)
    return image, split


def _texts_of_line(where: str, record: dict, fields: Iterable[str]) -> dict[str, Any]:
    """Language -> what stands where its list of texts should be."""
    texts_of: dict[str, Any] = {}
    for field in fields:
        captions = record[field]
        right = isinstance(captions, dict) and captions and all(map(is_storable, captions))
        require(right, where, field, captions, "an object of language: [captions]")
        single = field != "captions"
        for language, texts in captions.items():
            texts_of.setdefault(language, [texts] if single and isinstance(texts, str) else texts)
    return texts_of


def _count_texts(record: object, fields: Iterable[str]) -> int:
    """How many captions a bad line holds, as far as that can be said."""
    captions = [record.get(field) for field in fields] if isinstance(record, dict) else []
    texts = [value for each in captions if isinstance(each, dict) for value in each.values()]
    texts += [each for each in captions if not isinstance(each, dict)]
    return sum(len(each) if isinstance(each, list) else 1 for each in texts if each)


def write_jsonl(path: str | Path, captions: Iterable[Caption]) -> None:
    """Write captions as `read_jsonl` reads them, a picture and split a line; their ids are made anew by reading."""
    pictures: dict[tuple[str, str], dict[str, list[str]]] = {}
    for caption in captions:
        pictures.setdefault((caption.image, caption.split), {}).setdefault(caption.language, []).append(caption.text)
    with atomic_file(path) as partial, open(partial, "w", encoding="utf-8") as file:
        for (image, split), texts in pictures.items():
            file.write(json.dumps({"image": image, "captions": texts, "split": split}, ensure_ascii=False) + "\n")


FORMAT = AnnotationFormat(read_jsonl, ("*",))
