"""From databases to batches: against loops that do it one value at a time."""

import pickle
import shutil
from functools import partial

import numpy as np
import pytest
import torch

from data.batches.batch import collate_images, collate_texts
from data.batches.loader import batch_loader
from data.batches.pairs import open_pairs
from data.errors import BadInput
from data.regions.db import BoxOptions, Regions
from data.regions.writer import RegionWriter
from tests.pair_databases import BOXES, COUNTS, LENGTHS, batch_of, make_regions

CLS, SEP, MASK = 2, 3, 4


# ---- collating -------------------------------------------------------------------------------------------------------


def test_collate_texts_against_a_loop():
    texts = [np.array([5, 6, 7]), np.array([8]), np.array([9, 10])]
    found, row = collate_texts(texts), 0
    assert found.ids.dtype == torch.int64 and found.layout.lengths.tolist() == [3, 1, 2] and len(found) == 3
    for text in texts:
        for word in text:
            assert found.ids[row] == word
            row += 1
    assert row == len(found.ids)
    assert collate_texts([[5, 6], [7]]).ids.tolist() == [5, 6, 7]


def test_collate_images_against_a_loop():
    images = [make_regions(n, seed=n) for n in (3, 1, 4)]
    images = [Regions(r.features.astype(np.float16), r.norm_bb.astype(np.float16), r.conf) for r in images]
    found, row = collate_images(images), 0
    assert (found.features.dtype, found.positions.dtype) == (torch.float16, torch.float32)
    assert found.features.shape == (14, 6) and found.positions.shape == (14, 7) and found.counts.tolist() == [5, 3, 6]
    for image in images:
        for box in range(len(image)):
            for column in range(6):
                assert found.features[row, column] == float(image.features[box, column])
                assert found.positions[row, column] == float(image.norm_bb[box, column])
            area = np.float32(image.norm_bb[box, 4]) * np.float32(image.norm_bb[box, 5])
            assert found.positions[row, 6] == area  # of fp16 values, multiplied in fp32
            row += 1
    assert row == 14


# ---- which pairs -----------------------------------------------------------------------------------------------------


def test_pairs_and_lengths(pairs):
    assert len(pairs) == 7 and pairs.images == ["p0.npz", "p1.npz", "p2.npz", "p3.npz"]
    assert pairs.image_of.tolist() == [0, 0, 0, 1, 2, 2, 3]
    assert pairs.txt_lengths.tolist() == [3, 7, 5, 11, 4, 6, 9]  # words + 2
    assert pairs.img_lengths.tolist() == [7, 7, 7, 3, 5, 5, 4]  # boxes + 1


@pytest.mark.parametrize("limit, left", [(-1, 7), (11, 7), (10, 6), (4, 2), (3, 1)])
def test_max_txt_len_counts_cls_and_sep(world, limit, left):
    dataset = open_pairs("captions", "regions", BOXES, limit, root=str(world))
    assert len(dataset) == left == len(dataset.image_of) == len(dataset.txt_lengths) == len(dataset.img_lengths)
    batch = batch_of(dataset, np.arange(left))
    assert batch.texts.layout.longest == dataset.txt_lengths.max() <= (limit if limit > 0 else 11)
    assert set(batch.img_keys) == set(dataset.images)  # pictures without captions left are not candidates
    with pytest.raises(BadInput, match=r"captions: no caption of 7 is left .max_txt_len 2, languages any"):
        open_pairs("captions", "regions", BOXES, 2, root=str(world))


def test_captions_that_are_too_long_are_counted(world):
    dataset = open_pairs("captions", "regions", BOXES, root=str(world))
    assert dataset.at_most(11) is dataset and dataset.dropped == 0
    shorter = dataset.at_most(6)
    assert shorter.txt_lengths.tolist() == [3, 5, 4, 6] and shorter.dropped == 3
    assert open_pairs("captions", "regions", BOXES, 6, root=str(world)).dropped == 3
    with pytest.raises(BadInput, match="no caption of 7 is left"):
        dataset.at_most(2)
    whole = {i: dataset.captions.input_ids(i) for i in dataset.ids}
    dataset.cut_captions(6)
    assert dataset.cut == 3 and dataset.txt_lengths.tolist() == [3, 6, 5, 6, 4, 6, 6]
    assert {i: dataset.captions.input_ids(i) for i in dataset.ids} == {i: words[:4] for i, words in whole.items()}
    dataset.cut_captions(5)
    assert dataset.cut == 4 and batch_of(dataset, np.arange(7)).texts.layout.longest == 5


def test_languages(world):
    def chosen(languages):
        return open_pairs(world / "captions", world / "regions", BOXES, languages=languages)

    assert chosen(["de"]).ids == ["p0#1", "p2#1"] and chosen(["de"]).images == ["p0.npz", "p2.npz"]
    assert chosen(["de"]).image_of.tolist() == [0, 1]
    assert len(chosen(["en"])) == 5 and len(chosen(["en", "de"])) == len(chosen(None)) == 7
    with pytest.raises(BadInput, match=r"captions: no caption of 7 is left .*languages .'fr'"):
        chosen(["fr"])


def test_a_caption_whose_image_is_absent(world, tmp_path):
    with RegionWriter(tmp_path / "regions", BOXES) as writer:
        for stem in ("p0", "p2"):
            writer.add(f"{stem}.npz", make_regions(3))
    with pytest.raises(BadInput) as error:
        open_pairs(world / "captions", tmp_path / "regions", BOXES)
    for part in (str(world / "captions"), "caption p1#0", "p1.npz", str(tmp_path / "regions"), "2 of 4 images"):
        assert part in str(error.value)
    # its captions may all be left out
    assert len(open_pairs(world / "captions", tmp_path / "regions", BOXES, 7)) == 5


def test_a_caption_db_whose_tables_disagree(world, tmp_path):
    shutil.copytree(world / "captions", tmp_path / "captions")
    table = tmp_path / "captions" / "img2txts.json"
    table.write_text(table.read_text().replace("p1.npz", "p9.npz"))
    with pytest.raises(BadInput, match=r"img2txts.json: no captions for p1.npz"):
        open_pairs(tmp_path / "captions", world / "regions", BOXES)


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_a_batch_holds_what_the_databases_hold(pairs):
    indices = np.array([4, 0, 3, 2])
    batch = batch_of(pairs, indices)
    assert len(batch) == 4 and batch.txt_ids == ["p2#0", "p0#0", "p1#0", "p0#2"]
    assert batch.img_keys == ["p2.npz", "p0.npz", "p1.npz", "p0.npz"]
    tokens, boxes = [], []
    for row, (txt_id, key) in enumerate(zip(batch.txt_ids, batch.img_keys, strict=True)):
        tokens.append([CLS, *pairs.captions[txt_id]["input_ids"], SEP])
        assert batch.texts.layout.lengths[row] == len(tokens[-1]) == pairs.txt_lengths[indices[row]]
        boxes.append(pairs.regions[key])
        count = COUNTS[key.removesuffix(".npz")]
        assert len(boxes[-1]) == count == batch.images.counts[row] == batch.images.layout.lengths[row] - 1
    assert batch.texts.ids.tolist() == [word for text in tokens for word in text]  # nothing between them
    assert np.array_equal(batch.images.features.numpy(), np.concatenate([regions.features for regions in boxes]))
    assert np.array_equal(batch.images.positions.numpy(), np.concatenate([regions.positions for regions in boxes]))
    assert batch.image_ids.tolist() == [2, 0, 1, 0]  # equal for siblings
    assert batch.word_labels is batch.masked_regions is batch.feature_targets is batch.label_targets is None


def test_an_image_of_several_pairs_stands_in_a_batch_once(pairs):
    rows = np.array([6, 0, 4, 1, 5, 2, 0])
    twin, once = batch_of(pairs, rows), batch_of(pairs, rows, images_once=True)
    assert twin.image_rows is None and len(once.images) == len(set(twin.img_keys)) == 3
    assert once.image_rows.tolist() == [0, 1, 2, 1, 2, 1, 1] and once.img_keys == twin.img_keys  # by first appearance
    for part in [once, *once.split(3), *once.split(1)]:
        shown = part.images.take(part.image_rows.numpy())
        keys = [pairs.regions.get(key) for key in part.img_keys]
        assert torch.equal(shown.features, collate_images(keys).features)
        assert torch.equal(shown.positions, collate_images(keys).positions)
        assert len(part.images) == len(set(part.img_keys))


def test_masked_words_and_their_labels(pairs):
    indices = np.arange(7)
    plain = batch_of(pairs, indices)
    changed = 0
    for seed in range(20):
        batch = batch_of(pairs, indices, "vmlm", np.random.default_rng(seed), word_mask_prob=0.5)
        assert torch.equal(batch.texts.layout.offsets, plain.texts.layout.offsets)
        assert batch.word_labels.shape == batch.texts.ids.shape and batch.word_labels.dtype == torch.int64
        assert torch.equal(batch.images.features, plain.images.features)
        token, predicted = 0, []
        for row in range(7):
            for column in range(pairs.txt_lengths[row]):
                label, original, word = batch.word_labels[token], plain.texts.ids[token], batch.texts.ids[token]
                if 0 < column < pairs.txt_lengths[row] - 1 and label != -1:
                    assert label == original  # the shift by [CLS] is right
                    assert word == MASK or word >= 5
                    changed += word == MASK
                    predicted.append((token, row))
                else:
                    assert label == -1 and word == original  # never [CLS] or [SEP]
                token += 1
        assert {row for _, row in predicted} == set(range(7))  # at least one of each
        assert list(zip(batch.predicted.rows.tolist(), batch.predicted.pairs.tolist(), strict=True)) == predicted
    assert changed > 200


@pytest.mark.parametrize("task", ["mrfr", "mrckl", "mrc"])
def test_masked_regions_and_their_targets(pairs, task):
    indices = np.array([3, 0, 6, 1, 4])
    plain = batch_of(pairs, indices)
    for seed in range(10):
        batch = batch_of(pairs, indices, task, np.random.default_rng(seed), region_mask_prob=0.4)
        assert torch.equal(batch.texts.ids, plain.texts.ids) and batch.word_labels is None
        assert torch.equal(batch.images.order, plain.images.order)
        assert torch.equal(batch.images.positions, plain.images.positions)
        features, labels, predicted, region = [], [], [], 0
        for row, key in enumerate(batch.img_keys):
            stored = pairs.regions[key]
            for box in range(len(stored)):
                if batch.masked_regions[region]:
                    assert not batch.images.features[region].any()
                    features.append(stored.features[box])
                    labels.append(stored.soft_labels[box])
                    predicted.append((region + row + 1, row))  # a [CLS] before its image's regions, and one of each before
                else:
                    assert torch.equal(batch.images.features[region], plain.images.features[region])
                region += 1
        assert {row for _, row in predicted} == set(range(5))  # at least one of each
        assert list(zip(batch.predicted.rows.tolist(), batch.predicted.pairs.tolist(), strict=True)) == predicted
        assert np.array_equal(batch.feature_targets.numpy(), np.stack(features))
        if task == "mrfr":
            assert batch.label_targets is None
        else:
            assert batch.label_targets.dtype == torch.float16
            assert np.array_equal(batch.label_targets.numpy(), np.stack(labels))
    stored = pairs.regions["p1.npz"]  # what was zeroed was a copy
    assert np.array_equal(stored.features, plain.images.features[:2].numpy()) and stored.features.all()


def test_masking_follows_the_generator(pairs):
    for task in ("vmlm", "mrckl"):
        batches = [batch_of(pairs, np.arange(7), task, np.random.default_rng(seed)) for seed in (5, 5, 6)]
        first, second, third = (
            b.word_labels if task == "vmlm" else b.masked_regions for b in batches
        )
        assert torch.equal(first, second) and torch.equal(batches[0].texts.ids, batches[1].texts.ids)
        assert not torch.equal(first, third)


def test_an_image_without_boxes_is_refused(tmp_path, world):
    with RegionWriter(tmp_path / "regions", BoxOptions(0.2, 6, 0)) as writer:
        for stem in LENGTHS:
            writer.add(f"{stem}.npz", make_regions(0 if stem == "p1" else 3))
    with pytest.raises(BadInput, match=r"key 'p1.npz' has 0 boxes to use, expected at least 1"):
        open_pairs(world / "captions", tmp_path / "regions", BoxOptions(0.2, 6, 0))


def test_moving_a_batch_keeps_everything(pairs):
    batch = batch_of(pairs, np.arange(4), "mrc", np.random.default_rng(0))
    moved = batch.to("meta")
    assert moved.images.features.is_meta and moved.label_targets.is_meta and moved.word_labels is None
    assert all(x.is_meta for x in (moved.texts.layout.offsets, moved.texts.layout.places, moved.predicted.rows))
    assert moved.txt_ids == batch.txt_ids and moved.images.features.shape == batch.images.features.shape
    assert moved.texts.layout.blocks == batch.texts.layout.blocks and not batch.images.features.is_meta


# ---- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_in_workers_gives_the_same_batches_in_order(pairs, workers):
    draws = [np.array([n % 7, (3 * n) % 7]) for n in range(9)]
    torch.manual_seed(0)
    before = torch.get_rng_state()
    loaded = list(batch_loader(partial(batch_of, pairs), iter(draws), workers, pin=False))
    assert torch.equal(torch.get_rng_state(), before)  # dropout after a resumed run goes on as it would have
    assert len(loaded) == 9
    for (draw, batch), expected in zip(loaded, draws, strict=True):
        assert np.array_equal(draw, expected)
        assert batch.txt_ids == [pairs.ids[i] for i in expected]
        assert torch.equal(batch.images.features, batch_of(pairs, expected).images.features)


def test_a_dataset_can_be_sent_to_another_process(pairs):
    copy = pickle.loads(pickle.dumps(pairs))
    assert torch.equal(batch_of(copy, np.arange(7)).images.features, batch_of(pairs, np.arange(7)).images.features)
