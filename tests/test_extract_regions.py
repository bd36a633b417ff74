"""scripts/extract_regions.py on real files: what it stores, what it skips, what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image, ImageDraw

from data.errors import BadInput
from data.regions import RegionDB
from scripts.extract_regions import Options, extract_all, find_photos, main

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
    script = Path(__file__).parents[1] / "scripts" / "extract_regions.py"
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


def test_two_photos_of_one_key_are_refused(photos):
    picture().save(photos / "more" / "b_rgb.png")
    with pytest.raises(BadInput, match=r"b_rgb\.jpg and .*more/b_rgb\.png would both have the key b_rgb\.npz"):
        find_photos(str(photos), None)


def test_nothing_to_read(tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        find_photos(str(tmp_path / "absent"), None)
    with pytest.raises(BadInput, match="found no photographs"):
        find_photos(str(tmp_path), None)
    with pytest.raises(BadInput, match=r"--list .*absent\.txt: cannot be read"):
        find_photos(str(tmp_path), str(tmp_path / "absent.txt"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conf_th": -1.0}, "--conf-th"),
        ({"min_bb": 20, "max_bb": 10}, "--min-bb 20 --max-bb 10"),
        ({"workers": -1}, "--workers"),
        ({"extractor": "yolo"}, "found yolo, expected one of random-conv"),
        ({"feature_dim": 2}, "feature_dim is 2"),
    ],
)
def test_bad_settings(photos, tmp_path, settings, message):
    with pytest.raises(BadInput, match=message):
        main(Options(str(photos), str(tmp_path / "db"), **{**SMALL, **settings}))
    assert not (tmp_path / "db").exists()


def die(pictures):
    """An extractor whose process is killed, as one that runs out of memory is."""
    os._exit(9)


def test_a_worker_that_dies_is_an_error_and_not_a_hang(photos):
    with pytest.raises(BadInput, match="a worker process died"):
        list(extract_all(die, sorted(photos.glob("*.jpg")), workers=1))
