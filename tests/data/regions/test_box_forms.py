"""Boxes of precomputed features, in every form that is in circulation: the same database, or refused with the option that decides."""

import json

import numpy as np
import pytest

from data.errors import BadInput
from data.regions.db import BoxOptions, RegionDB
from scripts.extract_regions import Options, main

N, DIM, WIDTH, HEIGHT = 12, 8, 640, 427


def image(seed=0, n=N):
    """Features and boxes (fractions, two corners) that no other form fits."""
    rng = np.random.default_rng(seed)
    corner = rng.random((n, 2)) * 0.5
    boxes = np.concatenate([corner, corner + 0.05 + rng.random((n, 2)) * 0.4], 1)
    boxes[0] = (0.6, 0.7, 0.95, 0.98)
    return rng.standard_normal((n, DIM)).astype(np.float32), boxes


def extract(folder, out, **settings):
    words = {"conf_th": 0.0, "min_bb": 1, "workers": 0, "num_labels": 0, "extractor": "precomputed"} | settings
    main(Options(str(folder), str(out), **words))
    return RegionDB(out, BoxOptions(0.0, min_bb=1)), json.loads((out / "report.json").read_text())


def save(folder, stored, count=3):
    """`count` images; `stored` makes an image's members of its features and boxes."""
    folder.mkdir()
    for seed in range(count):
        np.savez(folder / f"{seed}.npz", **stored(*image(seed)))
    return folder


def as_xywh(boxes):
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)


PIXELS = np.array([WIDTH, HEIGHT] * 2)
SIZE = {"image_w": WIDTH, "image_h": HEIGHT}


@pytest.mark.parametrize(
    "stored",
    [
        lambda f, b: {"features": f, "bbox": b * PIXELS, **SIZE},
        lambda f, b: {"features": f, "bbox": b, **SIZE},  # fractions already
        lambda f, b: {"features": f, "bbox": b},
        lambda f, b: {"features": f, "bbox": as_xywh(b), **SIZE},
        lambda f, b: {"features": f, "bbox": as_xywh(b) * PIXELS, **SIZE},
        lambda f, b: {"features": f, "norm_bb": as_xywh(b)},
        lambda f, b: {"features": f[None], "bbox": (b * PIXELS)[None], "image_w": [WIDTH], "image_h": np.array([[HEIGHT]])},
        lambda f, b: {"features": f, "bbox": np.hstack([b * PIXELS, np.full((N, 1), 0.5)]), **SIZE},
        lambda f, b: {"features": f[:, :, None, None], "bbox": b, "conf": np.ones((1, N, 1))},
    ],
)
def test_forms_that_are_recognised(tmp_path, stored):
    db, report = extract(save(tmp_path / "in", stored), tmp_path / "db")
    assert len(db) == 3 and report["padding_rows"] == 0
    for seed in range(3):
        features, boxes = image(seed)
        np.testing.assert_array_equal(db[f"{seed}.npz"].features, features.astype(np.float16))
        np.testing.assert_allclose(db[f"{seed}.npz"].norm_bb[:, :4], boxes, atol=1e-3)
        np.testing.assert_allclose(db[f"{seed}.npz"].norm_bb[:, 4:], boxes[:, 2:] - boxes[:, :2], atol=2e-3)


@pytest.mark.parametrize(
    ("stored", "answer"),
    [
        (lambda f, b: {"features": f, "bbox": b * PIXELS, "image_w": HEIGHT, "image_h": WIDTH}, {"size_order": "hw"}),
        (lambda f, b: {"features": f, "bbox": (b * PIXELS)[:, [1, 0, 3, 2]], **SIZE}, {"box_format": "yxyx"}),
    ],
)
def test_swapped_sizes_and_boxes_with_the_vertical_first_look_alike(tmp_path, stored, answer):
    folder = save(tmp_path / "in", stored)
    with pytest.raises(BadInput, match=r"several forms: .*say which: --box-format xyxy or yxyx, --size-order hw or wh"):
        extract(folder, tmp_path / "db")
    db, _ = extract(folder, tmp_path / "db", **answer)
    for seed in range(3):
        np.testing.assert_allclose(db[f"{seed}.npz"].norm_bb[:, :4], image(seed)[1], atol=1e-3)


def test_an_image_that_tells_nothing_is_read_as_the_others(tmp_path, capsys):
    small = np.array([[0.1, 0.1, 0.3, 0.3]])
    folder = save(tmp_path / "in", lambda f, b: {"features": f, "bbox": as_xywh(b) * PIXELS, **SIZE})
    np.savez(folder / "a.npz", features=np.ones((1, DIM)), bbox=as_xywh(small) * PIXELS, **SIZE)
    np.testing.assert_allclose(extract(folder, tmp_path / "db")[0]["a.npz"].norm_bb[0, :4], small[0], atol=1e-3)
    assert "in: boxes are read as pixels xywh\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("boxes", "members", "option", "answer"),
    [
        ([[10, 10, 30, 40]], SIZE, "--box-format xyxy or xywh", {"box_format": "xywh"}),
        ([[0.1, 0.1, 0.2, 0.2]], {}, "--box-format xyxy or xywh", {"box_format": "xyxy"}),
    ],
)
def test_what_fits_several_forms_is_refused(tmp_path, boxes, members, option, answer):
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "a.npz", features=np.ones((1, DIM)), bbox=boxes, **members)
    with pytest.raises(BadInput, match=f"boxes fit several forms: .*say which: {option}"):
        extract(tmp_path / "in", tmp_path / "db")
    assert not (tmp_path / "db" / "report.json").exists()
    expected = np.array(boxes) / (PIXELS if members else 1)
    if answer["box_format"] == "xywh":
        expected[:, 2:] += expected[:, :2]
    found = extract(tmp_path / "in", tmp_path / "db", **answer)[0]["a.npz"].norm_bb[:, :4]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_images_of_different_forms_are_refused(tmp_path):
    folder = save(tmp_path / "in", lambda f, b: {"features": f, "bbox": b * PIXELS, **SIZE})
    np.savez(folder / "x.npz", features=image(7)[0], bbox=as_xywh(image(7)[1] * PIXELS), **SIZE)
    with pytest.raises(BadInput, match=r"boxes are of different forms: .*2.npz fits pixels xyxy, .*x.npz fits pixels xywh; say which"):
        extract(folder, tmp_path / "db")


def test_vertical_first_is_asked_for(tmp_path):
    folder = save(tmp_path / "in", lambda f, b: {"features": f, "bbox": (b * PIXELS)[:, [1, 0, 3, 2]], **SIZE})
    db = extract(folder, tmp_path / "db", box_format="yxyx")[0]
    np.testing.assert_allclose(db["1.npz"].norm_bb[:, :4], image(1)[1], atol=1e-3)


@pytest.mark.parametrize("count", ["num_boxes", "num_bbox", None])
def test_rows_of_padding_are_no_regions(tmp_path, count):
    def padded(features, boxes):
        stored = {"features": np.zeros((36, DIM)), "bbox": np.zeros((36, 4)), "conf": np.zeros(36), **SIZE}
        stored["features"][:N], stored["bbox"][:N], stored["conf"][:N] = features, boxes * PIXELS, 1
        return stored | ({count: np.array([N])} if count else {})

    db, report = extract(save(tmp_path / "in", padded), tmp_path / "db")
    assert [len(db[key]) for key in db.keys] == [N] * 3 and report["padding_rows"] == 72
    np.testing.assert_array_equal(db["0.npz"].features, image(0)[0].astype(np.float16))


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"num_boxes": 40}, "num_boxes is 40, and 12 features are stored"),
        ({"num_boxes": 0}, "num_boxes is 0"),
        ({"image_w": [640, 427]}, r"image_w has the shape \[2\]"),
        ({"features": np.zeros((N, DIM))}, "all 12 rows are padding"),
        ({"bbox": np.zeros((N, 4))}, "box 0 is all zeros, and its features are not"),
        ({"features": np.ones((2, N, DIM))}, r"features have the shape \[2, 12, 8\]"),
        ({"features": np.ones((DIM, N))}, "8 features and 12 boxes"),
        ({"bbox": np.ones((N, 3))}, "expected 4 to 7 columns"),
        ({"bbox": np.hstack([np.arange(N)[:, None], image()[1] * PIXELS])}, "column 5 of the boxes is no confidence"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, members, reason):
    (tmp_path / "in").mkdir()
    features, boxes = image()
    np.savez(tmp_path / "in" / "a.npz", **({"features": features, "bbox": boxes * PIXELS, **SIZE} | members))
    with pytest.raises(BadInput, match=reason):
        extract(tmp_path / "in", tmp_path / "db")


def test_maps_of_features_in_both_orders(tmp_path):
    grid = np.random.default_rng(0).standard_normal((3, 4, 128)).astype(np.float32)
    (tmp_path / "in").mkdir()
    for name, stored in {"a": grid, "b": grid.transpose(2, 0, 1), "c": grid.transpose(2, 0, 1)[None]}.items():
        np.save(tmp_path / "in" / f"{name}.npy", stored)
    db, _ = extract(tmp_path / "in", tmp_path / "db")
    for key in db.keys:
        np.testing.assert_array_equal(db[key].features, grid.reshape(12, 128).astype(np.float16))


@pytest.mark.parametrize("shape", [(16, 3, 4), (1, 12, 8), (64, 1, 70)])
def test_maps_that_tell_nothing_are_refused(tmp_path, shape):
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", np.ones(shape))
    with pytest.raises(BadInput, match=r"--grid-order hwc or chw"):
        extract(tmp_path / "in", tmp_path / "db")
    db, _ = extract(tmp_path / "in", tmp_path / "db", grid_order="chw")
    assert db.feature_dim == shape[0] and len(db["a.npz"]) == shape[1] * shape[2]
