"""scripts/extract_regions.py that is stopped and started again, in parts of several ranks, with other extractors."""

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from data.errors import BadInput
from data.regions import photos as photos_module
from data.regions.db import RegionDB
from model.extractors import pool
from model.extractors.base import Detections
from model.extractors.butd.faster_rcnn import FasterRcnn
from model.extractors.butd.rcnn_config import read_config
from model.extractors.random_conv import RandomConv
from scripts.extract_regions import Options, main
from tests.model.extractors.test_faster_rcnn import SMALL as BUTD_CONFIG
from tests.model.extractors.test_faster_rcnn import randomise
from tests.photo_files import SMALL, picture, stored


@pytest.fixture
def twenty(tmp_path) -> Path:
    folder = tmp_path / "twenty"
    folder.mkdir()
    for i in range(20):
        picture(100 + 7 * i, 150, (12 * i, 40, 200 - 9 * i)).save(folder / f"{i:02d}.jpg")
    (folder / "07.jpg").write_text("not a picture")
    return folder


def command(*words) -> list[str]:
    script = Path(__file__).parents[2] / "scripts" / "extract_regions.py"
    return [sys.executable, str(script), *map(str, words), "--feature-dim", "64", "--num-labels", "21"]


def test_a_killed_run_goes_on(twenty, tmp_path, monkeypatch):
    """Killed (SIGKILL) in the middle; the same command ends with the bytes of an uninterrupted run."""
    main(Options(str(twenty), str(tmp_path / "whole"), **SMALL))
    killer = """
import os, sys
sys.path.insert(0, sys.argv.pop(1))
from data.regions import writer as region_writer
from scripts import extract_regions
from configs import cli
add, seen = region_writer.RegionWriter.add, []
def add_some(writer, key, value):
    add(writer, key, value)
    writer._commit()
    seen.append(key)
    if len(seen) == 6:
        os.kill(os.getpid(), 9)
region_writer.RegionWriter.add = add_some
cli.run(extract_regions.main, extract_regions.Options)
"""
    root = str(Path(__file__).parents[2])
    words = command("--photos", twenty, "--out", tmp_path / "db", "--workers", 0)
    killed = subprocess.run([sys.executable, "-c", killer, root, *words[2:]], capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert not (tmp_path / "db" / "feat_th0.2_max100_min10").exists()
    with pytest.raises(BadInput, match=r"min10\.partial: was begun with other settings"):
        main(Options(str(twenty), str(tmp_path / "db"), **SMALL, seed=1))

    extracted = []
    real = photos_module.read_photo
    monkeypatch.setattr(pool, "read_photo", lambda photo: extracted.append(photo.key) or real(photo))
    main(Options(str(twenty), str(tmp_path / "db"), **SMALL))
    assert len(extracted) == 14 and "00.npz" not in extracted
    report = json.loads((tmp_path / "db" / "report.json").read_text())
    assert (report["written"], report["from_an_earlier_run"], report["skipped"]) == (19, 6, 1)
    assert stored(tmp_path / "db") == stored(tmp_path / "whole")
    nbb = "nbb_th0.2_max100_min10.json"
    assert (tmp_path / "db" / nbb).read_text() == (tmp_path / "whole" / nbb).read_text()
    folders = [tmp_path / name / "feat_th0.2_max100_min10" for name in ("db", "whole")]
    assert {p.name for p in folders[0].iterdir()} <= {"data.mdb", "lock.mdb", "digest.json", "checksums.npz", "extractor.json", "pictures.json"}
    digests = [json.loads((folder / "digest.json").read_text())["data.mdb"]["digest"] for folder in folders]
    assert digests[0] == digests[1]


def test_parts_of_several_ranks_are_merged(twenty, tmp_path, monkeypatch):
    main(Options(str(twenty), str(tmp_path / "whole"), **SMALL))
    out = str(tmp_path / "db")
    main(Options(str(twenty), out, shard="1/3", **SMALL))
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")  # as under torchrun
    main(Options(str(twenty), out, **SMALL))
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(BadInput, match="part-3-of-3 not finished"):
        main(Options(str(twenty), out, merge=True, **SMALL))
    main(Options(str(twenty), out, shard="3/3", **SMALL))
    with pytest.raises(BadInput, match=r"part-1-of-3: was made with other settings of seed"):
        main(Options(str(twenty), out, merge=True, seed=4, **SMALL))
    main(Options(str(twenty), out, merge=True, **SMALL))
    assert stored_beside_parts(tmp_path / "db") == stored(tmp_path / "whole")
    report = json.loads((tmp_path / "db" / "report.json").read_text())
    assert (report["written"], list(report["bad_photos"])) == (19, [str(twenty / "07.jpg")])


def test_a_finished_part_is_done_when_the_rest_is_started_again(twenty, tmp_path, capsys):
    """torchrun starts every rank again when one has died; an error of the finished ones would kill the others."""
    out = str(tmp_path / "db")
    main(Options(str(twenty), out, shard="1/2", **SMALL))
    capsys.readouterr()
    main(Options(str(twenty), out, shard="1/2", **SMALL))
    assert capsys.readouterr().out == f"{tmp_path / 'db' / 'part-1-of-2'}: done already, 10 photos\n"
    with pytest.raises(BadInput, match="exists already; give --overwrite"):
        main(Options(str(twenty), out, shard="1/2", seed=1, **SMALL))
    main(Options(str(twenty), out, shard="1/2", overwrite=True, **SMALL))
    assert "done already" not in capsys.readouterr().out


def test_parts_without_a_good_photo_are_merged(photos, tmp_path):
    """The second part has bad photos only, and the last has none at all."""
    (tmp_path / "list.txt").write_text("b_rgb.jpg\nabsent.jpg\ncmyk.jpg\n")
    settings = {"list": str(tmp_path / "list.txt"), **SMALL}
    main(Options(str(photos), str(tmp_path / "whole"), **settings))
    out = str(tmp_path / "db")
    for index in range(1, 5):
        main(Options(str(photos), out, shard=f"{index}/4", **settings))
    reports = [json.loads((tmp_path / f"db/part-{index}-of-4/report.json").read_text()) for index in range(1, 5)]
    assert [(r["written"], r["skipped"]) for r in reports] == [(1, 0), (0, 1), (1, 0), (0, 0)]
    main(Options(str(photos), out, merge=True, **settings))
    assert stored_beside_parts(tmp_path / "db") == stored(tmp_path / "whole")
    (tmp_path / "list.txt").write_text("absent.jpg\ngone.jpg\n")
    for index in (1, 2):
        main(Options(str(photos), str(tmp_path / "none"), shard=f"{index}/2", **settings))
    with pytest.raises(BadInput, match=r"none of 2 photographs can be read; .*absent\.jpg"):
        main(Options(str(photos), str(tmp_path / "none"), merge=True, **settings))


def stored_beside_parts(img_db: Path) -> dict[bytes, bytes]:
    for part in img_db.glob("part-*"):
        shutil.rmtree(part)
    return stored(img_db)


def test_a_tar_and_its_folder_give_the_same_database(twenty, tmp_path):
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(twenty, ".")
    main(Options(str(twenty), str(tmp_path / "a"), image_key="coco_{stem:0>5}.npz", **SMALL))
    main(Options(str(tmp_path / "photos.tar"), str(tmp_path / "b"), image_key="coco_{stem:0>5}.npz", **SMALL))
    assert stored(tmp_path / "a") == stored(tmp_path / "b") and b"coco_00003.npz" in stored(tmp_path / "a")
    report = json.loads((tmp_path / "b" / "report.json").read_text())
    assert list(report["bad_photos"]) == [f"{tmp_path / 'photos.tar'}:07.jpg"]


def test_butd_fills_a_database(twenty, tmp_path):
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(BUTD_CONFIG))
    detector = FasterRcnn(read_config(folder / "config.yaml"))
    randomise(detector)
    torch.save(detector.state_dict(), folder / "pytorch_model.bin")
    (tmp_path / "list.txt").write_text("01.jpg\n07.jpg\n19.jpg\n")
    out, listing = str(tmp_path / "db"), str(tmp_path / "list.txt")
    main(Options(str(twenty), out, list=listing, extractor="butd", weights=str(folder), workers=0))
    db = RegionDB(out)
    assert (list(db.keys), db.feature_dim, db.num_labels) == (["01.npz", "19.npz"], 128, 10)
    for key in db.keys:
        assert 10 <= len(db[key]) <= 100
        np.testing.assert_allclose(db[key].soft_labels.astype(np.float32).sum(1), 1, atol=5e-3)


def test_photos_without_regions_are_listed(photos, tmp_path, monkeypatch):
    """A detector that finds nothing, or overflows half precision, in one photo must not stop the others."""
    real = RandomConv.detect

    def detect(self, seen):
        found = real(self, seen)
        if seen.width == 90:  # a.dotted.name.png
            found.features[0, 0] = 1e6
        if seen.height == 120 and seen.getpixel((30, 60)) == seen.getpixel((0, 0)):
            return Detections(found.boxes[:0], found.features[:0], found.conf[:0], found.soft_labels[:0])
        return found

    monkeypatch.setattr(RandomConv, "detect", detect)
    Image.new("RGB", (160, 120), "white").save(photos / "white.png")
    main(Options(str(photos), str(tmp_path / "db"), **SMALL))
    bad = json.loads((tmp_path / "db" / "report.json").read_text())["bad_photos"]
    assert {Path(name).name: reason for name, reason in bad.items()} == {
        "white.png": "no region was found",
        "a.dotted.name.png": "features are beyond half precision",
    }


@pytest.mark.parametrize(
    ("error", "fatal"),
    [
        (RuntimeError("output size is too small"), False),
        (ValueError("no such size"), False),
        (BadInput("no vision backbone"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
    ],
)
def test_what_an_extractor_raises_on_one_photo(photos, tmp_path, monkeypatch, error, fatal):
    real = RandomConv.detect

    def detect(self, seen):
        if seen.width == 90:  # a.dotted.name.png
            raise error
        return real(self, seen)

    monkeypatch.setattr(RandomConv, "detect", detect)
    if fatal:
        with pytest.raises(type(error), match=str(error)[:8].replace("[", ".")):
            main(Options(str(photos), str(tmp_path / "db"), **SMALL))
        return
    main(Options(str(photos), str(tmp_path / "db"), **SMALL))
    bad = json.loads((tmp_path / "db" / "report.json").read_text())["bad_photos"]
    assert bad == {str(photos / "a.dotted.name.png"): f"{type(error).__name__}: {error}"}


def test_a_photo_that_the_database_refuses_is_listed(photos, tmp_path):
    (photos / "b_rgb.jpg").rename(photos / f"{'b' * 240}.jpg")
    settings = {"image_key": "{stem}{stem}{stem}.npz", **SMALL}
    main(Options(str(photos), str(tmp_path / "db"), **settings))
    bad = json.loads((tmp_path / "db" / "report.json").read_text())["bad_photos"]
    assert [Path(name).name for name in bad] == [f"{'b' * 240}.jpg"] and len(RegionDB(tmp_path / "db")) == 4
    assert "LMDB keys have 1 to 511" in next(iter(bad.values()))
