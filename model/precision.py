"""Number formats of the forward pass; parameters and optimizer state are float32 wherever something is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from data.errors import BadInput
from data.storage.environment import number_in_environment

Precision = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: object) -> Precision:
    """Raise BadInput unless this names a precision."""
    if not isinstance(precision, str) or precision not in get_args(Precision):
        raise BadInput(f"precision is {precision!r}, expected fp32, bf16 or fp16")
    return precision


def autocast(device: torch.device | str, precision: Precision) -> contextlib.AbstractContextManager:
    """Context in which matrix products run in ``precision``."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(torch.device(device).type, _DTYPES[precision])


@contextlib.contextmanager
def dropout_off(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; afterwards, whatever happens inside, each of its modules is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


class InferenceLinear(nn.Module):
    """A ``nn.Linear`` that only computes: its weights stand in memory in the order in which oneDNN multiplies with them, and not
    in rows, from which every call would have to bring them into that order."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().to(dtype))
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out], in the type of the weights."""
        return torch.ops.mkldnn._linear_pointwise(x.to(self.weight.dtype), self.weight, self.bias, "none", [], "")


def for_inference(model: nn.Module, device: torch.device | str, precision: Precision) -> None:
    """Make matrix products ready to be used and nothing else.

    Their weights are rounded now, and not at every call, as ``autocast`` otherwise does; on a CPU they are also put in the
    order in which oneDNN reads them. One query reads all weights, and its time is the time that takes. In 16 bits the results
    stay the same, bit by bit; fp32 sums are made in another order.

    Afterwards the model computes in this precision on this device; it can be neither trained nor saved.
    """
    model.requires_grad_(False)
    model.register_state_dict_pre_hook(_refuse_to_save)
    dtype = _DTYPES.get(precision, torch.float32)
    ordered = torch.device(device).type == "cpu" and _onednn_takes(dtype)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(parent, name, InferenceLinear(layer, dtype) if ordered else layer.to(dtype))


def _refuse_to_save(model: nn.Module, prefix: str, keep_vars: bool) -> None:
    raise BadInput(f"{type(model).__name__}: was made ready for inference and cannot be saved; read its checkpoint again")


def _onednn_takes(dtype: torch.dtype) -> bool:
    operations = torch.ops.mkldnn
    if not torch.backends.mkldnn.is_available() or not hasattr(operations, "_linear_pointwise"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and operations._is_mkldnn_bf16_supported())


def loss_scaler(device: torch.device, precision: Precision) -> torch.amp.GradScaler:
    """Keeps fp16 gradients within range; with the other precisions it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def choose_device(name: str | torch.device) -> torch.device:
    """The device of a name; ``auto`` takes the GPU when there is one; under a launcher each process of a machine takes its own.

    Raises:
        BadInput: no CPU and no GPU by that name, or one that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        local_rank = number_in_environment("LOCAL_RANK", number_in_environment("HOROVOD_LOCAL_RANK", 0))
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    try:
        device = torch.device(name) if isinstance(name, str | torch.device) else None
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise BadInput(f"device {str(name)!r} is not one of auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise BadInput(f"device {name}: {torch.cuda.device_count()} CUDA GPUs are available; use device auto or cpu")
    return device
