"""What modules and objectives say they cost, against models that are really built, counted and run."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from data.batches.batch import Batch, ranked_pairs
from data.batches.ragged import Images, Joined, Layout, Predicted, Texts
from model import costs
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.objectives import OBJECTIVES
from model.objectives.base import ObjectiveOptions
from model.objectives.heads import PAPER, PretrainingHeads, heads_of
from model.objectives.smrm import MaskedRegions
from model.text_encoders import TEXT_ENCODERS
from model.transformer import EncoderConfig, empty_weights
from model.uniter import Reranker, UniterConfig, forward_ranking

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
    features, positions = (torch.rand(PAIRS * REGIONS, n, generator=generator) for n in (96, 7))
    batch = Batch(
        Texts(ids.flatten(), Layout.of([WORDS + 2] * PAIRS)),
        Images.of(features.half(), positions, [REGIONS] * PAIRS),
        torch.arange(PAIRS),
        [str(n) for n in range(PAIRS)],
        [str(n) for n in range(PAIRS)],
        label_targets=torch.rand(PAIRS * 3, 31, generator=generator).softmax(dim=1).half(),
    )
    if task == "vmlm":
        batch.word_labels = labels.flatten()
        batch.predicted = Predicted.at((batch.word_labels != -1).numpy(), batch.texts.layout)
    elif task != "cmr":
        MaskedRegions.mask(batch, masked.flatten().numpy())
    return batch


def small_model() -> tuple[LightningDOT, PretrainingHeads]:
    torch.manual_seed(0)
    return LightningDOT(SMALL).train(), PretrainingHeads(SMALL).train()


def loss_of(task: str, model: LightningDOT, heads: PretrainingHeads, batch: Batch, fusion: str = "add") -> torch.Tensor:
    return OBJECTIVES[task](ObjectiveOptions(fusion)).forward(model, heads, batch).mean


def work_of(task, model, heads, load, fusion="add") -> list[costs.Work]:
    return OBJECTIVES[task](ObjectiveOptions(fusion)).work(model, heads, load)


def empty_model(config, **frozen) -> LightningDOT:
    with empty_weights():
        model = LightningDOT(config)
    model.freeze(**frozen)
    return model


BASE = LightningDOTConfig()
ODD = LightningDOTConfig(
    txt=dataclasses.replace(TXT, hidden_size=32), img=IMG, project_dim=48, feature_dim=10, num_labels=0
)


@pytest.mark.parametrize("config", [SMALL, BASE, ODD, dataclasses.replace(SMALL, project_dim=0)])
def test_the_parts_of_a_model_hold_all_its_parameters(config):
    model = empty_model(config)
    assert sum(map(costs.count, model.parts().values())) == sum(p.numel() for p in model.parameters())
    reranker = Reranker(UniterConfig(TXT, 96, 31))
    assert sum(map(costs.count, reranker.parts().values())) == sum(p.numel() for p in reranker.parameters())


def test_base_size_has_the_known_number_of_parameters():
    assert costs.count(empty_model(BASE).parts()["text blocks"]) == 85_054_464  # 12 blocks of BERT-base


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
    works = work_of(task, model, heads, small_load(), fusion)
    assert sum(work.flops for work in works) > 0
    expected = sum(work.flops for work in works)
    assert forward.get_total_flops() == pytest.approx(expected, rel=0.02)
    both = forward.get_total_flops() + backward.get_total_flops()
    assert both == pytest.approx(sum(costs.step_flops(works).values()), rel=0.02)


def test_operations_of_a_frozen_tower_and_with_checkpointing():
    model, heads = small_model()
    model.freeze(txt=True)
    model.set_checkpointing(True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        loss_of("cmr", model, heads, batch_of("cmr")).backward()
    expected = sum(costs.step_flops(work_of("cmr", model, heads, small_load())).values())
    # torch stops the second forward of a block at the last thing that backward needs, which spares a product
    assert expected * 0.93 < counted.get_total_flops() <= expected * 1.02


def test_more_rows_and_more_passes_cost_as_many_times_more():
    model, heads = small_model()

    def total(**changes):
        return costs.step_flops(work_of("cmr", model, heads, small_load(**changes)))

    plain = total()
    negatives = total(hard_negatives=2)
    assert all(negatives[part] == pytest.approx(3 * plain[part]) for part in plain)
    third = total(third_view=True)
    assert third["text blocks"] == 2 * plain["text blocks"] and third["image blocks"] == plain["image blocks"]
    cached = total(grad_cache=2)
    assert cached["image blocks"] == pytest.approx(plain["image blocks"] * 4 / 3)
    many = total(ranks=8)
    assert many["scores"] == 8 * plain["scores"] and many["text blocks"] == plain["text blocks"]


@pytest.mark.parametrize("fusion", ["add", "none"])
@pytest.mark.parametrize("task", PAPER)
def test_gradients_exchanged_are_those_that_a_step_leaves(task, fusion):
    model, heads = small_model()
    loss_of(task, model, heads, batch_of(task), fusion).backward()
    found = sum(p.numel() for part in (model, heads) for p in part.parameters() if p.grad is not None)
    count = costs.exchanged_parameters(work_of(task, model, heads, small_load(), fusion))
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

    works = work_of(task, model, heads, small_load(low_precision=low_precision))
    expected = sum(costs.activation_bytes(works).values())
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
    load, model = costs.Load(64, 16, 36), empty_model(BASE)

    def kept(load):
        return costs.activation_bytes(work_of("cmr", model, {}, load))

    plain = sum(kept(load).values())
    cached = sum(kept(dataclasses.replace(load, grad_cache=16)).values())
    assert cached == pytest.approx(plain / 4, rel=0.05)
    model.set_checkpointing(True)
    assert sum(kept(load).values()) < plain / 5
    model.freeze(img=True)
    assert {"image activations", "region activations"}.isdisjoint(kept(load)) and kept(load)["text activations"]


def test_memory_of_weights_gradients_and_optimizer():
    model, load = empty_model(BASE, txt=True), costs.Load(8, 16, 36, ranks=4)
    parts = costs.memory([model], [work_of("cmr", model, {}, load)], load, 2048)
    trained = sum(p.numel() for p in model.img_model.parameters())
    assert (parts["weights"], parts["gradients"]) == (4 * sum(p.numel() for p in model.parameters()), 4 * trained)
    assert parts["optimizer"] == 8 * trained
    assert parts["exchange buffers"] == 4 * (trained - costs.count(model.img_model.bert.pooler))
    alone = costs.Load(8, 16, 36)
    assert costs.memory([model], [work_of("cmr", model, {}, alone)], alone, 2048)["exchange buffers"] == 0


def test_bytes_exchanged_are_those_of_rings():
    model, heads = small_model()

    def sent(task, load):
        return costs.exchanged_bytes(work_of(task, model, heads, load), load)

    assert sum(sent("cmr", small_load()).values()) == 0  # one rank
    four = sent("cmr", small_load(ranks=4))
    parameters = costs.exchanged_parameters(work_of("cmr", model, heads, small_load()))
    assert four["gradients"] == 2 * 3 / 4 * 4 * parameters
    matrix = 4 * 4 * PAIRS * 48  # bytes of the embeddings of four ranks, one side
    assert four["embeddings"] == 2 * (3 / 4 * matrix + 2 * 3 / 4 * matrix)
    assert sent("vmlm", small_load(ranks=4))["embeddings"] == 0


def test_a_re_ranker_costs_what_torch_counts():
    torch.manual_seed(0)
    reranker, count = Reranker(UniterConfig(TXT, 96, 31)).train(), 2
    batch = batch_of("cmr")
    texts, images = batch.texts, batch.images
    many = dataclasses.replace(  # each pair, and its negatives
        batch,
        texts=Texts(texts.ids.repeat(1 + count), Layout.of(np.tile(texts.layout.lengths, 1 + count))),
        images=Images.of(*(x.repeat(1 + count, 1) for x in (images.features, images.positions)), np.tile(images.counts, 1 + count)),
        num_pairs=PAIRS,
    )
    many.joined = Joined.of(many.texts, many.images, *ranked_pairs(PAIRS * (1 + count), PAIRS))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        forward_ranking(reranker, many, 0.2).sum().backward()
    works = reranker.work(small_load(hard_negatives=count))
    assert counted.get_total_flops() == pytest.approx(sum(costs.step_flops(works).values()), rel=0.02)
    found = sum(p.numel() for p in reranker.parameters() if p.grad is not None)
    assert costs.exchanged_parameters(works) == pytest.approx(found, rel=0.01)


BERT_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
OF_TRANSFORMERS = {
    "ModernBert": BERT_SIZES | {"pad_token_id": 0, "bos_token_id": 3, "eos_token_id": 4, "cls_token_id": 3, "sep_token_id": 4},
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
    "XLMRoberta": BERT_SIZES,
}


@pytest.mark.parametrize("kind", OF_TRANSFORMERS)
def test_an_encoder_of_transformers_costs_what_torch_counts(kind, tmp_path):
    sizes = getattr(transformers, f"{kind}Config")(vocab_size=400, max_position_embeddings=60, **OF_TRANSFORMERS[kind])
    getattr(transformers, f"{kind}Model")(sizes).save_pretrained(tmp_path)
    config, _ = TEXT_ENCODERS["auto"].read(tmp_path)
    assert TEXT_ENCODERS["auto"].read_config(tmp_path) == config
    config.set_dropout(0.0)
    model = LightningDOT(dataclasses.replace(SMALL, txt=config)).train()
    assert sum(map(costs.count, model.parts().values())) == sum(p.numel() for p in model.parameters())
    heads = heads_of(OBJECTIVES["cmr"](ObjectiveOptions()), model.config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        loss_of("cmr", model, heads, batch_of("cmr")).backward()
    expected = sum(costs.step_flops(work_of("cmr", model, heads, small_load())).values())
    assert counted.get_total_flops() == pytest.approx(expected, rel=0.02)
