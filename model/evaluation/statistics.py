"""How sure a recall is: bootstrap intervals, and paired tests between two systems on the same queries.

Two kinds of units are resampled, and flipped in the tests:

    queries   every text query and every image query by itself; says how recall varies with the questions
    images    an image query goes together with the text queries of its captions (cluster bootstrap); captions of one
              image are not independent, so these intervals of IR are the honest ones for new images, and a little wider

With several languages the captions of each are a task of its own, and the image queries of all tasks are drawn together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from data.progress import ProgressBar
from model.evaluation.outcomes import QueryRanks
from model.evaluation.recall import KS, METRICS

Units = Literal["queries", "images"]
DRAWS_AT_ONCE = 1 << 22  # numbers drawn at a time: 32 MiB


def resampled_recall(
    systems: Sequence[Sequence[QueryRanks]],
    resamples: int,
    units: Units = "queries",
    seed: int | list[int] = 0,
    ks: Sequence[int] = KS,
) -> np.ndarray:
    """Recall on queries drawn with replacement, as many as there are; the same draw for every system.

    Args:
        systems: [S][L] outcomes of S systems in the same L tasks, which share their images; not all need be queries of all
        ks: numbers of results, K of them

    Returns:
        [B,S,L,2K+1] ``METRICS`` in percent, or those of other ``ks``: TR at each, IR at each, and their mean; B = ``resamples``;
        NaN where a draw has no query of the task
    """
    rng = np.random.default_rng(seed)
    images = _asked_images(systems[0])
    tr = [_of_images(_hits(task.i2t, ks), task.queries, images) for tasks in systems for task in tasks]  # S*L of [I,3]
    asked = [_of_images(np.ones((len(task.i2t), 1)), task.queries, images) for task in systems[0]]  # L of [I,1]
    shape = (resamples, len(systems), len(systems[0]), len(ks))
    if units == "queries":
        sums = _resampled_sums(np.hstack([*tr, *asked]), resamples, rng)
        tr, asked = np.split(sums, [len(tr) * len(ks)], axis=1)
        ir = np.empty(shape)
        for number, tasks in enumerate(zip(*systems)):
            sums = _resampled_sums(np.hstack([_hits(task.t2i, ks) for task in tasks]), resamples, rng)
            ir[:, :, number] = sums.reshape(resamples, len(systems), len(ks)) / len(tasks[0].t2i)
    else:
        ir = [_of_images(_hits(task.t2i, ks), task.image_of, images) for tasks in systems for task in tasks]
        captions = [_of_images(np.ones((len(task.t2i), 1)), task.image_of, images) for task in systems[0]]
        sums = _resampled_sums(np.hstack([*tr, *ir, *captions, *asked]), resamples, rng)
        ends = np.cumsum([len(tr) * len(ks), len(tr) * len(ks), len(captions)])
        tr, ir, captions, asked = np.split(sums, ends, axis=1)
        with np.errstate(invalid="ignore"):
            ir = ir.reshape(shape) / captions[:, None, :, None]
    with np.errstate(invalid="ignore"):
        tr = tr.reshape(shape) / asked[:, None, :, None]
    table = np.concatenate([tr, ir], axis=-1)
    return 100 * np.concatenate([table, table.mean(axis=-1, keepdims=True)], axis=-1)


def intervals(samples: np.ndarray, metrics: Sequence[str] = METRICS) -> dict[str, dict[str, float]]:
    """95% percentile intervals: samples [B,M] of the ``metrics`` → metric → {"low", "high"}."""
    low, high = np.nanpercentile(samples, [2.5, 97.5], axis=0).tolist()
    return {metric: {"low": low[i], "high": high[i]} for i, metric in enumerate(metrics)}


def format_interval(bounds: dict[str, float]) -> str:
    return f"[{bounds['low']:.1f}, {bounds['high']:.1f}]"


def _hits(ranks: np.ndarray, ks: Sequence[int] = KS) -> np.ndarray:
    """Ranks [Q] → [Q,K] float64: among the first 1, 5, 10, or so many as ``ks`` says."""
    return (ranks[:, None] < np.array(ks)).astype(np.float64)


def _asked_images(tasks: Sequence[QueryRanks]) -> np.ndarray:
    """Rows of the images that are a query, or whose caption is one, in some of the tasks: [I]."""
    return np.unique(np.concatenate([rows for task in tasks for rows in (task.queries, task.image_of)]))


def _of_images(values: np.ndarray, rows: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Sums of ``values`` [Q,C], of queries that are of the images ``rows`` [Q], over each of ``images`` [I] → [I,C]."""
    sums = np.zeros((len(images), values.shape[1]))
    np.add.at(sums, np.searchsorted(images, rows), values)
    return sums


def _resampled_sums(table: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Column sums of N rows drawn with replacement from ``table`` [N,C] → [B,C].

    What is drawn is how often each *distinct* row occurs, a multinomial number: of 25,000 queries only a few patterns of
    hits differ, and sums do not depend on which of equal rows was drawn.
    """
    distinct, counts = np.unique(table, axis=0, return_counts=True)
    sums = np.empty((resamples, table.shape[1]))
    for part in _parts(resamples, len(distinct)):
        sums[part] = rng.multinomial(len(table), counts / len(table), size=part.stop - part.start) @ distinct
    return sums


def _parts(resamples: int, width: int) -> Iterator[slice]:
    step = max(1, DRAWS_AT_ONCE // max(1, width))
    with ProgressBar(what="resampling", total=resamples, unit="resamples") as bar:
        for start in range(0, resamples, step):
            part = slice(start, min(start + step, resamples))
            yield part
            bar.update(part.stop - part.start)


# ---- paired tests ----------------------------------------------------------------------------------------------------


def query_differences(a: Sequence[QueryRanks], b: Sequence[QueryRanks], units: Units = "queries") -> np.ndarray:
    """What each unit adds to the difference B - A of each metric, averaged over L tasks: [U,7] percentage points.

    The columns sum to the differences. Units are the I images that are queries, followed by the text queries where ``units`` is
    "queries"; with "images" an image's row holds its captions' shares too.
    """
    images, none = _asked_images(a), np.zeros((1, len(KS)))
    number = len(images)
    by_image = 0
    for before, after in zip(a, b):
        by_query = (_hits(after.i2t) - _hits(before.i2t)) * (number / len(before.i2t))
        by_image += _of_images(by_query, before.queries, images)
    rows = np.hstack([by_image / number, none.repeat(number, 0)])
    for before, after in zip(a, b):
        by_text = (_hits(after.t2i) - _hits(before.t2i)) / len(before.t2i)
        by_text = np.hstack([none.repeat(len(by_text), 0), by_text])
        if units == "images":
            rows += _of_images(by_text, before.image_of, images)
        else:
            rows = np.vstack([rows, by_text])
    rows *= 100 / len(a)
    return np.hstack([rows, rows.mean(axis=1, keepdims=True)])


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided McNemar test: p-value of the queries that only A or only B answers, were both equally likely.

    Twice the tail of a Binomial(only_a + only_b, 1/2), summed in whole numbers.
    """
    number = only_a + only_b
    term = tail = 1
    for i in range(min(only_a, only_b)):
        term = term * (number - i) // (i + 1)  # number choose i + 1
        tail += term
    return min(1.0, 2 * tail / (1 << number))


def sign_flip(differences: np.ndarray, resamples: int, seed: int = 0) -> float:
    """Two-sided paired randomisation test: p-value of the sum of ``differences`` [U], were A and B exchangeable per unit.

    Units of one size are flipped together: of c of them a Binomial(c, 1/2) number is turned round. The observed outcome
    counts as one of the draws, so p is at least 1 / (resamples + 1).
    """
    rng = np.random.default_rng(seed)
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    observed = abs(differences.sum()) * (1 - 1e-9)  # sums of the same numbers in another order are equal
    extreme = 1
    for part in _parts(resamples, len(sizes)):
        turned = rng.binomial(counts, 0.5, size=(part.stop - part.start, len(sizes)))
        extreme += int((np.abs((counts - 2 * turned) @ sizes) >= observed).sum())
    return extreme / (resamples + 1)


def difference_tests(
    a: Sequence[QueryRanks], b: Sequence[QueryRanks], resamples: int, units: Units = "queries", seed: int = 0
) -> dict[str, tuple[str, float]]:
    """Metric → (test, two-sided p-value): ``mcnemar`` where a metric is a share of independent queries that are answered
    or not, otherwise (AR, means over languages, captions that go with their images) ``sign-flip``."""
    tests = {}
    differences = query_differences(a, b, units)
    for column, metric in enumerate(METRICS):
        if metric == "AR" or len(a) > 1 or (units == "images" and metric.startswith("IR")):
            tests[metric] = "sign-flip", sign_flip(differences[:, column], resamples, seed)
        else:
            only_b, only_a = (int((sign * differences[:, column] > 0).sum()) for sign in (1, -1))
            tests[metric] = "mcnemar", mcnemar(only_a, only_b)
    return tests


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction: p-values that may each be held against 0.05 though several are looked at.

    The smallest is multiplied by their number n, the next by n - 1, and so on; none is less than one before it.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for place, number in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[number]))
        adjusted[number] = largest
    return adjusted
