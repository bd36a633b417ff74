"""What all contrastive losses share: the scores they are given, and what they make of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

from torch import Tensor, nn

Similarity = Literal["dot", "cosine"]
Temperature = float | Literal["learned"] | None


class PairScores(NamedTuple):
    """Scores of N queries of each kind among M candidates.

    Attributes:
        t2i: [N,M] text × image
        i2t: [N,M] image × text
        own: [N] int64, the column of each query's partner
        left_out: [N,M] bool each, True where a candidate image of a text, and a candidate text of an image, is neither partner
            nor negative; None: nowhere
    """

    t2i: Tensor
    i2t: Tensor
    own: Tensor
    left_out: tuple[Tensor, Tensor] | None


class ContrastiveLoss(nn.Module, ABC):
    """A loss over the scores of pairs. It knows nothing of ranks, towers or third views: `pair_scores` has seen to those.

    Its own weights, where it has any, are trained, clipped, saved and broadcast with the pre-training heads. Every weight
    must take part in each forward pass, also when there is no query: all ranks exchange the same gradients.

    Args:
        temperature: the setting ``loss.temperature``

    Raises:
        BadInput: a temperature that the loss has no place for.
    """

    @abstractmethod
    def __init__(self, temperature: Temperature = None):
        super().__init__()

    @abstractmethod
    def logits(self, scores: Tensor) -> Tensor:
        """What is compared, [N,M] fp32, from scores [N,M]; distillation compares it with a re-ranker's scores."""

    @abstractmethod
    def forward(self, pairs: PairScores) -> Tensor:
        """[N], the loss of each pair, from `logits` in place of the scores; 0 rows where there are 0 queries."""

    @classmethod
    def misfit(cls, temperature: Temperature, similarity: Similarity) -> str | None:
        """Why it cannot learn from such scores, in words that end a message; None when it can."""
        return None
