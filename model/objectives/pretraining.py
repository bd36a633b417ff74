"""The three pre-training objectives: VMLM, SMRM, CMR (Sun et al., NAACL 2021, section 3).

Each ``forward_*`` goes from a batch to an ``Outcome``: the loss of every prediction, from which the training step takes
the mean, and the predictions themselves, for validation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.batches.batch import Batch
from data.errors import BadInput
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.distributed import SINGLE, Ranks
from model.objectives.contrastive import Siblings, contrastive_loss, distillation_loss, teacher_matrix
from model.transformer import ACTIVATIONS, EncoderConfig, init_weights

TASKS = ("cmr", "vmlm", "mrfr", "mrckl", "mrc")  # the last three are SMRM: its three kinds of target
Fusion = Literal["add", "none", "multiply"]


@dataclass
class Outcome:
    """What an objective computed.

    Attributes:
        loss: per prediction: [N] words or pairs, [N,F] feature values (mrfr), [N,C] classes (mrckl), [N] regions (mrc)
        logits: [N,V] words, [N,F] features, [N,C] classes, [B,B] scores text × image (cmr)
        target: what the logits were compared with
    """

    loss: Tensor
    logits: Tensor
    target: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean loss. A batch without predictions gives zero, still attached to the graph."""
        return self.share(len(self.loss))

    def share(self, predictions: int) -> Tensor:
        """This rank's part of the mean over the ``predictions`` of all ranks: the scalar that is minimised."""
        each = self.loss.shape[1] if self.loss.ndim == 2 else 1
        return self.loss.sum() / (max(predictions, 1) * each)


class WordHead(nn.Module):
    """BERT's masked language modelling head; its decoder's weight is the image tower's word embeddings."""

    def __init__(self, config: EncoderConfig, vocab_size: int):
        super().__init__()
        self.transform = nn.ModuleDict(
            {
                "dense": nn.Linear(config.hidden_size, config.hidden_size),
                "LayerNorm": nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps),
            }
        )
        self.activation = ACTIVATIONS[config.hidden_act]
        self.bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, hidden: Tensor, word_embeddings: Tensor) -> Tensor:
        """``hidden`` [N,h], ``word_embeddings`` [V,h] → logits [N,V]."""
        hidden = self.transform["LayerNorm"](self.activation(self.transform["dense"](hidden)))
        return F.linear(hidden, word_embeddings, self.bias)


def _region_net(hidden_size: int) -> list[nn.Module]:
    return [nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.LayerNorm(hidden_size, eps=1e-12)]


class FeatureHead(nn.Module):
    """Regress the masked feature; the last layer's weight is the image tower's W_f, transposed."""

    def __init__(self, hidden_size: int, feature_dim: int):
        super().__init__()
        self.net = nn.Sequential(*_region_net(hidden_size))
        self.bias = nn.Parameter(torch.zeros(feature_dim))

    def forward(self, hidden: Tensor, img_linear: Tensor) -> Tensor:
        """``hidden`` [N,h], ``img_linear`` [h,F] → [N,F]."""
        return F.linear(self.net(hidden), img_linear.T, self.bias)


class ClassHead(nn.Module):
    """Classify the masked region: [N,h] → logits [N,C]."""

    def __init__(self, hidden_size: int, num_labels: int):
        super().__init__()
        self.net = nn.Sequential(*_region_net(hidden_size), nn.Linear(hidden_size, num_labels))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.net(hidden)


class PretrainingHeads(nn.Module):
    """The heads on top of the towers, with the original's parameter names. Fine-tuning and retrieval drop them."""

    def __init__(self, config: LightningDOTConfig, fusion: Fusion = "add"):
        super().__init__()
        check_towers_fit(config, fusion)
        self.fusion = fusion
        self.cls = nn.ModuleDict({"predictions": WordHead(config.txt, config.txt.vocab_size)})
        self.feat_regress = FeatureHead(config.img.hidden_size, config.feature_dim)
        # A detector without soft labels gives the class head nothing to learn.
        self.region_classifier = ClassHead(config.img.hidden_size, config.num_labels) if config.num_labels else None
        init_weights(self, config.txt.initializer_range)

    def fuse(self, hidden: Tensor, other: Tensor | None) -> Tensor:
        """Mix the other modality's position 0 into each position: [B,L,h], [B,h] → [B,L,h]."""
        if self.fusion == "none":
            return hidden
        return hidden + other[:, None] if self.fusion == "add" else hidden * other[:, None]


def check_towers_fit(config: LightningDOTConfig, fusion: Fusion) -> None:
    """Pre-training ties weights and adds hidden states across the towers: refuse sizes that do not allow it."""
    if config.txt.hidden_size != config.img.hidden_size:
        raise BadInput(
            f"pre-training needs towers of one width (fusion {fusion}, tied decoder); text has hidden_size "
            f"{config.txt.hidden_size}, image {config.img.hidden_size}"
        )
    if config.txt.vocab_size != config.img.vocab_size:
        raise BadInput(
            "the masked language modelling decoder is tied to the image tower's word embeddings, so both towers need "
            f"one vocabulary; text has vocab_size {config.txt.vocab_size}, image {config.img.vocab_size}"
        )


def forward_vmlm(model: LightningDOT, heads: PretrainingHeads, batch: Batch) -> Outcome:
    """Visual-embedding fused masked language modelling: predict masked words from h_word + z_0 (equation 2)."""
    words = model.txt_model.bert(batch.input_ids, batch.attention_mask)  # [B,L,h]
    z0 = None
    if heads.fusion != "none":
        z0 = model.img_model.bert(batch.features, batch.positions, batch.region_mask, first_only=True)[:, 0]  # [B,h]
    masked = batch.word_labels != -1  # [B,L]
    target = batch.word_labels[masked]  # [N]
    hidden = heads.fuse(words, z0)[masked]  # [N,h]
    logits = heads.cls["predictions"](hidden, model.img_model.bert.embeddings.word_embeddings.weight)  # [N,V]
    return Outcome(F.cross_entropy(logits.float(), target, reduction="none"), logits, target)


def forward_smrm(model: LightningDOT, heads: PretrainingHeads, batch: Batch, kind: str) -> Outcome:
    """Semantic-embedding fused masked region modelling: predict masked regions from h_region + x_0 (equation 3).

    Args:
        kind: "mrfr" regresses the feature (mean squared error); "mrckl" matches the detector's soft labels
            (Kullback–Leibler divergence); "mrc" classifies into the likeliest foreground label (cross-entropy)
    """
    masked = batch.masked_regions
    regions = model.img_model.bert(batch.features, batch.positions, batch.region_mask, masked)[:, 1:]  # [B,R,h]
    x0 = None
    if heads.fusion != "none":
        x0 = model.txt_model.bert(batch.input_ids, batch.attention_mask, first_only=True)[:, 0]  # [B,h]
    hidden = heads.fuse(regions, x0)[masked]  # [N,h]
    if kind == "mrfr":
        target = batch.feature_targets.float()  # [N,F]
        logits = heads.feat_regress(hidden, model.img_model.bert.img_embeddings.img_linear.weight).float()
        return Outcome(F.mse_loss(logits, target, reduction="none"), logits, target)
    logits = heads.region_classifier(hidden).float()  # [N,C]
    soft = batch.label_targets.float()  # [N,C]
    if kind == "mrckl":
        return Outcome(F.kl_div(F.log_softmax(logits, dim=-1), soft, reduction="none"), logits, soft)
    target = soft[:, 1:].argmax(dim=-1) + 1  # class 0 is background
    return Outcome(F.cross_entropy(logits, target, reduction="none"), logits, target)


@dataclass
class CmrOptions:
    """How pairs are contrasted.

    Attributes:
        siblings: whether other captions of an image are negatives: "mask" or "keep"
        distill_weight: the divergence from the ranking of a batch's ``teacher_scores`` is added so many times
        temperature: of that ranking
    """

    siblings: Siblings = "mask"
    distill_weight: float = 0.0
    temperature: float = 1.0


Embedded = tuple[Tensor, Tensor, Tensor | None]  # texts x, images z, the images' captions c, each [B,D] float32


def embed(model: LightningDOT, batch: Batch) -> Embedded:
    """Both towers on a batch, and the text tower on the third view where there is one."""
    txt = model.encode_text(batch.input_ids, batch.attention_mask).float()
    img = model.encode_image(batch.features, batch.positions, batch.region_mask).float()
    third = None if batch.caption_ids is None else model.encode_text(batch.caption_ids, batch.caption_mask).float()
    return txt, img, third


def contrast(
    embedded: Embedded, batch: Batch, options: CmrOptions, ranks: Ranks = SINGLE, sizes: list[int] | None = None
) -> Outcome:
    """Cross-modal retrieval (equations 4–6): this rank's pairs among the rows of all ranks.

    Args:
        embedded: of this rank's batch
        sizes: rows of every rank's batch; None when there is one rank
    """
    rows = slice(batch.num_rows)
    sizes = sizes or [batch.num_rows]

    def everyones(x: Tensor | None) -> Tensor | None:
        return None if x is None else ranks.gather(x[rows], sizes)

    txt, img, third = map(everyones, embedded)  # [M,D]
    image_ids = everyones(batch.image_ids)  # [M]
    first = sum(sizes[: ranks.rank])
    queries = slice(first, first + batch.num_predictions("cmr"))  # N of M
    found = contrastive_loss(txt, img, image_ids, options.siblings, queries, third, batch.caption_weight)
    loss = found.loss  # [N]
    if batch.teacher_scores is not None:
        images, scores = everyones(batch.teacher_images), everyones(batch.teacher_scores)  # [M,K]
        t2i = teacher_matrix(images[queries], scores[queries], image_ids)  # [N,M]
        i2t = teacher_matrix(images, scores, image_ids[queries]).T  # [N,M]
        losses = (distillation_loss(*each, options.temperature) for each in ((found.t2i, t2i), (found.i2t, i2t)))
        loss = loss + options.distill_weight * sum(losses) / 2
    return Outcome(loss, found.t2i, image_ids)


def forward_task(
    task: str,
    model: LightningDOT,
    heads: PretrainingHeads,
    batch: Batch,
    options: CmrOptions | None = None,
    ranks: Ranks = SINGLE,
    sizes: list[int] | None = None,
) -> Outcome:
    """The objective named ``task``, one of ``TASKS``."""
    if task == "cmr":
        return contrast(embed(model, batch), batch, options or CmrOptions(), ranks, sizes)
    if task == "vmlm":
        return forward_vmlm(model, heads, batch)
    return forward_smrm(model, heads, batch, task)
