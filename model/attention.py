"""Attention over sequences of different lengths whose rows are packed one behind the other."""

from __future__ import annotations

import functools
import importlib.util

import torch
import torch.nn.functional as F
from torch import Tensor

from data.batches.ragged import Layout
from model.dropout import dropout as dropout_of
from model.dropout import has_own


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, places: Tensor, rows: int) -> Tensor:
        ctx.save_for_backward(places)
        return x.new_zeros(rows, *x.shape[1:]).index_copy_(0, places, x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return collect(gradient, *ctx.saved_tensors), None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.rows = len(x)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return spread(gradient, *ctx.saved_tensors, ctx.rows), None


def spread(x: Tensor, places: Tensor, rows: int) -> Tensor:
    """Put the rows of ``x`` [n,...] at ``places`` [n], all different, among ``rows`` rows of zeros."""
    return _Spread.apply(x, places, rows)


def collect(x: Tensor, places: Tensor) -> Tensor:
    """The rows of ``x`` at ``places`` [n], all different. Its backward is `spread`: nothing has to be summed, as indexing
    would."""
    return _Collect.apply(x, places)


def mean_of_sequences(x: Tensor, layout: Layout) -> Tensor:
    """Rows ``x`` [T,h] of B sequences → the mean of each sequence's, [B,h] in fp32 at least."""
    return torch.segment_reduce(x.to(torch.promote_types(x.dtype, torch.float32)), "mean", offsets=layout.offsets.long())


def attend(q: Tensor, k: Tensor, v: Tensor, layout: Layout, heads: int, dropout: float) -> Tensor:
    """Each sequence's queries over its own keys and values.

    On a GPU, in half precision and without dropout, one kernel reads the rows as they are; else they are spread to padded
    blocks.

    Args:
        q: [T,h], or [B,h] where position 0 of each sequence alone is asked for
        k, v: [T,h]
        layout: of the T rows, on their device
        dropout: of the attention weights

    Returns: in the shape of ``q``
    """
    if not dropout and _has_kernel(q.device, q.dtype, q.shape[1] // heads):
        return _attend_packed(q, k, v, layout, heads)
    first_only = len(q) == len(layout)  # or all sequences are of one row, where it is the same
    k, v = (_in_blocks(x, layout) for x in (k, v))
    if not first_only:
        q = _in_blocks(q, layout)
    elif layout.order is not None:
        q = collect(q, layout.order)
    sizes = [block.count * block.length for block in layout.blocks]
    parts = zip(
        layout.blocks,
        q.split([block.count for block in layout.blocks] if first_only else sizes),
        k.split(sizes),
        v.split(sizes),
        layout.masks(),
        strict=True,
    )
    found = []
    for block, *qkv, mask in parts:
        lengths = 1 if first_only else block.length, block.length, block.length
        q, k, v = (
            x.view(block.count, length, heads, x.shape[1] // heads).transpose(1, 2)  # [b,heads,L,d]
            for x, length in zip(qkv, lengths, strict=True)
        )
        each = _dropping(q, k, v, mask, dropout) if dropout and has_own(q.device) else F.scaled_dot_product_attention(q, k, v, mask, dropout)
        found.append(each.transpose(1, 2).flatten(2).flatten(0, 1))
    attended = torch.cat(found) if len(found) > 1 else found[0]
    places = layout.ranks if first_only else layout.places
    return attended if places is None else collect(attended, places)


def _dropping(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rate: float) -> Tensor:
    """Attention in single steps and in fp32 at least, as PyTorch computes it on a CPU where there is dropout, but for how that is
    drawn."""
    wide, scale = torch.promote_types(q.dtype, torch.float32), q.shape[-1] ** -0.5
    with torch.autocast(q.device.type, enabled=False):
        scores = (q.to(wide) * scale) @ k.to(wide).transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return (dropout_of(scores.softmax(-1), rate) @ v.to(wide)).to(q.dtype)


def _in_blocks(x: Tensor, layout: Layout) -> Tensor:
    """[T,h] → [N,h]"""
    if layout.places is None:
        return x
    return spread(x, layout.places, sum(block.count * block.length for block in layout.blocks))


def _attend_packed(q: Tensor, k: Tensor, v: Tensor, layout: Layout, heads: int) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # slow to import: it brings torch._dynamo

    q, k, v = (x.unflatten(1, (heads, -1)) for x in (q, k, v))  # [T,heads,d]
    starts, longest = layout.offsets, layout.longest
    queries = (starts, longest)
    if len(q) == len(layout):
        queries = (torch.arange(len(layout) + 1, dtype=torch.int32, device=q.device), 1)
    return varlen_attn(q, k, v, queries[0], starts, queries[1], longest).flatten(1)


@functools.cache
def _has_kernel(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether there is a kernel for packed rows: FlashAttention's, on GPUs since Ampere."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16) or torch.version.hip:
        return False
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:  # torch before 2.10
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0) and width % 8 == 0 and width <= 256
