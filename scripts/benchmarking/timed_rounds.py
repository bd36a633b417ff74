"""Cases of training steps, timed in turns."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch

from data.progress import ProgressBar
from scripts.benchmarking.measuring import matmul_flops, peak_bytes, reset_peak, seconds_each
from scripts.benchmarking.timed_steps import Case, TimedModel


@dataclass
class Measured:
    """What `measure` found.

    Attributes:
        seconds: of an update of each case, once a round, of the slowest rank
        waits: seconds of it that a rank waits for gradients of others, the mean of the ranks, once a round
        memory: bytes at the most, of each case
        peaks: operations per second of a large matrix product in each precision, once a round
    """

    seconds: dict[Case, list[float]]
    waits: dict[Case, list[float]]
    memory: dict[Case, int]
    peaks: dict[str, list[float]]


def measure(timed: TimedModel, cases: list[Case], rounds: int, least: float) -> Measured:
    """Time the cases and the matrix products in turns, ``rounds`` times, each for ``least`` seconds."""
    precisions = dict.fromkeys(case.precision for case in cases)
    found = Measured({case: [] for case in cases}, {case: [] for case in cases}, dict.fromkeys(cases, 0), {name: [] for name in precisions})
    device, ranks = timed.device, timed.ranks
    with ProgressBar(what="measuring", total=rounds * (len(cases) + len(precisions)), unit="case") as bar:
        for _ in range(rounds):
            for precision in precisions:
                found.peaks[precision].append(matmul_flops(device, precision, least / 2))
                bar.update()
            for case in cases:
                reset_peak(device)
                update = timed.update_of(case)
                try:
                    own = seconds_each(update, device, 0 if ranks.size > 1 else least)
                except torch.cuda.OutOfMemoryError:
                    torch.cuda.empty_cache()
                    own = float("inf")
                update.updater.leave()
                seconds, waits = ranks.exchange([own, statistics.fmean(update.waits[1:] or [0.0])]).T
                found.seconds[case].append(float(seconds.max()))
                found.waits[case].append(float(waits.mean()))
                found.memory[case] = max(found.memory[case], peak_bytes(device))
                bar.update()
    return found
