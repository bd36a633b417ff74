"""scripts/prepare.py: own pictures in every state."""

import json
import os
import shlex
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import train_itm
from configs import cli
from data.captions.db import CaptionDB
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.index.writer import IndexWriter
from data.regions.db import RegionDB
from model.bi_encoder import LightningDOT
from model.retrieval.encoding import Encoding
from model.retrieval.indexing import build_index
from model.retrieval.sources import caption_source
from scripts import prepare
from tests.served import serving

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def own(small_world, tmp_path, monkeypatch):
    """Work in a folder with twelve pictures of the small world and captions without splits → the words of the command."""
    monkeypatch.chdir(tmp_path)
    photos = sorted((small_world / "photos").iterdir())[:12]
    os.mkdir("photos")
    lines = []
    for n, photo in enumerate(photos):
        (tmp_path / "photos" / f"p{n}.jpg").write_bytes(photo.read_bytes())
        lines.append(
            {"image": f"p{n}.jpg", "captions": {"en": ["a red circle", f"shape {n}"], "de": ["ein roter Kreis"]}}
        )
    write(lines)
    return ["--photos", "photos", "--captions", "a.jsonl", "--out", "data", "--vocab-size", "300"]


SMALL = ["--extract", "feature-dim=16", "num-labels=5", "size=64", "workers=0"]


def write(lines):
    with open("a.jsonl", "w") as file:
        file.writelines((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)


def lines():
    return [json.loads(line) for line in open("a.jsonl")]


def run(*words):
    prepare.main(cli.parse(prepare.Options, list(words)))
    return json.load(open("data/report.json"))


def test_bad_input_is_left_out_and_the_rest_goes_on(own, capfd):
    more = [{"image": "absent.jpg", "captions": {"en": ["x"]}}, {"image": "broken.png", "captions": {"en": ["y"]}}, "{"]
    open("photos/broken.png", "wb").write(b"no picture")
    write([*lines(), *more])
    report = run(*own, *SMALL)
    shown = capfd.readouterr()
    assert report["bad_records"]["count"] == 1 and "a.jsonl: line 15 is not JSON" in shown.err
    assert report["pictures_without_regions"] == {"count": 2, "first": ["absent.jpg", "broken.png"]}
    assert "warning: left out 2 pictures that are absent or cannot be read, the first: absent.jpg" in shown.err
    assert list(json.load(open("data/regions/report.json"))["bad_photos"]) == ["photos/broken.png"]
    sizes = {name: len(CaptionDB(f"data/db/{name}").img2txts) for name in ("train", "val", "test")}
    assert sizes == {"train": 10, "val": 1, "test": 1}
    assert (
        "train:    python train_itm.py --config configs/finetune/own_small.yaml --data-root data --out data/run\n"
        in shown.out
    )
    words = shown.out.split("re-rank:  python train_itm.py ")[1].splitlines()[0].split()
    config = cli.parse(train_itm.CONFIGS, [str(ROOT / word) if word.startswith("configs/") else word for word in words])
    assert (config.model.init, config.reranker.miner, config.data_root, config.out) == (*["data/run/best"] * 2, "data", "data/reranker")
    assert {found["records"] for found in report["checks"].values()} == {12, 30, 3}

    again = run(*own, *SMALL, "--languages", "en", "--shares", "train=0.5", "val=0.5")
    assert "data/regions: up to date, 12 photographs" in capfd.readouterr().err
    assert set(CaptionDB("data/db/val").languages.values()) == {"en"} and len(CaptionDB("data/db/val").img2txts) == 6
    assert again["pictures_without_regions"]["count"] == 2


def test_the_same_command_takes_up_more_photographs_and_captions(own, small_world, capfd):
    run(*own, *SMALL)
    before = {name: set(CaptionDB(f"data/db/{name}").img2txts) for name in ("train", "val", "test")}
    more = sorted((small_world / "photos").iterdir())[12:21]
    shutil.copyfile(more.pop(), "photos/p0.jpg")
    for n, photo in enumerate(more):
        shutil.copyfile(photo, f"photos/p{12 + n}.jpg")
    os.remove("photos/p1.jpg")
    write([*lines()[:1], *lines()[2:], *({"image": f"p{12 + n}.jpg", "captions": {"en": ["one more circle"]}} for n in range(8))])
    IndexWriter("data/index", "img", 2, "model", "data", "fp32", {"contents": "other"}).__enter__().__exit__(None, None, None)
    os.makedirs("data/run/best")
    vocabulary = open("data/tokenizer/vocab.txt").read()
    capfd.readouterr()
    run(*own)
    shown = capfd.readouterr()
    assert "data/regions: of 19 photographs 8 are new and 1 changed, their regions are extracted; gone: 1" in shown.err
    assert "data/index: is not of the photographs as they are now; rm -r data/index" in shown.err
    assert "11 pictures stay where an earlier call put them" in shown.out
    after = {name: set(CaptionDB(f"data/db/{name}").img2txts) for name in before}
    assert all(keys - {"p1.npz"} <= after[name] for name, keys in before.items())
    assert [len(after[name]) for name in ("train", "val", "test")] == [15, 2, 2]
    assert "data/tokenizer: is kept as it is, since data/run was trained" in shown.out and open("data/tokenizer/vocab.txt").read() == vocabulary
    own[5] = "anew"
    prepare.main(cli.parse(prepare.Options, [*own, *SMALL]))
    taken_up, anew = RegionDB("data/regions"), RegionDB("anew/regions")
    assert taken_up.keys == anew.keys and taken_up.made_by.is_same(anew.made_by)
    for key in anew.keys:
        for name in ("features", "norm_bb", "conf", "soft_labels"):
            np.testing.assert_array_equal(getattr(taken_up[key], name), getattr(anew[key], name))


def test_what_cannot_be_added_to_regions_is_refused(own, small_world, capfd):
    run(*own, *SMALL)
    shutil.copytree("data", "copy")
    with pytest.raises(BadInput, match=r"--extractor butd: data/regions holds regions of random-conv .*--feature-dim 16 .* delete data/regions"):
        run(*own, "--extractor", "butd")
    with pytest.raises(BadInput, match=r"--extract size=96: data/regions holds regions made with size=64; leave that out, give another --out"):
        run(*own, "--extract", "size=96")
    with pytest.raises(BadInput, match=r"--extract image-key={lower}.npz: data/regions holds regions made with image-key={stem}.npz"):
        run(*own, "--extract", "image-key={lower}.npz")
    run(*own, "--extract", "conf-th=0.20", "compressed=false")
    with pytest.raises(BadInput, match=r"data/regions: holds the photographs of .*/photos, and .*/regions/../photos has none of them"):
        run(*own, "--photos", str(small_world / "regions/../photos"))
    states = json.load(open("copy/regions/photos.json"))
    json.dump({"photos": {}, "since": time.time()}, open("copy/regions/photos.json", "w"))  # as when killed behind the extraction
    prepare.main(cli.parse(prepare.Options, [*own, "--out", "copy"]))
    assert json.load(open("copy/regions/photos.json")) == states and "copy/regions: up to date" in capfd.readouterr().err
    os.remove("copy/regions/photos.json")  # as another command leaves it
    shutil.copyfile("photos/p0.jpg", "photos/p12.jpg")
    capfd.readouterr()
    prepare.main(cli.parse(prepare.Options, [*own, "--out", "copy"]))
    assert "copy/regions: is there already and used as it is, without 1 photographs, the first: photos/p12.jpg; delete it" in capfd.readouterr().err
    with pytest.raises(BadInput, match=r"--extract workers=9+: expected a number of processes"):
        prepare.main(cli.parse(prepare.Options, [*own, "--out", "copy", "--extract", f"workers={'9' * 5000}"]))
    for words, found in ((["--extractor", "butd"], "of random-conv"), (["--extract", "size=96"], "made with size=64")):
        with pytest.raises(BadInput, match=f"{' '.join(words)}: copy/regions holds regions {found}"):
            prepare.main(cli.parse(prepare.Options, [*own, "--out", "copy", *words]))


def test_two_photos_of_one_name_are_refused_and_told_apart_by_their_folders(own, capfd):
    os.mkdir("photos/x")
    os.rename("photos/p9.jpg", "photos/x/p0.jpg")
    with open("a.tsv", "w") as file:
        file.writelines(f"a red circle\t{n}.jpg\n" for n in ["x/p0", *(f"p{n}" for n in range(12) if n != 9)])
    own[3] = "a.tsv"
    with pytest.raises(BadInput, match="stopped at: python scripts/extract_regions"):
        run(*own, *SMALL, "--format", "pairs")
    assert "p0.jpg and x/p0.jpg both get the key p0.npz" in capfd.readouterr().err
    report = run(*own, *SMALL, "image-key={parent}_{stem}.npz", "--format", "pairs")
    assert "pictures_without_regions" not in report
    found = {key for name in ("train", "val", "test") for key in CaptionDB(f"data/db/{name}").img2txts}
    assert found == {"x_p0.npz", *(f"_p{n}.npz" for n in range(12) if n != 9)}


def test_captions_of_another_folder_do_not_get_pictures_of_the_same_name(own, capfd):
    """Of --photos ph and of --photos ph/cats; all captions are about dogs, and some of them."""
    os.makedirs("ph")
    os.rename("photos", "ph/cats")
    write([line | {"image": f"dogs/{line['image']}"} for line in lines()])
    for photos, out in (("ph", "a"), ("ph/cats", "b")):
        words = ["--photos", photos, "--captions", "a.jsonl", "--out", out, "--vocab-size", "300", *SMALL]
        with pytest.raises(BadInput, match=r"none of its pictures is in .*dogs/p0\.jpg, whose key p0\.npz is the picture .*cats/p0\.jpg"):
            prepare.main(cli.parse(prepare.Options, words))
    write([line | {"image": line["image"].replace("dogs", "dogs" if n < 2 else "cats")} for n, line in enumerate(lines())])
    own[1] = "ph"
    report = run(*own, *SMALL)
    assert report["other_pictures_of_that_name"]["count"] == 2
    assert "left out 2 pictures that are not there, the first: dogs/p0.jpg, whose key p0.npz" in capfd.readouterr().err
    assert sum(len(CaptionDB(f"data/db/{name}").img2txts) for name in ("train", "val", "test")) == 10


def test_pictures_of_one_name_in_two_folders_are_two_photographs(own):
    """The splits of the file stay: cats/1.jpg in train and dogs/1.jpg in val are not one photograph."""
    os.makedirs("ph/dogs")
    os.rename("photos", "ph/cats")
    for n in range(4):
        os.rename(f"ph/cats/p{n}.jpg", f"ph/dogs/p{n + 4}.jpg")
    names = [f"dogs/p{n}" for n in range(4, 8)] + [f"cats/p{n}" for n in range(4, 12)]
    write([
        {"image": f"{name}.jpg", "captions": {"en": [f"shape {name}"]}, "split": "val" if "dogs" in name else "train"}
        for name in names
    ])  # fmt: skip
    own[1] = "ph"
    report = run(*own, *SMALL, "image-key={parent}_{stem}.npz")
    assert "in_several_splits" not in report
    assert set(CaptionDB("data/db/val").img2txts) == {f"dogs_p{n}.npz" for n in range(4, 8)}
    assert set(CaptionDB("data/db/train").img2txts) == {f"cats_p{n}.npz" for n in range(4, 12)}


def test_splits_of_the_file_are_kept_and_boxes_are_told(own, capfd):
    write([line | {"split": "val" if n < 4 else "train"} for n, line in enumerate(lines())])
    report = run(*own, *SMALL, "conf-th=0.6", "min-bb=4", "max-bb=20")
    shown = capfd.readouterr().out
    boxes = "--boxes.conf-th 0.6 --boxes.max-bb 20 --boxes.min-bb 4"
    assert f"--data-root data {boxes} --out data/run" in shown
    assert f"--captions data/db/val --regions data/regions {boxes}" in shown
    assert len(CaptionDB("data/db/val").img2txts) == 4 and "in_several_splits" not in report


def test_a_picture_in_several_splits_is_in_one(own, capfd):
    """Of Karpathy's form, in two splits; of JSON lines, with a caption a line."""
    splits = ["test", "val", "val", *["train"] * 9, "train", "train", "test"]
    names = [*range(12), 0, 1, 2]
    images = [
        {"filename": f"p{n}.jpg", "split": split, "sentences": [{"raw": f"shape {i}", "sentid": i}]}
        for i, (n, split) in enumerate(zip(names, splits, strict=True))
    ]
    with open("k.json", "w") as file:
        json.dump({"images": images}, file)
    own[3] = "k.json"
    report = run(*own, *SMALL, "--format", "karpathy")
    assert report["in_several_splits"]["first"][0] == "name:p0: p0.jpg in test, p0.jpg in train; it stays in test"
    assert "3 photographs are in several splits" in capfd.readouterr().err
    found = {name: dict(CaptionDB(f"data/db/{name}").img2txts) for name in ("train", "val", "test")}
    assert {name: sorted(map(len, texts.values())) for name, texts in found.items()} == {
        "train": [1] * 9, "val": [2], "test": [2, 2],
    }  # fmt: skip
    write([{"image": f"p{n}.jpg", "captions": {"en": [f"line {i}"]}} for n in range(12) for i in range(2)])
    own[3] = "a.jsonl"
    assert "in_several_splits" not in run(*own, *SMALL) and len(CaptionDB("data/db/train")) == 20


def test_what_no_split_and_no_caption_uses_is_told(own, capfd):
    """Karpathy's restval, photos without captions, and a split that the next call no longer has."""
    splits = ["train"] * 7 + ["val", "test", "restval"]
    images = [
        {"filename": f"p{n}.jpg", "split": split, "sentences": [{"raw": f"shape {n}", "sentid": n}]}
        for n, split in enumerate(splits)
    ]
    json.dump({"images": images}, open("k.json", "w"))
    own[3] = "k.json"
    report = run(*own, *SMALL, "--format", "karpathy")
    shown = capfd.readouterr().err
    assert report["other_splits"] == {"restval": 1} and "1 captions of split restval: the training command does not" in shown
    assert report["regions_without_captions"] == {"count": 2, "first": ["p10.npz", "p11.npz"]}
    assert "2 pictures of data/regions have no caption, the first: p10.npz" in shown
    json.dump({"images": images[:8]}, open("k.json", "w"))
    run(*own, *SMALL, "--format", "karpathy")
    shown = capfd.readouterr().err
    assert "data/db/restval: is of an earlier build, this one has no split restval; removed" in shown
    assert sorted(os.listdir("data/db")) == ["report.json", "train", "val"]


def test_photos_of_a_phone_are_each_a_photograph(own, capfd):
    """Case 6: 80/10/10 of a day's photos."""
    write([line | {"image": f"20240101_1000{n:02d}.jpg"} for n, line in enumerate(lines())])
    for n in range(12):
        os.rename(f"photos/p{n}.jpg", f"photos/20240101_1000{n:02d}.jpg")
    assert "in_several_splits" not in run(*own, *SMALL)
    *before, last = capfd.readouterr().err.splitlines()
    assert not any("warning" in line for line in before)
    assert last.startswith("warning: data/regions: its regions are random-conv's, an untrained network's: recall on photographs will be near chance")
    assert "--extractor butd or hf:facebook/dinov2-base or torchvision:" in last
    assert [len(CaptionDB(f"data/db/{name}").img2txts) for name in ("train", "val", "test")] == [10, 1, 1]


def test_a_table_and_a_given_tokenizer(own, small_world):
    with open("a.tsv", "w") as file:
        file.writelines(f"a red circle\tp{n}.jpg\n" for n in range(12))
    own[3] = "a.tsv"
    at = own.index("--vocab-size")
    del own[at : at + 2]
    run(*own, *SMALL, "--format", "pairs", "--tokenizer", str(small_world / "tokenizer"))
    assert not os.path.exists("data/tokenizer") and len(CaptionDB("data/db/train")) == 10


def test_refusals(own):
    with pytest.raises(BadInput, match=r"no caption of language fr, found {'en': 24, 'de': 12}"):
        run(*own, *SMALL, "--languages", "fr")
    with pytest.raises(
        BadInput, match=r"stopped at: python scripts/extract_regions.py --photos photos .* --extractor no-such"
    ):
        run(*own, "--extractor", "no-such")
    write([line | {"split": "val" if n < 4 else "test"} for n, line in enumerate(lines())])
    with pytest.raises(BadInput, match=r"no split train, found {'val': 12, 'test': 24}; training needs train and val"):
        run(*own, *SMALL)
    write([line | {"image": "x" + line["image"]} for line in lines()])
    with pytest.raises(BadInput, match="none of its pictures is in photos; names must be those of the files"):
        run(*own, *SMALL)
    with pytest.raises(BadInput, match="--extract size: expected NAME=VALUE"):
        run(*own, "--out", "other", "--extract", "size")
    write(["{"])
    with pytest.raises(BadInput, match="line 1 is not JSON"):
        run(*own, *SMALL)


def test_copies_of_a_photograph_are_said(own, capfd):
    shutil.copyfile("photos/p0.jpg", "photos/p0 copy.jpg")
    assert run(*own, *SMALL)["checks"]["data/regions/feat_th0.2_max100_min10"] == {"records": 13, "problems": {}}
    assert "pictures with equal features: 1, the first: p0 copy.npz and p0.npz; each counts as one of its own" in capfd.readouterr().err


def test_a_damaged_database_is_named(own):
    run(*own, *SMALL)
    folder = next(p for p in os.listdir("data/regions") if p.startswith("nbb"))
    counts = json.load(open(f"data/regions/{folder}"))
    counts.pop("p3.npz")
    json.dump(counts, open(f"data/regions/{folder}", "w"))
    with pytest.raises(
        BadInput, match=r"keys that the nbb file lacks; see python scripts/inspect_db.py data/regions --verify"
    ):
        run(*own, *SMALL)


def printed(text, name):
    """The words of a command that was printed, without ``python SCRIPT``."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name}:"))
    return shlex.split(line)[3:]


@pytest.fixture
def from_anywhere(monkeypatch):
    """The printed commands name recipes from the repository's folder."""
    os.symlink(ROOT / "configs", "configs")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_photographs_alone_are_searched_with_a_checkpoint_as_printed(own, finetuned, capfd):
    prepare.main(cli.parse(prepare.Options, ["--photos", "photos", "--checkpoint", str(finetuned / "best"), "--extract", "workers=0"]))
    shown = capfd.readouterr()
    assert "12 photos" in shown.err and sorted(os.listdir("data_sets/photos")) == ["index", "regions"]
    words = printed(shown.out, "search")
    assert words == ["--checkpoint", str(finetuned / "best"), *"--index data_sets/photos/index --regions data_sets/photos/regions --photos photos".split()]
    with serving(*words, "--device", "cpu") as client:
        results = client.search(text="a red circle", k=3).json["results"][0]
        assert len(results) == 3
    os.remove("photos/p11.jpg")
    prepare.main(cli.parse(prepare.Options, ["--photos", "photos", "--checkpoint", str(finetuned / "best"), "--extract", "workers=0"]))
    assert "11 photos" in capfd.readouterr().err


def test_training_goes_on_from_a_checkpoint_and_the_page_opens_as_printed(own, finetuned, capfd, command, from_anywhere):
    words = ["--photos", "photos", "--captions", "a.jsonl", "--out", "data", "--checkpoint", str(finetuned / "best"), "--extract", "workers=0"]
    run(*words)
    shown = capfd.readouterr()
    assert CaptionDB("data/db/train").meta["v_range"] == CaptionDB(finetuned.parent / "db/train").meta["v_range"]
    train = printed(shown.out, "train")
    assert train[train.index("--model.init") + 1] == str(finetuned / "best")
    command("train_itm.py", *train, "--epochs", 1, "--device", "cpu")
    search = printed(shown.out, "search")
    assert not os.path.exists("data/index")
    with serving(*search, "--device", "cpu") as client:
        hits = client.search(text="a red circle", k=5).json["results"][0]
        found = client.search(image=hits[0]["id"], k=100).json
        assert len(hits) == 5 and found["find"] == "captions" and len(found["results"][0]) == 36  # of all splits
        assert {each["text"] for each in found["results"][0]} == {"a red circle", "ein roter Kreis", *(f"shape {n}" for n in range(12))}
    index, val = EmbeddingIndex("data/index_captions"), CaptionDB("data/db/val")
    model = LightningDOT.from_pretrained("data/run/best")
    alone = build_index(caption_source(model, val, val.ids), "alone", Encoding(torch.device("cpu"), progress=False))
    for name in val.ids:
        np.testing.assert_allclose(index.vectors(index.row_of(name)), alone.vectors(alone.row_of(name)), rtol=1e-4, atol=1e-5)
    shutil.rmtree("data/run")


def test_what_contradicts_a_checkpoint_is_refused(own, finetuned):
    with pytest.raises(BadInput, match="give --captions FILE, to train on them, or --checkpoint DIR"):
        cli.parse(prepare.Options, ["--photos", "photos"])
    with pytest.raises(BadInput, match="--extractor butd: the regions are made as those of --checkpoint"):
        cli.parse(prepare.Options, ["--photos", "photos", "--checkpoint", "x", "--extractor", "butd"])
    with pytest.raises(BadInput, match=r"--extract size: the checkpoint says it; only workers, device, weights, image-key"):
        prepare.main(cli.parse(prepare.Options, ["--photos", "photos", "--checkpoint", str(finetuned / "best"), "--extract", "size=64"]))


def test_shares_of_captions_that_name_their_splits_are_refused(own):
    lines = [json.loads(line) for line in open(own[3])]
    with open("a.jsonl", "w") as file:
        file.writelines(json.dumps(line | {"split": "val" if n < 3 else "train"}) + "\n" for n, line in enumerate(lines))
    own[3] = "a.jsonl"
    with pytest.raises(BadInput, match=r"--shares has no effect where a.jsonl names the splits train, val; leave it out"):
        run(*own, *SMALL, "--shares", "train=0.5", "val=0.5")
    assert not os.path.exists("data/regions")
