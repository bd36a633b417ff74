"""Which words and regions are masked: pure functions of an explicit generator (paper, section 3.1)."""

from __future__ import annotations

import numpy as np

NOT_MASKED = -1  # label of a word that is not to be predicted


def mask_words(
    input_ids: np.ndarray, rng: np.random.Generator, mask_id: int, v_range: tuple[int, int], prob: float = 0.15
) -> tuple[np.ndarray, np.ndarray]:
    """Choose words to predict; of these 80% become [MASK], 10% a random word, 10% stay.

    Args:
        input_ids: [L] int64, words without [CLS] and [SEP], L ≥ 1
        rng: where the choice comes from
        mask_id: id of [MASK]
        v_range: half-open range of ids that random words are drawn from
        prob: share of words chosen; at least one always is

    Returns: new ids [L] and labels [L], the original id where chosen and -1 elsewhere
    """
    chosen = choose(len(input_ids), rng, prob)
    fate = rng.random(len(input_ids))
    masked = np.where(chosen & (fate < 0.8), mask_id, input_ids)
    masked = np.where(chosen & (fate >= 0.9), rng.integers(*v_range, len(input_ids)), masked)
    return masked, np.where(chosen, input_ids, NOT_MASKED)


def choose(n: int, rng: np.random.Generator, prob: float = 0.15) -> np.ndarray:
    """[n] bool, each True with probability ``prob``; where none came out, one at random. Regions are chosen so."""
    chosen = rng.random(n) < prob
    if n and not chosen.any():
        chosen[rng.integers(n)] = True
    return chosen
