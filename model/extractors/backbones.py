"""Region extractors around other libraries' networks: any Hugging Face vision backbone, any torchvision detector."""

from __future__ import annotations

import difflib
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from data.errors import BadInput
from data.storage.text_files import read_json
from model.extractors.box_ops import roi_align
from model.extractors.detector import Detections

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # where a model does not say its own
MAX_PREFIX = 16  # [CLS], distillation and register tokens in front of a transformer's patches
POOLER_SIZE = 7
SCORE_THRESH = 0.005  # of torchvision's own filter: low enough that `min_bb` boxes are left


class HfBackbone(nn.Module):
    """`hf:NAME`: the patches of a vision backbone as regions; no soft labels, and every confidence is 1.

    Any model of `transformers.AutoModel` whose last hidden state is a row of square patches (ViT, DeiT, BEiT, DINOv2, Swin,
    CLIP's image tower; tokens in front of the patches are left out) or a feature map (ResNet, ConvNeXt). A picture is resized
    to the model's square input, so the grid covers it whole; the cells are merged by k x k means, k the smallest with
    at most `max_bb` regions. `forward(pictures)` → one Detections per picture.

    Args:
        name: folder or Hugging Face name
        max_bb: most regions of a picture

    Raises:
        BadInput: it cannot be loaded, or is no vision backbone of these kinds.
    """

    num_labels = 0

    def __init__(self, name: str, max_bb: int = 100):
        super().__init__()
        from transformers import AutoModel

        try:
            model = AutoModel.from_pretrained(name)
        except Exception as error:  # no folder, no network, an unknown type: whatever the library raises
            reason = " ".join(str(error).split())[:200]
            raise BadInput(f"--extractor hf:{name}: cannot be loaded ({reason}); give a folder or a name") from None
        self.name, self.max_bb = name, max_bb
        self.model = getattr(model, "vision_model", model).eval().requires_grad_(False)
        config = getattr(model.config, "vision_config", model.config)
        settings = _preprocessor(name)
        self.side = _side(getattr(config, "image_size", None) or settings.get("crop_size") or settings.get("size"))
        patch = getattr(config, "patch_size", None)
        self.patch = _side(patch) if patch else None
        mean, std = settings.get("image_mean") or IMAGENET_MEAN, settings.get("image_std") or IMAGENET_STD
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.feature_dim = self([Image.new("RGB", (self.side, self.side))])[0].features.shape[1]

    @torch.no_grad()
    def forward(self, pictures: list[Image.Image]) -> list[Detections]:
        return [self._detect(picture.convert("RGB")) for picture in pictures]

    def _detect(self, picture: Image.Image) -> Detections:
        seen = picture.resize((self.side, self.side), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(seen)).permute(2, 0, 1)[None].to(self.mean.device) / 255
        try:
            hidden = self.model(pixel_values=(pixels - self.mean) / self.std).last_hidden_state
        except (TypeError, AttributeError, ValueError) as error:  # a text model, another input size
            raise BadInput(f"--extractor hf:{self.name}: no vision backbone that takes a picture ({error})") from None
        grid = self._grid(hidden)
        rows, columns = grid.shape[2:]
        k = next(k for k in range(1, rows + columns) if math.ceil(rows / k) * math.ceil(columns / k) <= self.max_bb)
        features = F.avg_pool2d(grid, k, ceil_mode=True)[0].flatten(1).T  # a window at the edge averages what is there
        boxes = grid_boxes(rows, columns, k) * torch.tensor([picture.width, picture.height] * 2)
        return Detections(boxes, features.float().cpu(), torch.ones(len(boxes)), None)

    def _grid(self, hidden: torch.Tensor) -> torch.Tensor:
        """The last hidden state as a map [1, D, rows, columns]."""
        if hidden.ndim == 4:
            return hidden
        length = hidden.shape[1]
        side = self.side // self.patch if self.patch else 0
        if not 0 < side**2 <= length <= side**2 + MAX_PREFIX:  # Swin merges patches and has no token in front
            side = math.isqrt(length)
            if side**2 != length:
                raise BadInput(
                    f"--extractor hf:{self.name}: {length} tokens for {self.side} pixels and patches of {self.patch}; "
                    "expected a square grid"
                )
        return hidden[:, length - side**2 :].transpose(1, 2).unflatten(2, (side, side))


def grid_boxes(rows: int, columns: int, k: int = 1) -> torch.Tensor:
    """Boxes, as fractions of the picture, of the k x k windows of a grid, row by row: [n, 4]."""
    y, x = torch.arange(0, rows, k), torch.arange(0, columns, k)
    y, x = (v.flatten() for v in torch.meshgrid(y, x, indexing="ij"))
    corners = [x / columns, y / rows, (x + k).clamp(max=columns) / columns, (y + k).clamp(max=rows) / rows]
    return torch.stack(corners, 1)


def _preprocessor(name: str) -> dict:
    """`preprocessor_config.json`, or nothing; read as JSON, since transformers' own classes want torchvision."""
    from transformers.utils import cached_file

    try:
        path = cached_file(name, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False)
        return read_json(path) if path else {}
    except (OSError, ValueError):  # of BadInput, too
        return {}


def _side(size: int | list | tuple | dict | None) -> int:
    """One number of the forms in which configs give a size; 224 for none."""
    if isinstance(size, dict):
        size = list(size.values())
    if isinstance(size, (list, tuple)):
        size = size[0] if size else None
    return int(size) if size else 224


class TorchvisionDetector(nn.Module):
    """`torchvision:NAME`: any detection model of torchvision. `forward(pictures)` → one Detections per picture.

    Of an R-CNN a feature is what its box head makes of the detected box, and the soft labels are its class probabilities
    there. Of a one-stage model (RetinaNet, FCOS, SSD) a feature is the mean of RoI-align on the map whose stride is nearest
    16, and a soft label is the detection's score at its class, the rest at the background.

    Args:
        name: such as fasterrcnn_resnet50_fpn_v2
        weights: a state dict (torch file); None takes torchvision's newest, downloaded once
        conf_th, max_bb, min_bb: see `load_extractor`

    Raises:
        BadInput: torchvision is missing or does not fit torch, an unknown name, weights that do not fit.
    """

    def __init__(self, name: str, weights: str | None, conf_th: float = 0.2, max_bb: int = 100, min_bb: int = 10):
        super().__init__()
        try:
            from torchvision import models
        except (ImportError, RuntimeError) as error:  # RuntimeError: a wheel built for another torch
            raise BadInput(
                f"--extractor torchvision:{name}: torchvision cannot be imported ({error}); install the version that "
                "belongs to your torch (pip install torchvision), or use another extractor: none of them needs it"
            ) from None
        names = models.list_models(module=models.detection)
        if name not in names:
            near = difflib.get_close_matches(name, names, 1) or names
            raise BadInput(f"--extractor torchvision:{name}: no detection model, expected for instance {', '.join(near)}")
        self.conf_th, self.max_bb, self.min_bb = conf_th, max_bb, min_bb
        self.model = self._load(models, name, weights).eval().requires_grad_(False)
        self.roi_heads = getattr(self.model, "roi_heads", None)
        for part in filter(None, (self.roi_heads, self.model)):
            if hasattr(part, "score_thresh"):
                part.score_thresh, part.detections_per_img = SCORE_THRESH, max_bb
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
        from model.extractors.butd.faster_rcnn import read_weights

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

    @torch.no_grad()
    def forward(self, pictures: list[Image.Image]) -> list[Detections]:
        return [self._detect(picture.convert("RGB")) for picture in pictures]

    def _detect(self, picture: Image.Image) -> Detections:
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
        count = min(max(int((conf > self.conf_th).sum()), self.min_bb), self.max_bb)
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
