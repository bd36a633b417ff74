"""The benchmark runs every kind of case and writes what it says; times themselves are not asserted."""

import json

import pytest
import torch

from configs import cli
from data.errors import BadInput
from model import costs
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.objectives import OBJECTIVES
from model.objectives.heads import PretrainingHeads
from model.transformer import EncoderConfig
from scripts import bench_train
from scripts.benchmarking.random_batches import random_batch

SIZES = {
    "vocab_size": 1100,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "deeper" / "train.json"
    words = [
        f"--{name}={value}" for name, value in (SIZES | {"feature_dim": 12, "num_labels": 7, "project_dim": 8}).items()
    ]
    words += ["--batch", "2", "4", "--precision", "fp32", "bf16", "--grad-cache", "0", "2", "--rounds", "2"]
    words += ["--seconds", "0.001", "--words", "5", "--regions", "6", "--out", str(out)]
    before = torch.get_num_threads()
    bench_train.main(cli.parse(bench_train.Options, words))
    torch.set_num_threads(before)
    return json.loads(out.read_text())


def test_every_case_is_measured_in_every_round(results):
    rows = results["rows"]
    assert len(rows) == (4 + 2) * 2 * 2  # cmr with and without the cache, and four more objectives
    assert {row["task"] for row in rows} == {"cmr", "vmlm", "mrfr", "mrckl", "mrc"}
    for row in rows:
        each = row["seconds_per_step"]
        assert 0 < each["min"] <= each["median"] <= each["max"]
        assert row["pairs_per_s"] == pytest.approx(row["batch"] / each["median"])
        assert row["tokens_per_s"] == pytest.approx(row["pairs_per_s"] * (7 + 7))  # [CLS] of both, and [SEP]
        assert row["peak_memory_gib"] > 0 and row["share_waiting_for_gradients"] == 0  # one rank
    assert results["peak_tflops"].keys() == {"fp32", "bf16"}
    assert results["environment"]["versions"]["torch"] and results["ranks"] == 1 and results["device"]


def test_share_of_peak_goes_by_the_operations_of_a_step(results):
    config = LightningDOTConfig(EncoderConfig(**SIZES), EncoderConfig(**SIZES), 8, 12, 7)
    for row in results["rows"]:
        load = costs.Load(row["batch"], 5, 6, grad_cache=row["grad_cache"], low_precision=row["precision"] != "fp32")
        model, heads = LightningDOT(config), PretrainingHeads(config)
        flops = sum(costs.step_flops(OBJECTIVES[row["task"]]().work(model, heads, load)).values())
        assert row["flops_per_step_and_rank"] == pytest.approx(flops)
        peak = results["peak_tflops"][row["precision"]]["median"] * 1e12
        assert row["share_of_peak"] == pytest.approx(flops / row["seconds_per_step"]["median"] / peak)


def test_every_objective_has_something_to_predict():
    options = bench_train.Options(batch=[3], words=4, regions=5, feature_dim=6, num_labels=3)
    for task in options.tasks:
        batch = random_batch(options, task, 3, torch.device("cpu"))
        assert OBJECTIVES[task]().num_predictions(batch) >= 3


def test_unknown_tasks_are_refused():
    with pytest.raises(BadInput, match="unknown task 'itm'"):
        bench_train.Options(tasks=["itm"])


@pytest.mark.parametrize("sizes, message", [({"vocab_size": 500}, "found 500, expected more than 1000"), ({"regions": 0}, "^regions: found 0"), ({"batch": []}, "^batch: found none")])
def test_sizes_that_give_no_batch_are_refused(sizes, message):
    with pytest.raises(BadInput, match=message):
        bench_train.Options(**sizes)
