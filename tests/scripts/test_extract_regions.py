"""scripts/extract_regions.py on real files: what it stores, what it skips, what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.errors import BadInput
from data.regions.db import RegionDB
from data.regions.pictures import read_pictures
from scripts.extract_regions import Options, main
from tests.photo_files import SMALL, picture, stored


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
        ({"sizes": "x.json"}, "--sizes has no effect with --extractor random-conv"),
        ({"extractor": "precomputed", "list": "x.txt"}, "--list has no effect with --extractor precomputed, which takes every image"),
        ({"extractor": "precomputed", "size": 96}, "--size has no effect with --extractor precomputed"),
        ({"extractor": "butd", "num_labels": 5}, "--num-labels has no effect with --extractor butd; leave it out"),
        ({"extractor": "precomputed", "num_labels": 1}, "--num-labels: found 1"),
        ({"extractor": "precomputed", "size_order": "xy"}, "--size-order: found xy"),
        ({"shard": "0/2"}, "--shard: found 0/2"),
        ({"shard": f"1/{'9' * 5000}"}, "--shard: found 1/999"),
        ({"shard": "1/2", "merge": True}, "leave --shard out"),
        ({"merge": True}, "expected the parts of one run with --shard, found none"),
        ({"extractor": "torchvision:no_such_model"}, "torchvision:no_such_model: "),
        ({"extractor": "hf:./not/a/model"}, "hf:./not/a/model: cannot be loaded"),
    ],
)
def test_bad_settings(photos, tmp_path, settings, message):
    with pytest.raises(BadInput, match=message):
        main(Options(str(photos), str(tmp_path / "db"), **{**({} if "extractor" in settings else SMALL), **settings}))
    assert not (tmp_path / "db").exists()
