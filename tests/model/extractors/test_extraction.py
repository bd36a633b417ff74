"""Extraction as a library: images of any origin, parts, an extractor of one's own, workers that die."""

import json
import os
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import BadInput
from data.regions.db import BoxOptions, Found, Problem, RegionDB, Regions
from data.regions.photos import find_photos
from model.extractors import EXTRACTORS
from model.extractors.base import Detections, Extractor
from model.extractors.extraction import Extraction, ExtractionSettings
from model.extractors.pool import PhotoImages
from scripts.extract_regions import Options, main

BOXES = BoxOptions(0.2, 100, 1)


class HandMade:
    """Six images, of which one cannot be read and two share a key."""

    KEYS = ("a.npz", "b.npz", "bad.npz", "c.npz", "a.npz", "d.npz")

    def __init__(self):
        self.read = []

    def found(self, is_wanted):
        return None, self._all(is_wanted)

    def _all(self, is_wanted):
        for number, key in enumerate(self.KEYS):
            if is_wanted(f"image {number}", key):
                self.read.append(number)
                yield Found(f"image {number}", key, Problem("torn") if key == "bad.npz" else regions_of(number))


def regions_of(number: int) -> Regions:
    arrays = np.full((3, 4), number), np.full((3, 6), 0.5), np.array([0.9, 0.5, 0.1])
    return Regions(*(array.astype(np.float16) for array in arrays))


def extraction_of(out, shard=(1, 1), **command) -> Extraction:
    return Extraction(ExtractionSettings(out, BOXES, False, shard, False, {"photos": "six", **command}))


def test_images_of_any_origin(tmp_path):
    images = HandMade()
    report = extraction_of(tmp_path).run(images)
    assert images.read == [0, 1, 2, 3, 5]
    assert report.bad_photos == {"image 2": "torn", "image 4": "another image has the key a.npz, too"}
    assert (report.photos, report.written, report.skipped, report.regions_per_photo) == (6, 4, 2, 2.0)
    assert json.loads((tmp_path / "report.json").read_text()) == asdict(report)
    db = RegionDB(tmp_path, BOXES)
    assert list(db.keys) == ["a.npz", "b.npz", "c.npz", "d.npz"]
    assert [float(db[key].features[0, 0]) for key in db.keys] == [0, 1, 3, 5]


def test_a_run_without_good_images_says_the_first_reason(tmp_path):
    class Torn(HandMade):
        KEYS = ("bad.npz",)

    with pytest.raises(BadInput, match=r"^six: none of 1 photographs can be read; image 0: torn$"):
        extraction_of(tmp_path).run(Torn())
    assert not list(tmp_path.iterdir())


def test_shards_take_turns_and_are_joined_in_the_order_of_all_images(tmp_path):
    read = []
    for index in (2, 1):
        images = HandMade()
        extraction_of(tmp_path, (index, 2)).run(images)
        read.append(images.read)
    assert read == [[1, 3, 5], [0, 2]]  # image 4 has the key of image 0, which is stored by then
    with pytest.raises(BadInput, match="part-1-of-2: was made with other settings of seed"):
        extraction_of(tmp_path, seed=1).merge(HandMade.KEYS)
    report = extraction_of(tmp_path).merge(HandMade.KEYS)
    assert list(RegionDB(tmp_path, BOXES).keys) == ["a.npz", "b.npz", "c.npz", "d.npz"]
    assert report.bad_photos == {"image 2": "torn", "image 4": "another image has the key a.npz, too"}
    assert extraction_of(tmp_path, (1, 2)).finished_report()["written"] == 1
    assert extraction_of(tmp_path, (1, 2), seed=1).finished_report() is None


class MeanColour(Extractor):
    """One region, the whole picture; its feature is the mean colour."""

    feature_dim, num_labels = 3, 0
    takes_name = True

    @classmethod
    def build(cls, name, options):
        extractor = cls()
        extractor.scale = float(name)
        return extractor

    def detect(self, picture):
        colour = torch.from_numpy(np.array(picture)).float().mean((0, 1))[None] * self.scale
        return Detections(torch.tensor([[0.0, 0, picture.width, picture.height]]), colour, torch.ones(1), None)


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(5):
        Image.new("RGB", (20, 10), (number, 100, 200)).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


def test_an_extractor_of_ones_own_is_a_class_and_a_line(photos, tmp_path, monkeypatch):
    """What docs/architecture.md says is enough: it has a name in the command, and the database what it found."""
    monkeypatch.setitem(EXTRACTORS, "mean-colour", MeanColour)
    options = {"extractor": "mean-colour:0.5", "min_bb": 1, "workers": 0}
    main(Options(str(photos), str(tmp_path / "db"), **options))
    db = RegionDB(tmp_path / "db", BoxOptions(min_bb=1))
    assert (db.feature_dim, db.num_labels, len(db)) == (3, 0, 5)
    np.testing.assert_array_equal(db["4.npz"].features, np.float16([[2, 50, 100]]))
    np.testing.assert_array_equal(db["4.npz"].norm_bb, np.float16([[0, 0, 1, 1, 1, 1]]))
    for wrong, message in (("mean-colour", "hf:NAME, mean-colour:NAME, precomputed"), ("mean-color:1", "found mean-color:1")):
        with pytest.raises(BadInput, match=message):
            main(Options(str(photos), str(tmp_path / "other"), extractor=wrong))
    with pytest.raises(BadInput, match="--weights w: mean-colour takes none"):
        main(Options(str(photos), str(tmp_path / "other"), **options, weights="w"))


def die(pictures):
    """An extractor whose process is killed, as one that runs out of memory is."""
    os._exit(9)


def test_a_worker_that_dies_is_an_error_and_not_a_hang(photos):
    _, found = PhotoImages(find_photos(str(photos)), die, 1, torch.device("cpu")).found(lambda name, key: True)
    with pytest.raises(BadInput, match="a worker process died"):
        list(found)
