"""Pairs of a caption and a picture from the web: Conceptual Captions, SBU and their like."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.annotations.records import (
    ADVICE,
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
from data.annotations.tables import Row, read_table
from data.errors import BadInput
from data.storage.text_files import is_utf8, parse_json, read_json, read_lines

PICTURE_KEYS = ("image", "file", "url", "image_url")  # of JSON records of pairs, the first that is there


def read_pairs(path: str | Path, settings: ReadingOptions = STRICT) -> Iterator[Caption]:
    """Conceptual Captions, SBU and their like: one caption of one picture at a time, all English. One of

    - ``*.tsv``, ``*.csv``, ``*.txt``: a table whose header line names the columns, ``filepath<TAB>title``,
      ``image,caption``, ``image_name| comment_number| comment``, and a column ``split`` where there is one; without one ``caption<TAB>file`` or
      ``caption<TAB>address``, or the other way round where what stands in front is an address or a picture's file; more
      columns ignored
    - ``*.jsonl``: objects of ``caption``, a text or a list of texts, and one of image, file, url, image_url
    - ``*.json``: a list of such objects, or SBU's ``{"image_urls": [...], "captions": [...]}``
    - SBU's ``*_urls.txt``, with ``*_captions.txt`` beside it, line by line

    An address becomes the file that ``settings.downloaded`` names; a picture without one is named to ``settings.on_missing_picture``
    and left out. Caption ids are positions in the file, from 0, of one of several ``3#0``; the split is ``settings.split`` where the file says none.

    Raises:
        BadInput: addresses and no ``settings.downloaded``; and, reported, a record that is not of this form.
    """
    seen: set[str] = set()
    kind = Path(path).name.lower().removesuffix(".gz").rpartition(".")[2]

    def caption_of_pair(where: str, record: Any) -> Iterator[Caption]:
        number, text, picture, split = record
        texts = text if isinstance(text, list) else [text]
        require(isinstance(picture, str) and picture, where, "the picture", picture, "a file name or an address")
        require(is_utf8(picture), where, "the picture", picture, "UTF-8 text")
        if split:
            require_split_name(where, split)
        if settings.downloaded is not None:
            if picture not in settings.downloaded:
                for _ in texts:
                    settings.on_missing_picture(picture)
                return
            picture = settings.downloaded[picture]
        if not texts:
            settings.on_picture_without_captions(picture)
        for n, one in enumerate(texts):
            caption_id = f"{number}#{n}" if texts is text else str(number)
            yield from kept_if_valid(where, Caption(picture, one, caption_id, split or settings.split, "en"), seen, settings)

    records = {"json": _json_pairs, "jsonl": _jsonl_pairs, "txt": _sbu_pairs}.get(kind, read_table)(path, settings)
    return captions_of_records(_refuse_addresses(records, settings), caption_of_pair, settings)


def _refuse_addresses(records: Iterator, settings: ReadingOptions) -> Iterator[tuple[str, Row]]:
    for where, record in records:
        if settings.downloaded is None and re.match(r"(?i)https?://", str(record.picture)):
            raise BadInput(
                f"{where} gives the address {record.picture[:60]}, not a file; say with --downloaded where pictures lie"
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
        require(right, where, "the line", line.strip(), "an address, a tab and a file, or JSON of url and file")
        if found.setdefault(address, file) != file:
            raise BadInput(f"{where}: {address[:60]} is {file} here and {found[address]} before; an address has one file")
    return found


def _jsonl_pairs(path: str | Path, settings: ReadingOptions) -> Iterator[tuple[str, Row]]:
    for n, (where, line) in enumerate(numbered_lines(path)):
        try:
            yield where, _object_pair(n, parse_json(line, where), where)
        except BadInput as error:
            settings.on_bad_record(str(error), 1)


def _json_pairs(path: str | Path, settings: ReadingOptions) -> Iterator[tuple[str, Row]]:
    content = read_json(path, ADVICE, expected=object)
    if isinstance(content, dict):
        columns = [content.get(name) for name in ("captions", "image_urls")]
        right = all(isinstance(c, list) for c in columns) and len(columns[0]) == len(columns[1])
        require(right, str(path), "the file", sorted(content), "lists captions and image_urls of one length")
        for n, (text, picture) in enumerate(zip(*columns, strict=True)):
            yield f"{path}: captions[{n}]", Row(n, text, picture, "")
        return
    require(isinstance(content, list), str(path), "the file", content, "a list of objects, or SBU's object of lists")
    for n, record in enumerate(content):
        try:
            yield f"{path}: [{n}]", _object_pair(n, record, f"{path}: [{n}]")
        except BadInput as error:
            settings.on_bad_record(str(error), 1)


def _object_pair(n: int, record: Any, where: str) -> Row:
    named = [name for name in PICTURE_KEYS if record.get(name)] if isinstance(record, dict) else []
    right = named and "caption" in record
    require(right, where, "the record", record, f"an object with caption and one of {', '.join(PICTURE_KEYS)}")
    split = record.get("split", "")
    require(isinstance(split, str), where, "split", split, "a text")
    return Row(n, record["caption"], record[named[0]], split)


def _sbu_pairs(path: str | Path, settings: ReadingOptions) -> Iterator[tuple[str, Row]]:
    urls, captions = Path(path), Path(str(path).replace("_urls.txt", "_captions.txt"))
    if urls == captions:  # not SBU's: one file of lines
        yield from read_table(path, settings)
        return
    pictures, texts = (list(read_lines(p, ADVICE)) for p in (urls, captions))
    if len(pictures) != len(texts):
        raise BadInput(f"{urls}: {len(pictures):,} lines, but {captions} has {len(texts):,}; they go together by line")
    for n, pair in enumerate(zip(texts, pictures, strict=True)):
        yield f"{urls}: line {n + 1}", Row(n, *pair, "")


FORMAT = AnnotationFormat(read_pairs, ("*.tsv", "*.csv"))
