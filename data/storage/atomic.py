"""Write-then-rename: a reader sees the old file or the new one, never half of one."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import BadInput

# No space, quota or size left; not allowed; a file where a folder should be, or the other way round.
_CANNOT_WRITE = {
    getattr(errno, name) for name in "ENOSPC EDQUOT EFBIG EACCES EPERM EROFS ENOTDIR EEXIST EISDIR EBUSY EINVAL ENOTEMPTY ENAMETOOLONG ELOOP".split()
}


_renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)  # of Linux's C library; Python has no name for it
_HERE, _EXCHANGE = -100, 2  # its AT_FDCWD and RENAME_EXCHANGE


def exchange(one: Path, other: Path) -> bool:
    """Let two files or folders take each other's place in one step, so that at no time nothing is there. False, and nothing is done,
    where the system or its file system cannot do that, or one of them is absent."""
    return _renameat2 is not None and _renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; what was written there becomes ``path`` when the block ends well."""
    path = Path(path)
    partial = beside(path, ".", ".partial")
    with cannot_write_is_bad_input(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():  # a link to one would be replaced
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        partial.unlink(missing_ok=True)  # of a run that was killed; or a link, and what is written would be where it leads
        try:
            yield partial
            flush(partial)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Like ``atomic_file`` for a folder that does not exist yet; a left-over partial one is removed first."""
    path = Path(path)
    partial = beside(path, ".", ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with cannot_write_is_bad_input(path):
        partial.mkdir(parents=True)
        try:
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    flush(file)
            os.replace(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Delete a folder and what is in it; of a link to one the link alone, for what it leads to is somebody's. Raises OSError."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def beside(path: str | Path, before: str, after: str) -> Path:
    """The path of another file or folder beside one: its name with something in front and behind. ``.`` and ``..`` have the names that
    they have where they are.

    Raises:
        BadInput: the root, which has none.
    """
    path = Path(path)
    if path.name in ("", ".."):
        path = Path(os.path.abspath(path))
    if not path.name:
        raise BadInput(f"{path}: has no name, and nothing can be beside it; choose another place")
    return path.with_name(f"{before}{path.name}{after}")


def flush(path: Path) -> None:
    """Until the file is on the disk."""
    with open(path, "rb") as file:  # a copied file may be read-only
        os.fsync(file.fileno())


@contextmanager
def cannot_write_is_bad_input(path: Path) -> Iterator[None]:
    """Turn a full disk, a missing permission and their like into BadInput."""
    try:
        yield
    except OSError as error:
        if error.errno in _CANNOT_WRITE:
            raise BadInput(f"{path}: cannot be written: {error.strerror}; nothing saved before is lost") from error
        raise
