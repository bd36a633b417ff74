"""Visual-embedding fused masked language modelling (VMLM; Sun et al., NAACL 2021, section 3.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.batches.batch import Batch, Examples, collate_pairs
from data.batches.masking import NOT_MASKED, mask_words
from data.batches.ragged import Predicted
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.costs import Load, Work, trained
from model.distributed import SINGLE, Ranks
from model.objectives.base import Objective, Outcome, fuse, head_work, width_misfit
from model.transformer import ACTIVATIONS, EncoderConfig


class WordHead(nn.Module):
    """BERT's masked language modelling head; its decoder's weight is the image tower's word embeddings."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.transform = nn.ModuleDict(
            {
                "dense": nn.Linear(config.hidden_size, config.hidden_size),
                "LayerNorm": nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps),
            }
        )
        self.activation = ACTIVATIONS[config.hidden_act]
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden: Tensor, word_embeddings: Tensor) -> Tensor:
        """``hidden`` [N,h], ``word_embeddings`` [V,h] → logits [N,V]."""
        hidden = self.transform["LayerNorm"](self.activation(self.transform["dense"](hidden)))
        return F.linear(hidden, word_embeddings, self.bias)


class MaskedWords(Objective):
    """Predict masked words from h_word + z_0 (equation 2), z_0 being the image tower's position 0."""

    name = "vmlm"
    head = "cls"

    def misfit(self, config: LightningDOTConfig) -> str | None:
        if config.txt.vocab_size != config.img.vocab_size:
            return (
                "towers of one vocabulary (its decoder is tied to the image tower's word embeddings); text has vocab_size "
                f"{config.txt.vocab_size}, image {config.img.vocab_size}; cmr alone trains towers that differ"
            )
        return width_misfit(config, "its decoder is tied to the image tower's word embeddings")

    def build_head(self, config: LightningDOTConfig) -> nn.Module:
        return nn.ModuleDict({"predictions": WordHead(config.txt)})

    def prepare(self, examples: Examples, rng: np.random.Generator) -> Batch:
        mask_id, v_range = examples.meta["MASK"], tuple(examples.meta["v_range"])
        masked = [mask_words(ids, rng, mask_id, v_range, self.options.word_mask_prob) for ids in examples.words]
        batch = collate_pairs(dataclasses.replace(examples, words=[ids for ids, _ in masked]))
        ends = np.array([NOT_MASKED])  # [CLS] and [SEP]
        labels = np.concatenate([part for _, label in masked for part in (ends, label, ends)])  # [T]
        batch.word_labels = torch.from_numpy(labels)
        batch.predicted = Predicted.at(labels != NOT_MASKED, batch.texts.layout)
        return batch

    def num_predictions(self, batch: Batch) -> int:
        return len(batch.predicted)

    def forward(
        self,
        model: LightningDOT,
        heads: nn.ModuleDict,
        batch: Batch,
        ranks: Ranks = SINGLE,
        sizes: Sequence[int] | None = None,
    ) -> Outcome:
        words = model.txt_model.bert(batch.texts)  # [T,h]
        z0 = None
        if self.options.fusion != "none":
            z0 = model.pool_images(batch.images)  # [B,h]
        target = batch.word_labels[batch.predicted.rows]  # [N]
        hidden = fuse(self.options.fusion, words, z0, batch.predicted)  # [N,h]
        logits = heads["cls"]["predictions"](hidden, model.img_model.bert.embeddings.word_embeddings.weight)  # [N,V]
        return Outcome(F.cross_entropy(logits.float(), target, reduction="none"), logits, target)

    def work(self, model: LightningDOT, heads: nn.ModuleDict, load: Load) -> list[Work]:
        predictions = load.pairs * max(1.0, self.options.word_mask_prob * load.words)  # at least one is masked
        sizes, words = model.config.txt, model.img_model.bert.embeddings.word_embeddings
        head = head_work("word head", heads["cls"], predictions, sizes.hidden_size, sizes.vocab_size, load)
        if self.options.fusion == "none":  # of the image tower the decoder's tied weight alone
            image = [Work("image embeddings", gradients=trained(words))]
        else:
            image = model.image_work(load.rows, load)
        return [*model.text_work(load.rows, load, first_only=False), *image, head]

    def right(self, outcome: Outcome) -> Tensor:
        return outcome.logits.argmax(dim=-1) == outcome.target
