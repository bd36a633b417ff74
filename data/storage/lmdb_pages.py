"""Whether the pages of an LMDB file can be followed. LMDB trusts them: one that is damaged ends the process, or has it read
what is none of its business. So they are looked at before LMDB opens the file, and again when it has changed.

A file is a tree of pages: two meta pages, of which the one with the higher transaction counts, say where its root is; branch
pages name other pages, leaf pages hold keys and short values, and name the first of the consecutive overflow pages of a long value.
Here the branch and leaf pages are walked level by level, all pages of a level at once: each must be of its kind, its nodes must
lie within it side by side, the pages that it names within the file, none twice. A long value is not read: where it begins and how
long it is says that it ends within the file. Keys and values themselves are not judged; whoever reads them does that.

The layout is that of LMDB 0.9 (``lmdb.h``'s data version 1), in this machine's byte order.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.errors import BadInput
from data.storage.regular_files import open_regular

_HEADER = 16  # bytes of a page's header, and of the header of a long value's first page
_NODE = 8  # bytes of a node's header
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _OVERFLOW, _META = 1, 2, 4, 8  # kinds of pages
_LONG = 1  # flag of a node: its value is on overflow pages
_NO_PAGE = 2**64 - 1
_DEEPEST = 32  # levels that LMDB follows
_TRIES = 100  # while another process writes: what it freed before, it may write over
_AT_ONCE = 2048  # pages of a level looked at together

_DATABASE = np.dtype(
    [("psize", "u4"), ("flags", "u2"), ("depth", "u2")] + [(name, "u8") for name in ("branch", "leaf", "overflow", "entries", "root")]
)
_META_PAGE = np.dtype(
    [("page", "u8"), ("pad", "u2"), ("kind", "u2"), ("unused", "u4"), ("magic", "u4"), ("version", "u4"), ("address", "u8")]
    + [("map_size", "u8"), ("free", _DATABASE), ("main", _DATABASE), ("last_page", "u8"), ("transaction", "u8")]
)


class _Damaged(Exception):
    """What is wrong with the pages."""


class _NoLmdb(_Damaged):
    """The meta pages are none."""


@dataclass
class _Long:
    """Values on overflow pages: their first pages [n], and their lengths [n] in bytes."""

    pages: np.ndarray
    sizes: np.ndarray


def check_pages(path: str | Path, for_writing: bool = False) -> int:
    """Refuse an LMDB file that cannot be followed safely → the number of branch and leaf pages, which is what it costs.

    Args:
        path: the file, ``data.mdb``
        for_writing: look as well at what only a writer follows: the list of free pages, and the first page of each long value

    Raises:
        BadInput: it is no LMDB file, is truncated, or has a damaged page; the message names the page.
    """
    try:
        for _ in range(_TRIES - 1):
            before = _transaction(path)
            try:
                return _look(path, for_writing)
            except (_Damaged, BadInput):
                if before == _transaction(path):  # nobody has written meanwhile
                    raise
        return _look(path, for_writing)
    except OSError as error:
        raise BadInput(f"{path}: cannot be opened as LMDB ({error.strerror}); copy or build the database again") from None
    except _NoLmdb as damage:
        raise BadInput(f"{path}: cannot be opened as LMDB ({damage}); copy or build the database again") from None
    except _Damaged as damage:
        raise BadInput(f"{path}: damaged, {damage}; copy or build the database again") from None


def _look(path: str | Path, for_writing: bool) -> int:
    pages = _Pages(_mapped(path), path)
    longs = pages.walk(pages.meta["main"], "records")
    if for_writing:
        pages.check_free(longs)
    return int(pages.seen.sum())


def _transaction(path: str | Path) -> int:
    """The last one that was committed."""
    return int(_meta_page(_mapped(path))["transaction"])


def _mapped(path: str | Path) -> np.ndarray:
    """The bytes of a file."""
    with open_regular(path) as file:
        is_empty = not os.fstat(file.fileno()).st_size
        content = b"" if is_empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(content, np.uint8)


class _Pages:
    """The pages of a file.

    Attributes:
        meta: the meta page that counts
        seen: [pages] bool, those that are part of a tree
    """

    def __init__(self, content: np.ndarray, path: str | Path):
        self.meta = _meta_page(content)
        self.psize, self.last = int(self.meta["free"]["psize"]), int(self.meta["last_page"])
        promised = (self.last + 1) * self.psize
        if len(content) < promised:
            raise BadInput(
                f"{path}: truncated, {len(content)} bytes where its header promises {promised}; copy the database again. "
                "(LMDB does not write free pages at the end: if the last change was a deletion the file can be whole, and "
                f"`python -m lmdb -e {Path(path).parent} copy --compact NEW` mends it)"
            )
        self.bytes = content[:promised]
        self.shorts = self.bytes.view(np.uint16)
        self.seen = np.zeros(self.last + 1, bool)

    def walk(self, database: np.void, what: str) -> _Long:
        """Look at all pages of a tree → its long values."""
        depth, root = int(database["depth"]), int(database["root"])
        if root == _NO_PAGE and not depth and not database["entries"]:
            return _Long(np.zeros(0, np.int64), np.zeros(0, np.int64))
        if not 0 < depth <= _DEEPEST:
            raise _Damaged(f"the tree of {what} has {depth} levels")
        if what == "records" and database["flags"]:
            raise _Damaged(f"the records are kept in another way than key by key (flags {int(database['flags']):#x})")
        level, branches = self._take(np.array([root], np.uint64), "the meta page"), 0
        for _ in range(depth - 1):
            branches += len(level)
            level = np.concatenate([self._children(part) for part in _parts(level)])
        found = [self._leaves(part) for part in _parts(level)]
        entries = sum(count for count, _ in found)
        counted = {"branch": (branches, "branch pages"), "leaf": (len(level), "leaf pages"), "entries": (entries, "entries")}
        for name, (count, things) in counted.items():
            if count != database[name]:
                raise _Damaged(f"the tree of {what} has {count} {things} where its header says {int(database[name])}")
        return _Long(np.concatenate([long.pages for _, long in found]), np.concatenate([long.sizes for _, long in found]))

    def _take(self, numbers: np.ndarray, where: str) -> np.ndarray:
        """Page numbers [n] uint64 that are named by a page, as int64; each may be named once."""
        outside = (numbers < 2) | (numbers > self.last)
        if outside.any():
            raise _Damaged(f"{where} names page {int(numbers[outside][0])} of {self.last + 1}")
        numbers = numbers.astype(np.int64)
        if len(np.unique(numbers)) != len(numbers) or self.seen[numbers].any():
            raise _Damaged(f"{where} names a page that is named already")
        self.seen[numbers] = True
        return numbers

    def _nodes(self, pages: np.ndarray, kind: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The nodes of pages [n]: their first bytes [m], their headers [m,4] as four uint16, and how many each page has [n]."""
        headers = self.shorts.reshape(-1, self.psize // 2)[pages, : _HEADER // 2]
        numbers, flags, lower, upper = headers[:, :4].copy().view(np.uint64)[:, 0], headers[:, 5], *headers[:, 6:].T.astype(np.int64)
        fewest = 2 if kind == _BRANCH else 1
        bad = (numbers != pages.astype(np.uint64)) | (flags != kind) | (lower < _HEADER + 2 * fewest) | (lower % 2 != 0)
        bad |= (upper < lower) | (upper > self.psize)
        self._refuse(bad, pages, "has a damaged header")
        counts = (lower - _HEADER) // 2
        page = np.repeat(pages, counts)
        entry = np.arange(len(page)) - np.repeat(np.cumsum(counts) - counts, counts)
        offset = self.shorts[page * (self.psize // 2) + _HEADER // 2 + entry].astype(np.int64)
        self._refuse((offset < np.repeat(upper, counts)) | (offset > self.psize - _NODE) | (offset % 2 != 0), page, "has a damaged entry")
        first = page * self.psize + offset
        return first, self.shorts[(first // 2)[:, None] + np.arange(4)], counts

    def _fit(self, pages: np.ndarray, first: np.ndarray, sizes: np.ndarray, counts: np.ndarray) -> None:
        """Refuse nodes of these sizes [m] that do not lie in their pages side by side."""
        page = np.repeat(pages, counts)
        self._refuse(first + sizes > (page + 1) * self.psize, page, "has an entry that is longer than the page")
        filled = np.add.reduceat((sizes + 1) // 2 * 2, np.cumsum(counts) - counts)
        upper = self.shorts[pages * (self.psize // 2) + 7]
        self._refuse(filled != self.psize - upper, pages, "has entries one over the other")

    def _children(self, pages: np.ndarray) -> np.ndarray:
        """The pages [m] that branch pages [n] name."""
        first, headers, counts = self._nodes(pages, _BRANCH)
        self._fit(pages, first, _NODE + headers[:, 3].astype(np.int64), counts)
        low, middle, high = headers[:, :3].astype(np.uint64).T
        return self._take(low | middle << np.uint64(16) | high << np.uint64(32), f"a branch page ({pages[0]} or after)")

    def _leaves(self, pages: np.ndarray) -> tuple[int, _Long]:
        """How many records leaf pages [n] have, and the long values among them."""
        first, headers, counts = self._nodes(pages, _LEAF)
        page, keys = np.repeat(pages, counts), headers[:, 3].astype(np.int64)
        self._refuse((headers[:, 2] > _LONG) | (keys == 0), page, "has an entry of an unknown kind")
        sizes = headers[:, 0].astype(np.int64) | headers[:, 1].astype(np.int64) << 16
        long = headers[:, 2] == _LONG
        self._fit(pages, first, _NODE + keys + np.where(long, 8, sizes), counts)
        where = (first + _NODE + keys)[long]
        numbers = self.bytes[where[:, None] + np.arange(8)].view(np.uint64)[:, 0]
        numbers = self._take(numbers, f"a leaf page ({pages[0]} or after)")
        self.seen[numbers] = False  # they are no part of the tree
        self._refuse(numbers + self._spans(sizes[long]) > self.last + 1, page[long], "has a value that is longer than the file")
        return len(first), _Long(numbers, sizes[long])

    def _spans(self, sizes: np.ndarray) -> np.ndarray:
        """How many overflow pages values of these sizes take."""
        return (_HEADER - 1 + sizes) // self.psize + 1

    def _refuse(self, bad: np.ndarray, pages: np.ndarray, what: str) -> None:
        if bad.any():
            raise _Damaged(f"page {int(pages[np.argmax(bad)])} {what}")

    # ---- what a writer follows -----------------------------------------------------------------------------------------

    def check_free(self, longs: _Long) -> None:
        """Refuse a list of free pages that names one in use, and long values that lie one over the other.

        Args:
            longs: those of the records
        """
        free_longs = self.walk(self.meta["free"], "free pages")
        used = self.seen.astype(np.int64)
        for long in (longs, free_longs):
            headers = self.shorts.reshape(-1, self.psize // 2)[long.pages, : _HEADER // 2]
            spans = headers[:, 6:].copy().view(np.uint32)[:, 0].astype(np.int64)
            bad = (headers[:, :4].copy().view(np.uint64)[:, 0] != long.pages.astype(np.uint64)) | (headers[:, 5] != _OVERFLOW)
            bad |= (spans < self._spans(long.sizes)) | (long.pages + spans > self.last + 1)
            self._refuse(bad, long.pages, "has a damaged header")
            begin, end = (np.bincount(at, minlength=self.last + 2) for at in (long.pages, long.pages + spans))
            used += np.cumsum(begin - end)[:-1]
        for numbers in self._free_lists():
            used[numbers] += 1
        self._refuse(used > 1, np.arange(len(used)), "is in use twice")

    def _free_lists(self):
        """The lists of free pages, one of each transaction that freed some."""
        if int(self.meta["free"]["root"]) == _NO_PAGE:
            return
        level = np.array([self.meta["free"]["root"]], np.int64)
        for _ in range(int(self.meta["free"]["depth"]) - 1):
            first, headers, _ = self._nodes(level, _BRANCH)
            low, middle, high = headers[:, :3].astype(np.int64).T
            level = low | middle << 16 | high << 32
        first, headers, _ = self._nodes(level, _LEAF)
        for start, (low, high, flags, key) in zip(first.tolist(), headers.tolist(), strict=True):
            at, size = start + _NODE + key, low | high << 16
            if flags == _LONG:
                at = int(self.bytes[at : at + 8].view(np.uint64)[0]) * self.psize + _HEADER
            numbers = self.bytes[at : at + size // 8 * 8].view(np.uint64)
            if key != 8 or not len(numbers) or numbers[0] >= len(numbers):
                raise _Damaged("a list of free pages has a damaged length")
            numbers = numbers[1 : 1 + int(numbers[0])]
            if (numbers < 2).any() or (numbers > self.last).any() or (numbers[:-1] <= numbers[1:]).any():
                raise _Damaged("a list of free pages is damaged")
            yield numbers.astype(np.int64)


def _parts(pages: np.ndarray) -> list[np.ndarray]:
    return [pages[start : start + _AT_ONCE] for start in range(0, len(pages), _AT_ONCE)]


def _meta_page(content: np.ndarray) -> np.void:
    """The meta page that LMDB takes: of two, the later."""
    if len(content) < _META_PAGE.itemsize:
        raise _NoLmdb(f"{len(content)} bytes are no LMDB file")
    first = content[: _META_PAGE.itemsize].view(_META_PAGE)[0]
    psize = int(first["free"]["psize"])
    if first["magic"] != _MAGIC or first["version"] != _VERSION or psize not in (1 << power for power in range(8, 16)):
        raise _NoLmdb("it does not begin with a meta page of LMDB's")
    if len(content) < psize + _META_PAGE.itemsize:
        raise _NoLmdb("truncated before its second meta page")
    second = content[psize : psize + _META_PAGE.itemsize].view(_META_PAGE)[0]
    for number, page in enumerate((first, second)):
        known = page["magic"] == _MAGIC and page["version"] == _VERSION and page["kind"] == _META
        if not known or page["page"] != number or page["free"]["psize"] != psize:
            raise _NoLmdb(f"meta page {number} is no such page")
    later = max((first, second), key=lambda page: int(page["transaction"]))  # of two alike the first
    if later["last_page"] < 1 or later["last_page"] >= 1 << 48:
        raise _NoLmdb(f"the meta page says that the last page is {int(later['last_page'])}")
    return later.copy()  # a writer may change it
