"""Text DBs: the records of the UNITER layout, both commands, damage, workers."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import lmdb
import lz4.frame
import msgpack
import numpy as np
import pytest
from torch.utils.data import DataLoader

from configs import cli
from data.annotations.records import Caption
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import make_record, pack_record, write_caption_db
from data.errors import BadInput
from data.regions.db import Regions
from data.regions.keys import key_of_image
from data.regions.writer import RegionWriter
from data.storage.lmdb_env import reader
from scripts import build_captions, train_tokenizer

GOLDEN = Path(__file__).parents[2] / "fixtures" / "uniter_db"
WORDS = "a the dog dogs cat runs on beach ein hund am strand . , ' Hund Strand".split()
VOCABULARY = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused2]", *WORDS, "##s", "##ning", "run"]


def write_vocabulary(path, words=VOCABULARY):
    path.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return path


@pytest.fixture
def tokenizer(tmp_path):
    return CaptionTokenizer.from_pretrained(write_vocabulary(tmp_path / "vocab.txt"))


CAPTIONS = [
    Caption("img/1.jpg", "the dogs, running", "1#en0", "train", "en"),
    Caption("img/1.jpg", "ein Hund am Strand.", "1#de0", "train", "de"),
    Caption("COCO_2.jpg", "A cat's on  the beach", "17", "train", "en", ("a", "cat", "beach"), 2),
]


# ---- the original's databases ----------------------------------------------------------------------------------------


def test_reads_what_the_original_reads():
    db = CaptionDB(GOLDEN / "txt")
    expected = json.loads((GOLDEN / "expected_txt.json").read_text())
    assert db.ids == expected["txt_ids"] and db.lengths == expected["id2len"] and len(db) == 120
    assert {i: db.input_ids(i) for i in db.ids} == expected["input_ids"]
    assert db["5000010"]["img_fname"] == db.txt2img["5000010"] == "coco_val2014_000000500001.npz"
    assert db.img2txts["coco_val2014_000000500001.npz"] == [f"500001{i}" for i in range(5)]
    assert db.meta["v_range"] == [106, 1000] and db.languages == {} and db.tokenizer_folder is None


def test_writes_the_bytes_of_the_original(tmp_path):
    """Its tokenizer is not stored, but the database tells its pieces and their ids."""
    db = CaptionDB(GOLDEN / "txt")
    records = [db[i] for i in db.ids]
    words = [f"[unused{i}]" for i in range(1000)]
    words[:1], words[100:104] = ["[PAD]"], ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    for record in records:
        for piece, i in zip(record["toked_caption"], record["input_ids"], strict=True):
            words[i] = piece.removeprefix("@@")
    tokenizer = CaptionTokenizer.from_pretrained(write_vocabulary(tmp_path / "vocab.txt", words))
    for record in records:
        caption = Caption(
            "x.jpg", record["raw"], str(record["sentid"]), "val", "en", tuple(record["tokens"]), record["image_id"]
        )
        encoding = tokenizer.encode([record["raw"]])[0]
        ours = make_record(caption, encoding, record["imgid"], record["img_fname"])
        assert ours.pop("lang") == "en"
        assert pack_record(ours) == bytes(reader(GOLDEN / "txt").get(str(record["sentid"]).encode()))


# ---- writing and reading ---------------------------------------------------------------------------------------------


def test_round_trip_with_an_independent_reader(tmp_path, tokenizer):
    folder = tmp_path / "db"
    counts = write_caption_db(folder, iter(CAPTIONS), tokenizer, ["a.jsonl"], "x_{stem:0>4}.npz")
    tables = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json") if path.name != "digest.json"}
    keys = {"1#en0": "x_0001.npz", "1#de0": "x_0001.npz", "17": "x_COCO_2.npz"}
    assert tables == {
        "id2len": {"1#en0": 5, "1#de0": 5, "17": 7},
        "txt2img": keys,
        "img2txts": {"x_0001.npz": ["1#en0", "1#de0"], "x_COCO_2.npz": ["17"]},
        "txt2lang": {"1#en0": "en", "1#de0": "de", "17": "en"},
        "meta": {
            "annotations": ["a.jsonl"],
            "output": str(folder),
            "task": "itm",
            "bert": tmp_path.name,
            **{"UNK": 2, "CLS": 3, "SEP": 4, "MASK": 5, "PAD": 0},
            "v_range": [7, len(VOCABULARY)],
        },
    }
    assert counts == {"captions": 3, "images": 2, "pieces": 17, "unknown": 2, "languages": {"en": 2, "de": 1}}  # "A" is not in this cased vocabulary
    with lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin() as txn:
        stored = {key.decode(): msgpack.unpackb(lz4.frame.decompress(value)) for key, value in txn.cursor()}
    assert stored.keys() == keys.keys()
    pieces = ["the", "dogs", "@@,", "run", "@@##ning"]
    assert stored["1#en0"] == {
        "raw": "the dogs, running",
        "sentid": "1#en0",
        "imgid": 0,
        "tokens": ["the", "dogs,", "running"],
        "image_id": "1",
        "toked_caption": pieces,
        "input_ids": [VOCABULARY.index(piece.removeprefix("@@")) for piece in pieces],
        "img_fname": "x_0001.npz",
        "lang": "en",
    }
    third = stored["17"]
    assert (third["sentid"], third["imgid"], third["tokens"], third["image_id"]) == (17, 1, ["a", "cat", "beach"], 2)
    assert third["toked_caption"] == ["[UNK]", "cat", "@@'", "@@[UNK]", "on", "the", "beach"]

    db = CaptionDB(folder)
    assert db.ids == list(keys) and {i: db[i] for i in db.ids} == stored
    assert db.input_ids("1#en0") == stored["1#en0"]["input_ids"] and "17" in db and "18" not in db
    assert db.languages["1#de0"] == "de"
    again = CaptionTokenizer.from_pretrained(db.tokenizer_folder)
    assert again.input_ids("ein Hund") == tokenizer.input_ids("ein Hund") == [15, 22]


def test_data_loader_workers_and_pickle(tmp_path, tokenizer):
    write_caption_db(tmp_path / "db", CAPTIONS, tokenizer, ["a"])
    db = CaptionDB(tmp_path / "db")
    records = [db[i] for i in db.ids]
    loader = DataLoader(db, None, sampler=db.ids, num_workers=2, collate_fn=dict, multiprocessing_context="fork")
    assert list(loader) == records
    again = pickle.loads(pickle.dumps(db))
    assert [again[i] for i in again.ids] == records


def test_fingerprint(tmp_path, tokenizer):
    changed = [CAPTIONS[0], CAPTIONS[1], Caption("COCO_2.jpg", "the cat runs on the beach .", "17", "train", "en")]
    variants = {"a": CAPTIONS, "b": CAPTIONS, "c": changed, "d": CAPTIONS[:2]}
    for name, captions in variants.items():
        write_caption_db(tmp_path / name, captions, tokenizer, ["x"])
    a, b, c, d = (CaptionDB(tmp_path / name).fingerprint() for name in variants)
    assert CaptionDB(tmp_path / "a").lengths == CaptionDB(tmp_path / "c").lengths
    assert a == b and len({a, c, d}) == 3


@pytest.mark.parametrize("template, key", [("{stem}.npz", "COCO_7.npz"), ("{lower}.npz", "coco_7.npz")])
def test_image_key(template, key):
    assert key_of_image("val2014/COCO_7.jpg", template) == key


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "captions, key, message",
    [
        ([], "{stem}.npz", "a.jsonl: no caption for .*db; check the split"),
        ([CAPTIONS[0], CAPTIONS[0]], "{stem}.npz", "a.jsonl: caption 1#en0 occurs twice"),
        ([Caption("1.jpg", "\x00", "9", "train", "en")], "{stem}.npz", "a.jsonl: caption 9 .* has no word"),
        ([CAPTIONS[0], Caption("1.png", "a dog", "9", "train", "en")], "{stem}.npz", "img/1.jpg and 1.png both get"),
        (CAPTIONS, "{name}.npz", r"image_key '\{name\}.npz' cannot be filled in"),
        (CAPTIONS, "{stem:0>x}", "image_key .* cannot be filled in"),
    ],
)
def test_bad_captions_leave_nothing(tmp_path, tokenizer, captions, key, message):
    with pytest.raises(BadInput, match=message):
        write_caption_db(tmp_path / "db", captions, tokenizer, ["a.jsonl"], key)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["vocab.txt"]


def test_damaged_databases(tmp_path, tokenizer):
    folder = tmp_path / "db"

    def rebuilt():
        write_caption_db(folder, CAPTIONS, tokenizer, ["a"])
        return folder

    with pytest.raises(BadInput, match="absent: not an LMDB database"):
        CaptionDB(tmp_path / "absent")
    with pytest.raises(BadInput, match="db: no caption '99'"):
        CaptionDB(rebuilt())["99"]
    (folder / "txt2img.json").unlink()
    with pytest.raises(BadInput, match=r"db.txt2img.json: cannot be read"):
        CaptionDB(folder)
    for content, message in {"{": "not JSON", "[]": "holds a list", "{}": "the database is empty"}.items():
        (rebuilt() / "id2len.json").write_text(content)
        with pytest.raises(BadInput, match=message):
            CaptionDB(folder)
    (rebuilt() / "txt2img.json").write_text('{"17": "x.npz"}')
    with pytest.raises(BadInput, match=r"txt2img.json: no image for caption 1#en0"):
        CaptionDB(folder)
    table = json.loads((rebuilt() / "txt2img.json").read_text())
    caption, other = next((name, key) for name in table for key in table.values() if key != table[name])
    (folder / "txt2img.json").write_text(json.dumps(table | {caption: other}))
    with pytest.raises(BadInput, match=rf"txt2img.json: caption {caption} is of {other}, and img2txts.json has it under {table[caption]} \(1 such\)"):
        CaptionDB(folder)
    (rebuilt() / "meta.json").write_text('{"CLS": 3}')
    with pytest.raises(BadInput, match=r"meta.json: has no MASK, SEP, v_range"):
        CaptionDB(folder)
    path = rebuilt() / "data.mdb"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(BadInput, match=r"data\.mdb: truncated"):
        CaptionDB(folder)
    for value in (b"", b"no lz4", lz4.frame.compress(b"\xc1"), lz4.frame.compress(msgpack.packb({"raw": "a"}))):
        (rebuilt() / "data.mdb").unlink()
        with lmdb.open(str(folder), lock=False) as env, env.begin(write=True) as txn:
            txn.put(b"17", value)
        with pytest.raises(BadInput, match="db: caption '17' is damaged"):
            CaptionDB(folder)["17"]


# ---- the commands ----------------------------------------------------------------------------------------------------


def write_annotations(path, pictures=30):
    with open(path, "w", encoding="utf-8") as file:
        for i in range(pictures):
            captions = {"en": ["The dog runs on the beach.", f"a cat {i}"], "de": ["Ein größerer Hund am Strand."]}
            split = "val" if i % 3 == 0 else "train"
            file.write(json.dumps({"image": f"p{i}.jpg", "captions": captions, "split": split}) + "\n")
    return path


def run(module, *words):
    module.main(cli.parse(module.Options, [str(word) for word in words]))


def test_words_that_are_not_in_the_vocabulary_are_refused(tmp_path, tokenizer):
    folder = tmp_path / "db"
    end = max(tokenizer.vocabulary().values()) + 1

    def read(ids, tokenizer_is_kept=True):
        write_caption_db(folder, CAPTIONS[:1], tokenizer, ["a.jsonl"])
        if not tokenizer_is_kept:
            shutil.rmtree(folder / "tokenizer")
        meta = json.loads((folder / "meta.json").read_text())
        (folder / "meta.json").write_text(json.dumps(meta | {"v_range": [7, 9]}))  # special tokens may stand among the words
        (folder / "checksums.npz").unlink()  # as databases of others
        with lmdb.open(str(folder)) as env, env.begin(write=True) as txn:
            record = msgpack.unpackb(lz4.frame.decompress(txn.get(b"1#en0")))
            txn.put(b"1#en0", pack_record(record | {"input_ids": ids}))
        found = CaptionDB(folder).input_ids("1#en0")
        shutil.rmtree(folder)
        return found

    assert read([7, end - 1]) == [7, end - 1] and read([]) == []
    for ids, kept in (([7, end], True), ([-1], True), ([7, 2**40], True), ([7, 9], False)):
        with pytest.raises(BadInput, match=rf"caption '1#en0' has the word {ids[-1]} among its input_ids"):
            read(ids, kept)
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", ["CLS", "SEP", "MASK", "UNK", "PAD"])
def test_special_tokens_have_an_id(tmp_path, tokenizer, name):
    write_caption_db(tmp_path / "db", CAPTIONS, tokenizer, ["a.jsonl"])
    meta = json.loads((tmp_path / "db/meta.json").read_text())
    (tmp_path / "db/meta.json").write_text(json.dumps(meta | {name: -1}))
    with pytest.raises(BadInput, match=f"meta.json: {name} is -1"):
        CaptionDB(tmp_path / "db")


def test_train_tokenizer_then_build_captions(tmp_path, capsys):
    annotations = write_annotations(tmp_path / "a.jsonl")
    run(train_tokenizer, "--annotations", annotations, "--vocab-size", "150", "--out", tmp_path / "tok")
    words = (tmp_path / "tok" / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert words[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] and len(words) == len(set(words)) <= 150

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tok")
    assert tokenizer("The dog")["input_ids"] == [2, words.index("the"), words.index("dog"), 3]
    assert tokenizer.tokenize("GRÖßER")[0][0] == "g"  # lower-cased
    unseen = tokenizer.tokenize("xylophone quiz 42")
    assert "[UNK]" not in unseen and "".join(unseen).replace("##", "") == "xylophonequiz42"
    assert (tokenizer.pad_token_id, tokenizer.cls_token_id, tokenizer.mask_token_id) == (0, 2, 4)

    run(build_captions, "--annotations", annotations, "--tokenizer", tmp_path / "tok", "--out", tmp_path / "db")
    assert "20 pictures, 40 en, 20 de" in capsys.readouterr().out
    train, val = CaptionDB(tmp_path / "db" / "train"), CaptionDB(tmp_path / "db" / "val")
    assert len(train) == 60 and len(val) == 30 and val.txt2img["p0#de0"] == "p0.npz"
    assert CaptionTokenizer.from_pretrained(train.tokenizer_folder).vocabulary() == tokenizer.get_vocab()
    assert train.meta["v_range"] == [5, len(words)]
    for caption_id in val.ids:
        expected = tokenizer(val[caption_id]["raw"])["input_ids"]
        assert [train.meta["CLS"], *val.input_ids(caption_id), train.meta["SEP"]] == expected


def test_tokenizer_is_the_same_in_every_process(tmp_path):
    annotations = write_annotations(tmp_path / "a.jsonl")
    script = Path(train_tokenizer.__file__)
    for name in "ab":
        words = ["--annotations", annotations, "--vocab_size", "140", "--out", tmp_path / name]
        subprocess.run([sys.executable, script, *words], check=True, capture_output=True, cwd=tmp_path)
    assert (tmp_path / "a" / "vocab.txt").read_bytes() == (tmp_path / "b" / "vocab.txt").read_bytes()


def test_build_captions_chooses(tmp_path):
    annotations = write_annotations(tmp_path / "a.jsonl")
    vocabulary = write_vocabulary(tmp_path / "vocab.txt")
    common = ("--annotations", annotations, "--tokenizer", vocabulary, "--out", tmp_path / "db", "--lowercase", "true")
    run(build_captions, *common, "--languages", "de", "--splits", "val")
    assert sorted(p.name for p in (tmp_path / "db").iterdir()) == ["report.json", "val"]
    assert set(CaptionDB(tmp_path / "db" / "val").languages.values()) == {"de"}
    for option, found in {"--splits": "{'val': 30, 'train': 60}", "--languages": "{'en': 60, 'de': 30}"}.items():
        with pytest.raises(BadInput, match=f"a.jsonl: no caption of (split|language) fr, found {found}"):
            run(build_captions, *common, option, "fr")


def test_restval(tmp_path):
    images = [
        {"filename": f"{i}.jpg", "split": split, "sentences": [{"raw": "a dog", "sentid": i}]}
        for i, split in enumerate(["train", "restval", "test", "restval"])
    ]
    (tmp_path / "k.json").write_text(json.dumps({"images": images}))
    words = ["--annotations", tmp_path / "k.json", "--format", "karpathy"]
    words += ["--tokenizer", write_vocabulary(tmp_path / "vocab.txt"), "--image-key", "{stem:0>3}.npz"]
    run(build_captions, *words, "--out", tmp_path / "a")
    run(build_captions, *words, "--out", tmp_path / "b", "--restval-as-train")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["report.json", "restval", "test", "train"]
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["report.json", "test", "train"]
    assert CaptionDB(tmp_path / "b" / "train").txt2img == {"0": "000.npz", "1": "001.npz", "3": "003.npz"}


def test_pictures_without_regions(tmp_path, capsys):
    annotations = write_annotations(tmp_path / "a.jsonl")
    with RegionWriter(tmp_path / "img") as writer:
        for i in range(10, 20):
            writer.add(f"p{i}.npz", Regions(np.ones((3, 4)), np.ones((3, 6)), np.ones(3)))
    words = ["--annotations", annotations, "--tokenizer", write_vocabulary(tmp_path / "vocab.txt")]
    words += ["--out", tmp_path / "db", "--regions", tmp_path / "img"]
    with pytest.raises(BadInput, match=r"a.jsonl: caption p0#en0 is about p0.jpg, whose key p0.npz .*img \(60 such"):
        run(build_captions, *words)
    assert not (tmp_path / "db").exists()
    run(build_captions, *words, "--skip-missing")
    assert "left out: 60 captions of 20 pictures" in capsys.readouterr().out
    assert set(CaptionDB(tmp_path / "db" / "train").img2txts) == {f"p{i}.npz" for i in range(10, 20) if i % 3}
    with RegionWriter(tmp_path / "img") as writer:
        writer.add("p1.npz", Regions(np.ones((3, 4)), np.ones((3, 6)), np.ones(3)))
    with pytest.raises(BadInput, match="split val is empty"):
        run(build_captions, *words, "--skip-missing")


def test_error_is_one_line_and_status_2(tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    words = ["--annotations", "a.jsonl", "--tokenizer", write_vocabulary(tmp_path / "vocab.txt"), "--out", "db"]
    script = Path(build_captions.__file__)
    result = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2 and result.stderr.strip() == "error: a.jsonl: no captions in it"
    for options, message in {
        "--splits test": r"no caption in \['test'\]",
        "--vocab-size 50": "50 is too small",
        "--vocab-size 2147483648": "2,147,483,648 is too large",
    }.items():
        write_annotations(tmp_path / "a.jsonl")
        with pytest.raises(BadInput, match=message):
            run(train_tokenizer, "--annotations", tmp_path / "a.jsonl", "--out", tmp_path / "t", *options.split())
