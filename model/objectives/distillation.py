"""Learning the ranking of a re-ranker."""

from __future__ import annotations

import torch
from torch import Tensor


def distillation_loss(scores: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of the model's ranking from a re-ranker's, among the candidates that the re-ranker has scored.

    Args:
        scores: [N,M] the model's scores, as in `Contrast`
        teacher: [N,M] the re-ranker's scores, NaN where it gave none
        temperature: T, divides both before the softmax; the loss is multiplied by T² so that its gradients keep their
            size (Hinton, Vinyals, Dean, 2015)

    Returns: [N]; 0 for a query with fewer than two scored candidates
    """
    known = ~teacher.isnan()
    log_p, log_q = (
        (each.float() / temperature).masked_fill(~known, -1e30).log_softmax(dim=1)  # -inf would make NaN gradients
        for each in (scores, teacher)
    )
    terms = torch.where(known, log_q.exp() * (log_q - log_p), 0.0)
    return torch.where(known.sum(dim=1) > 1, terms.sum(dim=1), 0.0) * temperature**2


def teacher_matrix(teacher_images: Tensor, teacher_scores: Tensor, image_ids: Tensor) -> Tensor:
    """A re-ranker's scores of each text with each image of a batch.

    Args:
        teacher_images: [B,K] int64, images it has scored for each text, -1 where fewer than K
        teacher_scores: [B,K] their scores
        image_ids: [M] int64, the images of the batch

    Returns: [B,M] float32, NaN where it gave no score
    """
    matrix = torch.full((len(teacher_images), len(image_ids)), float("nan"), device=image_ids.device)
    for images, scores in zip(
        teacher_images.T, teacher_scores.T, strict=True
    ):  # K small steps instead of [B,K,M] at once
        matrix = torch.where(images[:, None] == image_ids, scores[:, None].float(), matrix)
    return matrix
