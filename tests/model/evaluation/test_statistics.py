"""Intervals and paired tests: against naive twins, by hand, and by how often they are right on made data."""

import itertools
import math

import numpy as np
import pytest

from model.evaluation.outcomes import QueryRanks
from model.evaluation.recall import METRICS, recall_table
from model.evaluation.reranked import candidate_table
from model.evaluation.statistics import (
    difference_tests,
    holm,
    intervals,
    mcnemar,
    query_differences,
    resampled_recall,
    sign_flip,
)


def task(rng, images=30, captions=4, skill=3.0) -> QueryRanks:
    """Random outcomes; images share their luck with their captions, and the last has no caption."""
    luck = rng.exponential(skill, images)
    image_of = np.repeat(np.arange(images - 1), captions)
    t2i = np.minimum(rng.exponential(luck[image_of]).astype(int), images - 1)
    i2t = np.minimum(rng.exponential(luck).astype(int), len(image_of) - 1)
    return QueryRanks(t2i, i2t, rng.permutation(image_of))


def table(t2i, i2t) -> np.ndarray:
    return np.array(list(recall_table(np.asarray(t2i), np.asarray(i2t)).values()))


# ---- bootstrap -------------------------------------------------------------------------------------------------------


def test_sums_are_those_of_the_drawn_rows():
    """The same draws, written out as lists of rows and summed one by one."""
    from model.evaluation.statistics import _resampled_sums

    rows = np.random.default_rng(0).integers(0, 3, (60, 2)).astype(float)
    ours = _resampled_sums(rows, 50, np.random.default_rng(7))
    kinds = sorted(set(map(tuple, rows)))
    shares = [sum(tuple(row) == kind for row in rows) / 60 for kind in kinds]
    for sums, times in zip(ours, np.random.default_rng(7).multinomial(60, shares, size=50)):
        drawn = [kind for kind, number in zip(kinds, times) for _ in range(number)]
        assert len(drawn) == 60 and list(sums) == [sum(row[0] for row in drawn), sum(row[1] for row in drawn)]


@pytest.mark.parametrize("units", ["queries", "images"])
def test_resampled_recall_is_spread_like_a_loop_that_draws_queries(units):
    """Two systems in two tasks: means, spreads, and what goes up and down together."""
    rng = np.random.default_rng(0)
    owners = [task(rng).image_of, task(rng, captions=2).image_of]
    systems = [[QueryRanks(task(rng, captions=c).t2i, task(rng).i2t, o) for c, o in zip((4, 2), owners)] for _ in range(2)]
    captions_of = [[np.flatnonzero(owner == image) for image in range(30)] for owner in owners]
    loop = []
    for _ in range(2500):
        images = rng.integers(0, 30, 30)
        if units == "queries":
            texts = [rng.integers(0, len(owner), len(owner)) for owner in owners]
        else:
            texts = [np.concatenate([theirs[image] for image in images]) for theirs in captions_of]
        loop.append([[table(x.t2i[t], x.i2t[images]) for x, t in zip(tasks, texts)] for tasks in systems])
    ours = resampled_recall(systems, 10000, units)
    assert ours.shape == (10000, 2, 2, 7)
    ours, loop = ours.reshape(-1, 28), np.reshape(loop, (-1, 28))
    np.testing.assert_allclose(ours.mean(axis=0), loop.mean(axis=0), atol=0.8)
    np.testing.assert_allclose(ours.std(axis=0), loop.std(axis=0), rtol=0.06)
    np.testing.assert_allclose(np.corrcoef(ours.T), np.corrcoef(loop.T), atol=0.1)


@pytest.mark.parametrize("units", ["queries", "images"])
def test_images_that_only_some_tasks_ask_about(units):
    """A second task whose queries are every third image: its recall is of those, also in intervals and differences."""
    rng = np.random.default_rng(0)
    whole, some = np.arange(90), np.arange(0, 90, 3)
    a, b = (
        [QueryRanks(rng.integers(0, 8, 90), rng.integers(0, 8, 90), whole), QueryRanks(rng.integers(0, 8, 30), rng.integers(0, 8, 30), some, some)]
        for _ in range(2)
    )  # fmt: skip
    samples = resampled_recall([a], 4000, units)[:, 0]
    expected = np.array([table(task.t2i, task.i2t) for task in a])
    np.testing.assert_allclose(np.nanmean(samples, axis=0), expected, atol=1)
    spread = np.sqrt(expected[1] * (100 - expected[1]) / 30)
    np.testing.assert_allclose(np.nanstd(samples[:, 1], axis=0)[:6], spread[:6], rtol=0.1)
    differences = query_differences(a, b, units).sum(axis=0)
    means = [np.mean([table(task.t2i, task.i2t) for task in tasks], axis=0) for tasks in (a, b)]
    np.testing.assert_allclose(differences, means[1] - means[0], atol=1e-9)
    alone = resampled_recall([[a[1]]], 1000, units)[:, 0, 0]
    assert not np.isnan(alone).any() and set(np.unique(np.round(alone[:, 0] * 30 / 100, 6) % 1)) == {0.0}


@pytest.mark.parametrize("units", ["queries", "images"])
def test_other_numbers_of_results(units):
    """The candidates of a re-ranker: recall at 3, spread like the recall at 1 of ranks that are a third."""
    tasks = [task(np.random.default_rng(0)), task(np.random.default_rng(1))]
    at_three = resampled_recall([tasks], 200, units, ks=(3,))[:, 0]
    thirds = [QueryRanks(each.t2i // 3, each.i2t // 3, each.image_of) for each in tasks]
    np.testing.assert_allclose(at_three[..., :2], resampled_recall([thirds], 200, units, ks=(1,))[:, 0, :, :2])
    found = candidate_table({"a": tasks[0], "b": tasks[1]}, 3, 200, units)
    assert found.recall["TR@3"] == pytest.approx(100 * np.mean([(each.i2t < 3).mean() for each in tasks]))
    assert found.recall["IR@3"] == pytest.approx(100 * np.mean([(each.t2i < 3).mean() for each in tasks]))
    for metric, bounds in found.intervals.items():
        assert bounds["low"] < found.recall[metric] < bounds["high"]
    assert candidate_table({"a": tasks[0]}, 3, 0, units).intervals is None


def test_draws_in_parts_are_the_same_draws(monkeypatch):
    from model.evaluation import statistics

    outcome = task(np.random.default_rng(0))
    whole = resampled_recall([[outcome]], 50)
    monkeypatch.setattr(statistics, "DRAWS_AT_ONCE", 20)
    np.testing.assert_array_equal(resampled_recall([[outcome]], 50), whole)
    assert (resampled_recall([[outcome]], 50, seed=1) != whole).any()


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Queries that succeed with probability 0.4: 95% of the intervals hold 40."""
    rng = np.random.default_rng(0)
    held, trials = 0, 300
    for trial in range(trials):
        ranks = np.where(rng.random(200) < 0.4, 0, 20)
        bounds = intervals(
            resampled_recall([[QueryRanks(ranks, ranks[:50], np.arange(200) // 4)]], 400, seed=trial)[:, 0, 0]
        )
        held += bounds["IR@1"]["low"] <= 40 <= bounds["IR@1"]["high"]
    assert 0.91 < held / trials < 0.985


def test_captions_that_go_with_their_images_widen_the_interval_of_ir():
    """Five captions of an image always share their fate: as much information as one."""
    ranks = np.where(np.random.default_rng(0).random(200) < 0.5, 0, 20)
    outcome = QueryRanks(ranks.repeat(5), ranks, np.arange(200).repeat(5))
    width = {}
    for units in ("queries", "images"):
        bounds = intervals(resampled_recall([[outcome]], 2000, units)[:, 0, 0])
        width[units] = {metric: bounds[metric]["high"] - bounds[metric]["low"] for metric in METRICS}
    assert width["images"]["IR@1"] / width["queries"]["IR@1"] == pytest.approx(math.sqrt(5), rel=0.1)
    assert width["images"]["TR@1"] == pytest.approx(width["queries"]["TR@1"], rel=0.1)


def test_draws_of_images_without_a_caption_are_left_out():
    outcome = QueryRanks(np.array([0]), np.array([0, 9, 9]), np.array([0]))
    samples = resampled_recall([[outcome]], 200, "images")[:, 0, 0]
    assert np.isnan(samples[:, 3]).any() and intervals(samples)["IR@1"] == {"low": 100.0, "high": 100.0}


# ---- paired tests ----------------------------------------------------------------------------------------------------


def test_mcnemar_by_hand():
    assert mcnemar(0, 0) == 1 and mcnemar(4, 4) == 1
    assert mcnemar(0, 5) == pytest.approx(2 / 32) == mcnemar(5, 0)
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 1024)
    for number, less in ((7, 2), (30, 11), (61, 30)):
        tail = sum(math.comb(number, i) for i in range(less + 1))
        assert mcnemar(less, number - less) == pytest.approx(min(1, 2 * tail / 2**number))
    assert 0 <= mcnemar(2000, 12000) < 1e-300 and mcnemar(12400, 12600) == pytest.approx(0.208, abs=0.002)


def test_sign_flip_is_the_full_enumeration():
    rng = np.random.default_rng(0)
    for _ in range(3):
        differences = np.concatenate([rng.integers(-2, 4, 9) / 10, rng.normal(0.1, 0.3, 2)])
        sums = [np.dot(signs, differences) for signs in itertools.product((-1, 1), repeat=len(differences))]
        exact = np.mean(np.abs(sums) >= abs(differences.sum()) - 1e-9)
        assert sign_flip(differences, 20000) == pytest.approx(exact, abs=0.015)
    assert sign_flip(np.zeros(5), 100) == 1
    assert sign_flip(np.full(40, 0.1), 999) == 1 / 1000  # never 0


def test_sign_flip_agrees_with_mcnemar_where_both_apply():
    differences = np.array([1.0] * 14 + [-1.0] * 5 + [0.0] * 30)
    assert sign_flip(differences, 50000) == pytest.approx(mcnemar(5, 14), abs=0.005)


@pytest.mark.parametrize("units", ["queries", "images"])
def test_differences_of_queries_sum_to_differences_of_tables(units):
    rng = np.random.default_rng(0)
    a = [task(rng), task(rng, captions=2)]
    b = [QueryRanks(rng.permutation(x.t2i), rng.permutation(x.i2t), x.image_of) for x in a]
    differences = query_differences(a, b, units)
    expected = [table(after.t2i, after.i2t) - table(before.t2i, before.i2t) for before, after in zip(a, b)]
    np.testing.assert_allclose(differences.sum(axis=0), np.mean(expected, axis=0), atol=1e-9)
    assert len(differences) == (30 if units == "images" else 30 + 29 * 4 + 29 * 2)


def test_which_test_is_used_and_which_way_round():
    image_of = np.arange(40)
    a = QueryRanks(np.full(40, 20), np.full(40, 20), image_of)
    b = QueryRanks(np.where(image_of < 6, 0, 20), np.where(image_of < 3, 7, 20), image_of)
    tests = difference_tests([a], [b], 2000)
    assert tests["IR@1"] == ("mcnemar", 2 / 64) and tests["IR@10"] == ("mcnemar", 2 / 64)
    assert tests["TR@1"] == ("mcnemar", 1) and tests["TR@10"] == ("mcnemar", 2 / 8)
    assert tests["AR"][0] == "sign-flip" and tests["AR"][1] < 0.02
    assert difference_tests([b], [a], 2000) == tests  # two-sided
    assert {name: test for name, (test, _) in difference_tests([a], [b], 100, "images").items()} == {
        metric: "mcnemar" if metric.startswith("TR") else "sign-flip" for metric in METRICS
    }
    assert {test for test, _ in difference_tests([a, a], [b, b], 100).values()} == {"sign-flip"}


@pytest.mark.parametrize("units", ["queries", "images"])
def test_equal_systems_are_rarely_called_different(units):
    """Two draws of one system's luck, images and their captions tied: p < 0.05 in at most about 5% of the trials."""
    rng = np.random.default_rng(0)
    false_alarms, trials = 0, 200
    for trial in range(trials):
        a, b = (QueryRanks(rng.integers(0, 3, 120), rng.integers(0, 3, 40), np.arange(120) // 3) for _ in range(2))
        false_alarms += difference_tests([a], [b], 200, units, seed=trial)["AR"][1] < 0.05
    assert false_alarms / trials < 0.09


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.001]) == pytest.approx([0.5, 0.002]) and holm([0.9, 0.8]) == [1.0, 1.0]
