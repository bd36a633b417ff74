"""Layouts of sequences without padding, against loops over the sequences."""

import numpy as np
import pytest
import torch

from data.batches.ragged import Images, Joined, Layout, Predicted, Texts, consecutive, pack_images, pack_texts
from data.errors import BadInput
from tests.padded import padded_images, padded_texts

CASES = [[3], [4, 4, 4], [5, 1, 2], [9, 60, 3, 30, 31, 29, 58, 2, 12, 44, 57, 60, 1, 8, 40, 33], [2, 8] * 5, [100, *[1] * 20]]


def texts_of(lengths):
    return Texts(torch.arange(100, 100 + sum(lengths)), Layout.of(lengths))


def images_of(counts):
    rows = torch.arange(float(sum(counts)))[:, None]
    return Images.of(rows.expand(-1, 3), rows.expand(-1, 7), np.array(counts))


@pytest.mark.parametrize("lengths", CASES)
def test_every_row_has_its_place_in_a_block(lengths):
    layout, total = Layout.of(lengths), sum(lengths)
    assert layout.offsets.tolist() == [sum(lengths[:n]) for n in range(len(lengths) + 1)] and layout.offsets.dtype == torch.int32
    assert layout.columns.tolist() == [column for length in lengths for column in range(length)]
    assert sum(block.count for block in layout.blocks) == len(lengths) == len(layout)
    places = torch.arange(total) if layout.places is None else layout.places
    order = range(len(lengths)) if layout.order is None else layout.order.tolist()
    first, sequences = 0, iter(order)
    for block, mask in zip(layout.blocks, layout.masks(), strict=True):
        for n in range(block.count):
            sequence = next(sequences)
            own = places[layout.offsets[sequence] : layout.offsets[sequence + 1]]
            assert own.tolist() == list(range(first, first + lengths[sequence]))  # consecutive, from the block's row on
            real = [True] * block.length if mask is None else mask[n, 0, 0].tolist()
            assert real == [column < lengths[sequence] for column in range(block.length)]
            first += block.length
        assert block.length == max(lengths[s] for s in order[: len(lengths)]) or len(layout.blocks) > 1
        assert block.is_full == (mask is None)
    if layout.order is not None:
        assert layout.order[layout.ranks].tolist() == list(range(len(lengths)))
    if layout.real is not None:
        assert len(layout.real) == first and int(layout.real.sum()) == total


def test_blocks_hold_less_padding_than_one_rectangle():
    lengths = np.random.default_rng(0).integers(10, 101, 64)
    layout = Layout.of(lengths)
    filled = sum(block.count * block.length for block in layout.blocks)
    assert 2 <= len(layout.blocks) <= 4 and lengths.sum() < filled < 1.3 * lengths.sum() < len(lengths) * lengths.max() * 0.75
    assert len(Layout.of([36] * 64).blocks) == 1 and Layout.of([36] * 64).places is None  # nothing to spread


@pytest.mark.parametrize("lengths", CASES)
def test_padded_texts_and_images_are_packed_and_come_back(lengths):
    texts, images = texts_of(lengths), images_of(lengths)
    again = pack_texts(*padded_texts(texts, pad=7))
    assert torch.equal(again.ids, texts.ids) and again.layout.lengths.tolist() == lengths
    again = pack_images(*padded_images(images))
    assert torch.equal(again.features, images.features) and torch.equal(again.positions, images.positions)
    assert torch.equal(again.order, images.order) and again.counts.tolist() == lengths


def test_padding_in_front_of_words_is_refused():
    ids = torch.ones(2, 3, dtype=torch.long)
    for mask in ([[1, 1, 1], [0, 1, 1]], [[1, 0, 1], [1, 1, 1]], [[1, 1, 1], [0, 0, 0]]):
        with pytest.raises(BadInput, match="attention_mask: every text must begin at position 0"):
            pack_texts(ids, torch.tensor(mask))


def test_images_are_cls_and_then_their_regions():
    images = images_of([2, 0, 3])
    assert images.layout.lengths.tolist() == [3, 1, 4] and images.counts.tolist() == [2, 0, 3]
    assert images.order.tolist() == [0, 3, 4, 1, 2, 5, 6, 7]  # three [CLS], and then five regions


@pytest.mark.parametrize("part", [slice(0, 2), slice(1, 3), slice(2, 9)])
def test_some_rows_are_those_rows_alone(part):
    texts, images = texts_of([3, 1, 5, 2]), images_of([2, 4, 1, 3])
    expected = [row for length, rows in zip([3, 1, 5, 2][part], texts.ids.split([3, 1, 5, 2])[part], strict=True) for row in rows[:length]]
    found = texts.rows(part)
    assert found.ids.tolist() == [int(row) for row in expected] and found.layout.lengths.tolist() == [3, 1, 5, 2][part]
    found = images.rows(part)
    assert torch.equal(found.features, torch.cat(images.features.split([2, 4, 1, 3])[part]))
    assert found.counts.tolist() == [2, 4, 1, 3][part]


def test_joined_pairs_are_words_and_then_regions():
    texts, images = texts_of([3, 1, 2]), images_of([2, 4])
    words, regions = texts.ids.split([3, 1, 2]), images.features[:, 0].split([2, 4])
    txt, img = np.array([2, 0, 0, 1]), np.array([0, 1, 0, 0])
    joined = Joined.of(texts, images, txt, img)
    rows = torch.cat([texts.ids.float(), images.features[:, 0]])[joined.rows]
    expected = [torch.cat([words[t].float(), regions[i]]) for t, i in zip(txt, img, strict=True)]
    assert torch.equal(rows, torch.cat(expected)) and joined.layout.lengths.tolist() == [len(x) for x in expected]


def test_predicted_rows_know_their_pair():
    chosen = np.array([0, 1, 0, 0, 0, 1, 1, 0], bool)
    found = Predicted.at(chosen, Layout.of([3, 2, 3]))
    assert (found.rows.tolist(), found.pairs.tolist(), len(found)) == ([1, 5, 6], [0, 2, 2], 3)
    assert len(Predicted.at(np.zeros(8, bool), Layout.of([3, 2, 3]))) == 0


def test_consecutive_runs_against_a_loop():
    starts, lengths = np.array([5, 0, 9, 2]), np.array([2, 3, 0, 1])
    assert consecutive(starts, lengths).tolist() == [5, 6, 0, 1, 2, 2]
    assert consecutive(starts[:0], lengths[:0]).tolist() == []
