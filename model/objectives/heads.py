"""The heads of the objectives, as one module that is trained and saved beside the towers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import nn

from data.downloads.hub import local_folder
from data.storage.regular_files import is_there
from model import checkpoints
from model.bi_encoder import LightningDOTConfig
from model.objectives import OBJECTIVES
from model.objectives.base import PAPER_OPTIONS, Objective, ObjectiveOptions
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


def heads_of(objective: Objective, config: LightningDOTConfig) -> nn.ModuleDict:
    """The head of one objective alone. Raises BadInput when towers of these sizes do not fit it."""
    objective.check(config)
    return nn.ModuleDict({objective.head: objective.build_head(config)} if objective.head else {})


def start_heads_from(heads: nn.ModuleDict, folder: str | Path) -> None:
    """Read those heads of a checkpoint that a run starts from, where it has any.

    Weights of the contrastive loss start anew when the checkpoint was trained with another loss. Raises BadInput when any
    other tensor is missing, or is of the wrong shape.
    """
    path = local_folder(folder) / "heads.safetensors"
    if not is_there(path):
        return
    own = heads.state_dict()
    tensors = {name: t for name, t in checkpoints.read_tensors(path).items() if name.split(".")[0] in heads}
    if {name for name in tensors if is_of_loss(name)} != {name for name in own if is_of_loss(name)}:
        tensors = {name: t for name, t in tensors.items() if not is_of_loss(name)}
    checkpoints.load_strict(heads, tensors, str(path), optional=r"^contrast\.")


def is_of_loss(name: str) -> bool:
    """Whether a tensor of ``heads.safetensors`` belongs to the contrastive loss."""
    return name.startswith("contrast.")
