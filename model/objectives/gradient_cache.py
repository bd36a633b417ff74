"""Contrastive batches larger than memory: the gradient cache (Gao, Zhang, Han, Callan, RepL4NLP 2021).

A contrastive loss needs the embeddings of the whole batch, but the towers need not run on all of it at once. The first
pass embeds chunk by chunk without a graph; the loss gives the gradient of every embedding; the second pass embeds each
chunk again, with the same dropout, and carries its part of that gradient into the weights. Memory is bounded by a chunk;
the towers run forward twice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from data.batches.batch import Batch

Views = tuple[Tensor | None, ...]  # what is embedded of a batch, [B,D] each


def backward_in_chunks(
    embed: Callable[[Batch], Views],
    batch: Batch,
    rows: int,
    precision: Callable[[], AbstractContextManager],
    loss_of: Callable[[Views], Tensor],
    last: Callable[[], AbstractContextManager] = contextlib.nullcontext,
) -> None:
    """What ``loss_of(embed(batch)).backward()`` does, with the activations of ``rows`` rows at a time.

    Args:
        embed: the towers on a batch, or on a part of it
        precision: context of the towers: autocast, or none
        loss_of: the loss, a scalar, of the embeddings of the whole batch; weights of its own get their gradients too
        last: context of the backward pass of the last chunk, after which no gradient changes
    """
    parts, states, first_pass = batch.split(rows), [], []
    with torch.no_grad():
        for part in parts:
            states.append(_random_state())
            with precision():
                first_pass.append(embed(part))
    after = _random_state()
    leaves = [
        None if views[0] is None else torch.cat(views).requires_grad_() for views in zip(*first_pass, strict=True)
    ]
    loss_of(tuple(leaves)).backward()
    gradients = [[None] * len(parts) if leaf is None else leaf.grad.split(rows) for leaf in leaves]
    for number, (part, state, *cached) in enumerate(zip(parts, states, *gradients, strict=True), 1):
        _set_random_state(state)
        with precision():
            views = embed(part)
        pairs = [(view, gradient) for view, gradient in zip(views, cached, strict=True) if view is not None]
        pairs = [(view, gradient) for view, gradient in pairs if view.requires_grad]  # not of a frozen tower
        with last() if number == len(parts) else contextlib.nullcontext():
            torch.autograd.backward([view for view, _ in pairs], [gradient for _, gradient in pairs])
    _set_random_state(after)


def _random_state() -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None


def _set_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
