"""Learning-rate schedules as closures: ``lr_at = build_schedule(options, total); lr_at(step)``."""

from __future__ import annotations

import math
from collections.abc import Callable

from optim.optimizer import OptimOptions


def depends_on_length(options: OptimOptions) -> bool:
    """Whether the rate of an update depends on how many there are in all, so that a run cannot be made longer later."""
    is_free = options.schedule == "constant" or (options.schedule == "uniter_invsqrt" and options.warmup_steps > 0)
    return not is_free


def build_schedule(options: OptimOptions, total_steps: int) -> Callable[[int], float]:
    """The schedule that ``options.schedule`` names: linear rise over the warm-up, then a fall until ``total_steps``.

    The returned function takes the number of updates done so far, s, and gives the rate of the next one. With peak p,
    warm-up w and total t:

    - ``linear``: p (s+1)/w, then p (t-s)/(t-w); never 0 before t, so that no update is wasted
    - ``hf_linear``: p s/w, then p (t-s)/(t-w), as transformers' schedule, which the original fine-tunes with: the first
      update of a warm-up has rate 0
    - ``uniter_linear``: p (s+1)/w, then p (t-s-1)/(t-w), at least 1e-8, as the original pre-trains: it counts from 1
    - ``uniter_invsqrt``: p (s+1)/w, then p sqrt(w/(s+1)); a warm-up of less than an update is one of one
    - ``constant``: p
    """
    warmup, peak = options.warmup_steps or round(options.warmup_ratio * total_steps), options.lr

    def fall(step: int) -> float:
        return peak * max(total_steps - step, 0) / max(total_steps - warmup, 1)

    def linear(step: int) -> float:
        return peak * (step + 1) / warmup if step < warmup else fall(step)

    def hf_linear(step: int) -> float:
        return peak * step / warmup if step < warmup else fall(step)

    def uniter_linear(step: int) -> float:
        return max(hf_linear(step + 1), 1e-8)

    def uniter_invsqrt(step: int) -> float:
        return max(hf_linear(step + 1) if step + 1 < warmup else peak * math.sqrt(max(warmup, 1) / (step + 1)), 1e-8)

    def constant(step: int) -> float:
        return peak

    schedules = (linear, hf_linear, uniter_linear, uniter_invsqrt, constant)
    return {schedule.__name__: schedule for schedule in schedules}[options.schedule]
