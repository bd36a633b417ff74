"""How trainings start: what the screen says, what is missing, a run that is made longer, a re-ranker's defaults."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

import eval_itm
import pretrain
import train_itm
from configs import cli
from data.errors import BadInput
from data.notices import say_once
from model.evaluation.settings import EvalConfig
from model.initial import EncoderOptions, say_of_random_weights
from optim.tasks.pretraining import PretrainConfig


def run_here(script, config, *words):
    script.main(cli.parse(config, list(map(str, words))))


@pytest.fixture
def finetune(small_world, pretrained, tmp_path):
    """Fine-tune in this process → (run folder, losses of all updates)."""

    def run(name, *words):
        fixed = ["--config", small_world / "finetune.yaml", "--model.init", pretrained / "last", "--languages", "en", "--device", "cpu"]
        constant = ["--optim.schedule", "constant", "--optim.warmup-ratio", 0, "--validation-sheet", 0]
        run_here(train_itm, train_itm.CONFIGS, *fixed, *constant, "--out", tmp_path / name, *words)
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return tmp_path / name, [line["train/cmr/loss"] for line in lines if "train/cmr/loss" in line]

    return run


def test_a_run_that_is_made_longer_is_the_longer_run(finetune, capsys):
    finetune("run", "--epochs", 1)
    before = capsys.readouterr().out.split("epoch 1: validation")[0].splitlines()
    assert 5 < len(before) <= 15 and not re.search(r"^(optim|model|log_every)", "\n".join(before), re.MULTILINE)
    longer, losses = finetune("run", "--epochs", 2)
    assert "epochs was 1, now 2: the run is made longer\n" in capsys.readouterr().out
    whole, expected = finetune("whole", "--epochs", 2)
    assert losses == expected
    weights = [load_file(folder / "last/model.safetensors") for folder in (longer, whole)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_all_missing_databases_are_named_at_once(small_world, pretrained, tmp_path):
    root = ["--data-root", tmp_path / "none", "--out", tmp_path / "run", "--device", "cpu"]
    with pytest.raises(BadInput) as error:
        run_here(train_itm, train_itm.CONFIGS, "--config", small_world / "finetune.yaml", *root)
    names = ", ".join(str(tmp_path / "none" / name) for name in ("db/train", "regions", "db/val"))
    assert str(error.value).startswith(f"3 databases are not there: {names}; ")
    with pytest.raises(BadInput) as error:
        run_here(pretrain, PretrainConfig, "--config", small_world / "pretrain.yaml", *root)
    names = ", ".join(str(tmp_path / "none" / name) for name in ("db/train", "regions", "db/val", "db_de/train"))
    assert str(error.value).startswith(f"4 databases are not there: {names}; ")
    words = ["--checkpoint", pretrained / "last", "--captions", small_world / "db/test", "--regions", "a", "--gallery", "b", "c"]
    with pytest.raises(BadInput) as error:
        run_here(eval_itm, EvalConfig, *words, *root)
    assert str(error.value).startswith(f"3 databases are not there: {tmp_path}/none/a, {tmp_path}/none/b, {tmp_path}/none/c; ")
    assert not (tmp_path / "run/config.yaml").exists()


@pytest.mark.parametrize(
    ("options", "encoders", "captions", "warns"),
    [
        (EncoderOptions(), ["text tower", "image tower"], 1000, True),
        (EncoderOptions(), ["image tower"], 1001, True),
        (EncoderOptions(), ["image tower"], 2_000_000, False),
        (EncoderOptions(), [], 1002, False),
        (EncoderOptions(hidden_size=160, num_hidden_layers=2), ["text tower"], 1003, False),
    ],
)
def test_large_towers_from_random_weights_on_little_data_are_warned_of(capsys, options, encoders, captions, warns):
    say_once.cache_clear()
    say_of_random_weights(options, encoders, captions, "configs/finetune/own_small.yaml")
    shown = capsys.readouterr().err
    assert bool(shown) == warns
    if warns:
        start = f"warning: {' and '.join(encoders)} of 12 layers, 768 wide, start from random weights, and {captions:,} captions"
        assert shown.startswith(start) and "--config configs/finetune/own_small.yaml" in shown and shown.count("\n") == 1


def test_a_reranker_of_few_pictures_needs_no_settings_of_its_own(small_world, pretrained, tmp_path, capsys):
    """32 training pictures or fewer: a window and a number of candidates beyond them are lowered."""
    words = ["--model", "uniter", "--config", small_world / "finetune.yaml", "--model.init", pretrained / "last", "--device", "cpu"]
    words += ["--languages", "en", "--epochs", 1, "--hard-negatives.from-epoch", 1, "--validation-sheet", 0]
    config = cli.parse(train_itm.CONFIGS, list(map(str, [*words, "--out", "x"])))
    assert config.reranker.miner == config.model.init and config.hard_negatives.count == 2
    run_here(train_itm, train_itm.CONFIGS, *words, "--hard-negatives.window", "0-500", "--out", tmp_path / "run")
    shown = capsys.readouterr()
    assert "hard_negatives.window ends at rank 500 is lowered to 23: there are no more wrong images" in shown.err
    assert "the 20 best are to be ranked again, there are only 8 images" in shown.err and (tmp_path / "run/best/model.safetensors").is_file()
