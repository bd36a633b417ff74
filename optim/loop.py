"""The training loop that pre-training, fine-tuning and the re-ranker share.

A task says what is trained, on which batches, with which loss, and how it is validated; `fit` does the rest, in the order
in which it happens: meet the other ranks, backward, update, log, validate, save, stop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from data.batches.batch import Batch
from data.batches.pairs import PairDataset
from data.errors import BadInput, Stopped, reason_of
from data.progress import ProgressBar
from data.storage.memory import keep_freed_memory
from model.distributed import Announced, Meeting, Ranks
from model.gradient_exchange import GradientExchange, GradientFormat
from model.made_from import MadeFrom
from model.precision import loss_scaler
from optim.losses import RecentLosses
from optim.optimizer import Accumulation, apply_update, build_optimizer, parameters_of
from optim.run import (
    Run,
    StopSignal,
    finish_run,
    print_first,
    random_state,
    restore_random_state,
    seed_dropout,
)
from optim.saving import GO_BACK, Saver, load_optimizer
from optim.schedule import build_schedule
from optim.settings import TrainingSettings

Paused = Callable[[], AbstractContextManager]
Last = Callable[[], AbstractContextManager]


@dataclass
class MicroBatch:
    """One batch of one rank; an update takes the mean of one or several, or their sum.

    Attributes:
        loss_name: what its loss is called in the metrics, for instance ``cmr`` or ``coco/vmlm``
        batch: on the host
        position: where training is, as numbers that must be the same on all ranks
        dataset, indices: where its pairs come from
        predictions: of this rank, what the loss of all ranks is a mean over
    """

    loss_name: str
    batch: Batch
    position: tuple[int, ...]
    dataset: PairDataset
    indices: np.ndarray
    predictions: int


@dataclass
class Update:
    """The batches of one update, and what comes after it.

    Attributes:
        resume: where a run that was saved after this update goes on, as `Task.load` takes it
        stage: what the progress bar says, for instance ``epoch 2/15``
        validates: whether validation and a checkpoint follow
        is_last: whether training ends with it
        passes: how often each corpus was gone through when this update is done, by name
    """

    micro_batches: list[MicroBatch]
    resume: dict
    stage: str
    validates: bool
    is_last: bool
    passes: dict[str, float] = field(default_factory=dict)


@dataclass
class Validation:
    """What a validation found.

    Attributes:
        metrics: for the log
        text: for the reader
        score: what the best checkpoint is chosen by; None: nothing was measured, and the last checkpoint counts as the best
        record: written into the checkpoint as ``val.json``; None: nothing
        sheet: a picture of what some queries find, for TensorBoard; None: none
    """

    metrics: dict[str, float]
    text: str
    score: float | None
    record: dict | None = None
    sheet: Image.Image | None = None


class Task(Protocol):
    """What differs between trainings.

    Attributes:
        model: what is trained and saved as ``model.safetensors``
        heads: what else is trained, saved as ``heads.safetensors``; None: nothing
        tokenizer: files that are written into every checkpoint, by their names; None: none
        made_from: what every checkpoint remembers of the data
        worst_score: what every first validation is better than
        data: digests of what it reads, by names for people; those of validation begin with ``validation``
        facts: for ``run.json`` and the first lines on the screen: sizes of data and model, the effective batch
    """

    model: nn.Module
    heads: nn.Module | None
    tokenizer: Mapping[str, bytes] | None
    made_from: MadeFrom
    worst_score: float
    data: dict[str, str]
    facts: dict[str, Any]

    def is_better(self, score: float, best: float) -> bool:
        """Whether a validation's score is better than another's."""

    def begin(self) -> None:
        """What is done once before the first update of a run, which need not be done again when it goes on. What the first rank
        makes of the weights, all get."""

    def load(self, checkpoint: Path, training: dict, changed: list[str]) -> None:
        """Read weights and position from a checkpoint of this run; ``training`` is what `resume` and `state` were saved as.
        Of what was made from the data named in ``changed`` nothing is taken over: it begins anew."""

    def state(self) -> dict:
        """Tensors and plain values that the task needs again when it goes on, besides `Update.resume`."""

    def total_updates(self, step: int) -> int:
        """How many updates the whole run has, when ``step`` of them are done."""

    def updates(self, step: int, paused: Paused) -> Iterator[Update]:
        """The updates that are left, ``step`` being done. What is no training runs inside ``with paused():``."""

    def pairs(self, meeting: Meeting) -> int:
        """How many caption–image pairs a batch of all ranks holds, hard negatives not included."""

    def backward(
        self, micro_batch: MicroBatch, meeting: Meeting, scaler: torch.amp.GradScaler, accumulation: int, last: Last
    ) -> Tensor:
        """Add the gradients of one batch, divided by ``accumulation`` → this rank's share of its loss, a scalar.

        The backward pass after which they are whole happens inside ``with last():``.
        """

    def validate(self, step: int) -> Validation:
        """Measure the model; all ranks call it together."""


@dataclass
class Progress:
    """How far training is: updates done, the best validation's score."""

    step: int
    best: float


@dataclass
class Updater:
    """The step of training: from the batches of an update to new weights.

    Attributes:
        max_norm: largest global gradient norm; 0 does not clip
        accumulation: whether an update follows the mean of its batches' gradients or their sum
        gradient_format: in which ranks send each other gradients
    """

    task: Task
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ranks: Ranks
    max_norm: float
    accumulation: Accumulation = "mean"
    gradient_format: GradientFormat = "fp32"
    recent: RecentLosses = field(init=False)
    exchange: GradientExchange = field(init=False)

    def __post_init__(self):
        self.recent = RecentLosses(self.ranks)
        self.exchange = GradientExchange(parameters_of(self.optimizer), self.ranks, self.gradient_format)
        self._met: Callable[[], list[Meeting]] | None = None  # waits for what was told of the next update

    def update(
        self,
        micro_batches: list[MicroBatch],
        step: int,
        lr: float,
        stop: str | None = None,
        following: list[MicroBatch] | None = None,
    ) -> tuple[Tensor, bool]:
        """Change the weights once.

        Args:
            step: updates done so far
            stop: not None when this rank was asked to stop
            following: batches of the next update: ranks tell each other of them now, so that none has to wait for that later.
                None: they are not known yet

        Returns: the gradient norm before clipping, and whether any rank was asked to stop, when it told of this update
        """
        parts = len(micro_batches) if self.accumulation == "mean" else 1
        meetings = (self._met or self._meet(micro_batches, step, stop))()
        self._met = None if following is None else self._meet(following, step + 1, stop)
        for micro, meeting in zip(micro_batches, meetings, strict=True):
            last = functools.partial(self.exchange.last_backward, micro.loss_name)
            is_last = micro is micro_batches[-1]
            share = self.task.backward(micro, meeting, self.scaler, parts, last if is_last else nullcontext)
            self.recent.add(micro.loss_name, share, micro.dataset, micro.indices, self.task.pairs(meeting))
        self.exchange.finish()
        return apply_update(self.optimizer, self.scaler, lr, self.max_norm), meetings[0].stop

    def _meet(self, micro_batches: list[MicroBatch], step: int, stop: str | None) -> Callable[[], list[Meeting]]:
        told = [Announced((step, *micro.position), micro.batch.num_rows, micro.predictions) for micro in micro_batches]
        return self.ranks.meet(told, stop)

    def state_of(self, device: torch.device) -> dict[str, float]:
        """What a line of metrics says besides: the loss scale of fp16, and the most memory of a GPU since the last line."""
        state = {"loss_scale": self.scaler.get_scale()} if self.scaler.is_enabled() else {}
        if device.type == "cuda":
            state["memory/gpu_peak_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
            torch.cuda.reset_peak_memory_stats(device)
        return state

    def leave(self) -> None:
        """No further update follows: what the others told of one is waited for, so that nothing is left underway."""
        if self._met is not None:
            self._met()
            self._met = None


def passes_of(update: Update) -> dict[str, float]:
    """How often each corpus was gone through, as metrics."""
    return {f"passes/{name}": round(passes, 4) for name, passes in update.passes.items()}


def text_of(metrics: dict[str, float]) -> str:
    """Losses and pairs per second, for the progress bar."""
    shown = {name.split("/", 1)[1]: value for name, value in metrics.items() if name != "speed/waiting_for_data"}
    return " ".join(f"{name} {value:.3g}" for name, value in shown.items())


def with_following(updates: Iterator[Update]) -> Iterator[tuple[Update, Update | None]]:
    """Each update with the next one; None where a validation comes between, since it may decide what comes next."""
    update = next(updates, None)
    while update is not None:
        following = None if update.validates or update.is_last else next(updates, None)
        yield update, following
        update = next(updates, None) if following is None else following


def fit(task: Task, settings: TrainingSettings, device: torch.device, ranks: Ranks, stop: StopSignal) -> float:
    """Train a task to its end, going on where its run folder says that it was stopped → the best validation's score.

    Raises:
        Stopped: a signal asked for it; everything is saved, and the same command goes on.
        BadInput: the folder holds another run, a loss is no number, a rank died, or the disk is full.
    """
    keep_freed_memory()
    modules = [task.model] if task.heads is None else [task.model, task.heads]
    optimizer = build_optimizer(modules, settings.optim)
    scaler = loss_scaler(device, settings.precision)
    run = Run(settings, ranks, task.facts)
    timeout = settings.distributed_timeout
    saver = Saver(run.folder, ranks, settings.keep_checkpoints, task.tokenizer, timeout, task.made_from)
    seed_dropout(settings.seed, ranks)
    updater = Updater(task, optimizer, scaler, ranks, settings.optim.grad_clip, settings.optim.accumulation, settings.gradient_format)
    recent = updater.recent
    with recent.paused():
        progress = _restored(task, run, updater)
        ranks.broadcast([tensor for module in modules for tensor in module.state_dict().values()])
    total = task.total_updates(progress.step)
    lr_at = build_schedule(settings.optim, total)

    with saver, ProgressBar(what="training", total=total, initial=progress.step, unit="step") as bar:
        for update, following in with_following(recent.waited_for(task.updates(progress.step, recent.paused))):
            bar.say(update.stage)
            lr = lr_at(progress.step)
            norm, stopping = updater.update(
                update.micro_batches, progress.step, lr, stop.received, following and following.micro_batches
            )
            progress.step += 1
            bar.update()
            if progress.step % settings.log_every == 0 or update.validates:
                metrics = recent.flush(progress.step)
                run.log(progress.step, metrics | {"lr": lr, "grad_norm": float(norm)} | updater.state_of(device) | passes_of(update))
                bar.say(remark=text_of(metrics))
            is_best, record = False, None
            with recent.paused():
                if update.validates:
                    found = task.validate(progress.step)
                    print_first(ranks, found.text)
                    run.log(progress.step, found.metrics, found.sheet)
                    is_best = found.score is None or task.is_better(found.score, progress.best)
                    progress.best = found.score if is_best and found.score is not None else progress.best
                    record = found.record
                saver.check()
                if update.validates or stopping or (settings.save_every and progress.step % settings.save_every == 0):
                    training = update.resume | task.state() | {"best": progress.best, "scaler": scaler.state_dict()}
                    training["data"] = task.data
                    own = {"random": random_state(), "recent": recent.state_dict()}
                    saver.save(progress.step, task.model, optimizer, training, own, is_best, task.heads, record)
            if stopping and not update.is_last:
                updater.leave()
                finish_run(saver, run, ranks)
                raise Stopped(f"stopped by a signal after step {progress.step}, saved; the same command goes on from here")
    finish_run(saver, run, ranks)
    return progress.best


def _restored(task: Task, run: Run, updater: Updater) -> Progress:
    """Put everything back to where the run was saved; a fresh run starts at step 0."""
    saved = run.load()
    if saved is None:
        task.begin()
        return Progress(0, task.worst_score)
    training, own = saved
    checkpoint = run.checkpoint
    changed = changed_data(training.get("data"), task.data)
    try:
        task.load(checkpoint, training, changed)
        load_optimizer(updater.optimizer, checkpoint, training)
        updater.scaler.load_state_dict(training["scaler"])
        if own is not None:
            restore_random_state(own["random"])
            updater.recent.load_state_dict(own["recent"])
    except BadInput:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:  # values of other kinds than were saved
        raise BadInput(f"{checkpoint}: its training state is not of this run ({reason_of(error)}); {GO_BACK}") from error
    best_counts = not any(name.startswith("validation") for name in changed)
    print_first(updater.ranks, message_of_changes(training.get("data"), changed, best_counts))
    return Progress(training["step"], training["best"] if best_counts else task.worst_score)


def changed_data(before: dict[str, str] | None, now: dict[str, str]) -> list[str]:
    """Names of the data that are not what the checkpoint was trained and validated on; none where it does not say."""
    return [] if before is None else [name for name in now if before.get(name) != now[name]]


def message_of_changes(before: dict[str, str] | None, changed: list[str], best_counts: bool) -> str:
    """What to say of the data when a run goes on."""
    if before is None:
        return "the checkpoint does not say what data it was trained on; it goes on with what is there now"
    if not changed:
        return "the data are those of the checkpoint"
    forgotten = "" if best_counts else "; the best so far was chosen on other validation data and no longer counts"
    return f"not what they were when the checkpoint was saved: {', '.join(changed)}; training goes on with what is there now{forgotten}"
