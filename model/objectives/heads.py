"""The heads of the objectives, as one module that is trained and saved beside the towers."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from model.bi_encoder import LightningDOTConfig
from model.objectives import OBJECTIVES
from model.objectives.base import PAPER_OPTIONS, ObjectiveOptions
from model.transformer import init_weights

PAPER = ("cmr", "vmlm", "mrfr", "mrckl", "mrc")  # whose heads a file of the original holds


class PretrainingHeads(nn.ModuleDict):
    """The heads on top of the towers, with the original's parameter names. Fine-tuning and retrieval drop them.

    The heads of the paper's objectives are there whichever of them are trained, where the towers fit: so runs with other
    tasks start from the same weights, and a checkpoint converts to the original's.

    Args:
        config: of the towers
        options: of the objectives
        tasks: the objectives that are trained

    Raises:
        BadInput: the towers do not fit one of ``tasks``.
    """

    def __init__(
        self, config: LightningDOTConfig, options: ObjectiveOptions = PAPER_OPTIONS, tasks: Iterable[str] = ()
    ):
        super().__init__()
        tasks = list(tasks)
        for name in dict.fromkeys([*PAPER, *tasks]):
            objective = OBJECTIVES[name](options)
            if name in tasks:
                objective.check(config)
            if objective.head is not None and objective.head not in self and objective.misfit(config) is None:
                self[objective.head] = objective.build_head(config)
        init_weights(self, config.txt.initializer_range)
