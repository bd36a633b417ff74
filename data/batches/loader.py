"""The processes that make batches ahead of training."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from data.batches.shared_memory import Packed, SharedBuffers

AHEAD = 2  # batches that each worker makes ahead


class _MadeBatches(Dataset):
    buffers: SharedBuffers | None = None  # of the iteration that has begun; None: batches are made in this process

    def __init__(self, make: Callable[[Any], Any]):
        self.make = make

    def __getitem__(self, numbered: tuple[int, Any]) -> tuple[Any, Any] | Packed:
        number, draw = numbered
        made = draw, self.make(draw)
        return made if self.buffers is None else Packed.pack(made, self.buffers, number % len(self.buffers))


class _Numbered:
    """Draws with their numbers, as often as they can be iterated over."""

    def __init__(self, draws: Iterable):
        self.draws = draws

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return enumerate(self.draws)


class BatchLoader(DataLoader):
    """What `batch_loader` gives: an iterable over (draw, batch).

    Buffer ``number % len(buffers)`` is free when batch ``number`` is begun: a loader has no more than `AHEAD` batches a worker
    underway, and begins another when it gives one away, which `__iter__` has unpacked before it asks for the next.
    """

    def __init__(self, make: Callable[[Any], Any], draws: Iterable, num_workers: int, pin: bool, on_start: Callable):
        self._pin = pin
        super().__init__(
            _MadeBatches(make),
            sampler=_Numbered(draws),
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=AHEAD if num_workers else None,
            pin_memory=pin and not num_workers,
            worker_init_fn=on_start,
            generator=torch.Generator(),  # starting must not draw from the generator of dropout: resuming starts once more
        )

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        # new ones each time: workers of an iteration that was left may still write into theirs
        buffers = SharedBuffers(AHEAD * self.num_workers + 1) if self.num_workers else None
        self.dataset.buffers = buffers
        for made in super().__iter__():
            yield made if buffers is None else made.unpack(buffers, self._pin)


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


def batch_loader(
    make: Callable[[Any], Any],
    draws: Iterable,
    num_workers: int,
    pin: bool,
    on_start: Callable[[int], None] = _outlive_signals,
) -> BatchLoader:
    """Iterate over (draw, batch), made ahead of training when there are workers.

    Args:
        make: draw → Batch, or anything that holds tensors; runs in the workers
        draws: what to make, in order; may be endless
        num_workers: processes; 0 makes batches in this one
        pin: copy batches to page-locked memory, for fast transfer to a GPU
        on_start: what a worker does first, told its number; without it, signals of a job leave it alone
    """
    return BatchLoader(make, draws, num_workers, pin, on_start)
