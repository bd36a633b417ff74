"""A UNITER that teaches: its predictions against single pairs from the file's tensors, the loss against loops, refusals."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.batches.batch import Batch
from data.batches.ragged import Predicted, pack_images, pack_texts
from data.errors import BadInput
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.objectives import OBJECTIVES
from model.objectives.base import ObjectiveOptions
from model.objectives.heads import PretrainingHeads
from model.objectives.smrm import MaskedRegions
from model.objectives.uniter_teacher import Taught, TeacherOptions, UniterTeacher, taught_by
from model.original import files as conversion
from model.transformer import EncoderConfig
from model.uniter import Reranker, UniterConfig
from tests.model.test_uniter import batch as inputs_of
from tests.model.test_uniter import plain_hidden, plain_layers, pretrained_file

SIZES = [(9, 2), (4, 7), (6, 3)]
ENCODER = EncoderConfig(150, 64, 2, 1, 48, max_position_embeddings=24, initializer_range=0.2)
HEADS = {"vmlm": "cls", "mrfr": "feat_regress", "mrckl": "region_classifier", "mrc": "region_classifier"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Folder, and the file's tensors without prefix."""
    folder = tmp_path_factory.mktemp("teacher")
    pretrained_file(folder / "uniter.pt")
    conversion.to_ours(folder / "uniter.pt", folder / "uniter")
    tensors = torch.load(folder / "uniter.pt", weights_only=True)
    return folder / "uniter", {name.removeprefix("uniter."): tensor for name, tensor in tensors.items()}


@pytest.fixture
def student():
    torch.manual_seed(0)
    model = LightningDOT(LightningDOTConfig(ENCODER, ENCODER, 12, 20, 7, cls_token_id=3)).eval()
    return model, PretrainingHeads(model.config).eval()


def batch_of(task):
    """Three pairs: of the first two words and a region are to be predicted, of the third nothing."""
    inputs = inputs_of(SIZES)
    batch = Batch(pack_texts(*inputs[:2]), pack_images(*inputs[2:]), torch.arange(3), [], [])
    if task in ("vmlm", "mlm"):
        batch.word_labels = torch.full_like(batch.texts.ids, -1)
        batch.word_labels[[2, 7]], batch.word_labels[9 + 1] = torch.tensor([17, 23]), 99
        batch.predicted = Predicted.at((batch.word_labels != -1).numpy(), batch.texts.layout)
    else:
        chosen = np.zeros(12, bool)
        chosen[[1, 2 + 0, 2 + 6]] = True
        MaskedRegions.mask(batch, chosen)
        batch.label_targets = torch.randn(3, 7, generator=torch.Generator().manual_seed(2)).softmax(1).half()
    return batch


def plain_predictions(weights, task, batch):
    """[3,·] what the UNITER of the file says of the masked words or regions, one pair at a time."""
    linear, norm = plain_layers(weights)
    found, first_word, first_region = [], 0, 0
    for words, regions in SIZES:
        of_text, of_image = slice(first_word, first_word + words), slice(first_region, first_region + regions)
        first_word, first_region = of_text.stop, of_image.stop
        features = batch.images.features[of_image].float()
        if task != "vmlm":
            features = features + batch.masked_regions[of_image, None] * weights["img_embeddings.mask_embedding.weight"][1]
        hidden = plain_hidden(weights, batch.texts.ids[of_text], features, batch.images.positions[of_image])
        if task == "vmlm":
            hidden = hidden[:words][batch.word_labels[of_text] != -1]
            hidden = F.gelu(linear("cls.predictions.transform.dense", hidden))
            hidden = norm("cls.predictions.transform.LayerNorm", hidden)
            found.append(hidden @ weights["embeddings.word_embeddings.weight"].T + weights["cls.predictions.bias"])
            continue
        name = HEADS[task]
        hidden = hidden[words:][batch.masked_regions[of_image]]
        hidden = norm(f"{name}.net.2", F.gelu(linear(f"{name}.net.0", hidden)))
        if task == "mrfr":
            found.append(hidden @ weights["img_embeddings.img_linear.weight"] + weights["feat_regress.bias"])
        else:
            found.append(linear("region_classifier.net.3", hidden))
    return torch.cat(found)


@pytest.mark.parametrize("task", ["vmlm", "mrfr", "mrckl"])
def test_predictions_of_a_uniter_file_against_single_pairs(teacher, task):
    folder, weights = teacher
    batch = batch_of(task)
    found = UniterTeacher.from_pretrained(folder)(HEADS[task], batch)
    assert len(found) == 3 and found.std() > 0.02
    torch.testing.assert_close(found, plain_predictions(weights, task, batch), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("task", ["vmlm", "mrfr", "mrckl", "mrc", "mlm"])
def test_loss_and_gradients_against_loops(teacher, student, task):
    """KL divergence of words and classes at T = 2, squared error of features; 0.7 times, in the same mean."""
    read, (model, heads) = UniterTeacher.from_pretrained(teacher[0]), student
    objective, batch = OBJECTIVES[task](ObjectiveOptions()), batch_of(task)
    taught = taught_by(read, TeacherOptions("uniter", weight=0.7, temperature=2.0), {task: objective})[task]
    found = taught.forward(model, heads, batch).mean
    found.backward()
    gradients = {n: p.grad.clone() for n, p in [*model.named_parameters(), *heads.named_parameters()] if p.grad is not None}
    model.zero_grad(), heads.zero_grad()

    outcome = objective.forward(model, heads, batch)
    words = plain_predictions(teacher[1], "vmlm" if task == "mlm" else task, batch)
    total = 0.0
    for said, told in zip(outcome.logits.double(), words.double(), strict=True):
        if task == "mrfr":
            total += (said - told).square().sum()
            continue
        p, q = (said / 2).softmax(0), (told / 2).softmax(0)
        total += sum(q[c] * (q[c].log() - p[c].log()) for c in range(len(p)))
    expected = outcome.mean + 0.7 * total / (outcome.loss.numel() if task in ("mrfr", "mrckl") else 3)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)
    assert float((expected - outcome.mean).detach()) > 1e-2
    expected.backward()
    for name, parameter in [*model.named_parameters(), *heads.named_parameters()]:
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-4, rtol=1e-3, msg=name)
    assert not any(p.requires_grad or p.grad is not None for p in read.parameters())


def test_a_teacher_has_no_dropout_and_retrieval_has_no_teacher(teacher):
    read = UniterTeacher.from_pretrained(teacher[0])
    assert read.config.encoder.hidden_dropout_prob > 0
    read.train()
    assert not any(module.training for module in read.modules())
    objectives = {task: OBJECTIVES[task]() for task in ("cmr", "vmlm", "mrckl")}
    taught = taught_by(read, TeacherOptions("uniter"), objectives)
    assert taught["cmr"] is objectives["cmr"] and isinstance(taught["vmlm"], Taught) and taught["mrckl"].reads_soft_labels
    assert taught_by(None, TeacherOptions(), objectives) is objectives


def test_what_cannot_teach_is_refused(teacher, tmp_path):
    folder, _ = teacher
    read = UniterTeacher.from_pretrained(folder)
    sizes = LightningDOTConfig(ENCODER, ENCODER, 12, 20, 7)
    with pytest.raises(BadInput, match=r"teacher.checkpoint there: knows 150 words, the model 151; .* the model's vocabulary"):
        read.check("there", dataclasses.replace(sizes, txt=dataclasses.replace(ENCODER, vocab_size=151)), ["vmlm"], [])
    with pytest.raises(BadInput, match="tells 7 classes of regions apart, the model 9"):
        read.check("there", dataclasses.replace(sizes, num_labels=9), ["vmlm", "mrckl"], [])
    read.check("there", dataclasses.replace(sizes, num_labels=9), ["vmlm", "mrfr"], [])
    meta = {"CLS": 3, "SEP": 4, "MASK": 5, "v_range": [6, 150]}
    captions = SimpleNamespace(folder="db/train", meta=meta, tokenizer_folder=None)
    pairs = SimpleNamespace(captions=captions, regions=SimpleNamespace(folder="img", feature_dim=20), region_databases=[], parts=[])
    pairs.txt_lengths = torch.tensor([9, 25]).numpy()
    with pytest.raises(BadInput, match=r"db/train: a caption has 25 tokens, teacher.checkpoint there 24 positions"):
        read.check("there", sizes, ["vmlm"], [pairs])
    pairs.regions.feature_dim = 32
    with pytest.raises(BadInput, match="img: region features are 32 wide, but there was made for feature_dim 20"):
        read.check("there", sizes, ["vmlm"], [pairs])

    Reranker(UniterConfig(ENCODER, 20, 7)).save_pretrained(tmp_path / "reranker")
    with pytest.raises(BadInput, match="no cls, feat_regress, region_classifier: only a pre-trained UNITER"):
        UniterTeacher.from_pretrained(tmp_path / "reranker")
    LightningDOT(sizes).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match=r"config\.json: not a UNITER"):
        UniterTeacher.from_pretrained(tmp_path)
    for values in ({"weight": 0.0}, {"temperature": 0.0}):
        with pytest.raises(BadInput, match="must be above 0"):
            TeacherOptions("uniter", **values)
