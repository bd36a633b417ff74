"""The regions of a picture, and of many pictures one behind the other, copied once from where they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data.regions.codec import PlainRows

_FP16 = np.dtype("<f2")
_MOST_EXPECTED = 1 << 16  # a file may say of a picture whatever it likes


@dataclass
class Regions:
    """The regions of one picture, most confident first. Arrays read from a database are read-only; of a plain one they are views
    into its memory map, which nothing has read yet.

    Args:
        features: fp16 [n, F] detector features
        norm_bb: fp16 [n, 6] x1 y1 x2 y2 w h, each divided by the picture's width or height
        conf: fp16 [n] confidence of the detector
        soft_labels: fp16 [n, C] class probabilities, class 0 is background; None when absent or not asked for
    """

    features: np.ndarray
    norm_bb: np.ndarray
    conf: np.ndarray
    soft_labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.features)

    @property
    def positions(self) -> np.ndarray:
        """float32 [n, 7]: as `positions_of`."""
        return positions_of(self.norm_bb)


def positions_of(norm_bb: np.ndarray) -> np.ndarray:
    """Boxes fp16 [R, 6], of one picture or of many → float32 [R, 7]: x1 y1 x2 y2 w h and the area w*h, taken in fp32."""
    positions = np.empty((len(norm_bb), 7), np.float32)
    positions[:, :6] = norm_bb
    np.multiply(positions[:, 4], positions[:, 5], out=positions[:, 6])
    return positions


class PackedRegions:
    """The regions of some pictures, those of one behind those of another, in memory of their own.

    Args:
        expected: how many regions are going to come
        feature_dim: F
    """

    def __init__(self, expected: int, feature_dim: int):
        self._features, self._boxes = np.empty((0, feature_dim), _FP16), np.empty((0, 6), _FP16)
        self._width, self._counts, self._filled = 2 * feature_dim, [], 0
        self._make_room(min(expected, _MOST_EXPECTED))

    def _make_room(self, regions: int) -> None:
        before = self._features, self._boxes
        self._features, self._boxes = (np.empty((regions, each.shape[1]), _FP16) for each in before)
        for new, old in zip((self._features, self._boxes), before, strict=True):
            new[: len(old)] = old
        # a slice of a memoryview is copied with less ado than rows of an array
        self._feature_bytes, self._box_bytes = (memoryview(each.reshape(-1).view(np.uint8)) for each in (self._features, self._boxes))

    def add(self, regions: Regions) -> None:
        """One picture more."""
        rows = self._next(len(regions.features))
        self._features[rows], self._boxes[rows] = regions.features, regions.norm_bb

    def add_stored(self, value: memoryview, stored: PlainRows, count: int) -> None:
        """One picture more: the first ``count`` regions of a plain record, whose width is right."""
        rows, width, features, boxes = self._next(count), self._width, stored.features, stored.boxes
        self._feature_bytes[rows.start * width : rows.stop * width] = value[features : features + count * width]
        self._box_bytes[rows.start * 12 : rows.stop * 12] = value[boxes : boxes + count * 12]

    def add_again(self, picture: int) -> None:
        """The ``picture``-th once more."""
        first, count = sum(self._counts[:picture]), self._counts[picture]
        rows = self._next(count)
        self._features[rows] = self._features[first : first + count]
        self._boxes[rows] = self._boxes[first : first + count]

    def _next(self, count: int) -> slice:
        first, self._filled = self._filled, self._filled + count
        if self._filled > len(self._features):
            self._make_room(2 * self._filled)
        self._counts.append(count)
        return slice(first, self._filled)

    @property
    def features(self) -> np.ndarray:
        """fp16 [R, F]"""
        return self._features[: self._filled]

    @property
    def norm_bb(self) -> np.ndarray:
        """fp16 [R, 6]"""
        return self._boxes[: self._filled]

    @property
    def counts(self) -> np.ndarray:
        """int64 [B] regions of each picture"""
        return np.array(self._counts, np.int64)


class RegionSource(Protocol):
    """What pictures are read from: `RegionDB`, or several of them."""

    feature_dim: int

    def get(self, key: str, soft_labels: bool = True, row: int | None = None) -> Regions: ...

    def read_into(self, packed: PackedRegions, key: str, row: int) -> None: ...

    def soft_labels(self, key: str, row: int) -> np.ndarray: ...


class StoredPictures:
    """Pictures of a database, whose regions are read when they are looked at: each is copied as soon as it was compared with its
    checksum, when it is still in the processor's cache.

    Args:
        regions: where they are
        keys, rows: of B pictures there
        counts: [B] regions that are used of each, or are said to be
    """

    def __init__(self, regions: RegionSource, keys: Sequence[str], rows: np.ndarray, counts: np.ndarray):
        self._regions, self._keys, self._rows, self._counts = regions, keys, rows.tolist(), counts

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, n: int) -> Regions:
        """The regions of the n-th picture, without soft labels."""
        return self._regions.get(self._keys[n], soft_labels=False, row=self._rows[n])

    def soft_labels(self, n: int) -> np.ndarray:
        """fp16 [r, C] of the r regions of the n-th picture. Raises BadInput where there are none."""
        return self._regions.soft_labels(self._keys[n], self._rows[n])

    def packed(self, which: np.ndarray | None = None) -> PackedRegions:
        """The regions of all pictures, or of the ``which``-th. A picture that comes again is read once."""
        counts, chosen = self._counts, range(len(self))
        if which is not None:
            counts, chosen = counts[which], which.tolist()
        packed = PackedRegions(int(counts.sum()), self._regions.feature_dim)
        read_into, keys, rows = self._regions.read_into, self._keys, self._rows
        known: dict[str, int] = {}
        for place, n in enumerate(chosen):
            key = keys[n]
            first = known.setdefault(key, place)
            if first == place:
                read_into(packed, key, rows[n])
            else:
                packed.add_again(first)
        return packed
