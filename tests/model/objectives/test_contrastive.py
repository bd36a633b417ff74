"""The contrastive and the distillation loss against recorded numbers and naive twins."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.errors import BadInput
from model.objectives.contrastive.options import LossOptions
from model.objectives.contrastive.scores import pair_scores
from model.objectives.contrastive.sigmoid import SigmoidLoss
from model.objectives.contrastive.softmax import SoftmaxLoss
from model.objectives.distillation import distillation_loss


class Found(NamedTuple):
    loss: torch.Tensor
    t2i: torch.Tensor
    i2t: torch.Tensor


def contrastive_loss(*args, loss=None, **options) -> Found:
    pairs = pair_scores(*args, **options)
    loss = loss or SoftmaxLoss()
    return Found(loss(pairs._replace(t2i=loss.logits(pairs.t2i), i2t=loss.logits(pairs.i2t))), pairs.t2i, pairs.i2t)


def naive_contrastive(txt, img, image_ids, siblings, captions=None, weight=0.0, pairs=None, text_image_ids=None):
    """One pair and one direction at a time, in fp64."""
    txt, img = txt.double(), img.double()
    captions = torch.zeros_like(txt) if captions is None else captions.double()
    about = image_ids if text_image_ids is None else text_image_ids
    losses = []
    for i in range(pairs or len(txt)):
        images, texts = ([j for j in range(len(txt)) if j == i or siblings == "keep" or ids[j] != image_ids[i]]
                         for ids in (image_ids, about))  # fmt: skip
        t2i = torch.stack([txt[i] @ ((1 - weight) * img[j] + weight * captions[j]) for j in images])
        i2t = torch.stack([img[i] @ ((1 - weight) * txt[j] + weight * captions[j]) for j in texts])
        losses.append(-(t2i.log_softmax(0)[images.index(i)] + i2t.log_softmax(0)[texts.index(i)]) / 2)
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


@pytest.mark.parametrize("siblings", ["mask", "keep"])
@pytest.mark.parametrize("loss", [SoftmaxLoss(), SigmoidLoss()])
def test_negatives_whose_texts_and_images_are_apart(siblings, loss):
    """A row is left out for the texts by its image, and for the images by the image that its text is about."""
    torch.manual_seed(0)
    txt, img = torch.randn(2, 9, 5)
    images, about = torch.tensor([0, 1, 0, 2, 3, 0, 5, 1, 3]), torch.tensor([0, 1, 0, 2, 3, 4, 1, 6, 0])
    found = contrastive_loss(txt, img, images, siblings, slice(5), text_image_ids=about, loss=loss).loss
    if isinstance(loss, SoftmaxLoss):
        expected = naive_contrastive(txt, img, images, siblings, pairs=5, text_image_ids=about)
    else:
        expected = torch.zeros(5, dtype=torch.float64)
        for i in range(5):
            for scores, ids in ((img @ txt[i], images), (txt @ img[i], about)):
                for j in range(9):
                    if j == i or siblings == "keep" or ids[j] != images[i]:
                        sign = 1 if j == i else -1
                        expected[i] -= F.logsigmoid(sign * loss.logits(scores[j].double()).detach()) / 2
    torch.testing.assert_close(found.detach().double(), expected, atol=1e-4, rtol=1e-5)


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


# ---- the other losses ------------------------------------------------------------------------------------------------


def scored(n=9, pairs=5):
    torch.manual_seed(0)
    txt, img = (F.normalize(torch.randn(n, 5), dim=1).requires_grad_() for _ in range(2))
    return txt, img, torch.tensor([0, 1, 0, 2, 3, 3, 3, 4, 1])[:n], slice(pairs)


@pytest.mark.parametrize("temperature", [0.05, 1.0, "learned"])
def test_a_temperature_divides_the_scores(temperature):
    txt, img, ids, queries = scored()
    loss = SoftmaxLoss(temperature)
    found = contrastive_loss(txt, img, ids, "mask", queries, loss=loss).loss
    divided = (0.07 if temperature == "learned" else temperature) ** -0.5
    torch.testing.assert_close(found, contrastive_loss(txt * divided, img * divided, ids, "mask", queries).loss)
    found.sum().backward()
    assert [p.grad.abs() > 0 for p in loss.parameters()] == [True] * (temperature == "learned")


def test_a_learned_temperature_stays_above_a_hundredth():
    txt, img, ids, queries = scored()
    loss = SoftmaxLoss("learned")
    torch.nn.init.constant_(loss.log_scale, 9.0)
    found = contrastive_loss(txt, img, ids, "mask", queries, loss=loss).loss
    torch.testing.assert_close(found, contrastive_loss(txt, img, ids, "mask", queries, loss=SoftmaxLoss(0.01)).loss)


def naive_sigmoid(txt, img, image_ids, siblings, scale, bias, pairs):
    """One pair of a text and an image at a time: each direction half, siblings neither right nor wrong."""
    losses = []
    for i in range(pairs):
        total = 0.0
        for j in range(len(txt)):
            if siblings == "mask" and j != i and image_ids[j] == image_ids[i]:
                continue
            sign = 1.0 if i == j else -1.0
            for score in (txt[i] @ img[j], img[i] @ txt[j]):
                total += -torch.log(1 / (1 + torch.exp(-sign * (scale * score + bias)))) / 2
        losses.append(total)
    return torch.stack(losses)


@pytest.mark.parametrize("siblings", ["mask", "keep"])
@pytest.mark.parametrize("pairs", [9, 5])
def test_sigmoid_loss_and_gradients_match_their_naive_twin(siblings, pairs):
    txt, img, ids, queries = scored(pairs=pairs)
    loss = SigmoidLoss()
    found = contrastive_loss(txt, img, ids, siblings, queries, loss=loss).loss
    found.mean().backward()
    gradients = [tensor.grad.clone() for tensor in (txt, img, loss.log_scale, loss.bias)]
    scale, bias = torch.tensor(10.0, dtype=torch.float64).log().requires_grad_(), torch.tensor(-10.0, requires_grad=True)
    twins = [tensor.detach().double().requires_grad_() for tensor in (txt, img)]
    expected = naive_sigmoid(*twins, ids, siblings, scale.exp(), bias, pairs)
    expected.mean().backward()
    close(found.double(), expected)
    for gradient, twin in zip(gradients, [*twins, scale, bias], strict=True):
        close(gradient.double(), twin.grad.double())


def test_without_hard_negatives_the_sigmoid_loss_is_the_papers():
    """-1/B ΣΣ log σ(z(t x·y + b)) over all pairs once (Zhai et al., equation 1)."""
    txt, img, _, _ = scored()
    scores = 10 * txt @ img.T - 10
    z = 2 * torch.eye(9) - 1
    expected = -F.logsigmoid(z * scores).sum() / 9
    close(contrastive_loss(txt, img, torch.arange(9), loss=SigmoidLoss()).loss.mean(), expected)


def test_losses_without_queries_have_gradients_of_zero():
    txt, img, ids, _ = scored()
    for loss in (SoftmaxLoss("learned"), SigmoidLoss()):
        contrastive_loss(txt, img, ids, "mask", slice(0), loss=loss).loss.sum().backward()
        assert all(p.grad == 0 for p in loss.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("hinge", None), "loss.name 'hinge' is none of the losses softmax, sigmoid"),
        (("softmax", 0.0), "loss.temperature must be above 0, found 0.0"),
        (("sigmoid", 0.1), "loss.temperature 0.1: the sigmoid loss learns its own scale"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(BadInput, match=message):
        LossOptions(*settings)


def test_cosines_need_a_temperature():
    with pytest.raises(BadInput, match="loss softmax needs a temperature for cosines"):
        LossOptions().check_similarity("cosine")
    LossOptions().check_similarity("dot")
    LossOptions(temperature="learned").check_similarity("cosine")
    LossOptions("sigmoid").check_similarity("cosine")


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
