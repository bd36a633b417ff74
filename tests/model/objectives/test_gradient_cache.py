"""The gradient cache against the direct computation; activation checkpointing against keeping activations."""

import contextlib
import functools

import pytest
import torch
from ranks_worker import build, make_batch

from model.bi_encoder import LightningDOTConfig
from model.distributed import SINGLE, Announced
from model.objectives.backward import Backward
from model.objectives.base import ObjectiveOptions
from model.objectives.cmr import CrossModalRetrieval
from model.objectives.contrastive.options import LossOptions
from model.objectives.gradient_cache import backward_in_chunks
from model.objectives.heads import heads_of
from model.precision import autocast, loss_scaler


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


CMR = CrossModalRetrieval(ObjectiveOptions(distill_weight=0.5, distill_temperature=2.0))


HEADS = heads_of(CMR, LightningDOTConfig())


def loss_of(batch):
    return lambda embedded: CMR.contrast(embedded, HEADS, batch).share(batch.num_queries)


def embed_with(model):
    return functools.partial(CMR.embed, model)


@pytest.fixture
def batch():
    """Seven pairs and two hard negatives, with a third view and a teacher's scores."""
    batch = make_batch("cmr_hard", list(range(9)))
    batch.num_pairs = 7
    return batch


@pytest.mark.parametrize("rows", [1, 2, 4, 9, 100])
@pytest.mark.parametrize("frozen", [None, "txt", "img"])
def test_gradients_are_those_of_the_whole_batch(batch, rows, frozen):
    model, _ = build()
    model.freeze(txt=frozen == "txt", img=frozen == "img")
    loss_of(batch)(CMR.embed(model, batch)).backward()
    expected = gradients(model)
    model.zero_grad()
    backward_in_chunks(embed_with(model), batch, rows, contextlib.nullcontext, loss_of(batch))
    found = gradients(model)
    assert found.keys() == expected.keys() and len(found) > 20
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("rows", [0, 1, 3, 5])
def test_an_image_that_several_pairs_share_is_encoded_once_with_the_gradients_of_its_copies(rows):
    plain = make_batch("cmr_once", list(range(9)))
    shared = make_batch("cmr_once", list(range(9)))
    plain.images, plain.image_rows = plain.images.take(plain.image_rows.numpy()), None
    assert len(shared.images) == 6 < len(plain.images) == 9
    found = []
    for batch, cached in ((plain, 0), (shared, rows)):
        batch.num_pairs = 7
        model, _ = build()
        if cached:
            backward_in_chunks(embed_with(model), batch, cached, contextlib.nullcontext, loss_of(batch))
        else:
            loss_of(batch)(CMR.embed(model, batch)).backward()
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("loss", [LossOptions(temperature="learned"), LossOptions("sigmoid")])
def test_a_loss_with_weights_of_its_own_gets_their_gradients(batch, loss):
    cmr = CrossModalRetrieval(ObjectiveOptions(loss=loss, distill_weight=0.5))
    model, _ = build()
    model.config.similarity = "cosine"
    found = []
    for rows in (0, 4):
        model.zero_grad()
        heads = heads_of(cmr, model.config)
        step = Backward(model, heads, SINGLE, "fp32", rows)
        step.add_gradients(cmr, batch, SINGLE.meet([Announced((0,), 9, 7)])()[0], loss_scaler(torch.device("cpu"), "fp32"), 2)
        found.append(gradients(model) | gradients(heads))
    assert found[0].keys() == found[1].keys() >= {"contrast.log_scale"}
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_both_passes_see_the_same_dropout(batch, precision):
    """Against chunks that are embedded with a graph, in the same order from the same seed."""
    model, _ = build(dropout=0.3)
    context = functools.partial(autocast, "cpu", precision)
    torch.manual_seed(3)
    parts = []
    for part in batch.split(4):
        with context():  # one for each part: autocast sums the gradients of a weight's bf16 copy in bf16
            parts.append(CMR.embed(model, part))
    loss = loss_of(batch)([torch.cat(views) for views in zip(*parts, strict=True)])
    loss.backward()
    expected, drawn = gradients(model), torch.rand(3)
    model.zero_grad()
    torch.manual_seed(3)
    losses = []
    backward_in_chunks(embed_with(model), batch, 4, context, lambda e: losses.append(loss_of(batch)(e)) or losses[0])
    assert torch.equal(losses[0], loss)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=name)
    assert torch.equal(torch.rand(3), drawn)  # and what is drawn next is what would have been


def test_dropout_is_drawn_anew_for_every_chunk_and_batch(batch):
    model, _ = build(dropout=0.3)
    losses = []
    for _ in range(2):
        backward_in_chunks(
            embed_with(model), batch, 4, contextlib.nullcontext, lambda e: losses.append(loss_of(batch)(e)) or losses[-1]
        )
    assert losses[0] != losses[1]


def test_memory_is_bounded_by_a_chunk():
    """Bytes that autograd keeps for backward, at their most: the whole batch directly, two of its rows in the cache."""

    def peak(run):
        kept = {"now": 0, "most": 0}

        def pack(tensor):
            kept["now"] += tensor.numel() * tensor.element_size()
            kept["most"] = max(kept["most"], kept["now"])
            return tensor

        def unpack(tensor):
            kept["now"] -= tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            run()
        return kept["most"]

    model, _ = build()
    batch = make_batch("cmr", [n % 9 for n in range(48)])
    direct = peak(lambda: loss_of(batch)(CMR.embed(model, batch)).backward())
    cached = peak(lambda: backward_in_chunks(embed_with(model), batch, 4, contextlib.nullcontext, loss_of(batch)))
    assert cached < 0.25 * direct


def test_a_split_batch_is_the_same_rows(batch):
    parts = batch.split(4)
    assert [len(part) for part in parts] == [4, 4, 1]
    assert torch.equal(torch.cat([part.image_ids for part in parts]), batch.image_ids)
    for name, tensors in {"texts": ["ids"], "captions": ["ids"], "images": ["features", "positions"]}.items():
        whole, cut = getattr(batch, name), [getattr(part, name) for part in parts]
        assert [int(n) for part in cut for n in part.layout.lengths] == whole.layout.lengths.tolist()
        for tensor in tensors:
            assert torch.equal(torch.cat([getattr(part, tensor) for part in cut]), getattr(whole, tensor))


def loss_and_kept(model, batch):
    """The loss, and the number of values that autograd keeps for backward."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        loss = loss_of(batch)(CMR.embed(model, batch))
    return loss, sum(kept)


def test_activation_checkpointing_changes_memory_and_not_the_result(batch):
    model, _ = build(dropout=0.2)
    found = []
    for checkpointing in (False, True):
        for tower in (model.txt_model, model.img_model):
            tower.bert.encoder.checkpointing = checkpointing
        model.zero_grad()
        torch.manual_seed(5)
        loss, kept = loss_and_kept(model, batch)
        loss.backward()
        found.append((loss.detach(), gradients(model), kept))
    assert torch.equal(found[0][0], found[1][0])
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient, msg=name)
    assert found[1][2] < 0.6 * found[0][2]
