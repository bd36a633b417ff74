"""scripts/build_captions.py: who is in which split, and photographs that have several names."""

import json

import pytest

from data.annotations import FORMATS
from data.annotations.photographs import find_photos_in_several_splits
from data.annotations.splits import draw_splits
from data.captions.db import CaptionDB
from data.errors import BadInput
from tests.caption_files import captions_of, karpathy

# ---- splits ----------------------------------------------------------------------------------------------------------


def test_split_lists(build, tmp_path, capsys):
    path = tmp_path / "results.token"
    path.write_text("".join(f"{n}.jpg#{i}\ta dog\n" for n in range(4) for i in range(2)))
    (tmp_path / "val.txt").write_text("1.jpg\n")
    (tmp_path / "list").write_text("0\n3.jpg\n")
    words = ["--format", "token", "--split-lists", f"train={tmp_path / 'list'}", tmp_path / "val.txt"]
    report = build(path, *words)
    assert report["in_no_split_list"] == 2 and "left out: 2 captions" in capsys.readouterr().out
    assert report["counts"]["dataset"] == "flickr30k"
    for split, pictures in {"train": ["0.npz", "3.npz"], "val": ["1.npz"]}.items():
        assert list(CaptionDB(tmp_path / "db" / split).img2txts) == pictures
    (tmp_path / "val.txt").write_text("3.jpg\n")
    with pytest.raises(BadInput, match=r"val.txt: line 1: 3 is in split train too"):
        build(path, *words)
    (tmp_path / "list").write_text("")
    (tmp_path / "val.txt").write_text("77.jpg\n")
    with pytest.raises(BadInput, match="no picture of it is in"):
        build(path, *words)


def test_a_split_stays_below_out(build, tmp_path, capsys):
    path = karpathy(tmp_path / "x.json", {1: "train", 2: "../evil", 3: None})
    report = build(path, "--format", "karpathy")
    assert report["bad_records"]["count"] == 2 and list(report["splits"]) == ["train"]
    assert "(2.jpg): split is '../evil', expected a name" in report["bad_records"]["first"][0]
    (tmp_path / "list").write_text("1.jpg\n")
    for words in (["--split", "../evil"], ["--shares", "../evil=1"], ["--split-lists", f"../evil={tmp_path / 'list'}"]):
        with pytest.raises(BadInput, match=r"split is '\.\./evil', expected a name"):
            build(path, "--format", "karpathy", *words)
    assert not (tmp_path / "evil").exists()


def test_shares_are_of_pictures_and_repeat_with_their_seed():
    captions = captions_of([f"{n}.jpg" for n in range(20)])
    shares = {"train": 0.8, "val": 0.1, "test": 0.1}
    drawn = draw_splits(captions, shares, seed=0)
    split_of = {c.image: c.split for c in drawn}
    assert all(split_of[c.image] == c.split for c in drawn)
    assert [list(split_of.values()).count(name) for name in shares] == [16, 2, 2]
    again = draw_splits(captions[::-1], shares, seed=0)
    assert {c.image: c.split for c in again} == split_of
    assert {c.image: c.split for c in draw_splits(captions, shares, seed=1)} != split_of
    for wrong, message in (
        ({"train": 0.5}, "add up to 1"),
        ({"a": 1.5, "b": -0.5}, "above 0"),
        ({"a": 0.99, "b": 0.01}, "empty"),
    ):
        with pytest.raises(BadInput, match=message):
            draw_splits(captions, wrong, 0)


def test_lines_without_a_split(build, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"image": f"p{n}.jpg", "captions": {"en": ["a dog"]}}) + "\n" for n in range(4)))
    with pytest.raises(BadInput, match=r"line 1 has \['captions', 'image'\], expected an object with .* split"):
        build(path)
    report = build(path, "--shares", "train=0.5", "val=0.5")
    assert {name: s["captions"] for name, s in report["splits"].items()} == {"train": 2, "val": 2}


def test_shares_on_the_command_line(build, tmp_path):
    path = tmp_path / "region_descriptions.json"
    path.write_text(json.dumps([{"id": n, "regions": [{"region_id": n, "phrase": "a dog"}]} for n in range(10)]))
    words = ["--format", "visual-genome", "--image-key", "vg_{stem}.npz", "--shares"]
    report = build(path, *words, "train=0.9", "val=0.1")
    assert {name: s["captions"] for name, s in report["splits"].items()} == {"train": 9, "val": 1}
    assert all(key.startswith("vg_") for key in CaptionDB(tmp_path / "db/train").img2txts)
    with pytest.raises(BadInput, match="--shares train: expected words such as"):
        build(path, *words, "train")
    with pytest.raises(BadInput, match="--split-lists and --shares both say the split"):
        build(path, *words, "train=1", "--split-lists", "x.txt")


# ---- the same photograph under several names -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, form, photo",
    [
        ("COCO_val2014_000000000042.jpg", "karpathy", "coco:42"),
        ("x/000000397133.jpg", "coco", "coco:397133"),
        ("1000092795.jpg", "karpathy", "flickr:1000092795"),
        ("1003163366_44323f5815.jpg", "jsonl", "flickr:1003163366"),
        ("1000092795.jpg", "jsonl", "name:1000092795"),  # anybody's number
        ("20240101_100000.jpg", "jsonl", "name:20240101_100000"),
        ("20240101_100000.jpg", "karpathy", "name:20240101_100000"),
        ("20240101_1000001234.jpg", "pairs", "name:20240101_1000001234"),
        ("36979.jpg", "token", "flickr:36979"),
        ("2316842.jpg", "visual-genome", "vg:2316842"),
        ("dog_2.jpg", "jsonl", "name:dog_2"),
        ("42.jpg", "jsonl", "name:42"),
    ],
)
def test_photographs_by_name(name, form, photo):
    assert FORMATS[form].photo_of(name) == photo


def test_a_file_of_excluded_pictures_is_read_as_leniently_as_others(build, tmp_path, capsys):
    lines = [{"image": f"{n}.jpg", "captions": {"en": ["a dog"]}, "split": "train"} for n in range(4)]
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tested = tmp_path / "tested.jsonl"
    tested.write_text(json.dumps(lines[0]) + "\n{\n" + json.dumps(lines[2] | {"captions": {"en": []}}) + "\n")
    report = build(own, "--exclude", tested)
    assert report["excluded_pictures"] == {"train": 2}  # the one without a caption, too
    assert CaptionDB(tmp_path / "db/train").ids[:] == ["1#en0", "3#en0"]
    assert report["bad_records_of_excluded"]["count"] == 1 and "line 2" in report["bad_records_of_excluded"]["first"][0]
    shown = capsys.readouterr().err
    assert "warning: --exclude: 1 bad captions are passed over, and pictures that have no other are not excluded" in shown
    with pytest.raises(BadInput, match=r"tested.jsonl: line 2 is not JSON"):
        build(own, "--exclude", tested, "--strict")


def test_unread_files_of_multi30k_are_told_and_in_the_report(build, tmp_path, capsys):
    for name, text in {
        "image_splits/train.txt": "1.jpg\n", "raw/train.en": "a dog\n", "raw/train.uk": "pes\n", "raw/train.ja": "inu\n"
    }.items():  # fmt: skip
        path = tmp_path / "multi30k/data/task1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    report = build(tmp_path / "multi30k", "--format", "multi30k-task1")
    assert report["unread_files"] == {"count": 2, "first": ["task1/raw/train.ja", "task1/raw/train.uk"]}
    told = "2 files are of languages or splits that are not read: task1/raw/train.ja, task1/raw/train.uk"
    assert told in capsys.readouterr().err


def test_pretraining_leaves_out_what_is_tested_on(build, tmp_path, capsys):
    """COCO without its own val and test, and without the photographs that Flickr30k has under Flickr's number."""
    splits = {1: "train", 2: "restval", 3: "val", 4: "test", 5: "train", 6: "restval"}
    coco = karpathy(tmp_path / "dataset_mine.json", splits, "COCO_val2014_{:012d}.jpg")
    flickr = karpathy(tmp_path / "dataset_flickr.json", {100001: "train", 100002: "test"})
    urls = {1: 100001, 2: 100009, 6: 100002}
    images = [
        {"id": n, "flickr_url": f"http://farm7.staticflickr.com/1/{photo}_da26cf2c9e_z.jpg"}
        for n, photo in urls.items()
    ]
    addresses = tmp_path / "captions_val2014.json"
    addresses.write_text(json.dumps({"images": images, "annotations": []}))
    words = ["--format", "karpathy", "--exclude", flickr, "--addresses", addresses]
    report = build(coco, *words)
    assert report["excluded_pictures"] == {"train": 1, "restval": 1}
    found = {split: CaptionDB(tmp_path / "db" / split).ids[:] for split in ("train", "restval", "val", "test")}
    assert found == {"train": ["5"], "restval": ["2"], "val": ["3"], "test": ["4"]}
    assert "excluded: 1 pictures of train, 1 pictures of restval" in capsys.readouterr().out

    words[3] = f"{flickr}:test"
    assert build(coco, *words, "--restval-as-train")["excluded_pictures"] == {"restval": 1}
    assert CaptionDB(tmp_path / "db/train").ids[:] == ["1", "2", "5"]
    with pytest.raises(BadInput, match=r"has no split dev, found \['test', 'train'\]"):
        build(coco, *words[:3], f"{flickr}:dev")

    # Visual Genome's pictures are partly COCO's: image_data.json says which
    regions = tmp_path / "region_descriptions.json"
    regions.write_text(json.dumps([{"id": n, "regions": [{"region_id": n, "phrase": "a dog"}]} for n in (11, 12, 13)]))
    (tmp_path / "image_data.json").write_text(
        json.dumps(
            [{"image_id": 11, "coco_id": 4, "flickr_id": None}, {"image_id": 12, "coco_id": None, "flickr_id": 7}]
        )
    )
    words = ["--format", "visual-genome", "--exclude", f"{coco}:val,test", "--addresses", tmp_path / "image_data.json"]
    assert build(regions, *words)["excluded_pictures"] == {"train": 1}
    assert list(CaptionDB(tmp_path / "db/train").txt2img) == ["12#12", "13#13"]
    (tmp_path / "list.txt").write_text("COCO_val2014_000000000001.jpg#5\n")
    assert build(coco, "--format", "karpathy", "--exclude", tmp_path / "list.txt")["excluded_pictures"] == {"train": 1}
    with pytest.raises(BadInput, match="image 0: what it has is"):
        (tmp_path / "image_data.json").write_text('[{"x": 1}]')
        build(regions, *words)


def test_photographs_in_several_splits_are_reported(build, tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    lines = [
        ("1003163366_44323f5815.jpg", "train"),
        ("1003163366_44323f5815_b.jpg", "val"),
        ("COCO_train2014_000000000001.jpg", "train"),
    ]
    path.write_text("\n".join(json.dumps({"image": n, "captions": {"en": ["a"]}, "split": s}) for n, s in lines))
    report = build(path)
    expected = "flickr:1003163366: 1003163366_44323f5815.jpg in train, 1003163366_44323f5815_b.jpg in val"
    assert report["in_several_splits"] == {"count": 1, "first": [expected]}
    assert f"warning: 1 photographs are in several splits, the first: {expected}" in capsys.readouterr().err
    photo_of = FORMATS["visual-genome"].photo_of
    captions = captions_of(["1.jpg"]) + captions_of(["000000000003.jpg"], "val")
    assert find_photos_in_several_splits(captions, photo_of, {"vg:1": {"coco:3"}}) == {}
    same = {"vg:1": {"coco:3", "flickr:9"}, "coco:3": {"flickr:9"}}
    captions = captions_of(["1.jpg"]) + captions_of(["2.jpg"], "val")
    assert find_photos_in_several_splits(captions, photo_of, same) == {}
    assert len(find_photos_in_several_splits(captions, photo_of, same | {"vg:2": {"coco:3"}})) == 1
