"""What all annotation formats share: the caption, how a file is read, and the checks of a record."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data.errors import BadInput
from data.storage.text_files import read_lines

ADVICE = "check the path of the annotations"


@dataclass(frozen=True, slots=True)
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


def refuse_record(message: str) -> None:
    """End reading at the first bad record."""
    raise BadInput(message)


@dataclass(frozen=True)
class ReadingOptions:
    """How an annotation file is read.

    Args:
        on_bad_record: called with a line about every bad record; when it returns, reading goes on behind the record
        fields: JSON lines: keys of a line that hold captions; a language is taken from the first that has it
        split: of all captions, where the format names none
        needs_split: JSON lines: every line must name its split; else `split` is that of those that do not
        downloaded: pairs of caption and picture: address of a picture -> its file
        on_missing_picture: called with the address of every picture that was not downloaded
    """

    on_bad_record: Callable[[str], None] = refuse_record
    fields: tuple[str, ...] = ("captions",)
    split: str = "train"
    needs_split: bool = True
    downloaded: dict[str, str] | None = None
    on_missing_picture: Callable[[str], None] = lambda name: None


STRICT = ReadingOptions()  # stops at the first bad record


def photo_of(name: str) -> str:
    """What a picture's file name says of the photograph that it is.

    ``coco:42`` for COCO_val2014_000000000042.jpg and 000000000042.jpg; ``flickr:1000092795`` for Flickr's number, with
    or without its secret (1000092795.jpg, 1003163366_44323f5815.jpg); else the name without extension, ``name:dog``.
    """
    stem = PurePosixPath(name).stem
    if found := re.fullmatch(r"COCO_[a-z]+\d{4}_0*(\d+)|0(?=\d{11}$)0*(\d+)", stem):
        return f"coco:{found[1] or found[2]}"
    if found := re.fullmatch(r"(\d{5,})(_[0-9a-f]{6,}(_[a-z])?)?", stem):
        return f"flickr:{found[1]}"
    return f"name:{stem}"


@dataclass(frozen=True)
class AnnotationFormat:
    """What an annotation format owns.

    Args:
        read: the captions of a file (of Multi30K: of its folder); raises BadInput where it is no such file
        file_names: patterns of the names that its files usually have, a folder's with a slash behind it; of the formats that
            fit, the one with the longest pattern is taken for a file whose format is not said
        data_set_of: name of a file -> the published data set that it is, a key of `data.annotations.published.COUNTS`
        photo_of: name of a picture -> the photograph that it is, the same for all names of one photograph
    """

    read: Callable[[str | Path, ReadingOptions], Iterator[Caption]]
    file_names: tuple[str, ...] = ()
    data_set_of: Callable[[str], str | None] = lambda name: None
    photo_of: Callable[[str], str] = photo_of


# ---- records and checks ----------------------------------------------------------------------------------------------


def numbered_lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """``FILE: line N`` and the line, of those that are not empty."""
    return ((f"{path}: line {n}", line) for n, line in enumerate(read_lines(path, ADVICE), 1) if line.strip())


def captions_of_records(
    records: Iterable[tuple[str, Any]], captions_of: Callable[[str, Any], Iterator[Caption]], settings: ReadingOptions
) -> Iterator[Caption]:
    """The captions that ``captions_of(where, record)`` makes of each record; one that it refuses is reported."""
    for where, record in records:
        try:
            yield from captions_of(where, record)
        except BadInput as error:
            settings.on_bad_record(str(error))


def kept_if_valid(where: str, caption: Caption, seen: set[str], settings: ReadingOptions) -> Iterator[Caption]:
    """Yield the caption if its text is not empty and its id is not among those seen; else report it."""
    try:
        text, caption_id = caption.text, caption.caption_id
        require(isinstance(text, str) and text.strip(), where, f"caption {caption_id}", text, "a text that is not empty")
        if caption_id in seen:
            raise BadInput(f"{where}: caption id {caption_id} was used before in this file; ids must differ")
    except BadInput as error:
        settings.on_bad_record(str(error))
        return
    seen.add(caption.caption_id)
    yield caption


def require(right: object, where: str, what: str, found: object, expected: str) -> None:
    """Raise BadInput, which says what was found and what was expected, unless it is right."""
    if not right:
        raise BadInput(f"{where}: {what} is {str(found)[:60]!r}, expected {expected}")


def require_split_name(where: str, split: object) -> None:
    """Refuse what cannot name a folder, since a split's database is the folder of its name."""
    right = isinstance(split, str) and split not in ("", ".", "..") and not {"/", "\0"} & set(split)
    require(right, where, "split", split, "a name such as train, without /")
