"""The residual network of a Faster R-CNN "C4" (He et al. 2016), Caffe style, frozen. Parameter names are detectron2's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # of res2 to res5, by depth


class NormedConv(nn.Conv2d):
    """A convolution without bias, then batch norm on its stored statistics (`norm`)."""

    def __init__(self, fan_in: int, fan_out: int, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1):
        super().__init__(fan_in, fan_out, kernel, stride, padding, dilation, groups, bias=False)
        self.norm = nn.BatchNorm2d(fan_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(x))


class Stem(nn.Module):
    """[B, 3, H, W] → [B, wide, about H/4, W/4].

    Args:
        wide: channels
        caffe_max_pool: Caffe's pooling, unpadded and rounding sizes up; else padded by one and rounding down
    """

    def __init__(self, wide: int, caffe_max_pool: bool):
        super().__init__()
        self.conv1 = NormedConv(3, wide, 7, stride=2, padding=3)
        self.caffe_max_pool = caffe_max_pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv1(x))
        if self.caffe_max_pool:
            return F.max_pool2d(x, 3, 2, ceil_mode=True)
        return F.max_pool2d(x, 3, 2, padding=1)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut.

    Args:
        fan_in, inner, fan_out: channels
        stride: of the block
        stride_in_1x1: the first convolution strides (Caffe's models), not the second
        dilation: of the 3x3 convolution
        groups: of the 3x3 convolution
    """

    def __init__(
        self, fan_in: int, inner: int, fan_out: int, stride: int, stride_in_1x1: bool, dilation: int = 1, groups: int = 1
    ):
        super().__init__()
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.shortcut = NormedConv(fan_in, fan_out, 1, stride) if fan_in != fan_out else None
        self.conv1 = NormedConv(fan_in, inner, 1, first)
        self.conv2 = NormedConv(inner, inner, 3, second, padding=dilation, dilation=dilation, groups=groups)
        self.conv3 = NormedConv(inner, fan_out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv3(F.relu(self.conv2(F.relu(self.conv1(x)))))
        return F.relu(out + (x if self.shortcut is None else self.shortcut(x)))


def make_stage(blocks: int, fan_in: int, inner: int, fan_out: int, stride: int, *rest) -> nn.Sequential:
    """`blocks` bottlenecks, of which the first strides; `rest` as in `Bottleneck`."""
    first = Bottleneck(fan_in, inner, fan_out, stride, *rest)
    return nn.Sequential(first, *(Bottleneck(fan_out, inner, fan_out, 1, *rest) for _ in range(blocks - 1)))


class ResNetC4(nn.Module):
    """Stem, res2, res3 and res4: [B, 3, H, W] → [B, 4 * res2_channels, about H/16, W/16].

    Args:
        depth: 50, 101 or 152
        stem_channels: of the stem
        res2_channels: of res2; the following stages double them
        inner: of res2's 3x3 convolutions, all groups together; the following stages double them
        stride_in_1x1, groups: as in `Bottleneck`
        caffe_max_pool: as in `Stem`
    """

    def __init__(
        self,
        depth: int,
        stem_channels: int,
        res2_channels: int,
        inner: int,
        stride_in_1x1: bool,
        groups: int,
        caffe_max_pool: bool,
    ):
        super().__init__()
        self.stem = Stem(stem_channels, caffe_max_pool)
        blocks, wide = BLOCKS[depth], res2_channels
        self.res2 = make_stage(blocks[0], stem_channels, inner, wide, 1, stride_in_1x1, 1, groups)
        self.res3 = make_stage(blocks[1], wide, 2 * inner, 2 * wide, 2, stride_in_1x1, 1, groups)
        self.res4 = make_stage(blocks[2], 2 * wide, 4 * inner, 4 * wide, 2, stride_in_1x1, 1, groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.res4(self.res3(self.res2(self.stem(x))))
