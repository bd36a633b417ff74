"""A name on the Hugging Face hub wherever a folder of weights, tokenizer or data is read."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import Repository, asked_hub

from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.regions.db import RegionDB
from model.bi_encoder import LightningDOT
from model.evaluation.folders import evaluations_folder
from model.initial import ModelOptions, build_model
from model.made_from import read_made_from
from model.text_encoders import choose_text_encoder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with asked_hub(tmp_path, monkeypatch) as server:
        yield server


def test_readers_take_names(hub, small_world, pretrained):
    """A checkpoint of ours as both towers' start, for a tokenizer and for its boxes; databases; a folder of Hugging Face's."""
    hub.models["user/towers"], hub.datasets["user/world"] = Repository(), Repository()
    shutil.copytree(pretrained / "last", "copy")
    hub.models["user/towers"].add_folder(Path("copy"))
    shutil.rmtree("copy")
    hub.datasets["user/world"].add_folder(small_world)
    captions, regions = CaptionDB("hf:user/world/db/test"), RegionDB("hf:user/world/regions")
    assert captions.fingerprint() == CaptionDB(small_world / "db/test").fingerprint()
    model = LightningDOT.from_pretrained("user/towers")
    assert model.fingerprint == LightningDOT.from_pretrained(pretrained / "last").fingerprint
    assert read_made_from("user/towers") == read_made_from(pretrained / "last")
    assert CaptionTokenizer.from_pretrained("user/towers").vocabulary() == CaptionTokenizer.from_pretrained(small_world / "tokenizer").vocabulary()
    built = build_model(ModelOptions(init="user/towers"), captions.meta, regions.feature_dim, regions.num_labels, "regions")
    assert built.state_dict().keys() == model.state_dict().keys()
    assert choose_text_encoder(pretrained / "last") is choose_text_encoder("user/towers")
    assert evaluations_folder("user/towers@v1") == Path("eval/user--towers@v1")


def test_commands_take_names(hub, small_world, finetuned, tmp_path):
    hub.models["user/towers"] = Repository()
    shutil.copytree(finetuned / "best", "copy")
    hub.models["user/towers"].add_folder(Path("copy"))
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "other"), "HF_HUB_OFFLINE": "0"}

    def run(script, *words, **others):
        command = [sys.executable, ROOT / script, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, env=environment | others)

    indexed = run("scripts/build_index.py", "--checkpoint", "user/towers", "--regions", small_world / "regions", "--out", "img", "--device", "cpu")
    assert indexed.returncode == 0 and "img: 40 images" in indexed.stdout, indexed.stderr
    words = ("a red circle", "--index", "img", "--checkpoint", "user/towers", "--k", 1)
    assert run("scripts/search.py", *words, HF_HUB_OFFLINE="1").returncode == 0
    refused = run("scripts/search.py", *words[:-3], "user/none")
    assert refused.returncode == 2
    assert refused.stderr == "error: user/none: no such folder, and the hub has no model user/none (one that is private needs HF_TOKEN, or hf auth login)\n"
