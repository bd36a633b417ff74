"""Training steps to be timed: random batches, and the updates that `optim.loop.fit` makes of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.distributed import Meeting, Ranks
from model.gradient_exchange import GradientFormat
from model.objectives import OBJECTIVES
from model.objectives.backward import Backward
from model.objectives.base import Objective
from model.objectives.heads import PretrainingHeads
from model.precision import Precision, loss_scaler
from model.transformer import EncoderConfig, compile_blocks
from optim.loop import Last, MicroBatch, Updater
from optim.optimizer import OptimOptions, build_optimizer
from scripts.benchmarking.random_batches import Sizes, random_batch


@dataclass(frozen=True)
class Case:
    """What is timed.

    Attributes:
        task: objective
        batch: pairs of one rank
        precision: of matrix products
        compiled: whether torch.compile fuses what stands between the blocks' products
        grad_cache: rows that cmr embeds at a time; 0: all at once
        gradient_format: in which ranks send each other gradients
    """

    task: str
    batch: int
    precision: Precision
    compiled: bool
    grad_cache: int
    gradient_format: GradientFormat = "fp32"


@dataclass
class ObjectiveTask:
    """One objective on one batch, as much of an `optim.loop.Task` as an update needs."""

    step: Backward
    objective: Objective

    def pairs(self, meeting: Meeting) -> int:
        return sum(meeting.sizes)

    def backward(
        self, micro_batch: MicroBatch, meeting: Meeting, scaler: torch.amp.GradScaler, accumulation: int, last: Last
    ) -> Tensor:
        return self.step.add_gradients(self.objective, micro_batch.batch, meeting, scaler, accumulation, last)


@dataclass
class TimedUpdate:
    """One update of a case, as often as it is called; ranks tell each other of the next one ahead, as in training.

    Attributes:
        waits: seconds that each call has waited for the gradients of other ranks
    """

    updater: Updater
    micro_batch: MicroBatch
    waits: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        before = self.updater.exchange.waited
        self.updater.update([self.micro_batch], step=0, lr=1e-6, following=[self.micro_batch])
        self.waits.append(self.updater.exchange.waited - before)


class TimedModel:
    """The model with its optimizer, and the update of any case.

    Args:
        sizes: of the model and of the batches
        checkpointing: compute activations again in backward
    """

    def __init__(self, sizes: Sizes, checkpointing: bool, device: torch.device, ranks: Ranks):
        names = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size".split()
        tower = EncoderConfig(**{name: getattr(sizes, name) for name in names})
        widths = {name: getattr(sizes, name) for name in ("project_dim", "feature_dim", "num_labels")}
        self.sizes, self.device, self.ranks = sizes, device, ranks
        self.model = LightningDOT(LightningDOTConfig(txt=tower, img=tower, **widths)).to(device).train()
        self.heads = PretrainingHeads(self.model.config).to(device).train()
        self.model.set_checkpointing(checkpointing)
        ranks.broadcast([*self.model.state_dict().values(), *self.heads.state_dict().values()])
        self.optimizer = build_optimizer([self.model, self.heads], OptimOptions(lr=1e-6))

    def update_of(self, case: Case) -> TimedUpdate:
        """One update of the case, as a function."""
        compile_blocks(self.model, case.compiled)
        objective, step = OBJECTIVES[case.task](), Backward(self.model, self.heads, self.ranks, case.precision, case.grad_cache)
        scaler = loss_scaler(self.device, case.precision)
        updater = Updater(ObjectiveTask(step, objective), self.optimizer, scaler, self.ranks, max_norm=5.0,
                          gradient_format=case.gradient_format)  # fmt: skip
        batch = random_batch(self.sizes, case.task, case.batch, self.device)
        indices = np.arange(len(batch))
        micro_batch = MicroBatch(case.task, batch, (), None, indices, objective.num_predictions(batch))
        return TimedUpdate(updater, micro_batch)
