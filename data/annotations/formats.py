"""Readers of COCO's captions, Flickr30k's and Flickr8k's token files, Conceptual Captions, SBU and Visual Genome."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.annotations.records import ADVICE, STRICT, Caption, Reading, check, checked, each
from data.errors import BadInput
from data.storage.text_files import parse_json, read_json, read_lines

PICTURE_KEYS = ("image", "file", "url", "image_url")  # of JSON records of pairs, the first that is there


def read_coco(path: str | Path, how: Reading = STRICT) -> Iterator[Caption]:
    """Captions of COCO's ``captions_train2014.json``, ``captions_val2017.json`` and their like, by picture, all English.

    Caption ids are the file's numbers of annotations. The split is the one in the file's name, else ``how.split``.

    Raises:
        BadInput: a file that is not of this form; and, reported, an annotation without its picture, an empty caption or
            an id used twice.
    """
    content = read_json(path, ADVICE, expected=None)
    for name in ("images", "annotations"):
        value = content.get(name) if isinstance(content, dict) else None
        check(isinstance(value, list), str(path), name, value, "a list, as in COCO's captions_*.json")
    named = re.search(r"(train|val|test)\d{4}", Path(path).name)
    split = named[1] if named else how.split
    annotations: dict[Any, list[tuple[str, dict]]] = {}
    known: dict[Any, str] = {}
    for n, image in enumerate(content["images"]):
        if isinstance(image, dict) and isinstance(image.get("file_name"), str) and isinstance(image.get("id"), int):
            known[image["id"]] = image["file_name"]
        else:
            how.report(f"{path}: images[{n}] is {str(image)[:60]!r}, expected an object with id and file_name")
    for n, annotation in enumerate(content["annotations"]):
        where = f"{path}: annotations[{n}]"
        if not isinstance(annotation, dict) or not {"id", "image_id", "caption"} <= annotation.keys():
            how.report(f"{where} is {str(annotation)[:60]!r}, expected an object with id, image_id and caption")
        elif isinstance(annotation["image_id"], (list, dict)) or annotation["image_id"] not in known:
            how.report(f"{where}: image_id {annotation['image_id']} is not among the file's images")
        else:
            annotations.setdefault(annotation["image_id"], []).append((where, annotation))
    seen: set[str] = set()
    for image_id, name in known.items():
        for where, annotation in annotations.get(image_id, []):
            caption = Caption(name, annotation["caption"], str(annotation["id"]), split, "en", None, image_id)
            yield from checked(where, caption, seen, how)


def read_token(path: str | Path, how: Reading = STRICT) -> Iterator[Caption]:
    """Captions of Flickr30k's ``results.token`` or Flickr8k's ``Flickr8k.token.txt``: lines ``name.jpg#0<TAB>caption``.

    Caption ids are the file's, ``name.jpg#0``; the split is ``how.split``, since the file names none.

    Raises:
        BadInput: a line that is not of this form, an empty caption or an id used twice; names file and line.
    """
    seen: set[str] = set()

    def parse(where: str, line: str) -> Iterator[Caption]:
        caption_id, tab, text = line.partition("\t")
        name, mark, number = caption_id.rpartition("#")
        check(tab and name and mark and number.isdecimal(), where, "the line", line, "name.jpg#0, a tab, a caption")
        yield from checked(where, Caption(name, text, caption_id, how.split, "en"), seen, how)

    return each(_numbered(path), parse, how)


def read_visual_genome(path: str | Path, how: Reading = STRICT) -> Iterator[Caption]:
    """Visual Genome's ``region_descriptions.json``: every region's phrase is a caption of its picture, ``{id}.jpg``.

    Caption ids are ``{picture}#{region_id}``; the split is ``how.split``.

    Raises:
        BadInput: a file that is not of this form; and, reported, an empty phrase or a region that occurs twice.
    """
    content = read_json(path, ADVICE, expected=None)
    check(isinstance(content, list), str(path), "the file", content, "a list, as in region_descriptions.json")
    seen: set[str] = set()

    def parse(where: str, image: dict) -> Iterator[Caption]:
        try:
            number = int(image["id"])
            for region in image["regions"]:
                caption_id = f"{number}#{region['region_id']}"
                caption = Caption(f"{number}.jpg", region["phrase"], caption_id, how.split, "en", None, number)
                yield from checked(where, caption, seen, how)
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                f"{where} lacks something ({error!r}); expected id and regions of region_id and phrase"
            ) from None

    return each(((f"{path}: [{n}]", image) for n, image in enumerate(content)), parse, how)


# ---- pairs -----------------------------------------------------------------------------------------------------------


def read_pairs(path: str | Path, how: Reading = STRICT) -> Iterator[Caption]:
    """Conceptual Captions, SBU and their like: one caption of one picture at a time, all English. One of

    - ``*.tsv``: ``caption<TAB>file`` or ``caption<TAB>address``, more columns ignored
    - ``*.jsonl``: objects of ``caption`` and one of image, file, url, image_url
    - ``*.json``: a list of such objects, or SBU's ``{"image_urls": [...], "captions": [...]}``
    - SBU's ``*_urls.txt``, with ``*_captions.txt`` beside it, line by line

    An address becomes the file that ``how.downloaded`` names; a picture without one is told to ``how.missing`` and left
    out. Caption ids are positions in the file, from 0; the split is ``how.split``.

    Raises:
        BadInput: addresses and no ``how.downloaded``; and, reported, a record that is not of this form.
    """
    seen: set[str] = set()
    kind = Path(path).name.lower().removesuffix(".gz").rpartition(".")[2]

    def parse(where: str, record: Any) -> Iterator[Caption]:
        number, text, picture = record
        check(isinstance(picture, str) and picture, where, "the picture", picture, "a file name or an address")
        if how.downloaded is not None:
            if picture not in how.downloaded:
                how.missing(picture)
                return
            picture = how.downloaded[picture]
        yield from checked(where, Caption(picture, text, str(number), how.split, "en"), seen, how)

    records = {"json": _json_pairs, "jsonl": _jsonl_pairs, "txt": _sbu_pairs}.get(kind, _tsv_pairs)(path, how)
    return each(_told_files(records, path, how), parse, how)


def _told_files(records: Iterator, path: str | Path, how: Reading) -> Iterator[tuple[str, tuple[int, Any, Any]]]:
    for where, record in records:
        if how.downloaded is None and re.match(r"(?i)https?://", str(record[2])):
            raise BadInput(
                f"{where} gives the address {record[2][:60]}, not a file; say with --downloaded where pictures lie"
            )
        yield where, record


def read_downloaded(path: str | Path) -> dict[str, str]:
    """Address of a picture -> its file: lines ``address<TAB>file``, or JSON lines of ``url`` and ``file``."""
    found: dict[str, str] = {}
    for n, line in enumerate(read_lines(path, ADVICE), 1):
        where = f"{path}: line {n}"
        if not line.strip():
            continue
        if line.lstrip().startswith("{"):
            record = parse_json(line, where)
            address, file = record.get("url"), record.get("file")
        else:
            address, _, file = line.partition("\t")
        right = isinstance(address, str) and isinstance(file, str) and address and file
        check(right, where, "the line", line.strip(), "an address, a tab and a file, or JSON of url and file")
        found[address] = file
    return found


def _numbered(path: str | Path) -> Iterator[tuple[str, str]]:
    return ((f"{path}: line {n}", line) for n, line in enumerate(read_lines(path, ADVICE), 1) if line.strip())


def _tsv_pairs(path: str | Path, how: Reading) -> Iterator[tuple[str, tuple[int, Any, Any]]]:
    for n, (where, line) in enumerate(_numbered(path)):
        text, tab, rest = line.partition("\t")
        if tab:
            yield where, (n, text, rest.split("\t")[0])
        else:
            how.report(f"{where} has no tab, expected a caption, a tab and a file or an address")


def _jsonl_pairs(path: str | Path, how: Reading) -> Iterator[tuple[str, tuple[int, Any, Any]]]:
    for n, (where, line) in enumerate(_numbered(path)):
        try:
            yield where, _object_pair(n, parse_json(line, where), where)
        except BadInput as error:
            how.report(str(error))


def _json_pairs(path: str | Path, how: Reading) -> Iterator[tuple[str, tuple[int, Any, Any]]]:
    content = read_json(path, ADVICE, expected=None)
    if isinstance(content, dict):
        columns = [content.get(name) for name in ("captions", "image_urls")]
        right = all(isinstance(c, list) for c in columns) and len(columns[0]) == len(columns[1])
        check(right, str(path), "the file", sorted(content), "lists captions and image_urls of one length")
        for n, (text, picture) in enumerate(zip(*columns, strict=True)):
            yield f"{path}: captions[{n}]", (n, text, picture)
        return
    check(isinstance(content, list), str(path), "the file", content, "a list of objects, or SBU's object of lists")
    for n, record in enumerate(content):
        try:
            yield f"{path}: [{n}]", _object_pair(n, record, f"{path}: [{n}]")
        except BadInput as error:
            how.report(str(error))


def _object_pair(n: int, record: Any, where: str) -> tuple[int, Any, Any]:
    named = [name for name in PICTURE_KEYS if name in record] if isinstance(record, dict) else []
    right = named and "caption" in record
    check(right, where, "the record", record, f"an object with caption and one of {', '.join(PICTURE_KEYS)}")
    return n, record["caption"], record[named[0]]


def _sbu_pairs(path: str | Path, how: Reading) -> Iterator[tuple[str, tuple[int, Any, Any]]]:
    urls, captions = Path(path), Path(str(path).replace("_urls.txt", "_captions.txt"))
    if urls == captions:  # not SBU's: one file of lines
        yield from _tsv_pairs(path, how)
        return
    pictures, texts = ([line for line in read_lines(p, ADVICE)] for p in (urls, captions))
    if len(pictures) != len(texts):
        raise BadInput(f"{urls}: {len(pictures):,} lines, but {captions} has {len(texts):,}; they go together by line")
    for n, pair in enumerate(zip(texts, pictures, strict=True)):
        yield f"{urls}: line {n + 1}", (n, *pair)
