"""The order of training data: batches of so many tokens, shuffled epochs, task mixing.

Every order is a function of seed and position, so that a run stopped anywhere goes on with the very next batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from data.errors import BadInput
from data.storage.shapes import check_shape


def token_batches(
    txt_lengths: np.ndarray, img_lengths: np.ndarray, budget: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """One epoch in random order, in batches of as many pairs as a number of tokens holds; each pair is in one batch.

    Args:
        txt_lengths: [N] tokens of each caption, [CLS] and [SEP] included
        img_lengths: [N] tokens of its image, [CLS] included
        budget: most tokens of a batch; a pair of more comes alone

    Yields: index arrays
    """
    order, start = rng.permutation(len(txt_lengths)), 0
    while start < len(order):
        ahead = order[start : start + budget]  # as many pairs as could fit; each has a token at least
        tokens = np.cumsum(txt_lengths[ahead] + img_lengths[ahead], dtype=np.int64)
        batch = ahead[: max(1, np.searchsorted(tokens, budget, side="right"))]
        start += len(batch)
        yield batch


@dataclass
class PairDraw:
    """One batch of an epoch of fine-tuning, of the one or several that ranks train on together.

    Attributes:
        indices: this rank's pairs, and behind them their hard negatives
        num_pairs: how many of them are no hard negatives; 0 where an epoch's last batch has nothing for this rank
        done: pairs that all ranks have seen in this epoch after this batch
        image_indices: the pairs whose images stand beside the captions of ``indices``, where hard negatives have captions and
            images of their own; None: the same pairs
    """

    indices: np.ndarray
    num_pairs: int
    done: int
    image_indices: np.ndarray | None = None


def epoch_draws(
    n: int,
    batch_size: int,
    seed: int,
    epoch: int,
    done: int = 0,
    rank: int = 0,
    ranks: int = 1,
    hard_negatives: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
    order: np.ndarray | None = None,
) -> Iterator[PairDraw]:
    """One epoch of ``n`` pairs in random batches of ``batch_size`` on each rank; the last one may be smaller.

    The order is one permutation of all pairs, 8 bytes each, that seed and epoch determine; ``done`` pairs of it are left
    out, those that were trained on before a stop. R ranks take what one rank with R times the batch size takes.

    Args:
        hard_negatives: (pairs [N], generator) → pairs [N·count], count for each; or [2,N·count], the pairs whose captions and
            the pairs whose images are taken; None: there are none
        order: [n] another order of the epoch, from `tempered_order` or `image_order`; None: the permutation
    """
    if order is None:
        order = np.random.default_rng([seed, epoch]).permutation(n)
    for start in range(done, n, batch_size * ranks):
        rows = order[start : start + batch_size * ranks]
        bounds = np.linspace(0, len(rows), ranks + 1).astype(int)
        mine = slice(bounds[rank], bounds[rank + 1])
        drawn = rows[:0]
        if hard_negatives is not None:
            negatives = hard_negatives(rows, np.random.default_rng([seed, 5, epoch, start]))
            drawn = negatives.reshape(*negatives.shape[:-1], len(rows), -1)[..., mine, :]
        texts, images = drawn if drawn.ndim == 3 else (drawn, None)
        indices, image_indices = (
            None if each is None else np.concatenate([rows[mine], each.reshape(-1)]) if len(rows[mine]) else rows[:1]
            for each in (texts, images)
        )
        yield PairDraw(indices, len(rows[mine]), start + len(rows), image_indices)


def image_order(image_of: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch in which images come at random, each with all of its captions, in random order too.

    Args:
        image_of: [N] the image of each pair

    Returns: [N] pairs, each once
    """
    rng = np.random.default_rng([seed, 8, epoch])
    pairs = rng.permutation(len(image_of))
    place = rng.permutation(int(image_of.max()) + 1)  # of each image
    return pairs[np.argsort(place[image_of[pairs]], kind="stable")]


def tempered_order(groups: Sequence[np.ndarray], temperature: float, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch whose pairs come from groups (languages) in proportion to size^(1/temperature).

    The epoch is as long as all groups together. A group's share goes on through its shuffled pairs where the last epoch
    stopped, so that over the epochs each of its pairs comes equally often; 1 is once in every epoch.

    Args:
        groups: the pairs of each
        temperature: 1 or more: 1 as they are, more evens them out, infinity makes equal shares

    Returns: [sum of sizes] pairs; a pair may be in it several times, or not at all
    """
    sizes = np.array([len(group) for group in groups], dtype=float)
    shares = (sizes / sizes.max()) ** (1 / temperature)
    ends = np.round(np.cumsum(shares / shares.sum()) * sizes.sum()).astype(int)
    drawn = []
    for number, (group, count) in enumerate(zip(groups, np.diff(ends, prepend=0), strict=True)):
        first, last = epoch * count, (epoch + 1) * count  # of the group's passes, one behind the other
        passes = range(first // len(group), -(-last // len(group)))
        pairs = [group[np.random.default_rng([seed, 7, number, n]).permutation(len(group))] for n in passes]
        start = first - passes.start * len(group)
        drawn.append(np.concatenate([group[:0], *pairs])[start : start + count])
    return np.random.default_rng([seed, epoch]).permutation(np.concatenate(drawn))


@dataclass
class Draw:
    """One batch to be made, of the one or several that ranks train on together.

    Attributes:
        position: number of the draw since the start of training
        source: index of the (dataset, task) pair it comes from, the same on all ranks
        number: of the batch since the start of training, over all ranks; seeds the masking
        indices: [B] examples of that dataset
        resume: state of the stream just after this draw
    """

    position: int
    source: int
    number: int
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
    """An endless stream of draws: a source by mix ratio, then that source's next batches, one for each rank.

    Which source is drawn at a position depends on the seed and the position alone, so all ranks agree; and R ranks see
    at an update what one rank with R times as many draws per step sees.

    Args:
        budget: tokens of a batch, as in `token_batches`
        draws_per_step: consecutive draws from one source (gradient accumulation: a step is of one task)
        rank, ranks: of each draw's ``ranks`` batches this process takes number ``rank``
    """

    def __init__(
        self, sources: list[Source], budget: int, seed: int, draws_per_step: int = 1, rank: int = 0, ranks: int = 1
    ):
        if not sources or sum(s.ratio for s in sources) <= 0:
            raise BadInput("tasks: no task has a mix ratio above 0")
        self.sources, self.budget, self.seed, self.draws_per_step = sources, budget, seed, draws_per_step
        self.rank, self.ranks = rank, ranks
        self.position = self.number = 0
        ratios = np.array([s.ratio for s in sources], dtype=float)
        self.cumulative = np.cumsum(ratios / ratios.sum())
        self._open: dict[int, Iterator[np.ndarray]] = {}

    def source_at(self, position: int) -> int:
        """Index of the source drawn at ``position``."""
        draw = np.random.default_rng([self.seed, 1, position // self.draws_per_step]).random()
        return int(np.searchsorted(self.cumulative, draw, side="right").clip(max=len(self.sources) - 1))

    def state_dict(self) -> dict:
        cursors = [list(s.cursor) for s in self.sources]
        return {"position": self.position, "number": self.number, "cursors": cursors}

    def load_state_dict(self, state: dict) -> None:
        is_older = "bucket" in state  # its batches held pairs of like length: of this order's pass none are done
        number = "bucket" if is_older else "number"
        check_shape(state, {"position": int, number: int, "cursors": [[int]]}, "the state of the draws")
        if min(state["position"], state[number], *itertools.chain(*state["cursors"])) < 0:
            raise ValueError("the state of the draws has a negative number")
        if len(state["cursors"]) != len(self.sources):
            raise BadInput(
                f"the run was saved with {len(state['cursors'])} (dataset, task) pairs, now there are {len(self.sources)}"
            )
        self.position, self.number = state["position"], state[number]
        self._open.clear()
        for source, (epoch, done) in zip(self.sources, state["cursors"], strict=True):
            source.cursor = [epoch + 1, 0] if is_older and done else [epoch, done]

    def __iter__(self) -> Iterator[Draw]:
        while True:
            chosen = self.source_at(self.position)
            batches = [self._next_batch(chosen) for _ in range(self.ranks)]
            mine = self.number + self.rank
            self.position += 1
            self.number += self.ranks
            yield Draw(self.position - 1, chosen, mine, batches[self.rank], self.state_dict())

    def _next_batch(self, chosen: int) -> np.ndarray:
        source = self.sources[chosen]
        while True:
            if chosen not in self._open:
                rng = np.random.default_rng([self.seed, 2, chosen, source.cursor[0]])
                epoch = token_batches(source.txt_lengths, source.img_lengths, self.budget, rng)
                seen = sum(1 for _ in itertools.islice(epoch, source.cursor[1]))  # a resumed run skips what it has seen
                if seen < source.cursor[1]:
                    raise BadInput(f"the run was saved behind batch {source.cursor[1]:,} of a pass that has {seen:,}: its training state is damaged")
                self._open[chosen] = epoch
            batch = next(self._open[chosen], None)
            if batch is not None:
                source.cursor[1] += 1
                return batch
            source.cursor = [source.cursor[0] + 1, 0]
            del self._open[chosen]
