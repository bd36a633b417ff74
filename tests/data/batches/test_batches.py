"""From databases to batches: against loops that do it one value at a time."""

import json
import pickle
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from data.annotations.records import Caption
from data.batches.batch import collate_images, collate_texts
from data.batches.loader import batch_loader
from data.batches.pairs import ImageCaptions, PairDataset, open_pairs
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.errors import BadInput
from data.regions.db import BoxOptions, RegionDB, Regions
from data.regions.writer import RegionWriter
from model.objectives import OBJECTIVES
from model.objectives.base import ObjectiveOptions

WORDS = [a + b for a in "bdfgk" for b in "aeiouxyz"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]  # ids 0 to 4, then the words
CLS, SEP, MASK = 2, 3, 4
BOXES = BoxOptions(conf_th=0.2, max_bb=6, min_bb=2)
LENGTHS = {"p0": (1, 5, 3), "p1": (9,), "p2": (2, 4), "p3": (7,)}  # words of each picture's captions
COUNTS = {"p0": 6, "p1": 2, "p2": 4, "p3": 3}  # boxes above the threshold


def make_regions(count, width=6, labels=5, seed=0):
    """`count` boxes above the confidence threshold, and two below it."""
    rng = np.random.default_rng(seed)
    rows = count + 2
    conf = np.where(np.arange(rows) < count, 0.9, 0.1)
    soft = rng.dirichlet(np.ones(labels), rows) if labels else None
    return Regions(rng.normal(size=(rows, width)), rng.random((rows, 6)), conf, soft)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folders of a caption DB (English, and German for every second caption) and of a region DB."""
    root = tmp_path_factory.mktemp("world")
    (root / "vocab.txt").write_text("".join(f"{word}\n" for word in VOCABULARY))
    rng = np.random.default_rng(1)
    records = [
        Caption(f"{stem}.jpg", " ".join(rng.choice(WORDS, n)), f"{stem}#{i}", "train", "en" if i % 2 == 0 else "de")
        for stem, lengths in LENGTHS.items()
        for i, n in enumerate(lengths)
    ]
    write_caption_db(root / "captions", records, CaptionTokenizer.from_pretrained(root / "vocab.txt"), ["a.jsonl"])
    with RegionWriter(root / "regions", BOXES) as writer:
        for seed, stem in enumerate(reversed(COUNTS)):  # another order than the captions'
            writer.add(f"{stem}.npz", make_regions(COUNTS[stem], seed=seed))
    return root


@pytest.fixture(scope="module")
def pairs(world):
    return PairDataset(CaptionDB(world / "captions"), RegionDB(world / "regions", BOXES))


def batch_of(dataset, indices, task="cmr", rng=None, **options):
    """The pairs as the objective ``task`` takes them."""
    objective = OBJECTIVES[task](ObjectiveOptions(**options))
    return objective.prepare(dataset.examples(indices, objective.reads_soft_labels), rng)


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


# ---- large databases -------------------------------------------------------------------------------------------------


def naive_pairs(captions, regions, max_txt_len, languages):
    """What a PairDataset is, from dicts: ids, images, image_of, txt_lengths, img_lengths."""
    tables = [
        json.loads((captions / f"{name}.json").read_text()) for name in ("id2len", "txt2img", "img2txts", "txt2lang")
    ]
    lengths, txt2img, img2txts, txt2lang = tables
    ids = [i for i in lengths if max_txt_len < 0 or lengths[i] + 2 <= max_txt_len]
    ids = [i for i in ids if languages is None or txt2lang[i] in languages]
    images = [key for key in img2txts if key in {txt2img[i] for i in ids}]
    image_of = [images.index(txt2img[i]) for i in ids]
    counts = dict(RegionDB(regions, BOXES).num_regions)
    return ids, images, image_of, [lengths[i] + 2 for i in ids], [counts[txt2img[i]] + 1 for i in ids]


@pytest.mark.parametrize("limit, languages", [(-1, None), (6, None), (-1, ["de"]), (9, ["fr", "en"]), (6, ["de"])])
def test_stored_columns_give_what_dicts_give(world, tmp_path, monkeypatch, limit, languages):
    monkeypatch.setattr("data.storage.columns.STORED_FROM", 1)
    for name in ("captions", "regions"):
        shutil.copytree(world / name, tmp_path / name)
    expected = naive_pairs(tmp_path / "captions", tmp_path / "regions", limit, languages)
    for _ in range(2):  # built, then found
        data = open_pairs("captions", "regions", BOXES, limit, languages, str(tmp_path))
        assert (data.ids, data.images) == expected[:2]
        arrays = data.image_of, data.txt_lengths, data.img_lengths
        assert [array.tolist() for array in arrays] == list(expected[2:])
        assert {array.dtype for array in arrays} == {np.dtype(np.int32)}
        again = pickle.loads(pickle.dumps(data))
        assert again.ids == data.ids and batch_of(again, np.arange(len(data))).txt_ids == list(data.ids)
    assert (tmp_path / "captions" / "columns").is_dir()
    assert [path.name for path in (tmp_path / "regions").glob("*/columns*")] == ["columns_0.2_6_2_36"]


def read_in_worker(dataset, draw):
    """Databases that the process has mapped before it reads any, and the batch."""
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("data.mdb")]
    folders = (dataset.captions.folder, dataset.regions.folder)
    before = sum(line.endswith(str(folder.resolve() / "data.mdb")) for folder in folders for line in maps)
    return before, batch_of(dataset, draw)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_data_workers_read_the_databases(world, tmp_path, monkeypatch, method):
    monkeypatch.setattr("data.storage.columns.STORED_FROM", 1)
    shutil.copytree(world, tmp_path / "world")
    pairs = open_pairs("captions", "regions", BOXES, root=str(tmp_path / "world"))
    draws = [np.array([n, n + 1]) for n in range(5)]
    expected = [batch_of(pairs, draw) for draw in draws]  # the parent has them open
    loader = batch_loader(partial(read_in_worker, pairs), draws, num_workers=2, pin=False)
    loader.multiprocessing_context = method
    made = [found for _, found in loader]
    # two workers, each opened the captions; the map of the regions, into which views may point, is inherited by a fork
    inherited = 1 if method == "fork" else 0
    assert [before for before, _ in made] == [inherited, inherited, 2, 2, 2]
    for (_, batch), wanted in zip(made, expected, strict=True):
        assert batch.txt_ids == wanted.txt_ids and torch.equal(batch.images.features, wanted.images.features)
    assert read_in_worker(pairs, draws[0])[0] == 2


def test_lengths_of_the_third_view(world):
    view = ImageCaptions(CaptionDB(world / "captions"), 0.5)
    for keys in (["p3.npz", "p0.npz"], view.captions.img2txts.names, view.captions.txt2img.column):
        assert view.lengths(keys).tolist() == [len(view.input_ids(key)) for key in keys]
    assert view.lengths(["p9.npz"]).tolist() == [1]


# ---- several databases as one ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def second(world, tmp_path_factory):
    """Folders of another caption DB, of two new pictures and one known one, and of its region DB."""
    root = tmp_path_factory.mktemp("second")
    words = {"q0#0": ("q0", "ba be"), "q1#0": ("q1", "du"), "p1#9": ("p1", "fa fe fi"), "q1#1": ("q1", "ga ka ku")}
    records = [Caption(f"{image}.jpg", text, i, "train", "en") for i, (image, text) in words.items()]
    write_caption_db(root / "captions", records, CaptionTokenizer.from_pretrained(world / "vocab.txt"), ["b.jsonl"])
    with RegionWriter(root / "regions", BOXES) as writer:
        for seed, stem in enumerate(("p1", "q0", "q1")):
            writer.add(f"{stem}.npz", make_regions(3, seed=20 + seed))
    return root


@pytest.mark.parametrize("task", ["cmr", "mrckl"])
def test_joined_databases_give_the_rows_of_each(world, second, pairs, task):
    options = BOXES
    folders = [world / "captions", second / "captions"], [world / "regions", second / "regions"]
    joined, other = open_pairs(*folders, options), open_pairs(folders[0][1], folders[1][1], options)
    assert joined.ids == [*pairs.ids, *other.ids] and len(joined) == len(pairs) + len(other)
    named = [f"{second.name}/regions/{stem}.npz" for stem in ("q0", "q1", "p1")]
    assert joined.images == [*pairs.images, *named]  # p1 is in both databases, and is two pictures
    names = [Path(joined.images[of]).name for of in joined.image_of]
    assert names == [d.images[of] for d in (pairs, other) for of in d.image_of]
    assert list(joined.txt_lengths) == [*pairs.txt_lengths, *other.txt_lengths]
    assert list(joined.img_lengths) == [*pairs.img_lengths, *other.img_lengths]

    chosen = [9, 0, 8, 3, 7]
    assert len(pairs) == 7
    batch = batch_of(joined, np.array(chosen), task, np.random.default_rng(0))
    for row, index in enumerate(chosen):
        dataset, local = (pairs, index) if index < 7 else (other, index - 7)
        alone = batch_of(dataset, np.array([local]), "cmr")
        texts, images = batch.texts.rows(slice(row, row + 1)), batch.images.rows(slice(row, row + 1))
        assert torch.equal(texts.ids, alone.texts.ids) and images.counts == alone.images.counts
        expected = alone.images.features.clone()
        if task == "mrckl":
            first = int(batch.images.counts[:row].sum())
            expected[batch.masked_regions[first : first + len(expected)]] = 0
        assert torch.equal(images.features, expected)
        assert Path(joined.images[int(batch.image_ids[row])]).name == alone.img_keys[0] == Path(batch.img_keys[row]).name
    assert joined.regions[named[1]].features.shape == other.regions["q1.npz"].features.shape
    batch_of(pickle.loads(pickle.dumps(joined)), np.array(chosen))  # as a data worker gets it


def test_equal_keys_and_ids_of_two_databases_are_two_pictures_and_two_captions(world, second, pairs, tmp_path):
    tokenizer = CaptionTokenizer.from_pretrained(world / "vocab.txt")
    words = {"p0#0": ("p0", "du"), "p1#0": ("p1", "ba be")}  # ids and pictures of the first database, and other contents
    records = [Caption(f"{image}.jpg", text, i, "train", "en") for i, (image, text) in words.items()]
    write_caption_db(tmp_path / "b/captions", records, tokenizer, ["b.jsonl"])
    with RegionWriter(tmp_path / "b/regions", BOXES) as writer:
        for seed, stem in enumerate(("p0", "p1")):
            writer.add(f"{stem}.npz", make_regions(3, seed=70 + seed))
    folders = [world / "captions", tmp_path / "b/captions"], [world / "regions", tmp_path / "b/regions"]
    joined, other = open_pairs(*folders, BOXES), open_pairs(folders[0][1], folders[1][1], BOXES)
    assert joined.ids == [*pairs.ids, "b/captions/p0#0", "b/captions/p1#0"]
    assert joined.images == [*pairs.images, "b/regions/p0.npz", "b/regions/p1.npz"]
    assert len(set(joined.image_of.tolist())) == len(pairs.images) + 2
    for index, name in enumerate(joined.ids):
        dataset, local = (pairs, index) if index < len(pairs) else (other, index - len(pairs))
        expected, found = (d.examples(np.array([i])) for d, i in ((dataset, local), (joined, index)))
        assert found.words[0].tolist() == expected.words[0].tolist(), name
        assert np.array_equal(found.regions[0].features, expected.regions[0].features), name
        by_name = joined.regions[joined.images[joined.image_of[index]]]
        assert np.array_equal(by_name.features, expected.regions[0].features), name
    view = {"image_captions": str(world / "captions"), "caption_weight": 0.5}
    with pytest.raises(BadInput, match="image_captions cannot tell the two pictures apart"):
        open_pairs(*folders, BOXES, **view)


def test_captions_of_one_region_database_are_about_one_picture(world, pairs, tmp_path):
    """COCO's train and restval: other captions, the same regions, which may be given by two paths."""
    record = [Caption("p1.jpg", "du", "r0", "restval", "en")]
    write_caption_db(tmp_path / "restval", record, CaptionTokenizer.from_pretrained(world / "vocab.txt"), ["b.jsonl"])
    (tmp_path / "link").symlink_to(world / "regions")
    joined = open_pairs([world / "captions", tmp_path / "restval"], [world / "regions", tmp_path / "link"], BOXES)
    assert joined.images == list(pairs.images) and joined.images[joined.image_of[-1]] == "p1.npz"


def test_a_copy_of_a_region_database_holds_the_same_pictures(world, pairs, tmp_path):
    record = [Caption("p1.jpg", "du", "r0", "restval", "fr")]
    write_caption_db(tmp_path / "restval", record, CaptionTokenizer.from_pretrained(world / "vocab.txt"), ["b.jsonl"])
    shutil.copytree(world / "regions", tmp_path / "copy")
    joined = open_pairs([world / "captions", tmp_path / "restval"], [world / "regions", tmp_path / "copy"], BOXES)
    assert joined.images == list(pairs.images) and joined.images[joined.image_of[-1]] == "p1.npz"
    # what asks for words and languages finds each caption in its own database
    assert joined.caption_languages().tolist() == [*pairs.caption_languages(), "fr"]
    assert [each.tolist() for each in joined.words(np.array([7, 0]))] == [
        CaptionDB(tmp_path / "restval").input_ids("r0"), pairs.captions.input_ids(pairs.ids[0])
    ]  # fmt: skip
    assert (joined.captions_folder(6), joined.captions_folder(7)) == (world / "captions", tmp_path / "restval")


def test_databases_that_do_not_go_together_are_not_joined(world, second, tmp_path):
    options = BOXES
    with pytest.raises(BadInput, match=r"captions: is joined with itself .*; give each caption database once"):
        open_pairs([world / "captions"] * 2, world / "regions", options)
    with pytest.raises(BadInput, match=r"3 text DBs .* need one image DB or as many, found 2"):
        open_pairs([world / "captions"] * 3, [world / "regions"] * 2, options)
    with RegionWriter(tmp_path / "regions", BOXES) as writer:
        for stem in ("p1", "q0", "q1"):
            writer.add(f"{stem}.npz", make_regions(3, width=7))
    with pytest.raises(
        BadInput, match=f"{tmp_path}/regions.*: feature_dim is 7, in the first of the joined databases 6"
    ):
        open_pairs([world / "captions", second / "captions"], [world / "regions", tmp_path / "regions"], options)
