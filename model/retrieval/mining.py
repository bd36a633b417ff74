"""Hard negatives: for each caption, images of another content that the model itself ranks highly (fine-tuning); and the
original's, which have captions for each image too."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.batches.pairs import PairDataset
from data.errors import BadInput
from data.notices import lowered
from data.search.topk import best_columns, best_rows, scores_in_parts


@dataclass
class HardNegativeOptions:
    """Negatives that are mined from the index of the training images, besides those of the batch.

    Args:
        count: hard negatives of each caption, image and caption; 0: none
        window: which wrong images of a caption's ranking: top (the count best), A-B (drawn from ranks A to B-1, the best
            being 0, as in 10-20), random (any), original (`OriginalHardNegatives`: captions drawn apart from images, each
            database mined by itself)
        every: epochs between two minings
        from_epoch: first epoch that has them; 1 mines with the starting weights. Before it the bi-encoder has none but its
            batch's, and a re-ranker random ones, from which it learns first what a match is
    """

    count: int = 0
    window: str = "top"
    every: int = 1
    from_epoch: int = 2

    def __post_init__(self) -> None:
        if self.count < 0 or self.every < 1 or self.from_epoch < 1:
            raise BadInput("hard_negatives: count must be at least 0, every and from_epoch at least 1")
        first, last = self.ranks
        if self.window != "random" and last - first < self.count:
            raise BadInput(f"hard_negatives.window {self.window} holds {last - first} ranks, count is {self.count}")

    @property
    def ranks(self) -> tuple[int, int]:
        """The half-open range of ranks that negatives are drawn from; (0, 0) for random."""
        named = {"top": self.count, "random": 0, "original": min(max(50, 2 * self.count + 10), 1000)}
        if self.window in named:
            return 0, named[self.window]
        match = re.fullmatch(r"(\d{1,18})-(\d{1,18})", self.window)
        if match is None:
            raise BadInput(f"hard_negatives.window {self.window!r} is not top, random, original or ranks such as 10-20")
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

    _least = 0  # number in what was mined

    def __init__(self, dataset: PairDataset, options: HardNegativeOptions, random_first: bool = False):
        self.options, self.random_first, self.ranks = options, random_first, options.ranks
        self.image_of = dataset.image_of
        self.by_image = np.argsort(self.image_of, kind="stable")  # captions of image 0, of image 1 ...
        self.first = np.searchsorted(self.image_of[self.by_image], np.arange(len(dataset.images) + 1))
        self.ranking: np.ndarray | None = None
        if options.count:
            self._check(dataset)

    def _check(self, dataset: PairDataset) -> None:
        """Lower a window of ranks A-B to the wrong images that there are. Raises BadInput where these are fewer than ``count``."""
        options, (first, last), wrong = self.options, self.ranks, len(dataset.images) - 1
        if "-" in options.window and wrong - first >= options.count:
            self.ranks = first, lowered(last, wrong, f"{dataset.captions.folder}: hard_negatives.window ends at rank", "wrong images")
        needed = max(self.ranks[1], options.count)
        if needed > wrong:
            raise BadInput(
                f"hard_negatives: {needed} wrong images of a caption are asked for, {dataset.captions.folder} has "
                f"{len(dataset.images)} images in all"
            )

    def state_dict(self) -> dict[str, Tensor]:
        """What was mined last, as a checkpoint keeps it."""
        return {} if self.ranking is None else {"ranking": torch.from_numpy(self.ranking)}

    def load_state_dict(self, state: dict) -> None:
        """Take over what was mined, where ``state`` has any. Raises ValueError for what is of other data."""
        if "ranking" in state:
            self.ranking = _checked(state["ranking"], (len(self.image_of), self.ranks[1]), self._least, len(self.first) - 1)

    def mine(self, txt: Tensor, img: Tensor) -> None:
        """Rank the wrong images of every caption: ``txt`` [T,D] and ``img`` [I,D], embeddings of the whole dataset."""
        own = torch.from_numpy(self.image_of.astype(np.int64)).to(img.device)
        last = self.ranks[1]
        parts = []
        for part, scores in scores_in_parts(txt, img, what="mining images"):
            scores.scatter_(1, own[part, None], float("-inf"))
            parts.append(best_columns(scores, last)[1].to(torch.int32).cpu())
        self.ranking = torch.cat(parts).numpy()

    def draw(self, indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """``count`` hard negatives for each of the pairs ``indices`` [N] → pairs [N·count], caption and image of one
        wrong image each."""
        count, (first, last) = self.options.count, self.ranks
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


class OriginalHardNegatives(HardNegatives):
    """Hard negatives as the original drew them: images of a caption, and captions of its image, apart from each other.

    A caption has ``count`` of the min(max(50, 2·count + 10), 1000) images that it finds first, its image as many of the
    captions that it finds, without its own ones in either case; drawn uniformly, none twice. Of several databases that are
    joined, each is searched by itself.

    Attributes:
        ranking: [T,K] int32, the images that each caption finds, the best first; -1: its own, or no more are there
        captions_found: [R,K] int32, the captions that the images of each database find, likewise
    """

    _least = -1

    def __init__(self, dataset: PairDataset, options: HardNegativeOptions, random_first: bool = False):
        super().__init__(dataset, options, random_first)
        self.captions_found: np.ndarray | None = None
        self._databases: list[tuple[slice, np.ndarray]] = []  # captions and images of each
        rows, caption, row = [], 0, 0
        for part, images in dataset.parts:
            self._databases.append((slice(caption, caption + len(part.image_of)), np.asarray(images)))
            rows.append(row + part.image_of)
            caption, row = caption + len(part.image_of), row + len(images)
        self._row_of = np.concatenate(rows)  # [T], where a caption's image stands in `captions_found`

    def _check(self, dataset: PairDataset) -> None:
        count, found = self.options.count, self.options.ranks[1]
        for part, images in dataset.parts:
            own = int(np.bincount(part.image_of).max())
            for finder, what, total, most in (("a caption", "images", len(images), 1), ("an image", "captions", len(part.image_of), own)):
                if min(found, total) - most < count:
                    raise BadInput(
                        f"hard_negatives.count {count}: of the {min(found, total)} {what} that {finder} of "
                        f"{part.captions.folder} finds, {most} may be its own; take a smaller count or another window"
                    )

    def state_dict(self) -> dict[str, Tensor]:
        found = {} if self.captions_found is None else {"captions_found": torch.from_numpy(self.captions_found)}
        return super().state_dict() | found

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        if "captions_found" in state:
            rows = sum(len(images) for _, images in self._databases)
            self.captions_found = _checked(state["captions_found"], (rows, self.ranks[1]), self._least, len(self.image_of))

    def mine(self, txt: Tensor, img: Tensor) -> None:
        last, row = self.options.ranks[1], 0
        self.ranking = np.full((len(self.image_of), last), -1, np.int32)
        self.captions_found = np.full((sum(len(images) for _, images in self._databases), last), -1, np.int32)
        for captions, images in self._databases:
            texts, pictures = txt[captions], img[torch.from_numpy(images)]
            found = images[best_rows(texts, pictures, min(last, len(pictures)), what="mining images")[1].numpy()]
            self.ranking[captions, : found.shape[1]] = np.where(found == self.image_of[captions, None], -1, found)
            found = captions.start + best_rows(pictures, texts, min(last, len(texts)), what="mining captions")[1].numpy()
            wrong = np.where(self.image_of[found] == images[:, None], -1, found)
            self.captions_found[row : row + len(images), : found.shape[1]] = wrong
            row += len(images)

    def draw(self, indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """``count`` hard negatives for each of the pairs ``indices`` [N] → [2,N·count], the pairs whose captions and those
        whose images they are; as long as nothing was mined, what `HardNegatives.draw` gives."""
        if self.options.count == 0 or self.ranking is None or self.captions_found is None:
            return super().draw(indices, rng)
        images = _some_of(self.ranking[indices], self.options.count, rng)
        captions = _some_of(self.captions_found[self._row_of[indices]], self.options.count, rng)
        return np.stack([captions, self.by_image[self.first[images]]])  # any caption leads to its image


def _checked(mined: Tensor, shape: tuple[int, int], least: int, end: int) -> np.ndarray:
    """What was mined, as an array. Raises ValueError unless it has this shape, and numbers from ``least`` to before ``end``."""
    if mined.dtype not in (torch.int32, torch.int64) or mined.shape != shape or (mined.numel() and not (least <= mined.min() and mined.max() < end)):
        raise ValueError(f"what was mined has shape {list(mined.shape)}, expected {list(shape)} of {least} to {end - 1}")
    return mined.to(torch.int32).numpy()


def _some_of(candidates: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` different ones of each row of ``candidates`` [N,K], of those that are not -1 → [N·count]."""
    keys = rng.random(candidates.shape)
    keys[candidates < 0] = 2.0  # behind all others
    return np.take_along_axis(candidates, keys.argsort(axis=1)[:, :count], axis=1).reshape(-1)


def hard_negatives_of(
    dataset: PairDataset, options: HardNegativeOptions, random_first: bool = False
) -> HardNegatives:
    """What draws the hard negatives that ``options`` ask for; the arguments are as of `HardNegatives`."""
    kind = OriginalHardNegatives if options.count and options.window == "original" else HardNegatives
    return kind(dataset, options, random_first)
