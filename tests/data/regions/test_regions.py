"""Image DBs: the bytes of the UNITER layout, box counts, workers."""

import io
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import lmdb
import msgpack
import msgpack_numpy
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from data.errors import BadInput
from data.regions.codec import encode_compressed, encode_plain
from data.regions.db import BoxOptions, RegionDB, Regions, layout_names, stored_keys
from data.regions.writer import RegionWriter
from data.storage.lmdb_writer import LmdbWriter

GOLDEN = Path(__file__).parents[2] / "fixtures" / "uniter_db" / "img"
GOLDEN_KEYS = ["coco_val2014_000000500001.npz", "coco_val2014_000000500007.npz"]
LAYOUTS = pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])


def make_regions(seed, rows=12, dim=8, labels=5):
    rng = np.random.default_rng(seed)
    conf = np.sort(rng.random(rows))[::-1]
    arrays = rng.random((rows, dim)), rng.random((rows, 6)), conf, rng.random((rows, labels)) if labels else None
    return Regions(*(array if array is None else array.astype(np.float16) for array in arrays))


def write(img_db, pictures, boxes=None, compressed=False):
    with RegionWriter(img_db, boxes, compressed) as writer:
        for key, regions in pictures.items():
            writer.add(key, regions)
    return img_db


def store(folder, values, keys=True):
    """A database of raw values."""
    with LmdbWriter(folder) as writer:
        for key, value in values.items():
            writer.put(key.encode(), value)
        if keys:
            writer.put(b"__keys__", json.dumps(list(values)).encode())


def arrays_of(regions):
    return {name: getattr(regions, name) for name in ("features", "norm_bb", "conf", "soft_labels")}


def assert_same(found, expected, rows):
    for name, array in arrays_of(expected).items():
        stored = getattr(found, name)
        if array is None:
            assert stored is None
        else:
            assert stored.dtype == np.float16 and np.array_equal(stored, array[:rows]), name


PICTURES = {f"{i}.npz": make_regions(i, rows=10 + i) for i in range(6)}


# ---- the original's databases ----------------------------------------------------------------------------------------


def golden_bytes(key, layout):
    return (GOLDEN / f"{key[:-4]}_{layout}.bin").read_bytes()


@LAYOUTS
def test_reads_what_the_original_reads(tmp_path, compressed):
    layout = "compressed" if compressed else "plain"
    name = "feat_th0.2_max100_min10" + "_compressed" * compressed
    store(tmp_path / name, {key: golden_bytes(key, layout) for key in GOLDEN_KEYS})
    shutil.copy(GOLDEN / "nbb_th0.2_max100_min10.json", tmp_path)
    db = RegionDB(tmp_path)
    assert db.keys == GOLDEN_KEYS and len(db) == 2 and (db.feature_dim, db.num_labels) == (2048, 1601)
    assert db.num_regions == {GOLDEN_KEYS[0]: 10, GOLDEN_KEYS[1]: 12}
    expected = np.load(GOLDEN / "expected.npz")
    for key in GOLDEN_KEYS:
        regions = db[key]
        assert np.array_equal(regions.features, expected[f"{key}/features"])
        assert regions.positions.dtype == np.float32 and np.array_equal(regions.positions, expected[f"{key}/pos7"])
        assert regions.soft_labels.shape == (len(regions), 1601)

    (tmp_path / "nbb_th0.2_max100_min10.json").unlink()
    assert RegionDB(tmp_path).num_regions == db.num_regions  # counted from the stored confidences


@pytest.mark.parametrize("key", GOLDEN_KEYS)
def test_writes_the_bytes_of_the_original(key, tmp_path):
    with np.load(io.BytesIO(golden_bytes(key, "compressed"))) as archive:
        arrays = {name: archive[name] for name in archive.files}
    assert encode_plain(arrays) == golden_bytes(key, "plain")
    ours, theirs = (
        zipfile.ZipFile(io.BytesIO(data)) for data in (encode_compressed(arrays), golden_bytes(key, "compressed"))
    )
    assert ours.namelist() == theirs.namelist()  # zlib versions pack differently: compare what is inside
    assert [ours.read(name) for name in ours.namelist()] == [theirs.read(name) for name in theirs.namelist()]


# ---- writing and reading ---------------------------------------------------------------------------------------------


def test_plain_bytes_with_an_independent_reader(tmp_path):
    write(tmp_path, PICTURES)
    with lmdb.open(str(tmp_path / "feat_th0.2_max100_min10"), readonly=True, lock=False) as env, env.begin() as txn:
        assert json.loads(txn.get(b"__keys__")) == list(PICTURES)
        for key, regions in PICTURES.items():
            value = txn.get(key.encode())
            assert value == msgpack.packb(arrays_of(regions), default=msgpack_numpy.encode, use_bin_type=True)
            outer = msgpack.unpackb(value, raw=False, strict_map_key=False)
            assert list(outer) == ["features", "norm_bb", "conf", "soft_labels"]
            assert list(outer["features"]) == [b"nd", b"type", b"kind", b"shape", b"data"]
            for name, array in arrays_of(regions).items():
                flat = np.frombuffer(outer[name][b"data"], "<f2")
                assert np.array_equal(flat.reshape(outer[name][b"shape"]), array)


def test_compressed_bytes_with_an_independent_reader(tmp_path):
    write(tmp_path, PICTURES, compressed=True)
    folder = tmp_path / "feat_th0.2_max100_min10_compressed"
    with lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin() as txn:
        for key, regions in PICTURES.items():
            with np.load(io.BytesIO(txn.get(key.encode()))) as archive:
                assert archive.files == ["features", "norm_bb", "conf", "soft_labels"]
                for name, array in arrays_of(regions).items():
                    assert archive[name].dtype == np.dtype("<f2") and np.array_equal(archive[name], array)


@LAYOUTS
def test_round_trip(tmp_path, compressed):
    pictures = {**PICTURES, "größe.npz": make_regions(99)}
    write(tmp_path, pictures, compressed=compressed)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "feat_th0.2_max100_min10" + "_compressed" * compressed,
        "nbb_th0.2_max100_min10.json",
    ]
    db = RegionDB(tmp_path)
    assert db.keys == list(pictures) and "größe.npz" in db and "x.npz" not in db and db.compressed == compressed
    counts = json.loads((tmp_path / "nbb_th0.2_max100_min10.json").read_text())
    for key, regions in pictures.items():
        confident = sum(float(c) > float(np.float16(0.2)) for c in regions.conf)
        rows = min(max(confident, 10), 100)
        assert counts[key] == db.num_regions[key] == rows and len(db[key]) == rows
        assert_same(db[key], regions, rows)
        assert db.get(key, soft_labels=False).soft_labels is None
        assert np.array_equal(db.get(key, soft_labels=False).features, regions.features[:rows])


def test_box_count_is_clamped_and_never_more_than_there_are(tmp_path):
    conf = np.array([0.9, 0.8, 0.7, 0.3, 0.2, 0.1])
    pictures = {f"{n}.npz": make_regions(0, rows=n) for n in (2, 4, 6)}
    for regions in pictures.values():
        regions.conf = conf[: len(regions)]
    for (min_bb, max_bb), expected in {(3, 5): [2, 4, 4], (5, 6): [2, 4, 5], (1, 3): [2, 3, 3]}.items():
        write(tmp_path, pictures, BoxOptions(min_bb=min_bb, max_bb=max_bb))
        (tmp_path / f"nbb_th0.2_max{max_bb}_min{min_bb}.json").unlink()
        for _ in range(2):  # computed, then as written
            assert list(RegionDB(tmp_path, BoxOptions(min_bb=min_bb, max_bb=max_bb)).num_regions.values()) == expected
            write(tmp_path, pictures, BoxOptions(min_bb=min_bb, max_bb=max_bb))


def test_fixed_number_of_boxes(tmp_path):
    write(tmp_path, {"a.npz": make_regions(0, rows=9)}, BoxOptions(-1, num_bb=7))
    assert [p.name for p in tmp_path.iterdir()] == ["feat_numbb7"]
    db = RegionDB(tmp_path, BoxOptions(-1, num_bb=7))
    assert db.num_regions == {"a.npz": 7} and len(db["a.npz"]) == 7
    with pytest.raises(BadInput, match=r"has arrays .* at least 7 rows"):
        write(tmp_path, {"a.npz": make_regions(0, rows=6)}, BoxOptions(-1, num_bb=7))


@LAYOUTS
def test_folder_all_is_read_only_without_box_counts(tmp_path, compressed):
    encode = encode_compressed if compressed else encode_plain
    values = {key: encode(arrays_of(regions)) for key, regions in PICTURES.items()}
    store(tmp_path / ("all" + "_compressed" * compressed), values)
    db = RegionDB(tmp_path, BoxOptions(0.5, min_bb=2))
    for key, regions in PICTURES.items():
        assert_same(db[key], regions, max(2, int((regions.conf > 0.5).sum())))
    (tmp_path / "nbb_th0.5_max100_min2.json").write_text(json.dumps(dict(db.num_regions)))
    with pytest.raises(BadInput, match=r"no image DB, expected feat_th0.5_max100_min2 or"):
        RegionDB(tmp_path, BoxOptions(0.5, min_bb=2))


def test_plain_is_preferred(tmp_path):
    write(tmp_path, PICTURES, compressed=True)
    assert RegionDB(tmp_path).compressed
    write(tmp_path, PICTURES)
    assert not RegionDB(tmp_path).compressed
    assert stored_keys(tmp_path) == set(PICTURES)


def test_no_soft_labels(tmp_path):
    pictures = {"a.npz": make_regions(0, labels=0)}
    for compressed in (True, False):
        db = RegionDB(write(tmp_path, pictures, compressed=compressed))
        assert db.compressed == compressed
        assert db.num_labels == 0 and db["a.npz"].soft_labels is None


def test_more_boxes_counted_than_stored(tmp_path):
    # UNITER's tools write min_bb for a picture of fewer boxes
    write(tmp_path, {"a.npz": make_regions(0, rows=4)})
    (tmp_path / "nbb_th0.2_max100_min10.json").write_text('{"a.npz": 10}')
    assert len(RegionDB(tmp_path)["a.npz"]) == 4


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, r"nbb_th0.2_max100_min10.json: key 'a.npz' has 0 boxes to use"),
        (-3, "has -3 boxes to use"),
        (13, r"key 'a.npz' stores 12 boxes, and 13 are to be used \(nbb_th0.2_max100_min10.json\)"),
        (11.5, "'a.npz' has 11.5, expected a whole number"),
        (None, "'a.npz' has None, expected a whole number"),
    ],
)
def test_box_counts_that_cannot_be(tmp_path, count, message):
    write(tmp_path, {"a.npz": make_regions(0, rows=12), "b.npz": make_regions(1, rows=12)})
    (tmp_path / "nbb_th0.2_max100_min10.json").write_text(json.dumps({"b.npz": 12, "a.npz": count}))
    with pytest.raises(BadInput, match=message):
        RegionDB(tmp_path)["a.npz"]


def test_a_fixed_number_of_boxes_that_is_not_stored(tmp_path):
    boxes = BoxOptions(conf_th=-1, num_bb=12)
    write(tmp_path, {"a.npz": make_regions(0, rows=12)}, boxes)
    (tmp_path / "feat_numbb12").rename(tmp_path / "feat_numbb36")
    with pytest.raises(BadInput, match="stores 12 boxes, and 36 are to be used"):
        RegionDB(tmp_path, BoxOptions(conf_th=-1, num_bb=36))["a.npz"]


def test_without_key_list(tmp_path):
    values = {key: encode_plain(arrays_of(regions)) for key, regions in PICTURES.items()}
    store(tmp_path / "all", values, keys=False)
    assert RegionDB(tmp_path).keys == sorted(PICTURES) and stored_keys(tmp_path) == set(PICTURES)


def test_stray_member_of_old_numpy_and_fp32(tmp_path):
    # numpy < 2.1 stores the argument allow_pickle as a member; other tools store fp32
    out = io.BytesIO()
    arrays = {name: array.astype(np.float32) for name, array in arrays_of(PICTURES["1.npz"]).items()}
    np.savez_compressed(out, **arrays, allow_pickle_=np.array(False))
    renamed = io.BytesIO()
    with zipfile.ZipFile(out) as old, zipfile.ZipFile(renamed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name.replace("allow_pickle_", "allow_pickle"), old.read(name))
    store(tmp_path / "all_compressed", {"1.npz": renamed.getvalue()})
    assert_same(RegionDB(tmp_path)["1.npz"], PICTURES["1.npz"], RegionDB(tmp_path).num_regions["1.npz"])


def test_positions_are_products_in_fp32():
    regions = make_regions(3)
    area = [np.float32(w) * np.float32(h) for w, h in regions.norm_bb[:, 4:]]
    assert regions.positions.dtype == np.float32 and regions.positions[:, 6].tolist() == [float(a) for a in area]
    assert np.array_equal(regions.positions[:, :6], regions.norm_bb.astype(np.float32))


# ---- workers, fingerprint --------------------------------------------------------------------------------------------


def _checksum(regions):
    return float(regions.features.sum(dtype=np.float64) + regions.soft_labels.sum(dtype=np.float64))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_loader_workers(tmp_path, method):
    torch.set_num_threads(1)
    db = RegionDB(write(tmp_path, PICTURES))
    expected = [_checksum(db[key]) for key in db.keys]
    loader = DataLoader(db, None, sampler=db.keys, num_workers=2, collate_fn=_checksum, multiprocessing_context=method)
    for _ in range(2 if method == "fork" else 1):  # new workers each time, the parent reading in between
        assert list(loader) == expected == [_checksum(db[key]) for key in db.keys]


def test_what_is_read_from_a_plain_database_is_a_view_that_stays_valid(tmp_path):
    """Into the memory map; also in a forked process, and when the database was replaced."""
    db = RegionDB(write(tmp_path, PICTURES))
    held = {key: db[key] for key in db.keys}
    stored = np.frombuffer(db._records.txn.get(b"3.npz"), np.uint8)
    for array in arrays_of(held["3.npz"]).values():
        assert np.shares_memory(array, stored) and not array.flags.writeable

    def all_same():
        for key, regions in held.items():
            assert_same(regions, PICTURES[key], db.num_regions[key])

    for _ in range(2):
        all_same()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                RegionDB(tmp_path)
                all_same()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        write(tmp_path, {"new.npz": make_regions(5)})
        assert RegionDB(tmp_path).keys == ["new.npz"]


def test_pickles_small_and_open(tmp_path):
    db = RegionDB(write(tmp_path, PICTURES))
    again = pickle.loads(pickle.dumps(db))
    assert_same(again["3.npz"], db["3.npz"], 13)


def test_fingerprint(tmp_path):
    def print_of(name, pictures):
        return RegionDB(write(tmp_path / name, pictures)).fingerprint()

    base = print_of("base", PICTURES)
    assert base == print_of("again", PICTURES) and base == RegionDB(tmp_path / "base").fingerprint()
    shutil.copytree(tmp_path / "base", tmp_path / "copy")
    assert base == RegionDB(tmp_path / "copy").fingerprint()

    nbb = tmp_path / "copy" / "nbb_th0.2_max100_min10.json"
    nbb.write_text(json.dumps({key: 5 for key in PICTURES}))
    renamed = {key.replace("0", "x"): regions for key, regions in PICTURES.items()}
    other = {**PICTURES, "2.npz": make_regions(77, rows=12)}
    prints = [base, RegionDB(tmp_path / "copy").fingerprint(), print_of("b", renamed), print_of("c", other)]
    assert len(set(prints)) == 4


def test_a_database_whose_command_was_killed_behind_it_is_gone_on_with_though_the_one_that_it_replaced_is_beside_it(tmp_path):
    pictures = {f"{n}.npz": make_regions(n) for n in range(3)}
    write(tmp_path, {"old.npz": make_regions(9)})
    folder = tmp_path / layout_names(BoxOptions())[0]
    shutil.copytree(folder, folder.with_name(folder.name + ".partial"))  # as when killed between the two
    shutil.rmtree(folder)
    with RegionWriter(tmp_path / "made", settings={"a": 1}) as writer:
        for key, regions in pictures.items():
            writer.add(key, regions)
    shutil.move(tmp_path / "made" / folder.name, folder)
    with RegionWriter(tmp_path, settings={"a": 1}) as writer:
        assert list(writer.done) == list(pictures)
    assert list(RegionDB(tmp_path).keys) == list(pictures)
