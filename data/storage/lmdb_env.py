"""Open LMDB databases safely; `data.storage.lmdb_writer` writes them.

Readers never lock: databases live on network file systems, where locks hang, and are written once. A database is opened
once per process and shared: py-lmdb 3 refuses a second opening of the same file.

After a fork (DataLoader workers) `Records` opens the database anew in the child: what was inherited is closed there first,
since py-lmdb's list of open files is inherited too. Closing unmaps memory, in the child alone. Who hands out zero-copy views
says so (``keep_views``, `reader`): what that opened is not closed, and the child goes on with it. LMDB's warning against that is about
its locks and its reader table; with ``lock=False`` and ``readonly=True`` neither exists, and what is left is a shared
memory map, which survives a fork. A spawned worker starts with nothing and opens its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb

from data.errors import BadInput
from data.storage.digest import remember_files, remembered_files
from data.storage.lmdb_pages import check_pages

MAX_KEY_BYTES = 511  # LMDB's compiled-in limit
_MANY_PAGES = 1 << 14  # branch and leaf pages that are looked at in less time than is worth remembering it
_LARGE = _MANY_PAGES << 12  # bytes of a file that can have so many
_PAGES = "pages of data.mdb"  # under which it is remembered


@dataclass(eq=False)
class _Opened:
    stamp: tuple  # which file this was: a database that was replaced since is opened anew
    env: lmdb.Environment
    txn: lmdb.Transaction | None  # None: closed
    keeps_views: bool = False  # somebody may hold views into the map, also after a fork
    readers: int = 0  # that `reader` was called for, and that were not let go of
    is_shared: bool = False  # somebody else uses it, who does not say when that ends


_opened: dict[str, _Opened] = {}
_checked: set[tuple] = set()  # files whose pages were looked at
_retired: list[_Opened] = []  # replaced on disk; views into their maps may be alive, so they stay open until every reader let go


def open_env(folder: str | Path, keep_views: bool = True) -> lmdb.Environment:
    """The read-only environment of a database folder, opened once per process; symlinks and relative paths agree.

    A database that was replaced or changed on disk since the last call is seen as it is now. Views taken earlier
    stay valid.

    Args:
        keep_views: whether views into the map may be kept, also over a fork

    Raises:
        BadInput: the folder is missing, is no LMDB, or its file is truncated or has damaged pages (reading such would kill the
            process).
    """
    opened = _open(folder)
    opened.keeps_views, opened.is_shared = opened.keeps_views or keep_views, True
    return opened.env


def reader(folder: str | Path) -> lmdb.Transaction:
    """A lasting read transaction of `open_env`; its `get` returns a read-only memoryview into the map, zero-copy. Who needs it no
    more may `let_go` of it."""
    opened = _open(folder)
    opened.keeps_views = True
    opened.readers += 1
    return opened.txn


def let_go(txn: lmdb.Transaction) -> None:
    """One caller of `reader` uses its transaction and the views that came from it no more. A database that was replaced on disk is
    closed with the last of them, which gives back its memory and its place on the disk; one that was not stays open."""
    for opened in [*_retired, *_opened.values()]:
        if opened.txn is txn:
            opened.readers -= 1
    _close_unused()


def _close_unused() -> None:
    used = [*_opened.values(), *(old for old in _retired if old.readers or old.is_shared)]
    for old in [each for each in _retired if all(each.env is not other.env for other in used)]:
        if old.txn is not None:  # closed with another snapshot of its map
            _close(old)


@contextmanager
def damage_is_bad_input(folder: str | Path) -> Iterator[None]:
    """What LMDB raises in the block, and keys that are no UTF-8 text, are one line about the database in ``folder``."""
    try:
        yield
    except (lmdb.Error, UnicodeDecodeError) as error:
        raise BadInput(f"{folder}: cannot be read ({error}); copy or build the database again") from None


class Records:
    """The records of one database. Picklable; a process that was spawned opens the database itself.

    Args:
        keep_views: whether views into the map may be kept. They are valid as long as the process lives and after a fork, unless
            `close_env` is called. Without it, records are decoded at once, and a forked process opens the database anew

    Raises:
        BadInput: as `open_env`; also where a worker finds another database in the folder than its parent read.
    """

    def __init__(self, folder: str | Path, keep_views: bool = False):
        self.folder, self.keep_views = Path(folder), keep_views
        self._opened: _Opened | None = None
        self._file = self._open().stamp[:2]

    def _open(self) -> _Opened:
        self._opened = _open(self.folder)
        self._opened.keeps_views, self._opened.is_shared = self._opened.keeps_views or self.keep_views, True
        return self._opened

    def check_current(self) -> None:
        """Raise BadInput where another database has taken this one's place: what was read beside the records may be of that one."""
        try:
            info = os.stat(self.folder / "data.mdb")
        except OSError:
            raise self._replaced() from None
        if (info.st_dev, info.st_ino) != self._file:
            raise self._replaced()

    def _replaced(self) -> BadInput:
        return BadInput(f"{self.folder}: the database was replaced while it was being read; start again")

    @property
    def txn(self) -> lmdb.Transaction:
        """This process's read transaction; without ``keep_views``, views that its `get` returns must not outlive a fork."""
        if self._opened is None or self._opened.txn is None:
            if self._open().stamp[:2] != self._file:
                raise self._replaced()
        return self._opened.txn

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_opened": None}


def _close_inherited() -> None:
    """In a child: nothing is left of the parent's environments but those that views may point into."""
    for key, opened in list(_opened.items()):
        if not opened.keeps_views:
            _opened.pop(key)
            _close(opened)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


def close_env(folder: str | Path) -> None:
    """Close the shared environment, for instance to write to the database in this process.

    Every view and every transaction that came from it is invalid afterwards: touching a view kills the process.
    """
    opened = _opened.pop(os.path.realpath(folder), None)
    if opened:
        _close(opened)


def _close(opened: _Opened) -> None:
    for each in {opened, *(old for old in _retired if old.env is opened.env)}:  # older snapshots of the same map
        each.txn.abort()
        each.txn = None
    _retired[:] = [old for old in _retired if old.txn is not None]
    opened.env.close()


def promised_bytes(env: lmdb.Environment) -> int:
    """How long the file must be by its header; one that is shorter is truncated, and reading it can kill the process."""
    return (env.info()["last_pgno"] + 1) * env.stat()["psize"]


def stored_value(txn: lmdb.Transaction, key: str, folder: Path, what: str = "key") -> Any:
    """The value of a key, None where it is absent. Raises BadInput, about this ``what`` of the database, when its page is damaged."""
    try:
        return txn.get(key.encode())
    except lmdb.Error as error:
        raise BadInput(f"{folder}: {what} {key!r} cannot be read ({error}); copy the database again") from None


def is_whole(folder: str | Path) -> bool:
    """Whether an LMDB can be written to: no page that a writer follows is damaged, and its file is as long as its header promises."""
    try:
        check_pages(Path(folder, "data.mdb"), for_writing=True)
    except BadInput:
        return False
    return True


def _check_pages_once(folder: str, info: os.stat_result) -> None:
    """`check_pages`, unless this file has been looked at: in this process, or, where that takes long, by any.

    A file that was changed and given its old time again has another ``ctime_ns`` all the same, which nobody can set.
    """
    identity = {name: getattr(info, f"st_{name}") for name in ("dev", "ino", "size", "mtime_ns", "ctime_ns")}
    if tuple(identity.values()) in _checked:
        return
    known = remembered_files(Path(folder)) if info.st_size > _LARGE else {}
    if known.get(_PAGES) != identity:
        num_pages = check_pages(os.path.join(folder, "data.mdb"))
        if num_pages > _MANY_PAGES:
            remember_files(Path(folder), known | {_PAGES: identity})
    _checked.add(tuple(identity.values()))


def _open(folder: str | Path) -> _Opened:
    key = os.path.realpath(folder)
    path = os.path.join(key, "data.mdb")
    try:
        info = os.stat(path)
    except OSError:
        raise BadInput(
            f"{folder}: not an LMDB database (no readable file data.mdb in it); check the path or build it first"
        ) from None
    stamp = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)
    known = _opened.get(key)
    if known and known.stamp == stamp:
        return known
    in_place = known is not None and known.stamp[:2] == stamp[:2]  # the same map, a newer snapshot
    _check_pages_once(key, info)
    try:
        if in_place:
            env = known.env
        else:
            env = lmdb.open(key, readonly=True, lock=False, readahead=False, create=False, max_spare_txns=0)
        txn = env.begin(buffers=True)
    except lmdb.Error as error:
        raise BadInput(f"{path}: cannot be opened as LMDB ({error}); copy or build the database again") from None
    _opened[key] = _Opened(stamp, env, txn, in_place and known.keeps_views)
    if known:
        _retired.append(known)
        _close_unused()
    return _opened[key]
