"""How vectors are stored: fp32, fp16, bf16 (as uint16), and int8 with one scale per row."""

from __future__ import annotations

from typing import Any

import numpy as np

DTYPES: dict[str, np.dtype[Any]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2"), "bf16": np.dtype("<u2"), "int8": np.dtype("i1")}


def round_to(vectors: np.ndarray, dtype: str) -> np.ndarray:
    """[n,D] float32 → the same as they read back once stored as ``dtype``, [n,D] float32; too large ones are infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "int8":
            return dequantize(*quantize(vectors))
        return decode(encode(vectors, dtype), dtype)


def encode(vectors: np.ndarray, dtype: str) -> np.ndarray:
    """[n,D] float32 → the array that is stored; int8 has `quantize`."""
    if dtype != "bf16":
        return vectors.astype(DTYPES[dtype])
    bits = np.ascontiguousarray(vectors, np.float32).view("<u4").astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to nearest, ties to even
    return np.where(np.isnan(vectors), 0x7FC0, rounded).astype("<u2")


def decode(stored: np.ndarray, dtype: str) -> np.ndarray:
    """What was stored → [n,D] float32; a view where it is that already."""
    if dtype == "bf16":
        return (stored.astype("<u4") << 16).view("<f4")
    return stored.astype(np.float32, copy=False)


def quantize(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[n,D] float32 → scales [n] float32, codes [n,D] int8; a row is near its scale · its codes."""
    scales = np.abs(vectors).max(axis=1, initial=0) / np.float32(127)
    scales[scales < 1e-36] = 0  # such a row is as good as zero, and its quotients would overflow
    codes = np.rint(vectors / np.where(scales > 0, scales, 1)[:, None])
    return scales.astype("<f4"), np.clip(np.nan_to_num(codes), -127, 127).astype(np.int8)


def dequantize(scales: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """→ [n,D] float32; also of one row"""
    return codes * scales[..., None]
