"""Pairs of captions and pictures in databases, and batches of them."""

import numpy as np

from data.regions.db import BoxOptions, Regions
from model.objectives import OBJECTIVES
from model.objectives.base import ObjectiveOptions

WORDS = [a + b for a in "bdfgk" for b in "aeiouxyz"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]  # ids 0 to 4, then the words
BOXES = BoxOptions(conf_th=0.2, max_bb=6, min_bb=2)
LENGTHS = {"p0": (1, 5, 3), "p1": (9,), "p2": (2, 4), "p3": (7,)}  # words of each picture's captions
COUNTS = {"p0": 6, "p1": 2, "p2": 4, "p3": 3}  # boxes above the threshold


def make_regions(count, width=6, labels=5, seed=0):
    """`count` boxes above the confidence threshold, and two below it."""
    rng = np.random.default_rng(seed)
    rows = count + 2
    conf = np.where(np.arange(rows) < count, 0.9, 0.1)
    soft = rng.dirichlet(np.ones(labels), rows) if labels else None
    return Regions(rng.normal(size=(rows, width)), rng.random((rows, 6)), conf, soft)


def batch_of(dataset, indices, task="cmr", rng=None, **options):
    """The pairs as the objective ``task`` takes them."""
    objective = OBJECTIVES[task](ObjectiveOptions(**options))
    return objective.prepare(dataset.examples(indices), rng)
