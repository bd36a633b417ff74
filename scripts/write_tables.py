#!/usr/bin/env python
"""Write the tables that the code knows into README.md and the pages of docs/: recipes, settings, registries, keys of the original.

python scripts/write_tables.py                     # after a change of a setting, a recipe or a registry
python scripts/write_tables.py --check             # changes nothing; status 2 where a page is not as the code is
python scripts/write_tables.py --show losses       # prints one of them
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli
from data.errors import BadInput
from data.storage.atomic import atomic_file
from scripts.documenting.pages import pages_of, with_tables
from scripts.documenting.tables import all_tables

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Options:
    """Write the tables that the code knows into README.md and the pages of docs/, between <!-- scripts/write_tables.py NAME --> and
    <!-- end -->.

    Args:
        check: say which pages are not as the code is, and change nothing
        show: print this table, and change nothing
    """

    check: bool = False
    show: str | None = None


def main(options: Options) -> None:
    tables = all_tables()
    if options.show is not None:
        if options.show not in tables:
            raise BadInput(f"--show {options.show}: expected one of {', '.join(tables)}")
        print(*tables[options.show](), sep="\n")
        return
    stale = []
    for page in pages_of(ROOT):
        text, filled = with_tables(page, tables)
        if filled != text:
            stale.append(str(page.relative_to(ROOT)))
            if not options.check:
                with atomic_file(page) as written:
                    written.write_text(filled, encoding="utf-8")
    if options.check and stale:
        raise BadInput(f"{', '.join(stale)}: a table is not as the code is; python scripts/write_tables.py writes it anew")
    print(f"{'written' if stale else 'nothing to write'}: {', '.join(stale) or 'all tables are as the code is'}")


if __name__ == "__main__":
    cli.run(main, Options)
