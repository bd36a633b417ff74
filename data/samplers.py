"""The order of training data: token buckets, shuffled epochs, task mixing.

Every order is a function of seed and position, so that a run stopped anywhere goes on with the very next batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from data.errors import BadInput


def token_buckets(
    txt_lengths: np.ndarray, img_lengths: np.ndarray, budget: int, rng: np.random.Generator, bucket_size: int = 8192
) -> Iterator[np.ndarray]:
    """One epoch in batches of similar length, each pair in one batch.

    Pairs are shuffled, cut into buckets, ordered by shape inside a bucket, and packed greedily; the batches of a bucket
    are shuffled again.

    Args:
        txt_lengths: [N] tokens of each caption, [CLS] and [SEP] included
        img_lengths: [N] tokens of its image, [CLS] included
        budget: most tokens of a batch, padding included: pairs × (longest text + longest image)
        bucket_size: pairs sorted together; more means less padding and less shuffling

    Yields: index arrays
    """
    order = rng.permutation(len(txt_lengths))
    for start in range(0, len(order), bucket_size):
        bucket = order[start : start + bucket_size]
        bucket = bucket[_by_shape(txt_lengths[bucket], img_lengths[bucket], budget)]
        batches, first, txt_max, img_max = [], 0, 0, 0
        for position, index in enumerate(bucket):
            txt, img = max(txt_max, txt_lengths[index]), max(img_max, img_lengths[index])
            if (position - first + 1) * (txt + img) > budget and position > first:
                batches.append(bucket[first:position])
                first, txt, img = position, txt_lengths[index], img_lengths[index]
            txt_max, img_max = txt, img
        batches.append(bucket[first:])
        for i in rng.permutation(len(batches)):
            yield batches[i]


def _by_shape(txt_lengths: np.ndarray, img_lengths: np.ndarray, budget: int) -> np.ndarray:
    """Order in which neighbours are alike in both lengths: strips by image, within a strip up or down by text.

    Texts and images are padded apart, so sorting by their sum leaves a quarter of every batch empty; this, a tenth.
    """
    batches = (txt_lengths + img_lengths).sum() / budget
    strips = np.array_split(np.argsort(img_lengths, kind="stable"), max(1, round(2 * np.sqrt(batches))))
    strips = [strip[np.argsort(txt_lengths[strip], kind="stable")] for strip in strips]
    return np.concatenate([strip[:: (-1) ** n] for n, strip in enumerate(strips)])


def shuffled_batches(n: int, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """One epoch of ``n`` examples in random batches; the last one may be smaller."""
    order = rng.permutation(n)
    for start in range(0, n, batch_size):
        yield order[start : start + batch_size]


@dataclass
class Draw:
    """One batch to be made.

    Attributes:
        position: number of the draw since the start of training; also seeds the masking
        source: index of the (dataset, task) pair it comes from
        indices: [B] examples of that dataset
        resume: state of the stream just after this draw
    """

    position: int
    source: int
    indices: np.ndarray
    resume: dict


@dataclass
class Source:
    """One (dataset, task) pair: its share of the draws and the lengths its batches are packed by."""

    ratio: float
    txt_lengths: np.ndarray
    img_lengths: np.ndarray
    cursor: list[int] = field(default_factory=lambda: [0, 0])  # epoch, batches taken in it


class DrawStream:
    """An endless stream of draws: a source by mix ratio, then that source's next token bucket.

    Which source is drawn at a position depends on the seed and the position alone, so all ranks agree.

    Args:
        budget: tokens of a batch, as in ``token_buckets``
        draws_per_step: consecutive draws from one source (gradient accumulation: a step is of one task)
    """

    def __init__(self, sources: list[Source], budget: int, seed: int, draws_per_step: int = 1):
        if not sources or sum(s.ratio for s in sources) <= 0:
            raise BadInput("tasks: no task has a mix ratio above 0")
        self.sources, self.budget, self.seed, self.draws_per_step = sources, budget, seed, draws_per_step
        self.position = 0
        ratios = np.array([s.ratio for s in sources], dtype=float)
        self.cumulative = np.cumsum(ratios / ratios.sum())
        self._open: dict[int, Iterator[np.ndarray]] = {}

    def source_at(self, position: int) -> int:
        """Index of the source drawn at ``position``."""
        draw = np.random.default_rng([self.seed, 1, position // self.draws_per_step]).random()
        return int(np.searchsorted(self.cumulative, draw, side="right").clip(max=len(self.sources) - 1))

    def state_dict(self) -> dict:
        return {"position": self.position, "cursors": [list(s.cursor) for s in self.sources]}

    def load_state_dict(self, state: dict) -> None:
        if len(state["cursors"]) != len(self.sources):
            raise BadInput(
                f"the run was saved with {len(state['cursors'])} (dataset, task) pairs, now there are {len(self.sources)}"
            )
        self.position = state["position"]
        self._open.clear()
        for source, cursor in zip(self.sources, state["cursors"], strict=True):
            source.cursor = list(cursor)

    def __iter__(self) -> Iterator[Draw]:
        while True:
            chosen = self.source_at(self.position)
            indices = self._next_bucket(chosen)
            self.position += 1
            yield Draw(self.position - 1, chosen, indices, self.state_dict())

    def _next_bucket(self, chosen: int) -> np.ndarray:
        source = self.sources[chosen]
        while True:
            if chosen not in self._open:
                rng = np.random.default_rng([self.seed, 2, chosen, source.cursor[0]])
                epoch = token_buckets(source.txt_lengths, source.img_lengths, self.budget, rng)
                for _ in range(source.cursor[1]):  # a resumed run skips what it has seen
                    next(epoch)
                self._open[chosen] = epoch
            batch = next(self._open[chosen], None)
            if batch is not None:
                source.cursor[1] += 1
                return batch
            source.cursor = [source.cursor[0] + 1, 0]
            del self._open[chosen]
