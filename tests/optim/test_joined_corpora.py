"""Databases that are trained on together: drawn as one, validated as one, with words of one tokenizer."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import pretrain
import train_itm
from configs import cli
from data.batches.pairs import check_languages, open_pairs
from data.captions.db import CaptionDB
from data.errors import BadInput
from data.regions.db import BoxOptions
from model.distributed import Ranks
from model.evaluation.split import EvalConfig, open_split
from model.initial import check_same_tokenizer
from optim.tasks.pretraining import Pretraining
from optim.tasks.retrieval import Retrieval

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
        fixed = ["--config", small_world / "pretrain.yaml", "--config", path, "--out", tmp_path / "run"]
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


@pytest.fixture(scope="module")
def other_words(small_world, tmp_path_factory, command):
    """db/train and db/val built with a tokenizer of as many word pieces, whose ids are others."""
    root = tmp_path_factory.mktemp("other_words")
    words = (small_world / "tokenizer/vocab.txt").read_text(encoding="utf-8").splitlines()
    first = words.index("[MASK]") + 1
    (root / "vocab.txt").write_text("\n".join([*words[:first], *words[:first - 1:-1]]), encoding="utf-8")
    built = ["--annotations", small_world / "captions.jsonl", "--tokenizer", root / "vocab.txt", "--out", root]
    command("scripts/build_captions.py", *built, "--languages", "en")
    return root


@pytest.mark.parametrize("key", ["captions", "val_captions"])
def test_captions_of_pretraining_with_another_tokenizer_are_refused(recipe, other_words, key):
    others = str(other_words / ("val" if key == "val_captions" else "train"))
    for corpus in (JOINED | {key: others}, JOINED | {key: ["db/train", others]}):
        config = cli.parse(pretrain.PretrainConfig, recipe(corpus))
        if corpus[key] == others and key == "captions":
            config.data.append(dataclasses.replace(config.data[0], name="german", captions=["db_de/train"]))
        with pytest.raises(BadInput, match=r"was built with another tokenizer than .*: their vocabularies differ"):
            Pretraining(config, torch.device("cpu"), Ranks())


@pytest.mark.parametrize("key", ["train_captions", "val_captions"])
def test_captions_of_finetuning_with_another_tokenizer_are_refused(small_world, other_words, tmp_path, key):
    others = {"train_captions": ["db/train", str(other_words / "train")], "val_captions": [str(other_words / "val")]}[key]
    words = ["--config", small_world / "finetune.yaml", f"--{key.replace('_', '-')}", *others, "--out", tmp_path / "run"]
    config = cli.parse(train_itm.CONFIGS, [*map(str, words), "--model.hidden-size", "32", "--model.num-attention-heads", "2"])
    with pytest.raises(BadInput, match=r"was built with another tokenizer than .*: their vocabularies differ"):
        Retrieval(config, torch.device("cpu"), Ranks())


def test_a_pretrained_text_tower_of_another_tokenizer_is_refused(small_world, other_words, tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/vocab.txt").write_bytes((other_words / "vocab.txt").read_bytes())
    captions = CaptionDB(small_world / "db/train")
    with pytest.raises(BadInput, match=r"not the tokenizer of .*bert: their vocabularies differ; build the captions with .*bert"):
        check_same_tokenizer(tmp_path / "bert", captions)
    (tmp_path / "bert/vocab.txt").write_bytes((small_world / "tokenizer/vocab.txt").read_bytes())
    check_same_tokenizer(tmp_path / "bert", captions)


@pytest.mark.parametrize(("languages", "absent"), [(["en", "no"], "no"), (["xx", "de", "fr"], "xx and of fr")])
def test_languages_that_no_database_has_are_refused_not_passed_over(small_world, languages, absent, tmp_path):
    message = rf"db/\w+: no caption of language {absent}, found de, en; "
    words = ["--config", small_world / "finetune.yaml", "--out", tmp_path / "run", "--data-root", small_world]
    config = cli.parse(train_itm.CONFIGS, [*map(str, words), "--languages", *languages])
    with pytest.raises(BadInput, match=message):
        Retrieval(config, torch.device("cpu"), Ranks())
    config = EvalConfig(
        checkpoint=str(tmp_path), captions=str(small_world / "db/test"), regions=str(small_world / "regions"), languages=languages
    )
    with pytest.raises(BadInput, match=message):
        open_split(config)
    root = {"root": str(small_world)}
    joined = open_pairs(["db/train", "db_de/train"], "regions", BoxOptions(), languages=["de"], **root)
    check_languages(joined, ["de"])  # of one of them is enough
