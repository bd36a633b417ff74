"""Image databases that are missing, damaged, or replaced; what is refused when one is written."""

import io
import os

import msgpack
import msgpack_numpy
import numpy as np
import pytest

from data.errors import BadInput
from data.regions.codec import encode_compressed, encode_plain
from data.regions.db import BoxOptions, RegionDB, Regions, stored_keys
from data.regions.writer import RegionWriter
from data.storage.lmdb_writer import LmdbWriter
from tests.data.regions.test_regions import PICTURES, arrays_of, assert_same, make_regions, store, write


def test_database_replaced_after_opening(tmp_path):
    old = RegionDB(write(tmp_path, PICTURES))
    write(tmp_path, {"new.npz": make_regions(5)})
    assert RegionDB(tmp_path).keys == ["new.npz"]
    assert_same(old["3.npz"], PICTURES["3.npz"], old.num_regions["3.npz"])


def test_missing_empty_and_truncated(tmp_path):
    with pytest.raises(BadInput, match=r"absent: no image DB, expected .*, found no such folder"):
        RegionDB(tmp_path / "absent")
    write(tmp_path / "db", PICTURES)
    with pytest.raises(BadInput, match=r"expected feat_th0.3_max100_min10 or .*found \['feat_th0.2_max100_min10'"):
        RegionDB(tmp_path / "db", BoxOptions(0.3))
    with pytest.raises(BadInput, match="absent: no image DB"):
        stored_keys(tmp_path / "absent")
    store(tmp_path / "empty" / "all", {})
    with pytest.raises(BadInput, match="all: the database is empty"):
        RegionDB(tmp_path / "empty")
    path = tmp_path / "db" / "feat_th0.2_max100_min10" / "data.mdb"
    os.truncate(path, path.stat().st_size - 4096)
    with pytest.raises(BadInput, match=r"data\.mdb: truncated"):
        RegionDB(tmp_path / "db")


def test_parts_that_disagree(tmp_path):
    db = RegionDB(write(tmp_path, PICTURES))
    with pytest.raises(BadInput, match=r"feat_th0.2_max100_min10: no picture 'x.npz'"):
        db["x.npz"]
    nbb = tmp_path / "nbb_th0.2_max100_min10.json"
    nbb.write_text('{"0.npz": 10}')
    with pytest.raises(BadInput, match=r"nbb_th0.2_max100_min10.json: no box count for '1.npz'"):
        RegionDB(tmp_path)
    nbb.write_text('{"0.npz": ')
    with pytest.raises(BadInput, match="not JSON"):
        RegionDB(tmp_path)

    value = encode_plain(arrays_of(PICTURES["0.npz"]))
    with LmdbWriter(tmp_path / "b" / "all") as writer:
        writer.put(b"0.npz", value)
        writer.put(b"__keys__", b'["0.npz", "1.npz"]')
    with pytest.raises(BadInput, match=r"key '1.npz' is listed but not stored"):
        RegionDB(tmp_path / "b")
    with LmdbWriter(tmp_path / "b" / "all") as writer:
        writer.put(b"0.npz", value)
        writer.put(b"__keys__", b"[")
    with pytest.raises(BadInput, match="key __keys__ is not JSON"):
        RegionDB(tmp_path / "b")


def _objects_plain():
    value = msgpack.unpackb(encode_plain(arrays_of(PICTURES["0.npz"])), raw=False, strict_map_key=False)
    objects = msgpack_numpy.encode(np.array([{}], dtype=object))
    assert objects[b"kind"] == b"O"  # msgpack_numpy would unpickle this
    value["features"] = objects
    return msgpack.packb(value, use_bin_type=True)


def _objects_compressed():
    out = io.BytesIO()
    np.savez_compressed(out, **{**arrays_of(PICTURES["0.npz"]), "features": np.array([{}], dtype=object)})
    return out.getvalue()


def _flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes(byte ^ 255 for byte in data[middle : middle + 64]) + data[middle + 64 :]


PLAIN, COMPRESSED = (encode(arrays_of(PICTURES["0.npz"])) for encode in (encode_plain, encode_compressed))


@pytest.mark.parametrize(
    "folder, value, message",
    [
        ("all", PLAIN[:-100], "is damaged"),
        ("all", b"", "is damaged"),
        ("all", b"\x01", "is damaged"),
        ("all", COMPRESSED, "is damaged"),
        ("all", _objects_plain(), "is damaged"),
        ("all", PLAIN.replace(b"norm_bb", b"norm_xx"), "has no norm_bb"),
        ("all_compressed", COMPRESSED[:-100], "is damaged"),
        ("all_compressed", _flipped(COMPRESSED), "is damaged"),
        ("all_compressed", PLAIN, "is damaged"),
        ("all_compressed", _objects_compressed(), "is damaged"),
        ("all", encode_plain(arrays_of(make_regions(1, dim=9))), r"has features \(12, 9\)"),
        ("all", encode_plain(arrays_of(make_regions(1, labels=9))), r"has soft_labels \(12, 9\)"),
        ("all", encode_plain(arrays_of(make_regions(1, rows=0))), r"has features \(0, 8\)"),
    ],
)
def test_damaged_value_is_named(tmp_path, folder, value, message):
    good = COMPRESSED if folder.endswith("compressed") else PLAIN
    store(tmp_path / folder, {"good.npz": good, "bad.npz": value})
    (tmp_path / folder).rename(tmp_path / folder.replace("all", "feat_numbb10"))
    db = RegionDB(tmp_path, BoxOptions(-1, num_bb=10))
    assert len(db["good.npz"]) == 10
    with pytest.raises(BadInput, match=f"{folder.replace('all', 'feat_numbb10')}: key 'bad.npz' {message}") as caught:
        db["bad.npz"]
    assert "\n" not in str(caught.value)


def test_writer_refuses(tmp_path):
    good = make_regions(0)
    bad = [
        ("added twice", {"a.npz": good}),
        ("has arrays", {"b.npz": make_regions(0, dim=9)}),
        ("has arrays", {"b.npz": make_regions(0, labels=0)}),
        ("has arrays", {"b.npz": make_regions(0, rows=0)}),
        ("has arrays", {"b.npz": Regions(good.features, good.norm_bb[:, :4], good.conf, good.soft_labels)}),
        ("has arrays", {"b.npz": Regions(good.features, good.norm_bb, good.conf[:5], good.soft_labels)}),
    ]
    for message, pictures in bad:
        with pytest.raises(BadInput, match=message):
            with RegionWriter(tmp_path) as writer:
                writer.add("a.npz", good)
                for key, regions in pictures.items():
                    writer.add(key, regions)
    with pytest.raises(BadInput, match="no picture was added"):
        write(tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_failed_rewriting_keeps_the_old_database(tmp_path):
    write(tmp_path, PICTURES)
    with pytest.raises(RuntimeError):
        with RegionWriter(tmp_path) as writer:
            writer.add("new.npz", make_regions(0))
            raise RuntimeError
    assert RegionDB(tmp_path).keys == list(PICTURES)
    assert len(list(tmp_path.iterdir())) == 2
