"""data/downloads/hub.py: names on the Hugging Face hub, asked of a server that speaks as the hub does, with the real client."""

import os
from pathlib import Path

import pytest
from hub_server import Repository, asked_hub, forget

from data.downloads.hub import DATASET, TOKENIZER, WEIGHTS, HubName, hub_name, local_folder, near_folders
from data.errors import BadInput


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with asked_hub(tmp_path, monkeypatch) as server:
        yield server


def repository(*files: str) -> Repository:
    repo = Repository()
    repo.commit({name: name.encode() for name in files})
    return repo


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("bert-base-cased", HubName("bert-base-cased")),
        ("user/name", HubName("user/name")),
        ("user/name@v1.0", HubName("user/name", "v1.0")),
        ("hf:user/name@v1/db/test", HubName("user/name", "v1", "db/test")),
        ("hf:name/folder", HubName("name/folder")),
        ("runs/x/best", None),
        ("./name", None),
        ("../name", None),
        ("/name", None),
        ("~/name", None),
        ("vocab.txt", None),
        ("folder/model.pt", None),
        ("a--b", None),
        ("two words", None),
        ("", None),
    ],
)
def test_what_can_be_a_name(word, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_name(word) == meant


def test_a_first_folder_that_is_here_makes_it_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert hub_name("runs/best") is None and hub_name("hf:runs/best") == HubName("runs/best")
    with pytest.raises(BadInput, match="hf:a b: no name of the hub, expected hf:NAME"):
        hub_name("hf:a b")


def test_what_is_here_is_taken_without_the_hub(hub):
    os.makedirs("user/name")
    Path("vocab.txt").write_text("x")
    assert local_folder("user/name") == Path("user/name") and local_folder(Path("vocab.txt")) == Path("vocab.txt")
    assert local_folder("/no/such/folder") == Path("/no/such/folder")  # whose reader says what it expected
    assert hub.asked == []


def test_folders_of_nearly_that_name_are_suggested(hub):
    os.makedirs("runs/finetune/best")
    os.makedirs("runs/other/best")
    assert near_folders("runs/finetne/best") == ["runs/finetune/best"] and near_folders("quite/other") == []
    with pytest.raises(BadInput, match=r"^runs/finetune/bset: no such folder; did you mean runs/finetune/best\?$"):
        local_folder("runs/finetune/bset")
    with pytest.raises(BadInput, match=r"^run: no such folder, and the hub has no model run .*; did you mean runs\?$"):
        local_folder("run")


def test_only_what_is_needed_is_downloaded(hub):
    hub.models["user/towers"] = repository(
        "config.json", "data.json", "model.safetensors", "tf_model.h5", "pytorch_model.bin", "onnx/model.safetensors",
        "tokenizer/tokenizer.json", "training.pt", "README.md",
    )  # fmt: skip
    hub.models["old"] = repository("config.json", "pytorch_model.bin", "vocab.txt")
    hub.models["user/words"] = repository("README.md", "config.json", "tokenizer.json")
    hub.datasets["user/photos"] = repository("db/test/data.mdb", "db/train/data.mdb", "regions/data.mdb")
    assert files_of(local_folder("user/towers", TOKENIZER)) == {"config.json", "tokenizer/tokenizer.json"}
    whole = {"config.json", "data.json", "model.safetensors", "tokenizer/tokenizer.json"}
    assert files_of(local_folder("user/towers", WEIGHTS)) == whole
    assert files_of(local_folder("old")) == {"config.json", "pytorch_model.bin", "vocab.txt"}
    assert files_of(local_folder("user/words", TOKENIZER)) == {"config.json", "tokenizer.json"}
    with pytest.raises(BadInput, match=r"user/words of the hub holds neither model.safetensors nor pytorch_model.bin"):
        local_folder("user/words")
    assert files_of(local_folder("hf:user/photos/db/test", DATASET)) == {"data.mdb"}
    assert len(files_of(Path("../cache/datasets--user--photos/snapshots"))) == 1
    assert files_of(local_folder("user/photos", DATASET)) == {"db/test/data.mdb", "db/train/data.mdb", "regions/data.mdb"}


def test_a_revision_is_a_branch_a_tag_or_a_commit_and_one_process_reads_one(hub, monkeypatch):
    hub.models["user/towers"] = repo = Repository()
    first = repo.commit({"config.json": b"1", "model.safetensors": b"1"}, "v1")
    repo.commit({"config.json": b"2", "model.safetensors": b"22"})

    def read(word):
        return (local_folder(word) / "config.json").read_text()

    assert [read(word) for word in ("user/towers@v1", "user/towers", f"user/towers@{first}", f"hf:user/towers@{first[:40]}")] == ["1", "2", "1", "1"]
    repo.commit({"config.json": b"3", "model.safetensors": b"333"})
    assert read("user/towers") == "2"
    forget()
    assert read("user/towers") == "3" and read("user/towers@v1") == "1"
    with pytest.raises(BadInput, match=r"^user/towers@v9: user/towers of the hub has no revision v9$"):
        read("user/towers@v9")


def test_what_cannot_be_had_is_said(hub, monkeypatch):
    from huggingface_hub import constants

    hub.models |= {"user/asked": Repository(gated=True), "user/own": Repository(private=True), "user/towers": repository("config.json", "model.safetensors")}
    hub.datasets["user/photos"] = repository("db/x")
    for word, message in {
        "user/asked": r"user/asked is given only to those who ask for it: ask on its page, then give HF_TOKEN, or run hf auth login$",
        "user/own": r"the hub has no model user/own \(one that is private needs HF_TOKEN, or hf auth login\)$",
        "user/photos": r"the hub has no model user/photos",
    }.items():
        with pytest.raises(BadInput, match=f"^{word}: no such folder, and {message}"):
            local_folder(word)
    with pytest.raises(BadInput, match=r"^hf:user/photos/no: the hub's dataset user/photos has no folder no$"):
        local_folder("hf:user/photos/no", DATASET)

    local_folder("user/towers")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget()
    asked = len(hub.asked)
    assert files_of(local_folder("user/towers")) == {"config.json", "model.safetensors"}
    with pytest.raises(BadInput, match=r"^user/none: no such folder, and the hub's cache .*/cache does not have all of it, and HF_HUB_OFFLINE is set"):
        local_folder("user/none")
    assert len(hub.asked) == asked

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    forget()
    assert files_of(local_folder("user/towers")) == {"config.json", "model.safetensors"}
    for _ in range(2):  # the second without waiting for it
        with pytest.raises(BadInput, match=r"http://127.0.0.1:9 cannot be reached \(ConnectError: "):
            local_folder("user/none")


def test_part_of_a_model_in_the_cache_is_not_the_model(hub, monkeypatch):
    from huggingface_hub import constants

    hub.models["user/towers"] = repository("config.json", "model.safetensors")
    local_folder("user/towers", TOKENIZER)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget()
    with pytest.raises(BadInput, match=r"^user/towers: .*HF_HUB_OFFLINE is set"):
        local_folder("user/towers", WEIGHTS)
