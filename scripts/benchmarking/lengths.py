"""Lengths of captions and numbers of boxes as real data have them, for benchmarks."""

from __future__ import annotations

import numpy as np

# How many captions of Flickr8k's 7,000 training and validation photographs have 0, 1, 2 … word pieces of bert-base-uncased
# with [CLS] and [SEP], and how many of the photographs 0, 1, 2 … regions of a detector that finds few.
FLICKR8K_TOKENS = [
    0, 0, 0, 0, 8, 23, 137, 380, 908, 1959, 2623, 3055, 3511, 3598, 3566, 3325, 2813, 2354, 1807, 1381, 976, 770, 542, 364, 281,
    199, 118, 90, 72, 44, 33, 15, 12, 14, 4, 7, 5, 2, 2, 1, 0, 0, 1,
]  # fmt: skip
FLICKR8K_BOXES = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 192, 2271, 179, 171, 4184]


def caption_lengths(count: int, rng: np.random.Generator) -> np.ndarray:
    """[count] tokens of Flickr8k's captions, [CLS] and [SEP] included."""
    counts = np.array(FLICKR8K_TOKENS)
    return rng.choice(len(counts), count, p=counts / counts.sum())


def box_counts(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """[count] boxes of images: of Flickr8k's (``flickr8k``), or 10 to 100, 36 on average, as bottom-up attention gives."""
    if kind == "flickr8k":
        counts = np.array(FLICKR8K_BOXES)
        return rng.choice(len(counts), count, p=counts / counts.sum())
    return np.round(10 + 90 * rng.beta(1, 90 / 26 - 1, count)).astype(int)
