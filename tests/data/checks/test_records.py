"""What is wrong with one record: every problem by name, none in sound records, and workers that die."""

import os

import numpy as np
import pytest

from data.checks.captions import caption_problems
from data.checks.images import count_problems, region_problems
from data.checks.records import check_all
from data.errors import BadInput
from data.regions.db import BoxOptions


def make_arrays(seed, rows=12, dim=8, labels=5):
    """One sound picture: boxes inside it, falling confidences, probabilities."""
    rng = np.random.default_rng(seed)
    low, high = np.sort(rng.random((2, rows, 2)) * [[[0.4]], [[0.5]]] + [[[0.0]], [[0.5]]], axis=0)
    soft = rng.random((rows, labels))
    arrays = {
        "features": rng.random((rows, dim)),
        "norm_bb": np.hstack([low, high, high - low]),
        "conf": np.sort(rng.random(rows))[::-1],
        "soft_labels": soft / soft.sum(1, keepdims=True),
    }
    return {name: array.astype(np.float16) for name, array in arrays.items()}


def changed(name, index, value):
    arrays = make_arrays(0)
    arrays[name] = arrays[name].copy()
    arrays[name][index] = value
    return arrays


@pytest.mark.parametrize(
    "kind, arrays",
    [
        ("NaN or infinity in features", changed("features", (3, 2), np.nan)),
        ("NaN or infinity in norm_bb", changed("norm_bb", (3, 2), np.inf)),
        ("NaN or infinity in conf", changed("conf", 11, np.nan)),
        ("features that are all zero", changed("features", slice(None), 0)),
        ("boxes outside the picture", changed("norm_bb", 2, [0.5, 0.5, 1.1, 1, 0.6, 0.5])),
        ("boxes outside the picture", changed("norm_bb", 2, [-0.1, 0.5, 0.9, 1, 1, 0.5])),
        ("boxes with x2 < x1 or y2 < y1", changed("norm_bb", 2, [0.5, 0.5, 0.4, 0.9, 0.1, 0.4])),
        ("boxes without area", changed("norm_bb", 2, [0.5, 0.5, 0.5, 0.9, 0, 0.4])),
        ("boxes whose w, h disagree with their corners", changed("norm_bb", 2, [0.5, 0.5, 0.9, 0.9, 0.4, 0.3])),
        ("confidences outside 0..1", changed("conf", 0, 1.5)),
        ("soft labels that are no probabilities", changed("soft_labels", 4, 0)),
        ("soft labels that are no probabilities", changed("soft_labels", 4, [-0.5, 1.5, 0, 0, 0])),
        ("arrays of another shape", make_arrays(0, dim=9)),
        ("arrays of another shape", make_arrays(0, labels=6)),
        ("arrays of another shape", make_arrays(0, rows=0)),
        ("arrays of another shape", {n: a for n, a in make_arrays(0).items() if n != "soft_labels"}),
    ],
)
def test_what_is_wrong_with_a_picture(kind, arrays):
    found = list(region_problems(arrays, (8, 5)))
    assert [name for name, _ in found] == [kind]


def test_sound_pictures_have_no_problems():
    for seed in range(50):
        arrays = make_arrays(seed, labels=1601)
        assert not list(region_problems(arrays, (8, 1601)))
    assert not list(region_problems({n: a for n, a in arrays.items() if n != "soft_labels"}, (8, 0)))
    whole = changed("norm_bb", 0, [0, 0, 1, 1, 1, 1])
    assert not list(region_problems(whole, (8, 5)))


def test_box_counts():
    conf = np.array([0.9, 0.8, 0.7, 0.3, 0.2, 0.1], np.float16)  # 0.2 is a little less in fp16: either count is right
    boxes = BoxOptions(0.2, 5, 2)
    wrong = "box counts that disagree with the stored confidences"
    expected = {None: [], 4: [], 5: [], 3: [wrong], 6: [wrong], 2: [wrong]}
    for count, kinds in expected.items():
        assert [kind for kind, _ in count_problems(conf, count, boxes)] == kinds, count
    assert [kind for kind, _ in count_problems(conf[::-1], 4, boxes)] == [
        "boxes left out that are more confident than one used"
    ]
    assert not list(count_problems(conf, 10, BoxOptions(0.2, 100, 10)))  # as UNITER's tools count
    fixed = BoxOptions(conf_th=-1, num_bb=7)
    assert [kind for kind, _ in count_problems(conf, None, fixed)] == ["fewer boxes than the folder's name says"]


def test_what_is_wrong_with_a_caption():
    good = {"input_ids": [5, 6, 7], "img_fname": "a.npz", "lang": "en"}
    told = (3, "a.npz", "en")
    special = {2: "CLS"}

    def kinds(expected=told, **changes):
        record = good | changes
        return [k for k, _ in caption_problems(record, np.array(record["input_ids"], np.int64), expected, special)]

    assert kinds() == kinds((None, None, None)) == []
    assert kinds((4, "a.npz", "en")) == ["lengths that disagree with id2len.json"]
    assert kinds(img_fname="b.npz") == ["pictures that disagree with txt2img.json"]
    assert kinds(lang="de") == ["languages that disagree with txt2lang.json"]
    assert kinds(input_ids=[5, 2, 7]) == ["special tokens inside captions"]
    assert kinds(input_ids=[5, -2, 7]) == ["negative word-piece ids"]
    assert kinds((0, "a.npz", "en"), input_ids=[]) == ["captions without words"]


def die(chunk):
    os._exit(1)


def test_worker_that_dies():
    with pytest.raises(BadInput, match="db/x: a process died reading it"):
        check_all(die, list(range(300)), "db/x", "img", workers=2)
