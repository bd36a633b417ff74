"""A picture file as a query: its regions are those that the checkpoint's extractor makes, or one line says why not."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.errors import BadInput
from data.regions.db import RegionDB
from data.storage.json_digest import with_digest
from model.retrieval.own_pictures import OwnPictures
from model.retrieval.retriever import Retriever


@pytest.fixture(scope="module")
def index(small_world, finetuned, command, tmp_path_factory):
    out = tmp_path_factory.mktemp("index") / "txt"
    words = ["--checkpoint", finetuned / "best", "--captions", small_world / "db" / "test", "--device", "cpu"]
    command("scripts/build_index.py", *words, "--out", out)
    return out


def changed(checkpoint, out, **record):
    """A copy of a checkpoint that was trained on regions of another extractor; None: of nobody who says so."""
    copy = shutil.copytree(checkpoint, out)
    kept = json.loads((copy / "data.json").read_text())
    kept["extractors"] = [kept["extractors"][0] | record] if record else [None]
    (copy / "data.json").write_text(json.dumps(with_digest(kept)))
    return copy


def test_a_picture_finds_what_its_key_finds(small_world, finetuned, index):
    retriever = Retriever.from_pretrained(finetuned / "best", index, regions=small_world / "regions")
    alone = Retriever.from_pretrained(finetuned / "best", index)
    photo = sorted((small_world / "photos").iterdir())[-1]
    stored = RegionDB(small_world / "regions")[f"{photo.stem}.npz"]
    own = OwnPictures(finetuned / "best").regions(photo)
    np.testing.assert_array_equal(own.features, stored.features)
    np.testing.assert_array_equal(own.norm_bb, stored.norm_bb)
    expected = retriever.search_captions(f"{photo.stem}.npz", 5)
    assert retriever.search_captions(str(photo), 5) == alone.search_captions(photo, 5) == expected


def test_boxes_are_those_of_the_checkpoint(small_world, finetuned, tmp_path):
    copy = shutil.copytree(finetuned / "best", tmp_path / "copy")
    kept = json.loads((copy / "data.json").read_text())
    kept["boxes"] = {"conf_th": 0.6, "max_bb": 4, "min_bb": 2, "num_bb": 36}
    (copy / "data.json").write_text(json.dumps(with_digest(kept)))
    photo = sorted((small_world / "photos").iterdir())[0]
    expected = RegionDB(small_world / "regions")[f"{photo.stem}.npz"]
    own = OwnPictures(copy).regions(photo)
    assert len(own) == min(max(int((expected.conf > 0.6).sum()), 2), 4)
    np.testing.assert_array_equal(own.features, expected.features[: len(own)])


def test_the_command_takes_a_file(small_world, finetuned, index, command):
    photo = sorted((small_world / "photos").iterdir())[-1]
    words = ["--index", index, "--checkpoint", finetuned / "best", "--captions", small_world / "db" / "test"]
    by_file = command("scripts/search.py", "--image", photo, *words).stdout.splitlines()
    by_key = command("scripts/search.py", "--image", f"{photo.stem}.npz", "--regions", small_world / "regions", *words)
    assert len(by_file) == 11 and by_file[:10] == by_key.stdout.splitlines()[:10]
    done = command("scripts/search.py", "--image", "absent.jpg", *words, status=2)
    assert "--image absent.jpg: no picture file is there" in done.stderr


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "does not say who made the regions of its training, so a picture of one's own cannot be read as they were"),
        ({"name": "butd", "options": {}, "source": "absent"},
         r"its regions were made by butd, which cannot be loaded here: absent: no such folder"),
        ({"weights": "0" * 16}, r"was trained on random-conv \(weights 0{16}\), here is random-conv \(weights [0-9a-f]{16}\)"),
    ],
)  # fmt: skip
def test_without_the_record_or_the_weights_one_line_says_so(small_world, finetuned, tmp_path, monkeypatch, record, message):
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    copy = changed(finetuned / "best", tmp_path / "copy", **record)
    with pytest.raises(BadInput, match=message):
        OwnPictures(copy).regions(next(Path(small_world / "photos").iterdir()))


def test_an_old_checkpoint_and_a_damaged_picture(small_world, finetuned, tmp_path):
    old = shutil.copytree(finetuned / "best", tmp_path / "old")
    (old / "data.json").unlink()
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with pytest.raises(BadInput, match="old: does not say who made the regions"):
        OwnPictures(old).regions(tmp_path / "bad.jpg")
    with pytest.raises(BadInput, match=r"bad\.jpg: UnidentifiedImageError"):
        OwnPictures(finetuned / "best").regions(tmp_path / "bad.jpg")
