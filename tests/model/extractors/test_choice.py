"""Without --extractor: what there is, a line each, and the best that can run here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image

from data.errors import BadInput
from data.regions.db import RegionDB
from model.extractors.choice import Candidate, choose_extractor

ROOT = Path(__file__).resolve().parents[3]


def candidate(name, obstacle=None):
    return Candidate(name, "something", "regions", lambda: obstacle)


def test_the_best_that_can_run_is_taken_and_each_is_a_line(capsys):
    three = [candidate("a", "no GPU"), candidate("b"), candidate("c")]
    assert choose_extractor([], three) == "b"
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [
        "  a: needs something; gives regions; cannot run here: no GPU",
        "  b: needs something; gives regions; taken",
        "  c: needs something; gives regions; can run here",
    ]


def test_options_that_tell_the_extractor(capsys):
    assert choose_extractor(["workers=2", "feature-dim=32"], [candidate("a")]) == "random-conv"
    assert "random-conv, since feature-dim is an option of it alone; it is for the demo only" in capsys.readouterr().out
    with pytest.raises(BadInput, match="say whose weights they are"):
        choose_extractor(["weights=x"], [candidate("a")])


@pytest.fixture
def cached_dino(tmp_path):
    """A cache of Hugging Face's hub, as a download leaves it, with a small backbone of the usual name."""
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=70, patch_size=14
    )
    repository = tmp_path / "hub" / "models--facebook--dinov2-base"
    transformers.AutoModel.from_config(config).save_pretrained(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def run(words, environment):
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment)


def photographs(folder):
    folder.mkdir()
    for n in range(12):
        Image.new("RGB", (40, 30), (20 * n, 100, 50)).save(folder / f"p{n}.jpg")
    return folder


def test_a_name_of_the_hub_is_loaded_from_its_cache(cached_dino, tmp_path):
    words = ["scripts/extract_regions.py", "--photos", photographs(tmp_path / "photos"), "--out", tmp_path / "db", "--workers", 0]
    done = run([*words, "--extractor", "hf:facebook/dinov2-base"], cached_dino)
    assert done.returncode == 0, done.stderr
    by_name = RegionDB(tmp_path / "db").made_by
    assert by_name.name == "hf:facebook/dinov2-base" and by_name.options == {"max_bb": 100}
    copy = shutil.copytree(next(Path(cached_dino["HF_HUB_CACHE"]).glob("*/snapshots/*")), tmp_path / "dino")
    words[4] = tmp_path / "by_folder"
    assert run([*words, "--extractor", f"hf:{copy}"], cached_dino).returncode == 0
    assert RegionDB(tmp_path / "by_folder").made_by.is_same(by_name)  # the same network under another name


def test_prepare_explains_and_takes_what_is_in_the_cache(cached_dino, tmp_path):
    photographs(tmp_path / "photos")
    (tmp_path / "c.jsonl").write_text("".join(f'{{"image": "p{n}.jpg", "captions": {{"en": ["number {n}"]}}}}\n' for n in range(12)))
    words = ["scripts/prepare.py", "--photos", tmp_path / "photos", "--captions", tmp_path / "c.jsonl", "--vocab-size", 200]
    done = run([*words, "--out", tmp_path / "a", "--extract", "workers=0"], cached_dino)
    assert done.returncode == 0, done.stderr
    assert "  butd: needs a GPU" in done.stdout and "cannot run here: no GPU\n" in done.stdout
    assert "hf:facebook/dinov2-base: needs the weights" in done.stdout and "only mrfr; taken\n" in done.stdout
    assert RegionDB(tmp_path / "a" / "regions").made_by.name == "hf:facebook/dinov2-base"

    empty = {**cached_dino, "HF_HUB_CACHE": str(tmp_path / "none"), "TORCH_HOME": str(tmp_path / "none"),
             "https_proxy": "http://127.0.0.1:9"}  # fmt: skip
    done = run([*words, "--out", tmp_path / "b", "--extract", "workers=0"], empty)
    assert done.returncode == 0, done.stderr
    assert "cannot run here: its weights are not in the cache" in done.stdout
    assert "random-conv: needs nothing; gives colours and shapes: it is for the demo only" in done.stdout
    assert RegionDB(tmp_path / "b" / "regions").made_by.name == "random-conv"
