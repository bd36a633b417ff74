"""Checksums of records: written with a database, compared when a record is read first, never a false alarm."""

import json
import os
import pickle
import random
import shutil
import zlib
from contextlib import suppress
from dataclasses import replace

import lmdb
import msgpack_numpy
import numpy as np
import pytest

from data.annotations.records import Caption
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.checks.inspection import inspect_database
from data.checks.records import OTHER_SUM, InspectionOptions
from data.errors import BadInput
from data.regions.db import BoxOptions, RegionDB, Regions
from data.regions.writer import RegionWriter
from data.storage import columns
from data.storage.array_digest import write_arrays
from data.storage.lmdb_env import close_env, reader
from data.storage.lmdb_writer import LmdbWriter
from data.storage.record_sums import FILE, FirstReads, hash_of_key, read_sums
from tests.flipped_bits import assert_noticed_or_harmless, flips

KEYS = [f"{n:02}.npz" for n in range(12)]


def regions_of(rng, boxes=6):
    arrays = rng.random((boxes, 8)), rng.random((boxes, 6)), np.sort(rng.random(boxes))[::-1], rng.random((boxes, 5))
    return Regions(*(array.astype(np.float16) for array in arrays))


def write_images(folder, compressed=False, keys=KEYS, seed=0):
    rng = np.random.default_rng(seed)
    with RegionWriter(folder, BoxOptions(), compressed) as writer:
        for key in keys:
            writer.add(key, regions_of(rng))
    return writer.folder


def write_captions(tmp_path, name="txt", keys=KEYS):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]))
    captions = [Caption(f"{key[:2]}.jpg", " ".join("abcdefgh"[: 2 + n % 6]), f"{n}", "train", "en") for n, key in enumerate(keys)]
    write_caption_db(tmp_path / name, captions, CaptionTokenizer.from_pretrained(tmp_path / "vocab.txt"), ["made up"])
    return tmp_path / name


def stored(folder):
    close_env(folder)
    with lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin() as txn:
        return dict(txn.cursor())


def place_of(folder, key):
    """Where in the file a record stands."""
    value = stored(folder)[key.encode()]
    place = (folder / "data.mdb").read_bytes().rfind(value)
    assert place > 0
    return {"start": place, "stop": place + len(value)}


def sums_of(folder):
    return read_sums(folder, reader(folder))


def all_pictures(folder):
    db = RegionDB(folder)
    return {key: vars(db.get(key)) for key in db.keys}


def all_captions(folder):
    db = CaptionDB(folder)
    return {caption_id: db[caption_id] for caption_id in db.ids}


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_every_record_has_the_checksum_of_its_last_value(tmp_path):
    rng, expected = random.Random(0), {}
    with LmdbWriter(tmp_path / "db", commit_every=7, map_size=1 << 16) as writer:
        for _ in range(300):
            key, value = b"%d" % rng.randrange(80), rng.randbytes(rng.randrange(2000))
            writer.put(key, value)
            expected[key] = value
    assert stored(tmp_path / "db") == expected
    hashes = np.array([hash_of_key(key) for key in [*expected, b"other"]], np.uint64)
    found = sums_of(tmp_path / "db")
    assert found.of(hashes).tolist() == [*(zlib.crc32(value) for value in expected.values()), 0]
    assert len(found) == len(expected) and found.num_absent(hashes) == 0 and found.num_absent(hashes[3:]) == 3


def test_an_interrupted_database_goes_on_with_all_its_checksums(tmp_path):
    for stop in (40, 100):
        try:
            with LmdbWriter(tmp_path / "db", commit_every=10, keep=True) as writer:
                for n in range(stop):
                    writer.put(b"%d" % n, b"%d" % n * 9)
                if stop == 40:
                    raise InterruptedError
        except InterruptedError:
            assert not (tmp_path / "db.partial" / FILE).exists()
    hashes = np.array([hash_of_key(b"%d" % n) for n in range(100)], np.uint64)
    assert sums_of(tmp_path / "db").of(hashes).tolist() == [zlib.crc32(b"%d" % n * 9) for n in range(100)]


def heads_of(folder):
    """Key → (bytes, CRC-32) of the head in the file of checksums."""
    records = stored(folder)
    with np.load(folder / FILE) as file:
        by_hash = dict(zip(file["keys"].tolist(), file["heads"].tolist(), strict=True))
    return {key.decode(): by_hash[hash_of_key(key)] for key in records}


def test_what_precedes_soft_labels_has_a_checksum_of_its_own(tmp_path):
    """Also in a database that was written in two goes."""
    rng = np.random.default_rng(0)
    given = {key: regions_of(rng, boxes=3 + n) for n, key in enumerate(KEYS)}
    for keys in (KEYS[:5], KEYS):
        with suppress(InterruptedError), RegionWriter(tmp_path, BoxOptions(), settings={}) as writer:
            for key in keys:
                if key not in writer.done:
                    writer.add(key, given[key])
            writer._commit()
            if keys != KEYS:
                raise InterruptedError
    for key, head in heads_of(writer.folder).items():
        value = stored(writer.folder)[key.encode()]
        rest = b"" if key == "__keys__" else given[key].soft_labels.tobytes()
        assert value.endswith(rest)
        before = value[: len(value) - len(rest)] if rest else b""
        assert head == [len(before), zlib.crc32(before)], key


def test_databases_without_soft_labels_and_compressed_ones_have_one_checksum_a_record(tmp_path):
    with np.load(write_images(tmp_path / "compressed", compressed=True) / FILE) as file:
        assert "heads" not in file
    with RegionWriter(tmp_path / "bare") as writer:
        writer.add("a.npz", replace(regions_of(np.random.default_rng(0)), soft_labels=None))
    assert heads_of(writer.folder) == {"a.npz": [0, 0], "__keys__": [0, 0]}


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_a_flipped_bit_of_a_picture_is_noticed(tmp_path, monkeypatch, compressed, large):
    monkeypatch.setattr(columns, "STORED_FROM", 1 if large else 1000)
    folder = write_images(tmp_path, compressed)
    for n, key in enumerate([*KEYS[:3], "__keys__"]):
        bounds = place_of(folder, key)
        assert assert_noticed_or_harmless(folder / "data.mdb", lambda: all_pictures(tmp_path), 12, n, **bounds) == 12
    for _ in flips(folder / "data.mdb", 1, **place_of(folder, KEYS[5])):
        db = pickle.loads(pickle.dumps(RegionDB(tmp_path)))  # as in a worker that was spawned
        assert db.get(KEYS[4]).features.shape == (6, 8)
        with pytest.raises(BadInput, match=f"^{folder}: key '05.npz' is damaged: it is not what was written, by its checksum in {FILE}"):
            db.get(KEYS[5])


def place_of_labels(folder, key):
    """Where in the file the soft labels of a record stand."""
    place = place_of(folder, key)
    with open(folder / "data.mdb", "rb") as file:
        file.seek(place["start"])
        value = file.read(place["stop"] - place["start"])
    labels = msgpack_numpy.unpackb(value)["soft_labels"].tobytes()
    return {"start": place["start"] + value.rindex(labels), "stop": place["stop"]}


@pytest.mark.parametrize("large", [False, True])
def test_only_what_is_asked_for_is_compared(tmp_path, monkeypatch, large):
    """Damaged soft labels are noticed where they are asked for, also of a record that was read without them; all else always."""
    monkeypatch.setattr(columns, "STORED_FROM", 1 if large else 1000)
    folder = write_images(tmp_path)
    record, labels = place_of(folder, KEYS[5]), place_of_labels(folder, KEYS[5])
    right = RegionDB(tmp_path).get(KEYS[5]).features.copy()
    assert labels["stop"] - labels["start"] == 6 * 5 * 2
    for _ in flips(folder / "data.mdb", 4, **labels):
        for read_before in (False, True):
            db = pickle.loads(pickle.dumps(RegionDB(tmp_path)))
            if read_before:
                assert np.array_equal(db.get(KEYS[5], soft_labels=False).features, right)
            for _ in range(2):
                with pytest.raises(BadInput, match="is not what was written"):
                    db.get(KEYS[5])
    for _ in flips(folder / "data.mdb", 12, start=record["start"], stop=labels["start"]):
        for soft_labels in (False, True):
            with pytest.raises(BadInput, match="is not what was written"):
                RegionDB(tmp_path).get(KEYS[5], soft_labels)


def test_a_database_whose_checksums_are_of_whole_records_is_compared_whole(tmp_path):
    """As they were written at first, without `heads`."""
    folder = write_images(tmp_path)
    with np.load(folder / FILE) as file:
        arrays = {name: file[name] for name in ("keys", "sums", "transaction")}
    write_arrays(folder / FILE, arrays, compress=False)
    for _ in flips(folder / "data.mdb", 2, **place_of_labels(folder, KEYS[5])):
        db = RegionDB(tmp_path)
        for _ in range(2):
            with pytest.raises(BadInput, match="is not what was written"):
                db.get(KEYS[5], soft_labels=False)


@pytest.mark.parametrize("name, change", [("sums", lambda sums: sums[1:]), ("sums", np.float32), ("heads", lambda heads: heads[:, :1])])
def test_checksums_that_do_not_belong_together_are_said(tmp_path, capsys, name, change):
    folder = write_images(tmp_path)
    expected = str(all_pictures(tmp_path))
    with np.load(folder / FILE) as file:
        arrays = {each: file[each] for each in ("keys", "sums", "heads", "transaction")}
    write_arrays(folder / FILE, arrays | {name: change(arrays[name])}, compress=False)
    assert str(all_pictures(tmp_path)) == expected
    assert f"{folder / FILE}: its arrays do not belong together: records are read without checksums" in capsys.readouterr().err


@pytest.mark.parametrize("large", [False, True])
def test_a_flipped_bit_of_a_caption_is_noticed(tmp_path, monkeypatch, large):
    monkeypatch.setattr(columns, "STORED_FROM", 1 if large else 1000)
    monkeypatch.setattr("data.captions.writer.STORED_FROM", 1 if large else 1000)
    folder = write_captions(tmp_path)
    assert (folder / "columns").exists() == large
    for n, key in enumerate("037"):
        bounds = place_of(folder, key)
        assert assert_noticed_or_harmless(folder / "data.mdb", lambda: all_captions(folder), 12, n, **bounds) == 12


def test_a_record_is_compared_once(tmp_path):
    folder = write_images(tmp_path)
    db = RegionDB(tmp_path)
    db.get(KEYS[2])
    for _ in flips(folder / "data.mdb", 1, **place_of(folder, KEYS[2])):
        RegionDB(tmp_path)
        db._records._opened = None  # the file was opened anew
        db.get(KEYS[2])
        with pytest.raises(BadInput, match="is not what was written"):
            RegionDB(tmp_path).get(KEYS[2])


def test_what_a_forked_process_compared_is_not_compared_again(tmp_path):
    first_reads = FirstReads(tmp_path, {"sum": np.array([0, zlib.crc32(b"right"), zlib.crc32(b"right")], np.uint32)})
    child = os.fork()
    if child == 0:
        first_reads.check(1, "one", b"right")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    first_reads.check(1, "one", b"wrong")  # passes: a view of what the child compared would be right
    with pytest.raises(BadInput, match="two"):
        first_reads.check(2, "two", b"wrong")
    sent = pickle.loads(pickle.dumps(first_reads))
    with pytest.raises(BadInput, match="one"):
        sent.check(1, "one", b"wrong")


def test_databases_without_checksums_are_read_without_a_word(tmp_path, capsys):
    images, captions = write_images(tmp_path / "img"), write_captions(tmp_path)
    expected = all_pictures(tmp_path / "img"), all_captions(captions)
    for folder in (images, captions):
        (folder / FILE).unlink()
    assert str((all_pictures(tmp_path / "img"), all_captions(captions))) == str(expected)
    assert capsys.readouterr().err == ""


def test_a_database_that_somebody_changed_is_no_damage(tmp_path, capsys):
    images, captions = write_images(tmp_path / "img"), write_captions(tmp_path)
    for folder, (key, other) in ((images, (b"01.npz", b"02.npz")), (captions, (b"1", b"2"))):
        close_env(folder)
        with lmdb.open(str(folder), lock=False) as env, env.begin(write=True) as txn:
            txn.put(key, txn.get(other))
    db = RegionDB(tmp_path / "img")
    assert np.array_equal(db["01.npz"].features, db["02.npz"].features)
    assert CaptionDB(captions)["1"] == CaptionDB(captions)["2"]
    said = capsys.readouterr().err.splitlines()
    assert said == [f"{folder}: was changed since its {FILE} was written: its records are read without checksums" for folder in (images, captions)]


def test_a_copy_is_compared_too(tmp_path):
    write_images(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (folder,) = (path for path in (tmp_path / "b").iterdir() if path.is_dir())
    for _ in flips(folder / "data.mdb", 1, **place_of(folder, KEYS[3])):
        with pytest.raises(BadInput, match="is not what was written"):
            all_pictures(tmp_path / "b")


def test_damaged_checksums_are_said_and_are_no_alarm(tmp_path, capsys):
    folder = write_images(tmp_path)
    expected = str(all_pictures(tmp_path))
    for place in flips(folder / FILE, 60):
        assert str(all_pictures(tmp_path)) == expected, place
    assert f"{folder / FILE}: " in capsys.readouterr().err


def test_inspection_names_the_records(tmp_path, capsys):
    images, captions = write_images(tmp_path / "img"), write_captions(tmp_path)
    for folder, key, name in ((images, "04.npz", "key '04.npz'"), (captions, "7", "caption '7'")):
        options = InspectionOptions(verify=True, workers=0)
        (report,) = inspect_database(folder, options)
        assert report.facts["checksums"] == f"{len(stored(folder)):,}, in {FILE}" and not report.problems.counts[OTHER_SUM]
        for _ in flips(folder / "data.mdb", 1, **place_of(folder, key)):
            (report,) = inspect_database(folder, options)
            assert report.problems.counts[OTHER_SUM] == 1 and name in str(report.problems.examples[OTHER_SUM])
        (folder / FILE).unlink()
        assert inspect_database(folder, options)[0].facts["checksums"] == "none"
        assert f"{folder}: has no {FILE}, which databases made here have" in capsys.readouterr().err


def test_inspection_counts_records_that_are_gone(tmp_path):
    folder = write_captions(tmp_path)
    bounds = place_of(folder, "7")
    with open(folder / "data.mdb", "r+b") as file:  # the key stands right before its value
        file.seek(bounds["start"] - 1)
        assert file.read(1) == b"7"
        file.seek(bounds["start"] - 1)
        file.write(b"Z")
    (report,) = inspect_database(folder, InspectionOptions(verify=True, workers=0))
    assert report.problems.counts["records that were written and are not stored"] == 1


def test_checksums_of_another_database_are_noticed(tmp_path, capsys):
    folder, tokenizer = write_captions(tmp_path), CaptionTokenizer.from_pretrained(tmp_path / "vocab.txt")
    others = [Caption(f"{key[:2]}.jpg", "a b", f"x{key}", "train", "en") for key in KEYS]
    write_caption_db(tmp_path / "other", others, tokenizer, ["made up"])
    expected = str(all_captions(folder))
    assert capsys.readouterr().err == ""
    shutil.copyfile(tmp_path / "other" / FILE, folder / FILE)
    assert str(all_captions(folder)) == expected
    assert f"{folder}: {FILE} has no checksum of 12 of its 12 records, which are read without" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["id2len.json", "txt2lang.json", "meta.json", "nbb_th0.2_max100_min10.json"])
def test_a_table_of_another_database_is_said(tmp_path, capsys, name):
    folder, _ = write_captions(tmp_path), write_images(tmp_path)
    path = next(tmp_path.rglob(name))
    all_captions(folder), all_pictures(tmp_path)
    assert capsys.readouterr().err == ""
    if name.startswith("nbb"):
        path.write_text(path.read_text().replace("6", "5", 1))
    else:
        path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    all_captions(folder), all_pictures(tmp_path)
    assert f"{path}: is not what was written with the records, by their {FILE}" in capsys.readouterr().err
