"""HNSW: true dot products, what it finds, what it does not find, and faiss beside torch in one process."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.ann import HnswIndex, HnswOptions, share_found
from data.errors import BadInput

ROOT = Path(__file__).resolve().parents[1]


def naive_search(queries, vectors, k):
    scores = (queries.astype(np.float64)[:, None] * vectors.astype(np.float64)).sum(-1).astype(np.float32)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, 1), rows


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
from data.ann import HnswIndex
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
