"""The contrastive loss of the paper: a softmax over the candidates (Sun et al., NAACL 2021, equations 4–6)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.errors import BadInput
from model.objectives.contrastive.base import ContrastiveLoss, PairScores, Similarity, Temperature

START = 0.07  # of a learned temperature, and the bound of its scale: as CLIP (Radford et al., ICML 2021, section 2.5)
LARGEST_SCALE = 100.0


class SoftmaxLoss(ContrastiveLoss):
    """½ (text→image + image→text) cross-entropy: each query has to find its partner among all candidates.

    Goes in: dot products, as in the paper, without temperature; or dot products or cosines with one.
    Assumed: exactly one candidate is right for a query; what else shows the same image is left out of the softmax.
    Better: the sigmoid loss where the candidates of a query are hardly comparable (noisy captions, of which several fit), or
    where batches are so small that a softmax has few wrong candidates to tell apart.

    Args:
        temperature: scores are divided by it. None is 1; "learned" starts at 0.07 and stays above 0.01, as in CLIP
    """

    def __init__(self, temperature: Temperature = None):
        super().__init__(temperature)
        if not (temperature in (None, "learned") or temperature > 0):
            raise BadInput(f"loss.temperature must be above 0, found {temperature}")
        self.temperature = temperature
        if temperature == "learned":
            self.log_scale = nn.Parameter(torch.tensor(math.log(1 / START)))

    def logits(self, scores: Tensor) -> Tensor:
        if self.temperature is None:
            return scores
        if self.temperature != "learned":
            return scores / self.temperature
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(LARGEST_SCALE))
        return scores * self.log_scale.exp()

    def forward(self, pairs: PairScores) -> Tensor:
        both = pairs.t2i, pairs.i2t
        if pairs.left_out is not None:
            both = [logits.masked_fill(out, float("-inf")) for logits, out in zip(both, pairs.left_out, strict=True)]
        return sum(F.cross_entropy(logits, pairs.own, reduction="none") for logits in both) / 2

    @classmethod
    def misfit(cls, temperature: Temperature, similarity: Similarity) -> str | None:
        if similarity == "cosine" and temperature is None:
            return "a temperature for cosines, which are at most 1 apart from 0: give loss.temperature, 0.05 or learned"
        return None
