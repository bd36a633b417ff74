"""Region extractors: picture → boxes, features, confidences and soft labels; and the operators they share.

An extractor is a module with `feature_dim`, `num_labels` (0: no soft labels) and `extractor(pictures) -> list[Detections]`
for a list of RGB `PIL.Image`s of any sizes; it resizes by itself and gives its boxes in each picture's own pixels.
`load_extractor` makes one by name. Here is `random-conv`, which needs no weights; see `model/random_conv.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from data.errors import BadInput

EXTRACTORS = ("random-conv",)


@dataclass
class Detections:
    """The regions of one picture, most confident first (readers of the database cut the rows off at the end).

    Args:
        boxes: float32 [n, 4], x1 y1 x2 y2 in pixels of the picture; x2 and y2 are one past the last pixel
        features: float32 [n, feature_dim]
        conf: float32 [n], 0..1
        soft_labels: float32 [n, num_labels], rows sum to 1, position 0 is the background; None when there are none
    """

    boxes: torch.Tensor
    features: torch.Tensor
    conf: torch.Tensor
    soft_labels: torch.Tensor | None


def load_extractor(name: str, feature_dim: int = 2048, num_labels: int = 1601, size: int = 192, seed: int = 0):
    """Make the extractor called `name`.

    Args:
        name: one of EXTRACTORS
        feature_dim: width of a feature
        num_labels: classes of a soft label, the background (position 0) among them; 0 for no soft labels
        size: longer side in pixels of the picture that the network sees; a multiple of 4
        seed: of the frozen random weights

    Raises:
        BadInput: an unknown name or an impossible setting.
    """
    if name not in EXTRACTORS:
        raise BadInput(f"--extractor: found {name}, expected one of {', '.join(EXTRACTORS)}")
    from model.random_conv import RandomConv  # not needed by those who only want the operators

    return RandomConv(feature_dim, num_labels, size, seed)


def norm_boxes(boxes: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Boxes [n, 4] in pixels → [n, 6]: x1 y1 x2 y2 w h, each divided by the picture's width or height."""
    boxes = boxes.float() / torch.tensor([width, height, width, height], device=boxes.device)
    return torch.cat([boxes, boxes[:, 2:] - boxes[:, :2]], dim=1)


def box_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Intersection over union of boxes [n, 4] and [m, 4] → [n, m]; NaN for two empty boxes."""
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    common = (high - low).clamp(min=0).prod(2)
    area_a, area_b = (a[:, 2:] - a[:, :2]).prod(1), (b[:, 2:] - b[:, :2]).prod(1)
    return common / (area_a[:, None] + area_b[None] - common)


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression, as `torchvision.ops.nms`; among equal scores the first box wins.

    All boxes are decided at once and again until nothing changes, which is the greedy answer because box i can only
    depend on boxes before it (Cluster-NMS, Zheng et al. 2020, section 3.3): a few matrix steps instead of n.

    Args:
        boxes: [n, 4] x1 y1 x2 y2
        scores: [n]
        iou_threshold: a box goes when it overlaps a better one by *more* than this

    Returns:
        int64 [kept], indices into `boxes`, best first.
    """
    order = scores.argsort(descending=True, stable=True)
    suppresses = (box_iou(boxes[order], boxes[order]) > iou_threshold).triu(1)  # [better, worse]
    keep = torch.ones_like(order, dtype=torch.bool)
    while True:
        decided = ~(suppresses & keep[:, None]).any(0)
        if torch.equal(decided, keep):
            return order[keep]
        keep = decided


def roi_align(
    features: torch.Tensor,
    boxes: torch.Tensor,
    batch_index: torch.Tensor,
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> torch.Tensor:
    """RoI-align (He et al. 2017, Mask R-CNN, section 3), with the conventions of `torchvision.ops.roi_align`.

    A bin is the mean of a grid of bilinear samples. Both separate into a vertical and a horizontal part, so a box is
    W_y · map · W_xᵀ: two matrix products, however many samples there are.

    Args:
        features: [B, C, H, W]
        boxes: [n, 4] x1 y1 x2 y2 in input pixels
        batch_index: int64 [n], which of the B maps a box is on
        output_size: (height, width) of the result
        spatial_scale: map pixels per input pixel
        sampling_ratio: samples per bin and axis; 0 (or less) for one per map pixel, ceil(bin size)
        aligned: pixel centres at half-integers; False is the older convention (and boxes are then at least 1 wide)

    Returns:
        [n, C, *output_size], the dtype of `features`.
    """
    boxes = boxes.to(features.dtype)
    weight_y, weight_x = roi_weights(boxes, features.shape[2:], output_size, spatial_scale, sampling_ratio, aligned)
    result = features.new_zeros(len(boxes), features.shape[1], *output_size)
    for image in batch_index.unique().tolist():
        for rows in (batch_index == image).nonzero()[:, 0].split(64):  # bounds the [rows, C, out, W] intermediate
            wide = torch.einsum("cyx,nqx->ncyq", features[image], weight_x[rows])
            result[rows] = torch.einsum("npy,ncyq->ncpq", weight_y[rows], wide)
    return result


def roi_weights(
    boxes: torch.Tensor,
    map_size: tuple[int, int],
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two factors of `roi_align`: W_y [n, output height, H] and W_x [n, output width, W], for a map of H x W."""
    offset = 0.5 if aligned else 0.0
    x1, y1, x2, y2 = (boxes * spatial_scale - offset).unbind(1)
    if not aligned:
        x2, y2 = torch.maximum(x2, x1 + 1), torch.maximum(y2, y1 + 1)
    return (
        _bin_weights(y1, y2, output_size[0], map_size[0], sampling_ratio),
        _bin_weights(x1, x2, output_size[1], map_size[1], sampling_ratio),
    )


def _bin_weights(low: torch.Tensor, high: torch.Tensor, bins: int, length: int, sampling_ratio: int) -> torch.Tensor:
    """What each of `length` map pixels counts in each bin of the interval low..high: [n, bins, length]."""
    if len(low) == 0:
        return low.new_zeros(0, bins, length)
    size = (high - low) / bins
    count = torch.full_like(size, sampling_ratio) if sampling_ratio > 0 else size.ceil().clamp(min=0)
    sample = torch.arange(max(int(count.max()), 1), device=low.device)
    per_bin = count.clamp(min=1)[:, None, None]
    place = torch.arange(bins, device=low.device)[:, None] + (sample + 0.5) / per_bin  # in bins
    place = low[:, None, None] + size[:, None, None] * place  # [n, bins, samples], in map pixels
    counts = (sample < count[:, None, None]) & (place >= -1) & (place <= length)  # samples far outside are zeros
    place = place.clamp(0, length - 1)
    weight = (1 - (place[..., None] - torch.arange(length, device=low.device)).abs()).clamp(min=0)
    return (weight * counts[..., None]).sum(2) / per_bin
