"""Weights and training states that are not what was written: a flipped bit, another run's file."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.errors import BadInput
from data.storage.plain_pickle import read_plain_pickle
from model import checkpoints
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.extractors.weight_files import read_weights
from model.original.files import to_original
from model.transformer import EncoderConfig
from model.uniter import Reranker, UniterConfig
from optim.saving import load_training
from tests.flipped_bits import assert_noticed_or_harmless, flips

SIZES = EncoderConfig(30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12, max_position_embeddings=10)


def bi_encoder(seed: int) -> LightningDOT:
    torch.manual_seed(seed)
    return LightningDOT(LightningDOTConfig(SIZES, SIZES, project_dim=4, feature_dim=6, num_labels=5, cls_token_id=3))


def reranker(seed: int) -> Reranker:
    torch.manual_seed(seed)
    return Reranker(UniterConfig(SIZES, feature_dim=6, num_labels=5))


@pytest.mark.parametrize("make", [bi_encoder, reranker])
def test_weights_of_another_run_are_refused(tmp_path, make):
    for seed in (0, 1):
        make(seed).save_pretrained(tmp_path / str(seed))
    read = type(make(0)).from_pretrained
    assert read(tmp_path / "0").fingerprint != read(tmp_path / "1").fingerprint
    shutil.copy(tmp_path / "1/model.safetensors", tmp_path / "0/model.safetensors")
    with pytest.raises(BadInput, match=r"0/model.safetensors: holds the weights \w{16}, and config.json beside it is about \w{16}: another run's"):
        read(tmp_path / "0")
    if make is bi_encoder:
        with pytest.raises(BadInput, match="another run's weights"):
            to_original(tmp_path / "0", tmp_path / "out.pt")
        assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize("make", [bi_encoder, reranker])
def test_weights_without_a_fingerprint_are_read_and_get_one(tmp_path, make):
    model = make(0)
    model.save_pretrained(tmp_path)
    for file in tmp_path.glob("*.safetensors"):
        save_file(load_file(file), file, metadata={"format": "pt"})  # as they were written before
    assert type(model).from_pretrained(tmp_path).fingerprint == model.fingerprint
    config = json.loads((tmp_path / "config.json").read_text())
    del config["fingerprint"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(model).from_pretrained(tmp_path).fingerprint == model.fingerprint


@pytest.mark.parametrize("make", [bi_encoder, reranker])
def test_a_flipped_bit_of_weights_is_noticed(tmp_path, make):
    make(0).save_pretrained(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        assert assert_noticed_or_harmless(path, lambda: type(make(0)).from_pretrained(tmp_path).state_dict(), 40, start=header) == 40
        assert_noticed_or_harmless(path, lambda: type(make(0)).from_pretrained(tmp_path).state_dict(), 60, stop=header)


def test_a_flipped_bit_of_heads_is_noticed(tmp_path):
    checkpoints.save_tensors({"head": torch.randn(50)}, tmp_path / "heads.safetensors")
    assert assert_noticed_or_harmless(tmp_path / "heads.safetensors", lambda: checkpoints.read_tensors(tmp_path / "heads.safetensors"), 80) > 50


STATE = {"step": 3, "is_best": False, "ranks": 1, "param_groups": [], "state": {0: {"exp_avg": torch.arange(200.0)}}, "name": "a" * 30}


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_of_a_training_state_is_noticed_or_harmless(tmp_path, seed):
    torch.save(STATE, tmp_path / "training.pt")
    assert_noticed_or_harmless(tmp_path / "training.pt", lambda: load_training(tmp_path), 60, seed)


@pytest.mark.parametrize("read", [checkpoints.read_pickle, read_weights, read_plain_pickle])
def test_a_flipped_bit_of_a_torch_file_is_noticed_or_harmless(tmp_path, read):
    weights = {"a": torch.arange(40.0), "b": torch.ones(90)}
    torch.save(weights, tmp_path / "x.pt")
    place = (tmp_path / "x.pt").read_bytes().find(weights["b"].numpy().tobytes())
    assert assert_noticed_or_harmless(tmp_path / "x.pt", lambda: read(tmp_path / "x.pt"), 20, start=place, stop=place + 360) == 20
    assert assert_noticed_or_harmless(tmp_path / "x.pt", lambda: read(tmp_path / "x.pt"), 60) > 10
    for _ in flips(tmp_path / "x.pt", 1, start=place, stop=place + 360):
        with pytest.raises(BadInput, match=r"x.pt: .*(x/data/1 has another checksum than was written|damaged)"):
            read(tmp_path / "x.pt")


def test_a_torch_file_that_was_written_without_checksums_is_read(tmp_path):
    torch.save(STATE, tmp_path / "training.pt")
    data = bytearray((tmp_path / "training.pt").read_bytes())
    place = 0
    while (place := data.find(b"PK\1\2", place)) >= 0:  # as torch.serialization.set_crc32_options(False) leaves them
        data[place + 16 : place + 20] = bytes(4)
        place += 4
    (tmp_path / "training.pt").write_bytes(data)
    assert load_training(tmp_path)["step"] == 3
