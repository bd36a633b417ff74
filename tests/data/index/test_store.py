"""The LMDB of an index that is being written: what is put, committed and published, and what a fault leaves."""

import resource

import lmdb
import numpy as np
import pytest

from data.errors import BadInput
from data.index.editor import IndexEditor
from data.index.reader import EmbeddingIndex
from data.index.store import Block, BlockStore
from data.index.writer import IndexWriter
from tests.small_indexes import write

HEADER = {
    "format": "feature-index", "version": 2, "kind": "img", "dim": 2, "dtype": "fp32", "count": 0, "rows_per_block": 4,
    "max_norm": 0.0, "max_error": 0.0, "complete": True, "commits": 1, "model": "m", "data": "d", "created": {},
}  # fmt: skip


@pytest.fixture
def store(tmp_path):
    store = BlockStore(tmp_path / "index", tmp_path / "index.partial")
    store.header = dict(HEADER)
    store.open()
    yield store
    store.close(keep=False)


def append(store, ids):
    vectors = store.as_stored(ids, np.arange(2 * len(ids), dtype=np.float32).reshape(-1, 2))
    while ids:
        taken = store.append(ids, vectors)
        ids, vectors = ids[taken:], vectors[taken:]


def keys(folder):
    with lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin() as txn:
        return sorted(key.decode() for key in txn.cursor().iternext(values=False))


def test_blocks_are_got_as_they_were_put_and_only_commits_reach_the_disk(store):
    append(store, list("abcdef"))
    assert (store.num_changed, store.header["count"]) == (2, 6) and store.get(1).ids == ["e", "f"]
    with pytest.raises(BadInput, match="not a feature index"):
        store.committed_header()
    store.commit()
    assert store.num_changed == 0 and store.committed_header()["count"] == 6 and store.committed_row("f") == 5
    block = store.get(0)
    assert block.ids == list("abcd")
    block.ids[0] = "changed, and not put"
    assert store.get(0).ids == list("abcd") and store.committed_row("nobody") is None
    append(store, ["g"])
    assert store.get(1).ids == ["e", "f", "g"] and store.committed_row("g") is None
    np.testing.assert_array_equal(store.get(1).vectors, [[8, 9], [10, 11], [0, 1], [0, 0]])


def test_a_block_without_ids_and_ids_that_are_gone_leave_nothing(store):
    append(store, list("abcdef"))
    store.commit()
    store.put(1, Block([], store.get(1).vectors))
    store.header["count"] = 4
    store.publish(gone=["e", "f"])
    expected = ["crc/00000000", "crc/header", "header", "ids/00000000", "int8/00000000", *(f"row/{name}" for name in "abcd"), "vec/00000000"]
    assert keys(store.folder) == sorted(expected) and EmbeddingIndex(store.folder).ids() == list("abcd")


def test_the_map_grows_while_blocks_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr("data.index.store.MAP_SIZE", 1 << 16)
    vectors = np.random.default_rng(0).standard_normal((9000, 16)).astype(np.float32)
    index = write(tmp_path / "index", vectors, batch=2500)
    np.testing.assert_array_equal(index.vectors(np.arange(9000)), vectors)
    with IndexEditor(tmp_path / "index", "m0") as editor:
        editor.delete(index.ids()[:8000])
    assert sorted(EmbeddingIndex(tmp_path / "index").ids()) == index.ids()[8000:]


def stopped_writer(folder, ids=(), error=KeyboardInterrupt):
    """Begins, adds and is stopped; → the ids that it found there."""
    with pytest.raises(error), IndexWriter(folder, "img", 4, model="m", data="d") as writer:
        found = set(writer.done)
        writer.add(list(ids), np.ones((len(ids), 4)))
        raise error
    return found


def test_who_goes_on_and_is_stopped_before_a_commit_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("data.index.writer.COMMIT_SECONDS", 0)
    assert stopped_writer(tmp_path / "index", ["a", "b"]) == set()
    assert stopped_writer(tmp_path / "index") == {"a", "b"}
    assert stopped_writer(tmp_path / "index") == {"a", "b"}
    monkeypatch.setattr("data.index.writer.COMMIT_SECONDS", 60)
    assert stopped_writer(tmp_path / "index", ["c"]) == {"a", "b"}
    assert stopped_writer(tmp_path / "index") == {"a", "b"}


def test_a_last_commit_that_fails_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr("data.index.writer.COMMIT_SECONDS", 0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(BadInput, match="cannot write the database"):
            with IndexWriter(tmp_path / "index", "img", 4, model="m", data="d") as writer:
                writer.add(["a", "b"], np.ones((2, 4)))
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # as on a full disk
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "index").exists()
    assert stopped_writer(tmp_path / "index") == {"a", "b"}
