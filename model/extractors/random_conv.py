"""`random-conv`: a region extractor that learns nothing and downloads nothing.

Boxes come from the picture's pixels: what differs from its background, and patches of one colour, then the whole picture
and grid cells. Features come from a frozen convolutional network with random weights, rectification and contrast
normalisation (as Jarrett et al. 2009, "What is the best multi-stage architecture for object recognition?", show, such a
network sees well without training), then RoI-align. Everything follows from the seed; pictures are processed one by
one, so that a picture's regions never depend on its neighbours in a batch.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from data.errors import BadInput
from model.extractors.box_ops import nms, roi_align, roi_weights
from model.extractors.detector import Detections

MIN_REGIONS, MAX_REGIONS = 10, 16  # UNITER's reader uses at least 10 regions
PROPOSAL_SIDE = 96  # proposals are sought on a picture whose longer side is this
NUM_COLOURS = 8
GRID = 12  # RoI-align's output
NUM_EDGES, NUM_TEXTURES, NUM_TINTS = 48, 64, 32


class RandomConv(nn.Module):
    """See the module. `forward(pictures)` → one Detections per picture, 10 to 16 regions each.

    Args:
        feature_dim: width of a feature: a quarter tells colour, a quarter texture, half layout (shape)
        num_labels: classes of the soft labels, the background at position 0; 0 for none
        size: longer side of the picture that the network sees, pixels; a multiple of 4
        seed: of all weights

    Raises:
        BadInput: a size, width or label count that cannot be.
    """

    def __init__(self, feature_dim: int = 2048, num_labels: int = 1601, size: int = 192, seed: int = 0):
        super().__init__()
        for name, value, least in (("feature_dim", feature_dim, 16), ("size", size, 32), ("seed", seed, 0)):
            if value < least:
                raise BadInput(f"random-conv: {name} is {value}, expected at least {least}")
        if seed >= 2**32:
            raise BadInput(f"random-conv: seed is {seed}, expected less than 2**32")
        if size % 4:
            raise BadInput(f"random-conv: size is {size}, expected a multiple of 4, such as {size - size % 4}")
        if num_labels < 0 or num_labels == 1:
            raise BadInput(
                f"random-conv: num_labels is {num_labels}, expected 0 (none) or at least 2 (with background)"
            )
        self.feature_dim, self.num_labels, self.size = feature_dim, num_labels, size
        rng = np.random.RandomState(seed)  # its stream is the same in every numpy version

        def frozen(name: str, value: np.ndarray) -> None:
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32)))

        frozen("edges", _zero_mean_filters(rng, NUM_EDGES, 3, 5))
        frozen("textures", _zero_mean_filters(rng, NUM_TEXTURES, NUM_EDGES, 3))
        tints = rng.randn(NUM_TINTS, 3)
        frozen("tints", tints[:, :, None, None])
        frozen("tint_bias", -(tints * rng.rand(NUM_TINTS, 3)).sum(1))  # each tint's edge goes through the colour cube

        widths = (feature_dim // 4, feature_dim // 4, feature_dim - 2 * (feature_dim // 4))
        inputs = (3 * NUM_TINTS, 3 * (NUM_EDGES + NUM_TEXTURES), GRID * GRID)
        for block, (wide, fan_in) in enumerate(zip(widths, inputs)):
            frozen(f"dense{block}", rng.randn(fan_in, wide) / fan_in**0.5)
            frozen(f"mean{block}", np.zeros(fan_in))
            frozen(f"scale{block}", np.ones(fan_in))
        if num_labels:
            frozen("classifier", rng.randn(feature_dim, num_labels - 1) / feature_dim**0.5)
            frozen("usual", np.zeros(feature_dim))
        self._calibrate(rng)

    def _calibrate(self, rng: np.random.RandomState) -> None:
        """Centre and scale every descriptor by what it is on coloured noise: fixed by the seed, not by anyone's data."""
        samples = []
        with torch.no_grad():
            for _ in range(32):
                noise = torch.zeros(1, 3, self.size, self.size)
                for cells in (2, 5, 12, 30, self.size):  # patches of every size
                    octave = torch.from_numpy(rng.randn(1, 3, cells, cells).astype(np.float32)) * rng.rand()
                    noise += F.interpolate(octave, size=(self.size, self.size))
                corner = rng.rand(12, 2) * 0.7 * self.size
                boxes = np.concatenate([corner, corner + (0.08 + 0.22 * rng.rand(12, 2)) * self.size], 1)
                samples.append(self._describe((noise * 0.2 + 0.5).clamp(0, 1), torch.from_numpy(boxes).float()))
        for block, values in enumerate(map(torch.cat, zip(*samples))):
            getattr(self, f"mean{block}").copy_(values.mean(0))
            getattr(self, f"scale{block}").copy_(values.std(0) + 1e-3)
        if self.num_labels:
            self.usual.copy_(self.embed(tuple(map(torch.cat, zip(*samples)))).mean(0))

    @torch.no_grad()
    def forward(self, pictures: list[Image.Image]) -> list[Detections]:
        return [self._detect(picture.convert("RGB")) for picture in pictures]

    def _detect(self, picture: Image.Image) -> Detections:
        seen = resize(picture, self.size)
        found, score = propose(np.asarray(resize(picture, PROPOSAL_SIDE), dtype=np.float32) / 255)
        boxes, conf = _with_grid(found, score)
        pixels = torch.from_numpy(np.array(seen)).permute(2, 0, 1)[None].float() / 255
        blocks = self._describe(pixels, boxes * torch.tensor([seen.width, seen.height] * 2))
        features = self.embed(blocks)
        labels = self.soft_labels(features, conf) if self.num_labels else None
        return Detections(boxes * torch.tensor([picture.width, picture.height] * 2), features, conf, labels)

    def _describe(self, pixels: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Colour, texture and layout descriptors of boxes [n, 4] on one picture [1, 3, H, W]: [n, ...] each."""
        half = F.avg_pool2d(pixels, 2)
        edges = F.conv2d(pixels, self.edges, stride=2, padding=2).abs()
        textures = F.conv2d(edges, self.textures, stride=2, padding=1).abs()
        tints = F.relu(F.conv2d(F.avg_pool2d(half, 2), self.tints, self.tint_bias))

        quarter = torch.cat([F.avg_pool2d(edges, 2), textures, tints], 1)

        # Figure: how far each cell is from the colour of the box's border, 0..1. It tells the shape whatever the colour,
        # and lets the pooling look at the object rather than at what is behind it.
        half = roi_align(half, boxes, torch.zeros(len(boxes), dtype=torch.long), (GRID, GRID), 1 / 2)
        border = torch.cat([half[:, :, 0], half[:, :, -1], half[:, :, :, 0], half[:, :, :, -1]], 2).median(2)[0]
        figure = (half - border[:, :, None, None]).square().sum(1).sqrt()
        figure = figure / figure.amax((1, 2), keepdim=True).clamp(min=0.03)

        # RoI-align, then means over its cells weighted by the figure, by the ground and evenly. All of it is linear, so
        # the cells' weights are taken to the map's pixels, and no map is ever cut out.
        weight = torch.stack([figure + 1e-3, 1 - figure + 1e-3, torch.ones_like(figure)])  # [3, n, GRID, GRID]
        weight = weight / weight.sum((2, 3), keepdim=True)
        weight_y, weight_x = roi_weights(boxes, quarter.shape[2:], (GRID, GRID), 1 / 4)
        weight = (weight_y.transpose(1, 2) @ weight @ weight_x).flatten(2)  # [3, n, H * W]
        maps = quarter[0].flatten(1).T  # [H * W, channels]
        inside, outside, spread = weight[0] @ maps, weight[1] @ maps, (weight[2] @ maps.square()).sqrt()
        statistics = torch.stack([inside, outside, spread], 2)  # [n, channels, 3]
        texture, tint = statistics.split((NUM_EDGES + NUM_TEXTURES, NUM_TINTS), 1)
        return tint.flatten(1), texture.flatten(1), figure.flatten(1)

    def embed(self, blocks: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Descriptors → features [n, feature_dim], zero or more, about 1 in size (safe as fp16)."""
        parts = []
        for block, values in enumerate(blocks):
            values = (values - getattr(self, f"mean{block}")) / getattr(self, f"scale{block}")
            parts.append(F.relu(values.clamp(-8, 8) @ getattr(self, f"dense{block}")))
        return torch.cat(parts, 1)

    def soft_labels(self, features: torch.Tensor, conf: torch.Tensor) -> torch.Tensor:
        """Random but fixed classes: regions that look alike get like labels. Background gets half of what conf lacks."""
        direction = F.normalize(features - self.usual) * self.feature_dim**0.5
        background = 0.5 * (1 - conf)[:, None]
        return torch.cat([background, (1 - background) * F.softmax(4 * direction @ self.classifier, dim=1)], 1)


def _zero_mean_filters(rng: np.random.RandomState, out: int, channels: int, side: int) -> np.ndarray:
    """Random filters [out, channels, side, side] of norm 1 that give 0 on any flat patch."""
    weight = rng.randn(out, channels, side, side)
    weight -= weight.mean((2, 3), keepdims=True)
    return weight / np.sqrt((weight**2).sum((1, 2, 3), keepdims=True))


def resize(picture: Image.Image, side: int) -> Image.Image:
    """The picture with its longer side `side`; both sides multiples of 4 (two halvings) and 16 or more for the filters."""
    ratio = side / max(picture.size)
    size = tuple(max(16, 4 * round(length * ratio / 4)) for length in picture.size)
    if size == picture.size:
        return picture
    return picture.resize(size, Image.Resampling.BOX if ratio < 1 else Image.Resampling.BICUBIC)


def _with_grid(found: torch.Tensor, score: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Objects, the whole picture, its quadrants, and ninths when there are few: boxes as fractions, and conf, sorted."""
    cells = [(1, 0, 0)] + [(2, x, y) for y in range(2) for x in range(2)]
    found, score = found[: MAX_REGIONS - len(cells)], score[: MAX_REGIONS - len(cells)]
    ninths = [(3, x, y) for x, y in ((1, 1), (1, 0), (0, 1), (2, 1), (1, 2))]
    cells += ninths[: max(0, MIN_REGIONS - len(found) - len(cells))]
    grid = torch.tensor([(x / k, y / k, (x + 1) / k, (y + 1) / k) for k, x, y in cells])
    # Objects from 0.3 up, those found whole mostly above 0.6; the whole picture at 0.65; quadrants and ninths below 0.3,
    # but above the customary threshold of 0.2. So a threshold of 0.6 leaves the objects and the whole picture.
    grid_conf = torch.tensor([0.65 if k == 1 else 0.3 - 0.02 * k for k, _, _ in cells])
    conf = torch.cat([1 - 0.7 * torch.exp(-score / 0.15), grid_conf])
    order = conf.argsort(descending=True, stable=True)
    return torch.cat([found, grid])[order], conf[order]


# ---- proposals: pixels → boxes --------------------------------------------------------------------------------------


def propose(image: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes of what looks like one thing, from the pixels alone; none in an even picture.

    Candidates are connected patches of two kinds of mask: pixels far from a smooth model of the background, and pixels
    of one quantised colour. A good one differs from the ring around it, fills its box and is not tiny.

    Args:
        image: float32 [h, w, 3], 0..1

    Returns:
        boxes float32 [n, 4] as fractions of the picture's width and height, scores float32 [n], best first; n <= 11.
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
    best = nms(boxes, score, 0.6)[: MAX_REGIONS - 5]
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
