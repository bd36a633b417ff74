"""The feature index: layout, round trip, exact search against a naive twin, and what it refuses."""

import json
import os
import zlib

import lmdb
import numpy as np
import pytest
import torch

from data.errors import BadInput
from data.index.reader import EmbeddingIndex, data_fingerprint
from data.index.writer import IndexWriter
from data.search.base import SearchOptions
from data.search.exact import ExactSearch
from data.search.faiss import HnswSearch
from data.storage.lmdb_env import close_env


def write(folder, vectors, ids=None, dtype="fp32", batch=100, kind="img", model="m0"):
    ids = ids or [f"id_{i:05d}.npz" for i in range(len(vectors))]
    with IndexWriter(folder, kind, vectors.shape[1], model=model, data="d0", dtype=dtype) as writer:
        for start in range(0, len(vectors), batch):
            writer.add(ids[start : start + batch], vectors[start : start + batch])
    return EmbeddingIndex(folder)


def naive_search(queries, vectors, k):
    """The full matrix in fp64, rounded to fp32; equal scores in row order."""
    scores = (queries.astype(np.float64)[:, None] * vectors.astype(np.float64)).sum(-1).astype(np.float32)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, 1), rows


def assert_same(found, expected):
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[0].dtype == np.float32 and found[1].dtype == np.int64


def galleries(rng):
    base = rng.standard_normal((700, 24)).astype(np.float32)
    one = rng.standard_normal((1, 24)).astype(np.float32)
    close = one + rng.standard_normal((700, 24)).astype(np.float32) * 1e-7
    huge = np.round(base * 4)
    huge[:, 0], huge[:, 1] = 2**15, -(2**15)  # large terms that cancel: fp32 sums of them lose the small ones
    return {
        "random": base,
        "duplicates": base[rng.integers(0, 40, 700)],
        "all equal": np.repeat(one, 700, axis=0),
        "nearly equal": close,
        "cancelling": huge,
        "zeros": np.zeros((700, 24), np.float32),
    }


@pytest.mark.parametrize("name", list(galleries(np.random.default_rng(0))))
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_search_is_the_naive_search(tmp_path, name, dtype):
    rng = np.random.default_rng(1)
    vectors = galleries(rng)[name]
    queries = rng.standard_normal((9, 24)).astype(np.float32)
    if name == "cancelling":  # whole numbers: fp64 sums are exact in any order
        queries = np.round(queries * 4)
        queries[:, :2] = 1000
    queries[0] = vectors[5]
    index = write(tmp_path / "index", vectors, dtype=dtype)
    stored = vectors.astype(np.float16) if dtype == "fp16" else vectors
    for k in (1, 10, 699, 5000):
        assert_same(ExactSearch(index).search(queries, k), naive_search(queries, stored, k))


def test_search_over_many_blocks_and_query_batches(tmp_path, monkeypatch):
    """Blocks, spans and query batches all end in the middle of something; one query alone gives the same."""
    monkeypatch.setattr("data.index.writer.BLOCK_BYTES", 1)  # 256 rows, the least
    monkeypatch.setattr("data.search.exact.QUERIES_AT_ONCE", 7)
    monkeypatch.setattr("data.search.exact.FEW_QUERIES", 3)  # the last two are searched for by torch's own threads
    monkeypatch.setattr("data.search.exact.SCORES_AT_ONCE", 7 * 600)
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((300, 16)).astype(np.float32)[rng.integers(0, 300, 2000)]
    queries = rng.standard_normal((23, 16)).astype(np.float32)
    index = write(tmp_path / "index", vectors, batch=333)
    assert [start for start, _ in index.blocks()] == list(range(0, 2000, 256))
    expected = naive_search(queries, vectors, 40)
    assert_same(ExactSearch(index).search(queries, 40), expected)
    assert_same(ExactSearch(index).search(queries[:1], 40), (expected[0][:1], expected[1][:1]))
    assert ExactSearch(index).search(queries[:0], 3)[0].shape == (0, 3)


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


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "int8"])
def test_search_on_a_gpu_is_the_naive_search(tmp_path, dtype):
    rng = np.random.default_rng(5)
    for name, vectors in galleries(rng).items():
        index = write(tmp_path / name.replace(" ", "_"), vectors, dtype=dtype)
        queries = np.round(rng.standard_normal((9, 24)) * 8).astype(np.float32)
        stored = index.vectors(np.arange(700))
        for k in (1, 10, 5000):
            assert_same(ExactSearch(index, SearchOptions(device="cuda")).search(queries, k), naive_search(queries, stored, k))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no GPU"):
        ExactSearch(write(tmp_path / "index", np.ones((3, 4), np.float32)), SearchOptions(device="cuda"))


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("threads", [1, 3])
def test_both_passes_on_any_number_of_threads(tmp_path, monkeypatch, dtype, threads):
    """The 8-bit pass and the fp32 pass, each alone, leave nothing to fp64 on ordinary vectors, and are right."""
    monkeypatch.setattr("data.index.writer.BLOCK_BYTES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rng = np.random.default_rng(6)
    index = write(tmp_path / "index", rng.standard_normal((3000, 32)).astype(np.float32), dtype=dtype)
    queries = rng.standard_normal((11, 32)).astype(np.float32)  # more than a few, which are shared out
    expected = naive_search(queries, index.vectors(np.arange(3000)), 10)
    for name in ("_int8_pass", "_fp32_pass"):
        search = ExactSearch(index)
        search._passes = [getattr(search, name)]
        monkeypatch.setattr(search, "_search_fp64", None)
        assert_same(search.search(queries, 10), expected)
        assert_same(search.search(queries[:1], 10), (expected[0][:1], expected[1][:1]))


def test_scores_near_the_end_of_fp32(tmp_path):
    vectors = np.array([[1e19, 0], [1.8e19, 0], [-1e19, 0], [0, 1]] * 50, np.float32)
    queries = np.array([[1.8e19, 0], [0, 1], [-1e9, 0]], np.float32)
    assert_same(ExactSearch(write(tmp_path / "index", vectors)).search(queries, 7), naive_search(queries, vectors, 7))


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
    header = json.loads(stored.pop(b"header"))
    assert header.pop("created")["time"].startswith("20")
    scales = np.array([3, 7, 11], "<f4") / np.float32(127)
    codes = np.rint(vectors / scales[:, None]).astype("i1")
    error = np.linalg.norm(codes * scales[:, None] - vectors, axis=1).max()
    assert header == {
        "format": "feature-index", "version": 2, "kind": "txt", "dim": 4, "dtype": "fp16", "count": 3,
        "rows_per_block": 4096, "max_norm": pytest.approx(float(np.linalg.norm(vectors[2]))), "model": "m0",
        "data": "d0", "max_error": pytest.approx(error, rel=1e-5), "complete": True, "commits": 1,
    }  # fmt: skip
    sums = [zlib.crc32(stored[b"%s/00000000" % kind]) for kind in (b"ids", b"int8", b"vec")]
    assert stored == {
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
    assert (index.count, index.row_of("id_00001.npz")) == (3, 1)
    for use in (lambda: ExactSearch(index).search(np.ones((1, 4)), 1), index.ids, lambda: index.vectors([0])):
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
    index = write(tmp_path / "index", np.ones((3, 4), np.float32))
    with pytest.raises(BadInput, match=r"\(1, 5\).*expected \[Q,4\]"):
        ExactSearch(index).search(np.ones((1, 5)), 1)
    with pytest.raises(BadInput, match="expected"):
        ExactSearch(index).search(np.ones(4), 1)
    with pytest.raises(BadInput, match=r"\(2, 5\) for 2 ids, expected \(2, 4\)"):
        with IndexWriter(tmp_path / "other", "img", 4, model="m", data="d") as writer:
            writer.add(["a", "b"], np.ones((2, 5)))


def test_refuses_bad_queries(tmp_path):
    index = write(tmp_path / "index", np.ones((3, 4), np.float32))
    with pytest.raises(BadInput, match="NaN"):
        ExactSearch(index).search(np.full((1, 4), np.nan), 1)
    with pytest.raises(BadInput, match="k is 0"):
        ExactSearch(index).search(np.ones((1, 4)), 0)


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


def test_norms_of_tiny_vectors_are_no_zero(tmp_path):
    vectors = np.random.default_rng(0).integers(-127, 128, (3000, 24)).astype(np.float32) * np.float32(2.0**-100)
    index = write(tmp_path / "index", vectors)
    assert index.header["max_norm"] == pytest.approx(np.linalg.norm(vectors.astype(np.float64), axis=1).max())
    queries = np.random.default_rng(1).standard_normal((20, 24)).astype(np.float32) * np.float32(1e8)
    assert_same(ExactSearch(index).search(queries, 500), naive_search(queries, vectors, 500))


@pytest.mark.parametrize("kind", ["int8", "vec"])
def test_a_damaged_page_is_one_line_and_no_wrong_answer(tmp_path, kind):
    vectors = np.random.default_rng(2).standard_normal((20000, 64)).astype(np.float32)
    write(tmp_path / "index", vectors)
    key, file = f"{kind}/00000002".encode(), tmp_path / "index/data.mdb"
    value = bytes(EmbeddingIndex(tmp_path / "index")._value(key))
    close_env(tmp_path / "index")
    content = bytearray(file.read_bytes())
    place = content.index(value)
    content[place + 8192 : place + 12288] = bytes(4096)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy/data.mdb").write_bytes(content)
    index = EmbeddingIndex(tmp_path / "copy")
    first = 4096 * 2 + (8192 // 256 + 4 if kind == "vec" else 0)  # a row whose vector is zero now
    with pytest.raises(BadInput, match=f"copy: damaged index, {kind}/00000002"):
        ExactSearch(index).search(vectors[first : first + 1], 10)
    with pytest.raises(BadInput, match=f"damaged index, {kind}/00000002 is not what was written"):
        HnswSearch(index).prepare()
