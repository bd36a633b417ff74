"""The records of pictures in an LMDB folder of an image DB, one by one: their bytes, and the arrays that these hold."""

from __future__ import annotations

from pathlib import Path

import lmdb
import numpy as np

from data.errors import BadInput
from data.regions.codec import MEMBERS, decode_compressed, decode_plain
from data.storage.lmdb_env import Records, stored_value
from data.storage.record_sums import read_sums


class CheckedRecords:
    """All rows of the records of an LMDB folder, each compared with its checksum where it has one."""

    def __init__(self, folder: Path):
        self._folder, self._compressed = folder, folder.name.endswith("_compressed")
        self._records = Records(folder)
        self._sums = read_sums(folder, self._records.txn)

    def arrays(self, key: str) -> dict[str, np.ndarray]:
        """What is stored under `key`. Raises BadInput when it is absent, damaged, or not what was written."""
        value = stored_record(self._records.txn, self._folder, key)
        if self._sums is not None:
            self._sums.check(self._folder, key, value)
        return decoded_arrays(value, self._folder, key, self._compressed)


def stored_arrays(txn: lmdb.Transaction, folder: Path, key: str, compressed: bool) -> dict[str, np.ndarray]:
    """What is stored under `key`: see `stored_record` and `decoded_arrays`."""
    return decoded_arrays(stored_record(txn, folder, key), folder, key, compressed)


def stored_record(txn: lmdb.Transaction, folder: Path, key: str) -> memoryview:
    """The bytes that are stored under `key`. Raises BadInput when it is absent, or its page is damaged."""
    value = stored_value(txn, key, folder)
    if value is None:
        raise BadInput(f"{folder}: key {key!r} is listed but not stored; build the database again")
    return memoryview(value)


def decoded_arrays(
    value: memoryview, folder: Path, key: str, compressed: bool, members: tuple[str, ...] = MEMBERS
) -> dict[str, np.ndarray]:
    """The asked members that a record holds, all rows, fp16; of a plain one they are views of it.

    Raises:
        BadInput: the record is damaged, or features, norm_bb or conf are missing.
    """
    try:
        arrays = (decode_compressed if compressed else decode_plain)(value, members)
    except Exception as error:  # whatever msgpack, zip, zlib or numpy raise on damaged bytes
        raise BadInput(f"{folder}: key {key!r} is damaged ({error!r}); extract this picture again") from None
    missing = [name for name in members[:3] if name not in arrays]
    if missing:
        raise BadInput(f"{folder}: key {key!r} has no {' and no '.join(missing)}; extract this picture again")
    odd = next((name for name, array in arrays.items() if array.ndim != (1 if name == "conf" else 2)), None)
    if odd:
        raise BadInput(f"{folder}: key {key!r} has {odd} {arrays[odd].shape}, of another form; extract this picture again")
    return arrays
