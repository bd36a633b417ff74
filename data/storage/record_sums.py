"""A checksum of every record of a database that we write, in a file beside its LMDB, so that damage is noticed where it is read.

``checksums.npz`` holds ``keys`` uint64 [N], a hash of each record's key, rising; ``sums`` uint32 [N], the CRC-32 of its value; and
``transaction``, the number of the LMDB's last transaction: records that somebody has changed since are not compared, which that
number and the number of records tell. Databases of others, and ours of before, have no such file.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Sequence
from pathlib import Path

import lmdb
import numpy as np
from isal.isal_zlib import crc32  # eight times as fast as zlib's

from data.errors import BadInput
from data.notices import say_once
from data.storage.array_digest import read_own_arrays, write_arrays
from data.storage.columns import Numbers, Strings
from data.storage.digest import hash_of_key

FILE = "checksums.npz"
_ADVICE = "copy the database again or build it again"


class RecordSums:
    """The checksums of a database's records.

    Args:
        keys, sums: as in the file
    """

    def __init__(self, keys: np.ndarray, sums: np.ndarray):
        self._keys, self._sums = keys, sums

    def of(self, hashes: np.ndarray) -> np.ndarray:
        """The sums uint32 [n] of records with these hashes [n] of their keys; 0 where there is none."""
        if not len(self._keys):
            return np.zeros(len(hashes), np.uint32)
        at = np.minimum(np.searchsorted(self._keys, hashes), len(self._keys) - 1)
        return np.where(self._keys[at] == hashes, self._sums[at], 0).astype(np.uint32)

    def __len__(self) -> int:
        return len(self._keys)

    def num_absent(self, hashes: np.ndarray) -> int:
        """How many records have a checksum whose keys are not among these hashes [n]."""
        return int(np.isin(self._keys, hashes, invert=True).sum())

    def of_strings(self, keys: Strings) -> np.ndarray:
        """The sums uint32 [N] of records, by the rows of a table of their keys."""
        found = np.empty(len(keys), np.uint32)
        found[keys.rows_by_hash] = self.of(keys.hashes)
        return found

    def check(self, folder: Path, key: str, value: bytes | memoryview) -> None:
        """Raise BadInput where a record is not what was written."""
        expected = int(self.of(np.array([hash_of_key(key.encode())], np.uint64))[0])
        if not is_as_written(value, expected):
            raise not_as_written(folder, key)


def is_as_written(value: bytes | memoryview, expected: int) -> bool:
    """Whether a record has the expected checksum; also where that is 0, which says nothing."""
    return not expected or crc32(value) == expected


def not_as_written(folder: Path, key: str) -> BadInput:
    return BadInput(f"{folder}: key {key!r} is damaged: it is not what was written, by its checksum in {FILE}; {_ADVICE}")


class FirstReads:
    """Compares each record with its checksum when it is read first: by this process, or by any that it has forked since, such as data
    workers, which share one note of what was compared. Picklable; a process that was spawned compares for itself.

    Args:
        folder: of the database
        sums: uint32 [N] by row of the table of its keys; 0 where there is none
    """

    def __init__(self, folder: Path, sums: np.ndarray):
        self._folder, self._sums = folder, Numbers(sums)
        self._unread = _bits_of_all(len(sums))

    def check(self, row: int, key: str, value: bytes | memoryview) -> None:
        """Raise BadInput where the record is not what was written."""
        byte, bit = row >> 3, 1 << (row & 7)
        if self._unread[byte] & bit:
            if not is_as_written(value, int(self._sums.array[row])):
                raise not_as_written(self._folder, key)
            self._unread[byte] &= ~bit  # two processes at once may lose one of two changes; that record is then compared again

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_unread": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state | {"_unread": _bits_of_all(len(state["_sums"]))}


def _bits_of_all(rows: int) -> mmap.mmap:
    """A bit of each row, all set, in memory that forked processes share."""
    size = max(-(-rows // 8), 1)
    bits = mmap.mmap(-1, size)
    bits.write(b"\xff" * size)
    return bits


class SumsWriter:
    """Takes the checksums of records as they are written."""

    def __init__(self):
        self._keys, self._sums = array("Q"), array("I")

    def add(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        """Records are stored; a later one of the same key replaces an earlier one."""
        self._keys.extend(hash_of_key(key) for key, _ in records)
        self._sums.extend(crc32(value) for _, value in records)

    def write(self, folder: Path, env: lmdb.Environment) -> RecordSums:
        """Write the file, after the last transaction of ``env``: what it holds."""
        keys, sums = np.array(self._keys, np.uint64), np.array(self._sums, np.uint32)
        order = np.argsort(keys, kind="stable")
        is_last = np.append(keys[order][1:] != keys[order][:-1], True)[: len(order)]
        order = order[is_last]
        arrays = {"keys": keys[order], "sums": sums[order], "transaction": np.array(env.info()["last_txnid"])}
        write_arrays(folder / FILE, arrays, compress=False)
        return RecordSums(arrays["keys"], arrays["sums"])


def read_sums(folder: Path, txn: lmdb.Transaction) -> RecordSums | None:
    """The checksums of a database that ``txn`` reads; None where it has none, or none that fit it, which is said."""
    if not (folder / FILE).is_file():
        return None
    try:
        arrays = read_own_arrays(folder / FILE, "delete it, and the records are read without")
        keys, sums, written = arrays["keys"], arrays["sums"], int(arrays["transaction"])
    except (BadInput, KeyError, TypeError, ValueError) as error:
        say_once(f"{error}: records are read without checksums")
        return None
    if (written, len(keys)) != (txn.id(), txn.stat()["entries"]):
        say_once(f"{folder}: was changed since its {FILE} was written: its records are read without checksums")
        return None
    return RecordSums(keys, sums)

