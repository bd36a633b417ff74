"""scripts/build_captions.py on public formats: counts, missing pictures, the report, keys that image databases know."""

import json
import shutil

import pytest
from PIL import Image

from data.annotations import FORMATS
from data.annotations.photographs import find_photos_in_several_splits
from data.annotations.published import COUNTS, differences
from data.annotations.records import Caption
from data.annotations.splits import put_photos_in_one_split
from data.captions.db import CaptionDB
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.index.writer import IndexWriter
from scripts import extract_regions
from tests.caption_files import captions_of, karpathy


def test_bad_records_are_reported_and_the_rest_goes_on(build, tmp_path, capsys):
    line = {"image": "a.jpg", "captions": {"en": ["a dog"]}, "split": "train"}
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([json.dumps(line), "{", json.dumps({**line, "image": "b.jpg"})]))
    report = build(path)
    assert report["bad_records"]["count"] == 1 and "a.jsonl: line 2 is not JSON" in report["bad_records"]["first"][0]
    assert report["splits"]["train"]["captions"] == 2 and CaptionDB(tmp_path / "db/train").ids[:] == ["a#en0", "b#en0"]
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {path}: left out 1 bad captions, the first:") and warning.count("\n") == 1
    with pytest.raises(BadInput, match="line 2 is not JSON"):
        build(path, "--strict")
    path.write_text("{\n{")
    with pytest.raises(BadInput, match="line 1 is not JSON"):
        build(path)


# ---- missing pictures, counts ----------------------------------------------------------------------------------------


def test_missing_pictures_are_counted(build, tmp_path, capsys):
    path = tmp_path / "cc.tsv"
    path.write_text("".join(f"a dog\thttp://x.org/{n}\n" for n in range(4)))
    (tmp_path / "files.tsv").write_text("".join(f"http://x.org/{n}\t{n}.jpg\n" for n in range(3)))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.jpg").touch()
    words = ["--format", "pairs", "--downloaded", tmp_path / "files.tsv"]
    assert build(path, *words)["missing_pictures"] == {"count": 1, "first": ["http://x.org/3"]}
    report = build(path, *words, "--photos", tmp_path / "photos")
    assert report["missing_pictures"] == {"count": 3, "first": ["http://x.org/3", "0.jpg", "2.jpg"]}
    assert CaptionDB(tmp_path / "db/train").ids[:] == ["1"]
    assert "warning: left out 3 captions whose picture is missing, the first: http://x.org/3" in capsys.readouterr().err
    (tmp_path / "photos/1.jpg").unlink()
    with pytest.raises(BadInput, match="no picture of it is there"):
        build(path, *words, "--photos", tmp_path / "photos")
    with pytest.raises(BadInput, match="no such folder"):
        build(path, *words, "--photos", tmp_path / "absent")


def test_counts_that_differ_from_the_published_ones_are_a_warning(build, tmp_path, capsys):
    path = karpathy(tmp_path / "dataset_coco.json", {1: "train", 2: "restval", 3: "val", 4: "test"})
    report = build(path, "--format", "karpathy")
    lines = [f"coco, split {s}, en: found {n} pictures and {n} captions, published are {p} and {c}" for s, n, p, c in (
        ("train", 2, "113,287", "566,747"), ("val", 1, "5,000", "25,010"), ("test", 1, "5,000", "25,010"))]  # fmt: skip
    assert report["counts"] == {"dataset": "coco", "differences": lines}
    assert capsys.readouterr().err == "".join(f"warning: {path}: {line}\n" for line in lines)
    assert "counts" not in build(path, "--format", "karpathy", "--expect", "none")
    assert build(path, "--format", "karpathy", "--expect", "flickr8k")["counts"]["dataset"] == "flickr8k"
    with pytest.raises(BadInput, match="--expect: found imagenet"):
        build(path, "--expect", "imagenet")


@pytest.mark.parametrize("dataset", sorted(COUNTS))
def test_the_published_counts_are_no_difference(dataset):
    captions = [
        Caption(
            f"{n % pictures}.jpg",
            "",
            "",
            "restval" if dataset == "coco" and split == "train" and n % 2 else split,
            language,
        )
        for split, languages in COUNTS[dataset].items()
        if split in ("val", "test", "test_coco")  # the small ones; the rest is found to be absent
        for language, (pictures, number) in languages.items()
        for n in range(number)
    ]
    absent = {split for split in COUNTS[dataset] if split == "train"}
    lines = differences(dataset, captions)
    assert {line.split("split ")[1].split(",")[0] for line in lines} == absent
    if captions:
        assert len(differences(dataset, captions[1:])) == len(lines) + 1


def test_data_sets_are_known_by_their_files():
    found = {
        FORMATS["karpathy"].data_set_of(name)
        for name in ("dataset_flickr30k.json", "dataset_coco.json", "dataset_flickr8k.json")
    }
    assert found == {"flickr30k", "coco", "flickr8k"} and FORMATS["karpathy"].data_set_of("mine.json") is None
    assert FORMATS["coco"].data_set_of("captions_train2014.json") == "coco2014-train" and FORMATS["coco"].data_set_of("x.json") is None
    assert FORMATS["token"].data_set_of("results_20130124.token") == "flickr30k" and FORMATS["jsonl"].data_set_of("a.jsonl") is None
    assert {FORMATS[form].data_set_of("x") for form in ("multi30k", "multi30k-task1", "multi30k-task2")} < set(COUNTS)


# ---- nothing is left in silence --------------------------------------------------------------------------------------


def test_splits_that_are_left_out_are_named(build, tmp_path, capsys):
    path = karpathy(tmp_path / "x.json", {1: "train", 2: "restval", 3: "val", 4: "restval"})
    report = build(path, "--format", "karpathy", "--splits", "train", "val")
    assert report["left_out_splits"] == {"restval": 2}
    assert "left out: 2 captions of split restval" in capsys.readouterr().out
    assert "left_out_splits" not in build(path, "--format", "karpathy", "--restval-as-train", "--splits", "train", "val")


def test_a_split_that_a_rebuild_no_longer_has_is_told(build, tmp_path, capsys):
    (tmp_path / "db/other").mkdir(parents=True)
    first = karpathy(tmp_path / "x.json", {1: "train", 2: "val", 3: "test"})
    assert "former_splits" not in build(first, "--format", "karpathy") and not capsys.readouterr().err
    second = karpathy(tmp_path / "y.json", {1: "train", 2: "val"})
    assert build(second, "--format", "karpathy")["former_splits"] == {"test": "kept"}
    assert f"warning: {tmp_path}/db/test: is of an earlier build, this one has no split test; kept" in capsys.readouterr().err
    assert (tmp_path / "db/test/data.mdb").is_file()
    (tmp_path / "db/test").rename(tmp_path / "elsewhere")
    (tmp_path / "db/test").symlink_to(tmp_path / "elsewhere")
    report = build(second, "--format", "karpathy", "--former-splits", "remove")
    assert report["former_splits"] == {"test": "removed"} and "no split test; removed" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "db").iterdir()) == ["other", "report.json", "train", "val"]
    assert (tmp_path / "elsewhere/data.mdb").is_file()


def test_nothing_else_goes_with_a_database_that_is_built_again(build, tmp_path, capsys):
    first = karpathy(tmp_path / "x.json", {1: "train", 2: "val", 3: "test"})
    build(first, "--format", "karpathy")
    train, kept = (tmp_path / "db/train/meta.json").stat().st_ino, tmp_path / "db/val/run/weights"
    kept.mkdir(parents=True)
    with pytest.raises(BadInput, match="db/val: holds run, which is no part of the database"):
        build(first, "--format", "karpathy")
    assert kept.exists() and (tmp_path / "db/train/meta.json").stat().st_ino == train  # no split is of another build than the others
    shutil.move(tmp_path / "db/val/run", tmp_path / "db/test/run")
    second = karpathy(tmp_path / "y.json", {1: "train", 2: "val"})
    capsys.readouterr()
    assert build(second, "--format", "karpathy", "--former-splits", "remove")["former_splits"] == {"test": "kept"}
    assert "once run, which is no part of it, is elsewhere" in capsys.readouterr().err and (tmp_path / "db/test/run/weights").exists()


def test_what_is_no_text_database_is_not_replaced_by_one(build, tmp_path):
    with IndexWriter(tmp_path / "db/val", "img", 2, "model", "data") as writer:
        writer.add(["a"], [[1.0, 2.0]])
    with pytest.raises(BadInput, match="db/val: is no text DB"):
        build(karpathy(tmp_path / "x.json", {1: "train", 2: "val"}), "--format", "karpathy")
    assert EmbeddingIndex(tmp_path / "db/val").count == 1 and not (tmp_path / "db/train").exists()


def test_one_key_of_two_pictures_in_two_splits_names_both(build, tmp_path):
    """Case 3."""
    names = {"cats/1.jpg": "train", "dogs/1.jpg": "val"}
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": "a dog", "sentid": n}]}
        for n, (name, split) in enumerate(names.items())
    ]
    (tmp_path / "x.json").write_text(json.dumps({"images": images}))
    with pytest.raises(BadInput, match=r"cats/1.jpg \(split train\) and dogs/1.jpg \(split val\) both get the key 1.npz"):
        build(tmp_path / "x.json", "--format", "karpathy")
    assert not (tmp_path / "db/train").exists()


def test_a_given_split_wins_or_is_refused(build, tmp_path):
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"id": 1, "image_id": 1, "caption": "a dog"}]}
    (tmp_path / "captions_val2017.json").write_text(json.dumps(content))
    for words, split in (((), "val"), (("--split", "dev"), "dev"), (("--shares", "test=1"), "test")):
        words = ("--format", "coco", "--expect", "none", *words)
        assert list(build(tmp_path / "captions_val2017.json", *words)["splits"]) == [split]
    path = karpathy(tmp_path / "x.json", {1: "train"})
    with pytest.raises(BadInput, match="--split dev: karpathy says the split of every picture; choose with --splits"):
        build(path, "--format", "karpathy", "--split", "dev")
    with pytest.raises(BadInput, match="--split and --shares both say the split"):
        build(path, "--split", "dev", "--shares", "a=1")
    lines = [{"image": "a.jpg", "captions": {"en": ["a"]}}, {"image": "b.jpg", "captions": {"en": ["a"]}, "split": "val"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert set(build(tmp_path / "a.jsonl", "--split", "dev")["splits"]) == {"dev", "val"}


def test_lost_captions_are_counted_one_by_one(build, tmp_path, capsys):
    """Case 10, and pictures that have no caption."""
    sentences = [{"raw": f"a dog {n}", "sentid": n} for n in range(5)]
    images = [
        {"filename": "a.jpg", "split": "train", "sentences": [sentences[0], {"sentid": 9}, *sentences[1:3]]},
        {"filename": "b.jpg", "split": "", "sentences": sentences},
        {"filename": "c.jpg", "split": "train", "sentences": []},
    ]
    (tmp_path / "x.json").write_text(json.dumps({"images": images}))
    report = build(tmp_path / "x.json", "--format", "karpathy", "--languages", "en")
    assert report["bad_records"]["count"] == 6 and report["splits"]["train"]["captions"] == 3
    assert report["pictures_without_captions"] == {"count": 1, "first": ["c.jpg"]}
    shown = capsys.readouterr().err
    assert "left out 6 bad captions" in shown and "1 pictures have no caption and are left out, the first: c.jpg" in shown


def test_a_caption_without_word_pieces_does_not_end_the_build(build, tmp_path, capsys, monkeypatch):
    """What the reader takes for a word and the tokenizer does not."""
    path = tmp_path / "a.jsonl"
    texts = ["a dog", "\U000e0100\u200b", "a"]
    path.write_text(json.dumps({"image": "a.jpg", "captions": {"en": texts}, "split": "train"}))
    monkeypatch.setattr("data.annotations.records.has_word", lambda text: True)
    report = build(path)
    assert report["captions_without_words"]["count"] == 1 and report["splits"]["train"]["captions"] == 2
    assert "left out 1 captions of which the tokenizer makes no word piece, the first:" in capsys.readouterr().err
    assert CaptionDB(tmp_path / "db/train").ids[:] == ["a#en0", "a#en2"]


def test_other_languages_are_counted_in_the_report(build, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"image": "a.jpg", "captions": {"en": ["a"], "de": ["a", "b"]}, "split": "train"}))
    assert build(path, "--languages", "en")["left_out_languages"] == {"de": 2}


def test_listed_pictures_without_captions_are_counted(build, tmp_path, capsys):
    (tmp_path / "a.token").write_text("1.jpg#0\ta dog\n")
    (tmp_path / "train.txt").write_text("1.jpg\n2.jpg\n")
    report = build(tmp_path / "a.token", "--format", "token", "--split-lists", tmp_path / "train.txt")
    assert report["listed_without_captions"] == {"count": 1, "first": ["2 of train"]}
    assert "1 listed pictures have no caption in it, the first: 2 of train" in capsys.readouterr().err


def test_phone_photos_are_no_flickr_photographs(build, tmp_path, capsys):
    """Case 6."""
    lines = [(f"20240101_1000{n:02d}.jpg", ("train", "val")[n % 2]) for n in range(6)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"image": n, "captions": {"en": ["a"]}, "split": s}) for n, s in lines))
    assert "in_several_splits" not in build(path) and not capsys.readouterr().err
    # yet a number alone keeps a photograph that Flickr30k tests on out of one's own training data
    flickr = karpathy(tmp_path / "flickr.json", {100001: "test"})
    path.write_text(json.dumps({"image": "x/100001.jpg", "captions": {"en": ["a"]}, "split": "train"}) + "\n" + path.read_text())
    assert build(path, "--exclude", flickr)["excluded_pictures"] == {"train": 1}
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"image": "100001.jpg", "captions": {"en": ["a"]}, "split": "val"}))
    mixed = karpathy(tmp_path / "mixed.json", {100001: "train", 100002: "train"})
    assert build(mixed, "--format", "karpathy", "--exclude", own)["excluded_pictures"] == {"train": 1}


def test_pictures_of_one_stem_in_two_folders_are_two_photographs(tmp_path):
    names = {"cats/1.jpg": "train", "dogs/1.jpg": "val", "dogs/2.jpg": "val"}
    captions = [c for name, split in names.items() for c in captions_of([name], split)]
    photo_of = FORMATS["jsonl"].photo_of
    assert find_photos_in_several_splits(captions, photo_of, {}) == {}
    kept, several = put_photos_in_one_split(captions, photo_of)
    assert kept == captions and not several
    kept, several = put_photos_in_one_split([*captions, *captions_of(["cats/1.jpg"], "test")], photo_of)
    assert {c.image: c.split for c in kept} == names | {"cats/1.jpg": "test"} and len(several) == 1


# ---- keys that the image databases know ------------------------------------------------------------------------------


def extracted(photos, out, names, **settings):
    """An image DB of small pictures of these names."""
    for n, name in enumerate(names):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (20 * n, 0, 0)).save(photos / name)
    extract_regions.main(extract_regions.Options(str(photos), str(out), feature_dim=16, num_labels=0, workers=0, **settings))
    return out


def of_pictures(path, split_of):
    images = [
        {"filename": name, "split": split, "sentences": [{"raw": f"a dog {n}", "sentid": n}]}
        for n, (name, split) in enumerate(split_of.items())
    ]
    path.write_text(json.dumps({"images": images, "dataset": "x"}))
    return path


def test_a_name_in_two_folders_does_not_get_the_other_picture(build, tmp_path):
    photos = tmp_path / "ph"
    split_of = {"cats/1.jpg": "train", "dogs/1.jpg": "val", "dogs/2.jpg": "val"}
    path = of_pictures(tmp_path / "dataset.json", split_of)
    form = ["--format", "karpathy"]
    regions = extracted(photos, tmp_path / "both", split_of, image_key="{parent}_{stem}")
    build(path, *form, "--regions", regions)  # the pattern is the database's
    assert set(CaptionDB(tmp_path / "db/val").img2txts) == {"dogs_1", "dogs_2"}
    with pytest.raises(BadInput, match=r"cats/1\.jpg \(split train\) and dogs/1\.jpg \(split val\) both get the key 1\.npz"):
        build(path, *form, "--splits", "val")

    (photos / "dogs/1.jpg").unlink()
    regions = extracted(photos, tmp_path / "cats", ["cats/1.jpg"])
    with pytest.raises(BadInput, match=r"about dogs/1\.jpg, and the key 1\.npz is ph/cats/1\.jpg in "):
        build(path, *form, "--regions", regions)
    report = build(path, *form, "--regions", regions, "--skip-missing")
    assert report["captions_without_regions"]["first"] == ["dogs/1.jpg (its key is ph/cats/1.jpg)"]
    assert set(CaptionDB(tmp_path / "db/val").img2txts) == {"2.npz"}


def test_pictures_are_found_in_the_folder_by_what_the_database_says(build, tmp_path, capsys):
    photos = tmp_path / "ph"
    names = ["val2014/COCO_val2014_000000000042.jpg", "cafe\u0301/e\u0301.jpg", "twice/7.jpg", "again/7.png"]
    (tmp_path / "list.txt").write_text("\n".join(names[:3]))
    regions = extracted(photos, tmp_path / "r", names, list=str(tmp_path / "list.txt"), image_key="{lower}.npz")
    listed = ["COCO_val2014_000000000042.jpg", "caf\u00e9/\u00e9.jpg", "7.png"]
    path = of_pictures(tmp_path / "dataset.json", dict.fromkeys(listed, "val"))
    report = build(path, "--format", "karpathy", "--regions", regions, "--photos", photos)
    assert "missing_pictures" not in report
    found = dict(CaptionDB(tmp_path / "db/val").txt2img.items())
    assert found == {"0": "coco_val2014_000000000042.npz", "1": "\u00e9.npz", "2": "7.npz"}
    path = of_pictures(tmp_path / "dataset.json", dict.fromkeys(["other/COCO_val2014_000000000042.jpg", "x.jpg", *listed[:1]], "val"))
    assert build(path, "--format", "karpathy", "--photos", photos, "--image-key", "{parents}{stem}")["missing_pictures"]["count"] == 2


def test_split_lists_know_folders_and_both_unicode_forms(build, tmp_path):
    path = of_pictures(tmp_path / "dataset.json", dict.fromkeys(["cats/1.jpg", "dogs/1.jpg", "caf\u00e9.jpg", "2.jpg"], "x"))
    (tmp_path / "train.txt").write_text("ph/cats/1.jpg\n2.jpg\n")
    (tmp_path / "val.txt").write_text("dogs/1\ncafe\u0301.jpg\n")
    words = ["--format", "karpathy", "--split-lists", tmp_path / "train.txt", tmp_path / "val.txt", "--image-key", "{parent}_{stem}"]
    build(path, *words)
    assert set(CaptionDB(tmp_path / "db/train").img2txts) == {"cats_1", "_2"}
    assert set(CaptionDB(tmp_path / "db/val").img2txts) == {"dogs_1", "_caf\u00e9"}
    (tmp_path / "val.txt").write_text("dogs/1\n2.png\n")
    with pytest.raises(BadInput, match=r"val\.txt: line 2: 2 is in split train too"):
        build(path, *words)
    (tmp_path / "val.txt").write_text("dogs/1\n")
    path = of_pictures(tmp_path / "dataset.json", {"1.jpg": "x"})
    with pytest.raises(BadInput, match=r"1\.jpg may be ph/cats/1 or dogs/1, which are in two splits"):
        build(path, *words)
