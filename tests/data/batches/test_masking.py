"""Masking statistics: 15%, at least one, 80/10/10."""

import numpy as np
import pytest

from data.batches.masking import NOT_MASKED, choose, mask_words

MASK, V_RANGE = 4, (5, 1000)


def many(n_texts=4000, length=20):
    rng = np.random.default_rng(0)
    words = rng.integers(*V_RANGE, (n_texts, length))
    results = [mask_words(row, rng, MASK, V_RANGE) for row in words]
    return words, np.stack([r[0] for r in results]), np.stack([r[1] for r in results])


def test_share_of_words_and_their_fates():
    words, masked, labels = many()
    chosen = labels != NOT_MASKED
    # at 20 words the rule "at least one" adds 0.85^20 / 20 = 0.2 points
    assert chosen.mean() == pytest.approx(0.152, abs=0.004)
    assert (masked[chosen] == MASK).mean() == pytest.approx(0.8, abs=0.015)
    assert (masked[chosen] == words[chosen]).mean() == pytest.approx(0.1, abs=0.01)
    assert ((masked[chosen] != MASK) & (masked[chosen] != words[chosen])).mean() == pytest.approx(0.1, abs=0.01)


def test_labels_are_the_original_words_and_the_rest_is_untouched():
    words, masked, labels = many(500)
    chosen = labels != NOT_MASKED
    assert (labels[chosen] == words[chosen]).all()
    assert (masked[~chosen] == words[~chosen]).all()


def test_random_words_stay_in_range():
    rng = np.random.default_rng(1)
    words = np.full(20_000, 500)
    masked, _ = mask_words(words, rng, MASK, (7, 11), prob=1.0)
    drawn = masked[(masked != MASK) & (masked != 500)]
    assert set(drawn) == {7, 8, 9, 10}


@pytest.mark.parametrize("n", [1, 2, 36])
def test_at_least_one_is_chosen_and_every_place_can_be(n):
    rng = np.random.default_rng(2)
    chosen = np.stack([choose(n, rng, prob=0.01) for _ in range(20 * n + 50)])
    assert chosen.any(axis=1).all()
    assert chosen.any(axis=0).all()


def test_same_generator_state_gives_the_same_mask():
    words = np.arange(10, 40)
    first = mask_words(words, np.random.default_rng([1, 2]), MASK, V_RANGE)
    again = mask_words(words, np.random.default_rng([1, 2]), MASK, V_RANGE)
    other = mask_words(words, np.random.default_rng([1, 3]), MASK, V_RANGE)
    assert np.array_equal(first[0], again[0]) and not np.array_equal(first[1], other[1])
