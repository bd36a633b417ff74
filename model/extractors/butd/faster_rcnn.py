"""`butd`: bottom-up attention's Faster R-CNN (Anderson et al. 2018), whose regions UNITER and LightningDOT are trained on.

ResNet-101 C4 for 1,600 classes and 400 attributes of Visual Genome. Weights are read from the public Hugging Face
conversion `unc-nlp/frcnn-vg-finetuned` (`config.yaml`, `pytorch_model.bin`) under the names they have there; the names and
what a setting of `config.yaml` means are those of the code published with it (transformers, `research_projects/lxmert`).

Which boxes are kept, and their number, is bottom-up attention's own way of making features (its `generate_tsv.py`): the
proposals as they are, without the second stage's box regression, since features are pooled from them; suppression class
by class; a box's confidence is its best score in a class where it survives. Ours are ordered by confidence.

Not verified, because the files could not be had: that `pytorch_model.bin` has exactly these names and no others (a file
that differs is refused with a list of the differences), whether it is a torch file or, as that code provides for too, a
bare pickle of numpy arrays (both are read), and the letter case of `config.yaml`'s keys (any is read).
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from data.downloads.hub import Needed, local_folder
from data.errors import BadInput
from data.regions.db import BoxOptions, count_boxes
from model.extractors.base import Detections, Extractor, ExtractorOptions
from model.extractors.box_ops import clip_boxes, decode_boxes, nms, roi_align, roi_pool, surviving_scores
from model.extractors.butd.rcnn_config import RcnnConfig, read_config
from model.extractors.butd.resnet_c4 import ResNetC4, make_stage
from model.extractors.weight_files import read_weights

PUBLISHED = "unc-nlp/frcnn-vg-finetuned"  # where its weights are when no others are given
FILES = ("config.yaml", "pytorch_model.bin")
STRIDE = 16  # input pixels per pixel of res4's map
CLASS_NMS = 0.3  # bottom-up attention's own, whatever config.yaml says
CHUNK = 64  # boxes that go through res5 at once: 50 MB a layer


class AnchorGenerator(nn.Module):
    """The anchors of a map [.., H, W]: [H * W * A, 4], row by row; stored with the weights as one cell's A boxes."""

    def __init__(self, config: RcnnConfig):
        super().__init__()
        anchors = [
            (-size / math.sqrt(ratio) / 2, -size * math.sqrt(ratio) / 2, size / math.sqrt(ratio) / 2, size * math.sqrt(ratio) / 2)
            for size in config.anchor_sizes
            for ratio in config.anchor_ratios
        ]
        self.cell_anchors = nn.ParameterList([nn.Parameter(torch.tensor(anchors), requires_grad=False)])
        self.offset = config.anchor_offset

    def forward(self, height: int, width: int) -> torch.Tensor:
        cell = self.cell_anchors[0]
        y = (torch.arange(height, device=cell.device) + self.offset) * STRIDE
        x = (torch.arange(width, device=cell.device) + self.offset) * STRIDE
        y, x = torch.meshgrid(y, x, indexing="ij")
        centres = torch.stack([x, y, x, y], 2)
        return (centres[:, :, None] + cell).flatten(0, 2)


class RpnHead(nn.Module):
    """A map [1, C, H, W] → objectness [H * W * A], deltas [H * W * A, 4], in the order of the anchors."""

    def __init__(self, channels: int, hidden: int, anchors: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, hidden, 3, padding=1)
        self.objectness_logits = nn.Conv2d(hidden, anchors, 1)
        self.anchor_deltas = nn.Conv2d(hidden, 4 * anchors, 1)

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = F.relu(self.conv(maps))
        deltas = self.anchor_deltas(hidden)[0].permute(1, 2, 0)  # channels count anchors, then the four numbers
        return self.objectness_logits(hidden)[0].permute(1, 2, 0).flatten(), deltas.reshape(-1, 4)


class ProposalGenerator(nn.Module):
    """Region proposals (Ren et al. 2015, section 3.1) of one picture: [post_nms or fewer, 4], best first."""

    def __init__(self, config: RcnnConfig):
        super().__init__()
        channels = 4 * config.res2_channels
        hidden = channels if config.rpn_channels == -1 else config.rpn_channels
        self.anchor_generator = AnchorGenerator(config)
        self.rpn_head = RpnHead(channels, hidden, len(config.anchor_sizes) * len(config.anchor_ratios))
        self.config = config

    def forward(self, maps: torch.Tensor, width: int, height: int) -> torch.Tensor:
        objectness, deltas = self.rpn_head(maps)
        anchors = self.anchor_generator(*maps.shape[2:])
        best = objectness.argsort(descending=True, stable=True)[: self.config.pre_nms]
        boxes = clip_boxes(decode_boxes(deltas[best], anchors[best], self.config.rpn_weights), width, height)
        large = ((boxes[:, 2:] - boxes[:, :2]) > self.config.min_proposal).all(1)
        boxes, objectness = boxes[large], objectness[best][large]
        return boxes[nms(boxes, objectness, self.config.rpn_nms, self.config.post_nms)]


class BoxPredictor(nn.Module):
    """What a box's feature says: class logits [n, classes + 1] (background last). The other heads are kept with the
    weights and not used: bottom-up attention's features come without box regression and without attributes."""

    def __init__(self, config: RcnnConfig, wide: int):
        super().__init__()
        self.cls_score = nn.Linear(wide, config.classes + 1)
        self.bbox_pred = nn.Linear(wide, 4 if config.one_box else 4 * config.classes)
        if config.has_attributes:
            self.cls_embedding = nn.Embedding(config.classes + 1, wide // 8)
            self.fc_attr = nn.Linear(wide + wide // 8, wide // 4)
            self.attr_score = nn.Linear(wide // 4, config.attributes + 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.cls_score(features)


class Res5Heads(nn.Module):
    """Boxes on a map → features [n, 8 * res2_channels] and class logits: pooling, res5, mean."""

    def __init__(self, config: RcnnConfig):
        super().__init__()
        wide, inner = 8 * config.res2_channels, 8 * config.groups * config.width_per_group
        stride, dilation = (2, 1) if config.halve_res5 else (1, 2)
        self.res5 = make_stage(3, wide // 2, inner, wide, stride, config.stride_in_1x1, dilation, config.groups)
        self.box_predictor = BoxPredictor(config, wide)
        self.config = config

    def pool(self, maps: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        where = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
        size = (self.config.pooler_size,) * 2
        if self.config.pooler == "ROIPool":
            return roi_pool(maps, boxes, where, size, 1 / STRIDE)
        return roi_align(maps, boxes, where, size, 1 / STRIDE, self.config.sampling_ratio)

    def forward(self, maps: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.cat([self.res5(self.pool(maps, chunk)).mean((2, 3)) for chunk in boxes.split(CHUNK)])
        return features, self.box_predictor(features)


class FasterRcnn(Extractor):
    """The whole detector: a picture → its most confident regions, with class probabilities as soft labels.

    Args:
        config: of the network
        boxes: how many of a picture's boxes are kept, the most confident ones; None for UNITER's own choice
    """

    takes_weights = True

    @classmethod
    def build(cls, name: str, options: ExtractorOptions) -> FasterRcnn:
        return load_butd(options.weights or PUBLISHED, options.boxes)

    def __init__(self, config: RcnnConfig, boxes: BoxOptions | None = None):
        super().__init__()
        inner = config.groups * config.width_per_group
        self.backbone = ResNetC4(
            config.depth,
            config.stem_channels,
            config.res2_channels,
            inner,
            config.stride_in_1x1,
            config.groups,
            config.caffe_max_pool,
        )
        self.proposal_generator = ProposalGenerator(config)
        self.roi_heads = Res5Heads(config)
        self.config, self.boxes = config, boxes or BoxOptions()
        self.feature_dim, self.num_labels = 8 * config.res2_channels, config.classes + 1
        self.eval().requires_grad_(False)

    def detect(self, picture: Image.Image) -> Detections:
        pixels = self.pixels(picture)
        height, width = pixels.shape[2:]
        maps = self.backbone(pixels)
        boxes = self.proposal_generator(maps, width, height)
        features, logits = self.roi_heads(maps, boxes)
        labels = logits.softmax(1).roll(1, 1)  # the network has the background last, the database first
        conf = surviving_scores(boxes, labels[:, 1:], CLASS_NMS)
        conf, order = conf.sort(descending=True, stable=True)
        count = count_boxes(conf, self.boxes)
        order = order[:count]
        scale = boxes.new_tensor([picture.width / width, picture.height / height] * 2)
        found = (boxes[order] * scale, features[order], conf[:count], labels[order])
        return Detections(*(values.cpu() for values in found))

    def pixels(self, picture: Image.Image) -> torch.Tensor:
        """The picture as the network sees it: [1, 3, H, W], resized (bilinear, to a cell or more) and centred."""
        config, sides = self.config, (picture.width, picture.height)
        scale = min(config.min_size / min(sides), config.max_size / max(sides))
        seen = picture.resize([max(int(side * scale + 0.5), STRIDE) for side in sides], Image.Resampling.BILINEAR)
        values = torch.from_numpy(np.array(seen)).to(next(self.parameters()).device).float()
        values = values.flip(2) if config.channels == "BGR" else values
        values = (values - values.new_tensor(config.pixel_mean)) / values.new_tensor(config.pixel_std)
        return values.permute(2, 0, 1)[None]


# ---- weights ---------------------------------------------------------------------------------------------------------


def load_butd(source: str, boxes: BoxOptions | None = None) -> FasterRcnn:
    """The detector of a folder with `config.yaml` and `pytorch_model.bin`, or of a name on the Hugging Face hub.

    Raises:
        BadInput: there is no such folder or name, a file is missing or damaged, or weights are missing, left over or of another shape: all are listed.
    """
    folder = local_folder(source, Needed("detector", FILES))
    for path in (folder / name for name in FILES):
        if not path.is_file():
            raise BadInput(f"--weights {source}: {path} is not there; give a folder with {' and '.join(FILES)}, such as {PUBLISHED} of the hub")
    config_path, weights_path = (folder / name for name in FILES)
    model = FasterRcnn(read_config(config_path), boxes)
    weights, expected = read_weights(weights_path), model.state_dict()
    counters = {name for name in {**weights, **expected} if name.endswith("num_batches_tracked")}  # no weights
    wrong = [f"missing {name}" for name in expected if name not in weights and name not in counters]
    wrong += [f"unexpected {name}" for name in weights if name not in expected and name not in counters]
    wrong += [
        f"{name} {tuple(weights[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in weights and name not in counters and weights[name].shape != value.shape
    ]
    if wrong:
        raise BadInput(f"{weights_path}: does not fit {config_path}: {'; '.join(wrong)}")
    model.load_state_dict({name: weights[name] for name in expected if name not in counters}, strict=False)
    return model
