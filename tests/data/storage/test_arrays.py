"""Arrays of numpy's files: what numpy wrote is read the same; what asks for more than the file has is refused before it is made."""

import io
import random
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from data.errors import BadInput
from data.storage.arrays import read_array, read_arrays

ARRAYS = {
    "a/numbers": np.arange(12, dtype=np.float32).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6, dtype=">i2").reshape(2, 3)),
    "texts": np.array(["Čáp", "", "b"]),
    "bytes": np.array([b"x", b"yz"]),
    "none": np.zeros((0, 7), np.int64),
    "one": np.array(3.5),
    "flags": np.array([True, False]),
}


def header(shape: str, dtype: str = "<f4") -> bytes:
    text = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes(tmp_path, save):
    save(tmp_path / "x.npz", **ARRAYS)
    found = read_arrays(tmp_path / "x.npz", "")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as twin:
        assert list(found) == list(twin)
        for name in twin:
            assert found[name].dtype == twin[name].dtype and found[name].flags.writeable
            np.testing.assert_array_equal(found[name], twin[name])
    for array in ARRAYS.values():
        np.save(tmp_path / "x.npy", array)
        np.testing.assert_array_equal(read_array(tmp_path / "x.npy", ""), array)


@pytest.mark.parametrize(
    "content",
    [
        header("(100000000000,)"),
        header("(4,)") + bytes(15),
        header("(-1,)") + bytes(16),
        header("(True,)") + bytes(16),
        header("(2, 9223372036854775807)") + bytes(16),
        header("(1,)", "|O") + bytes(16),
        header("(1,)", "|V8") + bytes(16),
        header("(1,)", "<U1") + b"\xff\xff\xff\x7f",
        header("(" * 5000 + ")" * 5000) + bytes(16),
        header("(2,)").replace(b"\x01\x00", b"\x03\x00", 1) + bytes(16),
        b"",
        b"no array",
    ],
)
def test_a_header_that_asks_for_something_else_is_one_line(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", content)
    for read, name in ((read_array, "x.npy"), (read_arrays, "x.npz")):
        with pytest.raises(BadInput, match=rf"{name}: no file of numpy's arrays, or a damaged one \(.*\); make it again$"):
            read(tmp_path / name, "make it again")


def test_unpacking_takes_no_more_memory_than_is_said_and_warranted(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header("(20000000,)") + bytes(80_000_000))
    whole = (tmp_path / "x.npz").read_bytes()
    with pytest.raises(BadInput, match="its arrays would take 80,000,"):
        read_arrays(tmp_path / "x.npz", "")
    said = struct.pack("<I", len(header("(20000000,)")) + 80_000_000)
    (tmp_path / "x.npz").write_bytes(whole.replace(said, struct.pack("<I", 1000)))  # it says that it is small
    tracemalloc.start()
    with pytest.raises(BadInput, match="no file of numpy's arrays"):
        read_arrays(tmp_path / "x.npz", "")
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_every_cut_and_changed_byte_is_refused_or_changes_no_array(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, **ARRAYS)
    whole, draw = buffer.getvalue(), random.Random(0)
    for n in range(200):
        content = bytearray(whole)
        if n % 4:
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        else:
            del content[draw.randrange(len(content)) :]
        (tmp_path / "x.npz").write_bytes(content)
        try:
            found = read_arrays(tmp_path / "x.npz", "")
        except BadInput:
            continue
        for name in found.keys() & ARRAYS.keys():
            np.testing.assert_array_equal(found[name], ARRAYS[name])
