"""`hf:NAME`: the patches of any Hugging Face vision backbone as regions."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from data.downloads.hub import TENSORS, Needed, local_folder
from data.errors import BadInput, reason_of
from data.regions.conversion import window_side
from data.storage.regular_files import check_folder, is_there
from data.storage.text_files import read_json
from model.extractors.base import Detections, Extractor, ExtractorOptions
from model.transformers_folder import check_all_were_loaded, check_folder_settings

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # where a model does not say its own
_SIDE = (None, int, [int], {str: (int, None)})
_PREPROCESSOR = {"image_mean?": (None, [float]), "image_std?": (None, [float]), "size?": _SIDE, "crop_size?": _SIDE}
BACKBONE = Needed("vision backbone", ("config.json", "preprocessor_config.json", *TENSORS), weights=True)
LARGEST_SIDE = 4096  # pixels of the square that a backbone sees
MAX_PREFIX = 16  # [CLS], distillation and register tokens in front of a transformer's patches


class HfBackbone(Extractor):
    """The patches of a vision backbone as regions; no soft labels, and every confidence is 1.

    Any model of `transformers.AutoModel` whose last hidden state is a row of square patches (ViT, DeiT, BEiT, DINOv2, Swin,
    CLIP's image tower; tokens in front of the patches are left out) or a feature map (ResNet, ConvNeXt). A picture is resized
    to the model's square input, so the grid covers it whole; the cells are merged by k x k means, k the smallest with
    at most `max_bb` regions.

    Args:
        name: folder, or name on the Hugging Face hub (`data.downloads.hub`)
        max_bb: most regions of a picture

    Raises:
        BadInput: it cannot be loaded, or is no vision backbone of these kinds.
    """

    num_labels = 0
    takes_name = True
    feature_options = ("max_bb",)  # by which cells are merged

    @classmethod
    def build(cls, name: str, options: ExtractorOptions) -> HfBackbone:
        return cls(name, options.boxes.max_bb)

    def __init__(self, name: str, max_bb: int):
        super().__init__()
        from transformers import AutoModel  # slow to import, and no other extractor needs it

        folder = local_folder(name, BACKBONE)
        check_folder(folder)
        check_folder_settings(folder)
        try:
            model, report = AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False, output_loading_info=True)
        except Exception as error:  # no folder, an unknown type: whatever the library raises
            raise BadInput(f"--extractor hf:{name}: cannot be loaded ({reason_of(error)}); give a folder or a name") from None
        check_all_were_loaded(model, report, f"--extractor hf:{name}")
        self.name, self.max_bb = name, max_bb
        self.model = getattr(model, "vision_model", model).eval().requires_grad_(False)
        config = getattr(model.config, "vision_config", model.config)
        settings = _preprocessor(folder)
        self.side = _side(getattr(config, "image_size", None) or settings.get("crop_size") or settings.get("size"))
        patch = getattr(config, "patch_size", None)
        self.patch = _side(patch) if patch else None
        mean, std = settings.get("image_mean") or IMAGENET_MEAN, settings.get("image_std") or IMAGENET_STD
        if not len(mean) == len(std) == 3 or min(std) <= 0:
            raise BadInput(f"{folder / 'preprocessor_config.json'}: image_mean {mean}, image_std {std}: expected three numbers each, the latter above 0")
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        try:
            self.feature_dim = self([Image.new("RGB", (self.side, self.side))])[0].features.shape[1]
        except (BadInput, MemoryError):
            raise
        except Exception as error:  # settings that do not belong together: whatever the library raises
            raise BadInput(f"--extractor hf:{name}: takes no picture ({reason_of(error)}); copy the model again") from None

    def detect(self, picture: Image.Image) -> Detections:
        seen = picture.resize((self.side, self.side), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(seen)).permute(2, 0, 1)[None].to(self.mean.device) / 255
        try:
            hidden = self.model(pixel_values=(pixels - self.mean) / self.std).last_hidden_state
        except (TypeError, AttributeError, ValueError) as error:  # a text model, another input size
            raise BadInput(f"--extractor hf:{self.name}: no vision backbone that takes a picture ({error})") from None
        grid = self._grid(hidden)
        rows, columns = grid.shape[2:]
        k = window_side(rows, columns, self.max_bb)
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


def _preprocessor(folder: Path) -> dict:
    """`preprocessor_config.json`, or nothing; read as JSON, since transformers' own classes want torchvision."""
    path = folder / "preprocessor_config.json"
    return read_json(path, "copy the model again", _PREPROCESSOR) if is_there(path) else {}


def _side(size: int | list | tuple | dict | None) -> int:
    """One number of the forms in which configs give a size; 224 for none."""
    if isinstance(size, dict):
        size = list(size.values())
    if isinstance(size, (list, tuple)):
        size = size[0] if size else None
    if size and not 0 < size <= LARGEST_SIDE:
        raise BadInput(f"a vision backbone's image_size or patch_size is {size}, expected 1 to {LARGEST_SIDE} pixels; copy the model again")
    return int(size) if size else 224
