"""Only files are read, and written on, as files: a named pipe would be waited for, and a device such as /dev/zero never ends."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

from data.errors import BadInput

_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket"}


def open_regular(path: str | Path, mode: str = "rb", **options) -> IO:
    """`open`, for reading or writing on, of a file that has an end.

    Args:
        options: of `open`: encoding, errors, newline

    Raises:
        BadInput: it is a pipe, a device or a socket.
        OSError: what `open` raises, also for a folder.
    """
    return open(path, mode, opener=_open_at_once, **options)


def check_regular(path: str | Path) -> None:
    """The same check of what a library opens by its name. What is not there is left to the library.

    Raises:
        BadInput: it is a pipe, a device or a socket.
    """
    try:
        _refuse_endless(path, os.stat(path).st_mode)
    except OSError:
        return


def check_folder(path: str | Path) -> None:
    """The same of every file in a folder that a library reads as it finds it; a name that is none is left to the library.

    Raises:
        BadInput: one of them is a pipe, a device or a socket.
    """
    if os.path.isdir(path):
        for entry in sorted(os.listdir(path)):
            check_regular(os.path.join(path, entry))


def check_tree(path: str | Path) -> None:
    """The same of a file, or of every file at any depth below a folder; what is not there is left to the library.

    Raises:
        BadInput: one of them is a pipe, a device or a socket.
    """
    check_regular(path)
    for folder, _, files in os.walk(path):
        for name in sorted(files):
            check_regular(os.path.join(folder, name))


def _open_at_once(path: str, flags: int) -> int:
    try:
        handle = os.open(path, flags | os.O_NONBLOCK, 0o666)  # a pipe that nobody writes to opens as well
    except OSError:  # one that nobody reads does not
        check_regular(path)
        raise
    try:
        _refuse_endless(path, os.fstat(handle).st_mode)
    except BadInput:
        os.close(handle)
        raise
    return handle


def _refuse_endless(path: str | Path, mode: int) -> None:
    kind = _KINDS.get(stat.S_IFMT(mode))
    if kind is not None:
        raise BadInput(f"{path}: {kind}, and only files are read; write what it gives to a file, and name that")


def is_there(path: str | Path) -> bool:
    """Whether a folder has this name. A link that leads nowhere, or to itself, counts: it is no sign that a file of a database or
    checkpoint was never made, but that it was lost, which whoever then reads it says."""
    return os.path.lexists(path)


def real_path(path: str | Path) -> Path:
    """The absolute path without links; one that leads to itself stays as far as it can be followed, where ``Path.resolve`` of Python
    before 3.13 raises RuntimeError."""
    return Path(os.path.realpath(path))
