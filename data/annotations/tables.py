"""Tables of pairs: tab-separated files and those with a header line, whichever column comes first."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data.annotations.records import ReadingOptions, is_address_or_file, numbered_lines
from data.errors import BadInput

# names of columns in header lines, the first that is there
PICTURE_COLUMNS = (
    "image", "image_name", "image_path", "img", "file", "file_name", "filename", "filepath", "file_path", "path",
    "picture", "photo", "url", "image_url",
)  # fmt: skip
CAPTION_COLUMNS = ("caption", "captions", "title", "text", "comment", "sentence", "description")
SPLIT_COLUMNS = ("split", "set", "subset", "partition")


class Row(NamedTuple):
    """A line of a table; ``split`` is empty where it does not say one."""

    number: int
    caption: str
    picture: str
    split: str


@dataclass(frozen=True)
class Columns:
    """Where a table has what.

    Args:
        separator: of its cells
        caption, picture: numbers of columns
        count: of the columns; None where no header says it
        split: number of the column that says the picture's split; None where there is none
        are_files: whether what no header calls pictures are known to be files or addresses
    """

    separator: str
    caption: int
    picture: int
    count: int | None = None
    split: int | None = None
    are_files: bool = False

    def row(self, number: int, line: str) -> Row:
        """What a line says. Raises BadInput: the end of a sentence about the line."""
        cells = _cells(line, self.separator)
        if self.count is None:
            if len(cells) < 2:
                raise BadInput("has no tab, expected a caption, a tab and a file or an address")
            picture = cells[self.picture]
            if self.are_files and not is_address_or_file(picture):
                raise BadInput(
                    f"has {picture[:60]!r} where other lines have a picture's file or address; a header must call two columns "
                    f"{CAPTION_COLUMNS[0]} and {PICTURE_COLUMNS[0]}, or as other data sets do"
                )
            return Row(number, cells[self.caption], picture, "")
        if len(cells) > self.count and self.caption == self.count - 1 and self.separator != "\t":
            cells[self.caption :] = [self.separator.join(cells[self.caption :])]  # a caption may hold it
        if len(cells) != self.count:
            raise BadInput(f"has {len(cells)} columns, the header {self.count}")
        split = "" if self.split is None else cells[self.split].strip()
        return Row(number, cells[self.caption].strip(), cells[self.picture].strip(), split)


def read_table(path: str | Path, settings: ReadingOptions) -> Iterator[tuple[str, Row]]:
    """Where it stands, and what it says, of each line of a table.

    A first line that names a picture's and a caption's column (``filepath<TAB>title``, ``image,caption``,
    ``image_name| comment_number| comment``) says where they are and what separates them, and where a picture's split is, if it
    has a column ``split``. Without one the separator is a
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
            row = columns.row(n, line)
        except BadInput as error:
            settings.on_bad_record(f"{where} {error}", 1)
        else:
            yield where, row


def _columns_of_header(line: str) -> Columns | None:
    for separator in ("\t", "|", ","):
        try:
            names = [cell.strip().lower() for cell in _cells(line, separator)]
        except BadInput:
            continue
        found = [_first(names, known) for known in (CAPTION_COLUMNS, PICTURE_COLUMNS)]
        if None not in found:
            return Columns(separator, *found, len(names), _first(names, SPLIT_COLUMNS))
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
    caption, picture = (1, 0) if is_picture[0] else (0, 1)
    return Columns("\t", caption, picture, are_files=True)


def _cells(line: str, separator: str) -> list[str]:
    if separator != ",":
        return line.split(separator)
    try:
        return next(csv.reader([line], strict=True))  # a line by itself: an open quote takes no other line with it
    except csv.Error as error:
        raise BadInput(f"is no line of comma-separated values ({error})") from None
