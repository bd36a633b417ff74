"""Region extractors: picture → boxes, features, confidences and soft labels.

An extractor is a module with `feature_dim`, `num_labels` (0: no soft labels) and `extractor(pictures) -> list[Detections]`
for a list of RGB `PIL.Image`s of any sizes; it resizes by itself and gives its boxes in each picture's own pixels.
`load_extractor` makes one by name.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from data.errors import BadInput

EXTRACTORS = ("random-conv", "butd", "torchvision:NAME", "hf:NAME")
BUTD = "unc-nlp/frcnn-vg-finetuned"


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


def load_extractor(
    name: str,
    feature_dim: int = 2048,
    num_labels: int = 1601,
    size: int = 192,
    seed: int = 0,
    weights: str | None = None,
    conf_th: float = 0.2,
    max_bb: int = 100,
    min_bb: int = 10,
):
    """Make the extractor called `name`.

    Args:
        name: one of EXTRACTORS
        feature_dim: random-conv: width of a feature
        num_labels: random-conv: classes of a soft label, the background (position 0) among them; 0 for no soft labels
        size: random-conv: longer side in pixels of the picture that the network sees; a multiple of 4
        seed: random-conv: of the frozen random weights
        weights: butd: folder or Hugging Face name, BUTD when None; torchvision: file, the library's own when None
        conf_th: confidence above which a detector's box is kept
        max_bb, min_bb: most and fewest boxes of a picture; random-conv has its own

    Raises:
        BadInput: an unknown name or an impossible setting.
    """
    kind, _, model = name.partition(":")
    known = {known.partition(":")[0]: ":" in known for known in EXTRACTORS}
    if kind not in known or known[kind] != bool(model):
        raise BadInput(f"--extractor: found {name}, expected one of {', '.join(EXTRACTORS)}, precomputed")
    if weights is not None and kind in ("random-conv", "hf"):
        raise BadInput(f"--weights {weights}: {kind} takes none; leave it out")
    # Each is imported by who uses it: none needs what another needs.
    if kind == "random-conv":
        from model.extractors.random_conv import RandomConv

        return RandomConv(feature_dim, num_labels, size, seed)
    if kind == "butd":
        from model.extractors.butd.faster_rcnn import load_butd

        return load_butd(weights or BUTD, conf_th, max_bb, min_bb)
    if kind == "torchvision":
        from model.extractors.backbones import TorchvisionDetector

        return TorchvisionDetector(model, weights, conf_th, max_bb, min_bb)
    from model.extractors.backbones import HfBackbone

    return HfBackbone(model, max_bb)
