"""Recall by hand-worked multi-caption cases and against a naive twin."""

import numpy as np
import pytest
import torch

from model.evaluation.recall import (
    chance_table,
    folds,
    format_table,
    image_queries,
    listed_ranks,
    mean_table,
    num_repeated,
    recall,
    recall_table,
    retrieval_ranks,
)


def naive_lists(txt, img):
    """All candidates of every query, best first, equal scores by position."""
    scores = (txt @ img.T).numpy()
    images = [sorted(range(len(row)), key=lambda i: (-row[i], i)) for row in scores]
    captions = [sorted(range(len(column)), key=lambda t: (-column[t], t)) for column in scores.T]
    return images, captions


def naive_ranks(txt, img, image_of, text_of=None, num_queries=None):
    text_of = range(len(txt)) if text_of is None else text_of.tolist()
    pairs = {(text, int(image)) for text, image in zip(text_of, image_of)}
    images, captions = naive_lists(txt, img)
    t2i = [next(n for n, i in enumerate(row) if (text_of[t], i) in pairs) for t, row in enumerate(images[:num_queries])]
    asked = sorted(set(image_of[: num_queries].tolist()))
    i2t = [next(n for n, t in enumerate(captions[i]) if (text_of[t], i) in pairs) for i in asked]
    return np.array(t2i), np.array(i2t)


def test_a_case_worked_by_hand():
    # Three images; captions 0 and 1 are of image 0, 2 of image 1, 3 and 4 of image 2.
    img = torch.eye(3)
    txt = torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.1, 0.3], [0.3, 0.7, 0.5], [0.2, 0.6, 0.4], [0.0, 0.2, 0.6]])
    t2i, i2t = retrieval_ranks(txt, img, torch.tensor([0, 0, 1, 2, 2]))
    assert list(t2i) == [1, 0, 0, 1, 0]  # caption 0 prefers image 1; caption 3 prefers image 1
    assert list(i2t) == [0, 1, 0]  # image 1's own caption 2 comes after caption 0
    table = recall_table(t2i, i2t)
    assert table["TR@1"] == pytest.approx(200 / 3) and table["IR@1"] == pytest.approx(60)
    assert table["TR@5"] == table["IR@5"] == 100
    assert table["AR"] == pytest.approx(np.mean([200 / 3, 60, 100, 100, 100, 100]))


def test_duplicates_worked_by_hand():
    # "a dog" is a caption of image 0 and of image 1; image 1 also has "a cat", image 2 "a bird".
    img = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.5, 0.0], [0.0, 0.0, 1.0]])
    dog, cat, bird = [1.0, 0.0, 0.2], [0.0, 1.0, 0.0], [0.95, 0.0, 0.3]
    txt, image_of, text_of = torch.tensor([dog, dog, cat, bird]), torch.tensor([0, 1, 1, 2]), torch.tensor([7, 7, 3, 9])
    t2i, i2t = retrieval_ranks(txt, img, image_of)
    assert list(t2i) == [0, 1, 0, 2]  # the second "a dog" is of image 1, and image 0 comes first
    assert list(i2t) == [0, 1, 0]  # image 1 finds the other image's "a dog" first
    t2i, i2t = retrieval_ranks(txt, img, image_of, text_of)
    assert list(t2i) == [0, 0, 0, 2]  # image 0 has the same words; "a bird" gains nothing
    assert list(i2t) == [0, 0, 0]
    assert num_repeated(image_of.numpy(), text_of.numpy()) == 2


def test_a_caption_repeated_for_one_image_is_no_duplicate():
    image_of, text_of = np.array([0, 0, 1, 2, 2, 3]), np.array([5, 5, 6, 7, 8, 8])
    assert num_repeated(image_of, text_of) == 2  # wording 8 only
    assert num_repeated(image_of, np.arange(6)) == 0


@pytest.mark.parametrize("at_once", [1, 7, None])
@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize("kind", ["random", "ties"])
def test_ranks_match_the_naive_twin(kind, duplicates, at_once, monkeypatch):
    if at_once:
        monkeypatch.setattr("data.search.topk.SCORES_AT_ONCE", at_once * 40)  # scores of so many queries
    torch.manual_seed(0)
    image_of = torch.randint(0, 12, (40,))
    txt, img = torch.randn(40, 6), torch.randn(13, 6)  # image 12 has no caption
    text_of = torch.randint(0, 25, (40,)) * 10 if duplicates else None
    if kind == "ties":
        txt, img = txt.sign(), img.sign()
    for number in (None, 9):  # all captions are queries, or the first 9, with their images
        naive = naive_ranks(txt, img, image_of, text_of, number)
        for ours, theirs in zip(retrieval_ranks(txt, img, image_of, text_of, number), naive, strict=True):
            assert np.array_equal(ours, theirs)
        images, captions = map(np.array, naive_lists(txt, img))
        lists = images[:number], captions[image_queries(image_of, number)]
        for ours, theirs in zip(listed_ranks(*lists, image_of, 13, text_of), naive, strict=True):
            assert np.array_equal(ours, theirs)


def test_lists_that_end_early_are_misses_and_never_the_last_candidate():
    image_of = torch.tensor([0, 1, 2])
    images = np.array([[0, -1], [-1, -1], [-1, -1]])  # -1 must not be image 2
    captions = np.array([[1, 0], [-1, 2], [-1, -1]])
    t2i, i2t = listed_ranks(images, captions, image_of, 3)
    assert list(t2i) == [0, 10, 10] and list(i2t) == [1, 10, 10]  # 3 would be a hit among the first 10
    t2i, i2t = listed_ranks(images, captions, image_of, 3, torch.tensor([0, 1, 0]))  # captions 0 and 2: the same words
    assert list(t2i) == [0, 10, 10] and list(i2t) == [1, 10, 10]
    assert recall_table(t2i, i2t)["IR@10"] == pytest.approx(100 / 3)
    assert set(listed_ranks(np.full((12, 2), -1), np.full((12, 2), -1), torch.arange(12), 20)[0]) == {20}


def test_an_image_without_captions_is_a_candidate_and_no_query():
    txt, img, image_of = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]]), torch.tensor([0, 1])
    t2i, i2t = retrieval_ranks(txt, img, image_of)
    assert t2i.tolist() == [0, 1] and i2t.tolist() == [0, 0]
    assert recall(txt, img, image_of)["TR@1"] == 100


def test_a_collapsed_model_scores_chance_and_not_everything():
    table = recall(torch.ones(50, 4), torch.ones(10, 4), torch.arange(10).repeat_interleave(5))
    assert table["IR@1"] == 10 and table["TR@1"] == 10


def test_chance_matches_random_scores():
    rng = torch.Generator().manual_seed(0)
    counts = np.array([5] * 30 + [1] * 10)
    image_of = torch.from_numpy(np.repeat(np.arange(40), counts))
    tables = []
    for _ in range(300):
        txt, img = torch.randn(len(image_of), 16, generator=rng), torch.randn(40, 16, generator=rng)
        tables.append(recall(txt, img, image_of))
    measured, expected = mean_table(tables), chance_table(image_of.numpy(), 40)
    for key, value in expected.items():
        assert measured[key] == pytest.approx(value, abs=1.2), key


def test_chance_of_some_queries_among_all_candidates():
    """60 of 200 captions ask, of 12 of 50 images; the others are only in the way."""
    rng = torch.Generator().manual_seed(0)
    image_of = torch.from_numpy(np.repeat(np.arange(50), 4))
    image_of[:60] = torch.arange(60) % 12
    tables = []
    for _ in range(300):
        txt, img = torch.randn(200, 16, generator=rng), torch.randn(50, 16, generator=rng)
        tables.append(recall_table(*retrieval_ranks(txt, img, image_of, num_queries=60)))
    measured, expected = mean_table(tables), chance_table(image_of.numpy(), 50, 60)
    assert expected["IR@1"] == 2 and expected["TR@10"] < chance_table(image_of.numpy()[:60], 12)["TR@10"] / 2
    for key, value in expected.items():
        assert measured[key] == pytest.approx(value, abs=1.5), key


def test_folds_are_consecutive_and_closed():
    image_of = torch.tensor([0, 3, 1, 2, 2, 4, 0, 5])
    parts = folds(image_of, num_images=7, size=2)
    assert [(images.start, images.stop) for images, _ in parts] == [(0, 2), (2, 4), (4, 6)]  # image 6 is left over
    assert [rows.tolist() for _, rows in parts] == [[0, 2, 6], [1, 3, 4], [5, 7]]


def test_the_table_is_aligned():
    lines = format_table({"short": {"TR@1": 1.0, "AR": 50.0}, "a longer name": {"TR@1": 100.0, "AR": 2.5}}).splitlines()
    assert len(set(map(len, lines))) == 1 and "100.00" in lines[2]
