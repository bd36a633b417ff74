"""Where a table stands in a page: between two comments, which a reader of the rendered page does not see.

::

    <!-- scripts/write_tables.py losses -->

    | name | |
    ...

    <!-- end -->
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from data.errors import BadInput

Table = Callable[[], list[str]]

_REGION = re.compile(r"^(<!-- scripts/write_tables\.py ([\w-]+) -->)\n.*?^(<!-- end -->)$", re.DOTALL | re.MULTILINE)


def pages_of(root: Path) -> Iterator[Path]:
    """README.md and the pages of docs/."""
    yield root / "README.md"
    yield from sorted((root / "docs").glob("*.md"))


def with_tables(page: Path, tables: Mapping[str, Table]) -> tuple[str, str]:
    """The text of a page as it is, and with its tables as the code knows them now.

    Raises:
        BadInput: a table that there is not, or a region that does not end.
    """
    text = page.read_text(encoding="utf-8")
    if text.count("<!-- scripts/write_tables.py ") != len(_REGION.findall(text)):
        raise BadInput(f"{page}: each <!-- scripts/write_tables.py NAME --> needs an <!-- end --> on a line of its own behind it")

    def filled(region: re.Match) -> str:
        name = region[2]
        if name not in tables:
            raise BadInput(f"{page}: there is no table {name}, there are {', '.join(tables)}")
        return "\n".join([region[1], "", *tables[name](), "", region[3]])

    return text, _REGION.sub(filled, text)
