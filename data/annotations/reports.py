"""What a command left out: counted, its first cases kept for the report, and told on the screen."""

from __future__ import annotations

import sys

SHOWN = 100  # cases of each kind that a report lists


def note_case(report: dict, kind: str, line: str, count: int = 1) -> None:
    """Count a case of something, such as a bad record of so many captions, under ``report[kind]``; the first ones are listed."""
    noted = report.setdefault(kind, {"count": 0, "first": []})
    noted["count"] += count
    if len(noted["first"]) < SHOWN:
        noted["first"].append(line)


def warn_of_cases(report: dict, kind: str, text: str) -> None:
    """Print one line about the cases that were noted, if there are any; ``{n}`` and ``{first}`` in the text stand for
    their number and the first of them."""
    if kind in report:
        line = text.format(n=report[kind]["count"], first=report[kind]["first"][0])
        print(f"warning: {' '.join(line.split())}", file=sys.stderr)
