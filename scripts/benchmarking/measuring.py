"""What the benchmarks share: seconds of a call, memory at its highest, the name of the device, and the spread of several rounds."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from data.errors import BadInput
from model.precision import Precision


def refuse_empty_lists(settings: Any) -> None:
    """Raise BadInput where a setting of several values, each of which is measured, has none."""
    for name, value in vars(settings).items():
        if value == []:
            raise BadInput(f"{name}: found none, expected at least one")


def refuse_plot_in_results(out: str) -> None:
    """Raise BadInput where the file of the results is the one that the plot beside them, ``.png``, would be written over."""
    if Path(out).suffix == ".png":
        raise BadInput(f"out: {out} is where the plot is written; give a name of the results that ends in .json")


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was told; the CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_each(step: Callable[[], None], device: torch.device, least: float) -> float:
    """Seconds of one step, from as many as take ``least`` seconds, after one that is not counted."""
    step()
    synchronize(device)
    started, steps = time.perf_counter(), 0
    while steps == 0 or time.perf_counter() - started < least:
        step()
        steps += 1
        synchronize(device)
    return (time.perf_counter() - started) / steps


def matmul_flops(device: torch.device, precision: Precision, least: float) -> float:
    """Operations per second of a large square matrix product."""
    n = 8192 if device.type == "cuda" else 2048
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * n**3 / seconds_each(lambda: torch.mm(a, b, out=out), device, least)


def reset_peak(device: torch.device) -> None:
    """From here on ``peak_bytes`` counts."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident set starts anew (Linux)


def peak_bytes(device: torch.device) -> int:
    """Most memory since ``reset_peak``: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return process_bytes("VmHWM")


def process_bytes(name: str = "VmRSS") -> int:
    """A size of this process as Linux names it: VmRSS is what it holds in memory now, VmHWM the most it held."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


def spread(values: list[float]) -> dict[str, float]:
    """Of several rounds: the middle one, the least and the most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def device_name(device: torch.device) -> str:
    """The GPU, or the processor as Linux names it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")
