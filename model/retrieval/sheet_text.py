"""Text drawn into pictures: each letter in a font that has it, where the system has one."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache
from itertools import groupby
from pathlib import Path

from PIL import ImageDraw, ImageFont, features

PREFERRED = ("sanscjk", "sourcehansans", "wqy", "droidsansfallback", "notosans-", "notosans")  # in file names
SHOWN = 8  # letters that a remark names


@cache
def main_font() -> str:
    """The file of DejaVu Sans as matplotlib carries it: Pillow's own default font has no accented letters."""
    import matplotlib  # slow to import

    return str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")


@cache
def system_fonts() -> tuple[str, ...]:
    """Files of the system's fonts, those first that have many letters and no ornaments."""
    from matplotlib.font_manager import findSystemFonts  # slow to import

    def order(file: str) -> tuple:
        name = Path(file).stem.lower().replace(" ", "").replace("_", "")
        preferred = next((n for n, part in enumerate(PREFERRED) if part in name), len(PREFERRED))
        return preferred, any(style in name for style in ("bold", "italic", "oblique", "light", "mono")), "serif" in name, file

    return tuple(sorted(findSystemFonts(), key=order))


@cache
def letters_of(file: str) -> frozenset[str]:
    """The letters that a font has; none for one that cannot be read, or not be drawn in any size."""
    from matplotlib.ft2font import FT2Font  # slow to import

    try:
        font = FT2Font(file)
        return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
    except (OSError, RuntimeError, ValueError):
        return frozenset()


@cache
def font_for(cluster: str) -> str | None:
    """The file of the first font that has all letters of a cluster; None where no font of the system does."""
    letters = {letter for letter in cluster if unicodedata.category(letter) not in ("Cc", "Cf") and not letter.isspace()}
    if letters <= letters_of(main_font()):  # most are; the system's fonts take seconds to list
        return main_font()
    return next((file for file in system_fonts() if letters <= letters_of(file)), None)


def clusters(text: str) -> list[str]:
    """A text in pieces that must not be drawn apart: a letter with its combining marks and joiners."""
    found: list[str] = []
    for letter in text:
        if found and (unicodedata.category(letter)[0] == "M" or letter in "\u200c\u200d" or found[-1].endswith("\u200d")):
            found[-1] += letter
        else:
            found.append(letter)
    return found


def text_runs(text: str) -> list[tuple[str, str]]:
    """A line of text in parts of one font: (the font's file, the part). Spaces and signs stay in the font before them."""
    if text.isascii() and text.isprintable():
        return [(main_font(), text)] if text else []
    fonts: list[tuple[str, str]] = []
    for cluster in clusters(text):
        before = fonts[-1][0] if fonts else None
        is_sign = unicodedata.category(cluster[0])[0] in "ZPS"
        keeps = before is not None and (cluster.isspace() or (is_sign and set(cluster) <= letters_of(before)))
        own = before if keeps else font_for(cluster) or font_for(cluster[0])
        fonts.append((own or main_font(), cluster))
    return [(file, "".join(part for _, part in run)) for file, run in groupby(fonts, lambda each: each[0])]


@cache
def _opened(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


class SheetFont:
    """Draws text of any script in a size in pixels. Right-to-left and joined letters need Pillow's libraqm."""

    def __init__(self, size: int):
        self.size = size

    def getlength(self, text: str) -> float:
        """Width of a line in pixels."""
        return sum(_opened(file, self.size).getlength(part) for file, part in text_runs(text))

    def draw(self, draw: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, fill: tuple[int, int, int]) -> None:
        """Draw a line whose upper left corner is ``corner``; all fonts stand on one base line."""
        x, y = corner[0], corner[1] + _opened(main_font(), self.size).getmetrics()[0]
        for file, part in text_runs(text):
            draw.text((x, y), part, fill=fill, font=_opened(file, self.size), anchor="ls")
            x += _opened(file, self.size).getlength(part)


def wrap_text(text: str, font: SheetFont, width: float, most: int | None = None) -> list[str]:
    """Lines no wider than ``width`` pixels; a word that is itself wider is cut between letters.

    Args:
        most: so many lines at most, the last one then ends in an ellipsis; None: all of them
    """
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for cluster in clusters(word) if font.getlength(word) > width else [word]:
            if lines[-1] and font.getlength(lines[-1] + cluster) > width:
                lines.append("")
            lines[-1] += cluster
    if most is None or len(lines) <= most:
        return lines
    return [*lines[: most - 1], shorten(" ".join(lines[most - 1 :]), font, width)]


def shorten(text: str, font: SheetFont, width: float) -> str:
    """A text on one line no wider than ``width`` pixels, with an ellipsis where it was cut."""
    if font.getlength(text) <= width:
        return text
    letters = clusters(text[:400])  # more stands on no line
    fits, cut = 0, len(letters)
    while fits + 1 < cut:  # so many letters fit, and so many do not
        middle = (fits + cut) // 2
        fits, cut = (middle, cut) if font.getlength("".join(letters[:middle]).rstrip() + "…") <= width else (fits, middle)
    return "".join(letters[:fits]).rstrip() + "…"


def remarks_on(texts: Iterable[str]) -> list[str]:
    """Lines about what of some texts cannot be drawn as it should be; none where all can."""
    letters = sorted({cluster for text in texts for cluster in clusters(text)})
    lines = []
    if missing := [cluster for cluster in letters if font_for(cluster) is None]:
        more = " …" * (len(missing) > SHOWN)
        lines.append(
            f"no font of this system has {' '.join(missing[:SHOWN])}{more} ({len(missing)} letters), which are drawn as boxes; "
            "install one that does (Debian: fonts-noto-cjk, fonts-noto-core)"
        )
    joined = [cluster for cluster in letters if any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in cluster)]
    if joined and not features.check("raqm"):
        lines.append("this Pillow lacks libraqm: right-to-left text is drawn letter by letter from the left (install libfribidi0)")
    return lines
