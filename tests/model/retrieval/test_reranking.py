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
from data.regions.db import BoxOptions
from model.bi_encoder import LightningDOT
from model.evaluation.recall import recall_table, retrieval_ranks
from model.retrieval import reranking
from model.retrieval.encoding import embed_pairs
from model.retrieval.reranking import Candidates, FirstRanking, Scores, candidates, reranked, score_pairs
from model.uniter import RerankerModelOptions, build_reranker


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
        return float(reranker(*texts, *collate_images([pairs.regions.get(pairs.images[image])])))


def test_scores_in_batches_are_those_of_single_pairs(reranker, pairs, monkeypatch):
    monkeypatch.setattr(reranking, "IMAGES_AT_A_TIME", 3)  # several blocks
    rng = np.random.default_rng(0)
    captions, images = rng.integers(len(pairs), size=50), rng.integers(len(pairs.images), size=50)
    reads = []
    monkeypatch.setattr(pairs.regions, "get", lambda *a, get=pairs.regions.get, **k: reads.append(a) or get(*a, **k))
    reranker.train()
    found = score_pairs(reranker, pairs, captions, images, batch_size=7, progress=False)
    assert reranker.training and len(reads) == len(set(images.tolist()))  # each image once
    reranker.eval()
    expected = [single_score(reranker, pairs, c, i) for c, i in zip(captions, images)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.std(found) > 0.01
    half = score_pairs(reranker, pairs, captions, images, precision="bf16", progress=False)
    assert 0 < np.abs(half - found).max() < 0.1


def test_a_score_that_is_no_number_names_its_pair(reranker, pairs, monkeypatch):
    monkeypatch.setattr(type(reranker), "forward", lambda self, *inputs: torch.full((len(inputs[-1]),), torch.nan))
    with pytest.raises(BadInput, match=rf"the score of caption {pairs.ids[2]} and image {pairs.images[1]} is NaN"):
        score_pairs(reranker, pairs, np.array([2]), np.array([1]), progress=False)


def test_candidates_are_the_best_and_a_pair_is_scored_once(reranker, pairs):
    generator = torch.Generator().manual_seed(0)
    txt, img = torch.randint(-2, 3, (40, 3), generator=generator).float(), torch.randn(8, 3, generator=generator)
    img[5] = img[2]  # equal scores: by position
    found = candidates(txt, img, 5)
    for queries, gallery, rows in ((txt, img, found.images), (img, txt, found.captions)):
        for query, row in zip(queries, rows):
            scores = (gallery @ query).tolist()
            assert row.tolist() == sorted(range(len(scores)), key=lambda n: (-scores[n], n))[:5]
    np.testing.assert_allclose(found.scores[0][3], (img @ txt[3])[found.images[3]], atol=1e-5)
    np.testing.assert_allclose(found.scores[1][3], (txt @ img[3])[found.captions[3]], atol=1e-5)
    both = {(c, i) for c, row in enumerate(found.images) for i in row} | {
        (c, i) for i, row in enumerate(found.captions) for c in row
    }
    assert found.pairs().tolist() == sorted(c * 8 + i for c, i in both)
    with pytest.raises(BadInput, match="db/test: the 9 best are to be ranked again, there are 8 images and 40 captions"):
        candidates(txt, img, 9, "db/test")

    scores = Scores(reranker, pairs, progress=False)
    first = scores.of(found.top(2))
    known = len(scores.known)
    t2i, i2t = scores.of(found)
    assert known == len(found.top(2).pairs()) < len(scores.known) == len(both)
    np.testing.assert_array_equal(t2i[:, :2], first[0])
    reranker.eval()
    assert t2i[3, 4] == pytest.approx(single_score(reranker, pairs, 3, found.images[3, 4]), abs=1e-5)
    assert i2t[6, 1] == pytest.approx(single_score(reranker, pairs, found.captions[6, 1], 6), abs=1e-5)


def test_ranks_against_sorting_everything():
    """Equal scores keep the bi-encoder's order; whatever is not among the candidates keeps its place behind them."""
    rng = np.random.default_rng(2)
    image_of = torch.from_numpy(np.repeat(np.arange(12), 3))
    txt, img = torch.from_numpy(rng.normal(size=(36, 6))).float(), torch.from_numpy(rng.normal(size=(12, 6))).float()
    first = FirstRanking.of(txt, img, image_of, np.arange(36), 6, "db")
    values = rng.integers(3, size=(36, 12)).astype(np.float32)
    found = first.found
    scores = np.take_along_axis(values, found.images, 1), np.take_along_axis(values.T, found.captions, 1)
    t2i, i2t = reranked(first.t2i, first.i2t, found, scores, image_of)
    for caption, rank in enumerate(t2i):
        order = np.argsort(-(img @ txt[caption]).numpy(), kind="stable").tolist()
        order = sorted(order[:6], key=lambda n: -values[caption, n]) + order[6:]
        assert rank == order.index(image_of[caption])
    for image, rank in enumerate(i2t):
        order = np.argsort(-(txt @ img[image]).numpy(), kind="stable").tolist()
        order = sorted(order[:6], key=lambda n: -values[n, image]) + order[6:]
        assert rank == min(order.index(caption) for caption in range(3 * image, 3 * image + 3))
    assert (t2i != first.t2i).any() and (i2t != first.i2t).any() and (t2i >= 6).any()

    perfect = image_of.numpy()[:, None] == np.arange(12)
    scores = np.take_along_axis(perfect, found.images, 1) * 1.0, np.take_along_axis(perfect.T, found.captions, 1) * 1.0
    t2i, i2t = reranked(first.t2i, first.i2t, found, scores, image_of)
    assert (t2i == np.where(first.t2i < 6, 0, first.t2i)).all() and (i2t == np.where(first.i2t < 6, 0, first.i2t)).all()


def test_top_cuts_both_directions():
    rows = np.arange(12).reshape(3, 4), np.arange(8).reshape(2, 4)
    found = Candidates(*rows, tuple(-each for each in rows)).top(2)
    assert found.scores[0].tolist() == [[0, -1], [-4, -5], [-8, -9]] and found.scores[1].tolist() == [[0, -1], [-4, -5]]
    assert found.images.tolist() == [[0, 1], [4, 5], [8, 9]] and found.captions.tolist() == [[0, 1], [4, 5]]


@pytest.fixture
def evaluate(small_world, pretrained, tmp_path):
    def run(*words):
        fixed = ["--checkpoint", pretrained / "last", "--captions", small_world / "db/test", "--output-dir", tmp_path / "eval"]
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
    assert found != again["top"]["2"]["recall"]["all"]
    assert again["top"]["2"]["pairs"] < again["top"]["8"]["pairs"] and set(again["top"]["8"]["intervals"]) == {"all"}
    shown = capsys.readouterr().out
    assert "re-ranked top 8" in shown and "pairs/s" in shown and "encoding" in shown

    mixed = evaluate("--reranker", tmp_path / "reranker", "--rerank-top", 8, "--languages", "en", "--rerank-mix", 0.5)
    scores = scores + 0.5 * (txt @ img.T).numpy()
    t2i = (scores > np.take_along_axis(scores, image_of[:, None].numpy(), 1)).sum(axis=1)
    assert mixed["reranker"]["top"]["8"]["recall"]["all"] == pytest.approx(found)
    assert mixed["reranker"]["top"]["8"]["mixed"]["recall"]["all"]["IR@1"] == pytest.approx(100 * (t2i < 1).mean())

    several = evaluate("--reranker", tmp_path / "reranker", "--rerank-top", 4)
    assert set(several["reranker"]["top"]["4"]["recall"]) == {"en", "de", "all"}
    with pytest.raises(BadInput, match=r"db/test: the 20 best are to be ranked again, there are 8 images"):
        evaluate("--reranker", tmp_path / "reranker", "--rerank-top", 20)
    with pytest.raises(BadInput, match="its candidates come from the exact search"):
        evaluate("--reranker", tmp_path / "reranker", "--search", "hnsw")
    with pytest.raises(BadInput, match="rerank_top needs numbers of candidates"):
        evaluate("--reranker", tmp_path / "reranker", "--rerank-top", 0)
