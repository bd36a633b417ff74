"""Objectives against numbers recorded from the original implementation, and against naive twins."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from data.batches.batch import Batch
from data.batches.ragged import Predicted, pack_images, pack_texts
from data.errors import BadInput
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.objectives import OBJECTIVES
from model.objectives.base import ObjectiveOptions
from model.objectives.heads import PretrainingHeads
from model.objectives.smrm import MaskedRegions
from model.transformer import EncoderConfig

RECORDED = {"vmlm": "mlm", "mrfr": "mrfr", "mrckl": "mrckl", "cmr": "itm"}


@pytest.fixture(scope="module")
def recorded():
    path = Path(__file__).parents[2] / "fixtures" / "objectives.npz"
    with np.load(path, allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) if file[name].dtype.kind != "U" else file[name] for name in file}


def build(recorded):
    sizes = EncoderConfig(
        vocab_size=1000,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=128,
    )
    model = LightningDOT(LightningDOTConfig(txt=sizes, img=sizes, project_dim=64)).eval()
    heads = PretrainingHeads(model.config).eval()
    weights = {n.removeprefix("weights/"): w for n, w in recorded.items() if n.startswith("weights/")}
    model.load_state_dict({n.removeprefix("bert."): w for n, w in weights.items() if n.startswith("bert.")})
    heads.load_state_dict({n: w for n, w in weights.items() if not n.startswith("bert.")})
    return model, heads


def batch_for(recorded, task):
    name = RECORDED.get(task, "mrckl")
    words, regions = recorded[f"{name}/attention_mask"].bool(), recorded["region_mask"].bool()
    batch = Batch(
        pack_texts(recorded[f"{name}/input_ids"], words),
        pack_images(recorded["features"], recorded["positions"], regions),
        torch.arange(len(words)), [], [],
        label_targets=recorded.get(f"{name}/label_targets"),
    )  # fmt: skip
    if name == "mlm":
        batch.word_labels = recorded["mlm/word_labels"][words]
        batch.predicted = Predicted.at((batch.word_labels != -1).numpy(), batch.texts.layout)
    elif name != "itm":
        MaskedRegions.mask(batch, recorded[f"{name}/masked_regions"][regions].numpy())
    return batch


def thin(values):
    """The fixture keeps every 16th column of large outputs."""
    return values[:, ::16] if values.ndim == 2 else values


@pytest.mark.parametrize("fusion", ["none", "add"])
@pytest.mark.parametrize("task", RECORDED)
def test_loss_logits_and_gradients_match_the_original(recorded, task, fusion):
    model, heads = build(recorded)
    outcome = OBJECTIVES[task](ObjectiveOptions(fusion)).forward(model, heads, batch_for(recorded, task))
    name = f"{RECORDED[task]}/{fusion}"
    torch.testing.assert_close(thin(outcome.loss), recorded[f"{name}/loss"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outcome.mean, recorded[f"{name}/loss_mean"], atol=1e-5, rtol=1e-5)
    if f"{name}/logits" in recorded:
        logits = outcome.logits.log_softmax(-1) if task == "mrckl" else outcome.logits  # as the original returned them
        torch.testing.assert_close(thin(logits), recorded[f"{name}/logits"], atol=1e-5, rtol=1e-5)

    outcome.mean.backward()
    grads = {f"bert.{n}": p.grad for n, p in model.named_parameters()} | {
        n: p.grad for n, p in heads.named_parameters()
    }
    for parameter, norm in zip(recorded[f"{name}/grad_names"], recorded[f"{name}/grad_norms"]):
        if "grad" in parameter or "decoder" in parameter or parameter == "feat_regress.weight":
            continue  # tied weights are listed once, under their owner
        assert grads[parameter].norm().item() == pytest.approx(float(norm), rel=2e-4, abs=1e-7), parameter


def test_fusion_multiply_is_the_product_with_position_0(recorded):
    model, heads = build(recorded)
    batch = batch_for(recorded, "vmlm")
    logits = OBJECTIVES["vmlm"](ObjectiveOptions("multiply")).forward(model, heads, batch).logits
    hidden, lengths = model.txt_model.bert(batch.texts), batch.texts.layout.lengths
    z = model.img_model.bert(batch.images, first_only=True)
    row = token = 0
    for b, length in enumerate(lengths):
        for _ in range(length):
            if batch.word_labels[token] != -1:
                words = model.img_model.bert.embeddings.word_embeddings.weight
                expected = heads.cls["predictions"](hidden[token] * z[b], words)
                torch.testing.assert_close(logits[row], expected, atol=1e-5, rtol=1e-4)
                row += 1
            token += 1
    assert row == len(logits) > 0 and token == len(hidden)


def test_mrc_is_cross_entropy_to_the_likeliest_foreground_class(recorded):
    model, heads = build(recorded)
    batch = batch_for(recorded, "mrc")
    batch.label_targets = batch.label_targets.clone()
    batch.label_targets[0, 0] = 1.0  # background must not win
    outcome = OBJECTIVES["mrc"]().forward(model, heads, batch)
    for row, soft in enumerate(batch.label_targets.float()):
        best = max(range(1, len(soft)), key=lambda c: float(soft[c]))
        probabilities = outcome.logits[row].double().exp()
        expected = -torch.log(probabilities[best] / probabilities.sum())
        assert outcome.loss[row].item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_batch_without_predictions_gives_zero_loss_and_no_nan(recorded):
    model, heads = build(recorded)
    batch = batch_for(recorded, "vmlm")
    batch.predicted = Predicted.at(np.zeros(len(batch.word_labels), bool), batch.texts.layout)
    mean = OBJECTIVES["vmlm"]().forward(model, heads, batch).mean
    mean.backward()
    assert mean.item() == 0


def towers(**changes):
    sizes = {"vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    small, other = EncoderConfig(**sizes), EncoderConfig(**sizes | changes)
    return LightningDOTConfig(txt=small, img=other, project_dim=4, feature_dim=6, num_labels=5)


@pytest.mark.parametrize("changes, found", [({"vocab_size": 12}, "text has vocab_size 10, image 12"),
                                            ({"hidden_size": 16}, "text has hidden_size 8, image 16")])  # fmt: skip
def test_towers_that_differ_train_with_cmr_and_vmlm_says_what_it_needs(changes, found):
    config = towers(**changes)
    assert "cls" not in PretrainingHeads(config, tasks=["cmr"])
    with pytest.raises(BadInput, match=rf"objective vmlm needs towers of one .*image tower's word embeddings.*{found}"):
        PretrainingHeads(config, tasks=["cmr", "vmlm"])


def test_regions_of_a_tower_of_another_width_need_fusion_none():
    config = towers(hidden_size=16)
    with pytest.raises(BadInput, match=r"objective mrfr needs towers of one width .fusion add.*fusion none needs no"):
        PretrainingHeads(config, tasks=["mrfr"])
    heads = PretrainingHeads(config, ObjectiveOptions("none"), ["mrfr", "mrc"])
    assert set(heads) == {"contrast", "feat_regress", "region_classifier"}


def test_labels_of_a_detector_without_any_are_refused():
    config = dataclasses.replace(towers(), num_labels=0)
    assert "region_classifier" not in PretrainingHeads(config, tasks=["mrfr"])
    with pytest.raises(BadInput, match="objective mrc needs soft labels of the regions"):
        PretrainingHeads(config, tasks=["mrc"])
    for task in ("mrc", "mrckl"):
        with pytest.raises(BadInput, match=f"objective {task} needs classes of regions; num_labels 1 is the background alone"):
            PretrainingHeads(dataclasses.replace(towers(), num_labels=1), tasks=[task])


def test_heads_do_not_depend_on_the_tasks_that_are_trained():
    """Their weights neither: runs with other tasks start from the same."""
    found = []
    for tasks in ((), ("cmr",), ("mrc", "vmlm")):
        torch.manual_seed(3)
        found.append(PretrainingHeads(towers(), tasks=tasks).state_dict())
    assert list(found[0]) == list(found[1]) == list(found[2])
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in other)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_go_to_the_data_workers(name):
    objective = pickle.loads(pickle.dumps(OBJECTIVES[name](ObjectiveOptions(word_mask_prob=0.4))))
    assert objective.name == name and objective.options.word_mask_prob == 0.4
