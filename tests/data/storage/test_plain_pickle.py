"""Pickles of plain values against pickle itself, and hostile ones, of which nothing is run."""

import io
import os
import pickle
import pickletools
import struct

import numpy as np
import pytest
import torch

from data.errors import BadInput
from data.storage.plain_pickle import read_plain_pickle

PLAIN = {
    "numbers": [1, -7, 2**70, 1.5, float("inf"), True, None],
    "texts": {"a": "ü", 3: b"ab\xff", "c": ("x", [], {}, (), [[1.0, 2.0], [3.0, 4.0]])},
    "the same list twice": (lambda row: [row, row])([1, 2]),
    "scalars": [np.float32(0.1), np.float64(0.1), np.int64(3), np.bool_(True)],
    "long": [float(n) for n in range(3000)],
}
ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "float16": np.array([[0.5, -2]], np.float16),
    "columns first": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big-endian": np.arange(4, dtype=">i4"),
    "texts": np.array(["a.npz", "bé"]),
    "empty": np.zeros((0, 3)),
    "bools": np.array([True, False]),
}


def written(path, value, protocol=2):
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", PLAIN)
def test_plain_values(tmp_path, name, protocol):
    if name == "scalars" and protocol < 2:
        pytest.skip("numpy writes these with copyreg")
    assert read_plain_pickle(written(tmp_path / "p", PLAIN[name], protocol)) == PLAIN[name]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(tmp_path, name, protocol):
    array = ARRAYS[name]
    for value, take in ((array, lambda v: v), ([array, "x"], lambda v: v[0]), (("y", array), lambda v: v[1]), ({1: array}, lambda v: v[1])):
        found = read_plain_pickle(written(tmp_path / "p", value, protocol))
        assert type(found) is (np.ndarray if value is array else type(value))
        assert take(found).dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(take(found), array)


@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors(tmp_path, protocol):
    matrix = torch.arange(12.0).reshape(3, 4)
    for tensor in (matrix, matrix.half(), matrix.T, matrix[1:, 2], matrix[:0], torch.arange(3)):
        found, names = read_plain_pickle(written(tmp_path / "p", (tensor, ["a"]), protocol))
        np.testing.assert_array_equal(found, tensor.float().numpy())
        assert names == ["a"]


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_save(tmp_path, monkeypatch, zipped):
    monkeypatch.setenv("HOSTILE", str(tmp_path / "made"))
    values = {"scores": torch.arange(4.0).reshape(2, 2), 0: [1.5, 2.0], 1: 3}
    torch.save(values, tmp_path / "p", _use_new_zipfile_serialization=zipped)
    found = read_plain_pickle(tmp_path / "p")
    np.testing.assert_array_equal(found["scores"], [[0, 1], [2, 3]])
    assert found[0] == [1.5, 2.0] and found[1] == 3
    torch.save({"a": Hostile()}, tmp_path / "p", _use_new_zipfile_serialization=zipped)
    with pytest.raises(BadInput, match=r"/p: damaged, or holds more than tensors and plain values"):
        read_plain_pickle(tmp_path / "p")
    assert not (tmp_path / "made").exists()


class Hostile:
    """What would make a folder, were it unpickled."""

    def __reduce__(self):
        return os.mkdir, (os.environ["HOSTILE"],)


class Stateful:
    pass


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Hostile(), r"holds the function or class '(posix|nt)\.mkdir'"),
        ([1, {"a": (Hostile(),)}], r"mkdir"),
        (print, r"'builtins.print'|'__builtin__.print'"),
        (Stateful(), r"class '\S*Stateful'"),
        ({1, 2}, r"set'|EMPTY_SET"),
        (1j, r"complex"),
        (np.array([[1, "a"], [None, 2]], dtype=object), "an array of type 'O8?'"),
        (np.zeros((2, 2, 2)), "an array of more than two axes"),
        (np.zeros(2, np.complex64), "an array of type 'c8'"),
        (np.zeros(2, [("a", "f4")]), "an array of type 'V4'"),
        (np.ma.masked_array([1.0, 2.0], [True, False]), "the function or class 'numpy.ma"),
        (torch.zeros(2, 2, 2), "an array of more than two axes"),
        ({(1, 2): 3}, "a mapping whose keys are neither texts nor numbers"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_other_objects_are_refused_in_one_line(tmp_path, monkeypatch, value, message, protocol):
    monkeypatch.setenv("HOSTILE", str(tmp_path / "made"))
    with pytest.raises(BadInput, match=message) as error:
        read_plain_pickle(written(tmp_path / "p", value, protocol))
    assert str(error.value).startswith(f"{tmp_path}/p: holds ") and "\n" not in str(error.value)
    assert not (tmp_path / "made").exists()


def program(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


ARRAY = pickle.dumps(np.arange(6, dtype=np.float32).reshape(2, 3), 4)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no pickle at all",
        ARRAY[:-30],
        ARRAY.replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86"),  # says more numbers than it has bytes
        ARRAY.replace(b"K\x02K\x03\x86", b"K\x02J\xff\xff\xff\x7f\x86"),
        ARRAY.replace(b"f4", b"f8"),
        program(b"cos\nsystem\n", b"X\x04\x00\x00\x00true", b"\x85R"),
        program(b"cnumpy\nndarray\n", b"K\x04\x85R"),
        program(b"cnumpy\ndtype\n"),  # a function as the value
        program(b"c_codecs\nencode\n", b"X\x01\x00\x00\x00aX\x06\x00\x00\x00rot_13\x86R"),
        program(b"ccollections\nOrderedDict\n", b"K\x01\x85R"),
        program(b"c__main__\nx\n"),
        program(b"P0\n"),  # a persistent id
        program(b"i__builtin__\nlen\n"),
        program(b"K\x01K\x02"),  # two values
        program(b"u"), program(b"e"), program(b"t"), program(b"R"), program(b"b"), program(b"h\x07"), program(b"a"), program(b"\x87"),
        program(b"(K\x01K\x02\x87"),
        program(b"K\x01}a"),
        program(b"B\xff\xff\xff\x7fabc"),  # two gigabytes that are not there
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
        b"\x80\x04\x82\x01.",  # the extension registry
    ],
)  # fmt: skip
def test_damaged_and_hostile_programs_are_refused_in_one_line(tmp_path, content):
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(BadInput) as error:
        read_plain_pickle(tmp_path / "p")
    assert str(error.value).startswith(f"{tmp_path}/p: ") and "\n" not in str(error.value)


def test_every_cut_and_every_changed_byte_is_read_or_refused(tmp_path):
    whole = pickle.dumps((np.arange(4.0).reshape(2, 2), ["a", "b"], {0: 1.5}), 4)
    for n in range(len(whole)):
        for content in (whole[:n], whole[:n] + bytes([whole[n] ^ 0x55]) + whole[n + 1 :]):
            (tmp_path / "p").write_bytes(content)
            try:
                read_plain_pickle(tmp_path / "p")
            except BadInput:
                pass


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(BadInput, match="/absent: cannot be read: No such file"):
        read_plain_pickle(tmp_path / "absent")


def test_the_machine_knows_what_pickle_writes_for_arrays():
    """Instructions that this version of numpy and torch use, so that a new one is noticed here."""
    from data.storage import plain_pickle

    known = {*plain_pickle._LITERALS, *plain_pickle._STEPS, "PROTO", "FRAME", "STOP", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"}
    for protocol in range(2, 6):
        for value in (*ARRAYS.values(), *PLAIN.values(), torch.zeros(2)):
            used = {each.name for each, _, _ in pickletools.genops(io.BytesIO(pickle.dumps(value, protocol)))}
            assert used <= known
