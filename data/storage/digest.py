"""Digests of records, kept up while a database is written, and the file in which they are remembered.

Each record has a 256-bit hash of its key and value, and a database the sum of its records' hashes: it does not depend on the
order in which they were written nor on how LMDB laid them out, it grows with every record that is added, and a record that is
replaced is taken away again.

It is remembered in ``digest.json`` beside the LMDB, or in a cache folder where that cannot be written, together with size, time
and inode of the file. Who reads a database asks ``data.storage.contents``.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from data.errors import BadInput
from data.storage.text_files import read_json, write_json

FILE = "digest.json"
NOWHERE = Path(os.devnull, "lightningdot")  # below no folder
BITS = 256
_REMEMBERED = {"size?": int, "mtime_ns?": int, "inode?": int, "digest?": str}


class RecordsDigest:
    """The digest of a set of records that changes.

    Attributes:
        count: number of records
    """

    def __init__(self, total: int = 0, count: int = 0):
        self._total, self.count = total, count

    def add(self, key: bytes, value: bytes) -> None:
        """A record is added."""
        self._total, self.count = (self._total + _record_hash(key, value)) % (1 << BITS), self.count + 1

    def remove(self, key: bytes, value: bytes) -> None:
        """A record that was added is taken away, or is about to be replaced."""
        self._total, self.count = (self._total - _record_hash(key, value)) % (1 << BITS), self.count - 1

    def copy(self) -> RecordsDigest:
        return RecordsDigest(self._total, self.count)

    def merge(self, other: RecordsDigest) -> None:
        """Take over the records of another set that has no key in common with this one."""
        self._total, self.count = (self._total + other._total) % (1 << BITS), self.count + other.count

    @property
    def hex(self) -> str:
        return f"{self._total:0{BITS // 4}x}"


def _record_hash(key: bytes, value: bytes) -> int:
    digest = hashlib.blake2b(len(key).to_bytes(4, "little"), digest_size=BITS // 8)
    digest.update(key)
    digest.update(value)
    return int.from_bytes(digest.digest(), "little")


def hash_of_key(key: bytes) -> int:
    """64 bits of a key, by which sorted tables find it."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def remember_digest(folder: Path, digest: RecordsDigest) -> None:
    """Note the digest of a database that has just been written, whose file keeps its identity when the folder is renamed."""
    remember_files(folder, {"data.mdb": file_identity(folder / "data.mdb") | {"digest": digest.hex}})


def remember_files(folder: Path, files: dict[str, dict]) -> None:
    """Write what is known of a folder's files beside them, or into the cache where that is not possible."""
    for path in (folder / FILE, _cache_file(folder)):
        with suppress(OSError, BadInput):
            write_json(path, files)
            return


def remembered_files(folder: Path) -> dict[str, dict]:
    """What is known of a folder's files: name → size, mtime_ns, inode and digest; nothing where nothing was noted."""
    for path in (folder / FILE, _cache_file(folder)):
        with suppress(BadInput):
            return read_json(path, expected={str: _REMEMBERED})
    return {}


def _cache_file(folder: Path) -> Path:
    name = hashlib.blake2b(os.path.realpath(folder).encode(), digest_size=16).hexdigest()
    return cache_folder() / "digests" / f"{name}.json"


def cache_folder() -> Path:
    """Where notes go about files in folders that cannot be written, or are not ours to write. A user without a home directory has
    none: then it is a place where nothing can be, so that every attempt to write there fails with OSError."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "lightningdot")
    except RuntimeError:  # HOME is not set, and the system knows no user of this number, as in many containers
        return NOWHERE


def file_identity(path: Path) -> dict:
    """Size, time and inode of a file; nothing for one that is not there."""
    try:
        info = path.stat()
    except OSError:
        return {}
    return {"size": info.st_size, "mtime_ns": info.st_mtime_ns, "inode": info.st_ino}
