"""``eval_itm.py`` on an untrained model: tables, intervals, duplicates, HNSW and the outcomes of single queries."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import eval_itm
from data.annotations.records import Caption
from data.batches.pairs import open_pairs
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.regions.db import BoxOptions, Regions
from data.regions.writer import RegionWriter
from data.search.faiss import HnswIndex, HnswOptions
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.evaluation.outcomes import QueryRanks, read_ranks, write_ranks
from model.evaluation.recall import METRICS, mean_table, recall_table
from model.evaluation.split import Split, rank_folds
from model.evaluation.tables import Table, as_json, format_intervals, format_recall, mean_of_tasks, task_tables
from model.evaluation.tasks import captions_by_language, evaluate, ranker, wordings
from model.transformer import EncoderConfig
from tests.flipped_bits import assert_noticed_or_harmless


@pytest.fixture(scope="module")
def world(small_world, tmp_path_factory):
    """A folder with an untrained ``model`` and captions of the pictures of the small world: ``mixed`` (English, German),
    ``english``, and ``distinct``, in which no wording is of two pictures."""
    root = tmp_path_factory.mktemp("evaluation")
    stored = CaptionDB(small_world / "db/test")
    tokenizer = CaptionTokenizer.from_pretrained(stored.tokenizer_folder)
    torch.manual_seed(0)
    size = EncoderConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=80, initializer_range=0.3,
    )  # fmt: skip
    cls = tokenizer.cls_id
    LightningDOT(LightningDOTConfig(size, size, project_dim=24, feature_dim=32, cls_token_id=cls)).save_pretrained(
        root / "model"
    )
    tokenizer.save_pretrained(root / "model" / "tokenizer")
    captions, distinct = [], []
    for number, key in enumerate(CaptionDB(small_world / "db/train").img2txts):
        image, shape = f"{key.removesuffix('.npz')}.jpg", ("circle", "square", "star")[number % 3]
        same, own = f"a red {shape}", f"{'a blue star ' * (number % 4 + 1)}{'above a circle ' * (number // 4)}"
        for i, text in enumerate((same, own)):
            captions.append(Caption(image, text, f"{number}#{i}", "test", "en"))
        captions.append(
            Caption(
                image,
                f"{'ein Stern ' * (number % 5 + 1)}{'neben einem Kreis ' * (number // 5)}",
                f"{number}#de",
                "test",
                "de",
            )
        )
        distinct += captions[-2:-1]
    write_caption_db(root / "mixed", captions, tokenizer, annotations=["made here"])
    write_caption_db(
        root / "english", [c for c in captions if c.language == "en"], tokenizer, annotations=["made here"]
    )
    write_caption_db(root / "distinct", distinct, tokenizer, annotations=["made here"])
    return root


@pytest.fixture
def evaluated(world, small_world, tmp_path, capsys):
    """Evaluate with these settings → (what was printed, results.json, folder)."""

    def run(captions="english", **settings):
        config = eval_itm.EvalConfig(
            checkpoint=str(world / "model"), captions=str(world / captions), out=str(tmp_path / "out"),
            **{"bootstrap": 200, "regions": str(small_world / "regions")} | settings,
        )  # fmt: skip
        capsys.readouterr()
        eval_itm.main(config)
        return (
            capsys.readouterr().out,
            json.loads((tmp_path / "out" / "results.json").read_text()),
            tmp_path / "out",
        )

    return run


def naive_ranks(out, queries, gallery, right):
    """QueryRanks through loops over the stored vectors; ``right(query id, candidate id)`` says what answers."""
    questions, candidates = EmbeddingIndex(out / queries[0]), EmbeddingIndex(out / gallery[0])
    ranks = []
    for query in queries[1]:
        vector = questions.vectors(np.array([questions.row_of(query)]))[0]
        scores = [float(vector @ candidates.vectors(np.array([candidates.row_of(c)]))[0]) for c in gallery[1]]
        order = sorted(range(len(scores)), key=lambda n: (-scores[n], n))
        ranks.append(next(place for place, n in enumerate(order) if right(query, gallery[1][n])))
    return np.array(ranks)


def ranks_of(scores, right):
    """[Q] of the best right answer, from scores [Q,N] without equals."""
    best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
    return (scores > best).sum(axis=1)


def test_ranks_of_every_query_are_kept_and_make_the_table(evaluated, world):
    shown, results, out = evaluated("mixed")
    captions = CaptionDB(world / "mixed")
    img_ids, txt_ids, ranks = read_ranks(out / results["ranks"])
    assert img_ids == list(captions.img2txts) and list(ranks) == ["en", "de"]
    tables = {}
    for name, task in ranks.items():
        ids = [i for i in captions.ids if captions.languages[i] == name]
        assert txt_ids[name] == ids and task.t2i.dtype == np.int32
        t2i = naive_ranks(out, ("txt", ids), ("img", img_ids), lambda t, i: captions.txt2img[t] == i)
        i2t = naive_ranks(out, ("img", img_ids), ("txt", ids), lambda i, t: captions.txt2img[t] == i)
        np.testing.assert_array_equal(task.t2i, t2i)
        np.testing.assert_array_equal(task.i2t, i2t)
        assert [img_ids[n] for n in task.image_of] == [captions.txt2img[i] for i in ids]
        tables[name] = recall_table(t2i, i2t)
    for name, table in (tables | {"all": mean_table(list(tables.values()))}).items():
        assert results["recall"][name] == pytest.approx(table)
    assert list(results["recall"]) == ["en", "de", "all", "chance"] and results["captions"] == 72
    assert (out / "ranks.npz").stat().st_size < 4000 and "ranks.npz" not in shown


@pytest.fixture
def partly_german(world, tmp_path):
    """English captions of all 24 images, German ones of every third."""
    tokenizer = CaptionTokenizer.from_pretrained(world / "model" / "tokenizer")
    keys = list(CaptionDB(world / "mixed").img2txts)
    captions = [
        Caption(f"{key.removesuffix('.npz')}.jpg", f"{words * (n % 6 + 1)} {more * (n // 6)}", f"{n}#{language}", "test", language)
        for n, key in enumerate(keys)
        for language, words, more in (("en", "a red star ", "above a circle "), ("de", "ein Stern ", "neben einem Kreis "))
        if language == "en" or n % 3 == 0
    ]
    write_caption_db(tmp_path / "partly", captions, tokenizer, annotations=["made here"])
    return tmp_path / "partly"


@pytest.mark.parametrize("search", ["exact", "hnsw"])
def test_an_image_without_a_caption_in_a_language_is_no_query_of_it(evaluated, world, partly_german, search, small_world):
    shown, results, out = evaluated(partly_german, search=search)
    captions = CaptionDB(partly_german)
    img_ids, _, ranks = read_ranks(out / "ranks.npz")
    assert img_ids == list(captions.img2txts) and len(img_ids) == 24
    for name, number in (("en", 24), ("de", 8)):
        ids = [i for i in captions.ids if captions.languages[i] == name]
        asked = [i for i in img_ids if any(captions.txt2img[t] == i for t in ids)]
        t2i = naive_ranks(out, ("txt", ids), ("img", img_ids), lambda t, i: captions.txt2img[t] == i)
        i2t = naive_ranks(out, ("img", asked), ("txt", ids), lambda i, t: captions.txt2img[t] == i)
        assert [img_ids[n] for n in ranks[name].queries] == asked and len(asked) == number == len(i2t)
        assert results["recall"][name] == pytest.approx(recall_table(t2i, i2t))
        assert results["queries"][name] == {"images": number, "texts": number}
        if search == "exact":
            np.testing.assert_array_equal(ranks[name].i2t, i2t)
        line = next(line for line in shown.splitlines() if line.startswith(f"{name} "))
        assert line.split()[-2:] == [str(number), str(number)]
        assert results["chance"][name]["TR@5"] == pytest.approx(100 * 5 / number)
        assert results["chance"][name]["IR@5"] == pytest.approx(100 * 5 / 24)
    assert results["recall"]["de"]["TR@10"] > 8 / 24 * 100
    assert results["queries"]["all"] == {"images": 32, "texts": 32}
    assert results["recall"]["chance"]["TR@5"] == pytest.approx((100 * 5 / 24 + 100 * 5 / 8) / 2)
    low, high = results["intervals"]["de"]["TR@5"].values()
    assert low <= results["recall"]["de"]["TR@5"] <= high
    pairs = open_pairs(str(partly_german), str(small_world / "regions"), BoxOptions())
    for name, table in evaluate(LightningDOT.from_pretrained(world / "model"), pairs, "cpu").items():
        assert search == "hnsw" or table == pytest.approx(results["recall"][name])


def test_duplicates_of_other_images_count_as_right(evaluated, world):
    shown, results, out = evaluated("english")
    captions = CaptionDB(world / "english")
    text = {i: captions[i]["raw"].strip() for i in captions.ids}
    words = {key: {text[t] for t in own} for key, own in captions.img2txts.items()}
    images, ids = list(captions.img2txts), captions.ids
    t2i = naive_ranks(out, ("txt", ids), ("img", images), lambda t, i: text[t] in words[i])
    i2t = naive_ranks(out, ("img", images), ("txt", ids), lambda i, t: text[t] in words[i])
    aware = results["duplicate_aware"]
    assert aware["captions"] == 24 and aware["recall"]["all"] == pytest.approx(recall_table(t2i, i2t))
    assert aware["recall"]["all"]["AR"] > results["recall"]["all"]["AR"]
    assert aware["intervals"]["all"].keys() == set(METRICS)
    rows = [line.split()[0] for line in shown.splitlines() if line.startswith(("all", "duplicate-aware ", "chance"))]
    assert rows == ["all", *["duplicate-aware"] * 2, "chance", "all", "duplicate-aware"]  # recall, then intervals
    rng, right = np.random.default_rng(0), np.array([[text[t] in words[i] for i in images] for t in ids])
    drawn = [recall_table(ranks_of(draw, right), ranks_of(draw.T, right.T)) for draw in rng.random((2000, *right.shape))]
    for metric in METRICS:
        chance = aware["recall"]["chance"][metric]
        assert chance == pytest.approx(np.mean([table[metric] for table in drawn]), abs=1), metric
        assert chance > results["recall"]["chance"][metric]
    assert "24 captions are worded like one of another image" in shown

    shown, results, _ = evaluated("distinct")
    assert "duplicate_aware" not in results and "duplicate-aware" not in shown


def test_wordings_are_what_the_tokenizer_makes_equal(world, small_world, tmp_path):
    texts = ["a red circle", "A  red circle", "a red star", "a red circle"]
    key = next(iter(CaptionDB(small_world / "db/test").img2txts)).removesuffix(".npz")
    records = [Caption(f"{key}.jpg", text, str(i), "test", "en") for i, text in enumerate(texts)]
    write_caption_db(tmp_path / "db", records, CaptionTokenizer.from_pretrained(world / "model" / "tokenizer"), annotations=["made here"])
    numbers = wordings(open_pairs(str(tmp_path / "db"), str(small_world / "regions"), BoxOptions()))
    assert numbers[0] == numbers[3] != numbers[2]
    ids = [CaptionDB(tmp_path / "db").input_ids(str(i)) for i in range(2)]
    assert (numbers[0] == numbers[1]) == (ids[0] == ids[1])


def test_intervals_hold_the_recall_and_can_be_left_out(evaluated):
    shown, results, _ = evaluated("mixed", bootstrap=500, resample="images")
    assert "95% intervals from 500 resamples of images" in shown
    assert list(results["intervals"]) == ["en", "de", "all"]
    for name, bounds in results["intervals"].items():
        for metric, table in results["recall"][name].items():
            assert bounds[metric]["low"] <= table <= bounds[metric]["high"], (name, metric)
    _, again, _ = evaluated("mixed", bootstrap=500, resample="images")
    assert again["intervals"] == results["intervals"]
    assert evaluated("mixed", bootstrap=500)[1]["intervals"] != results["intervals"]
    shown, results, _ = evaluated("mixed", bootstrap=0)
    assert results["intervals"] == {} and "95%" not in shown
    with pytest.raises(BadInput, match="found -1"):
        evaluated(bootstrap=-1)


def test_folds_have_intervals_too():
    torch.manual_seed(0)
    txt, img, image_of = torch.randn(48, 8), torch.randn(24, 8), torch.arange(24).repeat_interleave(2)
    split = Split(SimpleNamespace(image_of=image_of.numpy().astype(np.int32)), txt, img)
    for hnsw in (None, HnswOptions()):
        by_fold = rank_folds(split, hnsw, size=8)
        table = mean_of_tasks("mean of 3 x 8", by_fold, 300, "queries")
        assert len(by_fold) == 3 and table.name == "mean of 3 x 8"
        if hnsw is None:
            rows = [slice(2 * i, 2 * i + 16) for i in (0, 8, 16)]
            scores = [txt[each] @ img[each.start // 2 : each.stop // 2].T for each in rows]
            right = torch.arange(8).repeat_interleave(2)
            first = np.mean([float((each.argmax(dim=1) == right).float().mean()) for each in scores])
            assert table.recall["IR@1"] == pytest.approx(100 * first)
            exact = table
        assert table.recall == pytest.approx(exact.recall)  # 8 images: HNSW sees all of them
        low, high = table.intervals["IR@1"].values()
        assert low < table.recall["IR@1"] < high
    spread = np.sqrt(table.recall["IR@1"] * (100 - table.recall["IR@1"]) / 48)
    assert high - low == pytest.approx(2 * 1.96 * spread, rel=0.25)  # of 48 independent queries, not of one fold's 16
    assert mean_of_tasks("mean", by_fold, 0, "queries").intervals is None


def test_coco_1k_of_one_fold_is_the_whole(evaluated, world, tmp_path):
    rng, tokenizer = np.random.default_rng(0), CaptionTokenizer.from_pretrained(world / "model" / "tokenizer")
    with RegionWriter(tmp_path / "regions", BoxOptions(min_bb=2)) as writer:
        for n in range(1000):
            writer.add(f"{n:04d}.npz", Regions(rng.standard_normal((2, 32)), rng.random((2, 6)), np.ones(2), None))
    captions = [Caption(f"{n:04d}.jpg", f"a red star {'above a circle ' * (n % 5)}", str(n), "test", "en") for n in range(1000)]
    write_caption_db(tmp_path / "db", captions, tokenizer, annotations=["made here"])
    places = {"captions": str(tmp_path / "db"), "regions": str(tmp_path / "regions"), "boxes": BoxOptions(min_bb=2)}
    shown, results, _ = evaluated(**places, coco_1k=True, bootstrap=20)
    assert list(results["recall"]) == ["all", "mean of 1 x 1K", "chance"] and "\nmean of 1 x 1K " in shown
    assert results["recall"]["mean of 1 x 1K"] == results["recall"]["all"]
    assert list(results["intervals"]) == ["all", "mean of 1 x 1K"]
    with pytest.raises(BadInput, match="--coco-1k needs at least 1,000 images, found 24"):
        evaluated("english", coco_1k=True)


def test_hnsw_sees_a_small_gallery_whole(evaluated):
    exact = evaluated("distinct")[1]
    assert "found_of_exact_top_10" not in exact
    shown, results, _ = evaluated("distinct", search="hnsw")
    assert results["recall"] == exact["recall"] and results["intervals"] == exact["intervals"]
    assert results["found_of_exact_top_10"] == {"all": {"t2i": 1.0, "i2t": 1.0}}
    assert "search: hnsw, all: found 100.00% of the exact top 10 images, 100.00%" in shown
    assert results["config"]["search"] == "hnsw" and results["config"]["hnsw"]["m"] == 32
    exact, results = evaluated("mixed")[1], evaluated("mixed", search="hnsw")[1]
    assert list(results["found_of_exact_top_10"]) == ["en", "de"]
    # which of several copies of a caption is found is chance; which wording is not
    assert results["duplicate_aware"] == exact["duplicate_aware"]


def test_what_hnsw_does_not_find_is_a_miss():
    """Many copies in a thin graph: lists end with -1, which is no candidate and answers nothing."""
    options = HnswOptions(m=2, ef_construction=1, ef_search=1)
    rng = torch.Generator().manual_seed(0)
    img = torch.randn(6, 8, generator=rng)[torch.randint(0, 6, (300,), generator=rng)]
    txt, image_of = img.repeat_interleave(2, dim=0), torch.arange(300).repeat_interleave(2)
    images, captions = HnswIndex(img, options).search(txt, 10)[1], HnswIndex(txt, options).search(img, 10)[1]
    assert (images == -1).any() and (captions == -1).any()
    rank, found = ranker(txt, img, image_of, hnsw=options)
    t2i, i2t = rank()
    for t, row in enumerate(images.tolist()):
        assert t2i[t] == (row.index(t // 2) if t // 2 in row else 300)
    for i, row in enumerate(captions.tolist()):
        assert i2t[i] == min((row.index(t) for t in (2 * i, 2 * i + 1) if t in row), default=600)
    assert 0 < found["t2i"] < 1 and (t2i == 300).any() and (i2t == 600).any()


def test_evaluate_is_the_same_table_from_memory(evaluated, world, small_world):
    results = evaluated("mixed")[1]["recall"]
    pairs = open_pairs(str(world / "mixed"), str(small_world / "regions"), BoxOptions())
    tables = evaluate(LightningDOT.from_pretrained(world / "model"), pairs, "cpu")
    assert list(tables) == ["en", "de", "all"]
    for name, table in tables.items():
        assert table == pytest.approx(results[name])
    rows = captions_by_language(pairs)
    assert sorted(np.concatenate(list(rows.values()))) == list(range(len(pairs)))


def test_tables_average_tasks_and_their_resamples():
    rng = np.random.default_rng(0)
    tasks = {name: QueryRanks(rng.integers(0, 20, 60), rng.integers(0, 20, 20), np.arange(60) // 3) for name in ("en", "de")}
    en, de, mean = task_tables(tasks, 2000, "queries")
    assert [en.name, de.name, mean.name] == ["en", "de", "all"]
    assert mean.recall["AR"] == pytest.approx((en.recall["AR"] + de.recall["AR"]) / 2)
    width = {each.name: each.intervals["IR@5"]["high"] - each.intervals["IR@5"]["low"] for each in (en, de, mean)}
    assert width["all"] == pytest.approx(np.hypot(width["en"], width["de"]) / 2, rel=0.15)  # independent captions
    assert task_tables({"all": tasks["en"]}, 0, "queries", "note") == [
        Table("all", en.recall, None, "note", queries={"images": 20, "texts": 60})
    ]


def test_tables_as_text_and_as_json():
    bounds = {"AR": {"low": 1.0, "high": 2.0}}
    tables = [
        Table("en", {"AR": 1.5}, bounds), Table("en", {"AR": 2.5}, bounds, "duplicate-aware"),
        Table("de", {"AR": 3.5}, bounds, "re-ranked top 5", printed=False), Table("all", {"AR": 4.5}, bounds, "re-ranked top 5"),
        Table("chance", {"AR": 0.5}),
    ]  # fmt: skip
    rows = ["en", "duplicate-aware en", "re-ranked top 5", "chance"]
    for text, names in ((format_recall(tables), rows), (format_intervals(tables), rows[:-1])):
        assert [line[: len(name)] for name, line in zip(names, text.splitlines()[1:], strict=True)] == names
    assert format_recall(tables).splitlines()[3].split() == ["re-ranked", "top", "5", "4.50"]
    assert format_intervals(tables).splitlines()[1].split(maxsplit=1) == ["en", "[1.0, 2.0]"]
    assert as_json([tables[0], tables[-1]]) == {"recall": {"en": {"AR": 1.5}, "chance": {"AR": 0.5}}, "intervals": {"en": bounds}, "queries": {}}


def test_ranks_of_before_are_of_all_images(tmp_path):
    task = QueryRanks(np.array([0, 3]), np.array([1, 0]), np.array([0, 1]))
    arrays = {f"all/{key}": getattr(task, key) for key in ("t2i", "i2t", "image_of")}
    np.savez_compressed(tmp_path / "ranks.npz", img_ids=np.array(["a", "b"]), **arrays, **{"all/txt_ids": np.array(["1", "2"])})
    assert read_ranks(tmp_path / "ranks.npz")[2]["all"].queries.tolist() == [0, 1]
    some = QueryRanks(np.array([0]), np.array([4]), np.array([1]), np.array([1]))
    write_ranks(tmp_path / "ranks.npz", ["a", "b"], {"de": ["1"]}, {"de": some})
    assert read_ranks(tmp_path / "ranks.npz")[2]["de"].queries.tolist() == [1]


def test_a_flipped_bit_of_ranks_is_noticed_or_harmless(tmp_path):
    task = QueryRanks(np.array([0, 3]), np.array([1]), np.array([0, 1]), np.array([1]))
    write_ranks(tmp_path / "ranks.npz", ["a", "b"], {"de": ["1", "2"]}, {"de": task})

    def read():
        img_ids, txt_ids, ranks = read_ranks(tmp_path / "ranks.npz")
        return img_ids, txt_ids, vars(ranks["de"])

    assert assert_noticed_or_harmless(tmp_path / "ranks.npz", read, 200) > 100


def test_damaged_ranks_are_bad_input(tmp_path):
    path = tmp_path / "ranks.npz"
    task = QueryRanks(np.array([0, 3]), np.array([1, 0]), np.array([0, 1]))
    write_ranks(path, ["a", "ü"], {"all": ["1", "2"]}, {"all": task})
    img_ids, txt_ids, ranks = read_ranks(path)
    assert img_ids == ["a", "ü"] and txt_ids == {"all": ["1", "2"]} and ranks["all"].t2i.tolist() == [0, 3]
    whole = path.read_bytes()
    for damaged, words in ((whole[:-30], "no file of numpy"), (b"text", "no file of numpy"), (b"", "no file of numpy")):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match=f"ranks.npz: {words}"):
            read_ranks(path)
    write_ranks(path, ["a"], {}, {})
    with pytest.raises(BadInput, match=r"ranks\.npz: no ranks of queries"):
        read_ranks(path)
    for img_ids, txt_ids in (([5, 6], ["1", "2"]), (["a", "b"], [1, 2])):
        write_ranks(path, img_ids, {"all": txt_ids}, {"all": task})
        with pytest.raises(BadInput, match=r"ranks\.npz: (img_ids|all/txt_ids) is no list of ids"):
            read_ranks(path)
    np.savez_compressed(path, img_ids=np.array([{}], dtype=object))  # would have to be unpickled
    with pytest.raises(BadInput, match=r"ranks\.npz: no file of numpy"):
        read_ranks(path)
    for images, captions in (([1, 2], ["1", "2"]), (["a", "b"], [1.0, 2.0]), ("a", ["1", "2"])):
        write_ranks(path, images, {"all": captions}, {"all": task})
        with pytest.raises(BadInput, match="is no list of ids"):
            read_ranks(path)
    write_ranks(path, ["a"], {"all": ["1", "2"]}, {"all": task})  # an image too few
    with pytest.raises(BadInput, match="other numbers of ids and ranks"):
        read_ranks(path)
    path.unlink()
    with pytest.raises(BadInput, match=r"ranks\.npz: cannot be read: No such file"):
        read_ranks(path)
