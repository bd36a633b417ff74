"""What a user should know that is no error: one line each on the screen."""

from __future__ import annotations

import functools
import os
import sys

LONGEST_LINE = 4000  # characters that are shown of a line


@functools.cache
def say_once(line: str) -> None:
    """As `say`, once, however many parts notice it."""
    say(line)


def say(line: str) -> None:
    """Tell the user something that is no error; of several processes the first tells it."""
    if is_first_process():
        print(shortened(line), file=sys.stderr, flush=True)


def shortened(line: str) -> str:
    """A line of at most `LONGEST_LINE` characters; of a longer one, which quotes a name or a value of any length, the two ends."""
    kept = LONGEST_LINE // 2 - 30
    return line if len(line) <= LONGEST_LINE else f"{line[:kept]} ... ({len(line) - 2 * kept:,} characters) ... {line[-kept:]}"


def is_first_process() -> bool:
    """Whether this is the first of the processes that torchrun or horovodrun started, or was started by neither."""
    return os.environ.get("RANK", os.environ.get("HOROVOD_RANK", "0")) == "0"


def lowered(asked: int, there: int, setting: str, things: str) -> int:
    """A number that a user asked for, or as many as there are; the user is told, once, when those are fewer.

    Args:
        setting: what the number is, with what it is about, as ``index/img: k``
        things: what there are fewer of, as ``images``
    """
    if (line := lowered_line(asked, there, setting, things)) is not None:
        say_once(line)
    return min(asked, there)


def lowered_line(asked: int, there: int, setting: str, things: str) -> str | None:
    """What `lowered` tells the user; None where there are enough."""
    return f"{setting} {asked:,} is lowered to {there:,}: there are no more {things}" if asked > there else None
