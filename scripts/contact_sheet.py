#!/usr/bin/env python
"""Draw queries and their best pictures as one PNG: a row per query, right answers framed in green.

python scripts/contact_sheet.py --index index/img --checkpoint runs/x/best --photos photos --captions db/test --out sheet.png
python scripts/contact_sheet.py --index index/img --checkpoint runs/x/best --photos photos --queries queries.txt --out sheet.png
"""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli
from data.errors import BadInput
from data.regions.photos import PICTURE_SUFFIXES
from data.storage.atomic import atomic_file
from data.storage.text_files import read_lines

HIT, FRAME, TEXT, FAINT = (30, 150, 60), (210, 210, 210), (20, 20, 20), (110, 110, 110)
MARGIN, GAP, BORDER = 16, 10, 5  # pixels


@dataclass
class Options:
    """Draw queries and their best pictures as one PNG.

    Args:
        index: feature index of images
        checkpoint: the checkpoint folder that made it
        photos: folder of pictures; a picture's file name without suffix is the index id without suffix
        out: the PNG to write
        queries: text file, one query a line
        captions: caption database (text LMDB) to draw random captions from; their own pictures are framed
        n: number of random captions
        tokenizer: folder or vocab.txt of the tokenizer; none: the one that the checkpoint carries
        k: pictures per query
        seed: seed of the random choice
    """

    index: str
    checkpoint: str
    photos: str
    out: str
    queries: str | None = None
    captions: str | None = None
    n: int = 6
    tokenizer: str | None = None
    k: int = 5
    seed: int = 0

    def __post_init__(self):
        if (self.queries is None) == (self.captions is None):
            raise BadInput("give either --queries FILE or --captions TEXT_DB, not both and not neither")


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[tuple[str | Path | None, float, bool]]]], out: str | Path, thumb: int = 200
) -> Path:
    """Write a PNG with one row per query.

    Args:
        rows: (query text, [(picture path or None when there is no file, score, is a hit), ...] best first)
        out: the PNG; its folder is made
        thumb: side of a picture's square, in pixels

    Returns:
        ``out``

    Raises:
        BadInput: no rows, no picture at all, or one that cannot be read.
    """
    from PIL import Image, ImageDraw

    if not rows:
        raise BadInput(f"{out}: no queries to draw")
    if all(path is None for _, pictures in rows for path, _, _ in pictures):
        raise BadInput(
            f"{out}: none of the images found has a picture file; give the folder whose file names are the ids"
        )
    columns = max(1, *(len(pictures) for _, pictures in rows))
    width = 2 * MARGIN + columns * thumb + (columns - 1) * GAP
    title, small = _font(18), _font(13)
    texts = [_wrap(text, title, width - 2 * MARGIN) for text, _ in rows]
    line, caption = 24, 20  # heights in pixels
    heights = [MARGIN + len(lines) * line + 6 + thumb + caption for lines in texts]
    sheet = Image.new("RGB", (width, sum(heights) + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for lines, (_, pictures), height in zip(texts, rows, heights, strict=True):
        for number, words in enumerate(lines):
            draw.text((MARGIN, top + MARGIN + number * line), words, fill=TEXT, font=title)
        y = top + height - thumb - caption
        for column, (path, score, hit) in enumerate(pictures):
            x = MARGIN + column * (thumb + GAP)
            _draw_picture(sheet, draw, path, (x, y), thumb, hit, small)
            label = f"{column + 1}.  {score:.3f}" + ("  hit" if hit else "")
            draw.text((x, y + thumb + 3), label, fill=HIT if hit else FAINT, font=small)
        top += height
    with atomic_file(out) as partial:
        sheet.save(partial, format="PNG")
    return Path(out)


def _draw_picture(sheet, draw, path, corner, thumb, hit, font):
    from PIL import Image, ImageOps

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
    draw.rectangle(frame, outline=HIT if hit else FRAME, width=BORDER if hit else 1)


def _wrap(text, font, width):
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
def _font(size):
    """DejaVu Sans as matplotlib carries it: Pillow's own default font has no accented letters."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", size)


def picture_files(folder: str | Path) -> dict[str, Path]:
    """File name without suffix -> path, of every picture under ``folder``.

    Raises:
        BadInput: the folder is missing or holds no picture.
    """
    files = {p.stem: p for p in sorted(Path(folder).rglob("*")) if p.suffix.lower() in PICTURE_SUFFIXES}
    if not files:
        found = "no picture in it" if Path(folder).is_dir() else "no such folder"
        raise BadInput(f"{folder}: {found}; --photos must be a folder of pictures (jpg, png, ...)")
    return files


def search_rows(backend, model, tokenizer, queries, photos: dict[str, Path], k: int = 5):
    """Rows for ``contact_sheet``: each query's ``k`` best pictures.

    Args:
        backend: what searches the index of the images
        queries: list of (text, set of the image ids that are right, empty when unknown)
        photos: what ``picture_files`` returns
    """
    from model.retrieval.encoding import encode_queries

    backend.check_model(model.fingerprint)
    vectors = encode_queries(model, tokenizer, [text for text, _ in queries])
    scores, found = backend.search(vectors, k)
    sheet = []
    for (text, right), row_scores, row_numbers in zip(queries, scores, found, strict=True):
        ids = backend.ids(row_numbers)
        pictures = [(photos.get(Path(i).stem), float(s), i in right) for i, s in zip(ids, row_scores, strict=True)]
        sheet.append((text, pictures))
    return sheet


def main(options: Options) -> None:
    from data.captions.db import CaptionDB
    from data.captions.tokenizers import CaptionTokenizer
    from data.index.reader import EmbeddingIndex
    from data.search import open_backend
    from model.bi_encoder import LightningDOT

    index = EmbeddingIndex(options.index)
    model = LightningDOT.from_pretrained(options.checkpoint)
    tokenizer = CaptionTokenizer.from_pretrained(options.tokenizer or Path(options.checkpoint) / "tokenizer")
    if options.queries:
        lines = read_lines(options.queries, "give UTF-8 text, one query a line")
        queries = [(line.strip(), set()) for line in lines if line.strip()]
    else:
        captions = CaptionDB(options.captions)
        known = sorted(key for key in captions.img2txts if key in index)
        if not known:
            raise BadInput(f"{options.captions}: none of its {len(captions.img2txts)} images is in {options.index}")
        rng = random.Random(options.seed)
        queries = []
        for key in rng.sample(known, min(options.n, len(known))):
            record = captions[rng.choice(captions.img2txts[key])]
            queries.append((record.get("raw") or tokenizer.decode(record["input_ids"]), {key}))
    rows = search_rows(open_backend(index), model, tokenizer, queries, picture_files(options.photos), options.k)
    print(f"wrote {contact_sheet(rows, options.out)}: {len(rows)} queries")


if __name__ == "__main__":
    cli.run(main, Options)
