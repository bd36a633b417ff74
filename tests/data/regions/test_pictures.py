"""Which picture a key is: kept by the database and the index, found in a folder; the known naming schemes where nothing says it."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from data.errors import BadInput
from data.regions.db import RegionDB
from data.regions.keys import folders_agree, key_of_image
from data.regions.pictures import KnownKeys, PictureFiles, keep_pictures, read_pictures
from scripts.extract_regions import Options, main

SMALL = {"feature_dim": 64, "num_labels": 0, "workers": 0}


def make_photos(folder, names):
    for n, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 20 * n, np.uint8)).save(path)
    return folder


@pytest.mark.parametrize(
    "image,template,key",
    [
        ("a/b/1.jpg", "{parent}_{stem}.npz", "b_1.npz"),
        ("a/b/1.jpg", "{parents}/{stem}.npz", "a/b/1.npz"),
        ("./a/B.JPG", "{parents}/{lower}", "a/b"),
        ("1.jpg", "{parent}{parents}{stem}", "1"),
        ("cafe\u0301/e\u0301.jpg", "{parent}_{stem}", "caf\u00e9_\u00e9"),
    ],
)
def test_keys_of_folders(image, template, key):
    assert key_of_image(image, template) == key


def test_folders_agree_as_far_as_both_name_them():
    for one, other in (("a/1.jpg", "1.jpg"), ("x/a/1.jpg", "a/1.jpg"), ("/x/a/1.jpg", "./a/1.png")):
        assert folders_agree(one, other) and folders_agree(other, one)
    assert not folders_agree("a/1.jpg", "b/1.jpg") and not folders_agree("x/a/1.jpg", "y/a/1.jpg")


def test_the_database_keeps_the_pictures(tmp_path):
    """Whole, in shards that are merged, continued: the same, and those of stored keys alone."""
    photos = make_photos(tmp_path / "photos", ["cats/1.jpg", "dogs/1.jpg", "dogs/2.jpg"])
    (photos / "bad.jpg").write_bytes(b"no picture")
    own = SMALL | {"image_key": "{parent}_{stem}"}
    main(Options(str(photos), str(tmp_path / "db"), **own))
    for shard in ("1/2", "2/2"):
        main(Options(str(photos), str(tmp_path / "parts"), shard=shard, **own))
    main(Options(str(photos), str(tmp_path / "parts"), merge=True, **own))
    expected = {"cats_1": "cats/1.jpg", "dogs_1": "dogs/1.jpg", "dogs_2": "dogs/2.jpg"}
    for out in ("db", "parts"):
        found = read_pictures(tmp_path / out)
        assert found.names == expected == dict.fromkeys(RegionDB(tmp_path / out).keys) | expected
        assert (found.photos, found.image_key) == (str(photos), "{parent}_{stem}")
    assert read_pictures(tmp_path / "photos") is None
    file = next((tmp_path / "db").glob("*/pictures.json"))
    file.write_text("[]")
    with pytest.raises(BadInput, match=r"pictures\.json"):
        read_pictures(tmp_path / "db")


def test_an_index_keeps_them_from_several_databases(tmp_path):
    for name, files in (("a", ["1.jpg"]), ("b", ["2.jpg"])):
        photos = make_photos(tmp_path / f"photos_{name}", files)
        main(Options(str(photos), str(tmp_path / name), **SMALL))
        keep_pictures(read_pictures(tmp_path / name), tmp_path / "index")
    found = read_pictures(tmp_path / "index")
    assert found.names == {"1.npz": "1.jpg", "2.npz": "2.jpg"} and found.photos == "" and found.image_key == "{stem}.npz"
    keep_pictures(read_pictures(tmp_path / "photos_a"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_key_finds_its_own_picture_and_never_another(tmp_path):
    photos = make_photos(tmp_path / "photos", ["cats/1.jpg", "dogs/1.jpg", "1.png"])
    (tmp_path / "list.txt").write_text("dogs/1.jpg\n")
    main(Options(str(photos), str(tmp_path / "db"), list=str(tmp_path / "list.txt"), **SMALL))
    pictures = read_pictures(tmp_path / "db")
    assert PictureFiles(photos, pictures).find("1.npz") == photos / "dogs/1.jpg"
    assert PictureFiles(photos / "dogs", pictures).find("1.npz") == photos / "dogs" / "1.jpg"
    assert PictureFiles(photos / "cats", pictures).find("1.npz") is None
    assert PictureFiles(tmp_path, pictures).find("1.npz") == tmp_path / "photos/dogs/1.jpg"
    moved = tmp_path / "elsewhere" / "moved"
    shutil.move(photos, moved)
    assert PictureFiles(moved, pictures).find("1.npz") == moved / "dogs/1.jpg"
    assert PictureFiles(moved / "dogs", pictures).find("1.npz") == moved / "dogs/1.jpg"
    assert PictureFiles(moved / "cats", pictures).find("1.npz") is None
    assert PictureFiles(moved.parent, pictures).find("1.npz") == moved / "dogs/1.jpg"

    files = PictureFiles(moved)  # nothing says it
    assert files.find("1.npz") is None and "1.npz (1.png, cats/1.jpg, dogs/1.jpg)" in files.remarks()[0]


@pytest.mark.parametrize(
    "key,name,scheme",
    [
        ("coco_val2014_000000000042.npz", "val2014/COCO_val2014_000000000042.jpg", "{lower}.npz"),
        ("flickr30k_001368338041.npz", "1368338041.jpg", "flickr30k_{stem:0>12}.npz"),
        ("vg_12.npz", "VG_100K/12.jpg", "vg_{stem}.npz"),
        ("coco_train2014_000000000042.npz", "000000000042.jpg", "coco_SPLIT_{stem}.npz"),
    ],
)
def test_known_naming_schemes_are_tried_and_said(tmp_path, key, name, scheme):
    photos = make_photos(tmp_path / "photos", [name, "other.jpg"])
    files = PictureFiles(photos)
    assert files.find(key) == photos / name and files.find("other.npz") == photos / "other.jpg" and files.find("x.npz") is None
    (line,) = files.remarks()
    assert line == f"{photos}: nothing says the pictures of the keys, 1 found as those of {scheme}"


def test_captions_find_the_keys_of_their_pictures(tmp_path):
    photos = make_photos(tmp_path / "ph", ["cats/1.jpg", "cats/2.jpg"])
    main(Options(str(photos), str(tmp_path / "db"), **SMALL))
    known = KnownKeys(RegionDB(tmp_path / "db").keys, [tmp_path / "db"])
    for name in ("1.jpg", "cats/1.jpg", "ph/cats/1.jpg", "1.png"):
        assert known.find(name) == "1.npz" and known.other(name) is None
    for name in ("dogs/1.jpg", "other/cats/1.jpg"):
        assert known.find(name) is None and known.other(name) == "ph/cats/1.jpg"
    assert known.find("3.jpg") is None and known.other("3.jpg") is None
    main(Options(str(photos / "cats"), str(tmp_path / "cats"), image_key="{stem}", **SMALL))
    known = KnownKeys(RegionDB(tmp_path / "cats").keys, [tmp_path / "cats"])
    assert known.find("cats/1.jpg") == "1" and known.other("dogs/1.jpg") == "cats/1.jpg"
    old = next((tmp_path / "db").glob("*/pictures.json"))
    assert json.loads(old.read_text())["photos"] == str(photos)
    old.unlink()  # a database of before
    assert KnownKeys(["cafe\u0301.npz"], [tmp_path / "db"]).find("dogs/caf\u00e9.jpg") == "cafe\u0301.npz"
