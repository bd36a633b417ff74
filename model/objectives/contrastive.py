"""Symmetric contrastive loss over a batch of text–image pairs (the paper's CMR, section 3.3)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Siblings = Literal["mask", "keep"]


class Contrast(NamedTuple):
    """What `contrastive_loss` computed, for N queries of each kind among M candidates.

    Attributes:
        loss: [N], ½ (text→image + image→text) cross-entropy of each pair
        t2i: [N,M] scores text × image, before masking
        i2t: [N,M] scores image × text, before masking
    """

    loss: Tensor
    t2i: Tensor
    i2t: Tensor


def contrastive_loss(
    txt: Tensor,
    img: Tensor,
    image_ids: Tensor,
    siblings: Siblings = "mask",
    queries: slice = slice(None),
    captions: Tensor | None = None,
    caption_weight: float = 0.0,
) -> Contrast:
    """Loss of each pair when every other row is a negative: ½ (text→image + image→text) cross-entropy.

    Args:
        txt: [M,D] text embeddings x
        img: [M,D] image embeddings z; row i belongs to text i
        image_ids: [M] int64, equal where two rows show the same image. An image may appear several times, once for each
            of its captions
        siblings: "mask" takes the other captions of the same image out of the negatives; "keep" leaves them in, as the
            original code did
        queries: the rows that have to find their partner; the others are negatives only (hard negatives)
        captions: [M,D] embeddings c of a caption of the image of each row, the third view
        caption_weight: w, share of the third view: x·((1-w) z + w c) text→image, z·((1-w) x + w c) image→text

    Scores are plain dot products, without temperature, in fp32 whatever the precision of the towers.
    """
    with torch.autocast(txt.device.type, enabled=False):  # autocast would round the scores to bf16
        txt, img = txt.float(), img.float()
        txt_view, img_view = txt, img
        if captions is not None:
            txt_view, img_view = (torch.lerp(own, captions.float(), caption_weight) for own in (txt, img))
        t2i = txt[queries] @ img_view.T  # [N,M]
        i2t = img[queries] @ txt_view.T  # [N,M]
    own = torch.arange(len(txt), device=txt.device)[queries]  # [N] column of each query's partner
    negatives = t2i, i2t
    if siblings == "mask":
        sibling = image_ids[queries, None] == image_ids[None, :]
        sibling[torch.arange(len(own), device=own.device), own] = False
        negatives = t2i.masked_fill(sibling, float("-inf")), i2t.masked_fill(sibling, float("-inf"))
    loss = sum(F.cross_entropy(scores, own, reduction="none") for scores in negatives) / 2
    return Contrast(loss, t2i, i2t)
