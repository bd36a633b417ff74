"""Budgets, coverage and resumption of the training order."""

import itertools

import numpy as np
import pytest

from data.errors import BadInput
from data.samplers import DrawStream, Source, _by_shape, shuffled_batches, token_buckets


def lengths(n=5000, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(6, 40, n), rng.integers(11, 101, n)


def padded(batch, txt, img):
    return len(batch) * (txt[batch].max() + img[batch].max())


def test_every_pair_comes_once_and_no_batch_exceeds_the_budget():
    txt, img = lengths()
    batches = list(token_buckets(txt, img, 2048, np.random.default_rng(0)))
    assert sorted(np.concatenate(batches)) == list(range(len(txt)))
    assert max(padded(b, txt, img) for b in batches) <= 2048


def test_the_budget_is_used():
    # The original never reset its running maximum: 38% of every batch's budget was lost.
    txt, img = lengths()
    batches = list(token_buckets(txt, img, 2048, np.random.default_rng(0)))
    used = np.mean([padded(b, txt, img) for b in batches]) / 2048
    real = sum(txt + img) / sum(padded(b, txt, img) for b in batches)
    assert used > 0.95 and real > 0.92


def test_greedy_packing_matches_a_naive_twin():
    txt, img = lengths(300)
    order = np.random.default_rng(3).permutation(300)
    naive, current = [], []
    for index in order[_by_shape(txt[order], img[order], 700)]:
        if current and padded(np.array([*current, index]), txt, img) > 700:
            naive.append(current)
            current = []
        current.append(index)
    naive.append(current)
    ours = token_buckets(txt, img, 700, np.random.default_rng(3))
    assert sorted(map(tuple, ours)) == sorted(map(tuple, naive))


def test_a_pair_longer_than_the_budget_comes_alone():
    batches = list(token_buckets(np.array([5, 500, 5]), np.array([5, 5, 5]), 100, np.random.default_rng(0)))
    assert sorted(map(len, batches)) == [1, 2]


def test_epochs_differ_and_repeat_with_their_seed():
    txt, img = lengths(200)
    first = [tuple(b) for b in token_buckets(txt, img, 700, np.random.default_rng(1))]
    assert first == [tuple(b) for b in token_buckets(txt, img, 700, np.random.default_rng(1))]
    assert first != [tuple(b) for b in token_buckets(txt, img, 700, np.random.default_rng(2))]


def test_shuffled_batches_cover_an_epoch():
    batches = list(shuffled_batches(103, 10, np.random.default_rng(0)))
    assert [len(b) for b in batches] == [10] * 10 + [3]
    assert sorted(np.concatenate(batches)) == list(range(103))


def stream(seed=0, draws_per_step=1, ratios=(16, 8, 4)):
    sources = [Source(ratio, *lengths(100, seed=n)) for n, ratio in enumerate(ratios)]
    return DrawStream(sources, budget=1000, seed=seed, draws_per_step=draws_per_step)


def test_tasks_are_drawn_by_their_ratios():
    counts = np.bincount([stream().source_at(p) for p in range(4000)])
    assert counts / counts.sum() == pytest.approx(np.array([16, 8, 4]) / 28, abs=0.02)


def test_a_step_of_several_draws_is_of_one_task():
    drawn = [d.source for d in itertools.islice(stream(draws_per_step=3), 90)]
    assert all(len(set(drawn[i : i + 3])) == 1 for i in range(0, 90, 3)) and len(set(drawn)) > 1


@pytest.mark.parametrize("stop", [1, 7, 40, 111])
def test_a_restored_stream_goes_on_with_the_very_next_draw(stop):
    whole = list(itertools.islice(stream(), 160))
    restored = stream()
    restored.load_state_dict(whole[stop - 1].resume)
    rest = list(itertools.islice(restored, 160 - stop))
    assert [(d.position, d.source, list(d.indices)) for d in rest] == [
        (d.position, d.source, list(d.indices)) for d in whole[stop:]
    ]
    assert whole[-1].resume["cursors"][0][0] > 0, "the test must cross an epoch"


def test_a_stream_restored_into_other_sources_is_refused():
    state = stream().state_dict()
    with pytest.raises(BadInput, match=r"3 .*now there are 2"):
        stream(ratios=(1, 1)).load_state_dict(state)


def test_no_task_is_refused():
    with pytest.raises(BadInput, match="ratio"):
        stream(ratios=(0, 0))
