"""Ranking again by looked-up scores: the same tables as by the re-ranker that made them, and what is refused."""

import json
import pickle

import numpy as np
import pytest
import torch

import eval_itm
from configs import cli
from data.batches.pairs import open_pairs
from data.errors import BadInput
from data.regions.db import BoxOptions
from data.scores.files import ScoreTable, read_scores
from model.evaluation.reranked import first_ranking
from model.evaluation.settings import EvalConfig
from model.evaluation.split import open_split
from model.evaluation.tasks import RetrievalTask
from model.retrieval.pair_scoring import PairScorer, score_pairs
from model.retrieval.reranking import shortlists
from model.retrieval.stored_scores import StoredScores
from model.uniter import RerankerModelOptions, build_reranker


@pytest.fixture(scope="module")
def pairs(small_world):
    return open_pairs(str(small_world / "db/test"), str(small_world / "regions"), BoxOptions(), languages=["en"])


@pytest.fixture(scope="module")
def reranker(pretrained, pairs):
    torch.manual_seed(1)
    model, _ = build_reranker(RerankerModelOptions(init=str(pretrained / "last")), pairs)
    for weight in model.parameters():  # so that captions differ in what they prefer
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.3)
    return model


@pytest.fixture(scope="module")
def matrix(reranker, pairs):
    """Scores of all pairs: [T,I]."""
    captions, images = np.divmod(np.arange(len(pairs) * len(pairs.images)), len(pairs.images))
    return score_pairs(PairScorer(reranker, progress=False), pairs, captions, images).reshape(len(pairs), -1)


@pytest.fixture
def evaluate(small_world, pretrained, tmp_path):
    def run(*words):
        fixed = ["--checkpoint", pretrained / "last", "--captions", small_world / "db/test", "--out", tmp_path / "eval"]
        words = [*fixed, "--regions", small_world / "regions", "--languages", "en", "--bootstrap", 20, "--rerank-top", 3, 8, *words]
        eval_itm.main(cli.parse(eval_itm.EvalConfig, [str(word) for word in words]))
        return json.loads((tmp_path / "eval/results.json").read_text())

    return run


def tops(results):
    """What was ranked again, without how long it took."""
    return {k: {name: value for name, value in top.items() if name != "seconds"} for k, top in results["reranker"]["top"].items()}


def write_list(path, pairs, matrix, rows=None):
    captions, images = np.divmod(np.arange(matrix.size), matrix.shape[1]) if rows is None else rows
    lines = (f"{pairs.ids[c]}\t{pairs.images[i].removesuffix('.npz')}\t{float(matrix[c, i])!r}" for c, i in zip(captions, images))
    path.write_text("caption\timage\tscore\n" + "\n".join(lines))


def test_tables_are_those_of_the_reranker(evaluate, reranker, pairs, matrix, tmp_path, capsys):
    reranker.save_pretrained(tmp_path / "reranker")
    again = evaluate("--reranker", tmp_path / "reranker", "--rerank-mix", 0.5)
    expected = tops(again)
    assert again["reranker"]["head"] == "rank_output" and "scores by rank_output, fine-tuned" in capsys.readouterr().out
    np.savez(tmp_path / "s.npz", scores=matrix, caption_ids=np.array(list(pairs.ids)), image_ids=np.array(list(pairs.images)))
    found = evaluate("--rerank-scores", tmp_path / "s.npz", "--rerank-mix", 0.5)
    assert tops(found) == expected and expected["3"]["recall"] != expected["8"]["recall"]
    said = found["reranker"]
    assert said["model"] is None and said["scores"] == {"t2i": [f"{tmp_path}/s.npz"], "i2t": [f"{tmp_path}/s.npz"]}
    assert f"scores to rank again by: {tmp_path}/s.npz" in capsys.readouterr().out

    half = len(pairs) // 2
    captions, images = np.divmod(np.arange(matrix.size), matrix.shape[1])
    for name, rows in (("a", captions < half), ("b", captions >= half - 1)):  # with a caption in both
        write_list(tmp_path / f"{name}.tsv", pairs, matrix, (captions[rows], images[rows]))
    assert tops(evaluate("--rerank-scores", tmp_path / "a.tsv", tmp_path / "b.tsv", "--rerank-mix", 0.5)) == expected

    (tmp_path / "results.bin").write_bytes(pickle.dumps(torch.from_numpy(matrix)))
    words = ["--rerank-scores", tmp_path / "results.bin", "--rerank-mix", 0.5]
    assert tops(evaluate(*words, "--rerank-ids", "database")) == expected
    with pytest.raises(BadInput, match=r"results.bin: a matrix of scores without ids; say what .*--rerank-ids database"):
        evaluate(*words)
    (tmp_path / "captions.txt").write_text("\n".join(reversed(list(pairs.ids))))
    (tmp_path / "images.json").write_text(json.dumps(list(pairs.images)))
    (tmp_path / "results.bin").write_bytes(pickle.dumps(matrix[::-1].T.copy()))
    assert tops(evaluate(*words, "--rerank-ids", tmp_path / "captions.txt", tmp_path / "images.json")) == expected


def test_each_direction_has_its_own_scores(evaluate, pairs, tmp_path):
    both, right = {}, np.arange(len(pairs.images)) == np.asarray(pairs.image_of)[:, None]
    for name, values in (("t2i", right), ("i2t", 1 - right)):  # perfect, and as bad as can be
        write_list(tmp_path / f"{name}.tsv", pairs, values)
        both[name] = tops(evaluate("--rerank-scores", tmp_path / f"{name}.tsv"))
    words = [f"{name}={tmp_path}/{name}.tsv" for name in both]
    found = tops(evaluate("--rerank-scores", *words))
    for k in ("3", "8"):
        recall = {side: each[k]["recall"]["all"] for side, each in both.items()}
        expected = {metric: recall["t2i" if metric.startswith("IR") else "i2t"][metric] for metric in recall["t2i"] if metric != "AR"}
        assert {metric: found[k]["recall"]["all"][metric] for metric in expected} == expected
    assert recall["t2i"]["IR@5"] != recall["i2t"]["IR@5"] and recall["t2i"]["TR@5"] != recall["i2t"]["TR@5"]
    with pytest.raises(BadInput, match=r"rerank_scores: nothing for i2t; give i2t=FILE too"):
        evaluate("--rerank-scores", words[0])
    with pytest.raises(BadInput, match=r"caption \S+ and image \S+ have other scores in \S+i2t.tsv; say which file is for which direction"):
        evaluate("--rerank-scores", *(tmp_path / f"{name}.tsv" for name in both))


def test_candidates_of_a_gallery_are_looked_up(evaluate, reranker, small_world, tmp_path):
    reranker.save_pretrained(tmp_path / "reranker")
    words = ["--gallery", small_world / "db/val", "--gallery-regions", small_world / "regions"]
    expected = tops(evaluate("--reranker", tmp_path / "reranker", *words))
    config = {"captions": small_world / "db/test", "regions": small_world / "regions", "gallery": [str(small_world / "db/val")], "languages": ["en"]}
    pairs = open_split(EvalConfig("./x", **{name: each if isinstance(each, list) else str(each) for name, each in config.items()}))
    captions, images = np.divmod(np.arange(len(pairs) * len(pairs.images)), len(pairs.images))
    matrix = score_pairs(PairScorer(reranker, progress=False), pairs, captions, images).reshape(len(pairs), -1)
    write_list(tmp_path / "s.tsv", pairs, matrix)
    assert len(pairs.images) == 16 and tops(evaluate("--rerank-scores", tmp_path / "s.tsv", *words)) == expected


def test_pairs_without_a_score_are_refused_or_rank_below(evaluate, pairs, tmp_path):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(len(pairs), len(pairs.images)))
    kept = np.flatnonzero(rng.random(matrix.size) < 0.8)
    write_list(tmp_path / "some.tsv", pairs, matrix, np.divmod(kept, matrix.shape[1]))
    with pytest.raises(BadInput, match=r"some.tsv: \d+ of \d+ pairs to be ranked again have no score, the first: caption \S+ and image \S+; .*below"):
        evaluate("--rerank-scores", tmp_path / "some.tsv")
    lowest = np.where(np.isin(np.arange(matrix.size), kept).reshape(matrix.shape), matrix, matrix.min() - 100)
    write_list(tmp_path / "all.tsv", pairs, lowest)
    found = evaluate("--rerank-scores", tmp_path / "some.tsv", "--rerank-missing", "below")
    assert tops(found) == tops(evaluate("--rerank-scores", tmp_path / "all.tsv"))
    assert found["reranker"]["missing"] == "below"


def test_ranks_with_missing_pairs_against_sorting():
    """Those without a score stand behind those with one and before what was not ranked again, in the bi-encoder's order."""
    rng = np.random.default_rng(3)
    image_of = torch.from_numpy(np.repeat(np.arange(8), 2))
    txt, img = torch.from_numpy(rng.normal(size=(16, 6))).float(), torch.from_numpy(rng.normal(size=(8, 6))).float()
    values = np.where(rng.random((16, 8)) < 0.4, np.nan, rng.normal(size=(16, 8))).astype(np.float32)

    class Data:
        ids, images, parts, image_captions = [f"c{n}" for n in range(16)], [f"i{n}" for n in range(8)], [], None

    table = ScoreTable("file", Data.ids[::-1], Data.images, values[::-1])
    first = first_ranking(txt, img, RetrievalTask(np.arange(16), image_of, 8, 16), 5)
    scores = StoredScores([table], Data, "below")
    after = first.reranked(scores, 5, mix=0.3)
    dots = (txt @ img.T).numpy()
    for ranks, dot, value, right in (
        (after.t2i, dots, values, [{int(i)} for i in image_of]),
        (after.i2t, dots.T, values.T, [{2 * i, 2 * i + 1} for i in range(8)]),
    ):
        for query, rank in enumerate(ranks):
            order = np.argsort(-dot[query], kind="stable").tolist()
            best = [n for n in order[:5] if not np.isnan(value[query, n])]
            best.sort(key=lambda n: -(value[query, n] + 0.3 * dot[query, n]))
            order = [*best, *(n for n in order[:5] if n not in best), *order[5:]]
            assert rank == min(order.index(n) for n in right[query])
    assert scores.missing and len(scores) > scores.missing


def test_files_of_other_data(pairs, small_world, tmp_path):
    ids, images = list(pairs.ids), list(pairs.images)
    np.savez(tmp_path / "s.npz", scores=np.zeros((1, 1)), caption_ids=np.array(["x"]), image_ids=np.array(images[:1]))
    with pytest.raises(BadInput, match=rf"s.npz: none of its captions is in the data: there the first is 'x', here '{ids[0]}'"):
        StoredScores([read_scores(tmp_path / "s.npz")], pairs)
    np.savez(tmp_path / "s.npz", scores=np.zeros((1, 1)), caption_ids=np.array(ids[:1]), image_ids=np.array(["x"]))
    with pytest.raises(BadInput, match=r"s.npz: none of its images is in the data"):
        StoredScores([read_scores(tmp_path / "s.npz")], pairs)
    table = ScoreTable("f", ids, images, np.zeros((len(ids), len(images)), np.float32), data={"captions": "0", "regions": "0"})
    with pytest.raises(BadInput, match=r"f: the captions that were scored are not those of .*db/test .*score them again"):
        StoredScores([table], pairs)
    table.data = {}
    scores = StoredScores([table], pairs)
    scores.compute(*shortlists(torch.eye(len(ids))[:, :3], torch.eye(len(images))[:, :3], 2))
    assert scores.missing == 0 and len(scores) > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rerank-ids", "database"], "rerank_ids, rerank_rows and rerank_missing are about the files of rerank_scores"),
        (["--rerank-missing", "below"], "are about the files of rerank_scores"),
        (["--rerank-scores", "x", "--reranker", "y"], "reranker and rerank_scores both rank"),
        (["--rerank-scores", "x", "--rerank-ids", "a"], r"rerank_ids is database, or two files, .*found \['a'\]"),
        (["--rerank-scores", "x", "--search", "hnsw"], "rerank_scores: its candidates come from the exact search"),
        (["--rerank-scores", "/nowhere/x.npz"], "/nowhere/x.npz: cannot be read"),
    ],
)
def test_settings_that_do_not_go_together(evaluate, words, message):
    with pytest.raises(BadInput, match=message):
        evaluate(*words)
