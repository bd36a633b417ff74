"""The plan of a training run, and the command that prints it."""

import json
import sys
from pathlib import Path

import pytest
import torch

from data.captions.db import CaptionDB
from data.errors import BadInput
from data.regions.db import RegionDB
from model import costs
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.objectives import OBJECTIVES
from model.objectives.heads import PretrainingHeads
from model.objectives.uniter_teacher import UniterTeacher
from model.transformer import EncoderConfig, empty_weights
from model.uniter import Reranker, UniterConfig
from optim.data_plan import stored_sizes
from scripts import plan

ROOT = Path(__file__).resolve().parents[2]
PRETRAIN = "configs/pretrain/photos_small.yaml"
FINETUNE = "configs/finetune/photos_small.yaml"


def plan_of(config: str, **options) -> dict:
    return plan.plan_of(plan.Options(config=str(ROOT / config), **options))


def test_hours_follow_from_the_stated_rate_and_bandwidth():
    found = plan_of(PRETRAIN, gpu="a100-80", count=16, set=["num_steps=300000"])
    assert found["steps"] == 300_000
    seconds = 0.0
    load = costs.Load(2048 // 55, 16, 36, ranks=16, low_precision=True)
    config = LightningDOTConfig(project_dim=384)
    with empty_weights():
        model, heads = LightningDOT(config), PretrainingHeads(config)
    for task, share in {"cmr": 1 / 2, "vmlm": 1 / 4, "mrfr": 1 / 8, "mrckl": 1 / 8}.items():
        works = OBJECTIVES[task]().work(model, heads, load)
        flops = sum(costs.step_flops(works).values())
        sent = sum(costs.exchanged_bytes(works, load).values())
        seconds += share * (flops / (312e12 * 0.35) + sent / 25e9)  # 16 GPUs are two nodes
    assert found["hours"] == pytest.approx(300_000 * seconds / 3600)
    assert found["pairs"] == {"per_rank": 37, "per_step": 37 * 16}


def test_steps_of_fine_tuning_come_from_its_captions(tmp_path):
    assert plan_of(FINETUNE, count=4, captions=1000)["steps"] == 10 * 4  # 64 pairs on each of 4 GPUs
    assert plan_of(FINETUNE, count=4, counts=["train=1000/200"])["steps"] == 10 * 4
    for name, count in (("train", 257), ("restval", 256)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "id2len.json").write_text(json.dumps({str(n): 5 for n in range(count)}))
    where = [f"train_captions={tmp_path}/train"]
    assert plan_of(FINETUNE, count=4, set=where)["steps"] == 10 * 2
    both = [f"train_captions=[{tmp_path}/train, {tmp_path}/restval]"]
    assert plan_of(FINETUNE, count=4, set=both)["steps"] == 10 * 3  # 513 captions


def test_an_image_that_captions_share_is_encoded_once_on_paper_too(tmp_path):
    def flops(**options) -> float:
        return plan_of(FINETUNE, **options)["tasks"]["cmr"]["flops_per_rank"]

    apart, together = flops(captions=1000), flops(captions=1000, set=["captions_together=true"])
    (tmp_path / "train").mkdir()
    for name, count in (("id2len", 1000), ("img2txts", 100)):
        (tmp_path / "train" / f"{name}.json").write_text(json.dumps({str(n): 5 for n in range(count)}))
    ten = flops(set=["captions_together=true", f"train_captions={tmp_path}/train"])
    images = (apart - together) / (1 - 1 / 5)  # five captions an image, where the database is not here
    assert 0.4 * apart < images < 0.9 * apart
    assert ten == pytest.approx(apart - images * (1 - 1 / 10))


def test_sizes_come_from_folders_that_are_there(tmp_path):
    values = {"model_type": "bert", "vocab_size": 77, "hidden_size": 64, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(values))
    folder = [f"model.txt_init={tmp_path}", f"model.img_init={tmp_path}"]
    found = plan_of(PRETRAIN, set=folder)
    assert found["parameters"]["text embeddings"] == (77 + 512 + 2 + 2) * 64
    features = "2,048 numbers of a region's feature, 1,601 classes of regions"
    assert found["notes"] == [f"assumed, since the databases that say it are not here: {features}"]
    absent = plan_of(PRETRAIN, set=["model.txt_init=absent", "model.img_init=absent"], vocab_size=30_000)
    assert absent["notes"][0] == "model.txt: absent is not here; taken as BERT-base with 30,000 words"
    assert absent["parameters"]["text embeddings"] == (30_000 + 512 + 2 + 2) * 768


def test_sizes_of_a_checkpoint(tmp_path):
    torch.manual_seed(0)
    sizes = EncoderConfig(90, 64, 2, 4, 96, max_position_embeddings=40)
    model = LightningDOT(LightningDOTConfig(sizes, sizes, 48, 96, 31))
    model.save_pretrained(tmp_path)
    found = plan_of(FINETUNE, captions=100, set=[f"model.init={tmp_path}"])
    assert sum(found["parameters"].values()) == sum(p.numel() for p in model.parameters())


def test_a_re_ranker_is_planned_as_one(tmp_path):
    recipe = "configs/finetune/uniter_flickr30k.yaml"
    found = plan_of(recipe, captions=145_000)
    assert list(found["tasks"]) == ["ranking"] and found["notes"][0].startswith("model.init: checkpoints/uniter-base is not here")
    assert found["parameters"]["pair blocks"] == 85_054_464 and not any("text" in part for part in found["parameters"])
    sizes = EncoderConfig(90, 64, 2, 4, 96, max_position_embeddings=40)
    reranker = Reranker(UniterConfig(sizes, 96, 31))
    reranker.save_pretrained(tmp_path)
    found = plan_of(recipe, captions=145_000, set=[f"model.init={tmp_path}"])
    assert sum(found["parameters"].values()) == sum(p.numel() for p in reranker.parameters())
    assert found["steps"] == 3 * -(-145_000 // 64)
    works = reranker.work(costs.Load(8, 16, 36, hard_negatives=8, low_precision=True, ranks=8))
    assert found["tasks"]["ranking"]["flops_per_rank"] == sum(costs.step_flops(works).values())


def test_command_prints_and_writes_the_same_plan(tmp_path, monkeypatch, capsys):
    path = tmp_path / "plan.json"
    words = ["--config", str(ROOT / PRETRAIN), "--gpu", "v100-16", "--count", "2", "--set", "precision=fp32"]
    monkeypatch.setattr(sys, "argv", ["plan.py", *words, "tokens_per_batch=51200", "--json", str(path)])
    plan.cli.run(plan.main, plan.Options)
    written = json.loads(path.read_text())
    assert written == plan_of(PRETRAIN, gpu="v100-16", count=2, set=["precision=fp32", "tokens_per_batch=51200"])
    printed = capsys.readouterr().out
    assert f"{written['hours']:.3g} hours" in printed and "on paper" in printed
    assert "more than the 16 GB of one v100-16" in printed


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (PRETRAIN, {"gpu": "t4"}, "t4 has no stated rate in bf16; it has fp32, fp16"),
        (PRETRAIN, {"set": ["tokens_per_bath=3"]}, "did you mean --tokens-per-batch"),
        (PRETRAIN, {"set": ["bf16"]}, "expected name=value, such as precision=bf16, found 'bf16'"),
        (PRETRAIN, {"kind": "finetune"}, "unknown key data"),
        (FINETUNE, {}, "id2len.json: not here.*give --captions"),
        ("configs/absent.yaml", {}, "absent.yaml: cannot read the config"),
        (PRETRAIN, {"count": 0}, "count must be above 0, found 0"),
        (FINETUNE, {"captions": 0}, "captions must be above 0, found 0"),
        (FINETUNE, {"counts": ["train=0/0"]}, "counts: found 'train=0/0', expected NAME=CAPTIONS/IMAGES"),
        (PRETRAIN, {"efficiency": 1.5}, "efficiency must be above 0 and at most 1, found 1.5"),
        (PRETRAIN, {"set": ["model.hidden_size=770"]}, "hidden_size 770 is not a multiple"),
    ],
)
def test_impossible_plans_are_refused(config, options, message):
    with pytest.raises(BadInput, match=message):
        plan_of(config, **options)


def test_every_gpu_has_a_plan():
    for name, gpu in plan.GPUS.items():
        hours = plan_of(PRETRAIN, gpu=name, set=["precision=fp32"])["hours"]
        assert hours > 0 and gpu.outside <= gpu.inside, name


def test_a_teacher_costs_its_forward_pass_and_its_weights():
    plain, taught = (plan_of(PRETRAIN, count=2, set=each) for each in ([], ["teacher.checkpoint=not/there"]))
    assert taught["notes"] == ["teacher.checkpoint: not/there is not here; taken as BERT-base with 28,996 words", *plain["notes"]]
    config = UniterConfig(EncoderConfig())
    with empty_weights():
        teacher = UniterTeacher(config)
    weights = [found["memory_per_rank"]["without_checkpointing"]["weights"] for found in (plain, taught)]
    assert weights[1] - weights[0] == 4 * costs.count(teacher)
    load = costs.Load(plain["pairs"]["per_rank"], 16, 36, ranks=2, low_precision=True)
    blocks = load.rows * teacher.bert.encoder.flops(18 + 36, first_only=False)
    regions = load.rows * 36 * 2 * (2048 + 7) * 768
    more = {task: taught["tasks"][task]["flops_per_rank"] - found["flops_per_rank"] for task, found in plain["tasks"].items()}
    accumulation = plain["settings"]["grad_accumulation"]
    assert more == pytest.approx({"cmr": 0} | dict.fromkeys(("vmlm", "mrfr", "mrckl"), (blocks + regions) * accumulation))
    for task, found in plain["tasks"].items():
        assert taught["tasks"][task]["sent_per_rank"] == found["sent_per_rank"]


@pytest.mark.parametrize("recipe", [PRETRAIN, FINETUNE])
def test_negatives_of_the_own_rank_send_no_embeddings(recipe):
    for negatives, is_sent in (("all_ranks", True), ("own_rank", False)):
        found = plan_of(recipe, count=4, captions=1000 if recipe == FINETUNE else None, set=[f"negatives={negatives}"])["tasks"]["cmr"]["sent_per_rank"]
        assert (found["embeddings"] > 0) == is_sent and found["gradients"] > 0


def test_more_gpus_than_there_are_in_the_world_are_refused():
    with pytest.raises(BadInput, match="expected at most 1,000,000 GPUs, found 1000000000"):
        plan_of(FINETUNE, count=10**400, captions=1000)


def test_sizes_come_from_the_databases_that_are_there(small_world):
    """And are not said to be assumed; what is given goes before them."""
    captions, regions = CaptionDB(small_world / "db/train"), RegionDB(small_world / "regions")
    where = [f"data_root={small_world}", "train_captions=db/train", "train_regions=regions"]
    found = plan_of("configs/finetune/own_small.yaml", set=where)
    assert found["notes"] == []
    assert found["corpora"]["train"]["captions"] == len(captions)
    shape = LightningDOTConfig(feature_dim=regions.feature_dim, num_labels=regions.num_labels)
    assert stored_sizes(plan.read_recipe(plan.Options(str(ROOT / "configs/finetune/own_small.yaml"), set=where))) == {
        "vocab_size": captions.meta["v_range"][1], "feature_dim": shape.feature_dim, "num_labels": shape.num_labels,
    }  # fmt: skip
    larger = plan_of("configs/finetune/own_small.yaml", set=where, feature_dim=regions.feature_dim + 10)
    assert larger["parameters"]["image regions"] > found["parameters"]["image regions"] and larger["notes"] == []
    absent = plan_of("configs/finetune/own_small.yaml", set=[where[0], "train_captions=none", where[2]], captions=100)
    assert absent["notes"] == ["assumed, since the databases that say it are not here: 28,996 words"]
