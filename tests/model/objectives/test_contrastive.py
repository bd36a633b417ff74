"""The contrastive and the distillation loss against recorded numbers and naive twins."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.objectives.contrastive import contrastive_loss
from model.objectives.distillation import distillation_loss


def naive_contrastive(txt, img, image_ids, siblings, captions=None, weight=0.0, pairs=None):
    """One pair and one direction at a time, in fp64."""
    txt, img = txt.double(), img.double()
    captions = torch.zeros_like(txt) if captions is None else captions.double()
    losses = []
    for i in range(pairs or len(txt)):
        others = [j for j in range(len(txt)) if j == i or siblings == "keep" or image_ids[j] != image_ids[i]]
        t2i = torch.stack([txt[i] @ ((1 - weight) * img[j] + weight * captions[j]) for j in others])
        i2t = torch.stack([img[i] @ ((1 - weight) * txt[j] + weight * captions[j]) for j in others])
        own = others.index(i)
        losses.append(-(t2i.log_softmax(0)[own] + i2t.log_softmax(0)[own]) / 2)
    return torch.stack(losses)


@pytest.mark.parametrize("siblings", ["mask", "keep"])
@pytest.mark.parametrize("weight", [None, 0.3])
@pytest.mark.parametrize("pairs", [9, 5])
def test_loss_matches_its_naive_twin(siblings, weight, pairs):
    torch.manual_seed(0)
    txt, img, captions = torch.randn(3, 9, 5)
    ids = torch.tensor([0, 1, 0, 2, 3, 3, 3, 4, 1])
    view = {} if weight is None else {"captions": captions, "caption_weight": weight}
    found = contrastive_loss(txt, img, ids, siblings, slice(pairs), **view)
    expected = naive_contrastive(txt, img, ids, siblings, *view.values(), pairs=pairs)
    torch.testing.assert_close(found.loss.double(), expected, atol=1e-5, rtol=1e-5)
    assert found.loss.shape == (pairs,) and found.t2i.shape == found.i2t.shape == (pairs, 9)


def test_queries_in_the_middle_find_their_own_rows():
    """The rows of one of several processes: together they give what one process gives."""
    torch.manual_seed(0)
    txt, img, ids = torch.randn(7, 5), torch.randn(7, 5), torch.tensor([0, 1, 0, 2, 3, 3, 4])
    whole = contrastive_loss(txt, img, ids).loss
    parts = [contrastive_loss(txt, img, ids, queries=part).loss for part in (slice(0, 3), slice(3, 4), slice(4, 7))]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_siblings_change_the_loss_only_where_an_image_repeats():
    torch.manual_seed(0)
    txt, img = torch.randn(4, 5), torch.randn(4, 5)
    distinct, repeated = torch.arange(4), torch.tensor([0, 0, 1, 2])
    masked, kept = (contrastive_loss(txt, img, distinct, siblings).loss for siblings in ("mask", "keep"))
    assert torch.equal(masked, kept)
    masked, kept = (contrastive_loss(txt, img, repeated, siblings).loss for siblings in ("mask", "keep"))
    assert (masked[:2] < kept[:2]).all() and torch.equal(masked[2:], kept[2:])


def test_scores_are_exact_in_bf16_runs():
    txt, img = torch.randn(4, 384), torch.randn(4, 384)
    with torch.autocast("cpu", torch.bfloat16):
        found = contrastive_loss(txt, img, torch.arange(4))
    assert torch.equal(found.t2i, txt @ img.T) and torch.equal(found.i2t, img @ txt.T)


# ---- recorded from the original --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded():
    path = Path(__file__).parents[2] / "fixtures" / "contrastive.npz"
    with np.load(path, allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.5, 1.0])
def test_caption_weight_and_reductions_match_the_original(recorded, weight):
    q, ctx, cap = (recorded[name] for name in ("q", "ctx", "cap"))
    found = contrastive_loss(q, ctx, torch.arange(6), "keep", captions=cap, caption_weight=weight)
    close(found.t2i, recorded[f"w{weight}_mean/scores"])
    t2i = F.cross_entropy(found.t2i, torch.arange(6), reduction="none")
    i2t = F.cross_entropy(found.i2t, torch.arange(6), reduction="none")
    for reduction, reduce in (("none", lambda x: x), ("mean", torch.mean), ("sum", torch.sum)):
        close(reduce(t2i), recorded[f"w{weight}_{reduction}/loss"])
    close(t2i.mean(), recorded[f"inbatch_w{weight}/loss_img"])
    close(i2t.mean(), recorded[f"inbatch_w{weight}/loss_txt"])
    close(found.loss.mean(), recorded[f"inbatch_w{weight}/loss"])


@pytest.mark.parametrize("weight", [0.0, 0.1, 0.5, 1.0])
def test_hard_negatives_match_the_original(recorded, weight):
    txt, img, cap = (recorded[f"{name}_hard"] for name in ("txt", "ctx", "cap"))
    found = contrastive_loss(txt, img, torch.arange(24), "keep", slice(6), cap, weight)
    close(found.t2i, recorded[f"hard_w{weight}/scores_img"])
    close(found.i2t, recorded[f"hard_w{weight}/scores_txt"])
    close(found.loss.mean(), recorded[f"hard_w{weight}/loss"])


def test_cosine_scores_are_dot_products_of_normalised_embeddings(recorded):
    q, ctx = (F.normalize(recorded[name], dim=1) for name in ("q", "ctx"))
    close(contrastive_loss(q, ctx, torch.arange(6), "keep").t2i, recorded["cosine"])


# ---- distillation ----------------------------------------------------------------------------------------------------


def test_distillation_matches_its_naive_twin():
    torch.manual_seed(0)
    scores, teacher = torch.randn(5, 8), torch.randn(5, 8)
    teacher[torch.rand(5, 8) < 0.4] = float("nan")
    teacher[3], teacher[4, 1:] = float("nan"), float("nan")  # nothing, and one candidate: no ranking to learn
    found = distillation_loss(scores, teacher, temperature=2.0)
    for row in range(5):
        known = [j for j in range(8) if not teacher[row, j].isnan()]
        p = (scores[row, known].double() / 2).softmax(0)
        q = (teacher[row, known].double() / 2).softmax(0)
        expected = 4 * sum(q[j] * (q[j] / p[j]).log() for j in range(len(known))) if len(known) > 1 else 0.0
        assert float(found[row]) == pytest.approx(float(expected), abs=1e-5)
    assert (found[3:] == 0).all() and (found[:3] > 0).all()


def test_distillation_has_finite_gradients_and_vanishes_where_model_and_teacher_agree():
    scores = torch.randn(4, 6, requires_grad=True)
    teacher = scores.detach() + 3.0  # a softmax does not see a shift
    teacher[:, 4:], teacher[3] = float("nan"), float("nan")
    loss = distillation_loss(scores, teacher, temperature=0.5)
    loss.sum().backward()
    close(loss, torch.zeros(4))
    close(scores.grad, torch.zeros(4, 6))
