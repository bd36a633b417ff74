"""Tables of pairs: tab-separated files and those with a header line, whichever column comes first."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.annotations.records import ReadingOptions, is_address_or_file, numbered_lines
from data.errors import BadInput

# names of columns in header lines, the first that is there
PICTURE_COLUMNS = (
    "image", "image_name", "image_path", "img", "file", "file_name", "filename", "filepath", "file_path", "path",
    "picture", "photo", "url", "image_url",
)  # fmt: skip
CAPTION_COLUMNS = ("caption", "captions", "title", "text", "comment", "sentence", "description")


@dataclass(frozen=True)
class Columns:
    """Where a table has what.

    Args:
        separator: of its cells
        caption, picture: numbers of columns
        count: of the columns; None where no header says it
    """

    separator: str
    caption: int
    picture: int
    count: int | None = None

    def pair(self, line: str) -> tuple[str, str]:
        """Caption and picture of a line. Raises BadInput: the end of a sentence about the line."""
        cells = _cells(line, self.separator)
        if self.count is None:
            if len(cells) < 2:
                raise BadInput("has no tab, expected a caption, a tab and a file or an address")
            return cells[self.caption], cells[self.picture]
        if len(cells) > self.count and self.caption == self.count - 1 and self.separator != "\t":
            cells[self.caption :] = [self.separator.join(cells[self.caption :])]  # a caption may hold it
        if len(cells) != self.count:
            raise BadInput(f"has {len(cells)} columns, the header {self.count}")
        return cells[self.caption].strip(), cells[self.picture].strip()


def read_table(path: str | Path, settings: ReadingOptions) -> Iterator[tuple[str, tuple[int, str, str]]]:
    """Where, and number, caption and picture, of each line of a table.

    A first line that names a picture's and a caption's column (``filepath<TAB>title``, ``image,caption``,
    ``image_name| comment_number| comment``) says where they are and what separates them. Without one the separator is a
    tab, and the two first columns are caption and picture, or the other way round where the first line that tells has an
    address or a picture's file name in front. Lines that cannot be cut are reported.

    Raises:
        BadInput: a file of commas without such a line.
    """
    lines = numbered_lines(path)
    first = next(lines, None)
    if first is None:
        return
    columns = _columns_of_header(first[1])
    if columns is None:
        if "\t" not in first[1] and str(path).lower().removesuffix(".gz").endswith(".csv"):
            raise BadInput(
                f"{first[0]} names no columns; expected a header such as image,caption in front of a .csv, or tabs in a .tsv"
            )
        columns, lines = _order_of_columns(itertools.chain([first], lines))
    for n, (where, line) in enumerate(lines):
        try:
            text, picture = columns.pair(line)
        except BadInput as error:
            settings.on_bad_record(f"{where} {error}", 1)
        else:
            yield where, (n, text, picture)


def _columns_of_header(line: str) -> Columns | None:
    for separator in ("\t", "|", ","):
        try:
            names = [cell.strip().lower() for cell in _cells(line, separator)]
        except BadInput:
            continue
        found = [_first(names, known) for known in (CAPTION_COLUMNS, PICTURE_COLUMNS)]
        if None not in found:
            return Columns(separator, *found, len(names))
    return None


def _first(names: list[str], known: tuple[str, ...]) -> int | None:
    return next((names.index(name) for name in known if name in names), None)


def _order_of_columns(lines: Iterator[tuple[str, str]]) -> tuple[Columns, Iterator[tuple[str, str]]]:
    """The order of caption and picture, and all lines again."""
    begun = []
    for where, line in lines:
        begun.append((where, line))
        if columns := _columns_of_line(line):
            return columns, itertools.chain(begun, lines)
    return Columns("\t", 0, 1), iter(begun)


def _columns_of_line(line: str) -> Columns | None:
    """The order of caption and picture that a line tells, if it does."""
    cells = line.split("\t")
    if len(cells) < 2:
        return None
    is_picture = [is_address_or_file(cell) for cell in cells[:2]]
    if is_picture[0] == is_picture[1]:
        return None
    return Columns("\t", 1, 0) if is_picture[0] else Columns("\t", 0, 1)


def _cells(line: str, separator: str) -> list[str]:
    if separator != ",":
        return line.split(separator)
    try:
        return next(csv.reader([line], strict=True))  # a line by itself: an open quote takes no other line with it
    except csv.Error as error:
        raise BadInput(f"is no line of comma-separated values ({error})") from None
