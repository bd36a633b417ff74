"""Ranking again: candidates, batched scores against single pairs, ranks against a plain sort, and eval_itm.py --reranker."""

import json

import numpy as np
import pytest
import torch

import eval_itm
from configs import cli
from data.batches.batch import collate_images, collate_texts
from data.batches.pairs import open_pairs
from data.errors import BadInput
from data.notices import say_once
from data.regions.db import BoxOptions
from model.bi_encoder import LightningDOT
from model.evaluation.recall import recall_table, retrieval_ranks
from model.evaluation.reranked import first_ranking
from model.evaluation.tasks import RetrievalTask
from model.retrieval import pair_scoring
from model.retrieval.encoding import embed_pairs
from model.retrieval.pair_scoring import PairScorer, score_pairs
from model.retrieval.reranking import PairScores, Shortlist, score_for_distillation, shortlists
from model.uniter import RerankerModelOptions, build_reranker
from tests.padded import padded_images, padded_texts


@pytest.fixture(scope="module")
def pairs(small_world):
    return open_pairs(str(small_world / "db/test"), str(small_world / "regions"), BoxOptions(), languages=["en"])


@pytest.fixture(scope="module")
def reranker(pretrained, pairs):
    torch.manual_seed(1)
    model, _ = build_reranker(RerankerModelOptions(init=str(pretrained / "last")), pairs)
    torch.nn.init.normal_(model.rank_output.weight)
    return model


def single_score(reranker, pairs, caption, image):
    meta, words = pairs.captions.meta, pairs.captions.input_ids(pairs.ids[caption])
    texts = collate_texts([np.array([meta["CLS"], *words, meta["SEP"]])])
    with torch.no_grad():
        return float(reranker(*padded_texts(texts), *padded_images(collate_images([pairs.regions.get(pairs.images[image])]))))


def test_scores_in_batches_are_those_of_single_pairs(reranker, pairs, monkeypatch):
    monkeypatch.setattr(pair_scoring, "IMAGES_AT_A_TIME", 3)  # several blocks
    rng = np.random.default_rng(0)
    captions, images = rng.integers(len(pairs), size=50), rng.integers(len(pairs.images), size=50)
    reads = []
    monkeypatch.setattr(pairs.regions, "get", lambda *a, get=pairs.regions.get, **k: reads.append(a) or get(*a, **k))
    reranker.train()
    found = score_pairs(PairScorer(reranker, batch_size=7, progress=False), pairs, captions, images)
    assert reranker.training and len(reads) == len(set(images.tolist()))  # each image once
    reranker.eval()
    expected = [single_score(reranker, pairs, c, i) for c, i in zip(captions, images)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.std(found) > 0.01
    half = score_pairs(PairScorer(reranker, precision="bf16", progress=False), pairs, captions, images)
    assert 0 < np.abs(half - found).max() < 0.1


@pytest.mark.parametrize("fails", ["read", "forward"])
def test_a_failure_leaves_the_modes_of_the_modules(reranker, pairs, monkeypatch, fails):
    def fail(*inputs, **options):
        raise BadInput("damaged")

    monkeypatch.setattr(*((pairs.regions, "get", fail) if fails == "read" else (type(reranker), "score", fail)))
    reranker.train()
    reranker.bert.embeddings.eval()  # a part of it may be
    before = [module.training for module in reranker.modules()]
    with pytest.raises(BadInput, match="damaged"):
        score_pairs(PairScorer(reranker, progress=False), pairs, np.array([2]), np.array([1]))
    after = [module.training for module in reranker.modules()]
    reranker.eval()
    assert after == before and len(set(before)) == 2


def test_a_score_that_is_no_number_names_its_pair(reranker, pairs, monkeypatch):
    monkeypatch.setattr(type(reranker), "score", lambda self, *inputs: torch.full((len(inputs[-1].layout),), torch.nan))
    with pytest.raises(BadInput, match=rf"the score of caption {pairs.ids[2]} and image {pairs.images[1]} is NaN"):
        score_pairs(PairScorer(reranker, progress=False), pairs, np.array([2]), np.array([1]))


def test_shortlists_are_the_best_and_a_pair_is_scored_once(reranker, pairs):
    generator = torch.Generator().manual_seed(0)
    txt, img = torch.randint(-2, 3, (40, 3), generator=generator).float(), torch.randn(8, 3, generator=generator)
    img[5] = img[2]  # equal scores: by position
    images, captions = shortlists(txt, img, 5)
    for queries, gallery, found in ((txt, img, images), (img, txt, captions)):
        for query, row in zip(queries, found.rows):
            scores = (gallery @ query).tolist()
            assert row.tolist() == sorted(range(len(scores)), key=lambda n: (-scores[n], n))[:5]
    np.testing.assert_allclose(images.scores[3], (img @ txt[3])[images.rows[3]], atol=1e-5)
    np.testing.assert_allclose(captions.scores[3], (txt @ img[3])[captions.rows[3]], atol=1e-5)
    both = {(c, i) for c, row in enumerate(images.rows) for i in row} | {
        (c, i) for i, row in enumerate(captions.rows) for c in row
    }
    assert {divmod(number, 8) for each in (images, captions) for number in each.pairs.ravel().tolist()} == both
    assert [each.rows.shape for each in shortlists(txt, img, 9)] == [(40, 8), (8, 9)]  # there are 8 images

    scores = PairScores(PairScorer(reranker, progress=False), pairs)
    scores.compute(images.top(2), captions.top(2))
    first, known = scores[images.top(2).pairs], len(scores)
    scores.compute(images, captions)
    t2i, i2t = scores[images.pairs], scores[captions.pairs]
    assert known == len({n for each in (images, captions) for n in each.top(2).pairs.ravel()}) < len(scores) == len(both)
    np.testing.assert_array_equal(t2i[:, :2], first)
    reranker.eval()
    assert t2i[3, 4] == pytest.approx(single_score(reranker, pairs, 3, images.rows[3, 4]), abs=1e-5)
    assert i2t[6, 1] == pytest.approx(single_score(reranker, pairs, captions.rows[6, 1], 6), abs=1e-5)


def test_pairs_of_some_captions_are_numbered_as_in_the_dataset():
    generator = torch.Generator().manual_seed(0)
    txt, img, rows = torch.randn(4, 3, generator=generator), torch.randn(5, 3, generator=generator), np.array([2, 3, 7, 9])
    images, captions = shortlists(txt, img, 3, rows)
    for n, row in enumerate(rows):
        assert images.pairs[n].tolist() == [row * 5 + image for image in images.rows[n]]
    for image in range(5):
        assert captions.pairs[image].tolist() == [rows[n] * 5 + image for n in captions.rows[image]]


class GivenScores:
    """What a re-ranker would say of each caption and image."""

    def __init__(self, values):
        self.values = values.astype(np.float32).ravel()

    def compute(self, *lists):
        pass

    def __getitem__(self, pairs):
        return self.values[pairs]


def test_ranks_against_sorting_everything():
    """Equal scores keep the bi-encoder's order; whatever is not among the candidates keeps its place behind them."""
    rng = np.random.default_rng(2)
    image_of = torch.from_numpy(np.repeat(np.arange(12), 3))
    txt, img = torch.from_numpy(rng.normal(size=(36, 6))).float(), torch.from_numpy(rng.normal(size=(12, 6))).float()
    first = first_ranking(txt, img, RetrievalTask(np.arange(36), image_of, 12, 36), 6)
    values = rng.integers(3, size=(36, 12))
    after = first.reranked(GivenScores(values), 6)
    for caption, rank in enumerate(after.t2i):
        order = np.argsort(-(img @ txt[caption]).numpy(), kind="stable").tolist()
        order = sorted(order[:6], key=lambda n: -values[caption, n]) + order[6:]
        assert rank == order.index(image_of[caption])
    for image, rank in enumerate(after.i2t):
        order = np.argsort(-(txt @ img[image]).numpy(), kind="stable").tolist()
        order = sorted(order[:6], key=lambda n: -values[n, image]) + order[6:]
        assert rank == min(order.index(caption) for caption in range(3 * image, 3 * image + 3))
    before = first.ranks
    assert (after.t2i != before.t2i).any() and (after.i2t != before.i2t).any() and (after.t2i >= 6).any()

    perfect = first.reranked(GivenScores(image_of.numpy()[:, None] == np.arange(12)), 6)
    for ranks, old in ((perfect.t2i, before.t2i), (perfect.i2t, before.i2t)):
        assert (ranks == np.where(old < 6, 0, old)).all()
    none = first.reranked(GivenScores(np.zeros((36, 12))), 4, mix=0.5)  # the bi-encoder's order alone
    assert (none.t2i == before.t2i).all() and (none.i2t == before.i2t).all()


def test_some_queries_are_ranked_again_among_all_candidates():
    rng = np.random.default_rng(2)
    image_of = torch.from_numpy(np.append([3, 5, 3, 8], np.arange(36) // 3))
    txt, img = torch.from_numpy(rng.normal(size=(40, 6))).float(), torch.from_numpy(rng.normal(size=(12, 6))).float()
    first = first_ranking(txt, img, RetrievalTask(np.arange(40), image_of, 12, 4), 6)
    values = rng.integers(3, size=(40, 12))
    after = first.reranked(GivenScores(values), 6)
    assert len(after.t2i) == 4 and after.queries.tolist() == [3, 5, 8]
    for caption, rank in enumerate(after.t2i):
        order = np.argsort(-(img @ txt[caption]).numpy(), kind="stable").tolist()
        order = sorted(order[:6], key=lambda n: -values[caption, n]) + order[6:]
        assert rank == order.index(image_of[caption])
    for image, rank in zip(after.queries, after.i2t):
        order = np.argsort(-(txt @ img[image]).numpy(), kind="stable").tolist()
        order = sorted(order[:6], key=lambda n: -values[n, image]) + order[6:]
        assert rank == min(order.index(caption) for caption in np.flatnonzero(image_of.numpy() == image))


def test_a_shortlist_is_cut_and_reordered():
    rows = np.array([[7, 3, 5], [1, 2, 0]])
    found = Shortlist(rows, np.array([[9.0, 8, 7], [3, 2, 1]]), 10 * rows)
    two = found.top(2)
    assert (two.rows.tolist(), two.scores.tolist(), two.pairs.tolist()) == ([[7, 3], [1, 2]], [[9, 8], [3, 2]], [[70, 30], [10, 20]])
    again = found.reorder(np.array([[1.0, 2, 2], [0, 0, 5]]))
    assert again.rows.tolist() == [[3, 5, 7], [0, 1, 2]] and again.pairs.tolist() == [[30, 50, 70], [0, 10, 20]]
    assert again.scores.tolist() == [[2, 2, 1], [5, 0, 0]]


@pytest.fixture
def evaluate(small_world, pretrained, tmp_path):
    def run(*words):
        fixed = ["--checkpoint", pretrained / "last", "--captions", small_world / "db/test", "--out", tmp_path / "eval"]
        words = [*fixed, "--regions", small_world / "regions", "--bootstrap", 20, *words]
        eval_itm.main(cli.parse(eval_itm.EvalConfig, [str(word) for word in words]))
        return json.loads((tmp_path / "eval/results.json").read_text())

    return run


def test_eval_itm_with_a_reranker(evaluate, reranker, pairs, pretrained, tmp_path, capsys):
    reranker.save_pretrained(tmp_path / "reranker")
    results = evaluate("--reranker", tmp_path / "reranker", "--rerank-top", 2, 8, "--languages", "en")
    again = results["reranker"]
    assert again["model"] == reranker.fingerprint and set(again["seconds"]) == {"encoding", "search"}
    txt, img, image_of = embed_pairs(LightningDOT.from_pretrained(pretrained / "last"), pairs, "cpu", "fp32")
    assert results["recall"]["all"] == pytest.approx(recall_table(*retrieval_ranks(txt, img, image_of)))
    reranker.eval()
    scores = np.array([[single_score(reranker, pairs, c, i) for i in range(8)] for c in range(len(pairs))])
    wrong_before = np.take_along_axis(scores, image_of[:, None].numpy(), 1)
    t2i = (scores > wrong_before).sum(axis=1)  # all 8 images are candidates: the re-ranker's own ranking
    found = again["top"]["8"]["recall"]["all"]
    assert found["IR@1"] == pytest.approx(100 * (t2i < 1).mean()) and found["IR@5"] == pytest.approx(100 * (t2i < 5).mean())
    two = np.argsort(-(txt @ img.T).numpy(), axis=1, kind="stable")[:, :2]  # the bi-encoder's, and the re-ranker's first of them
    first = np.take_along_axis(two, np.take_along_axis(scores, two, 1).argmax(axis=1)[:, None], 1)
    assert again["top"]["2"]["recall"]["all"]["IR@1"] == pytest.approx(100 * (first == image_of[:, None].numpy()).mean())
    assert again["top"]["2"]["pairs"] < again["top"]["8"]["pairs"] and set(again["top"]["8"]["intervals"]) == {"all"}
    shown = capsys.readouterr().out
    assert "re-ranked top 8" in shown and "pairs/s" in shown and "encoding" in shown
    t2i, i2t = retrieval_ranks(txt, img, image_of)
    assert again["top"]["2"]["bi-encoder"]["recall"]["all"] == {"TR@2": 100 * (i2t < 2).mean(), "IR@2": 100 * (t2i < 2).mean()}
    assert again["top"]["8"]["bi-encoder"]["recall"]["all"]["IR@8"] == 100 and "the bi-encoder's TR@8 " in shown

    mixed = evaluate("--reranker", tmp_path / "reranker", "--rerank-top", 8, "--languages", "en", "--rerank-mix", 0.5)
    scores = scores + 0.5 * (txt @ img.T).numpy()
    t2i = (scores > np.take_along_axis(scores, image_of[:, None].numpy(), 1)).sum(axis=1)
    assert mixed["reranker"]["top"]["8"]["recall"]["all"] == pytest.approx(found)
    assert mixed["reranker"]["top"]["8"]["mixed"]["recall"]["all"]["IR@1"] == pytest.approx(100 * (t2i < 1).mean())

    (tmp_path / "reranker/val.json").write_text('{"mix": 0.5}')  # what its validation chose is the default, and said
    by_default = evaluate("--reranker", tmp_path / "reranker", "--rerank-top", 8, "--languages", "en")
    assert by_default["reranker"]["top"]["8"]["mixed"] == mixed["reranker"]["top"]["8"]["mixed"]
    shown = capsys.readouterr()
    assert "+ 0.5 x bi-encoder" in shown.out and "reranker: its validation chose mix 0.5" in shown.err
    assert "mixed" not in evaluate("--reranker", tmp_path / "reranker", "--rerank-top", 8, "--rerank-mix", 0)["reranker"]["top"]["8"]

    several = evaluate("--reranker", tmp_path / "reranker", "--rerank-top", 4)
    assert set(several["reranker"]["top"]["4"]["recall"]) == {"en", "de", "all"}
    with pytest.raises(BadInput, match="its candidates come from the exact search"):
        evaluate("--reranker", tmp_path / "reranker", "--search", "hnsw")
    with pytest.raises(BadInput, match="rerank_top needs numbers of candidates"):
        evaluate("--reranker", tmp_path / "reranker", "--rerank-top", 0)
    for mix in (".nan", -1):
        with pytest.raises(BadInput, match="and rerank_mix a weight of at least 0"):
            evaluate("--reranker", tmp_path / "reranker", "--rerank-mix", mix)


def test_more_candidates_than_there_are_is_all_of_them_and_said(evaluate, reranker, pairs, tmp_path, capsys):
    reranker.save_pretrained(tmp_path / "reranker")
    say_once.cache_clear()
    words = ["--reranker", tmp_path / "reranker", "--languages", "en", "--rerank-mix", 0.5]
    found = evaluate(*words, "--rerank-top", 8, 20, 500, 1000)["reranker"]["top"]
    shown = capsys.readouterr()
    assert shown.err.count("to be ranked again") == 1
    assert f"db/test: the 1,000 best are to be ranked again, there are only 8 images and {len(pairs)} captions: all of" in shown.err
    assert list(found) == ["8", "20", str(len(pairs))] and f"re-ranked top {len(pairs)}" in shown.out
    exact = evaluate(*words, "--rerank-top", 8)["reranker"]["top"]["8"]
    last, images = found[str(len(pairs))], [f"IR@{k}" for k in (1, 5, 10)]
    assert [last["recall"]["all"][k] for k in images] == [exact["recall"]["all"][k] for k in images]
    reranker.eval()
    scores = np.array([[single_score(reranker, pairs, c, i) for i in range(8)] for c in range(len(pairs))])
    first = [pairs.image_of[c] == i for i, c in enumerate(scores.argmax(axis=0))]  # of all captions
    assert last["recall"]["all"]["TR@1"] == pytest.approx(100 * np.mean(first)) and last["pairs"] == 8 * len(pairs)


def test_a_teacher_scores_no_more_images_than_there_are(reranker, pairs, pretrained, capsys):
    say_once.cache_clear()
    miner = LightningDOT.from_pretrained(pretrained / "last")
    images, scores = score_for_distillation(PairScorer(reranker, progress=False), miner, pairs, 20)
    assert "db/test: top 20 is lowered to 8: there are no more images" in capsys.readouterr().err
    assert images.shape == scores.shape == (len(pairs), 9)
    assert all(sorted(row[row >= 0].tolist()) == list(range(8)) for row in images)
