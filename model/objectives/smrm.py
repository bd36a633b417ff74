"""Semantic-embedding fused masked region modelling (SMRM; Sun et al., NAACL 2021, section 3.2): its three kinds of target."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.batches.batch import Batch, Examples, collate_pairs
from data.batches.masking import choose
from data.batches.ragged import Predicted
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.costs import Load, Work
from model.distributed import SINGLE, Ranks
from model.objectives.base import Objective, Outcome, fuse, head_work, width_misfit


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


class MaskedRegions(Objective):
    """Predict something of masked regions from h_region + x_0 (equation 3), x_0 being the text tower's position 0.

    Attributes:
        predicts: what of a region its head predicts, in one word
    """

    predicts: ClassVar[str]

    def misfit(self, config: LightningDOTConfig) -> str | None:
        if self.options.fusion == "none":
            return None
        return width_misfit(config, f"fusion {self.options.fusion} of the text's position 0; fusion none needs no such thing")

    def prepare(self, examples: Examples, rng: np.random.Generator) -> Batch:
        """Zero the features to be predicted, and keep what they were as targets."""
        batch = collate_pairs(examples)
        chosen = [choose(count, rng, self.options.region_mask_prob) for count in batch.images.counts.tolist()]
        self.mask(batch, np.concatenate(chosen))
        if self.reads_soft_labels:
            labels = np.concatenate([examples.regions.soft_labels(n)[which] for n, which in enumerate(chosen)])
            batch.label_targets = torch.from_numpy(labels)
        return batch

    @staticmethod
    def mask(batch: Batch, chosen: np.ndarray) -> None:
        """Zero the features of the regions ``chosen`` [R] bool, which are to be predicted, and keep what they were."""
        masked, tokens = torch.from_numpy(chosen), np.zeros(len(batch.images.order), bool)
        tokens[(batch.images.order >= len(batch)).numpy()] = chosen
        batch.masked_regions, batch.predicted = masked, Predicted.at(tokens, batch.images.layout)
        batch.feature_targets = batch.images.features[masked]
        batch.images.features[masked] = 0

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
        tokens = model.img_model.bert(batch.images, batch.masked_regions)  # [B+R,h]
        x0 = None
        if self.options.fusion != "none":
            x0 = model.pool_texts(batch.texts)  # [B,h]
        return self.predict(model, heads, fuse(self.options.fusion, tokens, x0, batch.predicted), batch)

    def work(self, model: LightningDOT, heads: nn.ModuleDict, load: Load) -> list[Work]:
        predictions = load.pairs * max(1.0, self.options.region_mask_prob * load.regions)  # at least one is masked
        hidden_size, outputs = model.config.img.hidden_size, self.num_outputs(model.config)
        text = [] if self.options.fusion == "none" else model.text_work(load.rows, load)
        image = model.image_work(load.rows, load, first_only=False, masked=True)
        return [*text, *image, head_work(f"{self.predicts} head", heads[self.head], predictions, hidden_size, outputs, load)]

    @abstractmethod
    def num_outputs(self, config: LightningDOTConfig) -> int:
        """How many numbers are predicted of each region."""

    @abstractmethod
    def predict(self, model: LightningDOT, heads: nn.ModuleDict, hidden: Tensor, batch: Batch) -> Outcome:
        """The head on the fused states of the masked regions, ``hidden`` [N,h]."""


class RegionFeatures(MaskedRegions):
    """Regress the region's feature: mean squared error (mrfr). It has no accuracy."""

    name = "mrfr"
    head = "feat_regress"
    predicts = "feature"

    def num_outputs(self, config: LightningDOTConfig) -> int:
        return config.feature_dim

    def build_head(self, config: LightningDOTConfig) -> nn.Module:
        return FeatureHead(config.img.hidden_size, config.feature_dim)

    def predict(self, model: LightningDOT, heads: nn.ModuleDict, hidden: Tensor, batch: Batch) -> Outcome:
        target = batch.feature_targets.float()  # [N,F]
        found = heads["feat_regress"](hidden, model.img_model.bert.img_embeddings.img_linear.weight).float()  # [N,F]
        return Outcome(F.mse_loss(found, target, reduction="none"), found, target)


class _RegionLabels(MaskedRegions):
    head = "region_classifier"
    predicts = "class"
    reads_soft_labels = True

    def num_outputs(self, config: LightningDOTConfig) -> int:
        return config.num_labels

    def misfit(self, config: LightningDOTConfig) -> str | None:
        if not config.num_labels:
            return "soft labels of the regions; the model was made for a detector without (num_labels 0)"
        if config.num_labels == 1:
            return "classes of regions; num_labels 1 is the background alone"
        return super().misfit(config)

    def build_head(self, config: LightningDOTConfig) -> nn.Module:
        return ClassHead(config.img.hidden_size, config.num_labels)


class RegionDivergence(_RegionLabels):
    """Match the detector's soft labels: Kullback–Leibler divergence (mrckl). Right is who agrees with the likeliest."""

    name = "mrckl"

    def predict(self, model: LightningDOT, heads: nn.ModuleDict, hidden: Tensor, batch: Batch) -> Outcome:
        logits, soft = heads["region_classifier"](hidden).float(), batch.label_targets.float()  # [N,C]
        return Outcome(F.kl_div(F.log_softmax(logits, dim=-1), soft, reduction="none"), logits, soft)

    def right(self, outcome: Outcome) -> Tensor:
        return outcome.logits.argmax(dim=-1) == outcome.target.argmax(dim=-1)


class RegionClass(_RegionLabels):
    """Classify into the detector's likeliest foreground label: cross-entropy (mrc)."""

    name = "mrc"

    def predict(self, model: LightningDOT, heads: nn.ModuleDict, hidden: Tensor, batch: Batch) -> Outcome:
        logits = heads["region_classifier"](hidden).float()  # [N,C]
        target = batch.label_targets.float()[:, 1:].argmax(dim=-1) + 1  # class 0 is background
        return Outcome(F.cross_entropy(logits, target, reduction="none"), logits, target)

    def right(self, outcome: Outcome) -> Tensor:
        return outcome.logits.argmax(dim=-1) == outcome.target
