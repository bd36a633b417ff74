"""HNSW and IVFPQ: true dot products, what they find and do not find, files beside an index, faiss beside torch in one process."""

import io
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data import progress
from data.errors import BadInput
from data.index.editor import IndexEditor
from data.search import BACKENDS, faiss, open_backend
from data.search.base import FeatureIndexBackend, SearchOptions
from data.search.exact import ExactSearch
from data.search.faiss import HnswIndex, HnswOptions, main_axes
from data.search.topk import share_found
from scripts.benchmarking.galleries import Synthetic
from tests.flipped_bits import flips
from tests.small_indexes import galleries, naive_search, write

ROOT = Path(__file__).resolve().parents[3]
LOCAL = [name for name, backend in BACKENDS.items() if issubclass(backend, FeatureIndexBackend)]


def prepared(backend, index, target_recall=None, queries=None):
    """An approximate backend, built and tuned."""
    search = open_backend(index, SearchOptions(backend, target_recall))
    search.prepare(queries)
    return search


@pytest.fixture(scope="module")
def vectors():
    """Clusters, and lengths that differ: the largest dot product is often not the nearest vector."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 24))
    clustered = centres[rng.integers(0, 40, 1500)] + 0.5 * rng.standard_normal((1500, 24))
    return (clustered * rng.lognormal(0, 0.4, (1500, 1))).astype(np.float32)


def test_it_finds_what_the_exact_search_finds(vectors):
    queries = np.random.default_rng(1).standard_normal((50, 24))
    scores, rows = HnswIndex(vectors).search(queries, 10)
    expected, exact = naive_search(queries.astype(np.float32), vectors, 10)
    assert scores.dtype == np.float32 and rows.dtype == np.int64
    same = (rows == exact).all(axis=1)
    assert same.mean() > 0.9
    np.testing.assert_array_equal(scores[same], expected[same])  # dot products, not distances
    share = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, exact)])
    assert share_found(queries.astype(np.float32), vectors, scores) == pytest.approx(share)


def test_a_small_graph_finds_less_and_says_so(vectors):
    queries = np.random.default_rng(1).standard_normal((50, 24)).astype(np.float32)
    scores, rows = HnswIndex(vectors, HnswOptions(m=2, ef_construction=2, ef_search=1)).search(queries, 10)
    expected, exact = naive_search(queries, vectors, 10)
    share = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows, exact)])
    assert share_found(queries, vectors, scores) == pytest.approx(share) and share < 0.9
    assert (scores <= expected).all()


def test_the_same_vectors_give_the_same_results(vectors):
    queries = vectors[::50]
    weak = HnswOptions(m=2, ef_construction=4, ef_search=4)
    first, again = (HnswIndex(vectors, weak).search(queries, 10) for _ in range(2))
    np.testing.assert_array_equal(first[1], again[1])
    np.testing.assert_array_equal(first[0], again[0])


def test_what_is_not_found_is_absent_and_not_the_last_row():
    """Copies link to copies only, so a walk does not reach all: faiss fills up with -1."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((40, 16)).astype(np.float32)[rng.integers(0, 40, 2000)]
    scores, rows = HnswIndex(vectors, HnswOptions(m=4)).search(vectors[:20], 2000)
    absent = rows == -1
    assert absent.any() and (rows >= -1).all() and (rows < 2000).all()
    assert np.isneginf(scores[absent]).all() and np.isfinite(scores[~absent]).all()
    for own_scores, own_rows, missing in zip(scores, rows, absent):
        found = own_rows[~missing]
        assert len(set(found)) == len(found) and not missing[: len(found)].any()  # absent ones stand last
        order = np.lexsort((found, -own_scores[: len(found)]))
        assert (order == np.arange(len(found))).all()  # best first, equal scores in row order


def test_equals_count_as_found_whichever_they_are():
    vectors = np.ones((500, 8), np.float32)
    scores, rows = HnswIndex(vectors).search(vectors[:5], 10)
    assert share_found(vectors[:5], vectors, scores) == 1 and (np.diff(rows) > 0).all()


def test_k_beyond_the_index_gives_all():
    vectors = np.eye(3, dtype=np.float32)
    scores, rows = HnswIndex(vectors).search(vectors[1:2] * 2, 10)
    assert scores.tolist() == [[2, 0, 0]] and rows.tolist() == [[1, 0, 2]]


def test_bad_input_is_refused():
    index = HnswIndex(np.eye(3))
    for queries, k, words in (
        (np.zeros((1, 2)), 1, r"\(1, 2\), expected \[Q,3\]"),
        (np.zeros((1, 3)), 0, "k is 0"),
        (np.full((1, 3), np.nan), 1, "NaN"),
    ):
        with pytest.raises(BadInput, match=words):
            index.search(queries, k)
    with pytest.raises(BadInput, match="at least one"):
        HnswIndex(np.zeros((0, 3)))
    with pytest.raises(BadInput, match=r"hnsw\.m must be at least 2, found 1"):
        HnswOptions(m=1)


@pytest.mark.parametrize("imports", ["import torch, faiss", "import faiss, torch"])
def test_torch_and_faiss_work_in_one_process_on_several_threads(imports):
    code = f"""
{imports}
import numpy as np
from data.search.faiss import HnswIndex
torch.set_num_threads(2)
faiss.omp_set_num_threads(2)
vectors = np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32)
for _ in range(3):
    product = torch.from_numpy(vectors) @ torch.from_numpy(vectors).T
    scores, rows = HnswIndex(vectors).search(vectors, 5)
    expected = torch.topk(product, 5).values.numpy()
    assert np.isclose(scores, expected, atol=1e-4).mean() > 0.99
assert torch.get_num_threads() == faiss.omp_get_max_threads() == 2
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_faiss_is_imported_only_for_hnsw():
    code = "import sys, eval_itm; assert 'torch' in sys.modules and 'faiss' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


# ---- files beside an index ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["hnsw", "ivfpq"])
def test_stored_search_reaches_its_target_and_is_used_again(tmp_path, vectors, backend, capsys):
    index = write(tmp_path / "index", vectors)
    queries = np.random.default_rng(1).standard_normal((50, 24)).astype(np.float32)
    first = prepared(backend, index, 0.95, queries)
    scores, rows = first.search(queries, 10)
    expected, _ = naive_search(queries, vectors, 10)
    share = (scores >= expected[:, -1:]).mean()
    assert first.about["recall"] == pytest.approx(share) and share >= 0.95
    for own_scores, own_rows, query in zip(scores, rows, queries):  # true dot products in the exact search's order
        true = (vectors[own_rows].astype(np.float64) @ query).astype(np.float32)
        np.testing.assert_allclose(own_scores, true, rtol=1e-6)
        assert (np.lexsort((own_rows, -own_scores)) == np.arange(10)).all()
    before = (tmp_path / "index" / f"{backend}.faiss").stat().st_mtime_ns
    again = open_backend(tmp_path / "index", SearchOptions(backend))
    np.testing.assert_array_equal(again.search(queries, 10)[1], rows)
    better = prepared(backend, index, 1.0, queries)  # tuned anew, not built anew
    assert better.about["effort"] > first.about["effort"] and better.about["recall"] == 1
    assert (tmp_path / "index" / f"{backend}.faiss").stat().st_mtime_ns == before
    assert capsys.readouterr().err == ""


def test_tuning_shows_how_far_it_is_and_does_not_depend_on_it(tmp_path, vectors, monkeypatch):
    log, whole = io.StringIO(), prepared("hnsw", write(tmp_path / "whole", vectors), 0.999).about
    for name, least in (("DELAY", 0), ("BETWEEN_LINES", 0), ("BETWEEN_LOOKS", {True: 0, False: 0})):
        monkeypatch.setattr(progress, name, least)
    monkeypatch.setattr("sys.stderr", log)
    monkeypatch.setattr(faiss, "SEARCHED_AT_ONCE", 100)
    in_parts = prepared("hnsw", write(tmp_path / "in_parts", vectors), 0.999).about
    assert all(in_parts[name] == whole[name] for name in ("effort", "recall", "exact", "tuned_with"))
    assert re.search(r"^tuning hnsw: \d+% of \d+ queries \[.* queries/s, effort \d+\]$", log.getvalue(), re.MULTILINE), log.getvalue()
    assert re.search(r"^tuning hnsw: (9\d|100)%", log.getvalue(), re.MULTILINE), "the total is what it comes to"


@pytest.mark.parametrize("backend", LOCAL)
@pytest.mark.parametrize("name", list(galleries(np.random.default_rng(0))))
def test_every_backend_on_every_gallery(tmp_path, name, backend):
    """Exact is the naive search; the others give true scores, never better than it, and all rows when all are asked for."""
    vectors = galleries(np.random.default_rng(2))[name][:300]
    queries = np.round(np.random.default_rng(3).standard_normal((6, 24)) * 8).astype(np.float32)
    search = open_backend(write(tmp_path / "index", vectors), SearchOptions(backend))
    for k in (5, 300, 1000):
        scores, rows = search.search(queries, k)
        expected, exact = naive_search(queries, vectors, k)
        if backend == "exact" or k >= 300:
            np.testing.assert_array_equal(rows, exact)
            np.testing.assert_array_equal(scores, expected)
        true = (queries.astype(np.float64)[:, None] * vectors[rows].astype(np.float64)).sum(-1).astype(np.float32)
        np.testing.assert_array_equal(scores, true)
        assert (scores <= expected).all()
        assert all(len(set(own)) == len(own) for own in rows.tolist())


@pytest.mark.parametrize("backend", ["hnsw", "ivfpq"])
def test_stale_or_damaged_files_are_built_again(tmp_path, vectors, backend, capsys):
    folder = tmp_path / "index"
    prepared(backend, write(folder, vectors[:500]))
    kept = {path.name: path.read_bytes() for path in folder.glob(f"{backend}.*")}
    with IndexEditor(folder, "m0") as editor:
        editor.delete(["id_00000.npz"])
    assert not list(folder.glob(f"{backend}.*"))
    for name, content in kept.items():  # as copied back from elsewhere
        (folder / name).write_bytes(content)
    rows = prepared(backend, folder).search(vectors[499:500] * 9, 499)[1]
    assert sorted(rows[0]) == list(range(499)) and f"{backend}.faiss: stale, built again" in capsys.readouterr().err
    with open(folder / f"{backend}.faiss", "r+b") as file:
        file.write(b"no faiss file")
    prepared(backend, folder)
    assert f"{backend}.faiss: damaged, built again" in capsys.readouterr().err
    (folder / f"{backend}.json").write_text("{")
    prepared(backend, folder)
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize("backend", ["hnsw", "ivfpq"])
def test_a_flipped_bit_of_the_files_is_noticed_or_harmless(tmp_path, vectors, backend, capsys):
    index = write(tmp_path / "index", vectors[:300])
    expected = prepared(backend, index).search(vectors[:20], 10)
    kept = {path: path.read_bytes() for path in index.folder.glob(f"{backend}.*")}
    for seed, path in enumerate([*kept] * 3):
        for place in flips(path, 1, seed):
            for found, before in zip(prepared(backend, index).search(vectors[:20], 10), expected, strict=True):
                np.testing.assert_array_equal(found, before, err_msg=place)
            told = capsys.readouterr().err
            assert path.suffix == ".json" or f"{backend}.faiss: damaged, built again" in told, place
        for each, content in kept.items():
            each.write_bytes(content)


def recall_of(search, index, queries):
    return float((search.search(queries, 10)[0] >= ExactSearch(index).search(queries, 10)[0][:, -1:]).mean())


def test_recall_is_that_of_queries_as_far_away_as_captions(tmp_path):
    shape, rng = Synthetic(96), np.random.default_rng(0)
    index = write(tmp_path / "index", shape.vectors(rng, 6000))
    queries = shape.queries(rng, index.vectors(np.arange(200)))
    for backend in ("hnsw", "ivfpq"):
        search = prepared(backend, index)
        assert search.about["recall"] >= 0.99 and recall_of(search, index, queries) > 0.98


@pytest.mark.parametrize("scale", [1, 1e-20, 1e17])
def test_vectors_around_a_far_mean(tmp_path, scale):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((4000, 32)) * 0.05
    vectors[:, 0] += 10  # the cone of a model that is poorly trained
    index = write(tmp_path / "index", (vectors * scale).astype(np.float32))
    assert recall_of(prepared("hnsw", index), index, rng.standard_normal((100, 32)).astype(np.float32)) > 0.95


def test_where_no_effort_reaches_the_target_the_exact_search_answers(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("data.search.faiss.MOST_EFFORT", 64)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((20, 64))[rng.integers(0, 20, 3000)] * 3 + rng.standard_normal((3000, 64)) * 0.005
    index = write(tmp_path / "index", vectors.astype(np.float32))
    search, queries = prepared("hnsw", index, 0.999), rng.standard_normal((20, 64)).astype(np.float32)
    assert "not 99.90%: the exact search answers" in capsys.readouterr().err and search.about["recall"] < 0.999
    for found, exact in zip(search.search(queries, 10), ExactSearch(index).search(queries, 10), strict=True):
        np.testing.assert_array_equal(found, exact)


@pytest.mark.parametrize("backend", ["hnsw", "ivfpq"])
def test_a_full_disk_is_one_line_and_leaves_no_file(tmp_path, vectors, backend):
    index = write(tmp_path / "index", vectors[:500])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(BadInput, match=rf"{backend}.faiss: cannot be written \(.*File too large"):
            prepared(backend, index)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "index").glob(f"*{backend}*"))


def test_main_axes_hold_nearly_all_and_are_few(vectors):
    rng = np.random.default_rng(2)
    flat = (rng.standard_normal((2000, 20)) @ rng.standard_normal((20, 96))).astype(np.float32)
    axes = main_axes(flat)
    assert axes.shape[1] <= 32 < 80 <= main_axes(rng.standard_normal((2000, 96)).astype(np.float32)).shape[1]
    np.testing.assert_allclose(axes.T @ axes, np.eye(axes.shape[1]), atol=1e-5)
    assert ((flat @ axes) ** 2).sum() > 0.95 * (flat**2).sum()
    for odd in (np.zeros((5, 8)), np.ones((5, 8)), rng.standard_normal((3, 40))):
        axes = main_axes(odd.astype(np.float32))
        np.testing.assert_allclose(axes.T @ axes, np.eye(axes.shape[1]), atol=1e-5)


def test_small_and_empty_indexes(tmp_path):
    for n in (1, 2, 40):
        vectors = np.random.default_rng(n).standard_normal((n, 8)).astype(np.float32)
        for backend in ("hnsw", "ivfpq"):
            index = write(tmp_path / f"{n}", vectors)
            assert sorted(prepared(backend, index).search(vectors[:1], n)[1][0]) == list(range(n))
    empty = write(tmp_path / "none", np.zeros((0, 8), np.float32))
    for backend in LOCAL:
        with pytest.raises(BadInput, match="empty"):
            open_backend(empty, SearchOptions(backend)).search(np.ones((1, 8)), 1)
    for name, target, words in (("annoy", None, "backend 'annoy'"), ("hnsw", 1.5, "target_recall is 1.5")):
        with pytest.raises(BadInput, match=words):
            open_backend(index, SearchOptions(name, target))
