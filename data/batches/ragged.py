"""Sequences of different lengths without padding: all their rows one behind the other, and a layout that says whose they are.

    layout = Layout.of([3, 5, 2])       # rows 0-2, 3-7, 8-9; made on the host, in the process that makes the batch
    layout.offsets                      # [0, 3, 8, 10]

Whatever treats each row by itself, which is all of an encoder but attention, runs on the packed rows [T,h]. Attention runs on
a few padded blocks of sequences of like length; where every row stands in them is part of the layout, so that nothing has to
ask the GPU.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from data.errors import BadInput

BLOCKS = 4  # most blocks of a layout; more hold less padding and cost more calls
FEWEST = 4  # sequences of a block; fewer are padded to the length of the next longer ones


class Ragged:
    """A dataclass of tensors, which go to a device or to page-locked memory together."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """``function`` of every tensor, also of those in its parts."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        changed = {
            name: function(value) if isinstance(value, Tensor) else value.map(function)
            for name, value in values.items()
            if isinstance(value, Tensor | Ragged)
        }
        return dataclasses.replace(self, **changed)  # a kind of its own stays one

    def to(self, device: torch.device | str) -> Self:
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        return self.map(Tensor.pin_memory)


class Block(NamedTuple):
    """Sequences that attention takes together, padded to the longest of them.

    Attributes:
        count: how many
        length: of the longest
        is_full: whether all have this length
    """

    count: int
    length: int
    is_full: bool


@dataclass
class Layout(Ragged):
    """Whose rows are whose: B sequences of T rows together, N rows in the blocks of attention.

    Attributes:
        lengths: [B] int64 on the host, each at least 1
        offsets: [B+1] int32, the first row of each sequence, and T
        columns: [T] int64, the position of a row in its sequence
        blocks: of sequences of like length
        places: [T] int64, where each row stands in the blocks, one behind the other; None: the rows are a block as they are
        real: [N] bool, True at rows of the blocks that are no padding; None where none is padding
        order: [B] int64, the sequences in the order of the blocks; None: in their own
        ranks: [B] int64, the inverse of ``order``
    """

    lengths: np.ndarray
    offsets: Tensor
    columns: Tensor
    blocks: list[Block]
    places: Tensor | None = None
    real: Tensor | None = None
    order: Tensor | None = None
    ranks: Tensor | None = None

    @classmethod
    def of(cls, lengths: Sequence[int] | np.ndarray) -> Layout:
        """The layout of sequences of these lengths, on the host."""
        lengths = np.asarray(lengths, np.int64)
        offsets = np.concatenate([[0], lengths.cumsum()])
        longest = int(lengths.max(initial=0))
        layout = cls(
            lengths,
            torch.from_numpy(offsets.astype(np.int32)),
            torch.from_numpy(consecutive(np.zeros_like(lengths), lengths)),
            [Block(len(lengths), longest, True)],
        )
        if (lengths != longest).any():
            layout._arrange()
        return layout

    def _arrange(self) -> None:
        """Set blocks, and the rows' and sequences' places in them."""
        order, counts = _blocks_of(self.lengths)
        starts, blocks, filled = np.empty_like(self.lengths), [], 0  # of each sequence in the blocks
        for sequences in np.split(order, np.cumsum(counts)[:-1]):
            sequences.sort()  # in their own order within a block; a view of ``order``
            length = int(self.lengths[sequences].max())
            blocks.append(Block(len(sequences), length, bool((self.lengths[sequences] == length).all())))
            starts[sequences] = filled + length * np.arange(len(sequences))
            filled += length * len(sequences)
        places = consecutive(starts, self.lengths)
        self.blocks, self.places = blocks, torch.from_numpy(places)
        if filled > len(places):
            self.real = torch.zeros(filled, dtype=torch.bool)
            self.real[self.places] = True
        if len(blocks) > 1:
            ranks = np.empty_like(order)
            ranks[order] = np.arange(len(order))
            self.order, self.ranks = torch.from_numpy(order), torch.from_numpy(ranks)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def longest(self) -> int:
        return int(self.lengths.max(initial=0))

    def firsts(self) -> Tensor:
        """[B] int64, the row at position 0 of each sequence."""
        return self.offsets[:-1].long()

    def masks(self) -> list[Tensor | None]:
        """For each block [count,1,1,length] bool, True at what is no padding; None where nothing is."""
        if self.real is None:
            return [None] * len(self.blocks)
        parts = self.real.split([block.count * block.length for block in self.blocks])
        return [
            None if block.is_full else part.view(block.count, 1, 1, block.length)
            for block, part in zip(self.blocks, parts, strict=True)
        ]


def _blocks_of(lengths: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Sequences, longest first, and how many of them make each block: those that differ by at most a quarter of the longest."""
    order = np.argsort(-lengths, kind="stable")
    step = max(1, -(-int(lengths.max()) // BLOCKS))
    classes = (lengths[order] - 1) // step
    counts: list[int] = []
    for size in np.unique(-classes, return_counts=True)[1].tolist():
        if counts and (size < FEWEST or counts[-1] < FEWEST):
            counts[-1] += size
        else:
            counts.append(size)
    return order, counts


def consecutive(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, … for each of some runs, one behind the other: [B], [B] → [sum of lengths] int64."""
    ends = np.cumsum(lengths)
    return np.repeat(np.asarray(starts, np.int64) - ends + lengths, lengths) + np.arange(ends[-1] if len(ends) else 0)


@dataclass
class Texts(Ragged):
    """B texts.

    Attributes:
        ids: [T] int64, [CLS] words [SEP] of each
        layout: of the T tokens
    """

    ids: Tensor
    layout: Layout

    def __len__(self) -> int:
        return len(self.layout)

    def rows(self, part: slice) -> Texts:
        """Some of the texts, consecutive ones, on the same device."""
        first, last = _bounds(self.layout.lengths, part)
        return Texts(self.ids[first:last], Layout.of(self.layout.lengths[part]).to(self.ids.device))


@dataclass
class Images(Ragged):
    """B images.

    Attributes:
        features: [R,F] of the regions, any float type, float16 as read from a database; zero where masked
        positions: [R,7] float32, x1 y1 x2 y2 w h w·h of their boxes as fractions of the image
        layout: of the R + B tokens: each image is [CLS] and its regions
        order: [R+B] int64, the tokens of the sequences as rows of: B times [CLS], and then the R regions
    """

    features: Tensor
    positions: Tensor
    layout: Layout
    order: Tensor

    @classmethod
    def of(cls, features: Tensor, positions: Tensor, counts: np.ndarray) -> Images:
        """Images of ``counts`` [B] regions each."""
        counts = np.asarray(counts, np.int64)
        order = np.empty(len(features) + len(counts), np.int64)
        firsts = np.cumsum(counts + 1) - counts - 1
        order[firsts] = np.arange(len(counts))
        order[consecutive(firsts + 1, counts)] = len(counts) + np.arange(len(features))
        device = features.device
        return cls(features, positions, Layout.of(counts + 1).to(device), torch.from_numpy(order).to(device))

    def __len__(self) -> int:
        return len(self.layout)

    @property
    def counts(self) -> np.ndarray:
        """[B] regions of each, on the host."""
        return self.layout.lengths - 1

    def rows(self, part: slice) -> Images:
        """Some of the images, consecutive ones, on the same device."""
        first, last = _bounds(self.counts, part)
        return Images.of(self.features[first:last], self.positions[first:last], self.counts[part])

    def take(self, numbers: np.ndarray) -> Images:
        """The images of these numbers [N], on the same device."""
        counts = self.counts
        regions = torch.from_numpy(consecutive((counts.cumsum() - counts)[numbers], counts[numbers])).to(self.features.device)
        return Images.of(self.features[regions], self.positions[regions], counts[numbers])


def _bounds(lengths: np.ndarray, part: slice) -> tuple[int, int]:
    """The rows of some consecutive sequences."""
    first = int(lengths[: part.start].sum())
    return first, first + int(lengths[part].sum())


@dataclass
class Joined(Ragged):
    """P pairs of texts and images as sequences of the words and then the regions, as a re-ranker reads them.

    Attributes:
        rows: [S] int64, their tokens as rows of: all words, and then all regions
        layout: of the S tokens
    """

    rows: Tensor
    layout: Layout

    @classmethod
    def of(cls, texts: Texts, images: Images, txt: np.ndarray, img: np.ndarray) -> Joined:
        """The pairs of the texts ``txt`` [P] with the images ``img`` [P], on the host."""
        words, regions = texts.layout.lengths, images.counts
        first_word, first_region = (np.cumsum(lengths) - lengths for lengths in (words, regions))
        starts = np.stack([first_word[txt], int(words.sum()) + first_region[img]], axis=1)
        lengths = np.stack([words[txt], regions[img]], axis=1)
        rows = consecutive(starts.reshape(-1), lengths.reshape(-1))
        return cls(torch.from_numpy(rows), Layout.of(lengths.sum(axis=1)))


@dataclass
class Predicted(Ragged):
    """What masked modelling predicts.

    Attributes:
        rows: [N] int64, rows of the packed tokens
        pairs: [N] int64, the sequence of each
    """

    rows: Tensor
    pairs: Tensor

    @classmethod
    def at(cls, chosen: np.ndarray, layout: Layout) -> Predicted:
        """The tokens where ``chosen`` [T] is true."""
        rows = np.flatnonzero(chosen)
        pairs = np.repeat(np.arange(len(layout)), layout.lengths)[rows]
        return cls(torch.from_numpy(rows), torch.from_numpy(pairs))

    def __len__(self) -> int:
        return len(self.rows)


def pack_texts(input_ids: Tensor, attention_mask: Tensor) -> Texts:
    """Padded texts without their padding.

    Args:
        input_ids: [B,L] int64
        attention_mask: [B,L], true (or 1) at real tokens, from position 0 on

    Raises:
        BadInput: padding that is not at the end of a text, or a text without tokens.
    """
    mask = attention_mask.bool()
    on_host = mask.cpu().numpy()
    if not on_host[:, :1].all() or (on_host[:, 1:] > on_host[:, :-1]).any():
        raise BadInput("attention_mask: every text must begin at position 0, with all of its padding at the end")
    return Texts(input_ids[mask], Layout.of(on_host.sum(axis=1)).to(input_ids.device))


def pack_images(features: Tensor, positions: Tensor, region_mask: Tensor) -> Images:
    """Padded images without their padding.

    Args:
        features: [B,R,F]
        positions: [B,R,7]
        region_mask: [B,R], true (or 1) at real regions
    """
    mask = region_mask.bool()
    return Images.of(features[mask], positions[mask], mask.sum(dim=1).cpu().numpy())
