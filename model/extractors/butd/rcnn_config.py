"""The settings of `model/extractors/butd/faster_rcnn.py`, and where they stand in the `config.yaml` of the Hugging Face conversion."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from data.errors import BadInput
from data.storage.text_files import read_yaml
from model.extractors.butd.resnet_c4 import BLOCKS


@dataclass(frozen=True)
class RcnnConfig:
    """What `config.yaml` says, and what holds where it says nothing: the model as published.

    Args:
        pixel_mean, pixel_std: of the input channels, in 0..255 and in the order of `channels`
        channels: BGR (Caffe) or RGB
        min_size, max_size: shorter side of the resized picture, unless the longer would be longer than this
        caffe_max_pool, depth, stem_channels, res2_channels, width_per_group, groups, stride_in_1x1: see `ResNetC4`
        rpn_channels: hidden channels of the proposal head; -1 for as many as the map has
        min_proposal: proposals with a side of at most so many pixels go
        anchor_sizes: square roots of the anchors' areas, pixels
        anchor_ratios: height / width of the anchors
        anchor_offset: of the anchors' centres, in strides
        rpn_weights: see `decode_boxes`
        rpn_nms: overlap above which the worse proposal goes
        pre_nms, post_nms: proposals before and after that
        classes, attributes: how many, without the background
        pooler: ROIPool or ROIAlign
        pooler_size: bins a side
        sampling_ratio: of ROIAlign
        halve_res5: res5 strides by 2; else its 3x3 convolutions dilate by 2
        has_attributes: there is a head for attributes
        one_box: the box regression is not per class
    """

    pixel_mean: tuple[float, ...] = (102.9801, 115.9465, 122.7717)
    pixel_std: tuple[float, ...] = (1.0, 1.0, 1.0)
    channels: str = "BGR"
    min_size: int = 600
    max_size: int = 1000
    caffe_max_pool: bool = True
    depth: int = 101
    stem_channels: int = 64
    res2_channels: int = 256
    width_per_group: int = 64
    groups: int = 1
    stride_in_1x1: bool = True
    rpn_channels: int = 512
    min_proposal: float = 0
    anchor_sizes: tuple[float, ...] = (64, 128, 256, 512)
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchor_offset: float = 0.0
    rpn_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    rpn_nms: float = 0.7
    pre_nms: int = 6000
    post_nms: int = 300
    classes: int = 1600
    attributes: int = 400
    pooler: str = "ROIPool"
    pooler_size: int = 14
    sampling_ratio: int = 0
    halve_res5: bool = False
    has_attributes: bool = True
    one_box: bool = False


KEYS = {
    "pixel_mean": "model.pixel_mean",
    "pixel_std": "model.pixel_std",
    "channels": "input.format",
    "min_size": "input.min_size_test",
    "max_size": "input.max_size_test",
    "caffe_max_pool": "model.max_pool",
    "depth": "resnets.depth",
    "stem_channels": "resnets.stem_out_channels",
    "res2_channels": "resnets.res2_out_channels",
    "width_per_group": "resnets.width_per_group",
    "groups": "resnets.num_groups",
    "stride_in_1x1": "resnets.stride_in_1x1",
    "rpn_channels": "proposal_generator.hidden_channels",
    "min_proposal": "proposal_generator.min_size",
    "anchor_sizes": "anchor_generator.sizes",
    "anchor_ratios": "anchor_generator.aspect_ratios",
    "anchor_offset": "anchor_generator.offset",
    "rpn_weights": "rpn.bbox_reg_weights",
    "rpn_nms": "rpn.nms_thresh",
    "pre_nms": "rpn.pre_nms_topk_test",
    "post_nms": "rpn.post_nms_topk_test",
    "classes": "roi_heads.num_classes",
    "attributes": "roi_box_head.num_attrs",
    "pooler": "roi_box_head.pooler_type",
    "pooler_size": "roi_box_head.pooler_resolution",
    "sampling_ratio": "roi_box_head.pooler_sampling_ratio",
    "halve_res5": "roi_box_head.res5halve",
    "has_attributes": "roi_box_head.attr",
    "one_box": "roi_box_head.cls_agnostic_bbox_reg",
}


def read_config(path: str | Path) -> RcnnConfig:
    """The settings of a `config.yaml`; those of training are not read.

    Raises:
        BadInput: no such file, not YAML, or a value that cannot be.
    """
    tree = read_yaml(path, "give the folder of the detector's files: the sections model, resnets, rpn and so on were expected")
    sections = {str(name).lower(): _lower(section) for name, section in tree.items() if isinstance(section, dict)}
    values = {}
    for field in fields(RcnnConfig):
        section, key = KEYS[field.name].split(".")
        if key in sections.get(section, {}):
            values[field.name] = _as_like(sections[section][key], field.default, f"{path}: {KEYS[field.name]}")
    config = RcnnConfig(**values)
    for name, allowed in (("depth", tuple(BLOCKS)), ("channels", ("BGR", "RGB")), ("pooler", ("ROIPool", "ROIAlign"))):
        if getattr(config, name) not in allowed:
            raise BadInput(
                f"{path}: {KEYS[name]}: found {getattr(config, name)}, expected one of {', '.join(map(str, allowed))}"
            )
    return config


def _lower(section: dict) -> dict:
    return {str(key).lower(): value for key, value in section.items()}


def _as_like(value: Any, default: Any, where: str) -> Any:
    """`value` as the type of `default`; a list with one list in it, one per feature map, is that list."""
    try:
        if isinstance(default, tuple):
            if len(value) == 1 and isinstance(value[0], list):
                value = value[0]
            return tuple(float(number) for number in value)
        if isinstance(default, bool):
            return {True: True, False: False}[value]  # 1 and 0 are equal to them
        return type(default)(value)
    except (TypeError, ValueError, KeyError, OverflowError):
        raise BadInput(f"{where}: found {value!r}, expected a value such as {default!r}") from None
