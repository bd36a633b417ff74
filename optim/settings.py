"""Settings that every training shares; each task adds its own (``optim.tasks``)."""

from __future__ import annotations

from dataclasses import dataclass, field

from data.errors import BadInput
from data.regions.db import BoxOptions
from model.distributed import Backend
from model.gradient_exchange import GradientFormat
from model.precision import Precision
from optim.optimizer import OptimOptions


@dataclass(kw_only=True)
class TrainingSettings:
    """What every training reads.

    Args:
        out: folder of this run
        data_root: relative folders of databases start here
        boxes: which boxes of the image DBs are used
        optim: the optimizer
        gradient_format: in which ranks send each other gradients and add them: fp32; or bf16 or fp16, half as many bytes, rounded
        grad_accumulation: batches per update; a pair's negatives are those of its batch
        activation_checkpointing: keep no activations inside blocks, compute them again in backward
        compile: let torch.compile fuse what stands between the matrix products; pays on a GPU, after a minute at the start
        max_txt_len: captions with more tokens are not trained on, [CLS] and [SEP] included; -1 keeps all
        log_every: updates between lines of metrics
        save_every: updates between checkpoints that a stopped run goes on from, besides those of validation; 0: none
        keep_checkpoints: newest checkpoints kept, besides the best
        precision: of matrix products: fp32, bf16, or fp16 with loss scaling
        device: auto, cpu, cuda or cuda:N
        distributed: auto (the launcher that started this process), torch (torchrun), horovod (horovodrun), none
        distributed_timeout: seconds to wait for another rank before giving up
        workers: processes that make batches
        seed: of weights, data order, masking and dropout
        resume: go on from this folder's last checkpoint when there is one; false refuses a folder that holds a run
    """

    out: str
    data_root: str = "."
    boxes: BoxOptions = field(default_factory=BoxOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    gradient_format: GradientFormat = "fp32"
    grad_accumulation: int = 1
    activation_checkpointing: bool = False
    compile: bool = False
    max_txt_len: int = 62  # 60 words, as the paper
    log_every: int = 50
    save_every: int = 1000
    keep_checkpoints: int = 1
    precision: Precision = "fp32"
    device: str = "auto"
    distributed: Backend = "auto"
    distributed_timeout: float = 1800
    workers: int = 0
    seed: int = 42
    resume: bool = True

    def __post_init__(self):
        self.check_at_least_one("grad_accumulation", "log_every", "keep_checkpoints")

    def check_at_least_one(self, *names: str) -> None:
        """Raise BadInput unless these settings are 1 or more."""
        for name in names:
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1, found {getattr(self, name)}")


# How long a run is; one whose schedule does not depend on it may go on with more.
LENGTHS = frozenset({"epochs", "num_steps"})

# They change a run's speed or its reports and not its weights, so a run may go on with others.
FREE_SETTINGS = frozenset(
    "out data_root workers log_every save_every keep_checkpoints device resume distributed distributed_timeout "
    "grad_cache activation_checkpointing validation_sheet valid_recall compile".split()
)
