"""Public annotation files, read into captions. Here what all formats share, JSON lines and Karpathy's JSON; the others
are in `data.annotation_formats` and `data.multi30k`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from data.errors import BadInput
from data.storage.text_files import parse_json, read_json, read_lines

Format = Literal[
    "jsonl", "karpathy", "coco", "token", "multi30k", "multi30k-task1", "multi30k-task2", "pairs", "visual-genome"
]

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


def refuse(message: str) -> None:
    """The report that ends reading at the first bad record."""
    raise BadInput(message)


@dataclass(frozen=True)
class Reading:
    """How an annotation file is read.

    Args:
        report: told of every bad record, one line each; when it returns, reading goes on behind the record
        fields: JSON lines: keys of a line that hold captions; a language is taken from the first that has it
        split: of all captions, where the format names none
        needs_split: JSON lines: every line must name its split; else `split` is that of those that do not
        downloaded: caption–picture pairs: address of a picture -> its file
        missing: told of every picture that was not downloaded
    """

    report: Callable[[str], None] = refuse
    fields: tuple[str, ...] = ("captions",)
    split: str = "train"
    needs_split: bool = True
    downloaded: dict[str, str] | None = None
    missing: Callable[[str], None] = lambda name: None


STRICT = Reading()  # stops at the first bad record


def read_captions(path: str | Path, form: Format, how: Reading = STRICT) -> Iterator[Caption]:
    """Captions of a file (of Multi30K: of its folder) in the form ``form``.

    Raises:
        BadInput: a file that cannot be read or is something else; and a bad record, unless ``how.report`` returns.
    """
    from data.annotations import formats, multi30k

    readers = {
        "jsonl": read_jsonl,
        "karpathy": read_karpathy,
        "coco": formats.read_coco,
        "token": formats.read_token,
        "pairs": formats.read_pairs,
        "visual-genome": formats.read_visual_genome,
        "multi30k": multi30k.read_both,
        "multi30k-task1": multi30k.read_task1,
        "multi30k-task2": multi30k.read_task2,
    }
    return readers[form](path, how)


def read_jsonl(path: str | Path, how: Reading = STRICT) -> Iterator[Caption]:
    """Captions of a JSON-lines file, a picture on one line or on several; other keys of a line are ignored::

        {"image": "dog.jpg", "captions": {"en": ["a dog", "the dog"], "de": ["ein Hund"]}, "split": "train"}

    Caption ids are ``{image name without extension}#{language}{number}``, for instance ``dog#en0``, numbered through
    the file. With several ``how.fields`` a language comes from the first of them that has it; one text may stand for a
    list of one.

    Raises:
        BadInput: a line that is not of this form, an empty caption or an id used twice; names file and line.
    """
    seen: set[str] = set()
    count: Counter[tuple[str, str]] = Counter()

    def parse(where: str, line: str) -> Iterator[Caption]:
        record = parse_json(line, where, "every line is one object")
        wanted = {"image", *how.fields, *["split"] * how.needs_split}
        if not isinstance(record, dict) or not wanted <= record.keys():
            found = sorted(record) if isinstance(record, dict) else type(record).__name__
            raise BadInput(f"{where} has {found}, expected an object with image, {', '.join(how.fields)} and split")
        image, split = record["image"], record.get("split", how.split)
        check(isinstance(image, str) and image, where, "image", image, "a file name")
        check_split(where, split)
        texts_of: dict[str, Any] = {}
        for field in how.fields:
            captions = record[field]
            check(isinstance(captions, dict) and captions, where, field, captions, "an object of language: [captions]")
            single = field != "captions"
            for language, texts in captions.items():
                texts_of.setdefault(language, [texts] if single and isinstance(texts, str) else texts)
        for language, texts in texts_of.items():
            check(isinstance(texts, list), where, f"captions of language {language}", texts, "a list of texts")
            for text in texts:
                caption_id = f"{PurePosixPath(image).stem}#{language}{count[image, language]}"
                count[image, language] += 1
                yield from checked(where, Caption(image, text, caption_id, split, language), seen, how)

    numbered = ((f"{path}: line {n}", line) for n, line in enumerate(read_lines(path, ADVICE), 1) if line.strip())
    return each(numbered, parse, how)


def read_karpathy(path: str | Path, how: Reading = STRICT) -> Iterator[Caption]:
    """Captions of Karpathy's ``dataset_flickr30k.json``, ``dataset_coco.json`` and their like, all English.

    Caption ids are the file's ``sentid``.

    Raises:
        BadInput: a file that is not of this form, an empty caption or an id used twice; names file and picture.
    """
    content = read_json(path, ADVICE, expected=None)
    images = content.get("images") if isinstance(content, dict) else None
    check(isinstance(images, list), str(path), "images", images, "a list, as in Karpathy's dataset_*.json")
    seen: set[str] = set()

    def parse(where: str, image: dict) -> Iterator[Caption]:
        try:
            name, split, image_id = image["filename"], image["split"], image.get("cocoid")
            where += f" ({name})"
            check(isinstance(name, str) and name, where, "filename", name, "a file name")
            check_split(where, split)
            check(image_id is None or isinstance(image_id, int), where, "cocoid", image_id, "a number")
            for sentence in image["sentences"]:
                caption_id, text, tokens = str(sentence["sentid"]), sentence["raw"], sentence.get("tokens")
                tokens = tuple(tokens) if tokens else None
                yield from checked(where, Caption(name, text, caption_id, split, "en", tokens, image_id), seen, how)
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInput(
                f"{where} lacks something ({error!r}); expected filename, split and sentences of raw and sentid"
            ) from None

    return each(((f"{path}: images[{n}]", image) for n, image in enumerate(images)), parse, how)


# ---- what the formats share ------------------------------------------------------------------------------------------


def each(
    records: Iterable[tuple[str, Any]], parse: Callable[[str, Any], Iterator[Caption]], how: Reading
) -> Iterator[Caption]:
    """The captions that ``parse`` makes of (where, record); a record that it refuses is reported."""
    for where, record in records:
        try:
            yield from parse(where, record)
        except BadInput as error:
            how.report(str(error))


def checked(where: str, caption: Caption, seen: set[str], how: Reading) -> Iterator[Caption]:
    """The caption, if its text is not empty and its id is new; else nothing, and a report."""
    try:
        text, caption_id = caption.text, caption.caption_id
        check(isinstance(text, str) and text.strip(), where, f"caption {caption_id}", text, "a text that is not empty")
        if caption_id in seen:
            raise BadInput(f"{where}: caption id {caption_id} was used before in this file; ids must differ")
    except BadInput as error:
        how.report(str(error))
        return
    seen.add(caption.caption_id)
    yield caption


def check(right: object, where: str, what: str, found: object, expected: str) -> None:
    if not right:
        raise BadInput(f"{where}: {what} is {str(found)[:60]!r}, expected {expected}")


def check_split(where: str, split: object) -> None:
    """A split's database is the folder of its name."""
    right = isinstance(split, str) and split not in ("", ".", "..") and not {"/", "\0"} & set(split)
    check(right, where, "split", split, "a name such as train, without /")
