"""Arrays of numpy's files, ``.npy`` and ``.npz``: numbers and texts alone, and never more memory than the file's size warrants.

``numpy.load`` takes the memory that a header asks for before it looks whether there are as many bytes, and unpacks whatever a zip
archive holds. Here an array must have the bytes of its shape before it is made.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import numpy as np

from data.errors import BadInput, reason_of
from data.storage.inflating import check_inflated
from data.storage.regular_files import open_regular

_AT_ONCE = 1 << 24  # bytes unpacked at a time


def read_arrays(path: str | Path, advice: str, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file by their names, checked by the archive's checksums.

    Args:
        advice: what the user is told to do when the file is no such file
        names: of those that are read, where they are there; None for all

    Raises:
        BadInput: the file cannot be read, is damaged, or holds other things than arrays of numbers and texts.
    """
    return _read(path, advice, lambda file: _arrays_of_zip(file, names))


def read_array(path: str | Path, advice: str) -> np.ndarray:
    """The array of an ``.npy`` file; as `read_arrays`."""
    return _read(path, advice, lambda file: _array(file, os.fstat(file.fileno()).st_size))


def _read(path: str | Path, advice: str, read: Any) -> Any:
    try:
        with open_regular(path) as file:
            return read(file)
    except BadInput:
        raise
    except OSError as error:
        raise BadInput(f"{path}: cannot be read: {error.strerror or error}; {advice}") from None
    except Exception as error:  # whatever zip, zlib and numpy raise on damaged bytes
        raise BadInput(f"{path}: no file of numpy's arrays, or a damaged one ({reason_of(error)}); {advice}") from None


def _arrays_of_zip(file: IO[bytes], names: Collection[str] | None) -> dict[str, np.ndarray]:
    packed = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        members = {name: member for name, member in members.items() if names is None or name in names}
        check_inflated(sum(member.file_size for member in members.values()), packed, "its arrays")
        arrays = {}
        for name, member in members.items():
            with archive.open(member) as stream:
                arrays[name] = _array(stream, member.file_size)
                while stream.read(_AT_ONCE):  # to its end, where its checksum is compared
                    pass
        return arrays


def _array(file: IO[bytes], size: int) -> np.ndarray:
    """The array that a file of ``size`` bytes holds from where it is."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"an array of numpy's format {version}")
    shape, fortran_order, dtype = getattr(np.lib.format, f"read_array_header_{version[0]}_0")(file)
    if dtype.kind not in "biufcUS" or dtype.shape or dtype.metadata:
        raise ValueError(f"an array of type {str(dtype)[:40]}: only numbers and texts are read")
    count, left = math.prod(shape), size - file.tell()
    if not all(type(length) is int and length >= 0 for length in shape) or count * dtype.itemsize > left:
        raise ValueError(f"an array of shape {shape} and type {dtype} in {left:,} bytes")
    content = bytearray(count * dtype.itemsize)
    view, filled = memoryview(content), 0
    while filled < len(view):
        taken = file.readinto(view[filled : filled + _AT_ONCE])
        if not taken:
            raise ValueError(f"it ends after {filled:,} bytes of {len(view):,}")
        filled += taken
    array = np.frombuffer(content, dtype, count) if content else np.zeros(count, dtype)
    return check_characters(array).reshape(shape, order="F" if fortran_order else "C")


def check_characters(array: np.ndarray) -> np.ndarray:
    """The array; ValueError where its texts hold what is no character of Unicode."""
    if array.dtype.kind == "U" and array.dtype.itemsize and array.size:
        codes = np.ascontiguousarray(array).view(array.dtype.byteorder.replace("|", "=") + "u4")
        if codes.max() > 0x10FFFF:
            raise ValueError("a text with what is no character of Unicode")
    return array
