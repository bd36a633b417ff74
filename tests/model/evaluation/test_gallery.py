"""``eval_itm.py --gallery``: images and captions of other databases are candidates, against ranks from whole matrices."""

import json
import shutil

import numpy as np
import pytest
import torch

import eval_itm
from configs import cli
from data.annotations.records import Caption
from data.batches.batch import collate_images, collate_texts
from data.batches.gallery import open_gallery
from data.batches.pairs import open_pairs
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.errors import BadInput
from data.notices import say_once
from data.regions.db import BoxOptions, RegionDB, Regions
from data.regions.writer import RegionWriter
from model.bi_encoder import LightningDOT
from model.evaluation.outcomes import read_ranks
from model.evaluation.recall import recall_table
from model.retrieval.encoding import embed_pairs
from model.uniter import RerankerModelOptions, build_reranker
from scripts import compare
from tests.padded import padded_images, padded_texts

SPLITS = ("test", "train", "val")


@pytest.fixture(autouse=True)
def nothing_said():
    say_once.cache_clear()


@pytest.fixture
def evaluate(small_world, pretrained, tmp_path, capsys):
    """Evaluate db/test with these words → (what was printed, results.json, folder)."""

    def run(*words, out="out", captions=None):
        fixed = ["--checkpoint", pretrained / "last", "--captions", captions or small_world / "db/test"]
        words = [*fixed, "--regions", small_world / "regions", "--bootstrap", 20, "--out", tmp_path / out, *words]
        capsys.readouterr()
        eval_itm.main(cli.parse(eval_itm.EvalConfig, [str(word) for word in words]))
        return capsys.readouterr(), json.loads((tmp_path / out / "results.json").read_text()), tmp_path / out

    return run


@pytest.fixture(scope="module")
def galleries(small_world):
    return ["--gallery", small_world / "db/train", small_world / "db/val"]


@pytest.fixture(scope="module")
def union(small_world, pretrained):
    """Embeddings of all captions and images of the three splits, the test split's first, each from its database alone:
    txt [T,D], img [I,D], and of each caption: its id, its image's row, its language, whether it is of the test split."""
    model = LightningDOT.from_pretrained(pretrained / "last")
    txt, img, ids, image_of, languages, asked, start = [], [], [], [], [], [], 0
    for split in SPLITS:
        pairs = open_pairs(str(small_world / "db" / split), str(small_world / "regions"), BoxOptions())
        found = embed_pairs(model, pairs, "cpu", "fp32")
        txt.append(found[0].numpy())
        img.append(found[1].numpy())
        ids += list(pairs.ids)
        image_of += [start + row for row in pairs.image_of.tolist()]
        languages += [pairs.captions.languages[i] for i in pairs.ids]
        asked += [split == "test"] * len(pairs)
        start += len(pairs.images)
    return np.concatenate(txt), np.concatenate(img), ids, np.array(image_of), np.array(languages), np.array(asked)


def plain_ranks(txt, img, image_of, asked):
    """Ranks of the captions that are ``asked``, and of their images, by sorting whole rows of scores."""
    scores = txt @ img.T
    t2i = [np.argsort(-scores[c], kind="stable").tolist().index(image_of[c]) for c in np.flatnonzero(asked)]
    i2t = [
        min(np.flatnonzero(image_of[np.argsort(-scores[:, i], kind="stable")] == i)) for i in np.unique(image_of[asked])
    ]
    return np.array(t2i), np.array(i2t)


@pytest.mark.parametrize("search", ["exact", "hnsw"])
def test_ranks_among_all_splits_are_those_of_the_whole_matrices(evaluate, galleries, union, small_world, search):
    shown, results, out = evaluate(*galleries, "--search", search)
    txt, img, ids, image_of, languages, asked = union
    img_ids, txt_ids, ranks = read_ranks(out / "ranks.npz")
    assert img_ids == list(CaptionDB(small_world / "db/test").img2txts) and len(img) == 40
    for language in ("en", "de"):
        own = languages == language
        t2i, i2t = plain_ranks(txt[own], img, image_of[own], asked[own])
        table = recall_table(t2i, i2t)
        one_query = 0 if search == "exact" else 100 / 8  # an approximate search may miss a candidate
        assert results["recall"][language] == pytest.approx(table, abs=one_query + 1e-4)
        assert txt_ids[language] == [i for i, is_own, is_asked in zip(ids, own, asked) if is_own and is_asked]
        if search == "exact":
            np.testing.assert_array_equal(ranks[language].t2i, t2i)
            np.testing.assert_array_equal(ranks[language].i2t, i2t)
        assert results["queries"][language] == {"images": 8, "texts": int((own & asked).sum())}
        assert results["candidates"][language] == {"images": 40, "texts": int(own.sum())}
        line = next(line for line in shown.out.splitlines() if line.startswith(f"{language} "))
        assert line.split()[-4:] == ["8", str((own & asked).sum()), "40", str(own.sum())]
        assert results["chance"][language]["IR@5"] == pytest.approx(100 * 5 / 40)
        answers, number = (own & asked).sum() / 8, own.sum()
        assert results["chance"][language]["TR@1"] == pytest.approx(100 * answers / number)
        bounds = results["intervals"][language]["IR@5"]
        assert bounds["low"] <= table["IR@5"] <= bounds["high"]
    assert f"8 images, {asked.sum()} captions, among 40 images and {len(ids)} captions with those of" in shown.out
    assert (results["images"], results["captions"]) == (8, asked.sum())


def test_indexes_of_the_split_and_of_a_gallery_are_used_again(evaluate, galleries, small_world):
    alone = evaluate()[1]
    shown = evaluate(*galleries)[0].err
    assert shown.count("up to date") == 2 and shown.count("out/img: up to date, 8 vectors") == 1
    shown, results, _ = evaluate("--gallery", small_world / "db/val", small_world / "db/train")
    assert shown.err.count("up to date") == 6
    shown, again, _ = evaluate()
    assert shown.err.count("up to date") == 2
    assert again["recall"] == alone["recall"] and "in imgs" not in shown.out and again["candidates"]["en"]["images"] == 8
    assert all(results["recall"]["en"][metric] <= again["recall"]["en"][metric] for metric in again["recall"]["en"])


def test_evaluations_of_other_galleries_are_not_compared(evaluate, galleries, small_world):
    evaluate(out="alone")
    full = evaluate(*galleries, out="full")
    assert set(full[1]["data"]) == {"captions", "regions", "gallery captions", "gallery regions"}
    part = evaluate("--gallery", small_world / "db/val", out="part")
    for other in (part[2], part[2].with_name("alone")):
        with pytest.raises(BadInput, match=r"the queries have other candidates, gallery captions .* in the first and "):
            compare.main(compare.Options(str(full[2]), str(other), bootstrap=10))
    again = evaluate(*galleries, out="again")
    compare.main(compare.Options(str(full[2]), str(again[2]), bootstrap=10))


def test_an_image_database_is_a_gallery_without_captions(evaluate, galleries, union, small_world):
    _, full, _ = evaluate(*galleries, out="full")
    _, results, out = evaluate("--gallery", small_world / "regions")
    pictures, captions = len(RegionDB(small_world / "regions")), len(CaptionDB(small_world / "db/test"))
    assert results["candidates"]["en"]["images"] == pictures and results["candidates"]["en"]["texts"] < captions
    assert (out / "gallery/regions/img").is_dir() and not (out / "gallery/regions/txt").exists()
    alone = evaluate(out="alone")[1]
    for metric, value in results["recall"]["en"].items():
        if metric.startswith("TR"):
            assert value == alone["recall"]["en"][metric]
        elif metric.startswith("IR") and pictures == 40:
            assert value == full["recall"]["en"][metric]
    assert results["chance"]["en"]["IR@1"] == pytest.approx(100 / pictures)


def test_a_reranker_ranks_the_full_gallery(evaluate, galleries, union, small_world, pretrained, tmp_path):
    pairs = open_pairs(str(small_world / "db/test"), str(small_world / "regions"), BoxOptions())
    torch.manual_seed(1)
    reranker, _ = build_reranker(RerankerModelOptions(init=str(pretrained / "last")), pairs)
    torch.nn.init.normal_(reranker.rank_output.weight)
    reranker.eval().save_pretrained(tmp_path / "reranker")
    results = evaluate(*galleries, "--languages", "en", "--reranker", tmp_path / "reranker", "--rerank-top", 3)[1]
    txt, img, ids, image_of, languages, asked = union
    own = languages == "en"
    txt, ids, image_of, asked = txt[own], [i for i, is_own in zip(ids, own) if is_own], image_of[own], asked[own]
    scores = txt @ img.T
    databases = [open_pairs(str(small_world / "db" / split), str(small_world / "regions"), BoxOptions()) for split in SPLITS]
    keys = [key for database in databases for key in database.images]
    words = {i: database.captions.input_ids(i) for database in databases for i in database.ids}

    def pair_score(caption, image):
        text = collate_texts([np.array([pairs.captions.meta["CLS"], *words[ids[caption]], pairs.captions.meta["SEP"]])])
        with torch.no_grad():
            return float(reranker(*padded_texts(text), *padded_images(collate_images([pairs.regions.get(keys[image])]))))

    def ranked(order, again):
        return [order[n] for n in np.argsort([-again(n) for n in order[:3]], kind="stable")] + order[3:]

    t2i, i2t = [], []
    for caption in np.flatnonzero(asked):
        order = ranked(np.argsort(-scores[caption], kind="stable").tolist(), lambda n, c=caption: pair_score(c, n))
        t2i.append(order.index(image_of[caption]))
    for image in range(8):
        order = ranked(np.argsort(-scores[:, image], kind="stable").tolist(), lambda n, i=image: pair_score(n, i))
        i2t.append(min(order.index(caption) for caption in np.flatnonzero(image_of == image)))
    assert results["reranker"]["top"]["3"]["recall"]["all"] == pytest.approx(recall_table(np.array(t2i), np.array(i2t)))


def test_what_is_in_a_gallery_twice_is_a_candidate_once(evaluate, small_world, tmp_path, galleries):
    """A gallery that holds the split, too, and one caption more of one of its pictures."""
    tokenizer = CaptionTokenizer.from_pretrained(CaptionDB(small_world / "db/test").tokenizer_folder)
    records = []
    for split in SPLITS:
        captions = CaptionDB(small_world / "db" / split)
        records += [
            Caption(f"{captions.txt2img[i].removesuffix('.npz')}.jpg", captions[i]["raw"], i, "all", captions.languages[i])
            for i in captions.ids
        ]
    write_caption_db(tmp_path / "all", records, tokenizer, ["made here"])
    expected = evaluate(*galleries)[1]
    say_once.cache_clear()
    shown, results, _ = evaluate("--gallery", tmp_path / "all", out="all")
    assert results["candidates"] == expected["candidates"] and results["recall"] == expected["recall"]
    assert f"galleries: {expected['captions']} captions are there already (picture, id and words)" in shown.err
    more = [Caption(records[0].image, "a new red star", "new", "all", "en"), Caption(records[0].image, "une étoile", "fr", "all", "fr")]
    write_caption_db(tmp_path / "more", records + more, tokenizer, ["made here"])
    say_once.cache_clear()
    shown, results, _ = evaluate("--gallery", tmp_path / "more", out="more")
    assert results["candidates"]["en"]["texts"] == expected["candidates"]["en"]["texts"] + 1
    assert results["queries"] == expected["queries"] and list(results["candidates"]) == ["en", "de"]
    assert "2 captions are of the split's images, and right answers of theirs" in shown.err
    assert "1 captions are in languages that no query has (fr): they are no candidates" in shown.err


def test_a_picture_of_two_image_databases_is_one_where_its_regions_are(small_world, tmp_path):
    boxes, regions = BoxOptions(), RegionDB(small_world / "regions")
    split = open_pairs(str(small_world / "db/test"), str(small_world / "regions"), boxes)
    keys = list(split.images)
    with RegionWriter(tmp_path / "other", boxes) as writer:
        for n, key in enumerate(keys):
            stored = regions.get(key)
            if n == 3:  # another picture of this name
                stored = Regions(stored.features + 1, stored.norm_bb, stored.conf, stored.soft_labels)
            if n < 5:
                writer.add(key, stored)
        writer.add("new.npz", stored)
    pairs = open_gallery(split, [str(tmp_path / "other")], [str(small_world / "regions")], boxes)
    assert pairs.images == [*keys, f"other/{keys[3]}", "other/new.npz"]
    (first, second) = pairs.index_parts()
    assert list(first.images) == keys and second.images == [keys[3], "new.npz"] and second.name == "gallery/other"
    assert np.array_equal(pairs.regions[f"other/{keys[3]}"].features, RegionDB(tmp_path / "other")[keys[3]].features)

    shutil.copytree(small_world / "regions", tmp_path / "copy")
    pairs = open_gallery(split, [str(small_world / "db/val"), str(tmp_path / "copy")], [str(tmp_path / "copy")], boxes)
    assert len(pairs.images) == len(regions) and set(pairs.images) == set(regions.keys)


def test_keys_with_other_regions_are_told(small_world, tmp_path, capsys):
    split = open_pairs(str(small_world / "db/test"), str(small_world / "regions"), BoxOptions())
    with RegionWriter(tmp_path / "other", BoxOptions()) as writer:
        for key in list(split.images)[:2]:
            stored = split.regions.get(key)
            writer.add(key, Regions(stored.features + 1, stored.norm_bb, stored.conf, stored.soft_labels))
    open_gallery(split, [str(tmp_path / "other")], [str(small_world / "regions")], BoxOptions())
    assert f"{tmp_path / 'other'}: has 2 keys of another image DB with other regions under them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gallery", "val", "--coco-1k", True], "folds of 1,000 images are of the split alone"),
        (["--gallery-regions", "x"], "there is no gallery"),
        (["--gallery", "val", "--gallery-regions", "val", "test"], "1 text DBs among the galleries need one image DB or as many, found 2: "),
        (["--gallery", "test"], "db/test: is joined with itself"),
        (["--gallery", "absent"], "db/absent"),
        (["--gallery", "silent"], "says the languages of its captions, .*silent does not"),
    ],
)
def test_what_does_not_go_together_is_refused(evaluate, small_world, tmp_path, words, message):
    if "silent" in words:
        shutil.copytree(small_world / "db/val", tmp_path / "db/silent")
        (tmp_path / "db/silent/txt2lang.json").unlink()
        shutil.rmtree(tmp_path / "db/silent/columns", ignore_errors=True)
    places = {name: small_world / "db" / name for name in ("val", "test", "absent")} | {"silent": tmp_path / "db/silent"}
    with pytest.raises(BadInput, match=message):
        evaluate(*(places.get(word, word) if isinstance(word, str) else word for word in words))
