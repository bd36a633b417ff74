"""A checksum of every record of a database that we write, in a file beside its LMDB, so that damage is noticed where it is read.

``checksums.npz`` holds ``keys`` uint64 [N], a hash of each record's key, rising; ``sums`` uint32 [N], the CRC-32 of its value; where
values begin with what is read more often than the rest, ``heads`` uint32 [N, 2], how many bytes that is, or 0, and their CRC-32;
``files`` uint64 [M, 2], of each file in JSON beside the LMDB a hash of its name and the CRC-32 of its content; and ``transaction``, the
number of the LMDB's last transaction: records that somebody has changed since are not compared, which that number and the number of
records tell. Databases of others have no such file, nor have ours of before, or none with ``heads`` and ``files``.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import lmdb
import numpy as np
from isal.isal_zlib import crc32  # eight times as fast as zlib's

from data.errors import BadInput
from data.notices import say_once
from data.storage.array_digest import read_own_arrays, write_arrays
from data.storage.columns import Numbers, Strings
from data.storage.digest import hash_of_key
from data.storage.file_facts import file_crc32
from data.storage.regular_files import is_there

FILE = "checksums.npz"
SUM, HEAD = "sum", "head"  # columns of a database's tables: uint32 [N], and uint32 [N, 2]
_HEAD, _WHOLE = 1, 2  # what was compared of a record
_PASSING = ("digest.json", "settings.json")  # files that come and go
_ADVICE = "copy the database again or build it again"


class RecordSums:
    """The checksums of a database's records.

    Args:
        keys, sums, heads, files: as in the file
    """

    def __init__(self, keys: np.ndarray, sums: np.ndarray, heads: np.ndarray | None = None, files: np.ndarray | None = None):
        self._keys, self._sums, self._heads = keys, sums, heads
        self._files: dict[int, int] = {} if files is None else dict(files.tolist())

    def of(self, hashes: np.ndarray) -> np.ndarray:
        """The sums uint32 [n] of records with these hashes [n] of their keys; 0 where there is none."""
        return self._at(hashes, self._sums)

    def _at(self, hashes: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Of records with these hashes [n], their rows of ``values`` [N, ...]; 0 where there is none."""
        found = np.zeros((len(hashes), *values.shape[1:]), values.dtype)
        if len(self._keys):
            at = np.minimum(np.searchsorted(self._keys, hashes), len(self._keys) - 1)
            is_there = self._keys[at] == hashes
            found[is_there] = values[at[is_there]]
        return found

    def __len__(self) -> int:
        return len(self._keys)

    def num_absent(self, hashes: np.ndarray) -> int:
        """How many records have a checksum whose keys are not among these hashes [n]."""
        return int(np.isin(self._keys, hashes, invert=True).sum())

    def columns(self, keys: Strings, folder: Path) -> dict[str, np.ndarray]:
        """The sums of records, and their heads where there are any, by the rows of a table of their keys: what `FirstReads` takes.
        Where they are about other records than those of the database in ``folder``, a line says so."""
        if without := int(np.isin(keys.hashes, self._keys, invert=True).sum()):
            say_once(f"{folder}: {FILE} has no checksum of {without:,} of its {len(keys):,} records, which are read without: is it another database's?")
        columns = {}
        for name, values in ((SUM, self._sums), (HEAD, self._heads)):
            if values is not None:
                columns[name] = np.empty((len(keys), *values.shape[1:]), np.uint32)
                columns[name][keys.rows_by_hash] = self._at(keys.hashes, values)
        return columns

    def say_other_files(self, paths: Iterable[Path]) -> None:
        """Say which of these files beside the records are not those that were written with them."""
        for path in paths:
            expected = self._files.get(hash_of_key(path.name.encode()))
            if expected is not None and int(file_crc32(path), 16) != expected:
                say_once(f"{path}: is not what was written with the records, by their {FILE}: changed, damaged, or another database's? It is taken as it is")

    def check(self, folder: Path, key: str, value: bytes | memoryview) -> None:
        """Raise BadInput where a record is not what was written."""
        expected = int(self.of(np.array([hash_of_key(key.encode())], np.uint64))[0])
        if not is_as_written(value, expected):
            raise not_as_written(folder, key)


def is_as_written(value: bytes | memoryview, expected: int, before: int = 0) -> bool:
    """Whether a record, or the rest of one behind a head whose checksum is ``before``, has the expected checksum of all; also where
    that is 0, which says nothing."""
    return not expected or crc32(value, before) == expected


def not_as_written(folder: Path, key: str) -> BadInput:
    return BadInput(f"{folder}: key {key!r} is damaged: it is not what was written, by its checksum in {FILE}; {_ADVICE}")


class FirstReads:
    """Compares each record with its checksum when it is read first: by this process, or by any that it has forked since, such as data
    workers, which share one note of what was compared. Picklable; a process that was spawned compares for itself.

    Args:
        folder: of the database
        columns: as `RecordSums.columns` gives them
    """

    def __init__(self, folder: Path, columns: dict[str, np.ndarray]):
        self._folder, self._sums = folder, Numbers(columns[SUM])
        self._heads = Numbers(columns[HEAD]) if HEAD in columns else None
        self._set_up()

    def _set_up(self) -> None:
        self._compared = mmap.mmap(-1, max(len(self._sums), 1))  # of each row, 0 where nothing was; forked processes share it
        # one number of a memoryview costs less than one of an array
        self._sum_of = memoryview(self._sums.array)
        self._head_of = None if self._heads is None else memoryview(self._heads.array.reshape(-1))

    def check(self, row: int, key: str, value: bytes | memoryview, only_head: bool = False) -> None:
        """Raise BadInput where the record is not what was written.

        Args:
            only_head: nothing behind the record's head is going to be looked at; where none is known, all is compared
        """
        compared = self._compared[row]
        if compared == _WHOLE or (compared and only_head):
            return
        size, head = (0, 0) if self._head_of is None else (self._head_of[2 * row], self._head_of[2 * row + 1])
        if only_head and size:
            is_right, compared = crc32(value[:size]) == head, _HEAD
        elif compared:
            is_right, compared = is_as_written(value[size:], self._sum_of[row], head), _WHOLE
        else:
            is_right, compared = is_as_written(value, self._sum_of[row]), _WHOLE
        if not is_right:
            raise not_as_written(self._folder, key)
        self._compared[row] = compared

    def __getstate__(self) -> dict:
        return {name: self.__dict__[name] for name in ("_folder", "_sums", "_heads")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        self._set_up()


class SumsWriter:
    """Takes the checksums of records as they are written.

    Args:
        head_bytes: of a value, how many of its first bytes are often read without the rest, or 0; None: of none
    """

    def __init__(self, head_bytes: Callable[[bytes], int] | None = None):
        self._keys, self._sums = array("Q"), array("I")
        self._head_bytes, self._heads = head_bytes, array("I")

    def add(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        """Records are stored; a later one of the same key replaces an earlier one."""
        for key, value in records:
            self._keys.append(hash_of_key(key))
            size = self._head_bytes(value) if self._head_bytes else 0
            head = crc32(memoryview(value)[:size])
            self._sums.append(crc32(memoryview(value)[size:], head))
            self._heads.extend((size, head))

    def write(self, folder: Path, env: lmdb.Environment) -> RecordSums:
        """Write the file, after the last transaction of ``env``: what it holds."""
        keys, sums = np.array(self._keys, np.uint64), np.array(self._sums, np.uint32)
        heads = np.array(self._heads, np.uint32).reshape(-1, 2)
        order = np.argsort(keys, kind="stable")
        is_last = np.append(keys[order][1:] != keys[order][:-1], True)[: len(order)]
        order = order[is_last]
        arrays = {"keys": keys[order], "sums": sums[order], "transaction": np.array(env.info()["last_txnid"])}
        if self._head_bytes:
            arrays["heads"] = heads[order]
        files = [(hash_of_key(path.name.encode()), int(file_crc32(path), 16)) for path in sorted(folder.glob("*.json")) if path.name not in _PASSING]
        arrays["files"] = np.array(files, np.uint64).reshape(-1, 2)
        write_arrays(folder / FILE, arrays, compress=False)
        return RecordSums(arrays["keys"], arrays["sums"], arrays.get("heads"), arrays["files"])


def read_sums(folder: Path, txn: lmdb.Transaction) -> RecordSums | None:
    """The checksums of a database that ``txn`` reads; None where it has none, or none that fit it, which is said."""
    if not is_there(folder / FILE):
        return None
    try:
        arrays = read_own_arrays(folder / FILE, "delete it, and the records are read without")
        keys, sums, heads, written = arrays["keys"], arrays["sums"], arrays.get("heads"), int(arrays["transaction"])
        if (sums.shape, sums.dtype) != (keys.shape, np.uint32) or (heads is not None and (heads.shape, heads.dtype) != ((len(keys), 2), np.uint32)):
            raise ValueError(f"{folder / FILE}: its arrays do not belong together")
        if (files := arrays.get("files")) is not None and (files.shape[1:], files.dtype) != ((2,), np.uint64):
            raise ValueError(f"{folder / FILE}: its files are {files.dtype} {list(files.shape)}")
    except (BadInput, KeyError, TypeError, ValueError) as error:
        say_once(f"{error}: records are read without checksums")
        return None
    if (written, len(keys)) != (txn.id(), txn.stat()["entries"]):
        say_once(f"{folder}: was changed since its {FILE} was written: its records are read without checksums")
        return None
    return RecordSums(keys, sums, heads, files)

