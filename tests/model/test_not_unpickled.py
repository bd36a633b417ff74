"""A torch file that holds more than tensors is refused by its path, without torch's advice to run what is in it, wherever it is read."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import DistilBertConfig

from data.errors import BadInput
from model.checkpoints import read_pickle
from model.extractors.hf import HfBackbone
from model.extractors.weight_files import read_weights
from model.text_encoders.auto import read_auto_encoder
from optim.saving import load_training


@pytest.fixture(scope="module", params=["object", "program"])
def folder(request, tmp_path_factory) -> Path:
    """An encoder's folder whose weights hold an object, or are a program."""
    folder = tmp_path_factory.mktemp(request.param)
    DistilBertConfig(vocab_size=100, dim=16, n_layers=1, n_heads=2, hidden_dim=16).save_pretrained(folder)
    for name in ("pytorch_model.bin", "training.pt"):
        if request.param == "object":
            torch.save({"a": torch.device("cpu"), "b": Path("x"), "c": torch.zeros(2)}, folder / name)
        else:
            torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(folder / name))
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "read",
    [
        lambda folder: read_pickle(folder / "pytorch_model.bin"),
        lambda folder: read_weights(folder / "pytorch_model.bin"),
        read_auto_encoder,
        load_training,
        lambda folder: HfBackbone(str(folder), 36),
    ],
    ids=["checkpoint", "detector", "encoder", "training", "vision"],
)
def test_torchs_advice_is_left_out(folder, read: Callable):
    with pytest.raises(BadInput) as caught:
        read(folder)
    message = str(caught.value)
    assert message.count(str(folder)) >= 1 and "\n" not in message
    assert "weights_only" not in message and "trust" not in message and "\x1b" not in message


@pytest.mark.parametrize("read", [read_auto_encoder, lambda folder: HfBackbone(str(folder), 36)], ids=["encoder", "vision"])
def test_a_models_own_code_is_not_run_and_pipes_are_not_waited_for(tmp_path, read):
    """Nor is the user asked whether it may."""
    made = tmp_path / "made"
    (tmp_path / "code.py").write_text(f"open({str(made)!r}, 'w')\nclass C: pass\n")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.C"}}))
    with pytest.raises(BadInput, match="it needs code of its own, which is not run"):
        read(tmp_path)
    assert not made.exists()
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(BadInput, match=r"model\.safetensors: a named pipe"):
        read(tmp_path)
