"""What every detector does with boxes: overlap, suppression, decoding, pooling. Own versions in plain torch.

torchvision has these operators too, but its wheel is often missing where torch's is (CPU, new versions), so nothing here
needs it; the tests compare with it where it is present. Boxes are x1 y1 x2 y2; x2 and y2 are one past the last pixel.
"""

from __future__ import annotations

import math

import torch

NMS_BLOCK = 1024  # boxes compared with each other at once
MAX_LOG_SCALE = math.log(1000 / 16)  # a decoded box grows at most so much: exp must not overflow


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


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float, limit: int | None = None) -> torch.Tensor:
    """Greedy non-maximum suppression, as `torchvision.ops.nms`; among equal scores the first box wins.

    All boxes of a block are decided at once and again until nothing changes, which is the greedy answer because box i can
    only depend on boxes before it (Cluster-NMS, Zheng et al. 2020, section 3.3): a few matrix steps instead of n.

    Args:
        boxes: [n, 4] x1 y1 x2 y2
        scores: [n]
        iou_threshold: a box goes when it overlaps a better one by *more* than this
        limit: no more than so many are wanted

    Returns:
        int64 [kept], indices into `boxes`, best first.
    """
    order = scores.argsort(descending=True, stable=True)
    kept = order[:0]
    for block in order.split(NMS_BLOCK):
        block = block[~(box_iou(boxes[kept], boxes[block]) > iou_threshold).any(0)]
        suppresses = (box_iou(boxes[block], boxes[block]) > iou_threshold).triu(1)  # [better, worse]
        keep = torch.ones_like(block, dtype=torch.bool)
        while True:
            decided = ~(suppresses & keep[:, None]).any(0)
            if torch.equal(decided, keep):
                break
            keep = decided
        kept = torch.cat([kept, block[keep]])
        if limit is not None and len(kept) >= limit:
            break
    return kept[:limit]


def surviving_scores(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Suppression class by class of boxes that all classes share: the best score with which a box survives anywhere.

    Rank by rank, for all classes at once: the r-th best box of each class goes if a better one that stayed overlaps it.

    Args:
        boxes: [n, 4]
        scores: [n, C], C foreground classes
        iou_threshold: as for `nms`

    Returns:
        [n]; 0 for a box that is suppressed in every class.
    """
    overlaps = box_iou(boxes, boxes) > iou_threshold
    classes = torch.arange(scores.shape[1], device=boxes.device)
    suppressed = torch.zeros(scores.shape[1], len(boxes), dtype=torch.bool, device=boxes.device)
    best = scores.new_zeros(len(boxes))
    for box in scores.argsort(dim=0, descending=True, stable=True):  # [C]: each class's box of this rank
        stays = ~suppressed[classes, box]
        suppressed |= overlaps[box] & stays[:, None]
        best.scatter_reduce_(0, box, torch.where(stays, scores[box, classes], 0), "amax")
    return best


def decode_boxes(
    deltas: torch.Tensor, boxes: torch.Tensor, weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
) -> torch.Tensor:
    """Boxes moved by predicted deltas (Girshick 2015, Fast R-CNN; the coding of R-CNN, appendix C).

    Args:
        deltas: [n, 4] dx dy (in box widths and heights) dw dh (logarithms of the scale)
        boxes: [n, 4] x1 y1 x2 y2
        weights: by which the four deltas were multiplied in training

    Returns:
        [n, 4] x1 y1 x2 y2.
    """
    deltas = deltas / deltas.new_tensor(weights)
    size = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + size / 2 + deltas[:, :2] * size
    size = size * deltas[:, 2:].clamp(max=MAX_LOG_SCALE).exp()
    return torch.cat([centre - size / 2, centre + size / 2], 1)


def clip_boxes(boxes: torch.Tensor, width: float, height: float) -> torch.Tensor:
    """Boxes [n, 4] cut to the picture."""
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))


def roi_pool(
    features: torch.Tensor,
    boxes: torch.Tensor,
    batch_index: torch.Tensor,
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
) -> torch.Tensor:
    """RoI max pooling (Girshick 2015, section 2.1), with the conventions and the rounding of `torchvision.ops.roi_pool`.

    A box's corners are rounded to map pixels, the last one included; bins round outwards and so overlap; a bin off the
    map is 0. Arguments and result as for `roi_align`.
    """
    x1, y1, x2, y2 = round_half_away(boxes.float() * spatial_scale).unbind(1)
    low_y, high_y = _pool_bins(y1, y2, output_size[0], features.shape[2])
    low_x, high_x = _pool_bins(x1, x2, output_size[1], features.shape[3])
    rows, columns = (torch.stack(bins, 2).tolist() for bins in ((low_y, high_y), (low_x, high_x)))
    maps = features.permute(0, 2, 3, 1).contiguous()  # a slice's maximum then runs along the channels
    result = maps.new_zeros(len(boxes), *output_size, maps.shape[3])
    for n, image in enumerate(batch_index.tolist()):
        left, right = columns[n][0][0], columns[n][-1][1]
        strips = [maps[image, low:high, left:right].amax(0) if low < high else None for low, high in rows[n]]
        for p, strip in enumerate(strips):
            if strip is not None and left < right:
                for q, (low, high) in enumerate(columns[n]):
                    if low < high:
                        result[n, p, q] = strip[low - left : high - left].amax(0)
    return result.permute(0, 3, 1, 2)


def round_half_away(values: torch.Tensor) -> torch.Tensor:
    """C's `round`; torch's rounds halves to even."""
    return values.sign() * (values.abs() + 0.5).floor()


def _pool_bins(low: torch.Tensor, high: torch.Tensor, bins: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """First and one past the last map pixel of every bin: int64 [n, bins] each."""
    size = ((high - low + 1).clamp(min=1) / bins)[:, None]
    place = torch.arange(bins, device=low.device)
    first = (place * size).floor() + low[:, None]
    last = ((place + 1) * size).ceil() + low[:, None]
    return first.clamp(0, length).long(), last.clamp(0, length).long()


def roi_align(
    features: torch.Tensor,
    boxes: torch.Tensor,
    batch_index: torch.Tensor,
    output_size: tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
) -> torch.Tensor:
    """RoI-align (He et al. 2017, Mask R-CNN, section 3), with the conventions of `torchvision.ops.roi_align(aligned=True)`.

    A bin is the mean of a grid of bilinear samples. Both separate into a vertical and a horizontal part, so a box is
    W_y · map · W_xᵀ: two matrix products, however many samples there are.

    Args:
        features: [B, C, H, W]
        boxes: [n, 4] x1 y1 x2 y2 in input pixels
        batch_index: int64 [n], which of the B maps a box is on
        output_size: (height, width) of the result
        spatial_scale: map pixels per input pixel
        sampling_ratio: samples per bin and axis; 0 (or less) for one per map pixel, ceil(bin size)

    Returns:
        [n, C, *output_size], the dtype of `features`.
    """
    boxes = boxes.to(features.dtype)
    weight_y, weight_x = roi_weights(boxes, features.shape[2:], output_size, spatial_scale, sampling_ratio)
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
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two factors of `roi_align`: W_y [n, output height, H] and W_x [n, output width, W], for a map of H x W."""
    x1, y1, x2, y2 = (boxes * spatial_scale - 0.5).unbind(1)  # centres of pixels are at half-integers
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
