"""Commands that write, killed before each of their changes in turn: the same command ends with the uninterrupted one's files."""

from __future__ import annotations

import json
import os
import signal
import zipfile
from pathlib import Path

import pytest

import eval_itm
from configs import cli
from data.annotations.records import Caption
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.downloads.archives import unpack_archive
from data.errors import BadInput
from data.regions.db import RegionDB
from model.bi_encoder import LightningDOT
from model.evaluation.settings import EvalConfig
from model.uniter import Reranker, UniterConfig
from scripts import (
    build_captions,
    build_index,
    convert_checkpoint,
    extract_regions,
    make_scenes,
    prepare,
    score_pairs,
    train_tokenizer,
)
from tests.kill_points import assert_goes_on, run_killed, tree
from tests.tiny_world import EXTRACTION, make_tiny_world


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world")
    make_tiny_world(root)
    return root


def extraction(root: Path) -> list[str]:
    return ["--photos", str(root / "photos"), *EXTRACTION]


def test_build_captions(world, tmp_path):
    words = ["--annotations", str(world / "captions.jsonl"), "--tokenizer", str(world / "vocab.txt"), "--out", str(tmp_path / "db")]
    options = cli.parse(build_captions.Options, words)
    assert assert_goes_on(lambda: build_captions.main(options), tmp_path / "db", every=5) > 20


def test_build_captions_over_former_databases(world, tmp_path):
    words = ["--annotations", str(world / "captions.jsonl"), "--tokenizer", str(world / "vocab.txt"), "--out", str(tmp_path / "db")]
    options = cli.parse(build_captions.Options, [*words, "--splits", "train"])
    former = [Caption("9.jpg", "a blue cat", "9#0", "train", "en")]
    tokenizer = CaptionTokenizer.from_pretrained(world / "vocab.txt")

    def before() -> None:
        write_caption_db(tmp_path / "db" / "train", former, tokenizer, ["former"])

    assert_goes_on(lambda: build_captions.main(options), tmp_path / "db", before, every=3)


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_extract_regions(world, tmp_path, more):
    options = cli.parse(extract_regions.Options, [*extraction(world), "--out", str(tmp_path / "db"), *more])

    def before() -> None:
        if "--overwrite" in more:
            former = cli.parse(extract_regions.Options, [*extraction(world), "--out", str(tmp_path / "db"), "--seed", "1"])
            run_killed(lambda: extract_regions.main(former), tmp_path / "db", None)

    assert_goes_on(lambda: extract_regions.main(options), tmp_path / "db", before, every=5 if more else 1)


def test_a_finished_extraction_that_is_started_again_and_killed_stays_as_it_is(world, tmp_path):
    options = cli.parse(extract_regions.Options, [*extraction(world), "--out", str(tmp_path / "db")])

    def again() -> None:
        with pytest.raises(BadInput, match="exists already"):
            extract_regions.main(options)

    run_killed(lambda: extract_regions.main(options), tmp_path / "db", None)
    whole, number = tree(tmp_path / "db"), 0
    while run_killed(again, tmp_path / "db", number):
        assert tree(tmp_path / "db") == whole
        number += 1
    assert number and tree(tmp_path / "db") == whole and len(RegionDB(tmp_path / "db")) == 6


@pytest.mark.parametrize("is_there", [False, True])
def test_build_index(world, tmp_path, is_there):
    words = ["--checkpoint", str(world / "model"), "--regions", str(world / "regions"), "--device", "cpu", "--workers", "0"]
    options = cli.parse(build_index.Options, [*words, "--out", str(tmp_path / "index")])

    def before() -> None:
        if is_there:
            run_killed(lambda: build_index.main(options), tmp_path / "index", None)

    assert_goes_on(lambda: build_index.main(options), tmp_path / "index", before)


def test_eval_itm_with_the_index_that_it_builds(world, tmp_path):
    words = ["--checkpoint", str(world / "model"), "--captions", str(world / "db/val"), "--regions", str(world / "regions"), "--device", "cpu"]
    options = cli.parse(EvalConfig, [*words, "--workers", "0", "--bootstrap", "0", "--output-dir", str(tmp_path / "eval")])
    assert assert_goes_on(lambda: eval_itm.main(options), tmp_path / "eval", every=3) > 20


def test_score_pairs(world, tmp_path):
    sizes = LightningDOT.from_pretrained(world / "model").config.txt
    Reranker(UniterConfig(sizes, 16, 5)).save_pretrained(world / "uniter")
    words = ["--reranker", str(world / "uniter"), "--checkpoint", str(world / "model"), "--captions", str(world / "db/val"), "--top", "2"]
    options = cli.parse(score_pairs.Options, [*words, "--regions", str(world / "regions"), "--device", "cpu", "--out", str(tmp_path / "scores.npz")])
    assert_goes_on(lambda: score_pairs.main(options), tmp_path / "scores.npz")


def test_train_tokenizer(world, tmp_path):
    words = ["--annotations", str(world / "captions.jsonl"), "--vocab-size", "90", "--out", str(tmp_path / "tokenizer")]
    options = cli.parse(train_tokenizer.Options, words)
    assert_goes_on(lambda: train_tokenizer.main(options), tmp_path / "tokenizer")


def test_make_scenes(tmp_path):
    words = ["--out", str(tmp_path / "world"), "--train", "2", "--val", "1", "--test", "1", "--size", "32", "--workers", "1"]
    options = cli.parse(make_scenes.Options, words)
    assert_goes_on(lambda: make_scenes.main(options), tmp_path / "world")


def test_convert_checkpoint(world, tmp_path):
    options = cli.parse(convert_checkpoint.Options, [str(world / "model"), str(tmp_path / "model.pt"), "--to", "original"], ("src", "dst"))

    def main() -> None:
        if not (tmp_path / "model.pt").exists():  # what is whole is not written again
            convert_checkpoint.main(options)

    assert_goes_on(main, tmp_path / "model.pt", every=2)
    heads = ["--text-config", str(tmp_path / "heads.json"), "--image-config", str(tmp_path / "heads.json"), "--cls-token-id", "2"]
    (tmp_path / "heads.json").write_text('{"num_attention_heads": 2}')
    back = cli.parse(convert_checkpoint.Options, [str(tmp_path / "model.pt"), str(tmp_path / "ours"), *heads], ("src", "dst"))

    def main_back() -> None:
        if not (tmp_path / "ours").exists():
            convert_checkpoint.main(back)

    assert_goes_on(main_back, tmp_path / "ours", every=3)


def test_unpacking(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in ("a.txt", "folder/b.txt", "folder/c.txt"):
            archive.writestr(name, name)
    assert_goes_on(lambda: print(unpack_archive(tmp_path / "a.zip", tmp_path / "content")), tmp_path / "content")


def test_prepare_goes_on_with_an_extraction_that_was_killed(world, tmp_path, capfd):
    """Its own command stands in for it: what prepare.py starts, killed before its last photograph is stored."""
    out = tmp_path / "own"
    options = cli.parse(extract_regions.Options, [*extraction(world), "--out", str(out / "regions")])

    def killed() -> None:
        add, seen = extract_regions.Extraction._add, []

        def add_some(self, *record):
            add(self, *record)
            self._writer._commit()
            seen.append(record)
            if len(seen) == 3:
                os.kill(os.getpid(), signal.SIGKILL)

        extract_regions.Extraction._add = add_some
        extract_regions.main(options)

    out.mkdir()
    assert run_killed(killed, out, None) and (out / "regions" / "feat_th0.2_max100_min10.partial" / "data.mdb").is_file()
    words = ["--photos", str(world / "photos"), "--captions", str(world / "captions.jsonl"), "--out", str(out), "--vocab-size", "90"]
    words += ["--extractor", "random-conv", "--extract", "feature-dim=16", "num-labels=5", "size=32", "workers=0"]
    prepare.main(cli.parse(prepare.Options, words))
    assert "3 of them were there from an earlier run" in capfd.readouterr().out
    assert len(RegionDB(out / "regions")) == 6 and len(CaptionDB(out / "db" / "train")) == 8
    assert list(json.loads((out / "regions" / "report.json").read_text())["bad_photos"]) == [str(world / "photos" / "broken.jpg")]


def die(job: object) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return str(job)


def test_a_killed_worker_of_make_scenes_is_one_line(capsys):
    with pytest.raises(BadInput, match="a worker process died, perhaps out of memory"):
        make_scenes.render_in_workers(die, [(0, "train"), (1, "train")], 2)
