"""Hard negatives against loops, and their options."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.errors import BadInput
from model.retrieval.mining import HardNegativeOptions, HardNegatives


@pytest.fixture
def dataset():
    """Nine captions of five images, out of order."""
    folder = SimpleNamespace(folder="db/train")
    image_of = np.array([2, 0, 1, 0, 3, 3, 4, 2, 3])
    return SimpleNamespace(image_of=image_of, images=list("abcde"), captions=folder)


@pytest.fixture
def embedded():
    torch.manual_seed(0)
    return torch.randn(9, 6), torch.randn(5, 6)


def naive_ranking(txt, img, image_of):
    """Every caption's wrong images, the best first."""
    return [
        sorted((g for g in range(len(img)) if g != own), key=lambda g: -float(x @ img[g]))
        for x, own in zip(txt, image_of, strict=True)
    ]


def test_mined_ranking_is_the_naive_one_without_the_own_image(dataset, embedded):
    negatives = HardNegatives(dataset, HardNegativeOptions(count=2, window="1-4"))
    negatives.mine(*embedded)
    assert negatives.ranking.tolist() == [row[:4] for row in naive_ranking(*embedded, dataset.image_of)]


@pytest.mark.parametrize(("window", "first", "last"), [("top", 0, 2), ("1-4", 1, 4)])
def test_draws_come_from_the_window_with_a_caption_of_the_image(dataset, embedded, window, first, last):
    negatives = HardNegatives(dataset, HardNegativeOptions(count=2, window=window))
    indices, rng = np.array([4, 0, 6]), np.random.default_rng(0)
    assert len(negatives.draw(indices, rng)) == 0  # nothing was mined yet
    negatives.mine(*embedded)
    ranking = naive_ranking(*embedded, dataset.image_of)
    seen = [set() for _ in indices]
    captions = set()
    for _ in range(200):
        drawn = negatives.draw(indices, rng).reshape(3, 2)
        images = dataset.image_of[drawn]
        for n, i in enumerate(indices):
            assert set(images[n]) <= set(ranking[i][first:last]) and images[n, 0] != images[n, 1]
            seen[n] |= set(images[n])
        captions |= set(drawn.ravel())
    assert [each == set(ranking[i][first:last]) for each, i in zip(seen, indices, strict=True)] == [True] * 3
    reachable = set().union(*seen)
    assert captions == {i for i in range(9) if dataset.image_of[i] in reachable}  # every caption of every image


def test_random_negatives_are_of_other_images_and_need_no_mining(dataset):
    negatives = HardNegatives(dataset, HardNegativeOptions(count=3, window="random"))
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(100):
        drawn = negatives.draw(np.array([0, 4]), rng).reshape(2, 3)
        for row, own in zip(dataset.image_of[drawn], (2, 3), strict=True):
            assert own not in row and len(set(row)) == 3
            seen |= {(own, image) for image in row}
    assert len(seen) == 8  # all four others, of both


def test_random_ones_until_there_is_a_ranking(dataset, embedded):
    negatives = HardNegatives(dataset, HardNegativeOptions(count=1, window="0-1"), random_first=True)
    free = HardNegatives(dataset, HardNegativeOptions(count=1, window="random"))
    indices = np.array([4, 0, 6])
    drawn = [each.draw(indices, np.random.default_rng(3)).tolist() for each in (negatives, free)]
    assert drawn[0] == drawn[1]
    negatives.mine(*embedded)
    first = [row[0] for row in naive_ranking(*embedded, dataset.image_of)]
    assert dataset.image_of[negatives.draw(indices, np.random.default_rng(3))].tolist() == [first[i] for i in indices]


def test_without_hard_negatives_nothing_is_drawn(dataset):
    assert len(HardNegatives(dataset, HardNegativeOptions()).draw(np.arange(5), np.random.default_rng(0))) == 0


def test_when_they_are_mined():
    options = HardNegativeOptions(count=1, every=2, from_epoch=2)
    assert [options.mines_before(epoch) for epoch in range(6)] == [False, True, False, True, False, True]
    assert HardNegativeOptions(count=1, from_epoch=1).mines_before(0)
    assert not HardNegativeOptions(count=1, window="random", from_epoch=1).mines_before(0)
    assert not HardNegativeOptions().mines_before(3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"window": "best"}, "hard_negatives.window 'best' is not top, random or ranks such as 10-20"),
        ({"count": 11, "window": "10-20"}, "window 10-20 holds 10 ranks, count is 11"),
        ({"count": 1, "window": "20-10"}, "window 20-10 holds -10 ranks"),
        ({"count": -1}, "count must be at least 0"),
    ],
)
def test_impossible_options_are_refused(values, message):
    with pytest.raises(BadInput, match=message):
        HardNegativeOptions(**values)


@pytest.mark.parametrize(("window", "needed"), [("top", 5), ("random", 5), ("0-6", 6)])
def test_more_negatives_than_images_are_refused(dataset, window, needed):
    with pytest.raises(BadInput, match=f"db/train has 5 images in all|{needed} wrong images"):
        HardNegatives(dataset, HardNegativeOptions(count=5, window=window))
