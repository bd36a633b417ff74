"""The registry: a backend that is added to it is opened, asked and named like the others."""

import numpy as np
import pytest

from data.errors import BadInput
from data.search import BACKENDS, open_backend
from data.search.base import FeatureIndexBackend, SearchBackend, SearchOptions
from data.search.topk import checked_queries, exact_scores, in_order
from tests.small_indexes import assert_same, naive_search, write


class EveryRow(FeatureIndexBackend):
    """As the documents say how to add one: names candidates, here all rows, and lets topk score them."""

    def search(self, queries, k):
        queries = checked_queries(queries, k, self.dim, self.count, self.place)
        rows = np.tile(np.arange(self.count), (len(queries), 1))
        return tuple(each[:, :k] for each in in_order(exact_scores(queries, self.index.vectors, rows), rows))


def test_a_new_backend_is_a_class_and_a_line(tmp_path, monkeypatch):
    vectors = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    index = write(tmp_path / "index", vectors)
    monkeypatch.setitem(BACKENDS, "every-row", EveryRow)
    for where in (tmp_path / "index", index):
        backend = open_backend(where, SearchOptions("every-row"))
        backend.prepare()
        assert_same(backend.search(vectors[:3], 7), naive_search(vectors[:3], vectors, 7))
        assert (backend.kind, backend.dim, len(backend), backend.place) == ("img", 8, 50, str(tmp_path / "index"))
        assert backend.ids([4, 2]) == index.ids([4, 2])
        with pytest.raises(BadInput, match="made by model m0"):
            backend.check_model("m1")


def test_every_backend_has_the_one_interface():
    assert all(issubclass(backend, SearchBackend) and not backend.__abstractmethods__ for backend in BACKENDS.values())


def test_unknown_names_and_contradictions_are_refused(tmp_path):
    with pytest.raises(BadInput, match=r"search backend 'annoy', expected one of exact, hnsw, ivfpq, milvus"):
        open_backend(tmp_path, SearchOptions("annoy"))
    for options in ({"backend": "milvus"}, {"uri": "m.db"}):
        with pytest.raises(BadInput, match="--backend milvus and --uri go together"):
            SearchOptions(**options)
    for target in (0, 1.5):
        with pytest.raises(BadInput, match=f"target_recall is {target}"):
            SearchOptions("hnsw", target)
