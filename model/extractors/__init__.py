"""Region extractors, by the name that --extractor takes. Each is one file; `base.Extractor` says what it has to provide."""

from model.extractors.base import Extractor
from model.extractors.butd.faster_rcnn import FasterRcnn
from model.extractors.hf import HfBackbone
from model.extractors.random_conv import RandomConv
from model.extractors.torchvision_detector import TorchvisionDetector

EXTRACTORS: dict[str, type[Extractor]] = {
    "random-conv": RandomConv,
    "butd": FasterRcnn,
    "torchvision": TorchvisionDetector,
    "hf": HfBackbone,
}
