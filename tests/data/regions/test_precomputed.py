"""Public files of region features, as others write them, become the database that their arrays say."""

import base64
import builtins
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.errors import BadInput
from data.regions.db import BoxOptions, RegionDB
from data.regions.precomputed import PrecomputedImages, PrecomputedOptions, arrays_of_hdf5, images_of_hdf5, parse_tsv
from scripts.extract_regions import Options, main

N, DIM, WIDTH, HEIGHT = 12, 8, 640, 427


def arrays(seed=0):
    """Features, boxes in pixels of WIDTH x HEIGHT, classes and their probabilities, unsorted."""
    rng = np.random.default_rng(seed)
    corner = rng.random((N, 2)) * (WIDTH / 2, HEIGHT / 2)
    boxes = np.concatenate([corner, corner + rng.random((N, 2)) * (WIDTH / 2, HEIGHT / 2)], 1).astype(np.float32)
    return {
        "features": rng.standard_normal((N, DIM)).astype(np.float32),
        "boxes": boxes,
        "objects_id": rng.integers(0, 20, N),
        "objects_conf": rng.random(N).astype(np.float32),
    }


def tsv_line(image, seed=0, lxmert=True, size=(HEIGHT, WIDTH)):
    a = {name: base64.b64encode(value.tobytes()).decode() for name, value in arrays(seed).items()}
    if lxmert:
        columns = [image, *size, a["objects_id"], a["objects_conf"], a["objects_id"], a["objects_conf"]]
    else:
        columns = [image, *size]
    return "\t".join(map(str, [*columns, N, a["boxes"], a["features"]])) + "\n"


def naive_norm_bb(boxes):
    rows = []
    for x1, y1, x2, y2 in boxes.tolist():
        rows.append([x1 / WIDTH, y1 / HEIGHT, x2 / WIDTH, y2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT])
    return np.array(rows)


def extract(source, out, **settings) -> tuple[RegionDB, dict]:
    options = {"conf_th": 0.0, "min_bb": 10, "workers": 0, "num_labels": 21} | settings
    main(Options(str(source), str(out), extractor="precomputed", **options))
    db = RegionDB(out, BoxOptions(options["conf_th"], min_bb=options["min_bb"]))
    return db, json.loads((Path(out) / "report.json").read_text())


def check(regions, seed=0, conf=True, labels=True):
    a = arrays(seed)
    order = np.argsort(-a["objects_conf"], kind="stable") if conf else np.arange(N)
    np.testing.assert_array_equal(regions.features, a["features"][order].astype(np.float16))
    np.testing.assert_allclose(regions.norm_bb, naive_norm_bb(a["boxes"])[order], atol=1e-3)
    expected = a["objects_conf"][order] if conf else np.ones(N)
    np.testing.assert_array_equal(regions.conf, expected.astype(np.float16))
    if not labels:
        assert regions.soft_labels is None
        return
    for row, i in zip(regions.soft_labels.astype(np.float64), order):  # class + 1 has its probability, the background the rest
        assert row.argmax() in (0, a["objects_id"][i] + 1) and (row > 0).sum() <= 2
        np.testing.assert_allclose(row[[a["objects_id"][i] + 1, 0]], [a["objects_conf"][i], 1 - a["objects_conf"][i]], atol=1e-3)


def test_lxmert_s_tsv(tmp_path):
    (tmp_path / "x.tsv").write_text(tsv_line("COCO_train2014_000000000009", 0) + tsv_line("COCO_train2014_000000000025", 1))
    db, report = extract(tmp_path / "x.tsv", tmp_path / "db", image_key="{lower}.npz")
    assert list(db.keys) == ["coco_train2014_000000000009.npz", "coco_train2014_000000000025.npz"]
    assert (db.feature_dim, db.num_labels, report["skipped"]) == (DIM, 21, 0)
    for seed, key in enumerate(db.keys):
        check(db[key], seed)


def test_bottom_up_attention_s_tsv_has_no_confidence(tmp_path):
    (tmp_path / "x.tsv").write_text(tsv_line("9", lxmert=False, size=(WIDTH, HEIGHT)))
    db, _ = extract(tmp_path / "x.tsv", tmp_path / "db", conf_th=0.2, image_key="coco_{stem:0>12}.npz")
    assert list(db.keys) == ["coco_000000000009.npz"] and len(db[db.keys[0]]) == N
    check(db[db.keys[0]], conf=False, labels=False)
    (tmp_path / "y.tsv").write_text(tsv_line("9", lxmert=False, size=(HEIGHT, WIDTH)))
    check(extract(tmp_path / "y.tsv", tmp_path / "auto")[0]["9.npz"], conf=False, labels=False)  # in the other order
    check(extract(tmp_path / "y.tsv", tmp_path / "hw", size_order="hw")[0]["9.npz"], conf=False, labels=False)
    with pytest.raises(BadInput, match=r"none of 1 .*line 1 \(9\): ValueError: a box ends at .*--size-order"):
        extract(tmp_path / "y.tsv", tmp_path / "wh", size_order="wh")


def test_bad_lines_are_listed_and_skipped(tmp_path):
    good, bad = tsv_line("good"), tsv_line("cut")
    columns = tsv_line("text").split("\t")
    lines = [
        "image_id\timage_w\timage_h\tnum_boxes\tboxes\tfeatures\n",
        good,
        bad[: len(bad) // 2] + "\n",
        bad[:-9] + "\n",
        "\t".join([*columns[:7], "13", *columns[8:]]),
        "\t".join([*columns[:8], "!!!!", columns[9]]),
        "\n",
        good,
        tsv_line("cut", 1),
    ]
    (tmp_path / "x.tsv").write_text("".join(lines))
    db, report = extract(tmp_path / "x.tsv", tmp_path / "db")
    assert sorted(db.keys) == ["cut.npz", "good.npz"]
    check(db["cut.npz"], 1)  # whole the second time
    reasons = {name.split(": ")[1].split(" (")[0]: reason for name, reason in report["bad_photos"].items()}
    assert sorted(reasons) == [f"line {i}" for i in range(3, 9)]
    text = " ".join(reasons.values())
    for part in ("columns, expected 6 or 10", "features: ", "boxes: ", "another image has the key good.npz"):
        assert part in text


def test_infinite_features_and_unknown_classes_are_reasons(tmp_path):
    a = arrays()
    for name, change in (("inf", {"features": a["features"] * 1e6}), ("nan", {"boxes": a["boxes"] * np.nan}),
                         ("class", {"objects_id": a["objects_id"] + 30}), ("short", {"boxes": a["boxes"][:5]}),
                         ("good", {})):  # fmt: skip
        np.savez(tmp_path / f"{name}.npz", **(a | change), img_w=WIDTH, img_h=HEIGHT)
    db, report = extract(tmp_path, tmp_path / "db")
    assert list(db.keys) == ["good.npz"]
    reasons = {Path(name).stem: reason for name, reason in report["bad_photos"].items()}
    assert "features have values" in reasons["inf"] and "a box ends at" in reasons["nan"]
    assert "does not fit 21 soft labels" in reasons["class"] and "12 features and 5 boxes" in reasons["short"]


def test_uniter_s_npz(tmp_path):
    a, rng = arrays(), np.random.default_rng(5)
    labels = rng.dirichlet(np.ones(21), N).astype(np.float16)
    folder = tmp_path / "npz"
    folder.mkdir()
    np.savez_compressed(
        folder / "coco_val2014_000000000042.npz",
        norm_bb=naive_norm_bb(a["boxes"]).astype(np.float16),
        features=a["features"].astype(np.float16),
        conf=a["objects_conf"].astype(np.float16),
        soft_labels=labels,
    )
    db, _ = extract(folder, tmp_path / "db")
    regions = db["coco_val2014_000000000042.npz"]
    order = np.argsort(-a["objects_conf"].astype(np.float16), kind="stable")
    np.testing.assert_array_equal(regions.soft_labels, labels[order])
    np.testing.assert_array_equal(regions.features, a["features"].astype(np.float16)[order])
    np.testing.assert_allclose(regions.norm_bb, naive_norm_bb(a["boxes"])[order], atol=2e-3)
    assert extract(folder, tmp_path / "none", num_labels=0)[0].num_labels == 0


def test_bottom_up_attention_s_npz_and_npy(tmp_path):
    """x and bbox with a pickled member beside them, which is never opened; and bare arrays."""
    a = arrays()
    folder = tmp_path / "in"
    folder.mkdir()
    info = np.array({"objects": 1}, dtype=object)
    np.savez(folder / "a.npz", x=a["features"], bbox=a["boxes"], num_bbox=N, image_w=WIDTH, image_h=HEIGHT, info=info)
    np.save(folder / "b.npy", a["features"])
    np.save(folder / "b_boxes.npy", a["boxes"])
    np.save(folder / "b_info.npy", info)
    np.save(folder / "pickled.npy", info)
    np.save(folder / "alone.npy", a["features"])
    (tmp_path / "sizes.json").write_text(json.dumps({"b.jpg": [WIDTH, HEIGHT]}))
    db, report = extract(folder, tmp_path / "db", sizes=str(tmp_path / "sizes.json"))
    assert list(db.keys) == ["a.npz", "b.npz"]
    for key in db.keys:
        check(db[key], conf=False, labels=False)
    reasons = {Path(name).name: reason for name, reason in report["bad_photos"].items()}
    assert "only numbers and texts are read" in reasons["pickled.npy"] and "no boxes" in reasons["alone.npy"]


def test_grid_features_bring_their_own_boxes(tmp_path):
    grid = np.random.default_rng(0).standard_normal((3, 4, DIM)).astype(np.float32)
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "g.npy", grid)
    regions = extract(tmp_path / "in", tmp_path / "db")[0]["g.npz"]
    expected = [[c / 4, r / 3, (c + 1) / 4, (r + 1) / 3, 1 / 4, 1 / 3] for r in range(3) for c in range(4)]
    np.testing.assert_allclose(regions.norm_bb, expected, atol=1e-3)
    np.testing.assert_array_equal(regions.features, grid.reshape(12, DIM).astype(np.float16))


@pytest.mark.parametrize(("rows", "columns", "max_bb", "k"), [(20, 20, 100, 2), (7, 5, 6, 3), (3, 4, 12, 1)])
def test_a_larger_grid_is_pooled(tmp_path, rows, columns, max_bb, k):
    grid = np.random.default_rng(0).standard_normal((rows, columns, DIM)).astype(np.float32)
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "g.npy", grid)
    main(Options(str(tmp_path / "in"), str(tmp_path / "db"), extractor="precomputed", max_bb=max_bb, min_bb=1))
    regions = RegionDB(tmp_path / "db", BoxOptions(max_bb=max_bb, min_bb=1))["g.npz"]
    features, boxes = [], []
    for y in range(0, rows, k):
        for x in range(0, columns, k):
            features.append(grid[y : y + k, x : x + k].reshape(-1, DIM).mean(0))
            right, bottom = min(x + k, columns) / columns, min(y + k, rows) / rows
            boxes.append([x / columns, y / rows, right, bottom, right - x / columns, bottom - y / rows])
    assert len(regions) <= max_bb
    np.testing.assert_allclose(regions.features, features, atol=2e-3)
    np.testing.assert_allclose(regions.norm_bb, boxes, atol=1e-3)


def test_wrong_values_are_reasons(tmp_path):
    a, folder = arrays(), tmp_path / "in"
    folder.mkdir()
    inverted, labels = a["boxes"].copy(), np.full((N, 21), 1 / 21, np.float32)
    inverted[3] = inverted[3, [2, 1, 0, 3]]
    wrong = {
        "good": {}, "inverted": {"boxes": inverted}, "conf": {"conf": a["objects_conf"] * 30},
        "negative": {"conf": -a["objects_conf"]}, "sum": {"soft_labels": labels * 3},
        "sign": {"soft_labels": labels - np.eye(21, dtype=np.float32)[:N] + np.eye(21, dtype=np.float32)[1 : N + 1]},
    }  # fmt: skip
    for name, change in wrong.items():
        values = {"features": a["features"], "boxes": a["boxes"], "soft_labels": labels} | change
        np.savez(folder / f"{name}.npz", **values, img_w=WIDTH, img_h=HEIGHT)
    db, report = extract(folder, tmp_path / "db")
    assert list(db.keys) == ["good.npz"]
    reasons = {Path(name).stem: reason for name, reason in report["bad_photos"].items()}
    assert "box 3 ends before it begins" in reasons["inverted"]
    assert "expected 0 to 1" in reasons["conf"] and "expected 0 to 1" in reasons["negative"]
    assert "a row of soft labels" in reasons["sum"] and "a row of soft labels" in reasons["sign"]


def test_a_number_of_boxes_that_the_boxes_do_not_have(tmp_path):
    """Half as many: rows would be twice as wide."""
    columns = tsv_line("half").split("\t")
    columns[7] = str(N // 2)
    none = tsv_line("none").split("\t")
    none[7] = "-1"
    (tmp_path / "x.tsv").write_text("\t".join(columns) + "\t".join(none) + tsv_line("good"))
    db, report = extract(tmp_path / "x.tsv", tmp_path / "db")
    assert list(db.keys) == ["good.npz"] and db.feature_dim == DIM
    first, second = report["bad_photos"].values()
    assert "class_conf: " in second or "num_boxes" in second
    assert "cannot reshape" in first


def test_records_that_the_database_refuses_are_listed(tmp_path):
    """Another width, a key longer than LMDB's, no soft labels: the others are written, and the run can go on."""
    folder = tmp_path / "in"
    folder.mkdir()
    a = arrays() | {"image_w": WIDTH, "image_h": HEIGHT}
    np.savez(folder / "1.npz", **a)
    np.savez(folder / "2.npz", **(a | {"features": a["features"][:, :5]}))
    np.savez(folder / "3.npz", **{name: a[name] for name in ("features", "boxes", "image_w", "image_h")})
    np.savez(folder / "4.npz", **a)
    np.savez(folder / f"{'x' * 200}.npz", **a)
    db, report = extract(folder, tmp_path / "db", image_key="{stem}" * 3)
    assert list(db.keys) == ["111", "444"] and report["skipped"] == 3
    reasons = {Path(name).stem[:1]: reason for name, reason in report["bad_photos"].items()}
    assert "key '222' has arrays" in reasons["2"] and "key '333' has arrays" in reasons["3"]
    assert "LMDB keys have 1 to 511" in reasons["x"]


def test_a_full_disk_stops_the_run(tmp_path):
    (tmp_path / "x.tsv").write_text("".join(tsv_line(f"i{i}", i) for i in range(40)))
    code = f"""
import resource
from scripts.extract_regions import Options, main
resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384))
main(Options({str(tmp_path / "x.tsv")!r}, {str(tmp_path / "db")!r}, extractor="precomputed", num_labels=21))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.stderr.splitlines()[-1].startswith("data.errors.CannotWrite:")
    assert not (tmp_path / "db" / "report.json").exists()


@pytest.mark.parametrize(
    ("stored", "image"),
    [
        ("COCO_val2014_000000000042_features", "COCO_val2014_000000000042"),
        ("42_image_features", "42"),
        ("dog.jpg/features", "dog"),
        ("dog.v2/features", "dog.v2"),
    ],
)
def test_names_in_hdf5(tmp_path, stored, image):
    h5py = pytest.importorskip("h5py", reason="h5py is optional")
    a = arrays()
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file[stored] = a["features"]
        file[stored.replace("image_features", "features").replace("features", "norm_bb")] = naive_norm_bb(a["boxes"])
    check(extract(tmp_path / "x.h5", tmp_path / "db")[0][f"{image}.npz"], conf=False, labels=False)


def test_names_with_a_picture_s_suffix_and_byte_order_marks(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    np.savez(folder / "a.jpg.npz", **arrays())
    (tmp_path / "sizes.json").write_text(json.dumps({"a.jpg": [WIDTH, HEIGHT]}), encoding="utf-8-sig")
    assert list(extract(folder, tmp_path / "db", sizes=str(tmp_path / "sizes.json"))[0].keys) == ["a.npz"]
    (tmp_path / "x.tsv").write_text(tsv_line("b.PNG"), encoding="utf-8-sig")
    assert list(extract(tmp_path / "x.tsv", tmp_path / "tsv")[0].keys) == ["b.npz"]


def test_hdf5_of_all_images_and_of_one(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is optional")
    a, labels = arrays(), np.random.default_rng(5).dirichlet(np.ones(21), N)
    with h5py.File(tmp_path / "all.hdf5", "w") as file:
        file["42_features"], file["42_boxes"], file["42_cls_prob"] = a["features"], a["boxes"], labels
        file["ids"] = [42]
    (tmp_path / "coco.json").write_text(
        json.dumps({"images": [{"id": 42, "file_name": "COCO_val2014_000000000042.jpg", "width": WIDTH, "height": HEIGHT}]})
    )
    db, _ = extract(tmp_path / "all.hdf5", tmp_path / "m2", sizes=str(tmp_path / "coco.json"), image_key="{stem:0>12}.npz")
    regions = db["000000000042.npz"]
    np.testing.assert_array_equal(regions.features, a["features"].astype(np.float16))
    np.testing.assert_array_equal(regions.soft_labels, labels.astype(np.float16))
    with pytest.raises(BadInput, match="the image's size is not known; give --sizes"):
        extract(tmp_path / "all.hdf5", tmp_path / "no_sizes")

    (tmp_path / "folder").mkdir()
    for path, prefix in ((tmp_path / "groups.h5", "dog/"), (tmp_path / "folder" / "dog.h5", "")):
        with h5py.File(path, "w") as file:
            for name, value in {**a, "image_w": WIDTH, "image_h": HEIGHT}.items():
                file[prefix + name] = value
    for source in (tmp_path / "groups.h5", tmp_path / "folder"):
        check(extract(source, tmp_path / f"db_{source.stem}")[0]["dog.npz"])
    (tmp_path / "bad.h5").write_bytes((tmp_path / "groups.h5").read_bytes()[:900])
    with pytest.raises(BadInput, match="cannot be read as HDF5"):
        extract(tmp_path / "bad.h5", tmp_path / "bad")
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["image_features"] = np.zeros((5, N, DIM))
    with pytest.raises(BadInput, match="if images are rows of one array"):
        extract(tmp_path / "rows.h5", tmp_path / "rows")


def test_hdf5_that_leads_elsewhere_or_becomes_too_much(tmp_path):
    h5py = pytest.importorskip("h5py", reason="h5py is optional")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "secret").write_bytes(bytes(64))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["features"] = np.ones((2, 4), np.float32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["linked/features"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "features")
        file["waits"] = h5py.ExternalLink(str(tmp_path / "pipe"), "features")
        file.create_dataset("raw/features", (2, 4), "f4", external=[(str(tmp_path / "secret"), 0, 32)])
        file.create_virtual_dataset("virtual/features", h5py.VirtualLayout((2, 4), "f4"))
        file.create_dataset("empty/features", (100_000, 100_000), "f4", chunks=(100, 100))
        file["fine/features"] = np.ones((2, 4), np.float32)
    images = images_of_hdf5(tmp_path / "x.h5")
    assert list(images) == ["empty", "fine", "linked", "raw", "virtual"]
    for name, members in images.items():
        if name == "fine":
            assert arrays_of_hdf5(tmp_path / "x.h5", members)["features"].sum() == 8
        else:
            with pytest.raises(ValueError, match=r"is no array of this file|would take 40,000,000,000 bytes"):
                arrays_of_hdf5(tmp_path / "x.h5", members)
    with pytest.raises(BadInput, match="a named pipe"):
        images_of_hdf5(tmp_path / "pipe")


def test_without_h5py_there_is_one_clear_line(tmp_path, monkeypatch):
    real = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "h5py":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    (tmp_path / "x.h5").write_bytes(b"x")
    for source in (tmp_path / "x.h5", tmp_path):
        with pytest.raises(BadInput, match="needs h5py, which is not installed: pip install h5py"):
            PrecomputedImages(str(source), PrecomputedOptions())


def test_parts_and_going_on(tmp_path):
    """Every second line of a TSV; and one more line in a file that was read before."""
    (tmp_path / "x.tsv").write_text("".join(tsv_line(f"i{i}", i) for i in range(5)))
    whole, _ = extract(tmp_path / "x.tsv", tmp_path / "whole")
    for shard in ("1/2", "2/2"):
        main(Options(str(tmp_path / "x.tsv"), str(tmp_path / "db"), extractor="precomputed", num_labels=21, shard=shard))
    main(Options(str(tmp_path / "x.tsv"), str(tmp_path / "db"), extractor="precomputed", num_labels=21, merge=True))
    merged = RegionDB(tmp_path / "db")
    assert list(merged.keys) == list(whole.keys) == [f"i{i}.npz" for i in range(5)]
    for key in whole.keys:
        np.testing.assert_array_equal(whole[key].features[:10], merged[key].features[:10])


def test_a_record_that_stands_twice_is_the_same_with_and_without_shards(tmp_path):
    """A torn record that comes again counts the second time; of two whole ones the first counts, and the other is reported."""
    lines = [tsv_line("a", 0), tsv_line("b", 1), tsv_line("torn", 2)[:-9] + "\n", tsv_line("a", 3), tsv_line("c", 4)]
    (tmp_path / "x.tsv").write_text("".join([*lines, tsv_line("a", 5), tsv_line("torn", 6), tsv_line("b", 7)]))
    whole, report = extract(tmp_path / "x.tsv", tmp_path / "whole")
    words = {"extractor": "precomputed", "num_labels": 21, "conf_th": 0.0, "workers": 0}
    for shards in (2, 3):
        out = str(tmp_path / f"{shards}")
        for index in range(1, shards + 1):
            main(Options(str(tmp_path / "x.tsv"), out, **words, shard=f"{index}/{shards}"))
        main(Options(str(tmp_path / "x.tsv"), out, **words, merge=True))
        merged = RegionDB(out, BoxOptions(0.0))
        assert list(merged.keys) == list(whole.keys) and len(whole) == 4
        for key, seed in {"a.npz": 0, "b.npz": 1, "c.npz": 4, "torn.npz": 6}.items():
            check(whole[key], seed)
            check(merged[key], seed)
        assert json.loads(Path(out, "report.json").read_text())["bad_photos"] == report["bad_photos"]
    assert len(report["bad_photos"]) == 4
    assert sum("another image has the key" in reason for reason in report["bad_photos"].values()) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [("absent", "no such file or folder"), ("x.csv", r"not a form that is read, expected \.tsv"), ("", "found no feature files")],
)
def test_what_cannot_be_read(tmp_path, name, message):
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(BadInput, match=message):
        PrecomputedImages(str(tmp_path / name), PrecomputedOptions())


@pytest.mark.parametrize("content", ["[1]", "{", '{"images": [{"id": 1}]}', '{"a": 3}'])
def test_bad_sizes(tmp_path, content):
    (tmp_path / "s.json").write_text(content)
    with pytest.raises(BadInput, match=r"s\.json: (the file is not JSON|holds )"):
        PrecomputedImages(str(tmp_path), PrecomputedOptions(sizes=str(tmp_path / "s.json")))


def test_a_line_as_numpy_reads_it():
    values = parse_tsv(tsv_line("x").rstrip("\n").split("\t"))
    assert (values["image_w"], values["image_h"]) == (WIDTH, HEIGHT)
    np.testing.assert_array_equal(values["boxes"], arrays()["boxes"])
    np.testing.assert_array_equal(values["classes"], arrays()["objects_id"])
