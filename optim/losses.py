"""Losses and speed between two lines of metrics, and what to say of a loss that is no number."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from data.batches.pairs import PairDataset
from data.errors import BadInput
from model.distributed import Ranks

Item = TypeVar("Item")


class RecentLosses:
    """The losses since the last line of metrics, kept as tensors so that nothing waits for the GPU in between, and the time
    that the updates took."""

    def __init__(self, ranks: Ranks):
        self._ranks = ranks
        self._forget()

    def _forget(self) -> None:
        self._losses: list[tuple[str, Tensor, PairDataset | None, np.ndarray | None]] = []
        self._pairs, self._started, self._paused_seconds, self._waited_seconds = 0, time.perf_counter(), 0.0, 0.0

    def add(self, name: str, share: Tensor, dataset: PairDataset, indices: np.ndarray, pairs: int) -> None:
        """Note a batch.

        Args:
            name: of the loss in the metrics
            share: scalar, this rank's share of the loss
            dataset, indices: where this rank's pairs come from, for the message when the loss is no number
            pairs: pairs of the batch on all ranks together
        """
        self._losses.append((name, share.detach(), dataset, indices))
        self._pairs += pairs

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens in the block (validation, saving, mining) does not count as time of the updates."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._paused_seconds += time.perf_counter() - started

    def waited_for(self, items: Iterator[Item]) -> Iterator[Item]:
        """The same items. The time until each is there counts as waiting for data, without what is paused in it."""
        while True:
            started, paused = time.perf_counter(), self._paused_seconds
            try:
                item = next(items)
            except StopIteration:
                return
            self._waited_seconds += time.perf_counter() - started - (self._paused_seconds - paused)
            yield item

    def flush(self, step: int) -> dict[str, float]:
        """The mean of each loss over all ranks, the pairs per second, and the share of the time that this rank waited for data, in
        percent, since the last flush: what a line of metrics holds.

        Raises:
            BadInput: a loss is NaN or infinite; names the region record that is to blame, or the batch.
        """
        shares = torch.stack([share for _, share, _, _ in self._losses]).double().cpu().numpy()
        values = self._ranks.sum_array(shares)
        by_name = defaultdict(list)
        for (name, _, dataset, indices), value in zip(self._losses, values.tolist(), strict=True):
            if not np.isfinite(value):
                raise BadInput(f"loss of {name} is {value} by step {step}: {reason_of_nan(dataset, indices)}")
            by_name[f"train/{name}/loss"].append(value)
        seconds = time.perf_counter() - self._started - self._paused_seconds
        speed = {"speed/pairs_per_s": round(self._pairs / seconds, 1)}
        speed["speed/waiting_for_data"] = round(100 * self._waited_seconds / seconds, 1)
        self._forget()
        return {name: float(np.mean(found)) for name, found in by_name.items()} | speed

    def state_dict(self) -> dict:
        return {"names": [name for name, *_ in self._losses], "shares": [share for _, share, *_ in self._losses]}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError or TypeError for what is no such state."""
        odd = [share for share in state["shares"] if not isinstance(share, Tensor) or share.ndim or not share.is_floating_point()]
        if odd or not all(isinstance(name, str) for name in state["names"]):
            raise TypeError("the losses since the last line of metrics are no names and numbers")
        self._losses = [(name, share, None, None) for name, share in zip(state["names"], state["shares"], strict=True)]


def reason_of_nan(dataset: PairDataset | None, indices: np.ndarray | None) -> str:
    """Why the loss of the pairs ``indices`` may be NaN: a region record that holds NaN, or diverged training."""
    if dataset is None:
        return "training diverged before the run was stopped; checkpoints saved before are whole"
    for key in dict.fromkeys(dataset.images[dataset.image_of[i]] for i in indices):
        regions = dataset.regions[key]
        for name in ("features", "norm_bb", "soft_labels"):
            values = getattr(regions, name)
            if values is not None and not np.isfinite(values).all():
                return f"{dataset.regions.folder}: key {key} holds NaN or infinity in its {name}"
    return (
        f"training diverged on the batch of caption {dataset.ids[indices[0]]} ({dataset.captions.folder}); lower "
        "optim.lr or lengthen the warm-up; checkpoints saved before are whole"
    )
