"""Trainings that go wrong and settings that cannot be, through the real commands: one line, exit status 2, nothing saved is lost."""

import json
import shutil

import numpy as np
import pytest
import torch

import eval_itm
import pretrain
import train_itm
from data.captions.db import CaptionDB
from model.bi_encoder import LightningDOT
from tests.refusals import changed_regions, evaluation, says, the_error

# ---- training that goes wrong ----------------------------------------------------------------------------------------


def spoiled(key, name="features"):
    def change(other, regions):
        if other == key:
            getattr(regions, name)[1, 3] = np.nan
        return regions

    return change


def test_nan_in_a_region_record_names_it_and_keeps_what_was_saved(small_world, recipes, refused, tmp_path, command):
    captions = CaptionDB(small_world / "db/train")
    key = captions.txt2img[captions.ids[20]]
    spoilt = changed_regions(small_world / "regions", tmp_path / "regions", spoiled(key))
    corpus = {"name": "scenes", "captions": "db/train", "regions": str(spoilt), "tasks": {"cmr": 1}}
    corpus |= {"val_captions": "db/val", "val_regions": "regions"}
    small = ["--data", json.dumps([corpus]), "--tokens-per-batch", 200, "--grad-accumulation", 1, "--valid-every", 1]
    words = [*recipes[pretrain], *small, "--out", tmp_path / "run"]
    done = command("pretrain.py", *words, status=2)
    assert says(the_error(done.stderr), "loss of scenes/cmr is nan", spoilt, f"key {key}", "features")
    last = LightningDOT.from_pretrained(tmp_path / "run/last")
    assert all(torch.isfinite(tensor).all() for tensor in last.state_dict().values())
    assert int((tmp_path / "run/last").resolve().name.removeprefix("step-")) >= 1
    assert says(refused(pretrain, *words, "--resume"), f"key {key}")  # and it can be gone on with

    for name in ("norm_bb", "soft_labels"):
        spoilt = changed_regions(small_world / "regions", tmp_path / name, spoiled(key, name))
        corpus |= {"regions": str(spoilt), "tasks": {"mrckl": 1}}
        words = [*recipes[pretrain], "--data", json.dumps([corpus]), "--out", tmp_path / f"run_{name}"]
        error = refused(pretrain, *words, "--region-mask-prob", 0.9)
        assert says(error, "loss of scenes/mrckl is nan", spoilt, f"key {key}", name)


def test_nan_in_validation_is_no_recall(small_world, finetuned, recipes, refused, tmp_path):
    key = CaptionDB(small_world / "db/val").txt2img[CaptionDB(small_world / "db/val").ids[0]]
    spoilt = changed_regions(small_world / "regions", tmp_path / "regions", spoiled(key))
    words = [*recipes[train_itm], "--out", tmp_path / "run", "--val-regions", spoilt]
    assert says(refused(train_itm, *words), spoilt, key, "NaN")
    corpus = {"name": "scenes", "captions": "db/train", "regions": "regions", "tasks": {"mrfr": 1}}
    corpus |= {"val_captions": "db/val", "val_regions": str(spoilt)}
    words = [*recipes[pretrain], "--out", tmp_path / "pretrain", "--data", json.dumps([corpus])]
    assert says(refused(pretrain, *words), "validation loss of scenes/mrfr", spoilt, f"key {key}", "features")
    words = evaluation(small_world, finetuned, tmp_path / "eval")
    words += ["--captions", small_world / "db/val", "--regions", spoilt]
    assert says(refused(eval_itm, *words), spoilt, key, "NaN")
    assert not (tmp_path / "eval/img").exists()


def test_training_that_diverges_saves_no_ruin(small_world, recipes, refused, tmp_path):
    error = refused(train_itm, *recipes[train_itm], "--out", tmp_path / "a", "--optim.lr", 1e30)
    assert says(error, "loss of cmr is", "diverged", small_world / "db/train", "optim.lr")
    each = [*recipes[pretrain], "--valid-every", 1]
    error = refused(pretrain, *each, "--out", tmp_path / "b", "--optim.lr", 1e30, "--optim.warmup-steps", 0)
    assert says(error, "validation loss of scenes/", "diverged", "optim.lr")
    # without validation only the weights tell that the update just made is the ruinous one
    corpus = {"name": "scenes", "captions": "db/train", "regions": "regions", "tasks": {"cmr": 1}}
    words = ["--data", json.dumps([corpus]), "--optim.lr", 1e39, "--optim.warmup-steps", 0]
    error = refused(pretrain, *each, "--out", tmp_path / "c", *words)
    assert says(error, tmp_path / "c", "weight", "at step 1", "diverged", "optim.lr")
    assert not list(tmp_path.glob("*/checkpoints/*")) and not list(tmp_path.glob("*/last"))


# ---- settings --------------------------------------------------------------------------------------------------------


def test_unknown_settings(small_world, recipes, refused, tmp_path, command):
    out = ["--out", tmp_path / "run"]
    for name, module in (("pretrain", pretrain), ("finetune", train_itm)):
        recipe = (small_world / f"{name}.yaml").read_text()
        (tmp_path / f"{name}.yaml").write_text(recipe.replace("optim:", "optm:"))
        error = refused(module, "--config", tmp_path / f"{name}.yaml", *out)
        assert says(error, f"{name}.yaml", "unknown key optm", "did you mean optim?")
    recipe = (small_world / "pretrain.yaml").read_text()
    (tmp_path / "deep.yaml").write_text(recipe.replace("val_captions:", "valid_captions:"))
    done = command("pretrain.py", "--config", tmp_path / "deep.yaml", *out, status=2)
    assert says(the_error(done.stderr), "deep.yaml", "data.valid_captions", "did you mean val_captions?")
    error = refused(train_itm, *recipes[train_itm], *out, "--batchsize", 3)
    assert says(error, "--batchsize", "did you mean --batch-size?")
    assert says(refused(train_itm, *recipes[train_itm], *out, "--optim.learning-rate", 3), "--optim.learning-rate")
    assert says(refused(train_itm, "--config", tmp_path / "absent.yaml", *out), "absent.yaml", "cannot read")
    error = refused(train_itm, "--config", small_world / "finetune.yaml")
    assert says(error, "out")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--fusion", "sum"], ["fusion", "sum", "add"]),
        (["--precision", "fp8"], ["precision", "fp8", "bf16"]),
        (["--device", "tpu9"], ["device", "tpu9"]),
        (["--num-steps", "0"], ["num_steps", "at least 1"]),
        (["--optim.lr", "-1"], ["optim.lr", "above 0", "-1"]),
        (["--model.num-attention-heads", "5"], ["hidden_size 32", "num_attention_heads 5"]),
        (["--data", "[]"], ["data"]),
        (["--tokens-per-batch", "0"], ["tokens_per_batch"]),
    ],
)
def test_impossible_settings(recipes, refused, tmp_path, words, parts):
    assert says(refused(pretrain, *recipes[pretrain], "--out", tmp_path / "run", *words), *parts)
    assert not (tmp_path / "run").exists()


def test_unknown_task(recipes, refused, tmp_path):
    corpus = {"name": "scenes", "captions": "db/train", "regions": "regions", "tasks": {"cmr": 1, "itm": 2}}
    words = ["--out", tmp_path / "run", "--data", json.dumps([corpus])]
    assert says(refused(pretrain, *recipes[pretrain], *words), "data scenes", "'itm'", "cmr, vmlm, mrfr, mrckl, mrc")
    corpus["tasks"] = {"cmr": 0}
    words = ["--out", tmp_path / "run", "--data", json.dumps([corpus])]
    assert says(refused(pretrain, *recipes[pretrain], *words), "ratio")


def test_runs_are_neither_overwritten_nor_gone_on_with_otherwise(small_world, pretrained, recipes, refused, tmp_path):
    shutil.copytree(pretrained, tmp_path / "run", symlinks=True)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
    words = [*recipes[pretrain], "--out", tmp_path / "run"]
    error = refused(pretrain, *words, "--resume", "false")
    assert says(error, tmp_path / "run", "already holds a run", "leave resume true")
    error = refused(pretrain, *words, "--resume", "--optim.lr", 1e-4)
    assert says(error, tmp_path / "run/config.yaml", "optim.lr was 0.002, now 0.0001")
    assert says(refused(pretrain, *words, "--resume", "--num-steps", 64), "num_steps was 32, now 64")
    error = refused(train_itm, *recipes[train_itm], "--out", tmp_path / "run", "--resume")
    assert says(error, tmp_path / "run/config.yaml", "other settings")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()} == before

    state = (tmp_path / "run/last/training.pt").read_bytes()
    (tmp_path / "run/last/training.pt").write_bytes(state[:1000])
    assert says(refused(pretrain, *words, "--resume"), (tmp_path / "run/last").resolve() / "training.pt", "damaged")
    (tmp_path / "run/last/training.pt").write_bytes(state)
    (tmp_path / "run/last/model.safetensors").write_bytes(b"\0" * 100)
    assert says(refused(pretrain, *words, "--resume"), (tmp_path / "run/last").resolve() / "model.safetensors", "damaged")


def test_output_that_cannot_be_written(small_world, finetuned, recipes, refused, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        assert says(refused(train_itm, *recipes[train_itm], "--out", out), out)
        assert says(refused(eval_itm, *evaluation(small_world, finetuned, out)), out)
    assert says(
        refused(eval_itm, *evaluation(small_world, finetuned, tmp_path), "--coco-1k"), "1,000 images", "found 8"
    )
