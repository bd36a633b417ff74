"""Hard negatives against loops, and their options."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.errors import BadInput
from model.retrieval.mining import HardNegativeOptions, HardNegatives, hard_negatives_of


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
        ({"window": "best"}, "hard_negatives.window 'best' is not top, random, original or ranks such as 10-20"),
        ({"count": 11, "window": "10-20"}, "window 10-20 holds 10 ranks, count is 11"),
        ({"count": 1, "window": "20-10"}, "window 20-10 holds -10 ranks"),
        ({"count": 1, "window": "1-" + "9" * 5000}, "is not top, random, original or ranks such as 10-20"),
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


def test_a_window_beyond_the_images_ends_with_them(dataset, capsys):
    negatives = HardNegatives(dataset, HardNegativeOptions(count=2, window="1-60"))
    assert negatives.ranks == (1, 4)
    assert "db/train: hard_negatives.window ends at rank 60 is lowered to 4: there are no more wrong images" in capsys.readouterr().err
    rng = np.random.default_rng(0)
    txt, img = (torch.from_numpy(rng.normal(size=(n, 3)).astype(np.float32)) for n in (len(dataset.image_of), 5))
    negatives.mine(txt, img)
    assert negatives.ranking.shape == (len(dataset.image_of), 4)
    rows = np.arange(len(dataset.image_of))
    drawn = dataset.image_of[negatives.draw(rows, rng)].reshape(-1, 2)
    assert (drawn != dataset.image_of[rows, None]).all() and (drawn[:, 0] != drawn[:, 1]).all()
    assert not (drawn == negatives.ranking[:, :1]).any()


# ---- the original's --------------------------------------------------------------------------------------------------


@pytest.fixture
def joined():
    """200 captions of 70 images and 24 of 8 in two databases; one of the images is in both."""
    rng = np.random.default_rng(5)
    parts = []
    for folder, captions, images in (("coco", 200, np.arange(70)), ("vg", 24, np.array([70, 71, 3, 72, 73, 74, 75, 76]))):
        own = np.concatenate([np.arange(len(images)), rng.integers(0, len(images), captions - len(images))])
        part = SimpleNamespace(image_of=rng.permutation(own), captions=SimpleNamespace(folder=folder))
        parts.append((part, images))
    image_of = np.concatenate([images[part.image_of] for part, images in parts])
    return SimpleNamespace(image_of=image_of, images=list(range(77)), parts=parts, captions=parts[0][0].captions)


def naive_found(txt, img, data, caption):
    """The images that a caption finds first and the captions that its image finds first, in the caption's database, without
    its own; there are 50 or as many as there are."""
    last = len(data.parts[0][0].image_of)
    captions = range(last) if caption < last else range(last, len(data.image_of))
    images, own = data.parts[int(caption >= last)][1].tolist(), data.image_of[caption]
    found_images = sorted(images, key=lambda g: -float(txt[caption] @ img[g]))[:50]
    found_captions = sorted(captions, key=lambda c: -float(img[own] @ txt[c]))[:50]
    return {g for g in found_images if g != own}, {c for c in found_captions if data.image_of[c] != own}


def test_the_originals_are_drawn_apart_and_uniformly_from_what_each_side_finds(joined):
    torch.manual_seed(1)
    txt, img = torch.randn(224, 12), torch.randn(77, 12)
    negatives = hard_negatives_of(joined, HardNegativeOptions(count=2, window="original"))
    indices = np.array([17, 130, 203, 219])
    assert len(negatives.draw(indices, np.random.default_rng(0))) == 0  # nothing was mined yet
    negatives.mine(txt, img)
    rng, draws = np.random.default_rng(0), 3000
    images, captions = np.zeros((4, 77)), np.zeros((4, 224))
    for _ in range(draws):
        of_texts, of_images = negatives.draw(indices, rng).reshape(2, 4, 2)
        found = joined.image_of[of_images]
        assert (found[:, 0] != found[:, 1]).all() and (of_texts[:, 0] != of_texts[:, 1]).all()
        np.add.at(images, (np.arange(4)[:, None], found), 1)
        np.add.at(captions, (np.arange(4)[:, None], of_texts), 1)
    for row, caption in enumerate(indices):
        for counts, expected in zip((images[row], captions[row]), naive_found(txt, img, joined, caption), strict=True):
            assert set(np.flatnonzero(counts)) == expected
            mean = 2 * draws / len(expected)
            assert abs(counts[list(expected)] - mean).max() < 5 * mean**0.5


def test_a_caption_and_an_image_of_one_row_need_not_belong_together(joined):
    torch.manual_seed(1)
    negatives = hard_negatives_of(joined, HardNegativeOptions(count=2, window="original"))
    negatives.mine(torch.randn(224, 12), torch.randn(77, 12))
    of_texts, of_images = negatives.draw(np.arange(200), np.random.default_rng(0))
    assert (joined.image_of[of_texts] != joined.image_of[of_images]).mean() > 0.9
    again = hard_negatives_of(joined, HardNegativeOptions(count=2, window="original"))
    again.load_state_dict(negatives.state_dict())
    assert np.array_equal(again.draw(np.arange(200), np.random.default_rng(0)), [of_texts, of_images])


@pytest.mark.parametrize(("count", "found"), [(1, 50), (20, 50), (21, 52), (400, 810), (496, 1000), (900, 1000)])
def test_how_many_the_original_looks_at(count, found):
    assert HardNegativeOptions(count=count, window="original").ranks == (0, found)


def test_the_original_asks_for_fewer_than_are_there(joined):
    with pytest.raises(BadInput, match="count 8: of the 8 images that a caption of vg finds, 1 may be its own"):
        hard_negatives_of(joined, HardNegativeOptions(count=8, window="original"))
    joined.parts[1][0].image_of[:] = 0
    with pytest.raises(BadInput, match="count 2: of the 24 captions that an image of vg finds, 24 may be its own"):
        hard_negatives_of(joined, HardNegativeOptions(count=2, window="original"))
