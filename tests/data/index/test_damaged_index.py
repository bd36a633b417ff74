"""Bits of an index that are not what was written: noticed when they are touched first, by readers, searches and edits."""

import random

import lmdb
import numpy as np
import pytest

from data.errors import BadInput
from data.index.editor import IndexEditor
from data.index.layout import check_num_row_records, stored_header, stored_row
from data.index.reader import EmbeddingIndex
from data.index.writer import IndexWriter
from data.search.exact import ExactSearch
from data.storage.lmdb_env import close_env
from tests.small_indexes import write

VECTORS = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
NAMES = [f"id_{i:05d}.npz" for i in range(600)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("data.index.writer.BLOCK_BYTES", 1)  # 256 rows, the least


def change(folder, records):
    """Put records, or with None delete them, behind the back of the index's own code."""
    close_env(folder)
    with lmdb.open(str(folder), lock=False) as env, env.begin(write=True) as txn:
        for key, value in records.items():
            assert txn.delete(key) if value is None else txn.put(key, value)


def records_of(folder):
    close_env(folder)
    with lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin() as txn:
        return dict(txn.cursor())


def flipped(value, rng):
    place, bit = rng.randrange(len(value)), rng.randrange(8)
    return value[:place] + bytes([value[place] ^ 1 << bit]) + value[place + 1 :]


def everything(folder):
    index = EmbeddingIndex(folder)
    scores, rows = ExactSearch(index).search(VECTORS[:3], 5)
    return index.ids(), index.vectors(np.arange(len(index))).tolist(), [index.row_of(name) for name in NAMES], scores.tolist(), rows.tolist()


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_a_flipped_bit_is_noticed_or_harmless(tmp_path, dtype):
    folder = tmp_path / "index"
    write(folder, VECTORS, dtype=dtype)
    stored, expected, rng = records_of(folder), everything(folder), random.Random(0)
    noticed: dict[bytes, int] = {}
    keys = [key for key in stored if not key.startswith(b"row/")]
    for key in [*keys * 6, *rng.sample(sorted(stored), 20)]:
        kind = b"header sum" if key == b"crc/header" else key.split(b"/")[0]
        change(folder, {key: flipped(stored[key], rng)})
        try:
            assert everything(folder) == expected, key
        except BadInput:
            noticed[kind] = noticed.get(kind, 0) + 1
        change(folder, {key: stored[key]})
    assert everything(folder) == expected
    blocks = 6 * 3
    assert noticed[b"ids"] >= blocks and noticed[b"int8"] >= blocks and noticed[b"crc"] >= blocks - 4
    assert noticed[b"header"] >= 5 and (dtype == "int8" or noticed[b"vec"] >= blocks)


def test_a_block_is_noticed_when_it_is_touched_and_not_before(tmp_path):
    folder = tmp_path / "index"
    write(folder, VECTORS)
    stored = records_of(folder)
    for kind in ("ids", "int8", "vec"):
        key = f"{kind}/00000001".encode()
        change(folder, {key: flipped(stored[key], random.Random(3))})
    index = EmbeddingIndex(folder)
    assert index.ids([0, 599]) == [NAMES[0], NAMES[599]] and index.vectors([255, 512]).shape == (2, 8)
    uses = {
        "ids": [lambda: index.ids([256]), lambda: index.row_of(NAMES[300]), lambda: NAMES[300] in index],
        "vec": [lambda: index.vectors([0, 511]), lambda: list(index.blocks()), lambda: index.block(1, 3)],
        "int8": [lambda: index.codes(1), lambda: ExactSearch(index).search(VECTORS[:1], 1)],
    }
    for kind, calls in uses.items():
        for call in calls * 2:
            with pytest.raises(BadInput, match=f"index: damaged index, {kind}/00000001 is not what was written"):
                call()


def test_an_index_without_checksums_is_read_and_edited(tmp_path):
    folder = tmp_path / "index"
    write(folder, VECTORS)
    expected = everything(folder)
    lost: dict = {key: None for key in records_of(folder) if key.startswith(b"crc/")}
    header = records_of(folder)[b"header"]
    change(folder, lost | {b"header": header.replace(b', "checksums": true', b"")})
    assert everything(folder) == expected
    with IndexEditor(folder, "m0") as editor:
        editor.add(["new"], VECTORS[:1])
    index = EmbeddingIndex(folder)
    assert index.ids() == [*NAMES, "new"] and b"crc/header" in records_of(folder)


@pytest.mark.parametrize("lost", [b"crc/header", b"crc/00000000"])
def test_checksums_that_were_written_and_are_not_there_are_noticed(tmp_path, lost):
    folder = tmp_path / "index"
    write(folder, VECTORS)
    change(folder, {lost: None, b"crc/99999999": records_of(folder)[lost]})
    with pytest.raises(BadInput, match=r"damaged index, (its header is not what was written|crc/00000000 is not there)"):
        everything(folder)
    with pytest.raises(BadInput, match="damaged index"), IndexEditor(folder, "m0") as editor:
        editor.replace(NAMES[:1], VECTORS[:1])


def test_a_header_that_older_code_changed_is_no_damage(tmp_path):
    folder = tmp_path / "index"
    write(folder, VECTORS)
    header = records_of(folder)[b"header"]
    change(folder, {b"header": header.replace(b'"commits": 1', b'"commits": 2').replace(b'"d0"', b'"d1"')})
    assert EmbeddingIndex(folder).header["data"] == "d1"
    change(folder, {b"header": header.replace(b'"d0"', b'"d1"')})
    with pytest.raises(BadInput, match="damaged index, its header is not what was written"):
        EmbeddingIndex(folder)


@pytest.mark.parametrize("value", [b"", bytes(7), bytes(9), b"[" * 100_000])
def test_a_row_record_of_another_length_is_one_line(tmp_path, value):
    folder = tmp_path / "index"
    write(folder, VECTORS)
    change(folder, {b"row/id_00003.npz": value})
    index = EmbeddingIndex(folder)
    for use in (lambda: index.row_of(NAMES[3]), lambda: NAMES[3] in index, IndexEditor(folder, "m0").__enter__):
        with pytest.raises(BadInput, match=rf"index: damaged index, row/id_00003.npz has {len(value):,} bytes, expected 8"):
            use()
    assert index.row_of(NAMES[4]) == 4


def test_an_edit_does_not_carry_the_damaged_row_of_another_id_along(tmp_path):
    folder = tmp_path / "index"
    write(folder, VECTORS)
    name, third = b"row/id_00003.npz", (3).to_bytes(8, "little")
    for records, message in (
        ({name: None, b"row/id_00003.np{": third}, "row/id_00003.npz does not lead to row 3"),
        ({name: None, b"rox/id_00003.npz": third}, "row/id_00003.npz does not lead to row 3"),
        ({name: (4).to_bytes(8, "little")}, "row/id_00003.npz does not lead to row 3"),
        ({b"row/id_00003.np{": third}, "601 row/ records for 600 ids"),
    ):
        change(folder, records)
        before = records_of(folder)
        for edit in (lambda e: e.delete([NAMES[9]]), lambda e: e.replace([NAMES[9]], VECTORS[:1]), lambda e: e.add(["new"], VECTORS[:1])):
            with pytest.raises(BadInput, match=f"index: damaged index, {message}: copy it again"), IndexEditor(folder, "m0") as editor:
                edit(editor)
        assert records_of(folder) == before
        change(folder, {key: None for key in records if key != name} | {name: third})
    with IndexEditor(folder, "m0") as editor:
        editor.delete([NAMES[9]])
    assert len(EmbeddingIndex(folder)) == 599


def test_an_edit_does_not_trust_a_damaged_row(tmp_path):
    folder = tmp_path / "index"
    write(folder, VECTORS)
    stored = records_of(folder)
    name = NAMES[3]
    wrong, leads = {f"row/{name}".encode(): (7).to_bytes(8, "little")}, "row/id_00003.npz does not lead to row 3"
    beyond = {f"row/{name}".encode(): (1 << 40).to_bytes(8, "little")}
    renamed = {f"row/{name}".encode(): None, b"row/id_00003.npy": (3).to_bytes(8, "little")}
    for records, edit in (
        (wrong, lambda e: e.delete([name])),
        (wrong, lambda e: e.replace([name], VECTORS[:1])),
        (wrong, lambda e: e.add(["new"], VECTORS[:1])),
        (beyond, lambda e: e.delete([name])),
        (renamed, lambda e: e.add([name], VECTORS[:1])),
        (renamed, lambda e: e.delete(["id_00003.npy"])),
    ):
        change(folder, records)
        before = records_of(folder)
        with pytest.raises(BadInput, match=f"index: damaged index, {leads}"), IndexEditor(folder, "m0") as editor:
            edit(editor)
        assert records_of(folder) == before
        change(folder, {key: None for key in records if key not in stored} | {key: stored[key] for key in records if key in stored})


@pytest.mark.parametrize("kind", ["ids", "int8", "vec"])
def test_an_edit_does_not_go_on_from_a_lost_block(tmp_path, kind):
    folder = tmp_path / "index"
    write(folder, VECTORS)
    change(folder, {f"{kind}/00000002".encode(): None})
    for edit in (lambda e: e.delete([NAMES[0]]), lambda e: e.delete([NAMES[599]]), lambda e: e.add(["new"], VECTORS[:1])):
        with pytest.raises(BadInput, match="damaged index"), IndexEditor(folder, "m0") as editor:
            edit(editor)


@pytest.mark.parametrize("key", [b"ids/00000000", b"row/id_00003.npz"])
def test_a_damaged_beginning_is_begun_anew(tmp_path, capsys, monkeypatch, key):
    monkeypatch.setattr("data.index.writer.COMMIT_SECONDS", 0)
    folder = tmp_path / "index"
    with pytest.raises(RuntimeError), IndexWriter(folder, "img", 8, model="m0", data="d0") as writer:
        writer.add(NAMES[:300], VECTORS[:300])
        raise RuntimeError("stopped")
    partial = tmp_path / "index.partial"
    stored = records_of(partial)
    change(partial, {key: flipped(stored[key], random.Random(1))})
    with IndexWriter(folder, "img", 8, model="m0", data="d0") as writer:
        assert not writer.done
        writer.add(NAMES, VECTORS)
    what = "is not what was written" if key.startswith(b"ids") else "does not lead to row 3"
    assert f"damaged index, {key.decode()} {what}" in capsys.readouterr().err
    index = EmbeddingIndex(folder)
    assert index.ids() == NAMES and [index.row_of(name) for name in NAMES] == list(range(600))


def test_a_transaction_that_a_damaged_page_has_ended_is_one_line(tmp_path):
    folder = tmp_path / "index"
    write(folder, VECTORS)
    close_env(folder)
    with lmdb.open(str(folder), lock=False) as env, env.begin() as txn:
        txn.abort()  # as LMDB does when it meets such a page
        for read in (lambda: check_num_row_records(txn, 1, folder), lambda: stored_header(txn, folder), lambda: stored_row(txn, "a", folder)):
            with pytest.raises(BadInput, match="damaged index"):
                read()
