"""Small feature indexes: written in one call, searched naively, and vectors that are hard to search."""

import numpy as np

from data.index.reader import EmbeddingIndex
from data.index.writer import IndexWriter


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
