"""Tables of strings and numbers as a few numpy arrays, looked at as the lists and dicts they stand for.

Ten million Python strings and dict entries are gigabytes, in every process; the arrays are a tenth of that, and once they
are stored, memory-mapped: all processes of a machine share one copy, in the page cache.

    arrays = load_columns(folder, "columns", [folder / "id2len.json"], build, num_rows)   # built once, then mapped
    ids = Strings(arrays, "id")                                                   # a list of str
    lengths = Table(ids, Numbers(arrays["length"]))                               # a dict of str -> int
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from itertools import islice
from pathlib import Path

import numpy as np

from data.progress import ProgressBar
from data.storage.atomic import flush
from data.storage.digest import cache_folder, hash_of_key
from data.storage.file_facts import file_crc32
from data.storage.json_digest import check_digest, with_digest
from data.storage.regular_files import open_regular, real_path
from data.storage.text_files import is_utf8, read_json

STORED_FROM = 100_000  # rows; what is smaller is built from its sources in about a second
_CHUNK = 1 << 14  # rows made into Python objects at a time
_COMPARED = 1 << 16  # strings whose bytes are compared at a time


class Column(Sequence):
    """A read-only sequence over arrays; equal to a list of the same values. Pickles a mapped array as its file name.

    Each kind adds ``take(rows)``: the values at these rows, which must be within the column, as a list.
    """

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(len(self))))
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.take(np.array([index % len(self)]))[0]

    def __iter__(self) -> Iterator:
        for start in range(0, len(self), _CHUNK):
            yield from self.take(np.arange(start, min(start + _CHUNK, len(self))))

    def __eq__(self, other) -> bool:
        if not isinstance(other, Column | list):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self[:3]))}{', ...' * (len(self) > 3)})"

    def __getstate__(self) -> dict:
        mapped = {n: v.base.filename for n, v in self.__dict__.items() if _is_mapped(v)}
        return {"mapped": mapped, "others": {n: v for n, v in self.__dict__.items() if n not in mapped}}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state["others"])
        self.__dict__.update({name: _map(path) for name, path in state["mapped"].items()})


def _map(path: str | Path) -> np.ndarray:
    return np.asarray(np.lib.format.open_memmap(path, mode="r"))  # np.memmap itself is slow to index


def _is_mapped(value) -> bool:
    base = getattr(value, "base", None)
    return isinstance(base, np.memmap) and base.filename is not None and base.shape == value.shape


class Strings(Column):
    """Strings without repetition, found by value through sorted hashes.

    Args:
        arrays: what `string_arrays` gave
        name: as given to it
    """

    def __init__(self, arrays: dict[str, np.ndarray], name: str):
        self._bytes, self._ends = arrays[f"{name}_bytes"], arrays[f"{name}_ends"]
        self._hashes, self._rows = arrays[f"{name}_hashes"], arrays[f"{name}_rows"]

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, rows: np.ndarray) -> list[str]:
        data = memoryview(self._bytes)
        starts, ends = self._ends[rows].tolist(), self._ends[rows + 1].tolist()
        return [str(data[start:end], "utf-8") for start, end in zip(starts, ends, strict=True)]

    @property
    def hashes(self) -> np.ndarray:
        """uint64 [N] the strings' hashes, rising."""
        return self._hashes

    @property
    def rows_by_hash(self) -> np.ndarray:
        """int32 [N] the rows of the strings, in the order of their hashes."""
        return self._rows

    def find(self, name: str) -> int:
        """Its row; -1 when it is absent."""
        if isinstance(name, str) and is_utf8(name):
            wanted = np.uint64(_hash(name.encode()))
            at = int(self._hashes.searchsorted(wanted))
            while at < len(self) and self._hashes[at] == wanted:
                row = int(self._rows[at])
                if self[row] == name:
                    return row
                at += 1
        return -1

    def __contains__(self, name) -> bool:
        return self.find(name) >= 0

    def match(self, wanted: Sequence[str]) -> np.ndarray:
        """The rows here of N strings: [N] int32, -1 where they are absent.

        Those of another table are looked up all at once: first by hash, then byte by byte, since other strings may have the
        same hash. For instance::

            self: "cat" "dog" "owl"    wanted: "owl" "cow" "dog"    where "cow" happens to have the hash of "cat"
            rows by hash               [2, 0, 1]
            are the bytes the same?    [True, False, True]
            "cow" is looked up alone   [2, -1, 1]
        """
        if not isinstance(wanted, Strings | SelectedStrings):
            return np.array([self.find(name) for name in wanted], np.int32)
        other, rows = wanted, np.arange(len(wanted))
        if isinstance(wanted, SelectedStrings):
            other, rows = wanted.strings, wanted.rows.astype(np.int64)
        if len(self) == 0:
            return np.full(len(rows), -1, np.int32)
        found = self._rows_by_hash(other)[rows]
        for start in range(0, len(rows), _COMPARED):
            ours, theirs = found[start : start + _COMPARED], rows[start : start + _COMPARED]
            other_string = (ours >= 0) & ~self._have_same_bytes(ours, other, theirs)
            for n in np.flatnonzero(other_string):
                ours[n] = self.find(other[int(theirs[n])])
        return found

    def _rows_by_hash(self, other: Strings) -> np.ndarray:
        """Join two tables by hash: for each row of `other` a row here whose string has the same hash, -1 where none has."""
        at = np.minimum(self._hashes.searchsorted(other._hashes), len(self) - 1)  # both are sorted: fast
        found = np.empty(len(other), np.int32)
        found[other._rows] = np.where(self._hashes[at] == other._hashes, self._rows[at], -1)
        return found

    def _have_same_bytes(self, ours: np.ndarray, other: Strings, theirs: np.ndarray) -> np.ndarray:
        """Compare the strings at rows [n] here and at rows [n] of `other`: [n] bool; False where our row is -1."""
        starts, their_starts = self._ends[ours], other._ends[theirs]
        lengths = self._ends[ours + 1] - starts
        same = (ours >= 0) & (lengths == other._ends[theirs + 1] - their_starts)
        lengths = np.where(same, lengths, 0)  # only strings of one length are compared
        # all bytes to compare, of one string after the other: byte b is the (b - first)th of its string
        ends = np.cumsum(lengths)
        firsts = ends - lengths
        byte = np.arange(ends[-1])
        mine = self._bytes[byte + np.repeat(starts - firsts, lengths)]
        differ = np.flatnonzero(mine != other._bytes[byte + np.repeat(their_starts - firsts, lengths)])
        same[np.searchsorted(ends, differ, side="right")] = False  # the strings that these bytes are of
        return same


class Numbers(Column):
    """Whole numbers."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def take(self, rows: np.ndarray) -> list[int]:
        return self.array[rows].tolist()


class SelectedStrings(Column):
    """Some strings of a table, in any order, by their rows [N]."""

    def __init__(self, strings: Strings, rows: np.ndarray):
        self.strings, self.rows = strings, rows

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: np.ndarray) -> list[str]:
        return self.strings.take(self.rows[rows].astype(np.int64))


class Lists(Column):
    """Lists of strings of a table: list n is of rows ``rows[ends[n]:ends[n + 1]]``."""

    def __init__(self, strings: Strings, rows: np.ndarray, ends: np.ndarray):
        self.strings, self.rows, self.ends = strings, rows, ends

    def __len__(self) -> int:
        return len(self.ends) - 1

    def take(self, rows: np.ndarray) -> list[list[str]]:
        bounds = zip(self.ends[rows].tolist(), self.ends[rows + 1].tolist(), strict=True)
        return [self.strings.take(self.rows[start:end].astype(np.int64)) for start, end in bounds]


class Table(Mapping):
    """A read-only dict: string -> what its row of `column` holds."""

    def __init__(self, names: Strings, column: Column):
        self.names, self.column = names, column

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name) -> bool:
        return name in self.names

    def __getitem__(self, name: str):
        row = self.names.find(name)
        if row < 0:
            raise KeyError(name)
        return self.column[row]

    def items(self) -> ItemsView:
        return _Items(self)

    def values(self) -> ValuesView:
        return _Values(self)

    def __repr__(self) -> str:
        return f"Table({dict(islice(self.items(), 3))}{', ...' * (len(self) > 3)})"


class _Items(ItemsView):
    def __iter__(self) -> Iterator[tuple]:
        return zip(self._mapping.names, self._mapping.column, strict=True)


class _Values(ValuesView):
    def __iter__(self) -> Iterator:
        return iter(self._mapping.column)


# ---- making ----------------------------------------------------------------------------------------------------------


def string_arrays(name: str, strings: Iterable[str]) -> dict[str, np.ndarray]:
    """The four arrays of `Strings`; the strings must differ."""
    parts, lengths, hashes = [], [np.zeros(1, np.int64)], [np.empty(0, np.uint64)]
    strings = iter(ProgressBar(strings, f"making the table of {name}", unit="rows"))
    while chunk := [string.encode() for string in islice(strings, _CHUNK)]:
        parts.append(b"".join(chunk))
        lengths.append(np.array([len(string) for string in chunk]))
        hashes.append(np.array([_hash(string) for string in chunk], np.uint64))
    hashes = np.concatenate(hashes)
    order = np.argsort(hashes, kind="stable")
    return {
        f"{name}_bytes": np.frombuffer(b"".join(parts), np.uint8),
        f"{name}_ends": np.cumsum(np.concatenate(lengths)),
        f"{name}_hashes": hashes[order],
        f"{name}_rows": order.astype(np.int32),
    }


def _hash(string: bytes) -> int:
    return hash_of_key(string)


def json_parts(table: Mapping) -> Iterator[bytes]:
    """The bytes of ``json.dumps(dict(table))``, a part at a time."""
    items, before = iter(table.items()), "{"
    while chunk := dict(islice(items, _CHUNK)):
        yield (before + json.dumps(chunk)[1:-1]).encode()
        before = ", "
    yield b"}" if before == ", " else b"{}"


# ---- storing ---------------------------------------------------------------------------------------------------------


def load_columns(
    folder: Path, name: str, sources: Sequence[Path], build: Callable[[], dict[str, np.ndarray]], rows: str
) -> dict[str, np.ndarray]:
    """What `build` makes of `sources`, memory-mapped when it is large or was stored before.

    Large ones are stored in ``folder/name``, or where that cannot be written in ``$XDG_CACHE_HOME/lightningdot``
    (``~/.cache``), by every process that finds none; the last one's stay. They are stored anew when a source has changed
    and when they are damaged: not what was written, by their checksums.

    Args:
        build: the arrays by name
        rows: name of the array that tells whether they are large
    """
    try:
        made_from = repr([name, *((str(real_path(path)), *_stamp(path)) for path in sources)])
    except OSError:
        return build()  # says what is missing
    places = (Path(folder, name), cache_folder() / hashlib.blake2b(made_from.encode(), digest_size=8).hexdigest())
    for place in places:
        arrays = _stored(place, sources)
        if arrays is not None:
            return arrays
    arrays = build()
    if len(arrays[rows]) < STORED_FROM:
        return arrays
    for place in places:
        try:
            store_arrays(place, sources, arrays)
        except OSError:  # a read-only or full disk
            continue
        return _stored(place, sources) or arrays
    return arrays


def store_arrays(place: Path, sources: Sequence[Path], arrays: dict[str, np.ndarray]) -> None:
    """Write a folder of ``.npy`` files, and ``sources.json``: what they were made from. Raises OSError."""
    partial = place.with_name(f".{place.name}.{platform.node()}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array, allow_pickle=False)
        content = {path.name: [*_stamp(path), _digest(path)] for path in sources}
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        checksums = {name: file_crc32(partial / f"{name}.npy") for name in arrays}
        text = json.dumps(with_digest({"sources": content, "arrays": shapes, "checksums": checksums}))
        (partial / "sources.json").write_text(text, encoding="utf-8")
        for path in partial.iterdir():
            flush(path)
        old = partial.with_suffix(".old")
        try:
            place.rename(old)  # a folder takes the place of an empty one only
        except FileNotFoundError:
            pass
        try:
            partial.rename(place)
        except OSError:  # another process was faster
            if not (place / "sources.json").exists():
                raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _stored(place: Path, sources: Sequence[Path]) -> dict[str, np.ndarray] | None:
    """The arrays in a folder; None when there are none, of these sources and whole."""
    try:
        meta = read_json(place / "sources.json")
        check_digest(place / "sources.json", meta, "made again")
        if meta["sources"].keys() != {path.name for path in sources}:
            return None
        for path in sources:
            size, time, digest = meta["sources"][path.name]
            if [size, time] != _stamp(path) and (size != _stamp(path)[0] or digest is None or digest != _digest(path)):
                return None
        for name, checksum in meta.get("checksums", {}).items():  # those that were stored before have none
            if file_crc32(place / f"{name}.npy") != checksum:
                print(f"{place / name}.npy: damaged, made again", file=sys.stderr)
                return None
        arrays = {name: _map(place / f"{name}.npy") for name in meta["arrays"]}
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        return arrays if shapes == meta["arrays"] else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # of a truncated or other file; also BadInput
        return None


def _stamp(path: Path) -> list[int]:
    info = path.stat()
    return [info.st_size, info.st_mtime_ns]


def _digest(path: Path) -> str | None:
    """Of a table, so that a copied database need not be read anew; an LMDB may have terabytes."""
    if path.suffix not in (".json", ".npz"):
        return None
    digest = hashlib.blake2b(digest_size=16)
    with open_regular(path) as file:
        while part := file.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()
