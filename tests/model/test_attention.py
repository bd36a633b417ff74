"""Packed rows against their padded twin: hidden states, losses and gradients; attention against a loop over sequences."""

import copy

import numpy as np
import pytest
import torch
from ranks_worker import HARD_CASES, build, make_batch

from data.batches.batch import ranked_pairs
from data.batches.ragged import Joined, Layout
from model.attention import attend, collect, spread
from model.objectives import OBJECTIVES
from model.objectives.base import ObjectiveOptions
from model.transformer import Bert, Encoder, EncoderConfig
from model.uniter import Reranker, UniterConfig, forward_ranking
from tests.padded import PaddedEncoder, padded_twin

LENGTHS = {
    "one": [5], "equal": [4] * 6, "one block": [7, 8, 8, 7], "blocks": [40, 3, 12, 25, 2, 31, 9, 38, 11, 1, 40, 22, 5, 33, 20, 17],
    "full blocks": [8, 2, 8, 2, 2, 8, 8, 2], "ones": [1, 1, 1],
}  # fmt: skip


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_attention_is_that_of_each_sequence_alone(lengths, first_only):
    torch.manual_seed(0)
    layout, total = Layout.of(lengths), sum(lengths)
    q, k, v = (torch.randn(total, 12, dtype=torch.double, requires_grad=True) for _ in range(3))
    queries = q[layout.firsts()] if first_only else q
    found = attend(queries, k, v, layout, heads=3, dropout=0.0)
    assert found.shape == queries.shape
    parts = []
    for part in zip(*(each.split(lengths) for each in (q, k, v)), strict=True):
        own = [each.unflatten(1, (3, 4)).transpose(0, 1) for each in part]  # [heads,n,d]
        weights = (own[0] @ own[1].transpose(1, 2) / 2).softmax(dim=2)
        each = (weights @ own[2]).transpose(0, 1).flatten(1)
        parts.append(each[:1] if first_only else each)
    torch.testing.assert_close(found, torch.cat(parts))
    weight = torch.randn_like(found)
    expected = torch.autograd.grad((torch.cat(parts) * weight).sum(), (q, k, v))
    for gradient, other in zip(torch.autograd.grad((found * weight).sum(), (q, k, v)), expected, strict=True):
        torch.testing.assert_close(gradient, other)


def test_spread_and_collect_are_each_others_gradients():
    x, places = torch.randn(4, 3, dtype=torch.double, requires_grad=True), torch.tensor([5, 0, 3, 2])
    assert torch.equal(spread(x, places, 6)[places], x) and not spread(x, places, 6)[[1, 4]].any()
    assert torch.equal(collect(spread(x, places, 6), places), x)
    assert torch.autograd.gradcheck(lambda x: spread(x, places, 6), (x,))
    y = torch.randn(6, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: collect(y, places), (y,))
    assert torch.autograd.gradgradcheck(lambda y: collect(y, places), (y,))


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_encoder_computes_what_its_padded_twin_does(first_only, checkpointing):
    torch.manual_seed(1)
    config = EncoderConfig(
        vocab_size=10, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=40,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.2,
    )  # fmt: skip
    encoder = Bert(config).encoder.train()
    encoder.checkpointing = checkpointing
    twin, layout = PaddedEncoder(copy.deepcopy(encoder)), Layout.of(LENGTHS["blocks"])
    x = torch.randn(sum(LENGTHS["blocks"]), 24)
    found, expected = encoder(x, layout, first_only), twin(x, layout, first_only)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weight = torch.randn_like(found)
    (found * weight).mean().backward()
    (expected * weight).mean().backward()
    for (name, own), other in zip(encoder.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("case", ["cmr", "vmlm", "mlm", "mrfr", "mrckl", "mrc", *HARD_CASES])
def test_objectives_have_the_loss_and_the_gradients_of_the_padded_twin(case):
    """With hard negatives, third view and distillation too; the batch's lengths make several blocks."""
    model, heads = build()
    batch = make_batch("vmlm" if case == "mlm" else case, [n % 7 for n in range(21)])
    options = ObjectiveOptions(**({"distill_weight": 0.5, "distill_temperature": 2.0} if case in HARD_CASES else {}))
    objective, found = OBJECTIVES[case.split("_")[0]](options), []
    for towers in (model, padded_twin(model)):
        outcome = objective.forward(towers, heads, batch)
        parameters = dict(towers.named_parameters()) | dict(heads.named_parameters())
        gradients = torch.autograd.grad(outcome.mean, list(parameters.values()), allow_unused=True)
        found.append((outcome.loss, dict(zip(parameters, gradients, strict=True))))
    assert any(type(part) is Encoder for part in model.modules()) and found[0][0].std() > 0
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-5)
    gradients = {name.replace("bert.encoder.", ""): gradient for name, gradient in found[0][1].items()}
    for name, gradient in found[1][1].items():
        other = gradients[name.replace("bert.encoder.", "")]
        assert (gradient is None) == (other is None), name
        if gradient is not None:
            torch.testing.assert_close(other, gradient, atol=1e-5, rtol=1e-5, msg=name)


def test_a_re_ranker_scores_and_learns_as_its_padded_twin():
    torch.manual_seed(0)
    sizes = EncoderConfig(50, 24, 2, 3, 40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.2)
    reranker, batch = Reranker(UniterConfig(sizes, 6, 5)).train(), make_batch("cmr_hard", list(range(9)))
    batch.num_pairs = 3  # with two hard negatives each
    batch.joined = Joined.of(batch.texts, batch.images, *ranked_pairs(9, 3))
    twin = padded_twin(reranker)
    losses = [forward_ranking(each, batch, 0.2) for each in (reranker, twin)]
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    for loss in losses:
        loss.sum().backward()
    for (name, own), other in zip(reranker.named_parameters(), twin.parameters(), strict=True):
        if own.grad is not None:
            torch.testing.assert_close(own.grad, other.grad, atol=1e-5, rtol=1e-5, msg=name)


def test_a_forward_pass_asks_the_device_for_nothing():
    """On the meta device there are no numbers to ask for, so that any `item`, `nonzero` or indexing by a mask would raise."""
    model, heads = (module.to("meta") for module in build())
    for task in ("vmlm", "mrfr", "mrckl", "mrc"):
        objective, batch = OBJECTIVES[task](), make_batch(task, list(range(7))).to("meta")
        objective.forward(model, heads, batch).mean.backward()
        assert objective.num_predictions(batch) > 0
    for views in (OBJECTIVES["cmr"]().embed(model, part) for part in make_batch("cmr_hard", list(range(9))).to("meta").split(4)):
        sum(view.sum() for view in views).backward()


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("dtype, close", [(torch.double, 1e-4), (torch.bfloat16, 2e-2)])
def test_attention_with_a_rate_that_drops_nothing_is_attention(dtype, close, first_only):
    torch.manual_seed(0)
    lengths = LENGTHS["blocks"]
    layout = Layout.of(lengths)
    q, k, v = (torch.randn(sum(lengths), 12).to(dtype).requires_grad_() for _ in range(3))
    found, expected = (attend(q[layout.firsts()] if first_only else q, k, v, layout, 3, rate) for rate in (1e-9, 0.0))  # one of 65,536
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected, atol=close, rtol=close)
    of_both = (torch.autograd.grad(each.float().square().sum(), (q, k, v)) for each in (found, expected))
    for gradient, other in zip(*of_both, strict=True):
        torch.testing.assert_close(gradient, other, atol=20 * close, rtol=close)


def test_dropped_weights_of_attention_are_made_up_for():
    torch.manual_seed(0)
    layout = Layout.of([40] * 30 + [25] * 30)
    q, k = torch.randn(2, len(layout.columns), 8)
    sums = attend(q, k, torch.ones_like(q), layout, heads=2, dropout=0.25)
    assert sums.std() > 0.05 and abs(sums.mean() - 1) < 0.01


def test_dropout_of_attention_is_drawn_for_every_block():
    torch.manual_seed(0)
    layout = Layout.of(LENGTHS["blocks"])
    x = torch.randn(len(layout.columns), 8)
    drawn = [attend(x, x, x, layout, heads=2, dropout=0.5) for _ in range(2)]
    ends = np.cumsum(LENGTHS["blocks"])
    for first, last in zip(ends - LENGTHS["blocks"], ends, strict=True):
        assert not torch.equal(drawn[0][first:last], drawn[1][first:last]) or last - first == 1
