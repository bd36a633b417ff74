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

from data.errors import BadInput
from model.checkpoints import fingerprint
from model.extractors.base import Detections, Extractor, ExtractorOptions
from model.extractors.box_ops import roi_align, roi_weights
from model.extractors.proposals import propose_boxes

MIN_REGIONS, MAX_REGIONS = 10, 16  # UNITER's reader uses at least 10 regions
PROPOSAL_SIDE = 96  # proposals are sought on a picture whose longer side is this
GRID = 12  # RoI-align's output
LARGEST = 1 << 14  # sizes, widths and label counts: the weights stay below 2 GB
NUM_EDGES, NUM_TEXTURES, NUM_TINTS = 48, 64, 32


class RandomConv(Extractor):
    """The frozen network and the boxes that it describes: 10 to 16 regions of a picture.

    Args:
        feature_dim: width of a feature: a quarter tells colour, a quarter texture, half layout (shape)
        num_labels: classes of the soft labels, the background at position 0; 0 for none
        size: longer side of the picture that the network sees, pixels; a multiple of 4
        seed: of all weights

    Raises:
        BadInput: a size, width or label count that cannot be.
    """

    only_on_cpu = True
    feature_options = ("seed", "size", "feature_dim", "num_labels")  # labels, too: what calibrates is drawn after their weights

    @classmethod
    def build(cls, name: str, options: ExtractorOptions) -> RandomConv:
        return cls(options.feature_dim, options.num_labels, options.size, options.seed)

    def __init__(self, feature_dim: int, num_labels: int, size: int, seed: int):
        super().__init__()
        for name, value, least, most in (("feature_dim", feature_dim, 16, LARGEST), ("size", size, 32, LARGEST), ("num_labels", num_labels, 0, LARGEST), ("seed", seed, 0, 2**32 - 1)):
            if not least <= value <= most:
                raise BadInput(f"random-conv: {name} is {value}, expected {least} to {most:,}")
        if size % 4:
            raise BadInput(f"random-conv: size is {size}, expected a multiple of 4, such as {size - size % 4}")
        if num_labels == 1:
            raise BadInput(f"random-conv: num_labels is {num_labels}, expected 0 (none) or at least 2 (with background)")
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

    def weights_digest(self) -> str:
        """Of what is drawn from the seed: what is measured on noise has other last digits on another machine."""
        return fingerprint({name: getattr(self, name) for name in ("edges", "textures", "tints")})

    def detect(self, picture: Image.Image) -> Detections:
        seen = resize(picture, self.size)
        found, score = propose_boxes(np.asarray(resize(picture, PROPOSAL_SIDE), dtype=np.float32) / 255)
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
