"""Digests of databases: a naive sum, whatever order and history the records have, and what makes them stale."""

import hashlib
import os
import shutil

import lmdb
import numpy as np
import pytest

from data.errors import BadInput
from data.storage.contents import content_digest, records_digest
from data.storage.digest import FILE, RecordsDigest, remembered_files
from data.storage.lmdb_writer import LmdbWriter

RECORDS = {f"key{n}".encode(): bytes([n % 7]) * (n % 2000) for n in range(1500)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def written(folder, records, **options):
    with LmdbWriter(folder, **options) as writer:
        for key, value in records:
            writer.put(key, value)
    return folder


def foreign(folder, records):
    """A database that somebody else's code wrote."""
    with lmdb.open(str(folder), map_size=1 << 28) as env, env.begin(write=True) as txn:
        for key, value in records:
            txn.put(key, value)
    return folder


def test_a_key_that_is_not_found_where_it_is_listed_is_one_line(tmp_path):
    folder = foreign(tmp_path / "db", [(b"key%d" % n, b"value") for n in range(9)])
    data = (folder / "data.mdb").read_bytes()
    (folder / "data.mdb").write_bytes(data.replace(b"key4", b"kez4"))
    with pytest.raises(BadInput, match=r"db: cannot be read \(key b'key\d' is listed, but not found\)"):
        content_digest(folder)


def naive(records: dict) -> str:
    total = 0
    for key, value in records.items():
        hashed = hashlib.blake2b(len(key).to_bytes(4, "little") + key + value, digest_size=32).digest()
        total += int.from_bytes(hashed, "little")
    return f"{total % 2**256:064x}"


def test_it_is_the_sum_of_the_records_however_they_came(tmp_path):
    items = list(RECORDS.items())
    expected = naive(RECORDS)
    for name, records, options in (
        ("forwards", items, {}),
        ("backwards", items[::-1], {"commit_every": 7}),
        ("replaced", [(key, b"before") for key, _ in items[:900]] + items, {"commit_every": 11}),
        ("twice in a batch", [(key, b"before") for key, _ in items[:9]] + items, {}),
        ("a map that grows", items, {"map_size": 1 << 16}),
    ):
        folder = written(tmp_path / name, records, **options)
        assert remembered_files(folder)["data.mdb"]["digest"] == expected, name
        assert records_digest(folder, progress=False).hex == expected, name
    assert records_digest(foreign(tmp_path / "foreign", items)).hex == expected


def test_a_writer_that_goes_on_knows_what_was_there(tmp_path):
    items = list(RECORDS.items())
    with pytest.raises(KeyboardInterrupt), LmdbWriter(tmp_path / "db", commit_every=10, keep=True) as writer:
        for key, value in items[:105]:
            writer.put(key, value)
        raise KeyboardInterrupt
    folder = written(tmp_path / "db", items[100:], keep=True)
    assert remembered_files(folder)["data.mdb"]["digest"] == naive(RECORDS)


@pytest.mark.parametrize("make", [written, foreign])
def test_every_change_changes_it(tmp_path, make):
    rng = np.random.default_rng(0)
    items = list(RECORDS.items())
    plain = content_digest(make(tmp_path / "plain", items))
    for n in rng.choice(len(items), 5, replace=False):
        key, value = items[n]
        others = items[:n] + items[n + 1 :]
        for change, records in (
            ("value", [*others, (key, value[:-1] + b"\xff")]),
            ("key", [*others, (key + b"x", value)]),
            ("missing", others),
            ("moved", [*others, (key + value[:1], value[1:])]),
        ):
            assert content_digest(make(tmp_path / f"{change}{n}", records)) != plain, change


def test_it_is_remembered_until_the_file_is_another(tmp_path, monkeypatch):
    folder = foreign(tmp_path / "db", RECORDS.items())
    first = content_digest(folder)
    reads = []
    monkeypatch.setattr("data.storage.contents.records_digest", lambda *_: reads.append(1) or RecordsDigest(5, 1))
    assert content_digest(folder) == first and not reads
    info = os.stat(folder / "data.mdb")
    os.utime(folder / "data.mdb", ns=(info.st_atime_ns, info.st_mtime_ns + 1))
    assert content_digest(folder) != first and reads  # what the stand-in says


def test_a_copy_has_the_same_and_files_beside_it_count(tmp_path):
    folder = written(tmp_path / "db", RECORDS.items())
    (folder / "table.json").write_text("{}")
    first = content_digest(folder, ["table.json", "absent.json"])
    shutil.copytree(folder, tmp_path / "copy")
    assert content_digest(tmp_path / "copy", ["table.json", "absent.json"]) == first
    (folder / "table.json").write_text("[]")
    assert content_digest(folder, ["table.json", "absent.json"]) != first
    (folder / "table.json").write_text("{}")
    (folder / "absent.json").write_text("")
    changed = content_digest(folder, ["table.json", "absent.json"])
    assert changed != first
    (folder / "absent.json").unlink()
    assert content_digest(folder, ["table.json", "absent.json"]) == first


def test_where_the_folder_cannot_be_written_it_is_remembered_in_the_cache(tmp_path, monkeypatch):
    folder = foreign(tmp_path / "db", RECORDS.items())
    (folder / FILE).mkdir()  # root may write anywhere: this nobody can replace by a file
    first = content_digest(folder)
    monkeypatch.setattr("data.storage.contents.records_digest", None)
    assert content_digest(folder) == first


def test_a_damaged_memory_is_no_memory(tmp_path):
    folder = written(tmp_path / "db", RECORDS.items())
    first = content_digest(folder)
    for text in ("", "{", "[]", '{"data.mdb": 3}', '{"data.mdb": {"size": 1}}'):
        (folder / FILE).write_text(text)
        assert content_digest(folder) == first


def test_no_database_is_one_line(tmp_path):
    with pytest.raises(BadInput, match=r"not an LMDB database"):
        content_digest(tmp_path)
