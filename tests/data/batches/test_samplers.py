"""Budgets, coverage and resumption of the training order."""

import itertools

import numpy as np
import pytest

from data.batches.samplers import DrawStream, Source, epoch_draws, image_order, tempered_order, token_batches
from data.errors import BadInput


def lengths(n=5000, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(6, 40, n), rng.integers(11, 101, n)


def tokens(batch, txt, img):
    return int((txt[batch] + img[batch]).sum())


def test_every_pair_comes_once_and_no_batch_exceeds_the_budget():
    txt, img = lengths()
    batches = list(token_batches(txt, img, 2048, np.random.default_rng(0)))
    assert sorted(np.concatenate(batches)) == list(range(len(txt)))
    assert max(tokens(b, txt, img) for b in batches) <= 2048
    assert np.mean([tokens(b, txt, img) for b in batches[:-1]]) > 0.97 * 2048  # and the budget is used


def test_packing_matches_a_naive_twin_in_a_random_order():
    txt, img = lengths(300)
    naive, current = [], []
    for index in np.random.default_rng(3).permutation(300).tolist():
        if current and tokens(np.array([*current, index]), txt, img) > 700:
            naive.append(current)
            current = []
        current.append(index)
    naive.append(current)
    assert [list(batch) for batch in token_batches(txt, img, 700, np.random.default_rng(3))] == naive


def test_a_pair_longer_than_the_budget_comes_alone():
    batches = list(token_batches(np.array([5, 500, 5]), np.array([5, 5, 5]), 100, np.random.default_rng(0)))
    assert sorted(map(len, batches)) in ([1, 2], [1, 1, 1]) and [1] in [list(b) for b in batches]


def test_epochs_differ_and_repeat_with_their_seed():
    txt, img = lengths(200)
    first = [tuple(b) for b in token_batches(txt, img, 700, np.random.default_rng(1))]
    assert first == [tuple(b) for b in token_batches(txt, img, 700, np.random.default_rng(1))]
    assert first != [tuple(b) for b in token_batches(txt, img, 700, np.random.default_rng(2))]


def test_an_epoch_is_covered_in_batches_of_the_size():
    draws = list(epoch_draws(103, 10, seed=0, epoch=0))
    assert [len(draw.indices) for draw in draws] == [draw.num_pairs for draw in draws] == [10] * 10 + [3]
    assert sorted(np.concatenate([draw.indices for draw in draws])) == list(range(103))
    assert [draw.done for draw in draws] == [*range(10, 101, 10), 103]
    other = list(epoch_draws(103, 10, seed=0, epoch=1))
    assert list(other[0].indices) != list(draws[0].indices)


def negatives(rows, rng):
    """Two for each pair, which tell whose they are."""
    return np.stack([1000 + rows, rng.integers(2000, 3000, len(rows))], axis=1).reshape(-1)


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("hard", [None, negatives])
def test_ranks_take_together_what_one_rank_takes(ranks, hard):
    whole = list(epoch_draws(101, 5 * ranks, 7, 2, hard_negatives=hard))
    parts = [list(epoch_draws(101, 5, 7, 2, 0, rank, ranks, hard)) for rank in range(ranks)]
    assert {len(part) for part in parts} == {len(whole)}
    for step, together in enumerate(whole):
        pairs = [part[step].indices[: part[step].num_pairs] for part in parts]
        extra = [part[step].indices[part[step].num_pairs :] for part in parts if part[step].num_pairs]
        assert list(np.concatenate(pairs)) == list(together.indices[: together.num_pairs])
        assert list(np.concatenate(extra)) == list(together.indices[together.num_pairs :])
        assert {part[step].done for part in parts} == {together.done}
        assert max(map(len, pairs)) - min(map(len, pairs)) <= 1
    assert all(len(draw.indices) for part in parts for draw in part)  # a rank without pairs has something to run on


def test_an_epoch_goes_on_where_it_was_stopped():
    whole = list(epoch_draws(101, 8, 7, 2, hard_negatives=negatives))
    rest = list(epoch_draws(101, 8, 7, 2, done=whole[4].done, hard_negatives=negatives))
    assert [list(draw.indices) for draw in rest] == [list(draw.indices) for draw in whole[5:]]
    # on another number of ranks the order is the same, in batches of another size
    rest = list(epoch_draws(101, 8, 7, 2, done=whole[4].done, rank=1, ranks=2))
    assert list(rest[0].indices) == list(whole[6].indices[:8])


LANGUAGES = [
    np.arange(500),
    np.arange(500, 1000),
    np.arange(1000, 1100),
    np.arange(1100, 1200),
]  # 5, 5, 1 and 1 hundred


@pytest.mark.parametrize(
    "temperature, expected", [(1, [500, 500, 100, 100]), (2, [415, 414, 186, 185]), (1e9, [300, 300, 300, 300])]
)
def test_languages_share_an_epoch_by_the_temperature(temperature, expected):
    for epoch in range(3):
        order = tempered_order(LANGUAGES, temperature, 7, epoch)
        counts = [int(np.isin(order, group).sum()) for group in LANGUAGES]
        assert len(order) == 1200 and counts == pytest.approx(expected, abs=1)
        weights = np.array([5, 5, 1, 1]) ** (1 / temperature)
        assert counts == pytest.approx(1200 * weights / weights.sum(), abs=1)
        if temperature == 1:
            assert sorted(order) == list(range(1200))
    assert list(order) == list(tempered_order(LANGUAGES, temperature, 7, 2)) != sorted(order)
    assert list(order) != list(tempered_order(LANGUAGES, temperature, 8, 2))


def test_over_the_epochs_every_pair_of_a_language_comes_equally_often():
    seen = np.bincount(np.concatenate([tempered_order(LANGUAGES, 3, 0, epoch) for epoch in range(7)]), minlength=1200)
    for group in LANGUAGES:
        assert seen[group].min() >= 1 and np.ptp(seen[group]) <= 1
    assert seen[:500].max() < 7 < seen[1000:].min()


def test_a_tempered_epoch_goes_on_where_it_was_stopped_and_ranks_share_it():
    def draws(*where):
        return list(epoch_draws(1200, *where, order=tempered_order(LANGUAGES, 3, 7, 2)))

    whole = draws(64, 7, 2)
    rest = draws(64, 7, 2, whole[4].done)
    assert [list(d.indices) for d in rest] == [list(d.indices) for d in whole[5:]]
    parts = [draws(32, 7, 2, 0, rank, 2) for rank in range(2)]
    for step, together in enumerate(whole):
        assert list(np.concatenate([part[step].indices for part in parts])) == list(together.indices)


def test_captions_of_an_image_come_together():
    image_of = np.random.default_rng(0).integers(0, 40, 200)
    order = image_order(image_of, 7, 0)
    assert sorted(order) == list(range(200))
    shown = image_of[order]
    assert (np.diff(shown) != 0).sum() == len(set(image_of.tolist())) - 1  # each image in one piece
    assert list(order) == list(image_order(image_of, 7, 0)) != list(image_order(image_of, 7, 1))
    assert list(order) != list(image_order(image_of, 8, 0))
    first = image_order(image_of, 7, 1)[np.isin(image_order(image_of, 7, 1), np.flatnonzero(image_of == shown[0]))]
    assert list(first) != list(order[shown == shown[0]])  # an image's captions change places too


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


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_draw_together_what_one_rank_draws(ranks):
    """R ranks see at a step what one rank with R draws per step sees."""

    def drawn(rank, ranks, draws_per_step):
        sources = [Source(ratio, *lengths(100, seed=n)) for n, ratio in enumerate((16, 8, 4))]
        return itertools.islice(iter(DrawStream(sources, 1000, 0, draws_per_step, rank, ranks)), 60 * draws_per_step)

    whole = [(d.source, d.number, list(d.indices)) for d in drawn(0, 1, ranks)]
    parts = [[(d.source, d.number, list(d.indices)) for d in drawn(rank, ranks, 1)] for rank in range(ranks)]
    assert [draw for step in zip(*parts, strict=True) for draw in step] == whole


def test_a_run_of_batches_by_length_begins_its_passes_anew():
    """Older versions called the number of the batch ``bucket``, and had another order: what is done of it says nothing here."""
    older = {"position": 9, "bucket": 18, "cursors": [[1, 4], [0, 5], [2, 0]]}
    restored = stream()
    restored.load_state_dict(older)
    assert [source.cursor for source in restored.sources] == [[2, 0], [1, 0], [2, 0]]
    draw = next(iter(restored))
    assert (draw.position, draw.number) == (9, 18) and draw.resume["position"] == 10


def test_a_stream_restored_into_other_sources_is_refused():
    state = stream().state_dict()
    with pytest.raises(BadInput, match=r"3 .*now there are 2"):
        stream(ratios=(1, 1)).load_state_dict(state)


def test_no_task_is_refused():
    with pytest.raises(BadInput, match="ratio"):
        stream(ratios=(0, 0))
