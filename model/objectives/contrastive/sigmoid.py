"""The sigmoid loss (SigLIP; Zhai, Mustafa, Kolesnikov, Beyer, ICCV 2023)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.errors import BadInput
from model.objectives.contrastive.base import ContrastiveLoss, PairScores, Temperature


class SigmoidLoss(ContrastiveLoss):
    """Every pair of a text and an image is judged alone, right or wrong: -log σ(±(t·score + b)), t and b learned.

    Summed over the candidates of a query and averaged over the queries, ½ text→image and ½ image→text: in a batch without
    hard negatives or third view both are the same sum, and the loss is the paper's. A hard negative, which one direction
    alone meets, counts half.

    Goes in: cosines (``model.similarity: cosine``), which t = 10 and b = -10 at the start are made for: nearly all pairs
    are wrong, and b says so before anything is learnt. Dot products work where they start about as small.
    Assumed: what else shows the same image is neither right nor wrong, and counts nothing.
    Better: the softmax loss where only the order of the candidates matters and batches are large and clean.
    """

    def __init__(self, temperature: Temperature = None):
        super().__init__(temperature)
        if temperature is not None:
            raise BadInput(f"loss.temperature {temperature}: the sigmoid loss learns its own scale; leave it out")
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))  # t' of the paper
        self.bias = nn.Parameter(torch.tensor(-10.0))

    def logits(self, scores: Tensor) -> Tensor:
        return scores * self.log_scale.exp() + self.bias

    def forward(self, pairs: PairScores) -> Tensor:
        rows = torch.arange(len(pairs.own), device=pairs.own.device)
        sign = torch.full_like(pairs.t2i, -1.0)
        sign[rows, pairs.own] = 1.0
        losses = []
        for logits, left_out in zip((pairs.t2i, pairs.i2t), pairs.left_out or (None, None), strict=True):
            each = -F.logsigmoid(sign * logits)  # [N,M]
            losses.append((each if left_out is None else each.masked_fill(left_out, 0.0)).sum(dim=1))
        return sum(losses) / 2
