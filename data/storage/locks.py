"""One writer at a time: a command claims its output, a database writer the folder that it writes in.

The lock is the operating system's (``flock``) on a file beside the output, so it goes with the process that has it, however
that ends; the file says who it is. Readers never lock. A file system without locks, or a place where the file cannot be made, is
written to without one.
"""

from __future__ import annotations

import atexit
import fcntl
import itertools
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from data.errors import BadInput
from data.storage.own_files import check_written_over

_held: dict[Path, tuple[IO, list[Path]]] = {}  # lock file → its handle, and the folders that were made for it
_claimed: set[Path] = set()  # those of them that are held to its end


@contextmanager
def only_writer(path: str | Path) -> Iterator[None]:
    """Nobody else writes to ``path``, a file or folder that need not be there yet, while the block lasts.

    Raises:
        BadInput: another process does, or this one by another way; the message says which, and on which host.
    """
    lock = _lock(path)
    try:
        yield
    finally:
        _unlock(lock)


def claim_output(path: str | Path) -> None:
    """Be the only command that writes to ``path`` until this process ends. Claiming it again does nothing.

    Raises:
        BadInput: another process does; the message says which, and on which host. Or a file is there that this command reads, or that is
            part of a database, say.
    """
    check_written_over(path)
    file = _lock_file(path)
    if file not in _claimed and _lock(path):
        _claimed.add(file)


def _lock_file(path: str | Path) -> Path:
    """Beside ``path`` and not in it: a folder may be renamed or replaced."""
    real = Path(os.path.realpath(path))
    return real.with_name(f".{real.name.lstrip('.')}.lock") if real.name else real / ".lock"


def _lock(path: str | Path) -> Path | None:
    file = _lock_file(path)
    if file.is_symlink():
        raise BadInput(f"{file}: is the lock of {path}, and a link, where it leads nothing is to be written; delete it")
    made = [folder for folder in file.parents if not folder.exists()]
    for tries in itertools.count():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = open(file, "a+", encoding="utf-8", errors="replace")
        except FileNotFoundError:  # who had the lock took its folder away in between
            if tries == 10:
                return None
            continue
        except (OSError, ValueError):  # whoever writes there will say why that cannot be
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with handle:
                raise BadInput(f"{path}: {_holder(handle)} is writing there; wait for it, or end it") from None
        except OSError:  # a file system without locks
            handle.close()
            return None
        if _is_still(file, handle):
            break
        handle.close()  # whoever had it has deleted it since it was opened
    handle.truncate(0)
    handle.write(f"process {os.getpid()} on {platform.node()} ({Path(sys.argv[0]).name})")
    handle.flush()
    _held[file] = handle, made
    return file


def _holder(handle: IO) -> str:
    """Who has the lock, as its file says. Between getting it and saying so there is a moment in which that is empty, or names who had
    it before and was killed."""
    for _ in range(20):
        handle.seek(0)
        said = handle.read().strip()
        pid = re.match(r"process (\d+) on (.*) \(", said)
        if pid and (pid[2] != platform.node() or os.path.exists(f"/proc/{pid[1]}") or not os.path.exists("/proc/self")):
            break
        time.sleep(0.01)
    return said or "another process"


def _is_still(file: Path, handle: IO) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(handle.fileno()))
    except FileNotFoundError:
        return False


def _unlock(file: Path | None) -> None:
    if file in _held:
        handle, made = _held.pop(file)
        with suppress(OSError):  # a folder that something was written to stays
            os.unlink(file)
            for folder in made:
                folder.rmdir()
        handle.close()


def _unlock_all() -> None:
    for file in list(_held):
        _unlock(file)
    _claimed.clear()


def _leave_to_parent() -> None:
    """In a forked child: a lock is its parent's, and must not outlive that in the child's copy of the handle."""
    for handle, _ in _held.values():
        handle.close()
    _held.clear()
    _claimed.clear()


atexit.register(_unlock_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
