"""Masked language modelling without the image: the example of how an objective is added."""

import numpy as np
import torch
import torch.nn.functional as F
from ranks_worker import build, make_batch
from safetensors.torch import load_file

from model.objectives import OBJECTIVES
from model.objectives.base import ObjectiveOptions


def test_words_are_predicted_from_the_text_alone():
    model, heads = build()
    batch = make_batch("vmlm", list(range(7)))
    outcome = OBJECTIVES["mlm"](ObjectiveOptions("add")).forward(model, heads, batch)
    hidden = model.txt_model.bert(batch.texts)
    words, n = model.img_model.bert.embeddings.word_embeddings.weight, 0
    for row in np.flatnonzero(batch.word_labels.numpy() != -1):
        logits = heads["cls"]["predictions"](hidden[row], words)
        torch.testing.assert_close(outcome.logits[n], logits, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(outcome.loss[n], F.cross_entropy(logits, batch.word_labels[row]))
        n += 1
    assert n == len(outcome.loss) > 0
    outcome.mean.backward()
    assert all(p.grad is None for p in model.img_model.bert.encoder.parameters())


def test_it_pretrains(small_world, command, tmp_path):
    corpus = "[{name: scenes, captions: db/train, val_captions: db/val, regions: regions, tasks: {cmr: 1, mlm: 1}}]"
    words = ["--config", small_world / "pretrain.yaml", "--data", corpus, "--num-steps", 6, "--out", tmp_path]
    shown = command("pretrain.py", *words).stdout
    assert "val/scenes/mlm/acc" in shown
    assert "cls.predictions.bias" in load_file(tmp_path / "last/heads.safetensors")
