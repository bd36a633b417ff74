"""The k best of many scores against a full stable sort, in one piece and block by block."""

import numpy as np
import pytest
import torch

from data.search.topk import BestRows, best_candidates, best_columns, best_rows, scores_in_parts


def naive_best(scores, k):
    columns = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, columns, 1), columns


def tables():
    rng = np.random.default_rng(0)
    distinct = rng.standard_normal((20, 300)).astype(np.float32)
    infinite = distinct.copy()
    infinite[::2, ::3], infinite[1::2, 5:9] = -np.inf, np.inf
    return {
        "distinct": distinct,
        "few values": np.round(distinct),
        "some queries with equals": np.where(np.arange(20)[:, None] % 3 == 0, np.round(distinct), distinct),
        "all equal": np.zeros((20, 300), np.float32),
        "infinite": infinite,
    }


@pytest.mark.parametrize("name", list(tables()))
@pytest.mark.parametrize("k", [1, 10, 299, 300])
def test_best_columns_are_those_of_a_stable_sort(name, k):
    scores = tables()[name]
    expected = naive_best(scores, k)
    for found, wanted in zip(best_columns(torch.from_numpy(scores), k), expected, strict=True):
        np.testing.assert_array_equal(found.numpy(), wanted)
    best = BestRows(len(scores), k)
    for start in (0, 100, 101, 250):
        stop = {0: 100, 100: 101, 101: 250, 250: 300}[start]
        best.add(start, torch.from_numpy(scores[:, start:stop]))
    np.testing.assert_array_equal(best.scores.numpy(), expected[0])
    np.testing.assert_array_equal(best.rows.numpy(), expected[1])


def test_best_rows_of_a_gallery_in_memory(monkeypatch):
    monkeypatch.setattr("data.search.topk.SCORES_AT_ONCE", 7 * 50)
    rng = np.random.default_rng(1)
    gallery = np.round(rng.standard_normal((50, 8)) * 2).astype(np.float32)  # whole numbers: sums are exact, and many equal
    queries = np.round(rng.standard_normal((23, 8)) * 2).astype(np.float32)
    assert [part.start for part, _ in scores_in_parts(torch.from_numpy(queries), torch.from_numpy(gallery))] == [0, 7, 14, 21]
    expected = naive_best(queries @ gallery.T, 6)
    for longest in (None, 350):
        for found, wanted in zip(best_rows(torch.from_numpy(queries), torch.from_numpy(gallery), 6, longest), expected, strict=True):
            np.testing.assert_array_equal(found.numpy(), wanted)


def test_best_candidates_of_queries_with_different_numbers(monkeypatch):
    monkeypatch.setattr("data.search.topk.VALUES_AT_ONCE", 8 * 5)
    rng = np.random.default_rng(2)
    gallery, queries = np.round(rng.standard_normal((40, 8)) * 2).astype(np.float32), np.round(rng.standard_normal((3, 8)) * 2)
    candidates = [rng.permutation(40)[:n] for n in (4, 40, 11)]
    query, rows = np.repeat([0, 1, 2], [4, 40, 11]), np.concatenate(candidates)

    def vectors_of(rows):
        assert (np.diff(rows) >= 0).all()
        return gallery[rows]

    scores, found = best_candidates(queries.astype(np.float32), vectors_of, query, rows, 4)
    for n, own in enumerate(candidates):
        own = np.sort(own)
        wanted = own[np.argsort(-(gallery[own] @ queries[n]), kind="stable")[:4]]
        assert found[n].tolist() == wanted.tolist() and scores[n].tolist() == (gallery[wanted] @ queries[n]).tolist()
