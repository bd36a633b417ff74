"""scripts/bench_versions.py measures two versions in turns; here this one against itself, the numbers are not asserted."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from configs import cli
from data.errors import BadInput
from scripts import bench_versions
from scripts.benchmarking.lengths import box_counts, caption_lengths

ROOT = Path(__file__).resolve().parents[2]
TINY = "--hidden-size 16 --num-hidden-layers 1 --num-attention-heads 2 --intermediate-size 16 --batch 4 --budget 200".split()
FEW = "--images 6 --captions 8 --top 3 --rounds 2 --seconds 0 --threads 1 --precision fp32 --boxes 10-100".split()


def test_every_case_is_measured_in_both_versions(tmp_path, capsys):
    words = ["--other", str(ROOT), "--out", str(tmp_path / "versions.json"), *TINY, *FEW]
    bench_versions.main(cli.parse(bench_versions.Options, words))
    rows, shown = json.loads((tmp_path / "versions.json").read_text())["rows"], capsys.readouterr().out
    assert [name.split()[0] for name in rows] == list(get_args(bench_versions.Case))
    for name, row in rows.items():
        assert name in shown and row["faster"]["min"] > 0
        assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in row["seconds_per_item"].values())


def test_what_is_no_version_is_refused(tmp_path):
    for words, message in (([str(tmp_path)], "is no working tree of this project"), ([str(ROOT), "--cases", "tea"], "cases: expected "),
                           ([str(ROOT), "--boxes", "flickr"], "boxes"), ([str(ROOT), "--rounds", "0"], "rounds must be at least 1")):
        with pytest.raises(BadInput, match=message):
            cli.parse(bench_versions.Options, ["--other", *words])


def test_lengths_are_those_of_the_data():
    rng = np.random.default_rng(0)
    assert caption_lengths(9000, rng).mean() == pytest.approx(14.3, abs=0.2)
    assert box_counts("flickr8k", 9000, rng).mean() == pytest.approx(13.8, abs=0.1)
    counts = box_counts("10-100", 9000, rng)
    assert counts.mean() == pytest.approx(36, abs=1) and 10 <= counts.min() and 90 < counts.max() <= 100
