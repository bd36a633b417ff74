"""The exact search against a naive twin, on vectors that are hard for it, on any number of threads and on a GPU; a damaged index."""

import numpy as np
import pytest
import torch

from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.search.base import SearchOptions
from data.search.exact import ExactSearch, OpenRows
from data.search.faiss import HnswSearch
from data.storage.lmdb_env import close_env
from tests.small_indexes import assert_same, galleries, naive_search, write


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


def test_refuses_bad_queries(tmp_path):
    index = write(tmp_path / "index", np.ones((3, 4), np.float32))
    with pytest.raises(BadInput, match=r"\(1, 5\).*expected \[Q,4\]"):
        ExactSearch(index).search(np.ones((1, 5)), 1)
    with pytest.raises(BadInput, match="expected"):
        ExactSearch(index).search(np.ones(4), 1)
    with pytest.raises(BadInput, match="NaN"):
        ExactSearch(index).search(np.full((1, 4), np.nan), 1)
    with pytest.raises(BadInput, match="k is 0"):
        ExactSearch(index).search(np.ones((1, 4)), 0)


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
    file = tmp_path / "index/data.mdb"
    value = bytes(EmbeddingIndex(tmp_path / "index")._value(kind.encode(), 2))
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


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("k", [1, 10])
def test_open_rows_are_those_within_the_window_of_the_kth_best(k, shards):
    rng = np.random.default_rng(7)
    scores = torch.from_numpy(np.round(rng.standard_normal((900, 5)) * 20).astype(np.float32))  # many equal ones
    window = torch.tensor([0.0, 1.0, 5.0, np.inf, 2.0])
    parts = []
    for own in np.array_split(np.arange(900), shards):
        rows = OpenRows(window, k, len(own))
        for first in range(own[0], own[-1] + 1, 70):
            rows.add(first, scores[first : min(first + 70, own[-1] + 1)])
        rows.close()
        parts.append(rows)
    found = OpenRows.joined(parts)
    assert found.settled().tolist() == [True, True, True, False, True]
    for query in (0, 1, 2, 4):
        own = scores[:, query]
        bar = own.sort(descending=True).values[k - 1] - window[query]
        kept = set(found.row[found.query == query].tolist())
        best = set(torch.nonzero(own >= own.sort(descending=True).values[k - 1]).flatten().tolist())
        assert best <= kept and len(kept) == int((found.query == query).sum())
        assert kept >= set(torch.nonzero(own >= bar).flatten().tolist())
        if k * 2 * 32 > 900 // shards:  # bounded by rows, not by groups of them: no row too many
            assert kept == set(torch.nonzero(own >= bar).flatten().tolist())
