"""The processes that make batches ahead of training."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from data.batches.batch import Batch


class _MadeBatches(Dataset):
    def __init__(self, make: Callable[[Any], Batch]):
        self.make = make

    def __getitem__(self, draw: Any) -> tuple[Any, Batch]:
        return draw, self.make(draw)


def _outlive_signals(worker: int) -> None:
    """A scheduler signals every process of a job. A worker goes on, for the training process to save; it ends when that
    process says so, or with it."""
    for number in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def batch_loader(make: Callable[[Any], Batch], draws: Iterable, num_workers: int, pin: bool) -> DataLoader:
    """Iterate over (draw, batch), made ahead of training when there are workers.

    Args:
        make: draw → Batch; runs in the workers
        draws: what to make, in order; may be endless
        num_workers: processes; 0 makes batches in this one
        pin: copy batches to page-locked memory, for fast transfer to a GPU
    """
    return DataLoader(
        _MadeBatches(make),
        sampler=draws,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin,
        worker_init_fn=_outlive_signals,
        generator=torch.Generator(),  # starting must not draw from the generator of dropout: resuming starts once more
    )
