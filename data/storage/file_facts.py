"""What was found out about a large file by reading all of it, remembered until the file has another size, time or inode."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from isal.isal_zlib import crc32  # eight times as fast as zlib's

from data.errors import BadInput
from data.storage.digest import cache_folder, file_identity
from data.storage.regular_files import open_regular
from data.storage.text_files import read_json, write_json

REMEMBERED_FROM = 16 << 20  # bytes; a smaller file is read again in some milliseconds
_CHUNK = 1 << 20  # bytes read at a time, which stay in a cache of the processor
SETTLED = 2.0  # seconds since a file was written, after which a further change changes its time, too


def fact_of_file(path: str | Path, kind: str, find: Callable[[], str]) -> str:
    """What ``find`` says of a file, which it reads; remembered in a cache folder when the file is large.

    Args:
        kind: of fact, in a word that changes when its meaning does
    """
    path = Path(path)
    now = file_identity(path)
    if now.get("size", 0) < REMEMBERED_FROM:
        return find()
    name = hashlib.blake2b(f"{kind}\0{os.path.realpath(path)}".encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    place = cache_folder() / "files" / f"{name}.json"
    with suppress(BadInput, KeyError):
        known = read_json(place)
        if known.items() >= now.items() and isinstance(known["fact"], str):
            return known["fact"]
    fact = find()
    if time.time() - now["mtime_ns"] / 1e9 > SETTLED and file_identity(path) == now:
        with suppress(OSError, BadInput):
            write_json(place, now | {"fact": fact})
    return fact


def file_crc32(path: str | Path) -> str:
    """CRC-32 of the bytes of a file, 8 hexadecimal digits; remembered. Raises OSError when it cannot be read."""

    def find() -> str:
        total = 0
        with open_regular(path) as file:
            while chunk := file.read(_CHUNK):
                total = crc32(chunk, total)
        return f"{total:08x}"

    return fact_of_file(path, "crc32", find)
