"""What stands in README.md and the pages of docs/: fenced blocks, which of them cannot run here and why, and their commands.

A block of ``bash`` or ``python`` is run by tests/test_documents.py as it is printed. One that cannot run here has a comment above it, which
says why; its commands are only parsed::

    <!-- not run: these are 100 GB of pictures -->
    ```bash
    python scripts/download.py coco-images
    ```
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
RUN = ("bash", "python")
SHOWN = ("text", "json", "bibtex")  # languages of blocks that nobody types

_FENCE = re.compile(r"^```(\w*)$")
_NOT_RUN = re.compile(r"^<!-- not run: (.+) -->$")
_GENERATED = re.compile(r"<!-- scripts/write_tables\.py [\w-]+ -->\n.*?<!-- end -->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page, line: where its first line stands
        reason: why it is not run; None where it is
    """

    page: str
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The lines of a shell, those that end in a backslash joined with what follows, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def without_tables(text: str) -> str:
    """A page without the tables that are generated."""
    return _GENERATED.sub("", text)


def blocks_of(page: str, text: str | None = None) -> Iterator[Block]:
    """The fenced blocks of a page, or of a text in its place. Raises ValueError where one does not end."""
    lines = (text_of(page) if text is None else text).splitlines()
    start = None
    for number, line in enumerate(lines):
        if (fence := _FENCE.match(line)) is None:
            continue
        if start is None:
            start, language = number, fence[1]
        else:
            above = _NOT_RUN.match(lines[start - 1]) if start else None
            yield Block(page, start + 2, language, "\n".join(lines[start + 1 : number]), above and above[1])
            start = None
    if start is not None:
        raise ValueError(f"{page}:{start + 1}: the block does not end")
