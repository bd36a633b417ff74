"""AdamW with decay where decay belongs, or where the original put it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from data.errors import BadInput

Algorithm = Literal["adamw", "adamw_original", "apex"]
NoDecay = Literal["vectors", "original"]
Accumulation = Literal["mean", "sum"]
MOMENTS = frozenset({"step", "exp_avg", "exp_avg_sq"})  # what an optimizer keeps of a parameter
Schedule = Literal["linear", "hf_linear", "uniter_linear", "uniter_invsqrt", "constant"]


@dataclass
class OptimOptions:
    """How parameters change.

    Args:
        algorithm: adamw (PyTorch's, fused); adamw_original: decay after the update, as transformers' and UNITER's did;
            apex: NVIDIA apex's FusedAdam, where it is installed
        lr: peak learning rate
        schedule: of the rate after the warm-up: linear; the original's hf_linear (fine-tuning), uniter_linear and
            uniter_invsqrt (pre-training), which count steps in other ways; constant
        warmup_steps: updates over which the rate rises linearly from 0 to its peak
        warmup_ratio: the same as a share of all updates; one of the two
        betas: AdamW's decay rates of the first and second moment
        eps: AdamW's epsilon
        weight_decay: decoupled decay
        no_decay: what is not decayed: vectors (biases and layer norms); or original: what has bias or LayerNorm.weight in
            its name, so that the layer norms of region embeddings, heads and projection are decayed
        grad_clip: largest global gradient norm; 0 does not clip
        accumulation: of the batches of one update (grad_accumulation), what is clipped and followed: the mean of their gradients,
            or their sum, as the original's pre-training: the same as the mean with grad_clip divided by their number, but
            for AdamW's epsilon
    """

    algorithm: Algorithm = "adamw"
    lr: float = 5e-5
    schedule: Schedule = "linear"
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)  # as UNITER and the paper's pre-training
    eps: float = 1e-6
    weight_decay: float = 0.01
    no_decay: NoDecay = "vectors"
    grad_clip: float = 5.0
    accumulation: Accumulation = "mean"

    def __post_init__(self):
        if self.lr <= 0:
            raise BadInput(f"optim.lr must be above 0, found {self.lr}")
        if self.warmup_steps < 0 or not 0 <= self.warmup_ratio <= 1:
            raise BadInput(f"optim: warm-up out of range: {self.warmup_steps} steps, ratio {self.warmup_ratio}")
        if self.warmup_steps and self.warmup_ratio:
            raise BadInput("optim: give warmup_steps or warmup_ratio, not both")
        if self.schedule == "uniter_invsqrt" and not (self.warmup_steps or self.warmup_ratio):
            raise BadInput("optim.schedule uniter_invsqrt falls from the end of the warm-up: give warmup_steps")
        if self.schedule == "constant" and (self.warmup_steps or self.warmup_ratio):
            raise BadInput("optim.schedule constant has no warm-up: leave warmup_steps and warmup_ratio out")
        if self.grad_clip < 0:
            raise BadInput(f"optim.grad_clip must be 0 or above, found {self.grad_clip}")


def build_optimizer(modules: list[nn.Module], options: OptimOptions) -> torch.optim.Optimizer:
    """The optimizer over the trainable parameters of ``modules``, in two groups: decayed and not."""
    named = [(name, p) for module in modules for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise BadInput("no parameter is left to train: both towers are frozen")
    decayed = [p for name, p in named if _decays(name, p, options.no_decay)]
    others = [p for name, p in named if not _decays(name, p, options.no_decay)]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if options.algorithm == "adamw_original":
        return OriginalAdamW(groups, options.lr, tuple(options.betas), options.eps)
    if options.algorithm == "apex":
        try:
            from apex.optimizers import FusedAdam  # optional
        except ImportError as error:  # PyPI's project of that name is not NVIDIA's, and has no optimizers
            raise BadInput(
                f"optim.algorithm apex: NVIDIA apex is not installed ({error}); build it from its repository, or use adamw, "
                "which is fused too"
            ) from error
        return FusedAdam(groups, lr=options.lr, betas=tuple(options.betas), eps=options.eps)
    return torch.optim.AdamW(groups, lr=options.lr, betas=tuple(options.betas), eps=options.eps, fused=True)


def _decays(name: str, parameter: Tensor, no_decay: NoDecay) -> bool:
    if parameter.ndim == 0:  # a learned scale
        return False
    if no_decay == "original":
        return "bias" not in name and "LayerNorm.weight" not in name
    return parameter.ndim >= 2


class OriginalAdamW(torch.optim.Optimizer):
    """AdamW as transformers and UNITER had it: the parameter is decayed after the update, and epsilon is added to the
    square root of the second moment before its bias is corrected.

    PyTorch's decays first and corrects first; the difference is about lr² · decay a step. The state is one step count a
    parameter and two moments.
    """

    def __init__(self, groups: list[dict], lr: float, betas: tuple[float, float], eps: float):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p, state in self._with_gradient(group):
                state["step"] += 1
                state["exp_avg"].lerp_(p.grad, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                corrected = math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])
                denominator = state["exp_avg_sq"].sqrt().add_(group["eps"])
                p.addcdiv_(state["exp_avg"], denominator, value=-group["lr"] * corrected)
                if group["weight_decay"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"])

    def _with_gradient(self, group: dict) -> Iterator[tuple[Tensor, dict]]:
        for p in group["params"]:
            if p.grad is not None:
                if not self.state[p]:
                    zeros = torch.zeros_like(p), torch.zeros_like(p)
                    self.state[p] = {"step": 0, "exp_avg": zeros[0], "exp_avg_sq": zeros[1]}
                yield p, self.state[p]


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """All parameters that an optimizer changes, in its order."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def check_moments(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Refuse a saved state that an update would stumble over, or that would make numbers of something else.

    Args:
        state: number of a parameter → its moments, and how many updates it has had where the optimizer counts them so

    Raises:
        ValueError: a moment is missing, of another shape, or NaN or infinite, or a count is none.
    """
    parameters = dict(enumerate(parameters_of(optimizer)))
    kinds = {frozenset(moments) for moments in state.values()}
    if len(kinds) > 1 or not {"exp_avg", "exp_avg_sq"} <= next(iter(kinds), MOMENTS) <= MOMENTS:
        raise ValueError(f"the optimizer's state holds {[sorted(map(str, kind)) for kind in kinds][:2]}, expected {sorted(MOMENTS)} of each parameter")
    for number, moments in state.items():
        if number not in parameters:
            raise ValueError(f"the optimizer's state has a parameter {number}, the model has {len(parameters)}")
        for name in ("exp_avg", "exp_avg_sq"):
            moment = moments[name]
            fits = isinstance(moment, Tensor) and moment.is_floating_point() and moment.shape == parameters[number].shape
            if not fits or not moment.isfinite().all() or (name == "exp_avg_sq" and (moment < 0).any()):
                raise ValueError(f"{name} of parameter {number} is no finite tensor {list(parameters[number].shape)}")
        steps = torch.as_tensor(moments.get("step", 1))
        if steps.ndim or not 1 <= steps < 1 << 31:
            raise ValueError(f"the step of parameter {number} is no number of updates")


def apply_update(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, lr: float, max_norm: float
) -> Tensor:
    """One update from the gradients of all ranks together: clip, step, clear.

    Args:
        scaler: as of `loss_scaler`; with fp16 an update whose gradients overflowed is left out
        max_norm: largest global gradient norm; 0 does not clip

    Returns: the global norm before clipping, on the device
    """
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(parameters_of(optimizer), max_norm or float("inf"))
    for group in optimizer.param_groups:
        group["lr"] = lr
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return norm
