"""What the tables of a database cost the processes of a training: memory, opening, shuffling."""

from __future__ import annotations

import multiprocessing
import queue
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from data.batches.loader import batch_loader
from data.batches.pairs import PairDataset, open_pairs
from data.batches.samplers import epoch_draws, token_batches
from data.captions.db import CaptionDB, read_table
from data.captions.tables import JSON_TABLES
from data.errors import BadInput
from data.regions.db import BoxOptions, RegionDB
from data.storage.processes import leave_ctrl_c_to_parent, starting_workers
from scripts.benchmarking.synthetic_databases import COUNTS

BOXES = BoxOptions()


@dataclass(frozen=True)
class TableWork:
    """What each training process does.

    Attributes:
        folder: of the databases ``txt`` and ``img``
        batches: batches that it draws
        workers: data workers that it forks
        dicts: it reads the JSON tables into Python dicts instead
    """

    folder: str
    batches: int
    workers: int
    dicts: bool


def process_memory() -> dict[str, float]:
    """GiB of this process: resident, its share of what is shared, and what is its own; and the most it ever had."""
    lines = Path("/proc/self/smaps_rollup").read_text() + Path("/proc/self/status").read_text()
    kb = {name: int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB", lines, re.MULTILINE)}
    sizes = {"rss": kb["Rss"], "pss": kb["Pss"], "private": kb["Private_Clean"] + kb["Private_Dirty"]}
    return {name: size / 2**20 for name, size in (sizes | {"peak": kb["VmHWM"]}).items()}


def open_database(root: Path, dicts: bool = False) -> PairDataset | list:
    """The data set, or with ``dicts`` the tables as they would be without columns."""
    if dicts:
        tables = [read_table(root / "txt", name) for name in JSON_TABLES]
        return [*tables, read_table(root / "img", COUNTS), np.arange(len(tables[0]))]
    return open_pairs("txt", "img", BOXES, root=str(root))


def time_first_opening(_number: int, _barrier, root: Path) -> dict[str, float]:
    """Open both databases once, which stores their columns."""
    started = time.perf_counter()
    CaptionDB(root / "txt")
    RegionDB(root / "img", BOXES)
    return {"seconds": time.perf_counter() - started, "peak": process_memory()["peak"]}


def look_up(dataset: PairDataset, indices: np.ndarray) -> dict[str, float]:
    """In a worker: what a batch looks up in the tables; the process's memory."""
    dataset.ids.take(indices)
    for key in dataset.images.take(dataset.image_of[indices]):
        _ = dataset.regions.num_regions[key]
    return process_memory()


def measure_training(number: int, barrier, work: TableWork) -> dict[str, float | dict]:
    """What one training process does with the tables."""
    found: dict[str, float | dict] = {"process": number, "imports": process_memory()}
    started = time.perf_counter()
    dataset = open_database(Path(work.folder), work.dicts)
    found["open_seconds"] = time.perf_counter() - started
    barrier.wait()  # memory is measured while all have it
    found["open"] = process_memory()
    if not work.dicts:
        started = time.perf_counter()
        drawn = epoch_draws(len(dataset), 256, seed=1, epoch=number)
        first = next(drawn)
        found["shuffle_seconds"] = time.perf_counter() - started
        rng = np.random.default_rng(number)
        started = time.perf_counter()
        drawn_batches: Iterator = token_batches(dataset.txt_lengths, dataset.img_lengths, 20_000, rng)
        batches = list(islice(drawn_batches, work.batches))
        found["batch_seconds"] = time.perf_counter() - started
        barrier.wait()
        found["training"] = process_memory()
        made = batch_loader(partial(look_up, dataset), [first.indices, *batches], work.workers, pin=False)
        sizes = [size for _, size in made]
        found["worker"] = {name: max(size[name] for size in sizes[-2 * work.workers :]) for name in sizes[0]}
        barrier.wait()
        del drawn, drawn_batches
    return found


def run_processes(target: Callable[..., dict], number: int, *arguments) -> list[dict]:
    """What a function returns in each of ``number`` fresh processes. Its arguments are the number of the process, a barrier of all
    of them, and these. Raises BadInput as the function does, and when a process has ended without an answer.
    """
    context = multiprocessing.get_context("spawn")
    answers, barrier = context.Queue(), context.Barrier(number)
    processes = [context.Process(target=_answer, args=(answers, target, n, barrier, *arguments)) for n in range(number)]
    try:
        with starting_workers():
            for process in processes:
                process.start()
        found = [_next_answer(answers, processes) for _ in processes]
    except BaseException:
        for process in [each for each in processes if each.pid is not None]:
            process.kill()  # those that wait for the one that failed, and those that hear no Ctrl-C
        raise
    finally:
        for process in [each for each in processes if each.pid is not None]:
            process.join()
    return sorted(found, key=lambda measured: measured.get("process", 0))


def _answer(answers: multiprocessing.Queue, target: Callable[..., dict], *arguments) -> None:
    leave_ctrl_c_to_parent()
    try:
        answers.put(target(*arguments))
    except BadInput as error:
        answers.put(str(error))


def _next_answer(answers: multiprocessing.Queue, processes: list) -> dict:
    """What the next process answers. Raises BadInput when it could not, and when one has ended without an answer."""
    while True:
        ended = [process.exitcode for process in processes if process.exitcode]  # before the look at what it may have answered
        try:
            answer = answers.get(timeout=1)
        except queue.Empty:
            if not ended:
                continue
            answer = f"a process that measures ended with status {ended[0]}; what it wrote says why"
        if isinstance(answer, str):
            raise BadInput(answer)
        return answer
