"""scripts/extract_regions.py on real files: what it stores, what it skips, what it refuses."""

import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw

from data.errors import BadInput
from data.regions import photos as photos_module
from data.regions.db import RegionDB
from data.regions.pictures import read_pictures
from model.extractors import pool
from model.extractors.base import Detections
from model.extractors.butd.faster_rcnn import FasterRcnn
from model.extractors.butd.rcnn_config import read_config
from model.extractors.random_conv import RandomConv
from scripts.extract_regions import Options, main
from tests.model.extractors.test_faster_rcnn import SMALL as BUTD_CONFIG
from tests.model.extractors.test_faster_rcnn import randomise

SMALL = {"feature_dim": 64, "num_labels": 21, "workers": 0}


def picture(width=160, height=120, colour=(200, 40, 30)) -> Image.Image:
    result = Image.new("RGB", (width, height), (180, 185, 170))
    ImageDraw.Draw(result).rectangle((20, 30, 59, 89), fill=colour)
    return result


@pytest.fixture
def photos(tmp_path) -> Path:
    """Five good photographs of different kinds."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    picture().save(folder / "b_rgb.jpg")
    picture(90, 300, (30, 60, 200)).save(folder / "a.dotted.name.png")
    picture().convert("L").save(folder / "more" / "grey.JPEG")
    picture().convert("CMYK").save(folder / "cmyk.jpg")
    picture().convert("P").save(folder / "palette.png", transparency=0)
    (folder / "notes.txt").write_text("no photograph")
    return folder


def stored(img_db: Path) -> dict[bytes, bytes]:
    folder = next(p for p in img_db.iterdir() if p.is_dir())
    with lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin() as txn:
        return dict(txn.cursor())


@pytest.mark.parametrize("compressed", [False, True])
def test_photos_become_a_region_database(photos, tmp_path, compressed, capsys):
    out = tmp_path / "db"
    main(Options(str(photos), str(out), compressed=compressed, **SMALL))
    assert sorted(p.name for p in out.iterdir()) == [
        "feat_th0.2_max100_min10" + "_compressed" * compressed, "nbb_th0.2_max100_min10.json", "report.json",
    ]  # fmt: skip
    db = RegionDB(out)
    assert sorted(db.keys) == ["a.dotted.name.npz", "b_rgb.npz", "cmyk.npz", "grey.npz", "palette.npz"]
    assert (db.feature_dim, db.num_labels) == (64, 21)
    for key in db.keys:
        regions = db[key]
        assert 10 <= len(regions) == db.num_regions[key] <= 16
        assert np.isfinite(regions.features).all() and (regions.conf > 0.2).all()
        np.testing.assert_allclose(regions.soft_labels.astype(np.float32).sum(1), 1, atol=2e-3)
        x1, y1, x2, y2, w, h = regions.norm_bb.astype(np.float32).T
        np.testing.assert_allclose([w, h], [x2 - x1, y2 - y1], atol=1e-3)
    best = db["a.dotted.name.npz"].norm_bb[0].astype(np.float32)  # the blue rectangle, in fractions of 90 x 300
    np.testing.assert_allclose(best, [20 / 90, 0.1, 60 / 90, 0.3, 40 / 90, 0.2], atol=0.03)

    report = json.loads((out / "report.json").read_text())
    assert (report["photos"], report["written"], report["skipped"], report["bad_photos"]) == (5, 5, 0, {})
    assert report["settings"]["feature_dim"] == 64 and report["photos_per_second"] > 0
    assert "5 photos" in capsys.readouterr().out


@pytest.mark.parametrize("compressed", [False, True])
def test_soft_labels_are_left_out_where_they_are_not_wanted(photos, tmp_path, compressed):
    for name, choice in (("with", "keep"), ("without", "none")):
        main(Options(str(photos), str(tmp_path / name), compressed=compressed, soft_labels=choice, **SMALL))
    sizes = [sum(map(len, stored(tmp_path / name).values())) for name in ("with", "without")]
    assert sizes[1] < sizes[0]
    with_labels, without = RegionDB(tmp_path / "with"), RegionDB(tmp_path / "without")
    assert (with_labels.num_labels, without.num_labels) == (21, 0) and with_labels.keys == without.keys
    for key in without.keys:
        found, expected = without[key], with_labels[key]
        assert found.soft_labels is None and np.array_equal(found.norm_bb, expected.norm_bb)
        assert np.array_equal(found.features, expected.features) and np.array_equal(found.conf, expected.conf)


def test_parts_with_and_without_soft_labels_are_not_merged(photos, tmp_path):
    out = str(tmp_path / "db")
    for shard in ("1/2", "2/2"):
        main(Options(str(photos), out, shard=shard, soft_labels="none", **SMALL))
    with pytest.raises(BadInput, match="was made with other settings of soft_labels"):
        main(Options(str(photos), out, merge=True, **SMALL))
    main(Options(str(photos), out, merge=True, soft_labels="none", **SMALL))
    assert RegionDB(out).num_labels == 0
    for part in ("part-1-of-2", "part-2-of-2"):  # as of a version that had no such setting
        report = json.loads((tmp_path / "db" / part / "report.json").read_text())
        del report["settings"]["soft_labels"]
        (tmp_path / "db" / part / "report.json").write_text(json.dumps(report))
    main(Options(str(photos), out, merge=True, overwrite=True, **SMALL))


@pytest.mark.parametrize("compressed", [False, True])
def test_an_image_db_is_stored_again_without_soft_labels(photos, tmp_path, compressed):
    main(Options(str(photos), str(tmp_path / "db"), compressed=compressed, **SMALL))
    again = {"extractor": "precomputed", "compressed": not compressed}
    main(Options(str(tmp_path / "db"), str(tmp_path / "small"), soft_labels="none", **again))
    main(Options(str(tmp_path / "db"), str(tmp_path / "whole"), **again))
    before, small, whole = (RegionDB(tmp_path / name) for name in ("db", "small", "whole"))
    assert small.keys == whole.keys == before.keys and small.made_by == whole.made_by == before.made_by is not None
    assert (small.num_labels, whole.num_labels) == (0, 21) and dict(small.num_regions) == dict(before.num_regions)
    for key in before.keys:
        for name in ("features", "norm_bb", "conf"):
            expected = getattr(before[key], name)
            assert np.array_equal(getattr(small[key], name), expected) and np.array_equal(getattr(whole[key], name), expected)
        assert np.array_equal(whole[key].soft_labels, before[key].soft_labels)
    assert read_pictures(small.folder) == read_pictures(before.folder) is not None
    with pytest.raises(BadInput, match="an image DB says its keys and boxes"):
        main(Options(str(tmp_path / "db"), str(tmp_path / "c"), image_key="{lower}.npz", extractor="precomputed"))
    with pytest.raises(BadInput, match=r"no image DB, expected feat_th0\.3_max100_min10"):
        main(Options(str(tmp_path / "db"), str(tmp_path / "d"), conf_th=0.3, extractor="precomputed"))


def test_exif_orientation_is_applied(tmp_path):
    turned, upright = tmp_path / "turned", tmp_path / "upright"
    for folder in (turned, upright):
        folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show rotated by 90 degrees clockwise
    picture().save(turned / "x.png", exif=exif)
    picture().transpose(Image.Transpose.ROTATE_270).save(upright / "x.png")
    for folder in (turned, upright):
        main(Options(str(folder), str(folder / "db"), **SMALL))
    assert stored(turned / "db") == stored(upright / "db")


def test_bad_photos_are_listed_and_skipped(photos, tmp_path, capsys):
    whole = (photos / "b_rgb.jpg").read_bytes()
    (photos / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.png").write_bytes(b"")
    (photos / "text.jpg").write_text("not a picture")
    main(Options(str(photos), str(tmp_path / "db"), **SMALL))
    report = json.loads((tmp_path / "db" / "report.json").read_text())
    assert {Path(name).name for name in report["bad_photos"]} == {"truncated.jpg", "empty.png", "text.jpg"}
    assert all(report["bad_photos"].values())
    assert (report["written"], report["skipped"]) == (5, 3) and len(RegionDB(tmp_path / "db")) == 5
    assert "3 photos could not be read" in capsys.readouterr().out


def test_a_list_chooses_photos_and_a_missing_one_is_reported(photos, tmp_path):
    (tmp_path / "list.txt").write_text("more/grey.JPEG\n\nb_rgb.jpg\nabsent.jpg\nb_rgb.jpg\n")
    main(Options(str(photos), str(tmp_path / "db"), list=str(tmp_path / "list.txt"), **SMALL))
    assert RegionDB(tmp_path / "db").keys == ["grey.npz", "b_rgb.npz"]
    bad = json.loads((tmp_path / "db" / "report.json").read_text())["bad_photos"]
    assert list(bad) == [str(photos / "absent.jpg")] and "No such file" in bad[str(photos / "absent.jpg")]


def test_workers_do_not_change_a_byte(tmp_path):
    """The command as users run it, in spawned processes, from another folder."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(20):  # more than one job
        picture(100 + 7 * i, 150, (12 * i, 40, 200 - 9 * i)).save(folder / f"{i:02d}.jpg")
    script = Path(__file__).parents[2] / "scripts" / "extract_regions.py"
    command = [sys.executable, str(script), "--photos", "photos", "--out", "two", "--workers", "2"]
    command += ["--feature-dim", "64", "--num-labels", "21"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    main(Options(str(folder), str(tmp_path / "one"), **SMALL))
    assert stored(tmp_path / "one") == stored(tmp_path / "two")

    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 2
    assert (
        again.stderr.startswith("error: two/feat_th0.2_max100_min10: exists already") and again.stderr.count("\n") == 1
    )


def test_overwrite_replaces_and_failure_keeps_the_old_database(photos, tmp_path):
    out = tmp_path / "db"
    main(Options(str(photos), str(out), **SMALL))
    before = stored(out)
    with pytest.raises(BadInput, match="exists already; give --overwrite"):
        main(Options(str(photos), str(out), **SMALL))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.jpg").write_text("not a picture")
    with pytest.raises(BadInput, match=r"none of 1 photographs can be read; .*x\.jpg"):
        main(Options(str(tmp_path / "bad"), str(out), overwrite=True, **SMALL))
    assert stored(out) == before
    main(Options(str(photos), str(out), overwrite=True, seed=1, **SMALL))
    assert stored(out) != before and len(RegionDB(out)) == 5
    with pytest.raises(BadInput, match="exists in the other layout"):
        main(Options(str(photos), str(out), overwrite=True, compressed=True, **SMALL))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conf_th": -1.0}, "--conf-th"),
        ({"min_bb": 20, "max_bb": 10}, "--min-bb 20 --max-bb 10"),
        ({"workers": -1}, "--workers"),
        ({"extractor": "yolo"}, "found yolo, expected one of random-conv, butd, .*, precomputed"),
        ({"feature_dim": 2}, "feature_dim is 2"),
        ({"weights": "x"}, "--weights x: random-conv takes none"),
        ({"sizes": "x.json"}, "only precomputed features need them"),
        ({"extractor": "precomputed", "list": "x.txt"}, "--list: precomputed takes every image"),
        ({"extractor": "precomputed", "num_labels": 1}, "--num-labels: found 1"),
        ({"size_order": "xy"}, "--size-order: found xy"),
        ({"shard": "0/2"}, "--shard: found 0/2"),
        ({"shard": "1/2", "merge": True}, "leave --shard out"),
        ({"merge": True}, "expected the parts of one run with --shard, found none"),
        ({"extractor": "torchvision:no_such_model"}, "torchvision:no_such_model: "),
        ({"extractor": "hf:./not/a/model"}, "hf:./not/a/model: cannot be loaded"),
    ],
)
def test_bad_settings(photos, tmp_path, settings, message):
    with pytest.raises(BadInput, match=message):
        main(Options(str(photos), str(tmp_path / "db"), **{**SMALL, **settings}))
    assert not (tmp_path / "db").exists()


# ---- stopped and started again, parts, other extractors ---------------------------------------------------------------


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
