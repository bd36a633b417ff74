"""From a batch to gradients: any objective, directly or through the gradient cache."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.batches.batch import Batch
from model.bi_encoder import LightningDOT
from model.distributed import Meeting, Ranks
from model.objectives.base import Objective
from model.objectives.cmr import CrossModalRetrieval, Embedded
from model.objectives.gradient_cache import backward_in_chunks
from model.precision import Precision, autocast


@dataclass
class Backward:
    """How the batches of a run are carried back into gradients.

    Attributes:
        heads: `PretrainingHeads`, or those of the objectives that are trained
        ranks: the processes that train together
        precision: of matrix products
        cache_rows: rows that cmr embeds at a time, the gradient cache; 0: all at once. Other objectives do without
    """

    model: LightningDOT
    heads: nn.ModuleDict
    ranks: Ranks
    precision: Precision
    cache_rows: int = 0

    def add_gradients(
        self,
        objective: Objective,
        batch: Batch,
        meeting: Meeting,
        scaler: torch.amp.GradScaler,
        accumulation: int,
        last: Callable[[], AbstractContextManager] = contextlib.nullcontext,
    ) -> Tensor:
        """Add the gradients of a batch on the model's device, divided by ``accumulation`` → this rank's share of its loss.

        Args:
            last: context of the backward pass after which the batch's gradients are whole, for `GradientExchange`
        """
        precision = functools.partial(autocast, batch.device, self.precision)
        if self.cache_rows and isinstance(objective, CrossModalRetrieval):
            shares = []

            def loss_of(embedded: Embedded) -> Tensor:
                outcome = objective.contrast(embedded, self.heads, batch, self.ranks, meeting.sizes)
                shares.append(objective.share(outcome, meeting))
                return scaler.scale(shares[0] / accumulation)

            embed = functools.partial(objective.embed, self.model)
            backward_in_chunks(embed, batch, self.cache_rows, precision, loss_of, last)
            return shares[0].detach()
        with precision():
            outcome = objective.forward(self.model, self.heads, batch, self.ranks, meeting.sizes)
            share = objective.share(outcome, meeting)
        with last():
            scaler.scale(share / accumulation).backward()
        return share.detach()
