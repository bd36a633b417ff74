"""One picture's record in an image DB, as bytes: plain (a msgpack map of arrays) or compressed (what `numpy.savez` writes).

Both hold `features` [n, F], `norm_bb` [n, 6], `conf` [n] and, where the extractor has them, `soft_labels` [n, C], all
little-endian fp16. Members that are ours alone may be added: readers take what they know by name.
"""

from __future__ import annotations

import functools
import io
import zipfile
from collections.abc import Sequence

import msgpack
import numpy as np

MEMBERS = ("features", "norm_bb", "conf", "soft_labels")


def encode_plain(arrays: dict[str, np.ndarray]) -> bytes:
    """The plain value: what msgpack-numpy writes, byte for byte."""
    record = {
        name: {b"nd": True, b"type": "<f2", b"kind": b"", b"shape": array.shape, b"data": array.tobytes()}
        for name, array in arrays.items()
    }
    return msgpack.packb(record, use_bin_type=True)


def encode_compressed(arrays: dict[str, np.ndarray]) -> bytes:
    """The compressed value: the bytes of `numpy.savez_compressed`."""
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)
    return out.getvalue()


def decode_plain(value: memoryview, members: Sequence[str]) -> dict[str, np.ndarray]:
    """The asked members that are in a plain value, fp16, all rows. Damaged bytes raise whatever msgpack or numpy raise."""
    record = msgpack.unpackb(value, raw=True)  # raw: the maps of msgpack-numpy have bytes keys
    arrays = {}
    for name in members:
        stored = record.get(name.encode())
        if stored is not None:
            # frombuffer refuses object arrays, which msgpack-numpy would unpickle
            flat = np.frombuffer(stored[b"data"], np.dtype(stored[b"type"].decode()))
            arrays[name] = _as_fp16(flat.reshape(stored[b"shape"]))
    return arrays


def decode_compressed(value: memoryview, members: Sequence[str]) -> dict[str, np.ndarray]:
    """The asked members that are in a compressed value, fp16, all rows. Damaged bytes raise whatever zip, zlib or numpy raise.

    It reads what numpy.load would, about twice as fast; never the stray member ``allow_pickle`` of numpy < 2.1.
    """
    with zipfile.ZipFile(io.BytesIO(value)) as archive:
        names = archive.namelist()
        return {name: _parse_npy(archive.read(f"{name}.npy")) for name in members if f"{name}.npy" in names}


def _parse_npy(data: bytes) -> np.ndarray:
    start = 10 + int.from_bytes(data[8:10], "little")  # format version 1, which numpy writes for plain arrays
    shape, fortran_order, dtype = _npy_header(data[:start])
    # as above, frombuffer refuses object arrays
    return _as_fp16(np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran_order else "C"))


@functools.lru_cache(maxsize=1024)  # few different box counts occur, and parsing a header costs as much as the rest
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    stream = io.BytesIO(header)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f".npy format {version}, expected (1, 0)")
    return np.lib.format.read_array_header_1_0(stream)


def _as_fp16(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind != "f":
        raise ValueError(f"{array.dtype} array, expected float16")
    return array.astype("<f2", copy=False)
