"""Number formats of the forward pass; parameters and optimizer state are always float32."""

from __future__ import annotations

import contextlib
from typing import Literal

import torch

from data.errors import BadInput

Precision = Literal["fp32", "bf16"]


def autocast(device: torch.device | str, precision: Precision) -> contextlib.AbstractContextManager:
    """Context in which matrix products run in ``precision``."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def choose_device(name: str) -> torch.device:
    """``auto`` takes the GPU when there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise BadInput(f"device {name!r} is not one of auto, cpu, cuda, cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadInput(f"device {name}: {torch.cuda.device_count()} CUDA GPUs are available; use device auto or cpu")
    return device
