"""One picture's record in an image DB, as bytes: plain (a msgpack map of arrays) or compressed (what `numpy.savez` writes).

Both hold `features` [n, F], `norm_bb` [n, 6], `conf` [n] and, where the extractor has them, `soft_labels` [n, C], all
little-endian fp16. Members that are ours alone may be added: readers take what they know by name.
"""

from __future__ import annotations

import functools
import io
import math
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgpack
import numpy as np
from isal import isal_zlib

from data.storage.inflating import check_inflated

MEMBERS = ("features", "norm_bb", "conf", "soft_labels")
MOST_MEMBER_BYTES = 256 << 20  # of a compressed member when it is inflated: 65,536 boxes of 2,048 features


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


# ---- plain ------------------------------------------------------------------------------------------------------------


class _Stored(NamedTuple):
    """An array in a plain value: its type as numpy writes it, its shape, and where its bytes are."""

    type: bytes
    shape: list[int]
    start: int
    stop: int


class PlainRows(NamedTuple):
    """Where the rows of a plain value are, when features [count, width], norm_bb [count, 6] and conf [count] are stored in fp16.

    Args:
        features, boxes: first byte of the features and of norm_bb
    """

    count: int
    width: int
    features: int
    boxes: int


@dataclass
class _PlainLayout:
    """Where the arrays of a plain value are, and what stands around them: (first byte, bytes) of each piece."""

    arrays: dict[bytes, _Stored]
    around: list[tuple[int, bytes]]

    def __post_init__(self):
        ends = [0, *(start + len(piece) for start, piece in self.around)]
        gaps = [(start - end, len(piece)) for end, (start, piece) in zip(ends, self.around, strict=False)]
        # looking at all pieces at once costs a tenth of looking at each
        self._pieces = struct.Struct("<" + "".join(f"{gap}x{length}s" for gap, length in gaps))
        self._expected = tuple(piece for _, piece in self.around)
        self.rows = _rows_of(self.arrays)

    def fits(self, value: memoryview) -> bool:
        """Whether another value of the same length differs in nothing but the bytes of its arrays."""
        return self._pieces.unpack_from(value) == self._expected


_plain_layouts: dict[int, _PlainLayout] = {}  # by length: a database has about one for each number of boxes
_MOST_LAYOUTS = 4096


def decode_plain(value: memoryview, members: Sequence[str]) -> dict[str, np.ndarray]:
    """The asked members that are in a plain value, fp16, all rows: read-only views into ``value``, nothing is copied.

    Damaged bytes raise whatever msgpack or numpy raise. Parsing costs as much as copying does, so it is done once for all
    values that differ in nothing but the bytes of their arrays.
    """
    layout = _layout_of(value)
    arrays = {}
    for name in members:
        stored = layout.arrays.get(name.encode())
        if stored is not None:
            # frombuffer refuses object arrays, which msgpack-numpy would unpickle
            flat = np.frombuffer(value[stored.start : stored.stop], np.dtype(stored.type.decode()))
            arrays[name] = _as_fp16(flat.reshape(stored.shape))
    return arrays


def plain_rows(value: memoryview) -> PlainRows | None:
    """Where the rows of a plain value are; None where it is stored otherwise or damaged: `decode_plain` reads it, or says what is
    wrong."""
    try:
        return _layout_of(value).rows
    except Exception:  # whatever msgpack raises on damaged bytes
        return None


def _rows_of(arrays: dict[bytes, _Stored]) -> PlainRows | None:
    features, boxes, conf = (arrays.get(name.encode()) for name in MEMBERS[:3])
    if features is None or boxes is None or conf is None or len(conf.shape) != 1 or len(features.shape) != 2:
        return None
    (count,), (_, width) = conf.shape, features.shape
    if type(count) is not int or type(width) is not int or min(count, width) < 1:
        return None
    for stored, shape in ((features, [count, width]), (boxes, [count, 6]), (conf, [count])):
        if stored.type != b"<f2" or stored.shape != shape or stored.stop - stored.start != 2 * math.prod(shape):
            return None
    return PlainRows(count, width, features.start, boxes.start)


def bytes_before_labels(value: bytes) -> int:
    """How many bytes of a plain value come before those of its soft labels, the last there are. All else that it holds is among them,
    also where the soft labels begin and end. 0: something comes behind the soft labels, or it is no such value."""
    try:
        labels = _layout_of(memoryview(value)).arrays.get(b"soft_labels")
    except Exception:  # whatever msgpack raises: of `__keys__`, or of damaged bytes, which are not compared by parts
        return 0
    return labels.start if labels is not None and labels.stop == len(value) else 0


def _layout_of(value: memoryview) -> _PlainLayout:
    layout = _plain_layouts.get(len(value))
    if layout is None or not layout.fits(value):
        layout = _parse_plain(value)
        if len(_plain_layouts) >= _MOST_LAYOUTS:
            _plain_layouts.clear()
        _plain_layouts[len(value)] = layout
    return layout


def _parse_plain(value: memoryview) -> _PlainLayout:
    record = _items_of_map(value)
    arrays = {}
    for name in map(str.encode, MEMBERS):
        stored, start, stop = record.get(name, (None, 0, 0))
        if stored is not None:
            data, _, end = _items_of_map(value[start:stop])[b"data"]
            place = slice(start + end - len(data), start + end)
            if value[place] != data:
                raise ValueError(f"{name!r} has no bytes")
            arrays[name] = _Stored(stored[b"type"], stored[b"shape"], place.start, place.stop)
    bounds = sorted((stored.start, stored.stop) for stored in arrays.values())
    starts, stops = [0, *(stop for _, stop in bounds)], [*(start for start, _ in bounds), len(value)]
    around = [(start, bytes(value[start:stop])) for start, stop in zip(starts, stops, strict=True) if start < stop]
    return _PlainLayout(arrays, around)


def _items_of_map(packed: memoryview) -> dict[bytes, tuple]:
    """The items of a msgpack map: key → what is stored, its first byte and the first byte after it."""
    unpacker = msgpack.Unpacker(raw=True, max_buffer_size=len(packed))  # raw: the maps of msgpack-numpy have bytes keys
    unpacker.feed(packed)
    items = {}
    for _ in range(unpacker.read_map_header()):
        key, start = unpacker.unpack(), unpacker.tell()
        items[key] = unpacker.unpack(), start, unpacker.tell()
    if unpacker.tell() != len(packed):
        raise ValueError(f"{len(packed) - unpacker.tell()} bytes too many")
    return items


# ---- compressed -------------------------------------------------------------------------------------------------------

_DIRECTORY_END = struct.Struct("<4s4xHHII H")  # signature, entries, entries, bytes of the directory, its first byte, comment
_DIRECTORY_ENTRY = struct.Struct("<4s4xHH4xIIIHHH8xI")
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class _Zipped(NamedTuple):
    """A member of a zip archive, as its directory has it."""

    name: bytes
    flags: int
    method: int
    crc: int
    packed_bytes: int
    size: int
    header: int


def decode_compressed(value: memoryview, members: Sequence[str]) -> dict[str, np.ndarray]:
    """The asked members that are in a compressed value, fp16, all rows. Damaged bytes raise whatever zip, zlib or numpy raise.

    It reads what numpy.load would, several times as fast; never the stray member ``allow_pickle`` of numpy < 2.1, and no
    member of more than ``MOST_MEMBER_BYTES``, or than its packed bytes warrant.
    """
    zipped = _zip_directory(value)
    names = {name: f"{name}.npy".encode() for name in members}
    return {name: _parse_npy(_unzip(value, zipped[file])) for name, file in names.items() if file in zipped}


def _zip_directory(value: memoryview) -> dict[bytes, _Zipped]:
    """The members of a zip archive by their file names."""
    at = len(value) - _DIRECTORY_END.size
    if at < 0 or value[at : at + 4] != b"PK\5\6":
        tail = bytes(value[-(0xFFFF + _DIRECTORY_END.size) :])  # a comment may come behind it
        at = tail.rfind(b"PK\5\6") + len(value) - len(tail)
    signature, _, entries, size, start, _ = _DIRECTORY_END.unpack_from(value, at)
    if signature != b"PK\5\6" or start + size > at:
        raise zipfile.BadZipFile("no zip archive, or a truncated one")
    zipped, place = {}, start
    for _ in range(entries):
        signature, *fields, name_bytes, extra, comment, header = _DIRECTORY_ENTRY.unpack_from(value, place)
        if signature != b"PK\1\2":
            raise zipfile.BadZipFile("the directory is damaged")
        name = bytes(value[place + _DIRECTORY_ENTRY.size :][:name_bytes])
        zipped[name] = _Zipped(name, *fields, header)
        place += _DIRECTORY_ENTRY.size + name_bytes + extra + comment
    if place != start + size:
        raise zipfile.BadZipFile("the directory is damaged")
    return zipped


def _unzip(value: memoryview, zipped: _Zipped) -> bytes:
    """The bytes of a member, inflated and checked."""
    signature, name_bytes, extra = _LOCAL_HEADER.unpack_from(value, zipped.header)
    start = zipped.header + _LOCAL_HEADER.size + name_bytes
    if signature != b"PK\3\4" or value[start - name_bytes : start] != zipped.name:
        raise zipfile.BadZipFile(f"{zipped.name!r} is not where the directory says")
    if zipped.flags & 1 or zipped.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"{zipped.name!r} is encrypted, or packed by method {zipped.method}")
    if zipped.size > MOST_MEMBER_BYTES:
        raise zipfile.BadZipFile(f"{zipped.name!r} has {zipped.size} bytes, at most {MOST_MEMBER_BYTES} are read")
    check_inflated(zipped.size, zipped.packed_bytes, f"{zipped.name!r}")
    start += extra
    packed = value[start : start + zipped.packed_bytes]
    if zipped.method == zipfile.ZIP_DEFLATED:
        inflate = isal_zlib.decompressobj(wbits=-15)  # no header of zlib's own
        data = inflate.decompress(packed, zipped.size + 1)
    else:
        data = bytes(packed)
    if len(data) != zipped.size or isal_zlib.crc32(data) != zipped.crc:
        raise zipfile.BadZipFile(f"{zipped.name!r} has another length or CRC-32 than the directory says")
    return data


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
