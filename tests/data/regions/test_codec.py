"""Records as bytes: the same arrays as msgpack-numpy and numpy.load read, without copies, and nothing else from damaged ones."""

import io
import struct
import zipfile
import zlib

import msgpack
import msgpack_numpy
import numpy as np
import pytest

from data.regions import codec
from data.regions.codec import MEMBERS, decode_compressed, decode_plain, encode_compressed, encode_plain
from data.storage import inflating


def arrays_of(seed, rows=12, dtype=np.float16, names=MEMBERS):
    rng = np.random.default_rng(seed)
    shapes = {"features": (rows, 8), "norm_bb": (rows, 6), "conf": (rows,), "soft_labels": (rows, 5)}
    return {name: rng.random(shapes[name]).astype(dtype) for name in names}


def naive_plain(value, members):
    record = msgpack.unpackb(value, object_hook=msgpack_numpy.decode, raw=False, strict_map_key=False)
    return {name: record[name].astype(np.float16) for name in members if record.get(name) is not None}


def parsed_whole(value, members):
    """Without any layout that is known already."""
    record = msgpack.unpackb(value, raw=True)
    stored = {name: record[name.encode()] for name in members if record.get(name.encode()) is not None}
    arrays = {name: np.frombuffer(each[b"data"], each[b"type"].decode()).reshape(each[b"shape"]) for name, each in stored.items()}
    assert all(array.dtype.kind == "f" for array in arrays.values())
    return {name: array.astype("<f2") for name, array in arrays.items()}


def naive_compressed(value, members):
    with np.load(io.BytesIO(value)) as archive:
        return {name: archive[name].astype(np.float16) for name in members if name in archive.files}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == np.dtype("<f2") and np.array_equal(found[name], array), name


def packed_array(array, order=(b"nd", b"type", b"kind", b"shape", b"data")):
    items = {b"nd": True, b"type": array.dtype.str, b"kind": b"", b"shape": array.shape, b"data": array.tobytes()}
    return {name: items[name] for name in order}


# ---- plain -----------------------------------------------------------------------------------------------------------


def plain_values():
    """Values of few lengths and many layouts, each of which must not be taken for another."""
    for seed in range(3):
        yield encode_plain(arrays_of(seed))
    yield encode_plain(arrays_of(3, names=MEMBERS[::-1]))  # of the same length
    yield msgpack.packb({name: packed_array(array) for name, array in arrays_of(4, rows=6, dtype=np.float32).items()})
    yield encode_plain({name: array.reshape(array.shape[::-1]) for name, array in arrays_of(5).items()})
    yield encode_plain(arrays_of(6, names=MEMBERS[:3]))
    arrays = arrays_of(7)
    yield msgpack.packb({**{n: packed_array(a) for n, a in arrays.items()}, "ours": [1, "x"], "none": None})
    yield msgpack.packb({**{n: packed_array(a) for n, a in arrays.items()}, "soft_labels": None})
    back = (b"data", b"shape", b"kind", b"type", b"nd")
    yield msgpack.packb({name: packed_array(array, back) for name, array in arrays.items()})
    yield msgpack.packb({name: packed_array(array.astype("<f4")) for name, array in arrays.items()})
    yield encode_plain({name: np.zeros_like(array) for name, array in arrays.items()})


def test_plain_as_msgpack_numpy_reads_it():
    values = list(plain_values())
    for value in values + values[::-1] + values:  # layouts are learnt, used, and replaced
        for members in (MEMBERS, MEMBERS[:3], ("conf",)):
            assert_same(decode_plain(memoryview(value), members), naive_plain(value, members))


def test_plain_is_not_copied():
    value = bytearray(encode_plain(arrays_of(0)))
    for _ in range(2):  # as the layout is learnt, and afterwards
        found = decode_plain(memoryview(value).toreadonly(), MEMBERS)
        for array in found.values():
            assert np.shares_memory(array, np.frombuffer(value, np.uint8)) and not array.flags.writeable


def test_few_layouts_are_kept(monkeypatch):
    monkeypatch.setattr(codec, "_MOST_LAYOUTS", 3)
    for rows in range(1, 9):
        value = encode_plain(arrays_of(rows, rows))
        assert_same(decode_plain(memoryview(value), MEMBERS), naive_plain(value, MEMBERS))
        assert len(codec._plain_layouts) <= 3


def test_a_plain_value_with_any_other_byte_around_its_arrays_is_parsed_anew():
    """What the fast path says of it, a naive reader says, or both refuse it."""
    agreed = 0
    value = encode_plain(arrays_of(0, rows=2))
    decode_plain(memoryview(value), MEMBERS)
    layout = codec._plain_layouts[len(value)]
    for start, piece in layout.around:
        for place in range(start, start + len(piece)):
            changed = bytearray(value)
            changed[place] ^= 0x01
            assert not layout.fits(memoryview(changed))
            try:
                expected = parsed_whole(bytes(changed), MEMBERS)
            except Exception:
                with pytest.raises(Exception):  # noqa: B017 (whatever msgpack or numpy raise)
                    decode_plain(memoryview(changed), MEMBERS)
                continue
            found = decode_plain(memoryview(changed), MEMBERS)
            assert found.keys() == expected.keys()
            assert all(np.array_equal(found[name], expected[name], equal_nan=True) for name in found)
            agreed += 1
    assert agreed > 10  # names that nobody asks for, flags that nobody reads


@pytest.mark.parametrize(
    "value",
    [
        encode_plain(arrays_of(0))[:-1],
        encode_plain(arrays_of(0)) + b"\0",
        msgpack.packb({"features": packed_array(arrays_of(0)["features"]) | {b"data": [1] * 192}}),
        msgpack.packb({"features": packed_array(arrays_of(0)["features"]) | {b"shape": [12, 9]}}),
        msgpack.packb({"features": packed_array(arrays_of(0)["features"]) | {b"type": "<i2"}}),
        msgpack.packb({"features": packed_array(arrays_of(0)["features"]) | {b"type": "O"}}),
        msgpack.packb({"features": [1, 2]}),
        msgpack.packb([1, 2]),
        b"",
    ],
)
def test_damaged_plain_values_are_refused(value):
    decode_plain(memoryview(encode_plain(arrays_of(0))), MEMBERS)
    for _ in range(2):
        with pytest.raises(Exception):  # noqa: B017 (whatever msgpack or numpy raise)
            decode_plain(memoryview(value), MEMBERS)


# ---- compressed ------------------------------------------------------------------------------------------------------


def saved(save, **arrays):
    out = io.BytesIO()
    save(out, **arrays)
    return out.getvalue()


def compressed_values():
    for seed in range(3):
        yield encode_compressed(arrays_of(seed, rows=10 + seed))
    yield saved(np.savez, **arrays_of(3))  # not compressed at all
    yield encode_compressed(arrays_of(4, names=MEMBERS[:3]))
    yield encode_compressed({**arrays_of(5, dtype=np.float32), "ours": np.arange(3)})
    yield encode_compressed({name: np.asfortranarray(array) for name, array in arrays_of(6).items()})
    yield encode_compressed({name: array[:0] for name, array in arrays_of(7).items()})
    commented = io.BytesIO(encode_compressed(arrays_of(8)))
    with zipfile.ZipFile(commented, "a") as archive:
        archive.comment = b"PK\5 a comment"
    yield commented.getvalue()
    streamed = io.BytesIO()  # sizes and CRC stand behind each member, and in the directory
    streamed.seekable = lambda: False
    np.savez_compressed(streamed, **arrays_of(9))
    yield streamed.getvalue()


def test_compressed_as_numpy_reads_it():
    for value in compressed_values():
        for members in (MEMBERS, MEMBERS[:3], ("conf",)):
            assert_same(decode_compressed(memoryview(value), members), naive_compressed(value, members))


def test_every_flipped_byte_of_a_compressed_value_is_noticed_or_harmless():
    """It is refused, or the arrays are the right ones (dates, unused fields)."""
    value = encode_compressed(arrays_of(0, rows=3))
    expected = decode_compressed(memoryview(value), MEMBERS[:3])
    refused = 0
    for place in range(len(value)):
        changed = bytearray(value)
        changed[place] ^= 0xFF
        try:
            found = decode_compressed(memoryview(changed), MEMBERS[:3])
        except Exception:
            refused += 1
        else:
            assert_same({name: found[name] for name in found}, {name: expected[name] for name in found})
    assert refused > len(value) / 2


@pytest.mark.parametrize("end", [0, 10, 100, 300, -1, -22])
def test_truncated_compressed_values_are_refused(end):
    value = encode_compressed(arrays_of(0))[:end]
    with pytest.raises(Exception):  # noqa: B017
        decode_compressed(memoryview(value), MEMBERS)


def test_a_member_is_never_inflated_beyond_what_it_may_have(monkeypatch):
    value = encode_compressed(arrays_of(0))
    monkeypatch.setattr(codec, "MOST_MEMBER_BYTES", 300)
    with pytest.raises(zipfile.BadZipFile, match=r"b'features\.npy' has 320 bytes, at most 300 are read"):
        decode_compressed(memoryview(value), MEMBERS)
    assert list(decode_compressed(memoryview(value), ("conf",))) == ["conf"]


def test_a_member_that_is_far_larger_than_its_bytes_warrant_is_refused(monkeypatch):
    value = saved(np.savez_compressed, features=np.zeros((1000, 1000), np.float16))
    assert decode_compressed(memoryview(value), MEMBERS)["features"].shape == (1000, 1000)
    monkeypatch.setattr(inflating, "ALWAYS", 1 << 20)
    with pytest.raises(ValueError, match=r"b'features\.npy' would take 2,000,128 bytes"):
        decode_compressed(memoryview(value), MEMBERS)


def test_a_member_that_inflates_to_more_than_the_directory_says_is_refused(monkeypatch):
    """No more than that is ever in memory."""
    bomb = bytearray(saved(np.savez_compressed, features=np.zeros((1000, 1000), np.float16)))
    at = bomb.rfind(b"PK\1\2")
    struct.pack_into("<I", bomb, at + 24, 400)
    inflated = []
    original = codec.isal_zlib.decompressobj

    class Watched:
        def __init__(self, wbits):
            self.inflate = original(wbits=wbits)

        def decompress(self, data, most):
            inflated.append(len(out := self.inflate.decompress(data, most)))
            return out

    monkeypatch.setattr(codec.isal_zlib, "decompressobj", Watched)
    with pytest.raises(zipfile.BadZipFile, match="another length or CRC-32"):
        decode_compressed(memoryview(bomb), MEMBERS)
    assert inflated == [401]


def test_what_zlib_inflates_isal_inflates():
    data = encode_plain(arrays_of(0, rows=100)) * 20
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packed.compress(data) + packed.flush()
    assert codec.isal_zlib.decompressobj(wbits=-15).decompress(packed, len(data) + 1) == data
