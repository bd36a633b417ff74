"""What all annotation formats share: the caption, how a file is read, and the checks of a record."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data.errors import BadInput
from data.storage.text_files import is_utf8, read_lines

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


def refuse_record(message: str, captions: int = 1) -> None:
    """End reading at the first bad record."""
    raise BadInput(message)


@dataclass(frozen=True)
class ReadingOptions:
    """How an annotation file is read.

    Args:
        on_bad_record: called with a line about every bad record and how many captions are lost with it, 1 where they cannot
            be counted; when it returns, reading goes on behind the record
        on_picture_without_captions: called with the name of every picture that the file lists without a caption
        on_unread_file: called with the name of every file of a folder that looks like one of its captions and is not read
        fields: JSON lines: keys of a line that hold captions; a language is taken from the first that has it
        split: of all captions, where the format names none
        split_is_given: the user said that split: it wins over what the file's name suggests
        needs_split: JSON lines: every line must name its split; else `split` is that of those that do not
        downloaded: pairs of caption and picture: address of a picture -> its file
        on_missing_picture: called with the address of every picture that was not downloaded
    """

    on_bad_record: Callable[[str, int], None] = refuse_record
    on_picture_without_captions: Callable[[str], None] = lambda name: None
    on_unread_file: Callable[[str], None] = lambda name: None
    fields: tuple[str, ...] = ("captions",)
    split: str = "train"
    split_is_given: bool = False
    needs_split: bool = True
    downloaded: dict[str, str] | None = None
    on_missing_picture: Callable[[str], None] = lambda name: None


STRICT = ReadingOptions()  # stops at the first bad record


def photo_of(name: str) -> str:
    """What a picture's file name says of the photograph that it is.

    ``coco:42`` for COCO_val2014_000000000042.jpg and 000000000042.jpg; ``flickr:1003163366`` for Flickr's number with its
    secret of ten hexadecimal digits, a letter among them (1003163366_44323f5815.jpg); else the name without extension,
    ``name:dog``. A number alone is anybody's: phones call photos 20240101_100000.jpg.
    """
    stem = PurePosixPath(name).stem
    if found := re.fullmatch(r"COCO_[a-z]+\d{4}_0*(\d+)|0(?=\d{11}$)0*(\d+)", stem):
        return f"coco:{found[1] or found[2]}"
    if found := re.fullmatch(r"(\d{5,})_(?=\d*[a-f])[0-9a-f]{10}(_[a-z])?", stem):
        return f"flickr:{found[1]}"
    return f"name:{stem}"


def photo_of_flickr(name: str) -> str:
    """`photo_of` for the formats in which Flickr's data sets are published: there a number alone is Flickr's
    (1000092795.jpg), and so is one before any ten hexadecimal digits."""
    found = re.fullmatch(r"(\d{5,})(_[0-9a-f]{10}(_[a-z])?)?", PurePosixPath(name).stem)
    photo = photo_of(name)
    return f"flickr:{found[1]}" if found and photo.startswith("name:") else photo


@dataclass(frozen=True)
class AnnotationFormat:
    """What an annotation format owns.

    Args:
        read: the captions of a file (of Multi30K: of its folder); raises BadInput where it is no such file
        file_names: patterns of the names that its files usually have, a folder's with a slash behind it; of the formats that
            fit, the one with the longest pattern is taken for a file whose format is not said
        data_set_of: name of a file -> the published data set that it is, a key of `data.annotations.published.COUNTS`
        photo_of: name of a picture -> the photograph that it is, the same for all names of one photograph
        names_splits: every file of this format says the split of each picture
    """

    read: Callable[[str | Path, ReadingOptions], Iterator[Caption]]
    file_names: tuple[str, ...] = ()
    data_set_of: Callable[[str], str | None] = lambda name: None
    photo_of: Callable[[str], str] = photo_of
    names_splits: bool = False


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
            settings.on_bad_record(str(error), 1)


def captions_of_sentences(
    where: str, sentences: object, caption_of: Callable[[str, Any], Caption], seen: set[str], settings: ReadingOptions
) -> Iterator[Caption]:
    """The captions of one picture's sentences, where a bad one costs no other.

    Args:
        sentences: what the file has where a list is expected
        caption_of: ``caption_of(where, sentence)``; raises BadInput, or what a wrong type raises

    Raises:
        BadInput: it is no list.
    """
    require(isinstance(sentences, list), where, "sentences", sentences, "a list")
    for n, sentence in enumerate(sentences, 1):
        at = f"{where}: sentence {n} of {len(sentences)}"
        try:
            caption = caption_of(at, sentence)
        except BadInput as error:
            settings.on_bad_record(str(error), 1)
        except (KeyError, TypeError, AttributeError) as error:
            settings.on_bad_record(f"{at} lacks something ({error!r}), found {ascii(sentence)[:60]}", 1)
        else:
            yield from kept_if_valid(where, caption, seen, settings)


def kept_if_valid(where: str, caption: Caption, seen: set[str], settings: ReadingOptions) -> Iterator[Caption]:
    """Yield the caption if its text has words, its id is not among those seen, and all can be stored; else report it."""
    text, caption_id = caption.text, caption.caption_id
    try:
        require(is_storable(caption_id), where, "the caption's id", caption_id, "UTF-8 text of at most 511 bytes")
        require(is_storable(caption.image), where, "the picture", caption.image, "UTF-8 text of at most 511 bytes")
        require(names_file(caption.image), where, "the picture", caption.image, "the name of a file")
        what = f"caption {caption_id}"
        require(isinstance(text, str) and text.strip(), where, what, text, "a text that is not empty")
        require(is_utf8(text), where, what, text, "UTF-8 text, not half of a surrogate pair")
        require(has_word(text), where, what, text, "a text with a word or a sign that can be seen")
        require(not is_address_or_file(text), where, what, text, "a caption, not an address or a file name")
        if caption_id in seen:
            raise BadInput(f"{where}: caption id {caption_id} was used before in this file; ids must differ")
    except BadInput as error:
        settings.on_bad_record(str(error), 1)
        return
    seen.add(caption_id)
    yield caption


def is_storable(name: object) -> bool:
    """Whether a name can be a key of a database: UTF-8 of 1 to 511 bytes, without NUL."""
    return isinstance(name, str) and "\0" not in name and is_utf8(name) and 0 < len(name.encode()) <= 511


def names_file(path: str) -> bool:
    """Whether a path ends in a name: ``.``, ``..`` and ``/`` do not."""
    return PurePosixPath(path).name not in ("", "..")


def has_word(text: str) -> bool:
    """Whether a text holds a letter, digit, punctuation mark or symbol: what BERT's cleaning leaves of it.

    Spaces of all kinds, controls, invisible format characters (U+200B), marks without a letter, private and replacement
    characters alone are no caption. Punctuation alone is one.
    """
    return any(unicodedata.category(c)[0] in "LNPS" and c != "\ufffd" for c in text)


PICTURE_ENDINGS = ("jpg", "jpeg", "jpe", "jfif", "png", "gif", "bmp", "webp", "tif", "tiff", "heic", "heif", "avif")


def is_address_or_file(text: str) -> bool:
    """Whether a text is the address of a picture, or ends as a picture's file name does."""
    return re.fullmatch(rf"(?i)(https?|s3|ftp|file)://.*|.*\.({'|'.join(PICTURE_ENDINGS)})", text.strip()) is not None


def id_text(where: str, what: str, value: object) -> str:
    """An id of a JSON file as text: 1, 1.0 and "1" are the same. Raises BadInput when it is neither number nor text."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    right = (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and value.strip())
    require(right, where, what, value, "a number or a text")
    return str(value).strip()


def number_of_id(text: str) -> int | None:
    """The number that an id is, where it is one that can be stored."""
    return int(text) if text.isdecimal() and len(text) <= 18 else None


def require(right: object, where: str, what: str, found: object, expected: str) -> None:
    """Raise BadInput, which says what was found and what was expected, unless it is right."""
    if not right:
        shown = str(found)[:60]
        raise BadInput(f"{where}: {what} is {repr(shown) if is_utf8(shown) else ascii(shown)}, expected {expected}")


def require_split_name(where: str, split: object) -> None:
    """Refuse what cannot name a folder, since a split's database is the folder of its name."""
    right = is_storable(split) and split not in (".", "..") and "/" not in split
    require(right, where, "split", split, "a name such as train, without /")
