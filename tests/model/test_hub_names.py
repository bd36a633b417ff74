"""A name on the Hugging Face hub wherever a folder of weights, tokenizer or data is read."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import Repository, asked_hub

from data.batches.gallery import open_gallery
from data.batches.pairs import check_databases_exist, open_pairs
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.errors import BadInput
from data.regions.db import BoxOptions, RegionDB, stored_keys
from model.bi_encoder import LightningDOT
from model.evaluation.folders import evaluations_folder
from model.initial import ModelOptions, build_model
from model.made_from import read_made_from
from model.text_encoders import choose_text_encoder
from scripts import inspect_db

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


def test_databases_of_a_recipe_are_names(hub, small_world, capsys):
    """Below a `data_root` that is one, and with ``hf:`` in front below any other."""
    hub.datasets["user/world"] = Repository()
    hub.datasets["user/world"].add_folder(small_world, "v1")
    own = open_pairs(str(small_world / "db/test"), str(small_world / "regions"), BoxOptions())
    there = "hf:user/world@v1"
    for root, captions, regions in ((there, "db/test", "regions"), ("/data", f"{there}/db/test", f"{there}/regions")):
        check_databases_exist([captions, [regions]], root)
        found = open_pairs(captions, regions, BoxOptions(), root=root)
        assert found.captions.fingerprint() == own.captions.fingerprint() and found.regions.keys == own.regions.keys
        gallery = open_gallery(own, [captions.replace("test", "train")], [regions], BoxOptions(), root=root)
        assert gallery.num_queries == len(own) < len(gallery)
    with pytest.raises(BadInput, match=r"^2 databases are not there: .*/db/tset, user/none;"):
        check_databases_exist([f"{there}/db/test", "/data/db/tset", "user/none"], ".")
    assert stored_keys(f"{there}/regions") == stored_keys(small_world / "regions")
    inspect_db.main(inspect_db.Options(f"{there}/db/test", regions=f"{there}/regions"))
    assert "text DB" in capsys.readouterr().out


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
