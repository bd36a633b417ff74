"""Checkpoints of a run: a copy is taken between two updates, and written while training goes on.

checkpoints/step-00001000/
    model.safetensors config.json data.json tokenizer/ [heads.safetensors] [val.json]     by rank 0
    training.pt                     by rank 0: step, best so far, data order, loss scale
    optimizer-00000-of-00002.pt     by each rank: its share of the optimizer's state
    rank-00000-of-00002.pt          by each rank: its random generators, its losses since the last line of metrics
last -> checkpoints/step-...   best -> checkpoints/step-...

The folder gets its name when all of it is written, by every rank: a reader sees a whole checkpoint or none. Ranks on
several machines write to one shared file system.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import BadInput, reason_of
from data.storage.atomic import atomic_file, cannot_write_is_bad_input, flush, remove_folder
from data.storage.regular_files import is_there, real_path
from data.storage.shapes import check_shape
from data.storage.text_files import write_json
from data.storage.torch_files import load_torch
from model import checkpoints
from model.bi_encoder import LightningDOT
from model.distributed import Ranks
from model.made_from import MadeFrom, write_made_from
from model.uniter import Reranker
from optim.optimizer import check_moments

TRAINING = {
    "step": int, "is_best": bool, "ranks": int, "best?": float, "param_groups": [{"params": [int]}], "data?": (None, {str: str}),
}  # beside what a task adds; fmt: skip
GO_BACK = "point the link last to another checkpoint, or remove it to start again"


class Saver:
    """Writes the checkpoints of a run, one at a time, in the background.

    Args:
        folder: of the run
        ranks: all of them call `save` at the same step
        keep: so many of the newest checkpoints stay, besides the best and the last
        tokenizer: its files by their names, so that a checkpoint can answer a query by itself
        made_from: what the model is trained on, which every checkpoint remembers; None: it does not
        timeout: seconds that rank 0 waits for the files of the others
    """

    def __init__(
        self, folder: Path, ranks: Ranks, keep: int, tokenizer: Mapping[str, bytes] | None, timeout: float,
        made_from: MadeFrom | None = None,
    ):  # fmt: skip
        self.folder, self.ranks, self.keep, self.tokenizer, self.timeout = folder, ranks, keep, tokenizer, timeout
        self.made_from = made_from
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._leaving = False
        if ranks.is_first:
            for partial in (folder / "checkpoints").glob(".step-*.partial"):  # of a run that was killed
                with suppress(OSError):
                    remove_folder(partial)

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Where training fails, what is being written is whole, or gone, before the error is seen: who calls it again in
        this process finds no thread of the run before."""
        self._leaving = error is not None
        if self._leaving and self._thread is not None:
            self._thread.join()

    def save(
        self,
        step: int,
        model: LightningDOT | Reranker,
        optimizer: torch.optim.Optimizer,
        training: dict,
        own: dict,
        is_best: bool = False,
        heads: nn.Module | None = None,
        val: dict | None = None,
    ) -> None:
        """Copy the state of training, and write it as checkpoint ``step`` in the background.

        Args:
            training: tensors and plain values, the same on all ranks
            own: tensors and plain values of this rank
            is_best: the link ``best`` will point here
            val: validation results, written as ``val.json``

        Raises:
            BadInput: a weight is NaN or infinite, or the checkpoint before this one could not be written.
        """
        self.wait()
        state = optimizer.state_dict()
        files: dict[str, Any] = {"optimizer": _shares(state["state"], model, heads, self.ranks), "rank": own}
        if self.ranks.is_first:
            bad = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
            if bad:
                raise BadInput(
                    f"{self.folder}: weight {bad[0]} is NaN or infinite at step {step}, which is not saved: training "
                    "diverged; lower optim.lr or lengthen the warm-up; checkpoints saved before are whole"
                )
            facts = {"step": step, "is_best": is_best, "ranks": self.ranks.size, "param_groups": state["param_groups"]}
            files |= {"training": facts | training, "model": model.state_dict(), "val": val}
            files["heads"] = None if heads is None else heads.state_dict()
        files, write = _copied(files), functools.partial(type(model).write, config=model.config)
        # no daemon: a training thread that fails leaves what it has saved whole
        self._thread = threading.Thread(target=self._write, args=(step, files, write, is_best))
        self._thread.start()

    def wait(self) -> None:
        """Until the checkpoint that is being written is whole. Raises what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise what went wrong in the background, if anything did."""
        if self._error is not None:
            raise self._error

    def _write(self, step: int, files: dict, write: Callable, is_best: bool) -> None:
        final = self.folder / "checkpoints" / f"step-{step:08d}"
        partial = final.with_name(f".{final.name}.partial")
        try:
            with cannot_write_is_bad_input(final):
                partial.mkdir(parents=True, exist_ok=True)
                if self.ranks.is_first:
                    self._write_model(partial, files, write)
                number = f"{self.ranks.rank:05d}-of-{self.ranks.size:05d}"
                _save(files["optimizer"], partial / f"optimizer-{number}.pt")
                _save(files["rank"], partial / f"rank-{number}.pt")
                if self.ranks.is_first:
                    self._await_others(partial)
                    self._publish(partial, final, is_best)
        except Exception as error:  # raised in the training thread, by `check`
            self._error = error
            if self.ranks.is_first:
                shutil.rmtree(partial, ignore_errors=True)

    def _write_model(self, folder: Path, files: dict, write: Callable) -> None:
        fingerprint = write(folder, files["model"])
        if files["heads"]:  # a loss without weights of its own leaves none
            with atomic_file(folder / "heads.safetensors") as path:
                checkpoints.save_tensors(files["heads"], path)
        if files["val"] is not None:
            write_json(folder / "val.json", {**files["val"], checkpoints.ABOUT: fingerprint})
        if self.made_from is not None:
            write_made_from(folder, self.made_from, fingerprint)
        if self.tokenizer is not None:
            (folder / "tokenizer").mkdir(exist_ok=True)
            for name, content in self.tokenizer.items():
                (folder / "tokenizer" / name).write_bytes(content)
                flush(folder / "tokenizer" / name)
        _save(files["training"], folder / "training.pt")

    def _await_others(self, partial: Path) -> None:
        wanted = [
            partial / f"{kind}-{rank:05d}-of-{self.ranks.size:05d}.pt"
            for rank in range(self.ranks.size)
            for kind in ("optimizer", "rank")
        ]
        started = time.monotonic()
        while wanted := [path for path in wanted if not path.exists()]:
            leaving = self._leaving or not threading.main_thread().is_alive()
            timeout = 10 if leaving else self.timeout  # the others may have ended too
            if time.monotonic() - started > timeout:
                raise BadInput(
                    f"{wanted[0]}: was not written within {timeout:.0f} s by its rank; is the folder shared by all machines?"
                )
            time.sleep(0.01)

    def _publish(self, partial: Path, final: Path, is_best: bool) -> None:
        if is_there(final):  # the run was stopped between this folder and its links
            remove_folder(final)
        os.replace(partial, final)
        point_link(self.folder, "last", final)
        if is_best:
            point_link(self.folder, "best", final)
        used = {real_path(self.folder / name) for name in ("last", "best")}
        for old in sorted(final.parent.glob("step-*"))[: -self.keep]:
            if real_path(old) not in used:
                remove_folder(old)


def point_link(folder: Path, name: str, target: Path) -> None:
    """Make ``folder/name`` a link to ``target``, in one step."""
    link = folder / f".{name}.partial"
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(target, folder))
    os.replace(link, folder / name)


def load_training(folder: Path) -> dict:
    """``training.pt`` of a checkpoint. Raises BadInput when it is damaged."""
    training = _load(folder / "training.pt")
    check_shape(training, TRAINING, str(folder / "training.pt"), GO_BACK)
    if training["step"] < 0 or training["ranks"] < 1 or math.isnan(training.get("best", 0)):
        odd = {name: training.get(name) for name in ("step", "ranks", "best")}
        raise BadInput(f"{folder / 'training.pt'}: {odd} cannot be; {GO_BACK}")
    return training


def load_own(folder: Path, ranks: Ranks, training: dict) -> dict | None:
    """What this rank gave `Saver.save`; None when another number of ranks saved, as ``training`` of `load_training` says."""
    if training["ranks"] != ranks.size:
        return None
    return _load(folder / f"rank-{ranks.rank:05d}-of-{ranks.size:05d}.pt")


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path, training: dict) -> None:
    """Put the optimizer's state together from the shares of the ranks that saved it, however many they were. Its settings stay what
    they are.

    Raises:
        BadInput: a share is missing or damaged.
        ValueError, TypeError: they are of other parameters, or no such state.
    """
    state: dict = {}
    for rank in range(training["ranks"]):
        state |= _load(folder / f"optimizer-{rank:05d}-of-{training['ranks']:05d}.pt")
    state = dict(sorted(state.items()))  # in the order of the parameters
    check_moments(optimizer, state)
    own, saved = optimizer.state_dict()["param_groups"], training["param_groups"]
    if [group["params"] for group in own] != [group["params"] for group in saved]:
        raise ValueError("its groups of parameters are others")
    groups = [before | now for before, now in zip(saved, own, strict=True)]  # apex counts its steps in them
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _load(path: Path) -> dict:
    try:
        return _copied(load_torch(path))  # the run goes on when the file is gone
    except Exception as error:
        raise BadInput(
            f"{path}: damaged training state: {reason_of(error)}; {GO_BACK}"
        ) from None


def _save(tree: dict, path: Path) -> None:
    with atomic_file(path) as partial:
        try:
            torch.save(tree, partial)
        except RuntimeError as error:  # what torch makes of a full disk
            raise BadInput(f"{path}: cannot be written: {error}; is the disk full?") from error


def _shares(state: dict, model: nn.Module, heads: nn.Module | None, ranks: Ranks) -> dict:
    """This rank's share of the optimizer's state: all ranks write about as many bytes, rank 0 the weights among them."""
    load = [0] * ranks.size
    load[0] = sum(p.numel() for module in (model, heads) if module is not None for p in module.parameters())
    sizes = {n: sum(t.numel() for t in each.values() if isinstance(t, Tensor)) for n, each in state.items()}
    mine = {}
    for number in sorted(sizes, key=lambda n: (-sizes[n], n)):
        rank = load.index(min(load))
        load[rank] += sizes[number]
        if rank == ranks.rank:
            mine[number] = state[number]
    return mine


def _copied(tree: Any) -> Any:
    """The same tree with every tensor copied to the host."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True).contiguous()
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return type(tree)(_copied(value) for value in tree) if isinstance(tree, list | tuple) else tree
