"""The registry of objectives: what pre-training learns from a batch, by the names that recipes give them.

An objective is a file of its own and a line here. Fine-tuning uses ``cmr`` alone.
"""

from model.objectives.base import Objective
from model.objectives.cmr import CrossModalRetrieval
from model.objectives.mlm import MaskedWordsOfText
from model.objectives.smrm import RegionClass, RegionDivergence, RegionFeatures
from model.objectives.vmlm import MaskedWords

OBJECTIVES: dict[str, type[Objective]] = {
    "cmr": CrossModalRetrieval,
    "vmlm": MaskedWords,
    "mrfr": RegionFeatures,
    "mrckl": RegionDivergence,
    "mrc": RegionClass,
    "mlm": MaskedWordsOfText,
}
