#!/usr/bin/env python
"""Measure what the tables of a large database cost each training process: start-up, memory, shuffling.

python scripts/bench_data.py --out /scratch/bench --captions 10000000 --images 2000000 --processes 8
python scripts/bench_data.py --out /scratch/bench --captions 10000000 --images 2000000 --processes 1 --dicts

--dicts reads the same tables into Python dicts, to compare.

The database is synthetic: all its tables, and one record of each kind, which is all that start-up and the order of
training data read. It is made once and used again.
"""

import json
import multiprocessing
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

import numpy as np
from tqdm import tqdm

from configs import cli
from data.batches.loader import batch_loader
from data.batches.pairs import PairDataset, open_pairs
from data.batches.samplers import epoch_draws, token_buckets
from data.captions.db import CaptionDB, read_table
from data.captions.tables import JSON_TABLES
from data.captions.writer import pack_record
from data.errors import BadInput
from data.regions.codec import encode_plain
from data.regions.db import BoxOptions, RegionDB
from data.storage.lmdb_env import LmdbWriter
from data.storage.text_files import read_json, write_json

BOXES = BoxOptions()
FEATURES = "feat_th0.2_max100_min10"
COUNTS = "nbb_th0.2_max100_min10.json"


@dataclass
class Options:
    """Measure what the tables of a large database cost each training process.

    Args:
        out: folder of the synthetic database and of the results, bench_data.json or bench_dicts.json
        captions: captions of the database; one that is there and has another size is made anew
        images: pictures they are about
        processes: training processes of one machine, all at the same time
        workers: data workers that each of them forks
        batches: batches that each process draws
        dicts: each process reads the JSON tables into Python dicts instead
    """

    out: str
    captions: int = 1_000_000
    images: int = 200_000
    processes: int = 2
    workers: int = 2
    batches: int = 100
    dicts: bool = False

    def __post_init__(self):
        if not 0 < self.images <= self.captions or min(self.processes, self.batches) < 1 or self.workers < 0:
            raise BadInput("bench_data: need captions >= images > 0, processes and batches > 0, workers >= 0")


# ---- the database ----------------------------------------------------------------------------------------------------


def caption_id(n: int) -> str:
    return f"{n:09d}#{n % 7}"


def image_key(n: int) -> str:
    return f"synthetic_{n:012d}.npz"


def make_database(options: Options) -> None:
    """Captions and pictures in the original's layout, each picture with one run of captions."""
    root = Path(options.out)
    try:
        if read_json(root / "made.json", expected=list) == [options.captions, options.images]:
            return
    except BadInput:
        pass
    for name in ("txt", "img"):
        shutil.rmtree(root / name, ignore_errors=True)
    total, images = options.captions, options.images
    image_of = np.arange(total) * images // total
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.poisson(12, total), 3, 60)
    boxes = rng.integers(10, 101, images)
    with LmdbWriter(root / "txt") as writer:
        ids = [5, 6, 7]
        writer.put(caption_id(0).encode(), pack_record({"input_ids": ids, "img_fname": image_key(0)}))
        starts = np.searchsorted(image_of, np.arange(images + 1)).tolist()
        fields: dict[str, tuple[int, Callable[[int], str]]] = {
            "id2len.json": (total, lambda n: f'"{caption_id(n)}": {lengths[n]}'),
            "txt2img.json": (total, lambda n: f'"{caption_id(n)}": "{image_key(image_of[n])}"'),
            "txt2lang.json": (total, lambda n: f'"{caption_id(n)}": "{("en", "de")[n % 5 == 0]}"'),
            "img2txts.json": (images, lambda k: _entry(k, range(starts[k], starts[k + 1]))),
        }
        for name, (rows, entry) in fields.items():
            _write_json(writer.partial / name, rows, entry)
        writer.write_file("meta.json", json.dumps({"CLS": 2, "SEP": 3, "MASK": 4, "UNK": 1, "v_range": [5, 100]}))
    rows = {"features": (100, 4), "norm_bb": (100, 6), "conf": (100,)}
    with LmdbWriter(root / "img" / FEATURES) as writer:
        record = encode_plain({name: np.ones(shape, "<f2") for name, shape in rows.items()})
        writer.put(image_key(0).encode(), record)
        writer.put(b"__keys__", json.dumps([image_key(k) for k in range(images)]).encode())
    _write_json(root / "img" / COUNTS, images, lambda k: f'"{image_key(k)}": {boxes[k]}')
    write_json(root / "made.json", [options.captions, options.images])


def _entry(k: int, captions: range) -> str:
    return f'"{image_key(k)}": {json.dumps([caption_id(n) for n in captions])}'


def _write_json(path: Path, rows: int, entry: Callable[[int], str]) -> None:
    with open(path, "w", encoding="utf-8") as file, tqdm(total=rows, desc=path.name, unit="row", delay=2) as bar:
        for start in range(0, rows, 10_000):
            part = range(start, min(start + 10_000, rows))
            file.write(("{" if start == 0 else ", ") + ", ".join(map(entry, part)))
            bar.update(len(part))
        file.write("}")


# ---- measuring -------------------------------------------------------------------------------------------------------


def memory() -> dict[str, float]:
    """GiB of this process: resident, its share of what is shared, and what is its own; and the most it ever had."""
    lines = Path("/proc/self/smaps_rollup").read_text() + Path("/proc/self/status").read_text()
    kb = {name: int(size) for name, size in re.findall(r"^(\w+):\s+(\d+) kB", lines, re.MULTILINE)}
    sizes = {"rss": kb["Rss"], "pss": kb["Pss"], "private": kb["Private_Clean"] + kb["Private_Dirty"]}
    return {name: size / 2**20 for name, size in (sizes | {"peak": kb["VmHWM"]}).items()}


def open_database(root: Path, dicts: bool = False) -> PairDataset | list:
    """The data set, or with `dicts` the tables as they would be without columns."""
    if dicts:
        tables = [read_table(root / "txt", name) for name in JSON_TABLES]
        return [*tables, read_table(root / "img", COUNTS), np.arange(len(tables[0]))]
    return open_pairs("txt", "img", BOXES, root=str(root))


def build(root: Path, results: multiprocessing.Queue) -> None:
    """Open both databases once, which stores their columns."""
    started = time.perf_counter()
    CaptionDB(root / "txt")
    RegionDB(root / "img", BOXES)
    results.put({"seconds": time.perf_counter() - started, "peak": memory()["peak"]})


def touch(dataset: PairDataset, indices: np.ndarray) -> dict[str, float]:
    """In a worker: what a batch looks up in the tables; the process's memory."""
    dataset.ids.take(indices)
    for key in dataset.images.take(dataset.image_of[indices]):
        _ = dataset.regions.num_regions[key]
    return memory()


def train(number: int, options: Options, barrier, results: multiprocessing.Queue) -> None:
    """What one training process does with the tables."""
    found: dict[str, float | dict] = {"process": number, "imports": memory()}
    started = time.perf_counter()
    dataset = open_database(Path(options.out), options.dicts)
    found["open_seconds"] = time.perf_counter() - started
    barrier.wait()  # memory is measured while all have it
    found["open"] = memory()
    if not options.dicts:
        started = time.perf_counter()
        drawn = epoch_draws(len(dataset), 256, seed=1, epoch=number)
        first = next(drawn)
        found["shuffle_seconds"] = time.perf_counter() - started
        rng = np.random.default_rng(number)
        started = time.perf_counter()
        buckets: Iterator = token_buckets(dataset.txt_lengths, dataset.img_lengths, 20_000, rng)
        batches = list(islice(buckets, options.batches))
        found["bucket_seconds"] = time.perf_counter() - started
        barrier.wait()
        found["training"] = memory()
        made = batch_loader(partial(touch, dataset), [first.indices, *batches], options.workers, pin=False)
        sizes = [size for _, size in made]
        found["worker"] = {name: max(size[name] for size in sizes[-2 * options.workers :]) for name in sizes[0]}
        barrier.wait()
        del drawn, buckets
    results.put(found)


def run(target: Callable, number: int, *arguments) -> list[dict]:
    """What `number` fresh processes put into their queue."""
    context = multiprocessing.get_context("spawn")
    results, barrier = context.Queue(), context.Barrier(number)
    extra = [(barrier, results)] if target is train else [(results,)]
    processes = [
        context.Process(target=target, args=(*((n,) if target is train else ()), *arguments, *extra[0]))
        for n in range(number)
    ]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return sorted(found, key=lambda each: each.get("process", 0))


def main(options: Options) -> None:
    make_database(options)
    root = Path(options.out)
    report = {
        "captions": options.captions,
        "images": options.images,
        "dicts": options.dicts,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__},
    }
    if not options.dicts:
        report["build"] = run(build, 1, root)[0]
        seconds, peak = report["build"]["seconds"], report["build"]["peak"]
        print(f"first opening, which stores columns where there are none: {seconds:.1f} s, peak {peak:.2f} GiB")
    report["processes"] = run(train, options.processes, options)
    write_json(root / ("bench_dicts.json" if options.dicts else "bench_data.json"), report)
    show(report)


def show(report: dict) -> None:
    """The table, sizes in GiB."""
    print(f"{report['captions']:,} captions, {report['images']:,} images; GiB (own: of no other process)")
    print(f"{'process':>7} {'state':10}{'rss':>8}{'pss':>8}{'own':>8}{'peak':>8}   seconds")
    for found in report["processes"]:
        notes = {
            "open": f"{found['open_seconds']:.2f} to open",
            "training": f"{found.get('shuffle_seconds', 0):.2f} to shuffle an epoch, "
            f"{found.get('bucket_seconds', 0):.2f} for the first token buckets",
        }
        for state in ("imports", "open", "training", "worker"):
            if state in found:
                sizes = "".join(f"{found[state][name]:8.2f}" for name in ("rss", "pss", "private", "peak"))
                print(f"{found['process']:7} {state:10}{sizes}   {notes.get(state, '')}")


if __name__ == "__main__":
    cli.run(main, Options)
