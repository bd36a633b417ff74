"""`torchvision:NAME`: any detection model of torchvision."""

from __future__ import annotations

import difflib
import math

import numpy as np
import torch
from PIL import Image
from torch import nn

from data.errors import BadInput
from data.regions.db import BoxOptions, count_boxes
from model.extractors.base import Detections, Extractor, ExtractorOptions
from model.extractors.box_ops import roi_align
from model.extractors.weight_files import read_weights

POOLER_SIZE = 7
SCORE_THRESH = 0.005  # of torchvision's own filter: low enough that `min_bb` boxes are left


class TorchvisionDetector(Extractor):
    """A detection model of torchvision, its boxes, and a feature and a soft label of each.

    Of an R-CNN a feature is what its box head makes of the detected box, and the soft labels are its class probabilities
    there. Of a one-stage model (RetinaNet, FCOS, SSD) a feature is the mean of RoI-align on the map whose stride is nearest
    16, and a soft label is the detection's score at its class, the rest at the background.

    Args:
        name: such as fasterrcnn_resnet50_fpn_v2
        weights: a state dict (torch file); None takes torchvision's newest, downloaded once
        boxes: which boxes of a picture are kept

    Raises:
        BadInput: torchvision is missing or does not fit torch, an unknown name, weights that do not fit.
    """

    takes_name = True
    takes_weights = True

    @classmethod
    def build(cls, name: str, options: ExtractorOptions) -> TorchvisionDetector:
        return cls(name, options.weights, options.boxes)

    def __init__(self, name: str, weights: str | None, boxes: BoxOptions):
        super().__init__()
        try:
            from torchvision import models  # optional: its wheel is often missing where torch's is
        except (ImportError, RuntimeError) as error:  # RuntimeError: a wheel built for another torch
            raise BadInput(
                f"--extractor torchvision:{name}: torchvision cannot be imported ({error}); install the version that "
                "belongs to your torch (pip install torchvision -c constraints.txt), or use another extractor: none of them needs it"
            ) from None
        names = models.list_models(module=models.detection)
        if name not in names:
            near = difflib.get_close_matches(name, names, 1) or names
            raise BadInput(f"--extractor torchvision:{name}: no detection model, expected for instance {', '.join(near)}")
        self.boxes = boxes
        self.model = self._load(models, name, weights).eval().requires_grad_(False)
        self.roi_heads = getattr(self.model, "roi_heads", None)
        for part in filter(None, (self.roi_heads, self.model)):
            if hasattr(part, "score_thresh"):
                part.score_thresh, part.detections_per_img = SCORE_THRESH, boxes.max_bb
        self.num_labels = self._classes()
        self.feature_dim = self([Image.new("RGB", (64, 64))])[0].features.shape[1]

    @staticmethod
    def _load(models, name: str, weights: str | None) -> nn.Module:
        if weights is None:
            try:
                return models.get_model(name, weights="DEFAULT")
            except Exception as error:  # no network, a broken download
                raise BadInput(
                    f"--extractor torchvision:{name}: its weights cannot be downloaded ({error}); give --weights FILE"
                ) from None
        state = read_weights(weights)
        scores = state.get("roi_heads.box_predictor.cls_score.weight")
        classes = {} if scores is None else {"num_classes": len(scores)}
        model = models.get_model(name, weights=None, weights_backbone=None, **classes)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:  # lists every key
            raise BadInput(f"--weights {weights}: {' '.join(str(error).split())}") from None
        return model

    def _classes(self) -> int:
        if self.roi_heads is not None:
            return self.roi_heads.box_predictor.cls_score.out_features
        head = self.model.head.classification_head
        return getattr(head, "num_classes", None) or head.num_columns

    def detect(self, picture: Image.Image) -> Detections:
        device = next(self.model.parameters()).device
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).to(device) / 255
        seen: dict[str, object] = {}
        hooks = [
            part.register_forward_hook(lambda _, __, result, key=key: seen.update({key: result}))
            for key, part in (("transform", self.model.transform), ("maps", self.model.backbone))
        ]
        try:
            found = self.model([pixels])[0]
        finally:
            for hook in hooks:
                hook.remove()
        boxes, conf, classes = found["boxes"], found["scores"], found["labels"]
        if len(boxes) == 0:  # nothing above the lowest threshold: the whole picture, as background
            boxes = boxes.new_tensor([[0, 0, picture.width, picture.height]])
            conf, classes = boxes.new_zeros(1), boxes.new_zeros(1, dtype=torch.long)
        conf, order = conf.sort(descending=True, stable=True)
        count = count_boxes(conf, self.boxes)
        boxes, conf, classes = boxes[order[:count]], conf[:count], classes[order[:count]]

        images = seen["transform"][0]
        height, width = images.image_sizes[0]
        resized = boxes * boxes.new_tensor([width / picture.width, height / picture.height] * 2)
        features, labels = self._describe(resized, conf, classes, seen["maps"], images)
        return Detections(*(values.cpu() for values in (boxes, features, conf, labels)))

    def _describe(self, boxes, conf, classes, maps, images) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [n, feature_dim] and soft labels [n, num_labels] of boxes [n, 4] on the resized picture."""
        if self.roi_heads is not None:
            features = self.roi_heads.box_head(self.roi_heads.box_roi_pool(maps, [boxes], images.image_sizes))
            return features, self.roi_heads.box_predictor(features)[0].softmax(1)
        maps = list(maps.values()) if isinstance(maps, dict) else [maps]
        scale = [level.shape[3] / images.tensors.shape[3] for level in maps]
        nearest = min(range(len(maps)), key=lambda i: abs(math.log2(scale[i] * 16)))
        where = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
        cut = roi_align(maps[nearest], boxes, where, (POOLER_SIZE, POOLER_SIZE), scale[nearest])
        labels = boxes.new_zeros(len(boxes), self.num_labels)
        labels[:, 0] = 1 - conf
        return cut.mean((2, 3)), labels.scatter_add(1, classes[:, None], conf[:, None])
