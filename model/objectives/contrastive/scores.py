"""The scores that a contrastive loss is computed from (Sun et al., NAACL 2021, section 3.3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from model.objectives.contrastive.base import PairScores

Siblings = Literal["mask", "keep"]
Negatives = Literal["all_ranks", "own_rank"]


def pair_scores(
    txt: Tensor,
    img: Tensor,
    image_ids: Tensor,
    siblings: Siblings = "mask",
    queries: slice = slice(None),
    captions: Tensor | None = None,
    caption_weight: float = 0.0,
    text_image_ids: Tensor | None = None,
) -> PairScores:
    """Dot products of every query with every candidate, in fp32 whatever the precision of the towers.

    Args:
        txt: [M,D] text embeddings x
        img: [M,D] image embeddings z; row i belongs to text i
        image_ids: [M] int64, equal where two rows show the same image. An image may appear several times, once for each
            of its captions
        text_image_ids: [M] int64, the images that the texts are about, where negatives have texts and images of their own;
            None: text i is about image i
        siblings: "mask" leaves the other captions of the same image out; "keep" takes them as negatives, as the original
            code did
        queries: the rows that have to find their partner; the others are negatives only (hard negatives)
        captions: [M,D] embeddings c of a caption of the image of each row, the third view
        caption_weight: w, share of the third view: x·((1-w) z + w c) text→image, z·((1-w) x + w c) image→text
    """
    with torch.autocast(txt.device.type, enabled=False):  # autocast would round the scores to bf16
        txt, img = txt.float(), img.float()
        txt_view, img_view = txt, img
        if captions is not None:
            txt_view, img_view = (torch.lerp(own, captions.float(), caption_weight) for own in (txt, img))
        t2i = txt[queries] @ img_view.T  # [N,M]
        i2t = img[queries] @ txt_view.T  # [N,M]
    own = torch.arange(len(txt), device=txt.device)[queries]
    if siblings == "keep":
        return PairScores(t2i, i2t, own, None)
    sibling = _siblings(image_ids, image_ids, queries, own)
    texts = sibling if text_image_ids is None else _siblings(image_ids, text_image_ids, queries, own)
    return PairScores(t2i, i2t, own, (sibling, texts))


def _siblings(image_ids: Tensor, candidates: Tensor, queries: slice, own: Tensor) -> Tensor:
    """[N,M] bool, True at what shows, or is about, a query's image, but at its partner."""
    sibling = image_ids[queries, None] == candidates[None, :]
    sibling[torch.arange(len(own), device=own.device), own] = False
    return sibling
