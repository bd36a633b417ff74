"""Adding, replacing and deleting rows against a dictionary; building that is killed and goes on; storage types."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest

from data.errors import BadInput
from data.index.dtypes import round_to
from data.index.editor import IndexEditor
from data.index.reader import EmbeddingIndex
from data.index.writer import IndexWriter
from data.search.exact import ExactSearch
from data.storage.lmdb_env import close_env
from tests.small_indexes import assert_same, naive_search, write

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("data.index.writer.BLOCK_BYTES", 1)  # 256 rows, the least
    monkeypatch.setattr("data.index.editor.BLOCKS_AT_ONCE", 2)


def contents(index):
    return dict(zip(index.ids(), index.vectors(np.arange(len(index)))))


def assert_holds(folder, expected, dtype="fp32"):
    """Every id leads to its vector and back, the search finds what the naive one does, and nothing else is stored."""
    index = EmbeddingIndex(folder)
    found = contents(index)
    assert len(found) == len(index) == len(expected) and set(found) == set(expected)
    names = index.ids()
    for row, name in enumerate(names):
        assert index.row_of(name) == row
        np.testing.assert_array_equal(found[name], expected[name])
    if expected:
        queries = np.random.default_rng(9).standard_normal((5, 8)).astype(np.float32)
        stored = np.array([expected[name] for name in names])
        assert_same(ExactSearch(index).search(queries, 10), naive_search(queries, stored, 10))
    close_env(folder)
    with lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin() as txn:
        keys = [key.split(b"/")[0] for key in txn.cursor().iternext(values=False)]
    blocks = -(-len(expected) // 256)
    counts = {"row": len(expected), "ids": blocks, "int8": blocks, "vec": 0 if dtype == "int8" else blocks, "header": 1}
    assert {name: keys.count(name.encode()) for name in counts} == counts


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "int8"])
def test_edits_against_a_dictionary(tmp_path, dtype):
    rng = np.random.default_rng(0)

    def vectors(n):
        return rng.standard_normal((n, 8)).astype(np.float32)

    first = vectors(700)
    expected = dict(zip((f"id_{i:05d}.npz" for i in range(700)), round_to(first, dtype)))
    write(tmp_path / "index", first, dtype=dtype)
    serial = 0
    for step in range(12):
        before = EmbeddingIndex(tmp_path / "index").header
        with IndexEditor(tmp_path / "index", "m0") as editor:
            for _ in range(int(rng.integers(1, 4))):
                what = ("add", "replace", "delete")[int(rng.integers(3))]
                n = int(rng.integers(1, 300))
                if what == "add":
                    ids = [f"new {serial + i}" for i in range(n)]
                    serial += n
                else:
                    ids = [str(name) for name in rng.choice(list(expected), min(n, len(expected)), replace=False)]
                if what == "delete":
                    editor.delete(ids)
                    for name in ids:
                        del expected[name]
                else:
                    added = vectors(len(ids))
                    getattr(editor, what)(ids, added)
                    expected |= dict(zip(ids, round_to(added, dtype)))
        after = EmbeddingIndex(tmp_path / "index").header
        assert after["commits"] == before["commits"] + 1 == step + 2 and after["data"] != before["data"]
        assert_holds(tmp_path / "index", expected, dtype)
    with IndexEditor(tmp_path / "index", "m0") as editor:
        editor.delete(list(expected))
        editor.add(["back"], np.ones((1, 8)))
    assert_holds(tmp_path / "index", {"back": round_to(np.ones((1, 8), np.float32), dtype)[0]}, dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_the_data_of_an_edited_index_are_what_it_holds_and_not_how_it_came_there(tmp_path):
    vectors = np.random.default_rng(3).standard_normal((600, 8)).astype(np.float32)
    ids = EmbeddingIndex(write(tmp_path / "index", vectors).folder).ids()

    def data_after(edit):
        with IndexEditor(tmp_path / "index", "m0") as editor:
            edit(editor)
        return EmbeddingIndex(tmp_path / "index").header["data"]

    first = data_after(lambda editor: editor.replace(ids[:300], vectors[:300]))
    assert data_after(lambda editor: editor.replace(ids[200:500], vectors[200:500])) == first  # given again, it is the same
    changed = data_after(lambda editor: editor.replace(ids[400:401], -vectors[400:401]))
    renamed = data_after(lambda editor: (editor.delete(ids[-1:]), editor.add(["other.npz"], vectors[-1:])))
    assert len({first, changed, renamed}) == 3
    data_after(lambda editor: (editor.replace(ids[400:401], vectors[400:401]), editor.delete(["other.npz"])))
    assert data_after(lambda editor: editor.add(ids[-1:], vectors[-1:])) == first
    close_env(tmp_path / "index")
    with lmdb.open(str(tmp_path / "index"), lock=False) as env, env.begin(write=True) as txn:
        for number in range(3):
            txn.delete(b"crc/%08d" % number)  # as in an index of before
        txn.put(b"header", txn.get(b"header").replace(b', "checksums": true', b""))
        txn.delete(b"crc/header")
    assert data_after(lambda editor: editor.replace(ids[:1], vectors[:1])) == first


def test_an_id_that_left_can_come_back_in_the_same_edit(tmp_path):
    vectors = np.random.default_rng(1).standard_normal((300, 8)).astype(np.float32)
    write(tmp_path / "index", vectors)
    with IndexEditor(tmp_path / "index", "m0") as editor:
        editor.delete(["id_00000.npz"])
        editor.add(["id_00000.npz"], np.ones((1, 8)))
    expected = dict(zip((f"id_{i:05d}.npz" for i in range(300)), vectors)) | {"id_00000.npz": np.ones(8, np.float32)}
    assert_holds(tmp_path / "index", expected)


def test_readers_go_on_and_a_failed_edit_changes_nothing(tmp_path):
    old = write(tmp_path / "index", np.ones((300, 8), np.float32))
    stamp = old.stamp
    with pytest.raises(RuntimeError):
        with IndexEditor(tmp_path / "index", "m0") as editor:
            editor.delete(["id_00000.npz"])
            raise RuntimeError("stopped")
    assert EmbeddingIndex(tmp_path / "index").stamp == stamp
    with IndexEditor(tmp_path / "index", "m0") as editor:
        editor.replace(old.ids(), np.full((300, 8), 2))
    assert ExactSearch(old).search(np.ones((1, 8)), 1)[0].item() == 8 and (old.vectors([299]) == 1).all()
    assert ExactSearch(tmp_path / "index").search(np.ones((1, 8)), 1)[0].item() == 16


def test_edits_are_refused(tmp_path):
    write(tmp_path / "index", np.ones((3, 8), np.float32))
    cases = [
        ("m1", lambda e: None, "made by model m0"),
        ("m0", lambda e: e.add(["id_00000.npz"], np.ones((1, 8))), "added twice"),
        ("m0", lambda e: e.add(["a", "a"], np.ones((2, 8))), "added twice"),
        ("m0", lambda e: e.replace(["a"], np.ones((1, 8))), "no id 'a'"),
        ("m0", lambda e: e.replace(["id_00000.npz"], np.ones((1, 9))), r"\(1, 9\)"),
        ("m0", lambda e: e.replace(["id_00000.npz"], np.full((1, 8), np.nan)), "NaN"),
        ("m0", lambda e: e.delete(["id_00000.npz"] * 2), "named twice"),
        ("m0", lambda e: e.delete(["x" * 600]), "no id"),
    ]
    for model, edit, message in cases:
        with pytest.raises(BadInput, match=message), IndexEditor(tmp_path / "index", model) as editor:
            edit(editor)
    with IndexEditor(tmp_path / "index", "m0"), pytest.raises(BadInput, match=r"process \d+ on .* is writing there"):
        IndexEditor(tmp_path / "index", "m0").__enter__()
    with pytest.raises(BadInput, match="nowhere"):
        IndexEditor(tmp_path / "nowhere", "m0").__enter__()
    assert EmbeddingIndex(tmp_path / "index").count == 3


def test_version_1_is_read_and_not_changed(tmp_path):
    vectors = np.random.default_rng(2).standard_normal((300, 8)).astype(np.float32)
    write(tmp_path / "index", vectors)
    close_env(tmp_path / "index")
    with lmdb.open(str(tmp_path / "index"), lock=False) as env, env.begin(write=True) as txn:
        header = json.loads(txn.get(b"header")) | {"version": 1}
        for name in ("max_error", "complete", "commits", "checksums"):
            del header[name]
        txn.put(b"header", json.dumps(header).encode())
        assert txn.delete(b"crc/header") and txn.delete(b"int8/00000000") and txn.delete(b"int8/00000001")
    index = EmbeddingIndex(tmp_path / "index")
    assert_same(ExactSearch(index).search(vectors[:4], 7), naive_search(vectors[:4], vectors, 7))
    with pytest.raises(BadInput, match="format 1 can be read, not changed"):
        IndexEditor(tmp_path / "index", "m0").__enter__()


BUILD = """
import os, signal, sys
import numpy as np
from data.index import writer as index_writer
index_writer.BLOCK_BYTES, index_writer.COMMIT_SECONDS = 1, 0
vectors = np.random.default_rng(3).standard_normal((1000, 8)).astype(np.float32)
ids = [f"id {i}" for i in range(1000)]
folder, kill_at, data = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with index_writer.IndexWriter(folder, "img", 8, model="m0", data=data) as writer:
    print(len(writer.done))
    for start in range(0, 1000, 50):
        wanted = [i for i in range(start, start + 50) if ids[i] not in writer.done]
        writer.add([ids[i] for i in wanted], vectors[wanted])
        if start == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_building_goes_on(tmp_path):
    def build(kill_at, data="d0"):
        words = [sys.executable, "-c", BUILD, str(tmp_path / "index"), str(kill_at), data]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.returncode

    assert build(400) == -signal.SIGKILL and not (tmp_path / "index").exists()
    with pytest.raises(BadInput, match=r"index.partial: .*interrupted \(450 vectors\).*again"):
        EmbeddingIndex(tmp_path / "index.partial")
    assert EmbeddingIndex(tmp_path / "index.partial", incomplete=True).count == 450
    close_env(tmp_path / "index.partial")
    for words in (["800", "d0"], ["-1", "d0"]):
        subprocess.run([sys.executable, "-c", BUILD, str(tmp_path / "index"), *words], cwd=ROOT)
    vectors = np.random.default_rng(3).standard_normal((1000, 8)).astype(np.float32)
    assert_holds(tmp_path / "index", dict(zip((f"id {i}" for i in range(1000)), vectors)))
    assert EmbeddingIndex(tmp_path / "index").ids() == [f"id {i}" for i in range(1000)]  # rows as never stopped
    assert build(400, "d1") == -signal.SIGKILL  # what stands there stays until the new one is whole
    assert EmbeddingIndex(tmp_path / "index").header["data"] == "d0"
    assert build(-1, "d2") == 0  # other data: nothing of the interrupted one is taken
    index = EmbeddingIndex(tmp_path / "index")
    assert (index.header["data"], index.header["commits"], index.count) == ("d2", 2, 1000)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == ["index"]


@pytest.mark.parametrize("damage", ["truncated", "junk"])
def test_a_damaged_beginning_is_begun_anew(tmp_path, damage):
    words = [sys.executable, "-c", BUILD, str(tmp_path / "index")]
    subprocess.run([*words, "400", "d0"], cwd=ROOT)
    file = tmp_path / "index.partial/data.mdb"
    os.truncate(file, file.stat().st_size // 2) if damage == "truncated" else file.write_bytes(b"junk" * 5000)
    done = subprocess.run([*words, "-1", "d0"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "0\n") and "data.mdb: damaged, the index is begun anew" in done.stderr
    vectors = np.random.default_rng(3).standard_normal((1000, 8)).astype(np.float32)
    assert_holds(tmp_path / "index", dict(zip((f"id {i}" for i in range(1000)), vectors)))


def test_a_killed_edit_changes_nothing(tmp_path):
    write(tmp_path / "index", np.ones((300, 8), np.float32))
    code = f"""
import os, signal
import numpy as np
from data.index import editor as index_editor
index_editor.BLOCKS_AT_ONCE = 0
with index_editor.IndexEditor({str(tmp_path / "index")!r}, "m0") as editor:
    editor.delete(["id_00000.npz"])
    editor.add([str(i) for i in range(900)], np.zeros((900, 8)))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -signal.SIGKILL
    assert_holds(tmp_path / "index", {f"id_{i:05d}.npz": np.ones(8, np.float32) for i in range(300)})
    with IndexEditor(tmp_path / "index", "m0") as editor:  # what the killed one left is no obstacle
        editor.delete(["id_00299.npz"])
    assert EmbeddingIndex(tmp_path / "index").count == 299


def test_a_damaged_file_is_one_line(tmp_path):
    write(tmp_path / "index", np.random.default_rng(0).standard_normal((3000, 8)).astype(np.float32))
    close_env(tmp_path / "index")
    size = os.path.getsize(tmp_path / "index" / "data.mdb")
    for where in ((0, 8192), (8192, size - 8192)):
        whole = (tmp_path / "index" / "data.mdb").read_bytes()
        with open(tmp_path / "index" / "data.mdb", "r+b") as file:
            file.seek(where[0])
            file.write(b"\xff" * where[1])
        code = f"""
from data.errors import BadInput
from data.search.exact import ExactSearch
import numpy as np
try:
    ExactSearch({str(tmp_path / "index")!r}).search(np.ones((1, 8)), 1)
except BadInput as error:
    print(error)
"""
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and len(done.stdout.splitlines()) == 1 and "index" in done.stdout, done
        (tmp_path / "index" / "data.mdb").write_bytes(whole)


def test_rows_in_bf16_and_int8_are_the_nearest(tmp_path):
    torch = pytest.importorskip("torch")
    vectors = np.random.default_rng(4).standard_normal((300, 8)).astype(np.float32) * 3
    expected = torch.from_numpy(vectors).bfloat16().float().numpy()
    np.testing.assert_array_equal(write(tmp_path / "a", vectors, dtype="bf16").vectors(np.arange(300)), expected)
    found = write(tmp_path / "b", vectors, dtype="int8").vectors(np.arange(300))
    step = np.abs(vectors).max(axis=1, keepdims=True) / 127
    assert (np.abs(found - vectors) <= step * 0.5001).all() and np.abs(found - vectors).max() > 0
    again = write(tmp_path / "c", found, dtype="int8").vectors(np.arange(300))
    np.testing.assert_allclose(again, found, rtol=1e-6)
    with pytest.raises(BadInput, match=r"too large.*bf16"):
        write(tmp_path / "d", np.full((1, 8), 3.4e38, np.float32), dtype="bf16")


def test_unknown_settings_are_refused(tmp_path):
    with pytest.raises(BadInput, match="dtype 'fp8'"):
        IndexWriter(tmp_path / "index", "img", 8, model="m", data="d", dtype="fp8")


def test_what_was_flushed_midway_and_deleted_again_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("data.index.writer.BLOCK_BYTES", 1)  # 256 rows a block, of which 16 are held
    write(tmp_path / "index", np.ones((300, 4), np.float32))
    many = [f"many_{n}" for n in range(5120)]
    with IndexEditor(tmp_path / "index", "m0") as editor:
        editor.add(many, np.ones((5120, 4)))
        editor.delete(many)
    assert EmbeddingIndex(tmp_path / "index").count == 300
    with IndexEditor(tmp_path / "index", "m0") as editor:
        editor.add([f"new_{n}" for n in range(400)], np.full((400, 4), 2.0))
    index = EmbeddingIndex(tmp_path / "index")
    assert len(set(index.ids())) == index.count == 700
    np.testing.assert_array_equal(index.vectors(np.arange(700)), np.repeat([1.0, 2.0], [300, 400])[:, None] * np.ones(4))
