"""What a region extractor is: a frozen network that turns a picture into boxes, features, confidences and soft labels."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from PIL import Image
from torch import nn

from data.regions.db import BoxOptions
from model.checkpoints import fingerprint


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


@dataclass
class ExtractorOptions:
    """What an extractor is built from; each reads what concerns it.

    Args:
        feature_dim: random-conv: width of a feature
        num_labels: random-conv: classes of a soft label, the background (position 0) among them; 0 for no soft labels
        size: random-conv: longer side in pixels of the picture that the network sees; a multiple of 4
        seed: random-conv: of the frozen random weights
        weights: butd: folder or Hugging Face name; torchvision: file; None for the usual ones
        boxes: which boxes a detector keeps, and the most regions of a grid; random-conv has its own
    """

    feature_dim: int = 2048
    num_labels: int = 1601
    size: int = 192
    seed: int = 0
    weights: str | None = None
    boxes: BoxOptions = field(default_factory=BoxOptions)


class Extractor(nn.Module):
    """Base of the extractors: `extractor(pictures)` → one `Detections` per picture, on the CPU.

    A subclass sets `feature_dim` and `num_labels` and implements `build` and `detect`. It resizes pictures by itself and gives
    boxes in each picture's own pixels, and a picture's regions depend on nothing but this picture.

    Attributes:
        feature_dim: width of a feature
        num_labels: classes of a soft label, the background among them; 0 when there are none
        takes_name: its name ends in ``:NAME``, which says what network it wraps
        takes_weights: `ExtractorOptions.weights` may be given
        only_on_cpu: it is not moved to a GPU
        feature_options: of `ExtractorOptions` (``max_bb`` is that of its boxes) those on which its features depend
    """

    feature_dim: int
    num_labels: int
    takes_name = False
    takes_weights = False
    only_on_cpu = False
    feature_options: tuple[str, ...] = ()

    @classmethod
    def build(cls, name: str, options: ExtractorOptions) -> Extractor:
        """The extractor, frozen.

        Args:
            name: what stood behind the colon; "" for those that are without `takes_name`

        Raises:
            BadInput: an unknown name, weights that cannot be loaded, an impossible setting.
        """
        raise NotImplementedError

    def weights_digest(self) -> str:
        """Digest of the weights, by which two extractors of one name are told apart."""
        return fingerprint(self.state_dict())

    def detect(self, picture: Image.Image) -> Detections:
        """The regions of one RGB picture.

        Raises:
            RuntimeError, ValueError: the network cannot take a picture of this size; the picture is reported and left out.
        """
        raise NotImplementedError

    @torch.no_grad()
    def forward(self, pictures: list[Image.Image]) -> list[Detections]:
        return [self.detect(picture.convert("RGB")) for picture in pictures]
