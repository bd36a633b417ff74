"""The formulas of training's cost against models that are really built, counted and run; the plan made of them."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from data.batches.batch import Batch
from data.errors import BadInput
from model import costs
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.objectives import OBJECTIVES
from model.objectives.base import ObjectiveOptions
from model.objectives.heads import PAPER, PretrainingHeads
from model.transformer import EncoderConfig
from scripts import plan

ROOT = Path(__file__).resolve().parents[2]
WORDS, REGIONS, PAIRS = 9, 20, 4
TXT = EncoderConfig(
    vocab_size=400, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192,
    max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
IMG = dataclasses.replace(TXT, num_hidden_layers=2, intermediate_size=256)
SMALL = LightningDOTConfig(txt=TXT, img=IMG, project_dim=48, feature_dim=96, num_labels=31)


def small_load(**changes) -> costs.Load:
    return costs.Load(PAIRS, WORDS, REGIONS, **changes)


def batch_of(task: str) -> Batch:
    """Four pairs without padding, with exactly the masks that `Load` expects: 1.35 words a text rounded up, 3 regions."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 400, (PAIRS, WORDS + 2), generator=generator)
    labels = torch.full_like(ids, -1)
    labels[:, 1] = 7
    labels[0, 2] = 8  # five in all, 5.4 expected
    masked = torch.zeros(PAIRS, REGIONS, dtype=torch.bool)
    masked[:, :3] = True
    return Batch(
        ids,
        torch.ones_like(ids, dtype=torch.bool),
        torch.rand(PAIRS, REGIONS, 96, generator=generator).half(),
        torch.rand(PAIRS, REGIONS, 7, generator=generator),
        torch.ones(PAIRS, REGIONS, dtype=torch.bool),
        torch.arange(PAIRS),
        [str(n) for n in range(PAIRS)],
        [str(n) for n in range(PAIRS)],
        word_labels=labels,
        masked_regions=masked if task not in ("cmr", "vmlm") else None,
        feature_targets=torch.rand(PAIRS * 3, 96, generator=generator).half(),
        label_targets=torch.rand(PAIRS * 3, 31, generator=generator).softmax(dim=1).half(),
    )


def small_model() -> tuple[LightningDOT, PretrainingHeads]:
    torch.manual_seed(0)
    return LightningDOT(SMALL).train(), PretrainingHeads(SMALL).train()


def loss_of(task: str, model: LightningDOT, heads: PretrainingHeads, batch: Batch, fusion: str = "add") -> torch.Tensor:
    return OBJECTIVES[task](ObjectiveOptions(fusion)).forward(model, heads, batch).mean


BASE = LightningDOTConfig()
ODD = LightningDOTConfig(
    txt=dataclasses.replace(TXT, hidden_size=32), img=IMG, project_dim=48, feature_dim=10, num_labels=0
)


@pytest.mark.parametrize("config", [SMALL, BASE, ODD, dataclasses.replace(SMALL, project_dim=0)])
def test_parameters_of_each_part_are_those_of_the_built_model(config):
    with torch.device("meta"):
        model = LightningDOT(config)
        heads = PretrainingHeads(config) if config is not ODD else None  # its towers are not of one width

    def count(*modules):
        return sum(p.numel() for module in modules if module is not None for p in module.parameters())

    expected = {}
    for side, tower in (("text", model.txt_model), ("image", model.img_model)):
        expected[f"{side} embeddings"] = count(tower.bert.embeddings)
        expected[f"{side} blocks"] = count(tower.bert.encoder)
        expected[f"{side} pooler"] = count(tower.bert.pooler)
        expected[f"{side} projection"] = count(tower.encode_proj)
    expected["image regions"] = count(model.img_model.bert.img_embeddings)
    if heads is not None:
        expected |= {"word head": count(heads.cls), "feature head": count(heads.feat_regress)}
        expected["class head"] = count(heads.region_classifier)
    found = costs.parameters(config, heads=heads is not None)
    assert found == expected
    assert sum(found.values()) == count(model, heads)


def test_base_size_has_the_known_number_of_parameters():
    assert costs.parameters(BASE)["text blocks"] == 85_054_464  # 12 blocks of BERT-base


@pytest.mark.parametrize("fusion", ["add", "none"])
@pytest.mark.parametrize("task", PAPER)
def test_operations_are_those_that_torch_counts(task, fusion):
    model, heads = small_model()
    batch = batch_of(task)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels compute attention once more in backward
        with FlopCounterMode(display=False) as forward:
            loss = loss_of(task, model, heads, batch, fusion)
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    load, training = small_load(), costs.Training(fusion=fusion)
    expected = sum(costs.forward_flops(SMALL, task, load, fusion).values())
    assert forward.get_total_flops() == pytest.approx(expected, rel=0.02)
    both = forward.get_total_flops() + backward.get_total_flops()
    assert both == pytest.approx(sum(costs.step_flops(SMALL, task, load, training).values()), rel=0.02)


def test_operations_of_a_frozen_tower_and_with_checkpointing():
    model, heads = small_model()
    model.freeze(txt=True)
    for tower in (model.txt_model, model.img_model):
        tower.bert.encoder.checkpointing = True
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        loss_of("cmr", model, heads, batch_of("cmr")).backward()
    training = costs.Training(freeze_txt=True, activation_checkpointing=True)
    expected = sum(costs.step_flops(SMALL, "cmr", small_load(), training).values())
    # torch stops the second forward of a block at the last thing that backward needs, which spares a product
    assert expected * 0.93 < counted.get_total_flops() <= expected * 1.02


def test_more_rows_and_more_passes_cost_as_many_times_more():
    load, training = small_load(), costs.Training()

    def total(load, training):
        return costs.step_flops(SMALL, "cmr", load, training)

    plain = total(load, training)
    negatives = total(dataclasses.replace(load, hard_negatives=2), training)
    assert all(negatives[part] == pytest.approx(3 * plain[part]) for part in plain)
    third = total(dataclasses.replace(load, third_view=True), training)
    assert third["text blocks"] == 2 * plain["text blocks"] and third["image blocks"] == plain["image blocks"]
    cached = total(load, costs.Training(grad_cache=2))
    assert cached["image blocks"] == pytest.approx(plain["image blocks"] * 4 / 3)
    many = total(dataclasses.replace(load, ranks=8), training)
    assert many["scores"] == 8 * plain["scores"] and many["text blocks"] == plain["text blocks"]


@pytest.mark.parametrize("fusion", ["add", "none"])
@pytest.mark.parametrize("task", PAPER)
def test_gradients_exchanged_are_those_that_a_step_leaves(task, fusion):
    model, heads = small_model()
    loss_of(task, model, heads, batch_of(task), fusion).backward()
    found = sum(p.numel() for part in (model, heads) for p in part.parameters() if p.grad is not None)
    count = costs.exchanged_parameters(SMALL, task, costs.Training(fusion=fusion))
    assert count == pytest.approx(found, rel=0.01)  # the mask embedding alone is in doubt


def kept_bytes(run) -> int:
    """Bytes of the tensors that autograd keeps, each storage once; parameters not included."""
    storages = {}

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter) and not (tensor._base is not None and tensor._base.is_leaf):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = run()
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("low_precision", [False, True])
@pytest.mark.parametrize("task", ["cmr", "vmlm", "mrfr", "mrckl"])
def test_activations_are_about_what_autograd_keeps(task, low_precision):
    model, heads = small_model()
    batch = batch_of(task)

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=low_precision):
            return loss_of(task, model, heads, batch)

    training = costs.Training(low_precision=low_precision, dropout=False)
    expected = sum(costs.activation_bytes(SMALL, task, small_load(), training).values())
    found = kept_bytes(run) - (_copies(model, heads, task) if low_precision else 0)
    assert found == pytest.approx(expected, rel=0.3)


def _copies(model, heads, task) -> int:
    """bf16 copies of the weights that took part, which autocast keeps too."""
    parts = [model.txt_model.bert.encoder, model.img_model.bert.encoder, model.img_model.bert.img_embeddings]
    if task == "cmr":
        parts += [model.txt_model.encode_proj, model.img_model.encode_proj]
    else:
        parts.append({"vmlm": heads.cls, "mrfr": heads.feat_regress, "mrckl": heads.region_classifier}[task])
    numbers = sum(p.numel() for part in parts for p in part.parameters() if p.ndim == 2)
    if task == "vmlm":
        numbers += model.img_model.bert.embeddings.word_embeddings.weight.numel()
    return 2 * numbers


def test_checkpointing_and_the_gradient_cache_bound_activations():
    load = costs.Load(64, 16, 36)
    plain = sum(costs.activation_bytes(BASE, "cmr", load, costs.Training()).values())
    saving = sum(costs.activation_bytes(BASE, "cmr", load, costs.Training(activation_checkpointing=True)).values())
    cached = sum(costs.activation_bytes(BASE, "cmr", load, costs.Training(grad_cache=16)).values())
    assert saving < plain / 5
    assert cached == pytest.approx(plain / 4, rel=0.05)
    frozen = costs.activation_bytes(BASE, "cmr", load, costs.Training(freeze_img=True))
    assert frozen["image activations"] == frozen["region activations"] == 0


def test_memory_of_weights_gradients_and_optimizer():
    parts = costs.memory(BASE, ["cmr"], costs.Load(8, 16, 36, ranks=4), costs.Training(freeze_txt=True))
    counts = costs.parameters(BASE, heads=False)
    trained = sum(n for part, n in counts.items() if part.startswith("image"))
    assert (parts["weights"], parts["gradients"]) == (4 * sum(counts.values()), 4 * trained)
    assert parts["optimizer"] == 8 * trained
    assert parts["exchange buffers"] == 4 * (trained - counts["image pooler"])
    assert costs.memory(BASE, ["cmr"], costs.Load(8, 16, 36), costs.Training())["exchange buffers"] == 0


def test_bytes_exchanged_are_those_of_rings():
    training = costs.Training()
    assert sum(costs.exchanged_bytes(SMALL, "cmr", small_load(), training).values()) == 0  # one rank
    sent = costs.exchanged_bytes(SMALL, "cmr", small_load(ranks=4), training)
    assert sent["gradients"] == 2 * 3 / 4 * 4 * costs.exchanged_parameters(SMALL, "cmr", training)
    matrix = 4 * 4 * PAIRS * 48  # bytes of the embeddings of four ranks, one side
    assert sent["embeddings"] == 2 * (3 / 4 * matrix + 2 * 3 / 4 * matrix)
    assert costs.exchanged_bytes(SMALL, "vmlm", small_load(ranks=4), training)["embeddings"] == 0


# ---- the command -----------------------------------------------------------------------------------------------------

PRETRAIN = "configs/pretrain/photos_small.yaml"
FINETUNE = "configs/finetune/photos_small.yaml"


def plan_of(config: str, **options) -> dict:
    return plan.make_plan(plan.Options(config=str(ROOT / config), **options))


def test_hours_follow_from_the_stated_rate_and_bandwidth():
    found = plan_of(PRETRAIN, gpu="a100-80", count=16, set=["num_steps=300000"])
    assert found["steps"] == 300_000
    seconds = 0.0
    load = costs.Load(2048 // 55, 16, 36, ranks=16)
    config = LightningDOTConfig(project_dim=384)
    for task, share in {"cmr": 1 / 2, "vmlm": 1 / 4, "mrfr": 1 / 8, "mrckl": 1 / 8}.items():
        training = costs.Training(low_precision=True)
        flops = sum(costs.step_flops(config, task, load, training).values())
        sent = sum(costs.exchanged_bytes(config, task, load, training).values())
        seconds += share * (flops / (312e12 * 0.35) + sent / 25e9)  # 16 GPUs are two nodes
    assert found["hours"] == pytest.approx(300_000 * seconds / 3600)
    assert found["pairs"] == {"per_rank": 37, "per_step": 37 * 16}


def test_steps_of_fine_tuning_come_from_its_captions(tmp_path):
    assert plan_of(FINETUNE, count=4, captions=1000)["steps"] == 10 * 4  # 64 pairs on each of 4 GPUs
    for name, count in (("train", 257), ("restval", 256)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "id2len.json").write_text(json.dumps({str(n): 5 for n in range(count)}))
    where = [f"train_captions={tmp_path}/train"]
    assert plan_of(FINETUNE, count=4, set=where)["steps"] == 10 * 2
    both = [f"train_captions=[{tmp_path}/train, {tmp_path}/restval]"]
    assert plan_of(FINETUNE, count=4, set=both)["steps"] == 10 * 3  # 513 captions


def test_sizes_come_from_folders_that_are_there(tmp_path):
    values = {"model_type": "bert", "vocab_size": 77, "hidden_size": 64, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps(values))
    folder = [f"model.txt_init={tmp_path}", f"model.img_init={tmp_path}"]
    found = plan_of(PRETRAIN, set=folder)
    assert found["parameters"]["text embeddings"] == (77 + 512 + 2 + 2) * 64 and found["notes"] == []
    absent = plan_of(PRETRAIN, set=["model.txt_init=absent", "model.img_init=absent"], vocab_size=30_000)
    assert absent["notes"][0] == "model.txt: absent is not here; taken as BERT-base with 30,000 words"
    assert absent["parameters"]["text embeddings"] == (30_000 + 512 + 2 + 2) * 768


def test_sizes_of_a_checkpoint(tmp_path):
    torch.manual_seed(0)
    LightningDOT(SMALL).save_pretrained(tmp_path)
    found = plan_of(FINETUNE, captions=100, set=[f"model.init={tmp_path}"])
    assert found["parameters"] == costs.parameters(SMALL, heads=False)


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
        (PRETRAIN, {"set": ["tokens_per_bath=3"]}, "tokens_per_batch"),
        (PRETRAIN, {"set": ["bf16"]}, "expected name=value, such as precision=bf16, found 'bf16'"),
        (PRETRAIN, {"kind": "finetune"}, "unknown key data"),
        (FINETUNE, {}, "id2len.json: not here.*give --captions"),
        ("configs/absent.yaml", {}, "absent.yaml: cannot read the config"),
        (PRETRAIN, {"count": 0}, "count must be above 0, found 0"),
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
