"""Lines and JSON in files, read and written in the same way everywhere: UTF-8, one line of BadInput when something is wrong,
and write-then-rename."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from data.errors import BadInput
from data.storage.atomic import atomic_file


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
        for line in file:
            yield line.rstrip("\r\n")


@contextmanager
def _opened(path: str | Path, advice: str) -> Iterator[TextIO]:
    opener = gzip.open if str(path).endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            yield file
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not UTF-8 text ({error}); {advice}") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"{path}: cannot be read ({reason}); {advice}") from None


def read_json(path: str | Path, advice: str = "check the path", expected: type | None = dict) -> Any:
    """What a JSON file holds; compressed ones and a byte-order mark as for `read_lines`.

    Args:
        advice: what the user is told to do when the file is no such file
        expected: dict or list, the kind of value it must hold; None takes any

    Raises:
        BadInput: the file cannot be read, is not JSON, or holds another kind of value.
    """
    with _opened(path, advice) as file:
        text = file.read()
    content = parse_json(text, f"{path}: the file", advice)
    if expected is not None and not isinstance(content, expected):
        wanted = {dict: "an object", list: "a list"}[expected]
        raise BadInput(f"{path}: holds a {type(content).__name__}, expected {wanted}; {advice}")
    return content


def parse_json(text: str, where: str, advice: str = "", unique: bool = False) -> Any:
    """The value that a text in JSON stands for.

    Args:
        where: what the text is, as the message's subject: ``captions.jsonl: line 2``
        unique: refuse an object that has a key twice, of which the last alone would be kept; takes twice the time

    Raises:
        BadInput: it is not JSON, or nested more deeply than Python follows.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys if unique else None)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where} is not JSON ({error})" + f"; {advice}" * bool(advice)) from None


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
