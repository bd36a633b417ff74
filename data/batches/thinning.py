"""Regions that training leaves out at random, so that it cannot learn its pictures by heart: a pure function of a seed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from data.batches.batch import Examples
from data.batches.masking import choose
from data.errors import BadInput


@dataclass(frozen=True)
class Thinning:
    """Which regions of a pair's image are left out, drawn anew in each epoch. At least one stays.

    Args:
        regions: share of an image's regions, at least 0 and below 1
        seed: of the draws; a pair's do not depend on the batch or the rank that it comes in
    """

    regions: float
    seed: int

    def __post_init__(self):
        if not 0 <= self.regions < 1:
            raise BadInput(f"region_dropout must be at least 0 and below 1, found {self.regions}")

    def thin(self, examples: Examples, epoch: int, indices: np.ndarray) -> None:
        """Leave regions out of examples, in place; ``indices`` [B] are the numbers of the pairs whose images they are."""
        for row, pair in enumerate(indices.tolist()):
            regions = examples.regions[row]
            kept = choose(len(regions), np.random.default_rng([self.seed, 9, epoch, pair]), 1 - self.regions)
            values = {f.name: getattr(regions, f.name) for f in dataclasses.fields(regions)}
            examples.regions[row] = type(regions)(**{name: None if v is None else v[kept] for name, v in values.items()})
