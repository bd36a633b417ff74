"""AdamW with decay where decay belongs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from data.errors import BadInput


@dataclass
class OptimOptions:
    """How parameters change.

    Args:
        lr: peak learning rate
        warmup_steps: updates over which the rate rises linearly from 0 to its peak
        warmup_ratio: the same as a share of all updates; one of the two
        betas: AdamW's decay rates of the first and second moment
        eps: AdamW's epsilon
        weight_decay: decoupled decay of matrices; biases and layer norms are not decayed
        grad_clip: largest global gradient norm; 0 does not clip
    """

    lr: float = 5e-5
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)  # as UNITER and the paper's pre-training
    eps: float = 1e-6
    weight_decay: float = 0.01
    grad_clip: float = 5.0

    def __post_init__(self):
        if self.lr <= 0:
            raise BadInput(f"optim.lr must be above 0, found {self.lr}")
        if self.warmup_steps < 0 or not 0 <= self.warmup_ratio <= 1:
            raise BadInput(f"optim: warm-up out of range: {self.warmup_steps} steps, ratio {self.warmup_ratio}")
        if self.warmup_steps and self.warmup_ratio:
            raise BadInput("optim: give warmup_steps or warmup_ratio, not both")
        if self.grad_clip < 0:
            raise BadInput(f"optim.grad_clip must be 0 or above, found {self.grad_clip}")


def build_optimizer(modules: list[nn.Module], options: OptimOptions) -> torch.optim.AdamW:
    """AdamW over the trainable parameters of ``modules``, in two groups: decayed (matrices) and not (vectors)."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.lr, betas=tuple(options.betas), eps=options.eps, fused=True)


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float) -> torch.Tensor:
    """Scale all gradients to a global norm of at most ``max_norm`` (0: leave them); returns the norm before."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, max_norm or float("inf"))
