"""Public annotation files, read into captions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data.errors import BadInput


@dataclass(frozen=True)
class Caption:
    """One caption of one picture.

    Args:
        image: file name of the picture, as the annotations give it
        text: the caption, untouched
        caption_id: unique in its file
        split: train, val, test, restval ...
        language: code such as en, de
        tokens: words as the annotators of the file split them; None where the file does not say
        image_id: the data set's own number of the picture, where it has one
    """

    image: str
    text: str
    caption_id: str
    split: str
    language: str
    tokens: tuple[str, ...] | None = None
    image_id: int | None = None


def read_captions(path: str | Path, form: str) -> Iterator[Caption]:
    """Captions of a file in the form ``jsonl`` or ``karpathy``."""
    return {"jsonl": read_jsonl, "karpathy": read_karpathy}[form](path)


def read_jsonl(path: str | Path) -> Iterator[Caption]:
    """Captions of a JSON-lines file, one picture per line; other keys of a line are ignored::

        {"image": "dog.jpg", "captions": {"en": ["a dog", "the dog"], "de": ["ein Hund"]}, "split": "train"}

    Caption ids are ``{image name without extension}#{language}{number}``, for instance ``dog#en0``.

    Raises:
        BadInput: a line that is not of this form, an empty caption or an id used twice; names file and line.
    """
    seen: set[str] = set()
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise BadInput(f"{where} is not JSON ({error}); every line is one object") from None
        if not isinstance(record, dict) or not {"image", "captions", "split"} <= record.keys():
            found = sorted(record) if isinstance(record, dict) else type(record).__name__
            raise BadInput(f"{where} has {found}, expected an object with image, captions and split")
        image, captions, split = (record[name] for name in ("image", "captions", "split"))
        _check(isinstance(image, str) and image, where, "image", image, "a file name")
        _check(isinstance(split, str) and split, where, "split", split, "a name such as train")
        _check(
            isinstance(captions, dict) and captions, where, "captions", captions, "an object of language: [captions]"
        )
        for language, texts in captions.items():
            _check(isinstance(texts, list), where, f"captions of language {language}", texts, "a list of texts")
            for i, text in enumerate(texts):
                caption_id = f"{PurePosixPath(image).stem}#{language}{i}"
                _check_caption(where, caption_id, text, seen)
                yield Caption(image, text, caption_id, split, language)


def read_karpathy(path: str | Path) -> Iterator[Caption]:
    """Captions of Karpathy's ``dataset_flickr30k.json``, ``dataset_coco.json`` and their like, all English.

    Caption ids are the file's ``sentid``.

    Raises:
        BadInput: a file that is not of this form, an empty caption or an id used twice; names file and picture.
    """
    try:
        content = json.loads("".join(_lines(path)))
    except ValueError as error:
        raise BadInput(f"{path}: not JSON ({error})") from None
    images = content.get("images") if isinstance(content, dict) else None
    _check(isinstance(images, list), str(path), "images", images, "a list, as in Karpathy's dataset_*.json")
    seen: set[str] = set()
    for number, image in enumerate(images):
        where = f"{path}: images[{number}]"
        try:
            name, split, image_id = image["filename"], image["split"], image.get("cocoid")
            where += f" ({name})"
            _check(isinstance(name, str) and name, where, "filename", name, "a file name")
            for sentence in image["sentences"]:
                caption_id, text, tokens = str(sentence["sentid"]), sentence["raw"], sentence.get("tokens")
                _check_caption(where, caption_id, text, seen)
                yield Caption(name, text, caption_id, split, "en", tuple(tokens) if tokens else None, image_id)
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInput(
                f"{where} lacks something ({error!r}); expected filename, split and sentences of raw and sentid"
            ) from None


def _lines(path: str | Path) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8") as file:
            yield from file
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}); check the path of the annotations") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text ({error}); save the annotations as UTF-8") from None


def _check(right: object, where: str, what: str, found: object, expected: str) -> None:
    if not right:
        raise BadInput(f"{where}: {what} is {str(found)[:60]!r}, expected {expected}")


def _check_caption(where: str, caption_id: str, text: object, seen: set[str]) -> None:
    _check(isinstance(text, str) and text.strip(), where, f"caption {caption_id}", text, "a text that is not empty")
    if caption_id in seen:
        raise BadInput(f"{where}: caption id {caption_id} was used before in this file; ids must differ")
    seen.add(caption_id)
