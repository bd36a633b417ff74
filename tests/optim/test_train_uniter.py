"""train_itm.py --model uniter: a re-ranker that learns, stops and goes on; and teaches the bi-encoder."""

import json

import numpy as np
import pytest
import torch
import yaml

import train_itm
from configs import cli
from data.batches.batch import collate_for_ranking, collate_pairs
from data.batches.pairs import open_pairs
from data.batches.samplers import epoch_draws
from data.batches.teacher import read_teacher_scores
from data.errors import BadInput
from data.regions.db import BoxOptions
from model.bi_encoder import LightningDOT
from model.evaluation.reranked import evaluate_reranker, first_rankings
from model.precision import loss_scaler
from model.retrieval.encoding import embed_pairs
from model.retrieval.mining import HardNegativeOptions, HardNegatives
from model.retrieval.pair_scoring import PairScorer
from model.uniter import Reranker, RerankerModelOptions, build_reranker, forward_ranking
from optim import loop
from optim.optimizer import OptimOptions, apply_update, build_optimizer
from tests.padded import padded_images, padded_texts


@pytest.fixture(scope="module")
def recipe(small_world, pretrained, tmp_path_factory):
    """A file with the settings that all runs here share."""
    path = tmp_path_factory.mktemp("uniter") / "uniter.yaml"
    values = {
        "data_root": str(small_world), "train_captions": "db/train", "val_captions": "db/val", "train_regions": "regions",
        "languages": ["en"], "batch_size": 8, "epochs": 1, "log_every": 1, "seed": 3,
        "model": {"init": str(pretrained / "last"), "dropout": 0.0},
        "reranker": {"miner": str(pretrained / "last"), "top": 4},
        "hard_negatives": {"count": 2, "window": "0-6", "from_epoch": 1},
        "optim": {"lr": 1e-3, "schedule": "constant"},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def train(recipe, tmp_path):
    """Train in this process → (run folder, lines of metrics)."""

    def run(*words, name="run"):
        words = ["--model", "uniter", "--config", recipe, "--out", tmp_path / name, *words]
        train_itm.main(cli.parse(train_itm.CONFIGS, [str(word) for word in words]))
        return tmp_path / name, [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    return run


def pairs_of(small_world, split):
    return open_pairs(str(small_world / "db" / split), str(small_world / "regions"), BoxOptions(), languages=["en"])


def test_an_epoch_against_a_plain_loop(train, small_world, pretrained):
    folder, lines = train()
    data, val = pairs_of(small_world, "train"), pairs_of(small_world, "val")
    miner = LightningDOT.from_pretrained(pretrained / "last")
    options = HardNegativeOptions(2, "0-6", 1, 1)
    hard_negatives = HardNegatives(data, options)
    hard_negatives.mine(*embed_pairs(miner, data, "cpu", "fp32")[:2])
    torch.manual_seed(3)
    model, _ = build_reranker(RerankerModelOptions(init=str(pretrained / "last"), dropout=0.0), data)
    optimizer = build_optimizer([model], OptimOptions(lr=1e-3, schedule="constant"))
    scaler = loss_scaler(torch.device("cpu"), "fp32")
    losses = []
    for draw in epoch_draws(len(data), 8, 3, 0, hard_negatives=hard_negatives.draw):
        batch = collate_for_ranking(data.examples(draw.indices, num_pairs=draw.num_pairs))
        assert len(batch) == 3 * draw.num_pairs
        others = batch.image_ids[draw.num_pairs :].view(-1, 2)
        assert (others != batch.image_ids[: draw.num_pairs, None]).all()  # a mismatch is of another image
        loss = forward_ranking(model, batch, 0.2).mean()
        loss.backward()
        apply_update(optimizer, scaler, 1e-3, 5.0)
        losses.append(float(loss.detach()))
    found = [line["train/ranking/loss"] for line in lines if "train/ranking/loss" in line]
    assert found == pytest.approx(losses, abs=1e-4) and losses[-1] != pytest.approx(losses[0], abs=1e-4)

    saved = Reranker.from_pretrained(folder / "best")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(saved.state_dict()[name], tensor, atol=1e-4, rtol=0)
    first = first_rankings(miner, val, 4, "cpu", "fp32")
    table = evaluate_reranker(PairScorer(saved, progress=False), val, first)["all"]
    assert lines[-1]["val/all/AR"] == pytest.approx(table["AR"])
    assert json.loads((folder / "best/val.json").read_text())["recall"]["all"] == pytest.approx(table)


def test_validation_chooses_the_mix_that_a_checkpoint_keeps(train, small_world, pretrained):
    """Of mix and mixes the one of the best AR; metrics and the best checkpoint go by mix alone."""
    folder, lines = train("--reranker.top", 8, "--reranker.mix", 1.0, "--reranker.mixes", 0, 0.5, 4, 50)
    val, miner = pairs_of(small_world, "val"), LightningDOT.from_pretrained(pretrained / "last")
    first, scorer = first_rankings(miner, val, 8, "cpu", "fp32"), PairScorer(Reranker.from_pretrained(folder / "best"), progress=False)
    found = {mix: evaluate_reranker(scorer, val, first, mix)["all"]["AR"] for mix in (1.0, 0.0, 0.5, 4.0, 50.0)}
    kept = json.loads((folder / "best/val.json").read_text())
    assert kept["mix"] == max(found, key=found.get) and len(set(found.values())) > 1
    assert kept["recall"]["all"]["AR"] == pytest.approx(found[1.0]) == pytest.approx(lines[-1]["val/all/AR"])
    fixed, _ = train("--reranker.mix", 0.3, "--reranker.mixes", "[]", name="fixed")
    assert json.loads((fixed / "best/val.json").read_text())["mix"] == 0.3
    with pytest.raises(BadInput, match=r"mixes \[-1\.0\] and mix 0\.0 must be numbers of at least 0"):
        train("--reranker.mixes", "[-1]")


def test_random_mismatches_before_the_first_mining(train):
    losses = {}
    for name, words in {
        "curriculum": ["--hard-negatives.from-epoch", 2],
        "random": ["--hard-negatives.window", "random"],
        "mined": [],
    }.items():
        lines = train("--epochs", 2, *words, name=name)[1]
        losses[name] = [line["train/ranking/loss"] for line in lines if "train/ranking/loss" in line]
    half = len(losses["random"]) // 2
    assert losses["curriculum"][:half] == losses["random"][:half] != losses["mined"][:half]
    assert losses["curriculum"][half] != losses["random"][half]  # the same weights meet mined ones


def test_it_learns_to_tell_hard_negatives_apart(train):
    _, lines = train("--epochs", 4, "--optim.lr", 3e-3, "--precision", "bf16", "--log-every", 15)
    losses = [line["train/ranking/loss"] for line in lines if "train/ranking/loss" in line]
    assert losses[-1] < 0.6 * losses[0]


def test_a_stopped_run_goes_on_bit_for_bit(train, monkeypatch):
    words = ["--epochs", 2, "--model.dropout", 0.1, "--save-every", 4, "--keep-checkpoints", 20]
    whole, _ = train(*words, name="whole")
    update, updates = loop.apply_update, []

    def stop_at_seven(*arguments):
        updates.append(1)
        if len(updates) == 7:
            raise KeyboardInterrupt
        return update(*arguments)

    monkeypatch.setattr(loop, "apply_update", stop_at_seven)
    with pytest.raises(KeyboardInterrupt):
        train(*words, name="parts")
    monkeypatch.setattr(loop, "apply_update", update)
    parts, _ = train(*words, name="parts")
    for file in ("model.safetensors", "original_extra.safetensors", "config.json"):
        assert (parts / "last" / file).read_bytes() == (whole / "last" / file).read_bytes()


def test_a_re_ranker_goes_on_from_a_re_ranker_and_teaches(train, small_world, pretrained, command, tmp_path):
    folder, _ = train("--optim.lr", 3e-3)
    again, lines = train("--model.init", folder / "best", "--optim.lr", 1e-9, name="again")
    assert lines[-1]["val/all/AR"] == pytest.approx(json.loads((folder / "best/val.json").read_text())["recall"]["all"]["AR"])

    words = ["--reranker", again / "best", "--checkpoint", pretrained / "last", "--data-root", small_world, "--top", 4]
    words += ["--captions", "db/train", "--regions", "regions", "--languages", "en", "--out", tmp_path / "scores.npz"]
    shown = command("scripts/score_pairs.py", *words).stdout
    data = pairs_of(small_world, "train")
    images, scores = read_teacher_scores(tmp_path / "scores.npz", data.ids, data.images)
    assert (images == data.image_of[:, None]).any(axis=1).all()  # a caption's own image is always scored
    assert ((images >= 0).sum(axis=1) >= 4).all() and "puts a caption's own image first" in shown
    reranker = Reranker.from_pretrained(again / "best")
    row = next(n for n in range(len(data)) if images[n, 0] == data.image_of[n])
    for column in (0, 3):
        rows = np.array([row]), np.flatnonzero(data.image_of == images[row, column])[:1]
        pair = [collate_pairs(data.examples(each)) for each in rows]
        with torch.no_grad():
            score = reranker(*padded_texts(pair[0].texts), *padded_images(pair[1].images))
        assert scores[row, column] == pytest.approx(float(score), abs=1e-5)

    fixed = ["--config", small_world / "finetune.yaml", "--model.init", pretrained / "last", "--languages", "en"]
    losses = []
    for weight in (0, 1):
        distill = ["--distill.scores", tmp_path / "scores.npz", "--distill.weight", 1] if weight else []
        words = [*fixed, *distill, "--out", tmp_path / f"student{weight}", "--epochs", 1]
        train_itm.main(cli.parse(train_itm.CONFIGS, [str(word) for word in words]))
        losses.append(json.loads((tmp_path / f"student{weight}/metrics.jsonl").read_text().splitlines()[0])["train/cmr/loss"])
    assert losses[1] > losses[0]  # the second one also follows the teacher


def test_bad_runs_are_one_clear_line(train, small_world, pretrained):
    with pytest.raises(BadInput, match=r"regions/config.json: no such file"):
        train("--reranker.miner", small_world / "regions")
    with pytest.raises(BadInput, match=r"24 images in all"):
        train("--hard-negatives.window", "top", "--hard-negatives.count", 24)
