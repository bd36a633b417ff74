"""What a training costs before it is run: hours on paper, and how often it goes through each of its corpora."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from optim.planning import DataSizes, Machine, Recipe, make_plan
from optim.tasks.pretraining import PretrainConfig


@dataclass(frozen=True)
class TrainingCost:
    """Hours, and passes over each corpus.

    Attributes:
        hours: of training alone, from the stated peak rates (``optim.planning``); None where the length of an epoch is unknown
        passes: name of a corpus → how often each of its captions is seen; one whose size is unknown is left out
        notes: what was assumed
    """

    hours: float | None
    passes: Mapping[str, float]
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        passes = ", ".join(f"{name} {times:.1f}" for name, times in self.passes.items())
        hours = "hours unknown" if self.hours is None else f"about {self.hours:.3g} hours"
        return hours + (f"; passes: {passes}" if passes else "")


def cost_of_training(config: Recipe, machine: Machine, sizes: DataSizes, captions_of: Callable[[str], int | None]) -> TrainingCost:
    """The cost of a recipe.

    Args:
        sizes: what the recipe does not say of its data; the number of captions comes from ``captions_of``
        captions_of: name of a text DB, as the recipe gives it → its captions; None where that is not known

    Raises:
        BadInput: as `make_plan`.
    """
    if isinstance(config, PretrainConfig):
        plan = make_plan(config, machine, sizes)
        batches = config.num_steps * config.grad_accumulation * machine.count
        total = sum(sum(corpus.tasks.values()) for corpus in config.data)
        passes = {}
        for corpus in config.data:
            counts = [captions_of(name) for name in _listed(corpus.captions)]
            if all(counts):
                share = sum(corpus.tasks.values()) / total
                passes[corpus.name] = batches * share * plan["pairs"]["per_rank"] / sum(counts)
        return TrainingCost(plan["hours"], passes, plan["notes"])
    names = _listed(config.train_captions)
    counts = [captions_of(name) for name in names]
    if not all(counts):
        return TrainingCost(None, {} if config.num_steps else dict.fromkeys(names, float(config.epochs)))
    plan = make_plan(config, machine, dataclasses.replace(sizes, captions=sum(counts)))
    passes = plan["steps"] * plan["pairs"]["per_step"] / sum(counts) if config.num_steps else float(config.epochs)
    return TrainingCost(plan["hours"], dict.fromkeys(names, passes), plan["notes"])


def _listed(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else names
