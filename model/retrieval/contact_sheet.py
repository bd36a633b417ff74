"""Queries and the pictures that they find, drawn as one PNG: a row per query, right answers framed in green."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from data.errors import BadInput
from data.regions.pictures import PictureFiles
from data.storage.atomic import atomic_file
from model.retrieval.results import Hit

HIT, FRAME, TEXT, FAINT = (30, 150, 60), (210, 210, 210), (20, 20, 20), (110, 110, 110)
MARGIN, GAP, BORDER = 16, 10, 5  # pixels


class SheetPicture(NamedTuple):
    """One picture of a row: its file, None when there is none; its score; whether it is framed as a right answer."""

    path: Path | None
    score: float
    is_right: bool


def sheet_pictures(hits: Iterable[Hit], photos: PictureFiles, right: Collection[str] = ()) -> list[SheetPicture]:
    """The pictures of a row, from what a text found.

    Args:
        photos: the folder of the pictures
        right: ids of the images that are right answers; empty when they are unknown
    """
    return [SheetPicture(photos.find(hit.id), hit.score, hit.id in right) for hit in hits]


def write_contact_sheet(rows: Sequence[tuple[str, Sequence[SheetPicture]]], out: str | Path, thumb: int = 200) -> None:
    """Write a PNG with one row per query.

    Args:
        rows: a query's text, and its pictures, best first
        out: the PNG; its folder is made
        thumb: side of a picture's square, in pixels

    Raises:
        BadInput: no rows, no picture at all, or one that cannot be read.
    """
    if not rows:
        raise BadInput(f"{out}: no queries to draw")
    if all(path is None for _, pictures in rows for path, _, _ in pictures):
        raise BadInput(
            f"{out}: none of the images found has a picture file; give the folder whose file names are the ids"
        )
    columns = max(1, *(len(pictures) for _, pictures in rows))
    width = 2 * MARGIN + columns * thumb + (columns - 1) * GAP
    title, small = sheet_font(18), sheet_font(13)
    texts = [wrap_text(text, title, width - 2 * MARGIN) for text, _ in rows]
    line, caption = 24, 20  # heights in pixels
    heights = [MARGIN + len(lines) * line + 6 + thumb + caption for lines in texts]
    sheet = Image.new("RGB", (width, sum(heights) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for lines, (_, pictures), height in zip(texts, rows, heights, strict=True):
        for number, words in enumerate(lines):
            draw.text((MARGIN, top + MARGIN + number * line), words, fill=TEXT, font=title)
        y = top + height - thumb - caption
        for column, (path, score, is_right) in enumerate(pictures):
            x = MARGIN + column * (thumb + GAP)
            _draw_picture(sheet, draw, path, (x, y), thumb, is_right, small)
            label = f"{column + 1}.  {score:.3f}" + ("  hit" if is_right else "")
            draw.text((x, y + thumb + 3), label, fill=HIT if is_right else FAINT, font=small)
        top += height
    with atomic_file(out) as partial:
        sheet.save(partial, format="PNG")


def _draw_picture(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    path: Path | None,
    corner: tuple[int, int],
    thumb: int,
    is_right: bool,
    font: ImageFont.FreeTypeFont,
) -> None:
    """Draw one picture, whole, into its square, with a frame."""
    x, y = corner
    frame = (x, y, x + thumb - 1, y + thumb - 1)
    if path is None:
        draw.text((x + 2 * BORDER, y + thumb // 2 - 8), "no picture file", fill=FAINT, font=font)
    else:
        try:
            with Image.open(path) as file:
                picture = ImageOps.exif_transpose(file).convert("RGB")
        except OSError as error:
            raise BadInput(f"{path}: cannot read the picture: {error}") from error
        picture = ImageOps.contain(picture, (thumb - 2 * BORDER, thumb - 2 * BORDER))  # whole picture, never cropped
        sheet.paste(picture, (x + (thumb - picture.width) // 2, y + (thumb - picture.height) // 2))
    draw.rectangle(frame, outline=HIT if is_right else FRAME, width=BORDER if is_right else 1)


def wrap_text(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines no wider than ``width`` pixels; a word that is itself wider is cut between characters."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


@lru_cache
def sheet_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib carries it: Pillow's own default font has no accented letters."""
    import matplotlib  # slow to import

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)
