"""Box operators against naive twins, and against torchvision where it can be imported."""

import math

import pytest
import torch

from model.extractors.box_ops import (
    box_iou,
    clip_boxes,
    decode_boxes,
    nms,
    norm_boxes,
    roi_align,
    roi_pool,
    roi_weights,
    surviving_scores,
)

try:
    from torchvision import ops as torchvision_ops
except (ImportError, RuntimeError):  # no wheel, or one of another torch; the naive twins below need none
    torchvision_ops = None
with_torchvision = pytest.mark.skipif(torchvision_ops is None, reason="compares with torchvision, which is not here")


def naive_roi_align(features, boxes, batch_index, output_size, scale, sampling_ratio):
    """Bin by bin and sample by sample, as Mask R-CNN describes it."""
    _, channels, height, width = features.shape
    result = torch.zeros(len(boxes), channels, *output_size)

    def bilinear(image, y, x):
        if y < -1 or y > height or x < -1 or x > width:
            return torch.zeros(channels)
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        top, left = int(y), int(x)
        bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
        dy, dx = y - top, x - left
        upper = image[:, top, left] * (1 - dx) + image[:, top, right] * dx
        lower = image[:, bottom, left] * (1 - dx) + image[:, bottom, right] * dx
        return upper * (1 - dy) + lower * dy

    for n, (box, index) in enumerate(zip(boxes.tolist(), batch_index.tolist())):
        x1, y1, x2, y2 = (v * scale - 0.5 for v in box)
        h, w = y2 - y1, x2 - x1
        bin_h, bin_w = h / output_size[0], w / output_size[1]
        rows = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_h)
        columns = sampling_ratio if sampling_ratio > 0 else math.ceil(bin_w)
        for p in range(output_size[0]):
            for q in range(output_size[1]):
                for i in range(rows):
                    for j in range(columns):
                        y, x = y1 + (p + (i + 0.5) / rows) * bin_h, x1 + (q + (j + 0.5) / columns) * bin_w
                        result[n, :, p, q] += bilinear(features[index], y, x) / (rows * columns)
    return result


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
def test_roi_align_against_naive(sampling_ratio):
    generator = torch.Generator().manual_seed(sampling_ratio)
    features = torch.randn(2, 3, 9, 13, generator=generator)
    corner = torch.rand(6, 2, generator=generator) * 60 - 10  # some begin outside the 104 x 72 picture
    boxes = torch.cat([corner, corner + 1 + torch.rand(6, 2, generator=generator) * 70], 1)
    boxes = torch.cat([boxes, torch.tensor([[5.0, 6, 5.5, 6.25], [0, 0, 104, 72], [300, 300, 310, 320]])])
    index = torch.tensor([0, 1, 1, 0, 0, 1, 1, 0, 1])
    fast = roi_align(features, boxes, index, (3, 4), 1 / 8, sampling_ratio)
    slow = naive_roi_align(features, boxes, index, (3, 4), 1 / 8, sampling_ratio)
    torch.testing.assert_close(fast, slow, atol=2e-6, rtol=1e-5)
    assert slow[:6].abs().sum() > 1
    assert slow[8].abs().sum() == 0  # far outside


def test_roi_align_of_a_ramp_is_the_coordinate_of_bin_centres():
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)  # value = x of the pixel whose centre is x + 0.5
    result = roi_align(ramp, torch.tensor([[4.0, 4, 12, 12]]), torch.tensor([0]), (4, 4))
    torch.testing.assert_close(result[0, 0, 0], torch.tensor([4.5, 6.5, 8.5, 10.5]))


def test_roi_align_of_no_boxes():
    result = roi_align(torch.zeros(1, 5, 8, 8), torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), (7, 6))
    assert result.shape == (0, 5, 7, 6)


def test_roi_weights_take_cells_back_to_pixels():
    """random-conv never cuts a map out: means over RoI cells are means over pixels with these weights."""
    generator = torch.Generator().manual_seed(0)
    image, cells = torch.randn(1, 5, 20, 30, generator=generator), torch.rand(2, 4, 4, generator=generator)
    boxes = torch.tensor([[3.0, 5, 90, 61], [40, 10, 52, 71]])
    weight_y, weight_x = roi_weights(boxes, (20, 30), (4, 4), 1 / 4)
    pixels = weight_y.transpose(1, 2) @ cells @ weight_x
    cut_out = naive_roi_align(image, boxes, torch.tensor([0, 0]), (4, 4), 1 / 4, 0)
    expected = (cut_out * cells[:, None]).sum((2, 3))
    torch.testing.assert_close(torch.einsum("nyx,cyx->nc", pixels, image[0]), expected, atol=1e-5, rtol=1e-5)


def naive_nms(boxes, scores, threshold):
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if all(naive_iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def naive_iou(a, b):
    wide, tall = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(wide, 0) * max(tall, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
def test_nms_against_naive(threshold):
    generator = torch.Generator().manual_seed(0)
    for n in (1, 7, 60, 200):
        corner = torch.randint(0, 40, (n, 2), generator=generator).double()
        boxes = torch.cat([corner, corner + torch.randint(1, 40, (n, 2), generator=generator)], 1)
        scores = torch.randint(0, 10, (n,), generator=generator) / 10  # many ties
        assert nms(boxes, scores, threshold).tolist() == naive_nms(boxes.tolist(), scores.tolist(), threshold)


def test_nms_keeps_boxes_that_overlap_by_exactly_the_threshold():
    boxes = torch.tensor([[0.0, 0, 2, 1], [1, 0, 2, 1]])  # overlap 0.5
    assert nms(boxes, torch.tensor([1.0, 2.0]), 0.5).tolist() == [1, 0]
    assert nms(boxes, torch.tensor([1.0, 2.0]), 0.49).tolist() == [1]
    assert nms(torch.zeros(0, 4), torch.zeros(0), 0.5).tolist() == []


def test_norm_boxes():
    boxes = norm_boxes(torch.tensor([[10, 20, 60, 100]]), width=200, height=100)
    torch.testing.assert_close(boxes, torch.tensor([[0.05, 0.2, 0.3, 1.0, 0.25, 0.8]]))


@pytest.mark.parametrize("limit", [1, 20, 5000])
def test_nms_of_many_boxes_goes_block_by_block(limit):
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(2500, 2, generator=generator) * 900  # more than two blocks
    boxes = torch.cat([corner, corner + 5 + torch.rand(2500, 2, generator=generator) * 120], 1).double()
    scores = torch.rand(2500, generator=generator)
    expected = naive_nms(boxes[:1500].tolist(), scores[:1500].tolist(), 0.3)
    assert len(expected) > 100
    assert nms(boxes[:1500], scores[:1500], 0.3, limit).tolist() == expected[:limit]
    assert nms(boxes, scores, 0.3, limit).tolist() == nms(boxes, scores, 0.3).tolist()[:limit]


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.7])
def test_surviving_scores_against_nms_class_by_class(threshold):
    generator = torch.Generator().manual_seed(0)
    corner = torch.randint(0, 30, (40, 2), generator=generator).double()
    boxes = torch.cat([corner, corner + torch.randint(1, 40, (40, 2), generator=generator)], 1)
    scores = torch.randint(0, 50, (40, 7), generator=generator) / 50  # ties
    expected = [0.0] * 40
    for c in range(7):
        for i in naive_nms(boxes.tolist(), scores[:, c].tolist(), threshold):
            expected[i] = max(expected[i], scores[i, c].item())
    result = surviving_scores(boxes, scores, threshold)
    assert result.tolist() == expected
    assert threshold == 0.7 or (result < scores.amax(1)).any()  # some box lost the class it is best at


def naive_decode(delta, box, weights):
    dx, dy, dw, dh = (d / w for d, w in zip(delta, weights))
    wide, tall = box[2] - box[0], box[3] - box[1]
    x, y = (box[0] + box[2]) / 2 + dx * wide, (box[1] + box[3]) / 2 + dy * tall
    wide, tall = wide * min(math.exp(dw), 62.5), tall * min(math.exp(dh), 62.5)
    return [x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2]


def test_decode_boxes_against_naive():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(50, 2, generator=generator, dtype=torch.double) * 100
    boxes = torch.cat([corner, corner + torch.rand(50, 2, generator=generator) * 80], 1)
    deltas = torch.randn(50, 4, generator=generator, dtype=torch.double) * 3
    deltas[0, 2] = 700  # more than exp can take
    for weights in ((1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)):
        expected = [naive_decode(d, b, weights) for d, b in zip(deltas.tolist(), boxes.tolist())]
        torch.testing.assert_close(decode_boxes(deltas, boxes, weights), torch.tensor(expected).double())


def test_deltas_of_nothing_leave_a_box_where_it_is():
    boxes = torch.tensor([[3.0, 4, 10, 20]])
    torch.testing.assert_close(decode_boxes(torch.zeros(1, 4), boxes), boxes)
    torch.testing.assert_close(
        decode_boxes(torch.tensor([[1.0, 0, math.log(2), 0]]), boxes), torch.tensor([[6.5, 4, 20.5, 20]])
    )


def test_clip_boxes():
    boxes = torch.tensor([[-5.0, 3, 20, 90], [200, 200, 300, 300]])
    assert clip_boxes(boxes, 10, 80).tolist() == [[0, 3, 10, 80], [10, 80, 10, 80]]


def naive_roi_pool(features, boxes, batch_index, output_size, scale):
    """Bin by bin and pixel by pixel, as Fast R-CNN describes it."""
    _, channels, height, width = features.shape
    result = torch.zeros(len(boxes), channels, *output_size)

    def rounded(value):
        return math.floor(abs(value) + 0.5) * (1 if value >= 0 else -1)

    for n, (box, index) in enumerate(zip(boxes.tolist(), batch_index.tolist())):
        x1, y1, x2, y2 = (rounded(v * scale) for v in box)
        bin_h, bin_w = max(y2 - y1 + 1, 1) / output_size[0], max(x2 - x1 + 1, 1) / output_size[1]
        for p in range(output_size[0]):
            for q in range(output_size[1]):
                rows = range(y1 + math.floor(p * bin_h + 1e-9), y1 + math.ceil((p + 1) * bin_h - 1e-9))
                columns = range(x1 + math.floor(q * bin_w + 1e-9), x1 + math.ceil((q + 1) * bin_w - 1e-9))
                pixels = [
                    features[index, :, y, x] for y in rows for x in columns if 0 <= y < height and 0 <= x < width
                ]
                if pixels:
                    result[n, :, p, q] = torch.stack(pixels).amax(0)
    return result


def boxes_of_every_kind(generator):
    corner = torch.rand(30, 2, generator=generator) * 90 - 15  # some begin outside the 104 x 72 picture
    boxes = torch.cat([corner, corner + 0.5 + torch.rand(30, 2, generator=generator) * 80], 1)
    strange = [[5.0, 6, 5.5, 6.25], [0, 0, 104, 72], [300, 300, 310, 320], [20, 12, 36, 28], [60, 40, 50, 30]]
    return torch.cat([boxes, torch.tensor(strange)])


@pytest.mark.parametrize("output_size", [(4, 2), (8, 8)])  # powers of two: bins whose edges floats hit exactly
def test_roi_pool_against_naive(output_size):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 9, 13, generator=generator) - 3  # negative: an empty bin's 0 is not their maximum
    boxes = boxes_of_every_kind(generator)
    index = torch.randint(0, 2, (len(boxes),), generator=generator)
    fast = roi_pool(features, boxes, index, output_size, 1 / 8)
    slow = naive_roi_pool(features, boxes, index, output_size, 1 / 8)
    assert torch.equal(fast, slow)
    assert (slow[32] == 0).all() and (slow[31] != 0).all()  # far outside; the whole picture
    assert roi_pool(features, boxes[:0], index[:0], output_size, 1 / 8).shape == (0, 3, *output_size)


@with_torchvision
def test_against_torchvision():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 5, 38, 63, generator=generator)
    corner = torch.rand(400, 2, generator=generator) * torch.tensor([1000.0, 600]) - 20
    boxes = torch.cat([corner, corner + torch.rand(400, 2, generator=generator) ** 2 * 500], 1)
    index = torch.randint(0, 2, (400,), generator=generator)
    rois = torch.cat([index[:, None].float(), boxes], 1)
    for size in ((14, 14), (7, 7), (3, 5)):
        assert torch.equal(
            roi_pool(features, boxes, index, size, 1 / 16), torchvision_ops.roi_pool(features, rois, size, 1 / 16)
        )
        torch.testing.assert_close(
            roi_align(features, boxes, index, size, 1 / 16, 2),
            torchvision_ops.roi_align(features, rois, size, 1 / 16, 2, aligned=True),
            atol=5e-5,
            rtol=1e-4,
        )
    scores = torch.rand(400, generator=generator)
    for threshold in (0.3, 0.7):
        assert torch.equal(nms(boxes, scores, threshold), torchvision_ops.nms(boxes, scores, threshold))
    torch.testing.assert_close(box_iou(boxes, boxes), torchvision_ops.box_iou(boxes, boxes))
