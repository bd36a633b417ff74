"""Queries and the pictures that they find, drawn as one PNG: right answers framed in green, and the right one shown with its
rank where it was not found; where a re-ranker sorted them anew, the first order and the new one beside each other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw

from data.captions.db import CaptionDB
from data.errors import BadInput
from data.notices import say_once
from data.regions.photos import scaled_photo
from data.regions.pictures import PictureFiles
from data.storage.atomic import atomic_file
from model.retrieval.results import Found, Hit
from model.retrieval.sheet_text import SheetFont, remarks_on, shorten, wrap_text

HIT, FRAME, TEXT, FAINT, LINE = (30, 150, 60), (210, 210, 210), (20, 20, 20), (110, 110, 110), (232, 232, 232)
MARGIN, GAP, BORDER, BETWEEN = 16, 10, 5, 36  # pixels; the last stands between two orders
COLUMNS = 6  # pictures beside each other at most
CAPTION_LINES = 2  # of a picture
TITLE, HEADING, SMALL = SheetFont(18), SheetFont(14), SheetFont(13)
TITLE_LINE, SMALL_LINE = 24, 18  # pixels


class SheetPicture(NamedTuple):
    """One picture of a row.

    Attributes:
        path: its file, None when there is none
        score: of the search, or of the re-ranker; None: it is not known
        is_right: whether it is framed as a right answer
        id: written under it
        caption: written under that
        rank: its place among the results, 1 being best; None: behind all of them
        rank_before: its place before a re-ranker sorted them anew; None: there was none
    """

    path: Path | None
    score: float | None
    is_right: bool
    id: str = ""
    caption: str = ""
    rank: int | None = 0
    rank_before: int | None = None

    @property
    def label(self) -> str:
        """What stands first under it."""
        moved = "" if self.rank_before is None else f" (was {self.rank_before})" * (self.rank_before != self.rank)
        place = "behind them" if self.rank is None else f"{self.rank}.{moved}"
        return place + ("" if self.score is None else f"  {self.score:.3f}") + "  hit" * self.is_right


@dataclass
class SheetRow:
    """A query and its pictures.

    Attributes:
        query: its text
        pictures: what was found, best first
        first: the order before a re-ranker; empty where there was none
        answer: the right picture, where it is not among ``pictures``
    """

    query: str
    pictures: Sequence[SheetPicture]
    first: Sequence[SheetPicture] = ()
    answer: SheetPicture | None = None

    @property
    def blocks(self) -> list[tuple[str, list[SheetPicture]]]:
        """Titles and pictures of what stands beside each other."""
        found = [*self.pictures, *([self.answer] if self.answer is not None else [])]
        return [("dot product", list(self.first)), ("re-ranked", found)] if self.first else [("", found)]


def sheet_pictures(
    hits: Iterable[Hit], photos: PictureFiles, right: Collection[str] = (), captions: Mapping[str, str] | None = None,
    before: Sequence[Hit] = (), first_rank: int = 1,
) -> list[SheetPicture]:
    """The pictures of a row, from what a text found.

    Args:
        photos: the folder of the pictures
        right: ids of the images that are right answers; empty when they are unknown
        captions: a caption of an id, where there are any
        before: what was found before a re-ranker sorted it anew
        first_rank: the rank of the first of the hits
    """  # fmt: skip
    captions, places = captions or {}, {hit.id: place for place, hit in enumerate(before, 1)}
    return [
        SheetPicture(photos.find(hit.id), hit.score, hit.id in right, hit.id, captions.get(hit.id, ""), rank, places.get(hit.id))
        for rank, hit in enumerate(hits, first_rank)
    ]


def first_captions(captions: CaptionDB, keys: Iterable[str], decode: Callable[[Sequence[int]], str] | None = None) -> dict[str, str]:
    """The first caption of each image that a text DB has; ``decode`` reads the ids of one whose text is not stored."""
    found = {}
    for key in keys:
        if own := captions.img2txts.get(key):  # it may be empty
            record = captions[own[0]]
            found[key] = record.get("raw") or (decode(record["input_ids"]) if decode else "")
    return found


def found_rows(
    queries: Sequence[str], found: Found, photos: PictureFiles, k: int, captions: CaptionDB | None = None,
    decode: Callable[[Sequence[int]], str] | None = None, answers: Sequence[str] | None = None,
) -> list[SheetRow]:
    """Rows of what some texts found.

    Args:
        k: pictures of a row
        captions, decode: as of `first_captions`; None: there are no captions
        answers: the key of each query's right image; one that was found behind the k best is the row's answer
    """  # fmt: skip
    rows = []
    for number, (query, hits) in enumerate(zip(queries, found.hits, strict=True)):
        answer, first = {answers[number]} if answers else set(), found.first[number] if found.first else []
        behind = [(rank, hit) for rank, hit in enumerate(hits, 1) if rank > k and hit.id in answer]
        shown = [*hits[:k], *first[:k], *(hit for _, hit in behind)]
        said = first_captions(captions, [hit.id for hit in shown], decode) if captions else {}
        row = SheetRow(query, sheet_pictures(hits[:k], photos, answer, said, first), sheet_pictures(first[:k], photos, answer, said))
        for rank, hit in behind:
            row.answer = sheet_pictures([hit], photos, answer, said, first, rank)[0]
        rows.append(row)
    return rows


def write_contact_sheet(rows: Sequence[SheetRow], out: str | Path, thumb: int = 200) -> None:
    """Write a PNG of some queries; its folder is made.

    Args:
        thumb: side of a picture's square, in pixels

    Raises:
        BadInput: no rows, no picture at all, or one that cannot be read.
    """
    if not rows:
        raise BadInput(f"{out}: no queries to draw")
    if all(picture.path is None for row in rows for _, pictures in row.blocks for picture in pictures):
        raise BadInput(
            f"{out}: none of the images found has a picture file; give the folder whose file names are the ids"
        )
    sheet = draw_contact_sheet(rows, thumb)
    with atomic_file(out) as partial:
        sheet.save(partial, format="PNG")


def draw_contact_sheet(rows: Sequence[SheetRow], thumb: int = 200) -> Image.Image:
    """The sheet as a picture; what of its texts cannot be drawn is said. Arguments as for `write_contact_sheet`."""
    texts = [row.query for row in rows]
    texts += [text for row in rows for _, pictures in row.blocks for each in pictures for text in (each.id, each.caption)]
    for remark in remarks_on(texts):
        say_once(remark)
    layouts = [_Layout(row, thumb) for row in rows]
    width = 2 * MARGIN + max(layout.width for layout in layouts)
    for layout in layouts:
        layout.lines = wrap_text(layout.row.query, TITLE, width - 2 * MARGIN)
    sheet = Image.new("RGB", (width, sum(layout.height for layout in layouts) + MARGIN), "white")
    draw, top = ImageDraw.Draw(sheet), 0
    for number, layout in enumerate(layouts):
        if number:
            draw.line((MARGIN, top + MARGIN // 2, width - MARGIN, top + MARGIN // 2), fill=LINE)
        layout.draw(sheet, draw, top)
        top += layout.height
    return sheet


@dataclass
class _Layout:
    """Where the parts of a row stand."""

    row: SheetRow
    thumb: int
    lines: list[str] = field(default_factory=list)

    @property
    def columns(self) -> int:
        """Of each block."""
        blocks = self.row.blocks
        return max(1, min(COLUMNS // len(blocks), max(len(pictures) for _, pictures in blocks)))

    @property
    def block_width(self) -> int:
        return self.columns * self.thumb + (self.columns - 1) * GAP

    @property
    def width(self) -> int:
        blocks = len(self.row.blocks)
        return blocks * self.block_width + (blocks - 1) * BETWEEN

    @cached_property
    def text_height(self) -> int:
        """What stands under a picture."""
        pictures = [picture for _, each in self.row.blocks for picture in each]
        captions = max((len(_caption_lines(picture.caption, self.thumb)) for picture in pictures), default=0)
        return 4 + SMALL_LINE * (1 + any(picture.id for picture in pictures) + captions)

    @property
    def height(self) -> int:
        rows = max(-(-len(pictures) // self.columns) for _, pictures in self.row.blocks)
        heading = TITLE_LINE if self.row.first else 0
        return MARGIN + len(self.lines) * TITLE_LINE + 6 + heading + rows * (self.thumb + self.text_height) + (rows - 1) * GAP

    def draw(self, sheet: Image.Image, draw: ImageDraw.ImageDraw, top: int) -> None:
        y = top + MARGIN
        for words in self.lines:
            TITLE.draw(draw, (MARGIN, y), words, TEXT)
            y += TITLE_LINE
        y += 6
        for number, (heading, pictures) in enumerate(self.row.blocks):
            left, start = MARGIN + number * (self.block_width + BETWEEN), y
            if heading:
                HEADING.draw(draw, (left, y), heading, FAINT)
                start += TITLE_LINE
            for place, picture in enumerate(pictures):
                x = left + place % self.columns * (self.thumb + GAP)
                self._draw_tile(sheet, draw, picture, x, start + place // self.columns * (self.thumb + self.text_height + GAP))

    def _draw_tile(self, sheet: Image.Image, draw: ImageDraw.ImageDraw, picture: SheetPicture, x: int, y: int) -> None:
        is_answer = picture is self.row.answer
        _draw_picture(sheet, draw, picture, (x, y), self.thumb, is_answer)
        y += self.thumb + 3
        label = ("right: " + "rank " * (picture.rank is not None)) * is_answer + picture.label.removesuffix("  hit" * is_answer)
        SMALL.draw(draw, (x, y), shorten(label, SMALL, self.thumb), HIT if picture.is_right or is_answer else TEXT)
        for text in [shorten(picture.id, SMALL, self.thumb)] * bool(picture.id) + _caption_lines(picture.caption, self.thumb):
            y += SMALL_LINE
            SMALL.draw(draw, (x, y), text, FAINT)


@lru_cache(1024)
def _caption_lines(caption: str, width: int) -> list[str]:
    return wrap_text(caption, SMALL, width, CAPTION_LINES) if caption else []


def _draw_picture(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, picture: SheetPicture, corner: tuple[int, int], thumb: int, is_answer: bool
) -> None:
    """Draw one picture, whole, into its square, with a frame: of a hit a broad one, of the answer that was missed a dashed one."""
    x, y = corner
    if picture.path is None:
        SMALL.draw(draw, (x + 2 * BORDER, y + thumb // 2 - 8), shorten("no picture file", SMALL, thumb - 4 * BORDER), FAINT)
    else:
        photo = scaled_photo(picture.path, thumb - 2 * BORDER)
        sheet.paste(photo, (x + (thumb - photo.width) // 2, y + (thumb - photo.height) // 2))
    if is_answer:
        for at in range(0, thumb, 12):
            end = min(at + 7, thumb) - 1
            for line in ((at, 0, end, 1), (at, thumb - 2, end, thumb - 1), (0, at, 1, end), (thumb - 2, at, thumb - 1, end)):
                draw.rectangle((x + line[0], y + line[1], x + line[2], y + line[3]), fill=HIT)
    else:
        frame = (x, y, x + thumb - 1, y + thumb - 1)
        draw.rectangle(frame, outline=HIT if picture.is_right else FRAME, width=BORDER if picture.is_right else 1)
