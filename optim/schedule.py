"""Learning-rate schedules as closures: ``lr_at = linear_schedule(options, total); lr_at(step)``."""

from __future__ import annotations

from collections.abc import Callable

from optim.optimizer import OptimOptions


def linear_schedule(options: OptimOptions, total_steps: int) -> Callable[[int], float]:
    """Linear rise from 0 to ``options.lr`` over the warm-up, then linear fall to 0 at ``total_steps``.

    The returned function takes the number of updates done so far and gives the rate of the next one; it is never 0
    before ``total_steps``, so that no update is wasted.
    """

    warmup_steps = options.warmup_steps or round(options.warmup_ratio * total_steps)

    def lr_at(step: int) -> float:
        if step < warmup_steps:
            return options.lr * (step + 1) / warmup_steps
        return options.lr * max(total_steps - step, 0) / max(total_steps - warmup_steps, 1)

    return lr_at
