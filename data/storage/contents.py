"""What a database holds, as a number: two folders of one digest hold the same records, and the same files beside them.

    content_digest(folder)                                  # of the LMDB alone
    content_digest(folder, ["id2len.json", "meta.json"])    # and of these files

Our writers keep the digest up to date while they write; of a foreign database it is computed once and remembered, until the
file has another size, time or inode (``data.storage.digest``).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb

from data.errors import BadInput
from data.progress import ProgressBar
from data.storage.digest import BITS, RecordsDigest, file_identity, remember_files, remembered_files
from data.storage.lmdb_env import open_env
from data.storage.regular_files import open_regular

_AT_ONCE = 512  # records of one task: some megabytes of regions, so that a thread is not asked for too little
_CHUNK = 1 << 24  # bytes of a file read at a time
_THREADS = min(8, os.cpu_count() or 1)


def content_digest(folder: str | Path, beside: Sequence[str | Path] = (), progress: bool = True) -> str:
    """Digest of the records of an LMDB folder and of files beside it: 16 hexadecimal digits.

    Args:
        beside: names of files in the folder, or paths; one that is absent counts as such
        progress: show a bar while a large database is read

    Raises:
        BadInput: there is no LMDB, or it cannot be read.
    """
    folder = Path(folder)
    known = remembered_files(folder)
    now: dict[str, dict] = {}
    for path in (folder / "data.mdb", *(folder / name for name in beside)):
        name = os.path.relpath(path, folder)
        now[name] = found = file_identity(path)
        before = known.get(name, {})
        if found and "digest" in before and before.items() >= found.items():
            found["digest"] = before["digest"]
        elif name == "data.mdb":
            found["digest"] = records_digest(folder, progress).hex
        else:
            found["digest"] = file_digest(path) if found else "absent"
    if now != {name: known.get(name) for name in now}:
        remember_files(folder, known | now)
    total = hashlib.blake2b(digest_size=8)
    for name in sorted(now):
        total.update(f"{Path(name).name}\0{now[name]['digest']}\0".encode())
    return total.hexdigest()


def records_digest(folder: str | Path, progress: bool = True) -> RecordsDigest:
    """The digest of all records of an LMDB folder, read now, on several threads.

    Raises:
        BadInput: there is no LMDB, or it cannot be read.
    """
    env = open_env(folder, keep_views=False)
    total = RecordsDigest()
    try:
        with env.begin() as txn, ThreadPoolExecutor(_THREADS) as pool:
            keys = list(txn.cursor().iternext(values=False))
            parts = [keys[start : start + _AT_ONCE] for start in range(0, len(keys), _AT_ONCE)]
            with ProgressBar(what=f"hashing {folder}", total=len(keys), unit="record", show=progress) as bar:
                for part in pool.map(lambda part: _digest_of_keys(env, part), parts):
                    total.merge(part)
                    bar.update(part.count)
    except lmdb.Error as error:
        raise BadInput(f"{folder}: cannot be read ({error}); copy or build the database again") from None
    return total


def _digest_of_keys(env: lmdb.Environment, keys: Iterable[bytes]) -> RecordsDigest:
    digest = RecordsDigest()
    with env.begin(buffers=True) as txn:
        for key in keys:
            value = txn.get(key)
            if value is None:  # a damaged key stands beside, so that the order is no longer theirs
                raise lmdb.CorruptedError(f"key {bytes(key)!r} is listed, but not found")
            digest.add(key, value)
    return digest


def file_digest(path: str | Path) -> str:
    """Digest of the bytes of a file. Raises BadInput when it cannot be read."""
    digest = hashlib.blake2b(digest_size=BITS // 8)
    try:
        with open_regular(path) as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()
