"""Size and passes of each corpus on paper."""

from pathlib import Path

import pytest

import train_itm
from configs import cli
from data.errors import BadInput
from data.regions.db import BoxOptions
from data.regions.disk_size import region_bytes, size_of_regions
from optim.data_plan import Widths, data_lines, plan_data
from optim.tasks.pretraining import PretrainConfig

ROOT = Path(__file__).resolve().parents[2]
WIDTHS = Widths(36, 2048, 1601)


@pytest.fixture
def recipe(small_world):
    return cli.parse(PretrainConfig, ["--config", str(small_world / "pretrain.yaml"), "--out", "x"])


def test_databases_that_are_there_say_it(small_world, recipe):
    plan = plan_data(recipe, [], 7000, WIDTHS)
    scenes, german = plan["scenes"], plan["german"]
    assert scenes["images"] == german["images"] == 24 and scenes["captions"] > german["captions"] >= 24
    size = size_of_regions(small_world / "regions", BoxOptions())
    captions = sum(path.stat().st_size for path in (small_world / "db/train").iterdir() if path.is_file())
    assert scenes["bytes"] == size.bytes + captions and scenes["soft_labels"] == size.soft_labels > 0 and not scenes["on_paper"]
    assert sorted(scenes["read_soft_labels"]) == ["mrc", "mrckl"] and german["read_soft_labels"] == []
    assert scenes["passes"] == pytest.approx(7000 * 6 / 7 / scenes["captions"]) and german["passes"] == pytest.approx(1000 / german["captions"])
    text = "\n".join(data_lines(plan))
    assert "no objective reads the soft labels of german: scripts/extract_regions.py --soft-labels none" in text and "*" not in text


def test_databases_that_are_not_are_told_or_unknown():
    recipe = cli.parse(PretrainConfig, ["--config", str(ROOT / "configs/pretrain/paper.yaml")])
    plan = plan_data(recipe, ["sbu=990000/980000"], 1e6, WIDTHS)
    paper = region_bytes(980_000, 36, 2048, 1601)
    assert (plan["sbu"]["bytes"], plan["sbu"]["soft_labels"], plan["sbu"]["on_paper"]) == (paper.bytes, paper.soft_labels, True)
    assert plan["vg"] == {
        "captions": None, "images": None, "passes": None, "bytes": None, "soft_labels": None, "read_soft_labels": ["mrckl"],
        "on_paper": False,
    }  # fmt: skip
    lines = data_lines(plan)
    assert next(line for line in lines if line.startswith("sbu")).split()[:3] == ["sbu", "990,000", "980,000"]
    assert next(line for line in lines if line.startswith("vg")).split() == ["vg", *"?????"]
    assert any(line.startswith("* on paper") for line in lines) and any("--counts NAME=CAPTIONS/IMAGES" in line for line in lines)


def test_a_fine_tuning_has_one_corpus_whose_labels_nothing_reads():
    recipe = cli.parse(train_itm.CONFIGS, ["--config", str(ROOT / "configs/finetune/flickr30k.yaml")])
    found = plan_data(recipe, [], 145_000 * 15, WIDTHS, captions=145_000)["train"]
    assert (found["captions"], found["images"], found["passes"], found["bytes"]) == (145_000, None, 15, None)
    plan = plan_data(recipe, ["train=145000/29000"], 145_000 * 15, WIDTHS)
    assert plan["train"]["bytes"] > 29_000 * 36 * 2 * (2048 + 1601)
    assert "no objective reads the soft labels of train" in data_lines(plan)[-1]


@pytest.mark.parametrize(
    ("word", "message"),
    [("sbu=3", "counts: found 'sbu=3', expected NAME=CAPTIONS/IMAGES"), (f"sbu=1/{'9' * 400}", "counts: found 'sbu=1/9+', expected NAME=CAPTIONS/IMAGES"), ("cc=3/2", "counts: found cc, the recipe has coco_train, coco_restval")],
)
def test_impossible_counts_are_refused(word, message):
    recipe = cli.parse(PretrainConfig, ["--config", str(ROOT / "configs/pretrain/paper.yaml")])
    with pytest.raises(BadInput, match=message):
        plan_data(recipe, [word], 1, WIDTHS)
