"""The feature index: layout, round trip, and what it refuses."""

import json
import os
import zlib

import lmdb
import numpy as np
import pytest

from data.errors import BadInput
from data.index.reader import EmbeddingIndex, data_fingerprint
from data.index.writer import IndexWriter
from data.search.exact import ExactSearch
from data.storage.lmdb_env import close_env
from tests.small_indexes import write


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "int8"])
def test_a_few_vectors_are_those_of_many(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr("data.index.writer.BLOCK_BYTES", 1000)
    vectors = np.random.default_rng(4).standard_normal((900, 8)).astype(np.float32)
    index = write(tmp_path / "index", vectors, dtype=dtype)
    stored = np.concatenate([block for _, block in index.blocks()]).astype(np.float32)
    assert index.num_blocks == 4
    for rows in ([899, 0, 899, 400], [[7], [750]], [3], np.arange(900)[::-1]):
        np.testing.assert_array_equal(index.vectors(rows), stored[np.array(rows)])
        assert index.vectors(rows).dtype == np.float32


def test_rows_ids_and_vectors(tmp_path, monkeypatch):
    monkeypatch.setattr("data.index.writer.BLOCK_BYTES", 1)
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((900, 8)).astype(np.float32)
    ids = [f"bild_{'ü' * (i % 5)}{i}.npz" for i in range(900)]
    index = write(tmp_path / "index", vectors, ids)
    assert len(index) == index.count == 900 and (index.kind, index.dim, index.dtype) == ("img", 8, "fp32")
    assert index.ids() == ids
    rows = np.array([899, 0, 255, 256, 0, 511, 3])
    assert index.ids(rows) == [ids[r] for r in rows]
    np.testing.assert_array_equal(index.vectors(rows), vectors[rows])
    np.testing.assert_array_equal(index.vectors(rows.reshape(7, 1)), vectors[rows][:, None])
    assert index.vectors([]).shape == (0, 8) and index.ids([]) == []
    assert all(index.row_of(ids[r]) == r for r in (0, 256, 899))
    assert ids[0] in index and "no" not in index and "x" * 600 not in index
    with pytest.raises(BadInput, match=r"no id 'nobody'"):
        index.row_of("nobody")
    assert "\ud800" not in index  # half of a surrogate pair, which no id can hold
    for rows in ([-1], [900]):
        with pytest.raises(IndexError):
            index.ids(rows)
        with pytest.raises(IndexError):
            index.vectors(rows)


def test_blocks_are_views_of_the_memory_map(tmp_path):
    vectors = np.random.default_rng(4).standard_normal((5000, 8)).astype(np.float32)
    index = write(tmp_path / "index", vectors)
    blocks = list(index.blocks())
    assert len(blocks) == 2
    for start, block in blocks:
        np.testing.assert_array_equal(block, vectors[start : start + len(block)])
        assert not block.flags.owndata and not block.flags.writeable
    again = next(index.blocks())[1]
    assert again.ctypes.data == blocks[0][1].ctypes.data


def test_layout_is_as_documented(tmp_path):
    """Read with nothing but lmdb: what other programs, and later versions, rely on."""
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    write(tmp_path / "index", vectors, ["a", "bé", "ccc"], dtype="fp16", kind="txt")
    close_env(tmp_path / "index")
    with lmdb.open(str(tmp_path / "index"), readonly=True, lock=False) as env, env.begin() as txn:
        stored = dict(txn.cursor())
    header_sum = zlib.crc32(stored[b"header"]).to_bytes(4, "little")
    header = json.loads(stored.pop(b"header"))
    assert header.pop("created")["time"].startswith("20")
    scales = np.array([3, 7, 11], "<f4") / np.float32(127)
    codes = np.rint(vectors / scales[:, None]).astype("i1")
    error = np.linalg.norm(codes * scales[:, None] - vectors, axis=1).max()
    assert header == {
        "format": "feature-index", "version": 2, "kind": "txt", "dim": 4, "dtype": "fp16", "count": 3,
        "rows_per_block": 4096, "max_norm": pytest.approx(float(np.linalg.norm(vectors[2]))), "model": "m0",
        "data": "d0", "max_error": pytest.approx(error, rel=1e-5), "complete": True, "commits": 1, "checksums": True,
    }  # fmt: skip
    sums = [zlib.crc32(stored[b"%s/00000000" % kind]) for kind in (b"ids", b"int8", b"vec")]
    assert stored == {
        b"crc/header": (1).to_bytes(8, "little") + header_sum,
        b"crc/00000000": np.array(sums, "<u4").tobytes(),
        b"vec/00000000": vectors.astype("<f2").tobytes(),
        b"int8/00000000": scales.tobytes() + codes.tobytes(),
        b"ids/00000000": np.array([0, 1, 4, 7], "<u4").tobytes() + "abéccc".encode(),
        b"row/a": (0).to_bytes(8, "little"),
        "row/bé".encode(): (1).to_bytes(8, "little"),
        b"row/ccc": (2).to_bytes(8, "little"),
    }


def test_opening_reads_the_header_only(tmp_path):
    """Vectors and ids are taken out behind its back: opening does not notice, using them does."""
    write(tmp_path / "index", np.ones((3, 4), np.float32))
    close_env(tmp_path / "index")
    with lmdb.open(str(tmp_path / "index")) as env, env.begin(write=True) as txn:
        assert txn.delete(b"vec/00000000") and txn.delete(b"ids/00000000")
    index = EmbeddingIndex(tmp_path / "index")
    assert index.count == 3
    for use in (lambda: index.row_of("id_00001.npz"), lambda: ExactSearch(index).search(np.ones((1, 4)), 1), index.ids, lambda: index.vectors([0])):
        with pytest.raises(BadInput, match="damaged index, no key"):
            use()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_refuses_vectors_that_are_not_finite(tmp_path, value):
    vectors = np.zeros((5, 4), np.float32)
    vectors[3, 1:3] = value
    with pytest.raises(BadInput, match=r"index: the vector of 'id_00003.npz'"):
        write(tmp_path / "index", vectors)
    assert not (tmp_path / "index").exists()


def test_refuses_what_fp16_cannot_hold(tmp_path):
    vectors = np.full((2, 4), 7e4, np.float32)
    with pytest.raises(BadInput, match=r"too large.*fp16"):
        write(tmp_path / "index", vectors, dtype="fp16")
    assert write(tmp_path / "index", vectors).count == 2


@pytest.mark.parametrize("ids", [["a", "b", "a"], ["a", "b", ""], ["a", "b", "x" * 508]])
def test_refuses_bad_ids(tmp_path, ids):
    with pytest.raises(BadInput, match="id "):
        write(tmp_path / "index", np.ones((3, 4), np.float32), ids)
    with pytest.raises(BadInput, match="id "):
        write(tmp_path / "index", np.ones((3, 4), np.float32), ids, batch=1)  # the twin came in an earlier batch
    assert not (tmp_path / "index").exists()


def test_refuses_wrong_width(tmp_path):
    with pytest.raises(BadInput, match=r"\(2, 5\) for 2 ids, expected \(2, 4\)"):
        with IndexWriter(tmp_path / "other", "img", 4, model="m", data="d") as writer:
            writer.add(["a", "b"], np.ones((2, 5)))


def test_refuses_another_models_query(tmp_path):
    index = write(tmp_path / "index", np.ones((3, 4), np.float32))
    index.check_model("m0")
    with pytest.raises(BadInput, match=r"index: .*made by model m0.*m1"):
        index.check_model("m1")
    with pytest.raises(BadInput, match="no fingerprint"):
        write(tmp_path / "other", np.ones((3, 4), np.float32), model=None)


def test_empty_index(tmp_path):
    index = write(tmp_path / "index", np.ones((0, 4), np.float32))
    assert len(index) == 0 and index.ids() == [] and list(index.blocks()) == []
    with pytest.raises(BadInput, match="empty"):
        ExactSearch(index).search(np.ones((1, 4)), 1)


def test_missing_truncated_and_foreign(tmp_path):
    with pytest.raises(BadInput, match="nowhere"):
        EmbeddingIndex(tmp_path / "nowhere")
    write(tmp_path / "index", np.ones((3000, 64), np.float32))
    os.truncate(tmp_path / "index" / "data.mdb", 100_000)
    with pytest.raises(BadInput, match="truncated"):
        EmbeddingIndex(tmp_path / "index")
    with lmdb.open(str(tmp_path / "db")) as env, env.begin(write=True) as txn:
        txn.put(b"__keys__", b"[]")
    with pytest.raises(BadInput, match="not a feature index"):
        EmbeddingIndex(tmp_path / "db")
    with pytest.raises(BadInput, match="not overwritten"):
        write(tmp_path / "db", np.ones((3, 4), np.float32))
    assert (tmp_path / "db" / "data.mdb").exists()


def test_newer_format_is_refused(tmp_path):
    write(tmp_path / "index", np.ones((3, 4), np.float32))
    close_env(tmp_path / "index")
    with lmdb.open(str(tmp_path / "index")) as env, env.begin(write=True) as txn:
        header = json.loads(txn.get(b"header"))
        txn.put(b"header", json.dumps(header | {"version": 3}).encode())
    with pytest.raises(BadInput, match="format 3"):
        EmbeddingIndex(tmp_path / "index")


def test_replacing_is_all_or_nothing(tmp_path):
    old = write(tmp_path / "index", np.ones((3, 4), np.float32))
    with pytest.raises(RuntimeError):
        with IndexWriter(tmp_path / "index", "img", 4, model="m1", data="d") as writer:
            writer.add(["x"], np.zeros((1, 4)))
            raise RuntimeError("killed")
    assert EmbeddingIndex(tmp_path / "index").count == 3
    new = write(tmp_path / "index", np.full((5, 4), 2, np.float32), model="m1")
    assert (new.count, new.header["model"]) == (5, "m1")
    np.testing.assert_array_equal(old.vectors([0, 2]), np.ones((2, 4)))  # an open index goes on as it was
    assert ExactSearch(new).search(np.ones((1, 4)), 1)[0].item() == 8.0
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_data_fingerprint():
    inputs = [("db", ["a", "b"]), ("db", ["ab"]), ("db", ["b", "a"]), ("db2", ["a", "b"])]
    assert len({data_fingerprint(*i) for i in inputs}) == 4
    assert data_fingerprint("db", iter("ab")) == data_fingerprint("db", ["a", "b"])
