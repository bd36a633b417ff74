"""The folder of a run: resolved config, metrics, checkpoints, and what training needs to go on.

runs/flickr30k/
    config.yaml  run.json  metrics.jsonl  tensorboard/
    checkpoints/step-00001000/ ...   last -> checkpoints/step-...   best -> checkpoints/step-...     (optim/saving.py)
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torch import nn

from data.errors import BadInput
from data.progress import print_above_bars
from data.storage.atomic import atomic_file
from data.storage.regular_files import check_regular, is_there, open_regular, real_path
from data.storage.text_files import read_yaml, write_json
from model import checkpoints
from model.distributed import Ranks
from optim.curves import metrics_of_line
from optim.saving import Saver, load_own, load_training, point_link
from optim.schedule import depends_on_length
from optim.settings import FREE_SETTINGS, LENGTHS, TrainingSettings


class Run:
    """One training run's folder. Opening it writes the config, or checks it against the run that is there.

    Args:
        settings: ``out`` is the folder; with ``resume`` the run goes on from its ``last`` checkpoint when there is one
        ranks: of these the first one writes
        facts: what else to keep in ``run.json`` (effective batch, sizes of the data)

    Attributes:
        resumed: whether the run goes on
        checkpoint: from which, then

    Raises:
        BadInput: the folder holds a run and ``resume`` is off, or a run with other settings.
    """

    def __init__(self, settings: TrainingSettings, ranks: Ranks, facts: dict[str, Any]):
        self.folder, self.ranks, self._optim = Path(settings.out), ranks, settings.optim
        self.settings = dataclasses.asdict(settings)
        self._defaults = _default_values(type(settings))
        resume, last = settings.resume, self.folder / "last"
        if last.is_symlink() and not last.is_dir():
            raise BadInput(
                f"{last}: points to {os.readlink(last)}, which is not there; put it back, or remove the link to start again"
            )
        self.resumed = resume and last.is_dir()
        self.checkpoint = real_path(last)  # all that is restored is read from this one, wherever the link points meanwhile
        if last.is_dir() and not resume:
            raise BadInput(f"{self.folder}: already holds a run; leave resume true to go on with it, or choose another --out")
        if self.resumed:
            self._check_same_settings()
        self._tensorboard = None
        ranks.barrier()  # all have looked before one writes
        if not ranks.is_first:
            return
        with atomic_file(self.folder / "config.yaml") as path:
            path.write_text(yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
        about = environment() | {"ranks": ranks.size, "distributed": ranks.backend}
        self.facts = about | facts
        write_json(self.folder / "run.json", self.facts)
        print("\n".join(first_lines(self.folder, about, facts)), flush=True)

    def _check_same_settings(self) -> None:
        path = self.folder / "config.yaml"
        before = _flat(read_yaml(path, "put the run's settings back, or choose another --out", {str: object}))
        after = _flat(yaml.safe_load(yaml.safe_dump(self.settings)))
        before = _flat(yaml.safe_load(yaml.safe_dump(self._defaults))) | before  # a setting that is newer than the run had its default
        changed = [name for name, value in after.items() if name not in FREE_SETTINGS and before.get(name) != value]
        length = before.get(changed[0]) if len(changed) == 1 and changed[0] in LENGTHS else None
        if isinstance(length, int) and 0 < length < after[changed[0]]:
            self._lengthen(path, changed[0], length, after[changed[0]])
        elif changed:
            differences = "; ".join(f"{name} was {before.get(name)!r}, now {after[name]!r}" for name in sorted(changed))
            raise BadInput(f"{path}: cannot go on with other settings ({differences}); choose another --out")

    def _lengthen(self, path: Path, name: str, before: int, after: int) -> None:
        """Let a run have more epochs or updates than it had, where that changes nothing of those that are done."""
        if depends_on_length(self._optim):
            schedule = f"{self._optim.schedule}{' with a warmup_ratio' * bool(self._optim.warmup_ratio)}"
            raise BadInput(
                f"{path}: {name} was {before}, now {after}; with optim.schedule {schedule} the rate of every update depends on how many "
                f"there are, so this run ends where it was to end. Train on from its weights in another folder: --model.init "
                f"{self.folder / 'last'} --out OTHER (a run with optim.schedule constant can be made longer)"
            )
        if self.ranks.is_first:
            print(f"{name} was {before}, now {after}: the run is made longer")

    def load(self) -> tuple[dict, dict | None] | None:
        """What `Saver.save` was given last: of all ranks, and of this one (None when other ranks saved); or None when the
        run starts afresh. Metrics of later steps are taken back."""
        if not self.resumed:
            if self.ranks.is_first:
                (self.folder / "metrics.jsonl").unlink(missing_ok=True)
                shutil.rmtree(self.folder / "tensorboard", ignore_errors=True)
            return None
        training = load_training(self.checkpoint)
        own = load_own(self.checkpoint, self.ranks, training)
        if self.ranks.is_first:
            if training["is_best"] and (self.folder / "last").is_symlink():  # it may have been stopped between its two links
                point_link(self.folder, "best", self.folder / os.readlink(self.folder / "last"))
            log = self.folder / "metrics.jsonl"
            check_regular(log)
            if log.is_file():
                _take_back(log, training["step"])
            print(f"resumed at step {training['step']} from {self.checkpoint}")
            if own is None:
                print(
                    f"saved by {training['ranks']} ranks, now {self.ranks.size}: the effective batch changes with them, dropout "
                    "draws anew, and the losses since the last line of metrics are not in the next one"
                )
        return training, own

    def log(self, step: int, values: dict[str, float], sheet: Image.Image | None = None) -> None:
        """Append one line to ``metrics.jsonl`` and the same values to TensorBoard, which also gets settings and facts of the run as
        texts, and the contact sheet of a validation (the first rank does)."""
        if not self.ranks.is_first:
            return
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter  # slow to import

            self._tensorboard = SummaryWriter(
                str(self.folder / "tensorboard"), purge_step=step if self.resumed else None
            )
            for name, content in (("settings", self.settings), ("run", self.facts)):
                text = yaml.safe_dump(json.loads(json.dumps(content)), sort_keys=False, allow_unicode=True)
                self._tensorboard.add_text(name, f"```yaml\n{text}```", step)
        if sheet is not None:
            self._tensorboard.add_image("validation", np.asarray(sheet), step, dataformats="HWC")
        with open_regular(self.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            if isinstance(value, int | float):
                self._tensorboard.add_scalar(name, value, step)

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()


def first_lines(folder: Path, about: dict[str, Any], facts: dict[str, Any]) -> list[str]:
    """What the screen says of a run when it starts; all of it is in the run's folder.

    Args:
        about: `environment`, and the ranks
        facts: of the task
    """
    machine = about["gpu"] or f"{about['threads']} threads of the CPU"
    versions = f"git {about['git']}, torch {about['versions']['torch']}"
    return [
        f"{folder}: settings are in config.yaml, machine and versions in run.json, curves in metrics.jsonl and tensorboard",
        f"{machine} of {about['host']}, {about['ranks']} rank{'s' * (about['ranks'] > 1)} ({about['distributed']}), {versions}",
        *(f"{name}: {_shown(value)}" for name, value in facts.items()),
    ]


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(each)}" for name, each in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


class StopSignal:
    """Notes SIGTERM and SIGUSR1, which schedulers send before they kill, and Ctrl-C, also a second one: the run saves after
    the update it is in.

    Attributes:
        received: name of the signal, None before there is one
    """

    def __init__(self):
        self.received: str | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: Any) -> None:
        self.received = signal.Signals(number).name


def _take_back(log: Path, step: int) -> None:
    """Keep of a run's metrics the lines up to a step: what was logged after it will be logged again. A line that is none of
    metrics, as damage leaves it, goes too, and is told."""
    kept, odd = [], []
    with open_regular(log) as file:
        for number, line in enumerate(file, 1):
            try:
                logged = metrics_of_line(line.decode(), f"{log}: line {number}")["step"]
            except (BadInput, UnicodeDecodeError):
                odd += [number] * line.endswith(b"\n")  # else it is the last one, cut by a kill
                continue
            kept += [line.rstrip(b"\n") + b"\n"] * (logged <= step)
    if odd:
        print(f"warning: {log}: {len(odd)} lines are damaged and left out, the first: line {odd[0]}", file=sys.stderr)
    with atomic_file(log) as path:
        path.write_bytes(b"".join(kept))


def _flat(settings: dict, prefix: str = "") -> dict:
    """Nested settings under dotted names, as the command line has them."""
    flat = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _default_values(kind: type) -> dict:
    """The defaults of a dataclass of settings, nested ones included; those without a default are left out."""
    values = {}
    for setting in dataclasses.fields(kind):
        if setting.default is not dataclasses.MISSING:
            values[setting.name] = setting.default
        elif setting.default_factory is not dataclasses.MISSING:
            value = setting.default_factory()
            values[setting.name] = dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
    return values


def load_heads(heads: nn.Module, folder: str | Path) -> bool:
    """Read ``heads.safetensors`` of a checkpoint folder into ``heads``; False when there is none."""
    path = Path(folder) / "heads.safetensors"
    if not is_there(path):
        return False
    checkpoints.load_strict(heads, checkpoints.read_tensors(path), str(path))
    return True


def finish_run(saver: Saver, run: Run, ranks: Ranks) -> None:
    """Leave together, when the last checkpoint is whole: a launcher kills the other ranks as soon as one is gone."""
    saver.wait()
    run.close()
    ranks.barrier()
    ranks.close()


def print_first(ranks: Ranks, text: str) -> None:
    """Print on the first rank alone, above its progress bar."""
    if ranks.is_first:
        print_above_bars(text)


def seed_dropout(seed: int, ranks: Ranks) -> None:
    """From here on every rank draws dropout of its own."""
    torch.manual_seed(int(np.random.SeedSequence([seed, 6, ranks.rank]).generate_state(1)[0]))


def random_state() -> dict:
    """State of torch's generators (dropout); data order and masking are functions of the position."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}


def restore_random_state(state: dict) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def environment() -> dict:
    """Where and with what a result was made: time, machine, versions, git revision, command."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "git": git_revision(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy", "lmdb")},
        "host": platform.node(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def git_revision() -> str | None:
    """Commit of this code, with ``-dirty`` when files differ from it; None outside a git checkout."""
    root = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
