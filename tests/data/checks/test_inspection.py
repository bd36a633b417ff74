"""Inspecting databases: every problem that is named, damage, and what is no database."""

import json
from pathlib import Path

import numpy as np
import pytest

from data.annotations.records import Caption
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.checks.inspection import inspect_database
from data.checks.records import InspectionOptions
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.index.writer import IndexWriter
from data.regions.codec import encode_plain
from data.regions.db import BoxOptions, Regions
from data.regions.writer import RegionWriter
from data.storage.lmdb_env import open_env
from data.storage.lmdb_writer import LmdbWriter
from tests.data.checks.test_records import make_arrays

FOLDER = "feat_th0.2_max100_min10"
NBB = "nbb_th0.2_max100_min10.json"


def write_images(img_db, pictures=20, boxes=None, compressed=False):
    with RegionWriter(img_db, boxes, compressed) as writer:
        for i in range(pictures):
            writer.add(f"{i}.npz", Regions(**make_arrays(i, rows=10 + i % 4)))
    return img_db


CAPTIONS = [
    Caption(f"{i}.jpg", f"a {word} dog", f"{i}{language}", "train", language)
    for i in range(20)
    for language, word in (("en", "big"), ("de", "wolf"))
]


def write_captions(folder):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "big", "small", "dog", "cat"]
    vocabulary = folder.parent / "vocab.txt"
    vocabulary.write_text("".join(f"{word}\n" for word in words))
    write_caption_db(folder, CAPTIONS, CaptionTokenizer.from_pretrained(vocabulary), ["a.jsonl"])
    return folder


def replace(folder, values):
    """Write the LMDB anew with some of its values changed (None: removed); the other files stay."""
    with open_env(folder).begin() as txn:
        records = dict(txn.cursor())
    beside = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    records |= {key.encode(): value for key, value in values.items()}
    with LmdbWriter(folder) as writer:
        for key, value in records.items():
            if value is not None:
                writer.put(key, value)
        for name, content in beside.items():
            (writer.partial / name).write_bytes(content)


def inspect(path, **options):
    """The reports, by name of the database's folder."""
    return {Path(report.path).name: report for report in inspect_database(Path(path), InspectionOptions(**options))}


def problems(path, **options):
    (report,) = inspect(path, **options).values()
    return report.problems.counts


def test_all_layout(tmp_path):
    folder = write_images(tmp_path) / FOLDER
    folder.rename(tmp_path / "all")
    kind = "box-count files that keep this layout from being read"
    assert problems(tmp_path) == {kind: 1}
    (tmp_path / NBB).unlink()
    (report,) = inspect(tmp_path, boxes=BoxOptions(0.5, min_bb=1)).values()
    assert not report.problems.counts and "above 0.5, at least 1" in report.facts["boxes used"]
    expected = [int((make_arrays(i, rows=10 + i % 4)["conf"] > 0.5).sum()) for i in range(20)]
    assert sorted(report.histograms["boxes used"].elements()) == sorted(max(n, 1) for n in expected)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "int8"])
def test_one_changed_bit_of_a_feature_index(tmp_path, dtype):
    vectors = np.random.default_rng(0).normal(size=(600, 6)).astype(np.float32)
    with IndexWriter(tmp_path / "index", "img", 6, "model1", "data1", dtype) as writer:
        writer.add([f"{i}.npz" for i in range(600)], vectors)
    assert problems(tmp_path / "index", verify=True, workers=0) == {}
    kind = "int8" if dtype == "int8" else "vec"
    value = bytearray(EmbeddingIndex(tmp_path / "index")._value(kind.encode(), 0))
    value[2500] ^= 4
    replace(tmp_path / "index", {f"{kind}/00000000": bytes(value)})
    found = problems(tmp_path / "index", verify=True, workers=0)
    assert found == {"blocks that are not what was written": 1, "rows that cannot be read": 600}


def test_something_else(tmp_path):
    (tmp_path / "empty").mkdir()
    write_captions(tmp_path / "train")
    with LmdbWriter(tmp_path / "odd" / "x") as writer:
        writer.put(b"hello", b"")
    expected = {
        "absent": "found no such folder",
        "empty": "found a folder with nothing",
        "vocab.txt": "found a file",
        ".": "holds databases, give one of them: .*train",
        "odd/x": "an LMDB, but no image DB .* its first keys are hello",
    }
    for name, message in expected.items():
        with pytest.raises(BadInput, match=message):
            inspect(tmp_path / name)


def test_missing_and_bad_nbb(tmp_path):
    write_images(tmp_path)
    expected = next(iter(inspect(tmp_path).values())).histograms
    (tmp_path / NBB).write_text("{")
    assert problems(tmp_path) == {"a bad nbb file": 1}
    (tmp_path / NBB).unlink()
    (report,) = inspect(tmp_path).values()
    assert report.problems.counts == {"a missing nbb file": 1} and report.histograms == expected


def test_key_lists(tmp_path):
    folder = write_images(tmp_path) / FOLDER
    keys = [f"{i}.npz" for i in range(20)]
    replace(folder, {"__keys__": json.dumps([*keys, "3.npz"]).encode()})
    assert problems(tmp_path) == {"keys that __keys__ lists twice": 1}
    for value in (b"{}", b"[1]", b"["):
        replace(folder, {"__keys__": value})
        assert problems(tmp_path) == {"a bad key list": 1}
    replace(folder, {"__keys__": None, "0.npz": None, "0": encode_plain(make_arrays(0))})
    assert problems(folder).keys() >= {"keys that do not end in .npz", "keys that the nbb file lacks"}


def test_tables_that_disagree(tmp_path):
    folder = write_captions(tmp_path / "db")
    original = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}

    def found(name, change):
        content = json.loads(json.dumps(original[f"{name}.json"]))
        change(content)
        (folder / f"{name}.json").write_text(json.dumps(content))
        kinds = dict(problems(folder))
        (folder / f"{name}.json").write_text(json.dumps(original[f"{name}.json"]))
        return kinds

    assert found("id2len", lambda t: t.update({"0en": 9})) == {"lengths that disagree with id2len.json": 1}
    assert found("id2len", lambda t: t.update({"x": 9})) == {
        "captions of id2len.json that are not stored": 1,
        "captions that txt2img.json lacks": 1,
        "captions that txt2lang.json lacks": 1,
    }
    assert found("id2len", lambda t: t.pop("0en")) == {
        "stored captions that id2len.json lacks": 1,
        "captions of txt2img.json that id2len.json lacks": 1,
    }
    assert found("txt2img", lambda t: t.update({"0en": "1.npz"})) == {
        "captions of img2txts.json that txt2img.json gives to another picture": 1,
        "pictures that disagree with txt2img.json": 1,
    }
    assert found("img2txts", lambda t: t.update({"x.npz": []})) == {"pictures of img2txts.json without captions": 1}
    assert found("img2txts", lambda t: t.pop("3.npz")) == {"captions that img2txts.json lacks": 2}
    assert found("img2txts", lambda t: t["3.npz"].append("3en")) == {"captions that img2txts.json lists twice": 1}
    assert found("txt2lang", lambda t: t.update({"0en": "de"})) == {"languages that disagree with txt2lang.json": 1}
    assert found("meta", lambda t: t.pop("CLS")) == {"settings that meta.json lacks": 1}
    assert found("meta", lambda t: t.update(v_range=[3, 3])) == {"a bad v_range in meta.json": 1}
    assert not found("meta", lambda t: (t.update(v_range=[900, 2**31]), t.pop("UNK", None)))  # and takes no time
    assert found("meta", lambda t: t.update(v_range=[4, 9])) == {
        "special tokens inside v_range, drawn as random words": 1
    }
    assert problems(folder) == {}


def test_damaged_page_costs_only_what_it_held(tmp_path):
    """LMDB ends the transaction that meets such a page; the pictures on other pages are still read."""
    with RegionWriter(tmp_path) as writer:
        for i in range(20):
            writer.add(f"{i}.npz", Regions(**make_arrays(i, dim=512)))  # 12 kB: pages of its own for each
    path = tmp_path / FOLDER / "data.mdb"
    content = path.read_bytes()
    page = content.index(make_arrays(4, dim=512)["features"].tobytes()) // 4096
    path.write_bytes(content[: page * 4096] + b"\xff" * 4096 + content[(page + 1) * 4096 :])
    (report,) = inspect(tmp_path).values()
    assert report.problems.counts["records that cannot be read"] == 1
    assert report.histograms["boxes used"].total() == 19
