"""A text's first results ranked again: the order of eval_itm.py, the mix of the two scores, and everything computed once."""

import json
import shutil

import numpy as np
import pytest
import torch

from data.batches.pairs import open_pairs
from data.errors import BadInput
from data.notices import say_once
from data.regions.db import BoxOptions
from model.bi_encoder import LightningDOT
from model.evaluation.reranked import first_ranking
from model.evaluation.tasks import retrieval_tasks
from model.retrieval.encoding import Encoding, embed_pairs
from model.retrieval.indexing import build_index
from model.retrieval.pair_scoring import PairScorer
from model.retrieval.reranking import PairScores, mix_for, mixed_scores
from model.retrieval.retriever import Retriever
from model.retrieval.sources import image_source
from model.uniter import Reranker, RerankerModelOptions, build_reranker
from scripts import search
from tests.gallery import KEYS, command


@pytest.fixture(scope="module")
def pairs(small_world):
    return open_pairs(str(small_world / "db/test"), str(small_world / "regions"), BoxOptions(), languages=["en"])


@pytest.fixture(scope="module")
def checkpoint(pretrained):
    return pretrained / "last"


@pytest.fixture(scope="module")
def reranker(checkpoint, pairs, tmp_path_factory):
    """Folder of a random re-ranker whose validation chose mix 0.5."""
    torch.manual_seed(1)
    model, _ = build_reranker(RerankerModelOptions(init=str(checkpoint)), pairs)
    torch.nn.init.normal_(model.rank_output.weight)
    folder = tmp_path_factory.mktemp("uniter") / "best"
    model.save_pretrained(folder)
    (folder / "val.json").write_text('{"mix": 0.5}')
    return folder


@pytest.fixture(scope="module")
def index(checkpoint, pairs, tmp_path_factory):
    model = LightningDOT.from_pretrained(checkpoint)
    return build_index(image_source(model, pairs.regions, pairs.images), tmp_path_factory.mktemp("index") / "img", Encoding(progress=False))


@pytest.fixture(scope="module")
def retriever(checkpoint, index, reranker, small_world):
    return Retriever.from_pretrained(checkpoint, index, reranker, small_world / "regions", rerank=5)


def test_the_order_is_that_of_eval_itm(retriever, checkpoint, reranker, pairs):
    """Scores of both models on the same scale, for the mix of the checkpoint, for others, and for one that is given."""
    txt, img, _ = embed_pairs(LightningDOT.from_pretrained(checkpoint), pairs, "cpu", "fp32")
    first = first_ranking(txt, img, retrieval_tasks(pairs)["all"], 5).images
    scores = PairScores(PairScorer(Reranker.from_pretrained(reranker), progress=False), pairs)
    scores.compute(first)
    texts, orders = [pairs.captions[name]["raw"] for name in pairs.ids], {}
    for mix in (None, 0, 0.5, 30.0):
        weight = 0.5 if mix is None else mix
        expected = first.reorder(mixed_scores(scores[first.pairs], first.scores, weight))
        found = retriever.search_images(texts, 5, mix=mix)
        orders[mix] = [[hit.id for hit in hits] for hits in found]
        assert orders[mix] == [[pairs.images[row] for row in rows] for rows in expected.rows]
        np.testing.assert_allclose([[hit.score for hit in hits] for hits in found], expected.scores, atol=1e-4)
    assert orders[None] == orders[0.5] and orders[0] != orders[30.0]
    plain = retriever.search_images(texts, 5, rerank=0)
    assert [[hit.id for hit in hits] for hits in plain] == [[pairs.images[row] for row in rows] for rows in first.rows]


def test_each_thing_is_computed_once(retriever, monkeypatch):
    calls = []

    def count(owner, name):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: calls.append(name) or real(*a, **k))

    count(retriever.tokenizer, "encode")
    count(retriever.model, "embed_texts")
    count(retriever.backend, "search")
    count(retriever.backend, "ids")
    count(retriever.reranker, "rerank_images")
    found = retriever.search("a red circle", 3)
    assert calls == ["encode", "embed_texts", "search", "ids", "rerank_images"]
    assert (len(found.hits[0]), len(found.first[0])) == (3, 5) and set(found.milliseconds) == {"encode", "search", "rerank"}
    assert min(found.milliseconds.values()) > 0 and found.first[0] == sorted(found.first[0], key=lambda hit: -hit.score)
    calls.clear()
    found = retriever.search(["a red circle", "two"], 3, rerank=0)
    assert calls == ["encode", "embed_texts", "search", "ids"] and found.milliseconds["rerank"] == 0 and found.first == []


def test_the_command_shows_the_time_of_ranking_again(checkpoint, index, reranker, small_world, tmp_path, capsys):
    words = ["--index", index.folder, "--checkpoint", checkpoint, "--reranker", reranker, "--regions", small_world / "regions"]
    command(search, "a red circle", *words, "--k", 3, "--rerank", 5, "--json", tmp_path / "out.json", positional=("query",))
    line = capsys.readouterr().out.splitlines()[-1]
    assert "re-ranking the best 5 (mix 0.5)" in line and line.count(" ms") == 3
    answer = json.loads((tmp_path / "out.json").read_text())
    assert answer["milliseconds"]["rerank"] > 0 and [each["rank"] for each in answer["results"]] == [1, 2, 3]
    command(search, "a red circle", *words, "--mix", 0, "--rerank", 1000, positional=("query",))
    shown = capsys.readouterr()
    assert "re-ranking the best 8 (mix 0)" in shown.out
    assert "rerank 1,000 is lowered to 8: there are no more images" in shown.err
    with pytest.raises(BadInput, match="--mix has no effect without --reranker"):
        command(search, "a", *words[:4], "--mix", 1, positional=("query",))
    with pytest.raises(BadInput, match="unknown option --candidates; did you mean --rerank"):
        command(search, "a", *words, "--candidates", 5, positional=("query",))


def test_the_mix_is_the_given_one_the_checkpoints_or_none(reranker, tmp_path, capsys):
    say_once.cache_clear()
    assert (mix_for(reranker), mix_for(reranker, 0.0), mix_for(reranker, 2)) == (0.5, 0.0, 2) and capsys.readouterr().err == ""
    for content in (None, "{}"):
        folder = tmp_path / f"old{content}"
        folder.mkdir()
        if content:
            (folder / "val.json").write_text(content)
        assert mix_for(folder) == 0
        assert capsys.readouterr().err.count("does not say which mix") == 1
    (folder / "val.json").write_text('{"mix": "much"}')
    with pytest.raises(BadInput, match=r"val\.json: mix: found the text 'much', expected a number or null"):
        mix_for(folder)


def test_what_a_re_ranker_does_not_fit_is_refused(checkpoint, index, reranker, retriever, small_world, world, indexes, tmp_path):
    other = shutil.copytree(reranker, tmp_path / "other")
    shutil.copytree(checkpoint / "tokenizer", other / "tokenizer")
    content = json.loads((other / "tokenizer/tokenizer.json").read_text())
    words = content["model"]["vocab"]
    last, before = sorted(words, key=words.get)[-2:]
    words[last], words[before] = words[before], words[last]
    (other / "tokenizer/tokenizer.json").write_text(json.dumps(content))
    (other / "tokenizer/tokenizer_config.json").unlink()  # whose digest is of the words as they were
    with pytest.raises(BadInput, match="other: its vocabulary is another than that of"):
        Retriever.from_pretrained(checkpoint, index, other, small_world / "regions")
    with pytest.raises(BadInput, match=r"index of captions, the re-ranker .* needs one of images"):
        Retriever.from_pretrained(world / "model", indexes[1], reranker, world / "regions")
    plain = Retriever.from_pretrained(world / "model", indexes[0])
    assert len(plain.search_images("dog", 3, rerank=0)) == 3
    for options, message in (({"rerank": 5}, "rerank is 5, and there is no re-ranker"), ({"mix": 1.0}, "mix is 1.0, and there is no")):
        with pytest.raises(BadInput, match=message):
            plain.search_images("dog", 3, **options)
    for options, message in (
        ({"mix": -1}, "mix is -1"), ({"mix": np.nan}, "mix is nan"), ({"mix": "1"}, r"mix is '1' \(str\)"), ({"mix": True}, "mix is True"),
        ({"rerank": -1}, "rerank is -1, expected at least 0"), ({"rerank": "5"}, r"rerank is '5' \(str\)"), ({"rerank": 2.5}, "rerank is 2.5"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=message):
            retriever.search_images("a red circle", 3, **options)
    assert KEYS[0] not in index
