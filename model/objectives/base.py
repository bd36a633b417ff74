"""What all objectives share: their settings, what they compute, and the parts of their heads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor, nn

from data.batches.batch import Batch, Examples
from data.batches.ragged import Predicted
from data.errors import BadInput
from model.attention import collect
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.costs import Load, Work, trained
from model.distributed import SINGLE, Meeting, Ranks
from model.objectives.contrastive.options import LossOptions
from model.objectives.contrastive.scores import Negatives, Siblings

Fusion = Literal["add", "none", "multiply"]


@dataclass(frozen=True)
class ObjectiveOptions:
    """The settings of all objectives; each reads its own.

    Attributes:
        fusion: how the other tower's pooled state enters masked words and regions: add (the paper), none, multiply
        word_mask_prob: share of the words that are masked
        region_mask_prob: share of the regions that are masked
        siblings: whether other captions of an image are negatives in retrieval: "mask" (they are not) or "keep"
        loss: the contrastive loss of retrieval
        distill_weight: the divergence from a re-ranker's ranking is added to the contrastive loss so many times
        distill_temperature: of that ranking
        negatives: whose pairs a pair of retrieval is compared with: of "all_ranks", or of its "own_rank" alone; then the loss
            of every objective is the mean of the ranks' means
        images_once: an image that several pairs of retrieval show is encoded once in a batch
    """

    fusion: Fusion = "add"
    word_mask_prob: float = 0.15
    region_mask_prob: float = 0.15
    siblings: Siblings = "mask"
    loss: LossOptions = field(default_factory=LossOptions)
    distill_weight: float = 0.0
    distill_temperature: float = 1.0
    negatives: Negatives = "all_ranks"
    images_once: bool = False


PAPER_OPTIONS = ObjectiveOptions()  # the defaults are the paper's


@dataclass
class Outcome:
    """What an objective computed.

    Attributes:
        loss: per prediction: [N] words or pairs, [N,F] feature values (mrfr), [N,C] classes (mrckl), [N] regions (mrc)
        logits: [N,V] words, [N,F] features, [N,C] classes, [B,B] scores text × image (cmr)
        target: what the logits were compared with
    """

    loss: Tensor
    logits: Tensor
    target: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean loss. A batch without predictions gives zero, still attached to the graph."""
        return self.share(len(self.loss))

    def share(self, predictions: int) -> Tensor:
        """This rank's part of the mean over the ``predictions`` of all ranks: the scalar that is minimised."""
        each = self.loss.shape[1] if self.loss.ndim == 2 else 1
        return self.loss.sum() / (max(predictions, 1) * each)


class Objective(ABC):
    """What is learnt from a batch of caption–image pairs. Without weights of its own: those are in its head.

    Attributes:
        name: by which recipes and logs call it
        head: under which name `PretrainingHeads` hold its head; None when it needs none. Two objectives of one name share
            the head
        reads_soft_labels: whether `prepare` needs the detector's soft labels of the regions
    """

    name: ClassVar[str]
    head: ClassVar[str | None] = None
    reads_soft_labels: ClassVar[bool] = False

    def __init__(self, options: ObjectiveOptions = PAPER_OPTIONS):
        self.options = options

    def misfit(self, config: LightningDOTConfig) -> str | None:
        """Why towers of these sizes cannot be trained with it, in words that end a message; None when they can."""
        return None

    def check(self, config: LightningDOTConfig) -> None:
        """Raise BadInput when towers of these sizes cannot be trained with it."""
        reason = self.misfit(config)
        if reason is not None:
            raise BadInput(f"objective {self.name} needs {reason}")

    def build_head(self, config: LightningDOTConfig) -> nn.Module:
        """Its head from random weights, for towers that fit."""
        raise NotImplementedError(f"{self.name} names a head, so it must build one")

    @abstractmethod
    def prepare(self, examples: Examples, rng: np.random.Generator) -> Batch:
        """Make a batch, masked as ``rng`` draws. Runs in the data workers, so that an objective must be picklable."""

    @abstractmethod
    def num_predictions(self, batch: Batch) -> int:
        """What the mean of the loss is taken over: words, regions or pairs of this rank's batch."""

    @abstractmethod
    def forward(
        self,
        model: LightningDOT,
        heads: nn.ModuleDict,
        batch: Batch,
        ranks: Ranks = SINGLE,
        sizes: Sequence[int] | None = None,
    ) -> Outcome:
        """Run the towers and the head on this rank's batch.

        Args:
            heads: `PretrainingHeads`, or any that hold ``self.head``
            ranks: whose pairs are each other's negatives
            sizes: rows of every rank's batch; None when there is one rank
        """

    def share(self, outcome: Outcome, meeting: Meeting) -> Tensor:
        """This rank's part of the loss of all ranks, the scalar that is minimised: of the mean over all predictions; with
        negatives of the own rank, of the mean of the ranks' means, those without a pair not counted."""
        if self.options.negatives == "all_ranks":
            return outcome.share(meeting.predictions)
        return outcome.mean / sum(size > 0 for size in meeting.sizes)

    def work(self, model: LightningDOT, heads: nn.ModuleDict, load: Load) -> list[Work]:
        """What a batch costs on paper (model/costs.py). Without it scripts/plan.py cannot plan the objective."""
        raise BadInput(f"objective {self.name} does not say what it costs; it needs a method work")

    def right(self, outcome: Outcome) -> Tensor | None:
        """[N] bool, which predictions are right, for the accuracy of validation; None when there is no such thing."""
        return None


def fuse(fusion: Fusion, hidden: Tensor, other: Tensor | None, predicted: Predicted) -> Tensor:
    """What is predicted from: hidden states [T,h] at N rows, each mixed with the other modality's position 0 [B,h] → [N,h]."""
    hidden = collect(hidden, predicted.rows)
    if fusion == "none":
        return hidden
    other = other[predicted.pairs]
    return hidden + other if fusion == "add" else hidden * other


def width_misfit(config: LightningDOTConfig, why: str) -> str | None:
    """The misfit of towers that differ in width."""
    if config.txt.hidden_size == config.img.hidden_size:
        return None
    return (
        f"towers of one width ({why}); text has hidden_size {config.txt.hidden_size}, image {config.img.hidden_size}; "
        "cmr alone trains towers that differ"
    )


def head_work(name: str, head: nn.Module, predictions: float, hidden_size: int, outputs: int, load: Load) -> Work:
    """What ``predictions`` of a head cost that has a layer of ``hidden_size`` and one to ``outputs``, tied or not."""
    low = load.bytes_per_number
    kept = predictions * outputs * (low + 4 + 4) + predictions * hidden_size * 4 * 4  # logits, in fp32, their softmax
    flops = predictions * 2 * hidden_size * (hidden_size + outputs)
    return Work(name, flops, 3, trained(head), kept, "predictions")
