"""Regions of many pictures in one array, read from databases: against a picture at a time."""

import json

import numpy as np
import pytest

from data.batches.joined import JoinedRegions
from data.errors import BadInput
from data.regions import arrays
from data.regions.arrays import PackedRegions, StoredPictures
from data.regions.codec import encode_plain
from data.regions.db import BoxOptions, RegionDB
from tests.data.regions.test_regions import LAYOUTS, PICTURES, arrays_of, make_regions, store, write
from tests.data.storage.test_record_sums import place_of, place_of_labels
from tests.flipped_bits import flips

KEYS = ["3.npz", "0.npz", "5.npz", "3.npz", "1.npz", "0.npz"]  # pictures of 10 to 15 boxes


def assert_packed(packed, images):
    """One picture at a time says the same."""
    assert packed.counts.tolist() == [len(image.features) for image in images] and packed.counts.dtype == np.int64
    for name in ("features", "norm_bb"):
        found, expected = getattr(packed, name), [row for image in images for row in getattr(image, name).tolist()]
        assert found.dtype == np.float16 and found.flags.writeable and found.tolist() == expected, name


@LAYOUTS
@pytest.mark.parametrize("most", [1, 1000])
def test_pictures_of_a_database(tmp_path, monkeypatch, compressed, most):
    monkeypatch.setattr(arrays, "_MOST_EXPECTED", most)
    db = RegionDB(write(tmp_path, PICTURES, BoxOptions(0.2, 12, 5), compressed), BoxOptions(0.2, 12, 5))
    pictures = db.pictures(KEYS)
    images = [db[key] for key in KEYS]
    assert len({len(image) for image in images}) > 1 and len(images[0]) < len(PICTURES["3.npz"])
    assert_packed(pictures.packed(), images)
    which = np.array([4, 1, 1, 0])
    assert_packed(pictures.packed(which), [images[n] for n in which])
    assert len(pictures) == 6 and [image.features.tolist() for image in pictures] == [image.features.tolist() for image in images]
    for n, image in enumerate(images):
        assert pictures[n].soft_labels is None and np.array_equal(pictures.soft_labels(n), image.soft_labels)
    changed = pictures.packed()
    changed.features[:] = 0  # a copy
    assert_packed(pictures.packed(), [db[key] for key in KEYS])


@LAYOUTS
def test_pictures_of_joined_databases(tmp_path, compressed):
    first = RegionDB(write(tmp_path / "a", PICTURES, compressed=compressed))
    second = RegionDB(write(tmp_path / "b", {"0.npz": make_regions(9), "x.npz": make_regions(8)}))
    joined = JoinedRegions([first, second], [{}, {"0.npz": "b/0.npz", "x.npz": "b/x.npz"}])
    names = ["b/x.npz", "0.npz", "b/0.npz", "5.npz"]
    pictures = StoredPictures(joined, names, joined.rows_of(names), np.ones(4, np.int32))
    images = [second["x.npz"], first["0.npz"], second["0.npz"], first["5.npz"]]
    assert_packed(pictures.packed(), images)
    assert all(np.array_equal(pictures.soft_labels(n), image.soft_labels) for n, image in enumerate(images))


def test_records_of_another_form(tmp_path):
    """Of other types, of fewer boxes than UNITER's tools wrote, without soft labels, with members of others."""
    values = {key: arrays_of(regions) for key, regions in PICTURES.items()}
    del values["0.npz"]["soft_labels"]
    values["1.npz"]["more"] = np.zeros(3, np.float16)
    plain = {key: encode_plain(value) for key, value in values.items()}
    plain["2.npz"] = _of_fp32(values["2.npz"])
    store(tmp_path / "all", {"4.npz": plain["4.npz"], **plain})
    (tmp_path / "all").rename(tmp_path / "feat_th0.2_max100_min10")
    (tmp_path / "nbb_th0.2_max100_min10.json").write_text(json.dumps(dict.fromkeys(values, 10)))
    values["3.npz"] = {name: array[:7] for name, array in values["3.npz"].items()}
    db = RegionDB(tmp_path)
    assert_packed(db.pictures(list(values)).packed(), [db[key] for key in values])
    with pytest.raises(BadInput, match=r"key '0.npz' has no soft_labels"):
        db.pictures(["0.npz"]).soft_labels(0)


def _of_fp32(members):
    """As msgpack-numpy stores arrays of fp32."""
    value = encode_plain({name: np.repeat(array, 2, axis=-1) for name, array in members.items()})  # as many bytes
    for array in members.values():
        doubled = np.repeat(array, 2, axis=-1)
        value = value.replace(doubled.tobytes(), array.astype("<f4").tobytes())
        value = value.replace(_shape(doubled.shape), _shape(array.shape))
    return value.replace(b"<f2", b"<f4")


def _shape(shape):
    return b"\xc4\x05shape" + bytes([0x90 + len(shape), *shape])


@pytest.mark.parametrize(
    "value, message",
    [
        (encode_plain(arrays_of(make_regions(1, dim=9))), r"has features \(12, 9\)"),
        (encode_plain(arrays_of(make_regions(1, rows=0))), r"has features \(0, 8\)"),
        (encode_plain(arrays_of(PICTURES["0.npz"]) | {"norm_bb": np.zeros((11, 6), np.float16)}), r"norm_bb \(11, 6\)"),
        (encode_plain(arrays_of(PICTURES["0.npz"]) | {"conf": np.zeros((10, 1), np.float16)}), "has conf .*, of another form"),
        (encode_plain(arrays_of(PICTURES["0.npz"])).replace(b"norm_bb", b"norm_xx"), "has no norm_bb"),
        (encode_plain(arrays_of(PICTURES["0.npz"]))[:-1], "is damaged"),
        (b"", "is damaged"),
    ],
)
def test_what_is_refused(tmp_path, value, message):
    store(tmp_path / "feat_numbb10", {"good.npz": encode_plain(arrays_of(PICTURES["0.npz"])), "bad.npz": value})
    db = RegionDB(tmp_path, BoxOptions(-1, num_bb=10))
    assert_packed(db.pictures(["good.npz"]).packed(), [db["good.npz"]])
    with pytest.raises(BadInput, match=f"key 'bad.npz' .*{message}"):
        db.pictures(["good.npz", "bad.npz"]).packed()
    with pytest.raises(BadInput, match=r"no picture 'other.npz'"):
        db.pictures(["good.npz", "other.npz"]).packed()


def test_counts_beyond_all_memory_are_refused_by_name(tmp_path):
    write(tmp_path, PICTURES)
    (tmp_path / "nbb_th0.2_max100_min10.json").write_text(json.dumps(dict.fromkeys(PICTURES, 2_000_000_000)))
    with pytest.raises(BadInput, match=r"key '5.npz' stores 15 boxes, and 2000000000 are to be used"):
        RegionDB(tmp_path).pictures(["5.npz"]).packed()


def test_no_value_of_a_damaged_record_is_packed(tmp_path):
    """Neither when it is read first nor when it is tried again, with its soft labels read before or not."""
    write(tmp_path, PICTURES)
    folder = tmp_path / "feat_th0.2_max100_min10"
    record, labels = place_of(folder, "5.npz"), place_of_labels(folder, "5.npz")
    for _ in flips(folder / "data.mdb", 24, start=record["start"], stop=labels["start"]):
        pictures = RegionDB(tmp_path).pictures(["0.npz", "5.npz"])
        for read in (pictures.packed, pictures.packed, lambda of=pictures: of.soft_labels(1)):
            with pytest.raises(BadInput, match=r"key '5.npz' is damaged: it is not what was written"):
                read()
    for _ in flips(folder / "data.mdb", 6, **labels):
        pictures = RegionDB(tmp_path).pictures(["0.npz", "5.npz"])
        assert np.array_equal(pictures.packed().features[10:], PICTURES["5.npz"].features[:12])  # 12 above the threshold
        for _ in range(2):
            with pytest.raises(BadInput, match=r"key '5.npz' is damaged: it is not what was written"):
                pictures.soft_labels(1)


def test_nothing_is_packed_at_first():
    packed = PackedRegions(0, 8)
    assert packed.features.shape == (0, 8) and packed.norm_bb.shape == (0, 6) and packed.counts.tolist() == []
    packed.add(PICTURES["0.npz"])
    assert_packed(packed, [PICTURES["0.npz"]])
