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
    kept_if_valid,
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

    Caption ids are ``{image name without extension}#{language}{number}``, for instance ``dog#en0``, numbered through
    the file. With several ``settings.fields`` a language comes from the first of them that has it; one text may stand for a
    list of one.

    Raises:
        BadInput: a line that is not of this form, an empty caption or an id used twice; names file and line.
    """
    seen: set[str] = set()
    count: Counter[tuple[str, str]] = Counter()

    def captions_of_line(where: str, line: str) -> Iterator[Caption]:
        record = parse_json(line, where, "every line is one object")
        wanted = {"image", *settings.fields, *["split"] * settings.needs_split}
        if not isinstance(record, dict) or not wanted <= record.keys():
            found = sorted(record) if isinstance(record, dict) else type(record).__name__
            raise BadInput(f"{where} has {found}, expected an object with image, {', '.join(settings.fields)} and split")
        image, split = record["image"], record.get("split", settings.split)
        require(isinstance(image, str) and image, where, "image", image, "a file name")
        require_split_name(where, split)
        texts_of: dict[str, Any] = {}
        for field in settings.fields:
            captions = record[field]
            require(isinstance(captions, dict) and captions, where, field, captions, "an object of language: [captions]")
            single = field != "captions"
            for language, texts in captions.items():
                texts_of.setdefault(language, [texts] if single and isinstance(texts, str) else texts)
        for language, texts in texts_of.items():
            require(isinstance(texts, list), where, f"captions of language {language}", texts, "a list of texts")
            for text in texts:
                caption_id = f"{PurePosixPath(image).stem}#{language}{count[image, language]}"
                count[image, language] += 1
                yield from kept_if_valid(where, Caption(image, text, caption_id, split, language), seen, settings)

    return captions_of_records(numbered_lines(path), captions_of_line, settings)


def write_jsonl(path: str | Path, captions: Iterable[Caption]) -> None:
    """Write captions as `read_jsonl` reads them, a picture and split a line; their ids are made anew by reading."""
    pictures: dict[tuple[str, str], dict[str, list[str]]] = {}
    for caption in captions:
        pictures.setdefault((caption.image, caption.split), {}).setdefault(caption.language, []).append(caption.text)
    with atomic_file(path) as partial, open(partial, "w", encoding="utf-8") as file:
        for (image, split), texts in pictures.items():
            file.write(json.dumps({"image": image, "captions": texts, "split": split}, ensure_ascii=False) + "\n")


FORMAT = AnnotationFormat(read_jsonl, ("*",))
