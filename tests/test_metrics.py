"""Recall by hand-worked multi-caption cases and against a naive twin."""

import numpy as np
import pytest
import torch

from model.metrics import chance_table, fold_tables, format_table, mean_table, recall, recall_table, retrieval_ranks


def naive_ranks(txt, img, image_of):
    scores = (txt @ img.T).numpy()
    t2i = []
    for t, row in enumerate(scores):
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))
        t2i.append(order.index(int(image_of[t])))
    i2t = []
    for i, column in enumerate(scores.T):
        order = sorted(range(len(column)), key=lambda t: (-column[t], t))
        i2t.append(min((order.index(t) for t in range(len(column)) if image_of[t] == i), default=len(column)))
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


@pytest.mark.parametrize("chunk", [1, 7, None])
@pytest.mark.parametrize("kind", ["random", "ties"])
def test_ranks_match_the_naive_twin(kind, chunk):
    torch.manual_seed(0)
    image_of = torch.randint(0, 12, (40,))
    txt, img = torch.randn(40, 6), torch.randn(13, 6)  # image 12 has no caption
    if kind == "ties":
        txt, img = txt.sign(), img.sign()
    for ours, naive in zip(retrieval_ranks(txt, img, image_of, chunk), naive_ranks(txt, img, image_of)):
        assert np.array_equal(ours, naive)


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
    measured, expected = mean_table(tables), chance_table(counts)
    for key, value in expected.items():
        assert measured[key] == pytest.approx(value, abs=1.2), key


def test_folds_are_consecutive_and_closed():
    torch.manual_seed(0)
    image_of = torch.arange(20).repeat_interleave(2)
    txt, img = torch.randn(40, 4), torch.randn(20, 4)
    tables = fold_tables(txt, img, image_of, fold_size=10)
    assert len(tables) == 2
    assert tables[1] == recall(txt[20:], img[10:], image_of[20:] - 10)


def test_the_table_is_aligned():
    lines = format_table({"short": {"TR@1": 1.0, "AR": 50.0}, "a longer name": {"TR@1": 100.0, "AR": 2.5}}).splitlines()
    assert len(set(map(len, lines))) == 1 and "100.00" in lines[2]
