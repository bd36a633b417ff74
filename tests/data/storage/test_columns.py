"""Tables as arrays: against the lists and dicts they stand for; stored columns that are stale or damaged."""

import itertools
import json
import os
import pickle
import platform
import shutil

import numpy as np
import pytest

from data.annotations.records import Caption
from data.captions.db import CaptionDB
from data.captions.tables import JSON_TABLES
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.errors import BadInput
from data.storage import columns, lmdb_env
from data.storage.columns import (
    Lists,
    Numbers,
    SelectedStrings,
    Strings,
    Table,
    json_parts,
    load_columns,
    string_arrays,
)
from tests.flipped_bits import flips

NAMES = ["b.npz", "a", "", "größer#1", "a" * 300, "17", "ab", "a.npz", "日本", "b.npy"]


def strings(names):
    return Strings(string_arrays("x", names), "x")


@pytest.fixture
def colliding(monkeypatch):
    """A hash of three values, so that most look-ups meet another string first."""
    monkeypatch.setattr(columns, "_hash", lambda string: sum(string) % 3)


@pytest.fixture
def large(monkeypatch):
    """Every table counts as large."""
    monkeypatch.setattr(columns, "STORED_FROM", 1)


# ---- views -----------------------------------------------------------------------------------------------------------


def check_strings(names):
    table = strings(names)
    assert len(table) == len(names) and list(table) == names and table == names and names == table
    assert table != names[:-1] and table != [*names[:-1], "x"] and (table == "x") is False
    assert [table[i] for i in range(-len(names), len(names))] == names * 2
    for part in (slice(None), slice(2, 5), slice(None, None, 3), slice(5, 1, -2), slice(50, 60)):
        assert table[part] == names[part]
    assert [table.find(name) for name in names] == list(range(len(names)))
    for absent in ("c", "a.np", "b.npz ", "\ud800", 3, None, b"a"):
        assert absent not in table and table.find(absent) == -1
    for row in (len(names), -len(names) - 1):
        with pytest.raises(IndexError):
            table[row]


def test_strings_against_a_list():
    check_strings(NAMES)
    check_strings([f"{n}" for n in range(40_000)])  # more than one chunk
    assert list(strings([])) == [] and "a" not in strings([]) and strings([])[:] == []


def test_strings_of_equal_hashes(colliding):
    check_strings(NAMES)


def check_match(rng):
    ours = [str(n) for n in rng.permutation(300)]
    theirs = [str(n) for n in rng.permutation(500)[:200]]
    rows = rng.integers(0, 200, 90)
    for wanted in (theirs, strings(theirs), SelectedStrings(strings(theirs), rows), []):
        expected = [ours.index(name) if name in ours else -1 for name in wanted]
        assert strings(ours).match(wanted).tolist() == expected
    assert strings([]).match(strings(["a"])).tolist() == [-1]


def test_match_against_a_loop():
    check_match(np.random.default_rng(0))


def test_the_worked_example_of_match(monkeypatch):
    hashes = {b"cat": 7, b"cow": 7, b"dog": 3, b"owl": 5}
    monkeypatch.setattr(columns, "_hash", hashes.get)
    assert strings(["cat", "dog", "owl"]).match(strings(["owl", "cow", "dog"])).tolist() == [2, -1, 1]


def test_match_of_equal_hashes(colliding):
    check_match(np.random.default_rng(1))
    assert strings(["aab", "aba"]).match(strings(["baa", "aba", "aaab"])).tolist() == [-1, 1, -1]


def test_tables_against_dicts():
    rng = np.random.default_rng(2)
    numbers, rows = rng.integers(0, 1000, len(NAMES)), rng.integers(0, len(NAMES), len(NAMES))
    ends = np.cumsum([0, *rng.integers(0, 3, len(NAMES))])
    members = rng.integers(0, len(NAMES), ends[-1])
    names = strings(NAMES)
    for column, values in [
        (Numbers(numbers), numbers.tolist()),
        (SelectedStrings(names, rows.astype(np.uint8)), [NAMES[row] for row in rows]),
        (Lists(names, members, ends), [[NAMES[m] for m in members[a:b]] for a, b in itertools.pairwise(ends)]),
    ]:
        table, expected = Table(names, column), dict(zip(NAMES, values, strict=True))
        assert table == expected and expected == table and len(table) == len(expected)
        assert list(table) == list(expected) and list(table.items()) == list(expected.items())
        assert list(table.values()) == values and column == values
        assert table.keys() == expected.keys() and {name: table[name] for name in NAMES} == expected
        assert table.get("c") is None and "c" not in table and table.get("c", 3) == 3
        with pytest.raises(KeyError):
            table["c"]
        assert table != expected | {"17": None}
        assert b"".join(json_parts(table)) == json.dumps(expected).encode()
        assert pickle.loads(pickle.dumps(table)) == expected
    assert b"".join(json_parts({})) == b"{}"


def test_json_of_many_rows():
    names = [f"key {n}" for n in range(40_000)]
    table = dict(zip(names, range(40_000), strict=True))
    assert b"".join(json_parts(Table(strings(names), Numbers(np.arange(40_000))))) == json.dumps(table).encode()


# ---- storing ---------------------------------------------------------------------------------------------------------


class Built:
    """Counts how often the columns are built."""

    def __init__(self, path):
        self.path, self.times = path, 0

    def __call__(self):
        self.times += 1
        return string_arrays("x", json.loads(self.path.read_text())) | {"none": np.empty(0, np.int32)}


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "names.json").write_text(json.dumps(NAMES))
    return tmp_path / "db" / "names.json"


def opened(source, built):
    return Strings(load_columns(source.parent, "columns", [source], built, "x_rows"), "x")


def is_mapped(table):
    return isinstance(table._bytes.base, np.memmap)


def test_small_ones_are_not_stored(source):
    built = Built(source)
    assert opened(source, built) == opened(source, built) == NAMES
    assert built.times == 2 and os.listdir(source.parent) == ["names.json"] and not is_mapped(opened(source, built))


def test_large_ones_are_stored_once_and_mapped(source, large):
    built = Built(source)
    tables = [opened(source, built) for _ in range(3)]
    assert built.times == 1 and all(table == NAMES and is_mapped(table) for table in tables)
    assert sorted(os.listdir(source.parent)) == ["columns", "names.json"]  # nothing half-written is left

    sent = pickle.dumps(tables[0])
    again = pickle.loads(sent)
    assert again == NAMES and is_mapped(again) and len(sent) < 2000 and b"npz" not in sent  # file names, not contents


def test_a_user_without_a_home_directory_reads_them_too(source, large, homeless):
    built = Built(source)
    assert opened(source, built) == NAMES and is_mapped(opened(source, built)) and built.times == 1
    shutil.rmtree(source.parent / "columns")
    (source.parent / f".columns.{platform.node()}.{os.getpid()}.partial").touch()  # as in a folder that cannot be written
    table = opened(source, built)
    assert table == NAMES and not is_mapped(table)


def test_stale_ones_are_built_again(source, large):
    built = Built(source)
    opened(source, built)
    source.write_text(json.dumps(NAMES[1:]))
    old = opened(source, built)
    assert built.times == 2 and old == NAMES[1:]
    source.write_text(json.dumps(NAMES[1:]).replace("17", "71"))  # the size is the same
    assert "71" in opened(source, built) and built.times == 3
    assert old == NAMES[1:]  # who has it open keeps it
    os.utime(source, (1, 1))  # a copy: another time, the same content
    assert "71" in opened(source, built) and built.times == 3
    assert sorted(os.listdir(source.parent)) == ["columns", "names.json"]


@pytest.mark.parametrize("damage", ["truncate", "empty", "other", "missing", "no meta", "half a meta", "shape"])
def test_damaged_ones_are_built_again(source, large, damage):
    built = Built(source)
    opened(source, built)
    folder = source.parent / "columns"
    path = folder / "x_bytes.npy"
    if damage == "truncate":
        os.truncate(path, path.stat().st_size - 1)
    elif damage in ("empty", "other"):
        path.write_bytes(b"" if damage == "empty" else b"PK\3\4" * 99)
    elif damage == "missing":
        path.unlink()
    elif damage == "shape":
        np.save(path, np.zeros(5, np.uint8))
    else:
        text = (folder / "sources.json").read_text()
        (folder / "sources.json").write_text("[]" if damage == "no meta" else text[: len(text) // 2])
    assert opened(source, built) == NAMES and built.times == 2
    assert opened(source, built) == NAMES and built.times == 2


def test_a_flipped_bit_is_noticed_or_harmless(source, large, capsys):
    built = Built(source)
    opened(source, built)
    folder = source.parent / "columns"
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    for seed, path in enumerate([*kept] * 3):
        for place in flips(path, 1, seed):
            assert opened(source, built) == NAMES, place
            assert path.suffix == ".json" or f"{path}: damaged, made again" in capsys.readouterr().err, place
        for each, content in kept.items():
            each.write_bytes(content)


def test_those_of_before_are_used_without_checksums(source, large):
    built = Built(source)
    opened(source, built)
    meta = json.loads((source.parent / "columns/sources.json").read_text())
    del meta["checksums"], meta["digest"]
    (source.parent / "columns/sources.json").write_text(json.dumps(meta))
    assert opened(source, built) == NAMES and built.times == 1


def test_a_folder_that_cannot_be_written(source, large, tmp_path, monkeypatch):
    """Columns go to the cache; and where that cannot be written either, they stay in memory."""
    (source.parent / "columns").write_text("a file where the folder should be")
    real = columns.Path.mkdir

    def mkdir(self, *args, **options):  # the tests may run as root, who may write anywhere
        if self.is_relative_to(source.parent) or (locked and self.is_relative_to(tmp_path / "cache")):
            raise PermissionError(13, "Permission denied")
        return real(self, *args, **options)

    monkeypatch.setattr(columns.Path, "mkdir", mkdir)
    built, locked = Built(source), True
    assert opened(source, built) == NAMES and not is_mapped(opened(source, built)) and built.times == 2
    locked = False
    assert opened(source, built) == NAMES and is_mapped(opened(source, built)) and built.times == 3
    assert len(list((tmp_path / "cache" / "lightningdot").iterdir())) == 1
    assert sorted(os.listdir(source.parent)) == ["columns", "names.json"]


def test_processes_that_race(source, large):
    """All of them find none and store theirs: each gets whole ones, and one folder stays."""
    processes = []
    for _ in range(6):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                table = Strings(load_columns(source.parent, "columns", [source], Built(source), "x_rows"), "x")
                status = int(not (table == NAMES and is_mapped(table)))
            finally:
                os._exit(status)
        processes.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in processes] == [0] * 6
    assert sorted(os.listdir(source.parent)) == ["columns", "names.json"]


# ---- a text DB -------------------------------------------------------------------------------------------------------


@pytest.fixture
def text_db(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "runs", "hund"]
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    records = [
        Caption(f"{n // 3}.jpg", "a dog runs"[: 1 + n % 10], f"{n}#x", "train", "de" if n % 3 else "en")
        for n in range(30)
    ]
    write_caption_db(tmp_path / "db", records, CaptionTokenizer.from_pretrained(tmp_path / "vocab.txt"), ["a.jsonl"])
    return tmp_path / "db"


def test_stored_and_unstored_text_db_are_the_same(text_db, large):
    plain = pickle.loads(pickle.dumps(CaptionDB(text_db)))
    tables = [json.loads((text_db / name).read_text()) for name in JSON_TABLES]
    shutil.rmtree(text_db / "columns")
    columns.STORED_FROM = 1000  # `large` puts the right one back
    small = CaptionDB(text_db)
    assert not (text_db / "columns").exists() and small.fingerprint() == plain.fingerprint()
    for db in (plain, small):
        assert [db.lengths, db.txt2img, db.img2txts, db.languages] == tables and db.ids == list(tables[0])


def test_the_writer_stores_columns_of_large_databases(text_db, monkeypatch):
    assert not (text_db / "columns").exists()
    monkeypatch.setattr("data.captions.writer.STORED_FROM", 30)
    write_caption_db(
        text_db, [Caption("1.jpg", "a dog", str(n), "train", "en") for n in range(30)],
        CaptionTokenizer.from_pretrained(text_db.parent / "vocab.txt"), ["a.jsonl"],
    )  # fmt: skip
    assert (text_db / "columns" / "sources.json").exists()
    monkeypatch.setattr("data.captions.db.build_columns", lambda *_: {})  # they are fresh: nothing builds them again
    assert CaptionDB(text_db).lengths == {str(n): 2 for n in range(30)}


def test_values_of_another_kind(text_db):
    def refused(name, change, message):
        content = (text_db / name).read_text()
        table = json.loads(content)
        table[next(iter(table))] = change
        (text_db / name).write_text(json.dumps(table))
        with pytest.raises(BadInput, match=rf"{name}: {message}"):
            CaptionDB(text_db)
        (text_db / name).write_text(content)

    for value in ("3", -1, 1.5, None, [3], 1 << 40):
        refused("id2len.json", value, "holds something other than numbers of word pieces")
    refused("img2txts.json", "0#x", "0.npz has '0#x', expected a list")


def test_captions_that_id2len_lacks_are_left_out(text_db):
    table = json.loads((text_db / "img2txts.json").read_text())
    table["0.npz"].insert(1, "of another split")
    (text_db / "img2txts.json").write_text(json.dumps(table))
    assert CaptionDB(text_db).img2txts["0.npz"] == ["0#x", "1#x", "2#x"]


def test_a_caption_without_language(text_db):
    table = json.loads((text_db / "txt2lang.json").read_text())
    del table["4#x"]
    (text_db / "txt2lang.json").write_text(json.dumps(table))
    assert CaptionDB(text_db).languages == table | {"4#x": ""}


def test_reading_does_not_keep_the_parents_map(text_db):
    """What a forked worker reads is its own: see also test_lmdb_env."""
    CaptionDB(text_db)
    assert not lmdb_env._opened[os.path.realpath(text_db)].keeps_views
