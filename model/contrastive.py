"""Symmetric contrastive loss over a batch of text–image pairs (the paper's CMR, section 3.3)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Siblings = Literal["mask", "keep"]


def contrastive_loss(txt: Tensor, img: Tensor, image_ids: Tensor, siblings: Siblings = "mask") -> tuple[Tensor, Tensor]:
    """Loss of each pair when every other pair of the batch is a negative: ½ (text→image + image→text) cross-entropy.

    Args:
        txt: [B,D] text embeddings x
        img: [B,D] image embeddings z; row i belongs to text i
        image_ids: [B] int64, equal where two pairs show the same image. An image may appear several times in a batch,
            once for each of its captions
        siblings: "mask" takes the other captions of the same image out of the negatives; "keep" leaves them in, as the
            original code did

    Returns:
        loss [B] and scores [B,B] (text × image, before masking). Scores are plain dot products, without temperature.
    """
    with torch.autocast(txt.device.type, enabled=False):  # autocast would round the scores to bf16
        scores = txt.float() @ img.float().T  # [B,B]
    target = torch.arange(len(scores), device=scores.device)
    negatives = scores
    if siblings == "mask":
        sibling = (image_ids[:, None] == image_ids[None, :]) & (target[:, None] != target[None, :])
        negatives = scores.masked_fill(sibling, float("-inf"))
    t2i = F.cross_entropy(negatives, target, reduction="none")
    i2t = F.cross_entropy(negatives.T, target, reduction="none")
    return (t2i + i2t) / 2, scores
