"""COCO's pictures in other languages, STAIR and COCO-CN, and the original's files of machine-written captions: laid out as the
real ones are, read, and built into databases."""

import json
from dataclasses import replace

import pytest

from configs import cli
from data.annotations import guess_format, read_captions
from data.annotations.records import STRICT, Caption, ReadingOptions
from data.captions.db import CaptionDB
from data.errors import BadInput
from scripts import build_captions

JAPANESE = ["赤いバスが　停まっています。", "駅の前に２台のバス！", "バスを待つ人たち（夕方）"]
CHINESE = ["一只狗在沙滩上奔跑。", "沙滩上，有一只狗！", "两个人，骑马？"]
TRAIN, VAL, TEST = "COCO_train2014_000000000009", "COCO_val2014_000000000042", "COCO_val2014_000000391895"


def stair(folder, split, names, texts, first_id=10, **more):
    """A file of STAIR's: COCO's layout, with COCO's entries of the pictures."""
    images = [{"license": 3, "file_name": f"{n}.jpg", "id": int(n[-12:]), "coco_url": "x", "height": 480, "width": 640} for n in names]
    said = [{"image_id": int(names[n % len(names)][-12:]), "id": first_id + n, "caption": text, **more} for n, text in enumerate(texts)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"stair_captions_v1.2_{split}.json"
    path.write_text(json.dumps({"info": {}, "licenses": [], "images": images, "annotations": said}, ensure_ascii=False), "utf-8")
    return path


def coco_cn(folder, lines, lists=None):
    folder.mkdir(parents=True, exist_ok=True)
    for split, names in (lists or {"train": [TRAIN], "val": [VAL], "test": [TEST]}).items():
        (folder / f"coco-cn_{split}.txt").write_text("\n".join(names))
    (folder / "imageid.human-written-caption.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def kept_and_bad(path, form, **how):
    bad = []
    options = replace(STRICT, on_bad_record=lambda line, captions: bad.append(line), **how)
    return list(read_captions(path, form, options)), bad


def build(annotations, form, out, *words):
    options = ["--annotations", annotations, "--format", form, "--out", out, "--image-key", "{lower}.npz", *words]
    build_captions.main(cli.parse(build_captions.Options, [str(word) for word in options]))
    return json.loads((out / "report.json").read_text())


@pytest.fixture
def vocab(tmp_path):
    """A vocabulary as multilingual BERT's: cased, each character a word, kana also inside words; full-width signs among them."""
    signs = sorted({c for text in JAPANESE + CHINESE for c in text if not c.isspace()})
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "A", *signs, *(f"##{c}" for c in signs)]
    (tmp_path / "vocab.txt").write_text("\n".join(words), "utf-8")
    return tmp_path / "vocab.txt"


def test_stair(tmp_path):
    val = stair(tmp_path / "stair", "val", [VAL], JAPANESE[:2])
    assert guess_format(val) == "stair"
    assert list(read_captions(val, "stair")) == [
        Caption(f"{VAL}.jpg", JAPANESE[0], "10", "val", "ja", None, 42),
        Caption(f"{VAL}.jpg", JAPANESE[1], "11", "val", "ja", None, 42),
    ]
    given = read_captions(val, "stair", ReadingOptions(split="dev", split_is_given=True))
    assert {caption.split for caption in given} == {"dev"}
    stair(tmp_path / "stair", "train", [TRAIN], JAPANESE[2:])  # the same number as in the other file
    tokenized = tmp_path / "stair/stair_captions_v1.2_val_tokenized.json"
    stair(tmp_path / "words", "val", [VAL], JAPANESE[1:2], tokenized_caption="駅 の 前 に ２ 台 の バス ！").rename(tokenized)
    both = list(read_captions(tmp_path / "stair", "stair"))  # *_tokenized.json are the same captions
    assert [(c.caption_id, c.split, c.image) for c in both] == [
        ("train#10", "train", f"{TRAIN}.jpg"), ("val#10", "val", f"{VAL}.jpg"), ("val#11", "val", f"{VAL}.jpg")
    ]  # fmt: skip
    [caption] = read_captions(tokenized, "stair")
    assert caption.tokens == ("駅", "の", "前", "に", "２", "台", "の", "バス", "！") and caption.split == "val"
    assert caption.text == JAPANESE[1]


def test_what_is_no_stair(tmp_path):
    with pytest.raises(BadInput, match=r"no stair_captions_v1.2_train.json or _val.json in it"):
        list(read_captions(tmp_path, "stair"))
    path = stair(tmp_path, "val", [VAL], JAPANESE[:2])
    path.with_name("stair_captions_v1.1_val.json").write_text(path.read_text("utf-8"), "utf-8")
    with pytest.raises(BadInput, match=r"both stair_captions_v1.1_val.json and stair_captions_v1.2_val.json are STAIR's val"):
        list(read_captions(tmp_path, "stair"))
    broken = stair(tmp_path / "b", "val", [VAL], [JAPANESE[0], "　", ""])
    captions, bad = kept_and_bad(broken, "stair")
    assert [c.text for c in captions] == JAPANESE[:1] and len(bad) == 2, "an ideographic space alone is no caption"


def test_stair_with_the_splits_of_karpathy(tmp_path, vocab, capsys):
    folder = tmp_path / "stair"
    stair(folder, "train", [TRAIN], JAPANESE[:1])
    stair(folder, "val", [VAL, TEST], [*JAPANESE, JAPANESE[0]])
    sentences = [{"raw": "a bus", "sentid": 1}]
    of = {TRAIN: "train", VAL: "restval", TEST: "test"}
    images = [
        {"filename": f"{name}.jpg", "filepath": name.split("_")[1], "cocoid": int(name[-12:]), "split": split,
         "sentences": [{**sentences[0], "sentid": int(name[-12:])}]}
        for name, split in of.items()
    ]  # fmt: skip
    karpathy = tmp_path / "dataset_coco.json"
    karpathy.write_text(json.dumps({"images": images, "dataset": "coco"}))
    report = build(folder, "stair", tmp_path / "db", "--split-lists", karpathy, "--restval-as-train", "--tokenizer", vocab)
    assert {split: counts["captions"] for split, counts in report["splits"].items()} == {"train": 3, "test": 2}
    database = CaptionDB(tmp_path / "db/test")
    assert list(database.img2txts) == [f"{TEST.lower()}.npz"] and set(database.languages.values()) == {"ja"}
    assert "0.00% unknown" in capsys.readouterr().out
    with pytest.raises(BadInput, match=r"--split-lists test=\S+dataset_coco.json: annotations are given without a split"):
        build(folder, "stair", tmp_path / "no", "--split-lists", f"test={karpathy}", "--tokenizer", vocab)
    with pytest.raises(BadInput, match=r"--split-lists \S+val.json: annotations .* such as Karpathy's dataset_coco.json"):
        build(folder, "stair", tmp_path / "no", "--split-lists", folder / "stair_captions_v1.2_val.json", "--tokenizer", vocab)


def test_coco_cn(tmp_path):
    lines = [f"{TRAIN}#0\t{CHINESE[0]}", f"{TEST}#zhm#0\t{CHINESE[1]}", f"{TEST}#zhm#1 {CHINESE[2]}", f"{VAL}#0\t两 个 人"]
    folder = coco_cn(tmp_path / "coco-cn-version1805v1.1", lines)
    assert guess_format(folder) == guess_format(folder / "imageid.human-written-caption.txt") == "coco-cn"
    assert guess_format(folder / "imageid.manually-translated-caption.bosonseg.txt") == "coco-cn"
    expected = [
        Caption(f"{TRAIN}.jpg", CHINESE[0], f"{TRAIN}#0", "train", "zh", None, 9),
        Caption(f"{TEST}.jpg", CHINESE[1], f"{TEST}#zhm#0", "test", "zh", None, 391895),
        Caption(f"{TEST}.jpg", CHINESE[2], f"{TEST}#zhm#1", "test", "zh", None, 391895),
        Caption(f"{VAL}.jpg", "两 个 人", f"{VAL}#0", "val", "zh", None, 42),
    ]
    assert list(read_captions(folder, "coco-cn")) == expected
    assert list(read_captions(folder / "imageid.human-written-caption.txt", "coco-cn")) == expected
    (folder / "imageid.manually-translated-caption.txt").write_text(f"{TEST}#0\t{CHINESE[0]}\n", "utf-8")
    [caption] = read_captions(folder / "imageid.manually-translated-caption.txt", "coco-cn")
    assert (caption.text, caption.split) == (CHINESE[0], "test")


def test_bad_records_and_lists_of_coco_cn(tmp_path):
    lines = [f"{VAL}#0\t{CHINESE[0]}", f"{VAL}#0\t{CHINESE[1]}", f"{VAL} {CHINESE[1]}", f"{VAL}#1\t", "COCO_val2014_000000000001#0\t狗"]
    folder = coco_cn(tmp_path / "coco-cn", lines)
    captions, bad = kept_and_bad(folder, "coco-cn")
    assert [c.text for c in captions] == CHINESE[:1] and len(bad) == 4
    for line, message in zip(bad, ("used before", "expected COCO_val2014_000000123456#0, a tab", "a caption", "in coco-cn_train.txt"), strict=True):
        assert message in line and "imageid.human-written-caption.txt: line" in line
    (folder / "coco-cn_val.txt").write_text(f"{VAL}\n{TEST}\n")
    with pytest.raises(BadInput, match=rf"coco-cn_test.txt: {TEST} is in coco-cn_val.txt too"):
        list(read_captions(folder, "coco-cn"))
    (folder / "coco-cn_val.txt").unlink()
    with pytest.raises(BadInput, match=r"coco-cn_val.txt: no such file; COCO-CN's lists"):
        list(read_captions(folder, "coco-cn"))


def test_coco_cn_is_built(tmp_path, vocab, capsys):
    folder = coco_cn(tmp_path / "coco-cn-version1805v1.1", [f"{TRAIN}#0\t{CHINESE[0]}", f"{TEST}#0\t{CHINESE[1]}", f"{VAL}#0\t{CHINESE[2]}"])
    report = build(folder, "coco-cn", tmp_path / "db", "--splits", "test", "--tokenizer", vocab)
    assert report["splits"]["test"]["captions"] == 1
    shown = capsys.readouterr()
    assert "coco-cn, split test, zh: found 1 pictures and 1 captions, published are 1,000 and 1,053" in shown.err
    database = CaptionDB(tmp_path / "db/test")
    record = database[f"{TEST}#0"]
    assert record["raw"] == CHINESE[1] and len(database.input_ids(f"{TEST}#0")) == len(CHINESE[1]), "a character is a word"
    with pytest.raises(BadInput, match="--split test: coco-cn says the split of every picture"):
        build(folder, "coco-cn", tmp_path / "no", "--split", "test", "--tokenizer", vocab)


def test_full_width_signs_and_spaces(tmp_path, vocab):
    stair(tmp_path / "stair", "val", [VAL], JAPANESE)
    build(tmp_path / "stair", "stair", tmp_path / "db", "--tokenizer", vocab)
    database = CaptionDB(tmp_path / "db/val")
    words = vocab.read_text("utf-8").split("\n")
    for n, text in enumerate(JAPANESE):
        pieces = [words[i].removeprefix("##") for i in database.input_ids(f"val#{10 + n}")]
        assert "".join(pieces) == text.replace("　", "") and database[f"val#{10 + n}"]["raw"] == text


def test_machine_written_captions_of_the_original(tmp_path, vocab):
    content = {
        "coco_val2014_000000000042.npz": {"caption_multiple": ["狗", "一只狗"], "annotation": ["沙滩"], "caption": "x", "img_file": "y", "index": 0},
        "coco_val2014_000000000043.npz": {"caption_multiple": "狗", "annotation": [], "img_file": "z", "index": 1},
    }  # fmt: skip
    path = tmp_path / "coco_meta.json"
    path.write_text(json.dumps(content))
    assert guess_format(path) == "image-meta"
    captions = list(read_captions(path, "image-meta"))
    assert [(c.image, c.text, c.caption_id, c.split) for c in captions] == [
        ("coco_val2014_000000000042.npz", "狗", "coco_val2014_000000000042#0", "train"),
        ("coco_val2014_000000000042.npz", "一只狗", "coco_val2014_000000000042#1", "train"),
        ("coco_val2014_000000000043.npz", "狗", "coco_val2014_000000000043#0", "train"),
    ]
    human = list(read_captions(path, "image-meta", ReadingOptions(fields=("annotation",))))
    assert [c.text for c in human] == ["沙滩"]
    build(path, "image-meta", tmp_path / "db", "--tokenizer", vocab)
    assert set(CaptionDB(tmp_path / "db/train").img2txts) == set(content)
    path.write_text(json.dumps({"a.npz": {"caption": "狗"}, "b.npz": {"caption_multiple": ["狗", 3]}}))
    captions, bad = kept_and_bad(path, "image-meta")
    assert [c.image for c in captions] == ["b.npz"] and len(bad) == 2 and "expected an object with caption_multiple" in bad[0]
