"""The settings of the contrastive loss."""

from __future__ import annotations

from dataclasses import dataclass

from data.errors import BadInput
from model.objectives.contrastive import LOSSES
from model.objectives.contrastive.base import ContrastiveLoss, Similarity, Temperature


@dataclass
class LossOptions:
    """The loss over the pairs of a batch.

    Args:
        name: softmax (the paper's) or sigmoid (SigLIP's); model/objectives/contrastive has them
        temperature: of the softmax: scores are divided by it; learned: it is trained too. None is 1
    """

    name: str = "softmax"
    temperature: Temperature = None

    def __post_init__(self):
        if self.name not in LOSSES:
            raise BadInput(f"loss.name {self.name!r} is none of the losses {', '.join(LOSSES)}")
        self.build()  # refuses a temperature that it has no place for

    def build(self) -> ContrastiveLoss:
        """The loss, with its own weights at their start."""
        return LOSSES[self.name](self.temperature)

    def check_similarity(self, similarity: Similarity) -> None:
        """Raise BadInput when the loss cannot learn from such scores."""
        reason = LOSSES[self.name].misfit(self.temperature, similarity)
        if reason is not None:
            raise BadInput(f"loss {self.name} needs {reason}")
