"""Contrastive batches larger than memory: the gradient cache (Gao, Zhang, Han, Callan, RepL4NLP 2021).

A contrastive loss needs the embeddings of the whole batch, but the towers need not run on all of it at once. The first
pass embeds chunk by chunk without a graph; the loss gives the gradient of every embedding; the second pass embeds each
chunk again, with the same dropout, and carries its part of that gradient into the weights. Memory is bounded by a chunk;
the towers run forward twice.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from data.batches.batch import Batch
from model.bi_encoder import LightningDOT
from model.distributed import Meeting, Ranks
from model.objectives.pretraining import CmrOptions, Embedded, contrast, embed


def backward_in_chunks(
    model: LightningDOT,
    batch: Batch,
    rows: int,
    context: Callable[[], AbstractContextManager],
    loss_of: Callable[[Embedded], Tensor],
) -> None:
    """What ``loss_of(embed(model, batch)).backward()`` does, with the activations of ``rows`` rows at a time.

    Args:
        context: of the towers: autocast, or none
        loss_of: the loss, a scalar, of the embeddings of the whole batch
    """
    parts, states, first_pass = batch.split(rows), [], []
    with torch.no_grad():
        for part in parts:
            states.append(_random_state())
            with context():
                first_pass.append(embed(model, part))
    after = _random_state()
    leaves = [
        None if views[0] is None else torch.cat(views).requires_grad_() for views in zip(*first_pass, strict=True)
    ]
    loss_of(tuple(leaves)).backward()
    gradients = [[None] * len(parts) if leaf is None else leaf.grad.split(rows) for leaf in leaves]
    for part, state, *cached in zip(parts, states, *gradients, strict=True):
        _set_random_state(state)
        with context():
            views = embed(model, part)
        pairs = [(view, gradient) for view, gradient in zip(views, cached, strict=True) if view is not None]
        pairs = [(view, gradient) for view, gradient in pairs if view.requires_grad]  # not of a frozen tower
        torch.autograd.backward([view for view, _ in pairs], [gradient for _, gradient in pairs])
    _set_random_state(after)


def cached_backward(
    model: LightningDOT,
    batch: Batch,
    rows: int,
    context: Callable[[], AbstractContextManager],
    options: CmrOptions,
    ranks: Ranks,
    met: Meeting,
    scaler: torch.amp.GradScaler,
    accumulation: int,
) -> Tensor:
    """Add the gradients of one CMR batch, ``rows`` rows at a time → this rank's share of its loss.

    Args:
        accumulation: batches of the update that this is one of
    """
    shares = []

    def loss_of(embedded: Embedded) -> Tensor:
        shares.append(contrast(embedded, batch, options, ranks, met.sizes).share(met.predictions))
        return scaler.scale(shares[0] / accumulation)

    backward_in_chunks(model, batch, rows, context, loss_of)
    return shares[0].detach()


def _random_state() -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None


def _set_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
