"""Hard negatives: for each caption, images of another content that the model itself ranks highly (fine-tuning)."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.batches.pairs import PairDataset
from data.errors import BadInput
from data.search.topk import best_columns, scores_in_parts


@dataclass
class HardNegativeOptions:
    """Negatives that are mined from the index of the training images, besides those of the batch.

    Args:
        count: hard negatives of each caption, image and caption; 0: none
        window: which wrong images of a caption's ranking: top (the count best), A-B (drawn from ranks A to B-1, the best
            being 0, as in 10-20), random (any)
        every: epochs between two minings
        from_epoch: first epoch that has them; 1 mines with the starting weights. Before it the bi-encoder has none but its
            batch's, and a re-ranker random ones, from which it learns first what a match is
    """

    count: int = 0
    window: str = "top"
    every: int = 1
    from_epoch: int = 2

    def __post_init__(self):
        if self.count < 0 or self.every < 1 or self.from_epoch < 1:
            raise BadInput("hard_negatives: count must be at least 0, every and from_epoch at least 1")
        first, last = self.ranks
        if self.window != "random" and last - first < self.count:
            raise BadInput(f"hard_negatives.window {self.window} holds {last - first} ranks, count is {self.count}")

    @property
    def ranks(self) -> tuple[int, int]:
        """The half-open range of ranks that negatives are drawn from; (0, 0) for random."""
        if self.window in ("top", "random"):
            return 0, self.count if self.window == "top" else 0
        match = re.fullmatch(r"(\d+)-(\d+)", self.window)
        if match is None:
            raise BadInput(f"hard_negatives.window {self.window!r} is not top, random or ranks such as 10-20")
        return int(match[1]), int(match[2])

    def mines_before(self, epoch: int) -> bool:
        """Whether the ranking is made anew before ``epoch``, counted from 0."""
        since = epoch + 1 - self.from_epoch
        return self.count > 0 and self.window != "random" and since >= 0 and since % self.every == 0


class HardNegatives:
    """Draws hard negatives of a dataset's captions.

    Args:
        dataset: the pairs
        options: how many, and which
        random_first: draw any wrong images, not none, as long as there is no ranking

    Attributes:
        ranking: [T, ranks] int32, the wrong images of each caption by score, from the last `mine`
    """

    def __init__(self, dataset: PairDataset, options: HardNegativeOptions, random_first: bool = False):
        self.options, self.random_first = options, random_first
        self.image_of = dataset.image_of
        self.by_image = np.argsort(self.image_of, kind="stable")  # captions of image 0, of image 1 ...
        self.first = np.searchsorted(self.image_of[self.by_image], np.arange(len(dataset.images) + 1))
        self.ranking: np.ndarray | None = None
        needed = max(options.ranks[1], options.count)
        if needed >= len(dataset.images):
            raise BadInput(
                f"hard_negatives: {needed} wrong images of a caption are asked for, {dataset.captions.folder} has "
                f"{len(dataset.images)} images in all"
            )

    def mine(self, txt: Tensor, img: Tensor) -> None:
        """Rank the wrong images of every caption: ``txt`` [T,D] and ``img`` [I,D], embeddings of the whole dataset."""
        own = torch.from_numpy(self.image_of.astype(np.int64)).to(img.device)
        last = self.options.ranks[1]
        parts = []
        for part, scores in scores_in_parts(txt, img):
            scores.scatter_(1, own[part, None], float("-inf"))
            parts.append(best_columns(scores, last)[1].to(torch.int32).cpu())
        self.ranking = torch.cat(parts).numpy()

    def draw(self, indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """``count`` hard negatives for each of the pairs ``indices`` [N] → pairs [N·count], caption and image of one
        wrong image each."""
        count, (first, last) = self.options.count, self.options.ranks
        if count == 0:
            return indices[:0]
        if self.options.window == "random" or (self.ranking is None and self.random_first):
            others = len(self.first) - 2  # images but one's own
            images = np.stack([rng.choice(others, count, replace=False) for _ in indices])
            images += images >= self.image_of[indices, None]
        elif self.ranking is None:
            return indices[:0]
        else:
            ranks = rng.permuted(np.tile(np.arange(first, last), (len(indices), 1)), axis=1)[:, :count]
            images = np.take_along_axis(self.ranking[indices], ranks, axis=1)
        images = images.reshape(-1)
        starts, ends = self.first[images], self.first[images + 1]
        return self.by_image[rng.integers(starts, ends)]
