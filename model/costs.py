"""What training costs on paper: parameters, floating-point operations, memory, bytes exchanged.

Every module says what it costs, in a method beside its ``forward`` (`Bert.work`, `Tower.work`, `RegionEmbeddings.work`), and so
does every objective (`Objective.work`); here it is added up. Nothing is run: the modules may be on the meta device
(`empty_weights`). One multiplication with its addition counts as two operations, so [m,k] times [k,n] is 2·m·k·n. Only
matrix products and attention count. A batch is B pairs of one size, without padding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from data.errors import BadInput

Parts = dict[str, float]  # name of a part → how much of something


@dataclass(frozen=True)
class Load:
    """The batch of one rank, and how it is computed.

    Args:
        pairs: B, hard negatives not included
        words: of a text, [CLS] and [SEP] not included
        regions: of an image
        hard_negatives: of a pair
        third_view: whether the text tower also reads captions of the images themselves, as long as the texts
        ranks: processes whose embeddings are each other's negatives
        grad_cache: rows that CMR embeds at a time, and all of it forward twice; 0: all at once, and once
        low_precision: matrix products in bf16 or fp16; weights stay in fp32
        captions_per_image: pairs that share an image, which CMR then encodes once
    """

    pairs: float
    words: float
    regions: float
    hard_negatives: int = 0
    third_view: bool = False
    ranks: int = 1
    grad_cache: int = 0
    low_precision: bool = False
    captions_per_image: float = 1

    @property
    def rows(self) -> float:
        """Texts that are embedded, and images where none is shared."""
        return self.pairs * (1 + self.hard_negatives)

    @property
    def images(self) -> float:
        """Images that CMR embeds."""
        return self.rows / self.captions_per_image

    @property
    def txt_length(self) -> float:
        return self.words + 2

    @property
    def img_length(self) -> float:
        return self.regions + 1

    @property
    def bytes_per_number(self) -> int:
        """Of what a matrix product reads and writes."""
        return 2 if self.low_precision else 4


@dataclass(frozen=True)
class Work:
    """What one batch asks of one part of a model.

    Attributes:
        name: of the part
        flops: operations of its forward pass
        passes: how often those are done in a step, forward and backward. Backward is twice forward, once for the inputs'
            gradients and once for the weights'; activation checkpointing goes forward once more
        gradients: parameters that get a gradient from it, which the ranks sum
        kept: bytes that forward keeps for backward
        kept_as: what those bytes are called
        gathered: bytes of all ranks' rows that each of them receives
    """

    name: str
    flops: float = 0.0
    passes: float = 1.0
    gradients: int = 0
    kept: float = 0.0
    kept_as: str = "activations"
    gathered: float = 0.0


def count(part: nn.Module | Tensor | None) -> int:
    """Parameters of a module, a shared one once."""
    if part is None:
        return 0
    return part.numel() if isinstance(part, Tensor) else sum(p.numel() for p in part.parameters())


def trained(part: nn.Module | Tensor) -> int:
    """Parameters that are not frozen."""
    parameters = [part] if isinstance(part, Tensor) else part.parameters()
    return sum(p.numel() for p in parameters if p.requires_grad)


def forward_flops(works: Iterable[Work]) -> Parts:
    """Forward operations of one batch on one rank, by part."""
    return {work.name: work.flops for work in works if work.flops}


def step_flops(works: Iterable[Work]) -> Parts:
    """Operations of one batch on one rank, forward and backward, by part."""
    return {work.name: work.flops * work.passes for work in works if work.flops}


def activation_bytes(works: Iterable[Work]) -> Parts:
    """What the forward pass of one batch keeps for backward on one rank, by what it holds."""
    parts: Parts = {}
    for work in works:
        if work.kept:
            parts[work.kept_as] = parts.get(work.kept_as, 0) + work.kept
    return parts


def exchanged_parameters(works: Iterable[Work]) -> int:
    """Parameters that a step has gradients for, which the ranks sum. Poolers of towers never have any."""
    return sum(work.gradients for work in works)


def exchanged_bytes(works: list[Work], load: Load) -> Parts:
    """What each rank sends (and receives as much) for one batch, by ring algorithms.

    Returns: gradients (summed once an update), embeddings (gathered with every batch, their gradients summed)
    """
    if load.ranks < 1:
        raise BadInput(f"ranks must be at least 1, found {load.ranks}")
    others = (load.ranks - 1) / load.ranks
    gathered = sum(work.gathered for work in works)
    return {
        "gradients": 2 * others * 4 * exchanged_parameters(works),
        "embeddings": others * gathered * (1 + 2),  # gathered forward, summed backward
    }


def memory(modules: list[nn.Module], tasks: list[list[Work]], load: Load, feature_dim: int) -> Parts:
    """Bytes of one rank when it is fullest, by what they hold. The allocator's own waste is not in it.

    Args:
        modules: all that is trained
        tasks: the work of a batch of each task
    """
    total, learning = sum(map(count, modules)), sum(map(trained, modules))
    fullest = max(map(activation_bytes, tasks), key=lambda parts: sum(parts.values()))
    multiplied = {work.name: work.gradients for works in tasks for work in works if work.flops}
    tokens = load.txt_length + load.img_length
    pair = load.regions * (2 * feature_dim + 4 * 7) + tokens * 3 * 8  # ids or order, column and place of each token
    return {
        "weights": 4 * total,
        "weights in low precision": 2 * sum(multiplied.values()) if load.low_precision else 0,  # autocast's copies
        "gradients": 4 * learning,
        "optimizer": 2 * 4 * learning,  # AdamW's two moments
        "exchange buffers": 4 * max(map(exchanged_parameters, tasks)) if load.ranks > 1 else 0,
        "batch": load.rows * pair,
        **fullest,
    }
