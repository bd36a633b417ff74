"""Lines, JSON and YAML in files, read and written in the same way everywhere: UTF-8, one line of BadInput when something is wrong,
and write-then-rename."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

import yaml

from data.errors import BadInput, reason_of
from data.notices import say
from data.progress import ProgressBar
from data.storage.atomic import atomic_file
from data.storage.bounded_yaml import BoundedLoader
from data.storage.inflating import most_inflated
from data.storage.memory import check_memory
from data.storage.regular_files import open_regular
from data.storage.shapes import check_shape

DEEPEST = 100  # levels of lists and objects in JSON
LONGEST_LINE = 64 << 20  # characters: a file may have a hole of any size, and packed text be as long
LONG = 16 << 20  # characters of JSON whose reading shows how far it is
FLAT = 10_000  # characters an object: no more of them tell how far reading is
SLOW = 100 << 20  # characters of JSON that take about two seconds
BETWEEN_MOVES = 4096  # objects


def read_lines(path: str | Path, advice: str = "check the path") -> Iterator[str]:
    r"""The lines of a UTF-8 text file, without their ends; decompressed where its name ends in ``.gz``.

    Only ``\n`` and ``\r\n`` end a line: names and captions may hold the other characters that Unicode calls line ends. A
    byte-order mark in front is left out.

    Args:
        advice: what the user is told to do when the file cannot be read

    Raises:
        BadInput: the file cannot be read or is not UTF-8.
    """
    with _opened(path, advice) as file:
        for line in bounded_lines(file, path):
            yield line.rstrip("\r\n")


def bounded_lines(file: TextIO, path: str | Path) -> Iterator[str]:
    """The lines of an open text file, with their ends. Raises BadInput for one that is longer than anybody's, as a hole of gigabytes is."""
    if not _is_compressed(path) and os.path.getsize(path) <= LONGEST_LINE:
        return file
    return iter(lambda: _read_some(file.readline, LONGEST_LINE, f"{path}: a line"), "")


def _is_compressed(path: str | Path) -> bool:
    return str(path).endswith(".gz")


@contextmanager
def _opened(path: str | Path, advice: str) -> Iterator[TextIO]:
    try:
        with ExitStack() as stack:
            file = stack.enter_context(open_regular(path))
            if _is_compressed(path):
                file = stack.enter_context(gzip.open(file))
            yield stack.enter_context(io.TextIOWrapper(file, encoding="utf-8-sig", newline="\n"))
    except BadInput:
        raise
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text ({error}); {advice}") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{path}: cannot be read ({reason}); {advice}") from None


def read_json(path: str | Path, advice: str = "check the path", expected: Any = dict) -> Any:
    """What a JSON file holds; compressed ones and a byte-order mark as for `read_lines`.

    Args:
        advice: what the user is told to do when the file is no such file
        expected: the shape of what it must hold (``data.storage.shapes``); ``object`` takes any

    Raises:
        BadInput: the file cannot be read, is not JSON, or holds something of another shape.
    """
    content = parse_json(read_text(path, advice), f"{path}: the file", advice, progress=f"reading {path}")
    check_shape(content, expected, str(path), advice)
    return content


def read_yaml(path: str | Path, advice: str = "check the path", expected: Any = dict) -> Any:
    """What a YAML file holds, plain values alone; arguments and errors as for `read_json`."""
    text = read_text(path, advice)
    try:
        content = yaml.load(text, Loader=BoundedLoader)
    except Exception as error:  # besides its own errors, whatever a date, number or binary makes Python raise
        raise BadInput(f"{path}: the file is not YAML ({reason_of(error)}); {advice}") from None
    check_shape(content, expected, str(path), advice)
    return content


def read_text(path: str | Path, advice: str = "check the path") -> str:
    """All of a UTF-8 text file; compressed ones and a byte-order mark as for `read_lines`, ends of lines as they are."""
    with _opened(path, advice) as file:
        size = os.path.getsize(path)
        check_memory(size, f"{path}: its content")  # a file may have a hole of any size
        return _read_some(file.read, most_inflated(size), f"{path}: its content") if _is_compressed(path) else file.read()


def _read_some(read: Callable[[int], str], most: int, what: str) -> str:
    """What is read of text whose size says nothing of how much that becomes, or of how long its lines are."""
    text = read(most + 1)
    if len(text) > most:
        raise BadInput(f"{what} is longer than {most:,} characters, far more than what is stored warrants")
    return text


def parse_json(text: str, where: str, advice: str = "", unique: bool = False, progress: str = "") -> Any:
    """The value that a text in JSON stands for.

    Args:
        where: what the text is, as the message's subject: ``captions.jsonl: line 2``
        unique: refuse an object that has a key twice, of which the last alone would be kept; takes twice the time
        progress: what is done, for the bar of a long text; empty: without one

    Raises:
        BadInput: it is not JSON, or nested more deeply than anybody's data.
    """
    try:
        if progress and not unique and len(text) >= LONG:
            content = _parsed_with_bar(text, progress)
        else:
            content = json.loads(text, object_pairs_hook=_unique_keys if unique else None)
        if text.count("[") + text.count("{") > DEEPEST:
            _check_depth(content)
        return content
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where} is not JSON ({error})" + f"; {advice}" * bool(advice)) from None


def _parsed_with_bar(text: str, what: str) -> Any:
    """What `json.loads` returns. The objects that it has made are counted, of as many as there are opening braces: those within a
    string make the total a little too large."""
    count, objects = itertools.count(1).__next__, text.count("{")
    if objects < len(text) / FLAT:
        if len(text) >= SLOW:
            say(f"{what}: {len(text) / 1e6:,.0f} MB in one step, without a rate")
        return json.loads(text)
    with ProgressBar(what=what, total=objects, unit="objects") as bar:

        def counted(made: dict) -> dict:
            if count() % BETWEEN_MOVES == 0:
                bar.update(BETWEEN_MOVES)
            return made

        return json.loads(text, object_hook=counted)


def _check_depth(content: Any) -> None:
    """Refuse lists and objects one inside the other that code which follows them cannot follow."""
    level = [content]
    for _ in range(DEEPEST):
        values = (inner for each in level for inner in (each.values() if isinstance(each, dict) else each if isinstance(each, list) else ()))
        level = [value for value in values if isinstance(value, dict | list)]
        if not level:
            return
    raise ValueError(f"more than {DEEPEST} levels, one inside the other")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is twice in one object")
    return content


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Write a value as JSON under a temporary name, then give the file its own; missing folders are made.

    Raises:
        BadInput: the disk is full or not writable.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
    try:
        content = text.encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8: written as escapes it is read back the same
        content = (json.dumps(value, indent=indent) + "\n").encode()
    with atomic_file(path) as partial:
        partial.write_bytes(content)


def is_utf8(text: str) -> bool:
    """Whether a text can be written as UTF-8: half of a surrogate pair, which JSON's escapes can hold, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
