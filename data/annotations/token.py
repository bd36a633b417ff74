"""Token files: Flickr30k's ``results.token`` and Flickr8k's ``Flickr8k.token.txt``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.annotations.records import (
    STRICT,
    AnnotationFormat,
    Caption,
    ReadingOptions,
    captions_of_records,
    kept_if_valid,
    numbered_lines,
    photo_of_flickr,
    require,
)


def read_token(path: str | Path, settings: ReadingOptions = STRICT) -> Iterator[Caption]:
    """Captions of Flickr30k's ``results.token`` or Flickr8k's ``Flickr8k.token.txt``: lines ``name.jpg#0<TAB>caption``.

    Caption ids are the file's, ``name.jpg#0``; the split is ``settings.split``, since the file names none.

    Raises:
        BadInput: a line that is not of this form, an empty caption or an id used twice; names file and line.
    """
    seen: set[str] = set()

    def captions_of_line(where: str, line: str) -> Iterator[Caption]:
        caption_id, tab, text = line.partition("\t")
        name, mark, number = caption_id.rpartition("#")
        require(tab and name and mark and number.isdecimal(), where, "the line", line, "name.jpg#0, a tab, a caption")
        yield from kept_if_valid(where, Caption(name, text, caption_id, settings.split, "en"), seen, settings)

    return captions_of_records(numbered_lines(path), captions_of_line, settings)


def data_set_of(name: str) -> str | None:
    """The published data set of a file's name."""
    return "flickr30k" if name.startswith("results") else None


FORMAT = AnnotationFormat(read_token, ("*.token",), data_set_of, photo_of_flickr)
