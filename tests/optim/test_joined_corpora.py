"""A corpus of pre-training that is several databases: drawn as one, validated as one."""

import json

import numpy as np
import pytest
import torch

import pretrain
from configs import cli
from data.batches.pairs import open_pairs
from data.errors import BadInput
from data.regions.db import BoxOptions
from model.distributed import Ranks
from optim.tasks.pretraining import Pretraining

JOINED = {
    "name": "scenes", "captions": ["db/train", "db_de/train"], "regions": "regions",
    "val_captions": ["db/val", "db/test"], "tasks": {"cmr": 1},
}  # fmt: skip


@pytest.fixture
def recipe(small_world, tmp_path):
    """Words of ``pretrain.py`` for a run on this corpus."""

    def words(corpus):
        path = tmp_path / "data.yaml"
        path.write_text(json.dumps({"data": [corpus]}))
        fixed = ["--config", small_world / "pretrain.yaml", "--config", path, "--output-dir", tmp_path / "run"]
        return [str(word) for word in (*fixed, "--num-steps", 2, "--valid-every", 2)]

    return words


def test_each_caption_of_all_databases_is_drawn_once_in_a_pass(recipe, small_world):
    task = Pretraining(cli.parse(pretrain.PretrainConfig, recipe(JOINED)), torch.device("cpu"), Ranks())
    root = str(small_world)
    alone = [open_pairs(name, "regions", BoxOptions(), 62, root=root) for name in JOINED["captions"]]
    assert len(task.train[0]) == sum(map(len, alone))
    np.testing.assert_array_equal(task.train[0].txt_lengths, np.concatenate([pairs.txt_lengths for pairs in alone]))
    drawn, draws = [], iter(task.draws)
    while len(drawn) < len(task.train[0]):
        drawn += next(draws).indices.tolist()
    assert sorted(drawn) == list(range(len(task.train[0])))


def test_a_joined_corpus_is_trained_and_validated_by_its_one_name(recipe, tmp_path):
    pretrain.main(cli.parse(pretrain.PretrainConfig, recipe(JOINED)))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {name for line in lines for name in line if name.startswith("val/")} >= {"val/scenes/cmr/loss"}
    assert "val/scenes/cmr/loss" in lines[-1] or "val/scenes/cmr/loss" in lines[-2]


def test_validation_captions_of_several_region_databases_say_theirs(recipe, small_world):
    with pytest.raises(BadInput, match="data scenes: val_regions: say which image DB"):
        cli.parse(pretrain.PretrainConfig, recipe(JOINED | {"regions": ["regions", "regions"]}))
