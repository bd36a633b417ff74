"""Dropout whose random numbers do not take longer than what they are for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """``nn.Dropout`` that draws 16 random bits a number on a CPU.

    PyTorch draws two 32-bit words for each number there, one number after the other in one thread: a tenth of a training step
    of BERT-base in bf16. With 16 bits the rate is rounded to a multiple of 1/65,536. The bits come from PyTorch's own
    generator, so that a seed repeats them, and a saved state of the generator goes on with them.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x → x of the same shape, dtype and expectation, some of whose numbers are zero."""
        return dropout(x, self.p) if self.training else x


def dropout(x: Tensor, rate: float) -> Tensor:
    """As `Dropout` in training."""
    if not 0 < rate < 1 or not has_own(x.device) or torch.compiler.is_compiling():
        return F.dropout(x, rate)
    return x * _kept(x, rate)


def has_own(device: torch.device) -> bool:
    """Whether the random numbers are drawn here, and not by PyTorch's own dropout."""
    return device.type == "cpu"


def _kept(x: Tensor, rate: float) -> Tensor:
    """Factors in the shape and dtype of ``x``: 0 with probability ``rate``, else 1 / (1 - rate)."""
    dropped = min(max(round(rate * 65536), 1), 65535)  # of the 65,536 values that 16 bits have
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    kept = torch.ge(bits, dropped - 32768, out=torch.empty_like(x, memory_format=torch.contiguous_format))
    return kept.mul_(1 / (1 - dropped / 65536))
