"""inspect_db: what it says of each kind of database, what it prints of damage, workers, the report."""

import json
import os
import shutil
from pathlib import Path

import lz4.frame
import msgpack
import numpy as np
import pytest

from configs import cli
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.index.writer import IndexWriter
from data.regions.codec import encode_compressed, encode_plain
from data.regions.db import BoxOptions
from scripts import inspect_db
from tests.data.checks.test_inspection import FOLDER, NBB, inspect, problems, replace, write_captions, write_images
from tests.data.checks.test_records import changed, make_arrays

GOLDEN = Path(__file__).parents[1] / "fixtures" / "uniter_db"


def run(capsys, path, *words, wrong=None):
    """What is printed; with `wrong`, the final line must match it."""
    options = cli.parse(inspect_db.Options, [str(path), *map(str, words)], ("path",))
    if wrong is None:
        inspect_db.main(options)
    else:
        with pytest.raises(BadInput, match=wrong):
            inspect_db.main(options)
    return capsys.readouterr().out


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
def test_image_db(tmp_path, capsys, compressed):
    write_images(tmp_path, compressed=compressed)
    folder = tmp_path / (FOLDER + "_compressed" * compressed)
    for path in (tmp_path, folder):
        out = run(capsys, path, "--first", 2)
        assert f"{folder}: image DB" in out and "nothing is wrong" in out
        assert f"layout          {'compressed (npz)' if compressed else 'plain (msgpack)'}" in out
        assert "records         20\n" in out and "feature width   8\n" in out and "soft labels     5\n" in out
        assert "confidence above 0.2, at least 10, at most 100" in out and "extractor       not said\n" in out
        assert "0.npz: 10 of 10 boxes; first: confidence" in out and "1.npz: 10 of 11" in out and "2.npz: " not in out
    counts = list(json.loads((tmp_path / NBB).read_text()).values())
    (report,) = inspect(tmp_path).values()
    assert sorted(report.histograms["boxes used"].elements()) == sorted(counts)
    mean = np.mean(counts)
    assert f"boxes used: min {min(counts)}, mean {mean:.1f}, max {max(counts)}" in out
    made_by = {"name": "random-conv", "options": {"seed": 3}, "weights": "0"}
    (folder / "extractor.json").write_text(json.dumps(made_by))
    assert "extractor       random-conv --seed 3\n" in run(capsys, tmp_path)
    (folder / "extractor.json").write_text("{")
    assert "a bad extractor.json" in run(capsys, tmp_path, wrong="problem")


def test_several_layouts_and_a_folder_of_another_name(tmp_path, capsys):
    write_images(tmp_path)
    write_images(tmp_path, compressed=True)
    write_images(tmp_path, boxes=BoxOptions(-1, num_bb=10))
    shutil.copytree(tmp_path / FOLDER, tmp_path / f"{FOLDER}.partial")
    reports = inspect(tmp_path)
    assert list(reports) == ["feat_numbb10", FOLDER, f"{FOLDER}_compressed"]
    assert reports["feat_numbb10"].facts["boxes used"] == "the first 10"
    out = run(capsys, tmp_path)
    assert "note: folders of another name, not read: 1" in out and out.count("nothing is wrong") == 3


def test_text_db(tmp_path, capsys):
    folder = write_captions(tmp_path / "db")
    out = run(capsys, folder, "--verify", "--workers", 0)
    assert f"{folder}: text DB" in out and "nothing is wrong\n" in out
    assert "languages       en 20, de 20\n" in out and "records         40\n" in out and "tokenizer       stored" in out
    assert "special ids     PAD 0, UNK 1, CLS 2, SEP 3, MASK 4\n" in out and "v_range [5, 10]" in out
    assert "captions of a picture: min 2, mean 2.0, max 2" in out and "word pieces of a caption: min 3" in out
    assert "0en [en] 0.npz: a big dog" in out and "unknown pieces  20 of 120 read" in out


def test_text_db_of_uniter(capsys):
    out = run(capsys, GOLDEN / "txt")
    assert "languages       not stored" in out and "tokenizer       not stored" in out and "nothing is wrong" in out
    assert "word pieces of a caption: min 5, mean 11.4, max 17" in out and "records         120" in out


def test_text_db_against_images(tmp_path, capsys):
    folder = write_captions(tmp_path / "db")
    write_images(tmp_path / "img", pictures=21)
    for regions in (tmp_path / "img", tmp_path / "img" / FOLDER):
        out = run(capsys, folder, "--regions", regions)
        assert "20 of 20 in" in out and f"note: pictures of {regions} without captions here: 1\n    20.npz" in out
    write_images(tmp_path / "img", pictures=18)
    with pytest.raises(BadInput, match=r"img: found image DB, but --regions is for a text DB"):
        run(capsys, tmp_path / "img", "--regions", tmp_path / "img")
    out = run(capsys, folder, "--regions", tmp_path / "img", wrong="4 problems .captions whose picture is not in ")
    assert "db: caption '18en' is about '18.npz'" in out


def test_feature_index(tmp_path, capsys):
    vectors = np.random.default_rng(0).normal(size=(600, 6)).astype(np.float32)
    vectors[7] = vectors[3]
    with IndexWriter(tmp_path / "index", "img", 6, "model1", "data1") as writer:
        writer.add([f"{i}.npz" for i in range(600)], vectors)
    out = run(capsys, tmp_path / "index", "--verify", "--workers", 0)
    assert "feature index of images" in out and "count           600\n" in out and "model           model1\n" in out
    assert "note: ids with equal vectors: 1\n    3.npz and 7.npz" in out and "nothing is wrong\n" in out
    assert "nothing is wrong with what was read" in run(capsys, tmp_path / "index")
    block = vectors.copy()
    block[5, 2] = np.nan
    block[6] = 0
    replace(tmp_path / "index", {"vec/00000000": block.tobytes(), "row/9.npz": (3).to_bytes(8, "little")})
    unread = {"blocks that are not what was written": 1, "rows that cannot be read": 600}
    assert problems(tmp_path / "index", verify=True, workers=0) == unread
    header = {name: value for name, value in EmbeddingIndex(tmp_path / "index").header.items() if name != "checksums"}
    replace(tmp_path / "index", {"crc/00000000": None, "crc/header": None, "header": json.dumps(header).encode()})  # an index of before
    assert problems(tmp_path / "index", verify=True, workers=0) == {
        "vectors with NaN or infinity": 1,
        "vectors that are all zero": 1,
        "ids that lead to another row": 1,
    }
    replace(tmp_path / "index", {"row/600.npz": b"x" * 100_000})
    assert problems(tmp_path / "index", verify=True, workers=0)["records of rows that are not one an id"] == 1
    replace(tmp_path / "index", {"row/9.npz": b"x" * 100_000})
    assert problems(tmp_path / "index", verify=True, workers=0)["ids that lead to another row"] == 1
    replace(tmp_path / "index", {"vec/00000000": None, "row/600.npz": None})
    assert problems(tmp_path / "index", verify=True, workers=0) == {"rows that cannot be read": 600}


@pytest.mark.parametrize("encode", [encode_plain, encode_compressed], ids=["plain", "compressed"])
def test_damaged_and_bad_pictures_are_reported(tmp_path, capsys, encode):
    write_images(tmp_path, compressed=encode is encode_compressed)
    folder = next(tmp_path.glob("feat*"))
    bad = {"0.npz": b"", "5.npz": encode(changed("features", 0, np.nan)), "6.npz": encode(make_arrays(7, rows=13))}
    replace(folder, bad | {"8.npz": None, "x.npz": encode(make_arrays(99))})
    counts = json.loads((tmp_path / NBB).read_text())
    counts |= {"9.npz": counts["9.npz"] + 1, "ghost.npz": 10, "10.npz": "ten", "6.npz": counts["7.npz"]}
    counts["5.npz"] = int(np.clip((make_arrays(0)["conf"] > 0.2).sum(), 10, 100))
    (tmp_path / NBB).write_text(json.dumps({key: n for key, n in counts.items() if key != "11.npz"}))
    json_file = tmp_path / "report.json"
    out = run(
        capsys, tmp_path, "--json", json_file, wrong=rf"^{tmp_path}: \d+ problems \(keys of __keys__ that are not"
    )
    assert "0.npz: damaged" in out and "feature width   8\n" in out
    assert f"{folder}: key '0.npz' is damaged" in out and f"{folder.name}: key '5.npz': 8 of 96 values" in out
    (report,) = json.loads(json_file.read_text())["databases"]
    assert {kind: found["count"] for kind, found in report["problems"].items()} == {
        "keys of __keys__ that are not stored": 1,
        "stored keys that __keys__ lacks": 1,
        "box counts that are no positive number": 1,
        "keys that the nbb file lacks": 1,
        "keys of the nbb file that are not stored": 2,
        "records that cannot be read": 1,
        "NaN or infinity in features": 1,
        "box counts that disagree with the stored confidences": 1,
        "pictures with equal features": 1,
    }
    assert report["problems"]["pictures with equal features"]["examples"] == ["6.npz and 7.npz"]
    assert sum(report["histograms"]["boxes used"].values()) == 18  # 19 stored and listed, one of them damaged


def test_damaged_captions_and_equal_ones(tmp_path, capsys):
    folder = write_captions(tmp_path / "db")
    same = {"input_ids": [5, 6, 8], "img_fname": "3.npz"}
    bad = {"input_ids": "words", "img_fname": "4.npz"}
    values = {key: lz4.frame.compress(msgpack.packb(record)) for key, record in {"3de": same, "4de": bad}.items()}
    replace(folder, values | {"0en": b"no lz4"})
    out = run(capsys, folder, wrong=rf"^{folder}: 2 problems \(records that cannot be read\)$")
    assert (
        "0en: damaged" in out and f"{folder}: caption '0en' is damaged" in out and "db: caption '4de' is damaged" in out
    )
    assert "note: captions of one picture with equal words: 1\n    3de and 3en" in out


def test_one_clear_line_for_missing_and_truncated_files(tmp_path, command):
    folder = write_captions(tmp_path / "db")
    (folder / "img2txts.json").rename(tmp_path / "kept.json")
    done = command("scripts/inspect_db.py", folder, status=2)
    assert done.stderr.startswith(f"error: {folder}/img2txts.json: cannot be read") and done.stderr.count("\n") == 1
    write_images(tmp_path / "img")
    path = tmp_path / "img" / FOLDER / "data.mdb"
    os.truncate(path, path.stat().st_size - 4096)
    done = command("scripts/inspect_db.py", tmp_path / "img", status=2)
    assert f"error: {path}: truncated" in done.stderr and done.stderr.count("\n") == 1


def test_sample_or_everything_in_many_processes(tmp_path, command):
    write_images(tmp_path, pictures=600)
    replace(
        tmp_path / FOLDER, {"7.npz": b"damaged", "577.npz": b"", "599.npz": encode_plain(changed("conf", 0, np.inf))}
    )
    for words in (["--workers", 2], ["--workers", 0]):
        json_file = tmp_path / "report.json"
        done = command("scripts/inspect_db.py", tmp_path, "--verify", *words, "--json", json_file, status=2)
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"error: {tmp_path}: ")
        content = json.loads(json_file.read_text())
        report = content["databases"][0]
        assert content["verify"] is True and report["facts"]["records read"] == "all"
        assert report["problems"]["records that cannot be read"]["count"] == 2
        assert report["problems"]["NaN or infinity in conf"]["count"] == 1
        if words[1] == 2:
            first = report
    assert report == first
    assert inspect(tmp_path)[FOLDER].facts["records read"] == "200 of 600; --verify reads all"
