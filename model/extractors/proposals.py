"""Pixels → boxes of what looks like one thing, without learning: what differs from the background, patches of one colour."""

from __future__ import annotations

import numpy as np
import torch

from model.extractors.box_ops import nms

MAX_PROPOSALS = 11  # of a picture
NUM_COLOURS = 8


def propose_boxes(image: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes of what looks like one thing, from the pixels alone; none in an even picture.

    Candidates are connected patches of two kinds of mask: pixels far from a smooth model of the background, and pixels
    of one quantised colour. A good one differs from the ring around it, fills its box and is not tiny.

    Args:
        image: float32 [h, w, 3], 0..1

    Returns:
        boxes float32 [n, 4] as fractions of the picture's width and height, scores float32 [n], best first; n <= MAX_PROPOSALS.
    """
    h, w, _ = image.shape
    red, green, blue = np.moveaxis(image, 2, 0)
    # Lightness counts half of what hue does: textures and shadows differ in lightness, things in hue.
    opponent = np.stack([(red + green + blue) / 6, 0.9 * (red - green), 0.45 * (red + green) - 0.9 * blue], 2)
    padded = np.pad(opponent, ((1, 1), (1, 1), (0, 0)), "edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    smooth = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9

    distance = _distance_from_background(smooth)
    threshold = _otsu(distance)
    strict_to_loose = np.stack([distance > threshold * part for part in (1, 0.6, 0.35)])
    one_colour = _quantise(smooth)[None] == np.arange(NUM_COLOURS)[:, None, None]
    closed = ~_dilate(~_dilate(one_colour))  # over stripes and dots
    box, area, colour = components(np.concatenate([strict_to_loose, closed]), smooth)

    width, height = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    fits = (area >= max(12, 0.0015 * h * w)) & (area < 0.6 * h * w) & (width * height < 0.7 * h * w)
    keep = fits & (width >= 4) & (height >= 4)
    box, area, colour, width, height = (v[keep] for v in (box, area, colour, width, height))
    margin = np.maximum(2, 0.06 * (width + height)).astype(int)[:, None]
    ring = np.concatenate([np.maximum(box[:, :2] - margin, 0), np.minimum(box[:, 2:] + margin, [w, h])], 1)
    (inner_sum, inner), (outer_sum, outer) = _box_sums(smooth, box), _box_sums(smooth, ring)
    contrast = np.linalg.norm(colour - (outer_sum - inner_sum) / np.maximum(outer - inner, 1)[:, None], axis=1)
    score = contrast * np.sqrt(area / (width * height)) * np.sqrt(np.minimum(1, area / (0.02 * h * w)))

    boxes, score = torch.from_numpy(box).float(), torch.from_numpy(score).float()
    best = nms(boxes, score, 0.6)[:MAX_PROPOSALS]
    return boxes[best] / torch.tensor([w, h, w, h]), score[best]


def _distance_from_background(image: np.ndarray, steps: int = 6) -> np.ndarray:
    """How far each pixel's colour is from a quadratic surface fitted robustly (Cauchy weights): [h, w]."""
    h, w, channels = image.shape
    y, x = np.meshgrid(np.linspace(-1, 1, h), np.linspace(-1, 1, w), indexing="ij")
    basis = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], 2)
    some, pixels = basis[::2, ::2].reshape(-1, 6), image[::2, ::2].reshape(-1, channels)
    residual = pixels - np.median(np.concatenate([image[0], image[-1]]), axis=0)
    for _ in range(steps):
        distance = np.sqrt((residual**2).sum(1))
        weight = 1 / (1 + (distance / max(np.median(distance), 0.02)) ** 2) ** 2
        weighted = some * weight[:, None]
        ridge = 1e-6 * len(some) * np.eye(6)
        surface = np.linalg.solve(weighted.T @ some + ridge, weighted.T @ pixels)
        residual = pixels - some @ surface
    return np.sqrt(((image - basis @ surface) ** 2).sum(2))


def _otsu(values: np.ndarray) -> float:
    """The threshold that parts values into two classes with the greatest variance between them (Otsu 1979)."""
    count, edge = np.histogram(values, 64, (0, values.max() + 1e-6))
    below, total = np.cumsum(count), np.cumsum(count * (edge[1:] + edge[:-1]) / 2)
    above = np.maximum(below[-1] - below, 1e-9)
    between = below * above * (total / np.maximum(below, 1) - (total[-1] - total) / above) ** 2
    return edge[1 + between[:-1].argmax()]


def _quantise(image: np.ndarray, steps: int = 5) -> np.ndarray:
    """k-means of the colours, started from the colours farthest apart: int [h, w], 0..NUM_COLOURS-1."""
    some = image[::2, ::2].reshape(-1, 3)
    centres = [some.mean(0)]
    distance = ((some - centres[0]) ** 2).sum(1)
    while len(centres) < NUM_COLOURS:
        centres.append(some[distance.argmax()])
        distance = np.minimum(distance, ((some - centres[-1]) ** 2).sum(1))
    centres = np.stack(centres)
    for _ in range(steps):
        nearest = ((centres**2).sum(1) - 2 * some @ centres.T).argmin(1)
        count = np.bincount(nearest, minlength=NUM_COLOURS)
        sums = np.stack([np.bincount(nearest, channel, NUM_COLOURS) for channel in some.T], 1)
        centres = np.where(count[:, None] > 0, sums / np.maximum(count, 1)[:, None], centres)
    return ((centres**2).sum(1) - 2 * image @ centres.T).argmin(2)


def _dilate(masks: np.ndarray, radius: int = 2) -> np.ndarray:
    """Each bool [m, h, w] mask grown by a square."""
    _, h, w = masks.shape
    padded = np.pad(masks, ((0, 0), (radius, radius), (radius, radius)))
    shifts = range(2 * radius + 1)
    tall = np.logical_or.reduce([padded[:, s : s + h] for s in shifts])
    return np.logical_or.reduce([tall[:, :, s : s + w] for s in shifts])


def _box_sums(image: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the colours in each box [n, 3], and its number of pixels [n] (a summed-area table)."""
    table = np.pad(image.astype(np.float64), ((1, 0), (1, 0), (0, 0))).cumsum(0).cumsum(1)
    x1, y1, x2, y2 = box.T
    return table[y2, x2] - table[y1, x2] - table[y2, x1] + table[y1, x1], (x2 - x1) * (y2 - y1)


def components(masks: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Connected patches (4 neighbours) of each mask. Works on horizontal runs of pixels: few, and all at once.

    Args:
        masks: bool [m, h, w]
        image: float [h, w, 3]

    Returns:
        boxes int [n, 4] x1 y1 x2 y2, areas int [n] in pixels, mean colours float [n, 3]; in order of each patch's first
        pixel.
    """
    m, h, w = masks.shape
    padded = np.zeros((m, h + 1, w + 1), dtype=np.int8)  # a run ends with its row, and touches no other mask
    padded[:, :h, :w] = masks
    step = np.diff(padded.ravel(), prepend=np.int8(0))
    start, end = np.flatnonzero(step > 0), np.flatnonzero(step < 0)

    # The runs in the next row that share a column with a run are neighbours in the list: low up to high.
    low, high = np.searchsorted(end, start + w + 1, "right"), np.searchsorted(start, end + w + 1, "left")
    count = np.maximum(high - low, 0)
    upper = np.repeat(np.arange(len(start)), count)
    lower = np.arange(len(upper)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
    root = np.arange(len(start))
    while True:  # every run takes the smallest root that it touches, then its root's root
        smallest = np.minimum(root[upper], root[lower])
        new = root.copy()
        np.minimum.at(new, root[upper], smallest)
        np.minimum.at(new, root[lower], smallest)
        new = new[new]
        if np.array_equal(new, root):
            break
        root = new

    first, patch = np.unique(root, return_inverse=True)
    n, length = len(first), end - start
    x, y = start % (w + 1), start // (w + 1) % (h + 1)
    box = np.tile(np.array([w, h, 0, 0]), (n, 1))
    np.minimum.at(box, (patch, 0), x)
    np.minimum.at(box, (patch, 1), y)
    np.maximum.at(box, (patch, 2), x + length)
    np.maximum.at(box, (patch, 3), y + 1)
    area = np.bincount(patch, length, n).astype(int)
    along = np.pad(image.astype(np.float64), ((0, 0), (1, 0), (0, 0))).cumsum(1)
    sums = along[y, x + length] - along[y, x]
    colour = np.stack([np.bincount(patch, channel, n) for channel in sums.T], 1) / np.maximum(area, 1)[:, None]
    return box, area, colour
