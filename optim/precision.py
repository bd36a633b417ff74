"""Number formats of the forward pass; parameters and optimizer state are float32 wherever something is trained."""

from __future__ import annotations

import contextlib
import os
from typing import Literal

import torch
from torch import nn

from data.errors import BadInput

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device | str, precision: Precision) -> contextlib.AbstractContextManager:
    """Context in which matrix products run in ``precision``."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, _DTYPES[precision])


def round_weights(model: nn.Module, precision: Precision) -> None:
    """Round the weights of matrix products now, and not at every call, as ``autocast`` otherwise does: for inference.

    One query reads all weights, and its time is the time that takes: in 16 bits half as long. Results stay the same, bit by
    bit.
    """
    if precision != "fp32":
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.to(_DTYPES[precision])


def loss_scaler(device: torch.device, precision: Precision) -> torch.amp.GradScaler:
    """Keeps fp16 gradients within range; with the other precisions it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def choose_device(name: str) -> torch.device:
    """``auto`` takes the GPU when there is one; under a launcher each process of a machine takes its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        local_rank = int(os.environ.get("LOCAL_RANK", os.environ.get("HOROVOD_LOCAL_RANK", 0)))
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadInput(f"device {name!r} is not one of auto, cpu, cuda, cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadInput(f"device {name}: {torch.cuda.device_count()} CUDA GPUs are available; use device auto or cpu")
    return device
