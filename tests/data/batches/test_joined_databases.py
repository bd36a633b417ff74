"""Large databases, of stored columns, and several databases as one."""

import json
import pickle
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from data.annotations.records import Caption
from data.batches.loader import batch_loader
from data.batches.pairs import ImageCaptions, open_pairs
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.errors import BadInput
from data.regions.db import RegionDB
from data.regions.writer import RegionWriter
from tests.pair_databases import BOXES, batch_of, make_regions

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


def test_a_picture_whose_list_of_captions_is_empty_has_none(world, tmp_path):
    shutil.copytree(world / "captions", tmp_path / "captions")
    table = json.loads((world / "captions/img2txts.json").read_text())
    (tmp_path / "captions/img2txts.json").write_text(json.dumps(table | {"p9.npz": []}))
    view = ImageCaptions(CaptionDB(tmp_path / "captions"), 0.5)
    view.check(list(table))
    with pytest.raises(BadInput, match=r"has no caption of image p9\.npz, which the third view needs"):
        view.check([*table, "p9.npz"])


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
