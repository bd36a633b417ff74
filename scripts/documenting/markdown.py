"""Lines of Markdown tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; bars in its cells are escaped."""
    lines = [_row(head), "|".join(["", *["---"] * len(head), ""])]
    return lines + [_row([cell.replace("|", "\\|") for cell in row]) for row in rows]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def one_line(text: str) -> str:
    """A text whose lines are joined, with code in single ticks."""
    return " ".join(text.split()).replace("``", "`")


def first_sentence(text: str | None) -> str:
    """The first sentence of a text's first paragraph, without its full stop."""
    paragraph = one_line((text or "").strip().split("\n\n")[0])
    return re.split(r"(?<=[\w)`'])[.:]?\s*$|(?<=[\w)`'])\.\s+(?=[A-Z`])", paragraph)[0]
