"""Losses that learn something themselves, through the commands: trained, saved, resumed, converted, searched with."""

import json

import pytest
import torch
from safetensors.torch import load_file

from configs import cli
from data.errors import BadInput
from data.regions.db import RegionDB
from model.bi_encoder import LightningDOT
from optim.tasks.pretraining import PretrainConfig
from optim.tasks.retrieval import RetrievalConfig

SIGMOID = ["--loss.name", "sigmoid", "--model.similarity", "cosine"]


@pytest.fixture(scope="module")
def with_sigmoid(small_world, pretrained, command):
    """The run folder of a fine-tuning with the sigmoid loss, from a checkpoint that was trained with dot products."""
    out = small_world / "sigmoid"
    words = ["--config", small_world / "finetune.yaml", "--model.init", pretrained / "last", *SIGMOID]
    command("train_itm.py", *words, "--grad-cache", 5, "--keep-checkpoints", 5, "--out", out)
    return out


def test_weights_of_a_loss_are_trained_and_saved(with_sigmoid):
    tensors = load_file(with_sigmoid / "last/heads.safetensors")
    assert tensors.keys() == {"contrast.log_scale", "contrast.bias"}
    assert tensors["contrast.bias"] != -10 and abs(tensors["contrast.bias"] + 10) < 1
    losses = [json.loads(line).get("train/cmr/loss") for line in (with_sigmoid / "metrics.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_a_run_goes_on_with_the_loss_as_it_was(with_sigmoid, small_world, pretrained, command):
    """From the first epoch's checkpoint to the very weights that the run without a stop had at its end."""
    steps = sorted((with_sigmoid / "checkpoints").iterdir())
    assert len(steps) == 2
    expected = load_file(steps[1] / "heads.safetensors") | load_file(steps[1] / "model.safetensors")
    last = with_sigmoid / "last"
    last.unlink()
    last.symlink_to(steps[0].relative_to(with_sigmoid))
    words = ["--config", small_world / "finetune.yaml", "--model.init", pretrained / "last", *SIGMOID]
    shown = command("train_itm.py", *words, "--grad-cache", 5, "--keep-checkpoints", 5, "--out", with_sigmoid).stdout
    assert "resumed at step" in shown
    found = load_file(last / "heads.safetensors") | load_file(last / "model.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_cosine_holds_wherever_the_model_is_used(with_sigmoid, small_world):
    assert json.loads((with_sigmoid / "best/config.json").read_text())["similarity"] == "cosine"
    model = LightningDOT.from_pretrained(with_sigmoid / "best")
    regions = RegionDB(small_world / "regions")
    image = regions[regions.keys[0]]
    tensors = [torch.tensor(array)[None].float() for array in (image.features, image.positions)]
    found = model.encode_image(*tensors, torch.ones(1, len(image), dtype=torch.bool))
    assert found.norm().item() == pytest.approx(1, abs=1e-6)
    text = model.encode_text(torch.tensor([[2, 7, 3]]), torch.ones(1, 3, dtype=torch.bool))
    assert text.norm().item() == pytest.approx(1, abs=1e-6)


def test_a_checkpoint_of_before_compares_by_dot_product(pretrained, tmp_path):
    for file in (pretrained / "last").iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    values = json.loads((tmp_path / "config.json").read_text())
    del values["similarity"], values["digest"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert LightningDOT.from_pretrained(tmp_path).config.similarity == "dot"


def test_a_loss_of_its_own_is_left_out_of_the_originals_file(with_sigmoid, command, tmp_path):
    shown = command("scripts/convert_checkpoint.py", with_sigmoid / "best", tmp_path / "model.pt", "--to", "original").stdout
    assert "contrast.log_scale" in shown and "left out" in shown and "similarity cosine" in shown
    assert torch.load(tmp_path / "model.pt", weights_only=True).keys() >= {"model_dict"}


def test_a_learned_temperature_goes_from_pretraining_to_fine_tuning(small_world, command, tmp_path):
    learned = ["--loss.temperature", "learned", "--model.similarity", "cosine"]
    words = ["--config", small_world / "pretrain.yaml", *learned, "--num-steps", 8]
    command("pretrain.py", *words, "--out", tmp_path / "pre")
    before = load_file(tmp_path / "pre/last/heads.safetensors")
    assert "cls.predictions.bias" in before
    words = ["--config", small_world / "finetune.yaml", *learned, "--epochs", 1, "--optim.lr", 1e-9]
    command("train_itm.py", *words, "--model.init", tmp_path / "pre/last", "--out", tmp_path / "fine")
    after = load_file(tmp_path / "fine/last/heads.safetensors")
    assert after.keys() == {"contrast.log_scale"}
    assert float(after["contrast.log_scale"]) == pytest.approx(float(before["contrast.log_scale"]), abs=1e-4)
    assert abs(float(before["contrast.log_scale"]) - 2.6593) > 1e-4  # log(1 / 0.07), where it started


@pytest.mark.parametrize("kind", [PretrainConfig, RetrievalConfig])
def test_contradictions_are_seen_when_the_settings_are_read(kind, tmp_path):
    words = ["--out", str(tmp_path), "--model.similarity", "cosine"]
    if kind is PretrainConfig:
        words += ["--data", '[{"name": "a", "captions": "c", "regions": "r", "tasks": {"cmr": 1}}]']
    else:
        words += ["--train-captions", "c", "--train-regions", "r", "--val-captions", "v"]
    with pytest.raises(BadInput, match="loss softmax needs a temperature for cosines"):
        cli.parse(kind, words)
    with pytest.raises(BadInput, match="the sigmoid loss learns its own scale"):
        cli.parse(kind, [*words, "--loss.name", "sigmoid", "--loss.temperature", "0.1"])
    assert cli.parse(kind, [*words, "--loss.temperature", "0.1"]).loss.temperature == 0.1
    assert cli.parse(kind, [*words, "--loss.temperature", "learned"]).loss.temperature == "learned"
