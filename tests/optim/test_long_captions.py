"""Captions longer than max_txt_len or the model: training drops and counts them, validation and evaluation cut and count them."""

import json

import numpy as np
import pytest
import yaml

from data.captions.db import CaptionDB


@pytest.fixture(scope="module")
def limit(small_world):
    """Positions of a model that about half of the captions fit."""
    return int(np.median(lengths(small_world / "db/train")))


@pytest.fixture(scope="module")
def short(small_world, limit, tmp_path_factory, command):
    """A run of a model of so many positions, and what it said."""
    folder = tmp_path_factory.mktemp("short")
    recipe = yaml.safe_load((small_world / "finetune.yaml").read_text())
    small = yaml.safe_load((small_world / "pretrain.yaml").read_text())["model"]
    recipe["model"] = small | {"max_position_embeddings": limit}
    (folder / "finetune.yaml").write_text(yaml.safe_dump(recipe))
    words = ["--config", folder / "finetune.yaml", "--out", folder / "run", "--epochs", 1, "--languages", "en"]
    return folder / "run", command("train_itm.py", *words, "--long-captions", "truncate").stdout


def lengths(folder):
    db = CaptionDB(folder)
    return np.array([db.lengths[i] + 2 for i in db.ids if db.languages[i] == "en"])


def test_training_drops_and_validation_cuts_and_both_count(short, limit, small_world):
    run, shown = short
    facts = json.loads((run / "run.json").read_text())
    train, val = (lengths(small_world / "db" / split) for split in ("train", "val"))
    dropped, cut = int((train > limit).sum()), int((val > limit).sum())
    assert 0 < dropped < len(train) and 0 < cut
    assert (facts["dropped_train_captions"], facts["cut_val_captions"]) == (dropped, cut)
    assert facts["train"]["captions"] == len(train) - dropped and facts["val"]["captions"] == len(val)
    assert f"dropped_train_captions: {dropped}" in shown and f"cut_val_captions: {cut}" in shown


def test_evaluation_refuses_or_cuts_and_counts(short, limit, small_world, command):
    run, _ = short
    words = ["--checkpoint", run / "best", "--captions", small_world / "db/test", "--regions", small_world / "regions"]
    words += ["--languages", "en", "--bootstrap", 0, "--out", run.parent / "eval"]
    refused = command("eval_itm.py", *words, status=2).stderr
    test = lengths(small_world / "db/test")
    cut = int((test > limit).sum())
    assert f"{cut} of {len(test)} captions are longer than the model's {limit} positions" in refused
    shown = command("eval_itm.py", *words, "--long-captions", "truncate").stdout
    assert f"{len(test)} captions, {cut} of them cut to the model's length\n" in shown
    results = json.loads((run.parent / "eval/results.json").read_text())
    assert (results["captions"], results["cut_captions"]) == (len(test), cut)


def test_pretraining_drops_and_counts(small_world, limit, tmp_path, command):
    recipe = yaml.safe_load((small_world / "pretrain.yaml").read_text())
    words = ["--config", small_world / "pretrain.yaml", "--out", tmp_path / "run", "--num-steps", 1]
    command("pretrain.py", *words, "--model.max-position-embeddings", limit)
    facts = json.loads((tmp_path / "run/run.json").read_text())
    for corpus in recipe["data"]:
        db = CaptionDB(small_world / corpus["captions"])
        dropped = sum(db.lengths[i] + 2 > limit for i in db.ids)
        assert facts["dropped_captions"][corpus["name"]] == dropped > 0
        assert facts["captions"][corpus["name"]] == len(db) - dropped
