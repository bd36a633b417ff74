#!/usr/bin/env python
"""Measure what the tables of a large database cost each training process: start-up, memory, shuffling. Or how fast one process
reads records and makes batches of them.

python scripts/bench_data.py --out /scratch/bench --captions 10000000 --images 2000000 --processes 8
python scripts/bench_data.py --out /scratch/bench --captions 10000000 --images 2000000 --processes 1 --dicts

python scripts/bench_data.py --out /scratch/bench --records 2000 --against ../older_checkout

--dicts reads the same tables into Python dicts, to compare.

The database is synthetic: all its tables, and one record of each kind, which is all that start-up and the order of
training data read. With --records all records are there. It is made once and used again.
"""

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli  # isort: skip (before torch)
import numpy as np
import torch

from data.errors import BadInput
from data.storage.locks import claim_output
from data.storage.text_files import write_json
from scripts.benchmarking.measuring import device_name
from scripts.benchmarking.synthetic_databases import make_synthetic_databases
from scripts.benchmarking.table_memory import TableWork, measure_training, run_processes, time_first_opening
from scripts.benchmarking.whole_records import make_whole_databases, measure_reading


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
        records: images whose records are read and made into batches, plain and compressed, in place of all else; 0: none
        batch: pairs of a batch that is made of records
        rounds: measurements of reading
        seconds: each of them takes so long at least
        against: another checkout of this repository, which reads the same records in turns with this one
    """

    out: str
    captions: int = 1_000_000
    images: int = 200_000
    processes: int = 2
    workers: int = 2
    batches: int = 100
    dicts: bool = False
    records: int = 0
    batch: int = 64
    rounds: int = 5
    seconds: float = 2.0
    against: str | None = None

    def __post_init__(self):
        if not 0 < self.images <= self.captions or min(self.processes, self.batches) < 1 or self.workers < 0:
            raise BadInput("bench_data: need captions >= images > 0, processes and batches > 0, workers >= 0")
        if self.records < 0 or min(self.batch, self.rounds) < 1:
            raise BadInput("bench_data: need records >= 0, batch and rounds > 0")
        if self.against is not None and not Path(self.against, "data").is_dir():
            raise BadInput(f"bench_data: against {self.against} is no checkout of this repository, it has no folder data")


def main(options: Options) -> None:
    root = Path(options.out)
    claim_output(root)
    if options.records:
        bench_reading(options, root)
        return
    make_synthetic_databases(root, options.captions, options.images)
    report = {
        "captions": options.captions,
        "images": options.images,
        "dicts": options.dicts,
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__},
    }
    if not options.dicts:
        report["build"] = run_processes(time_first_opening, 1, root)[0]
        seconds, peak = report["build"]["seconds"], report["build"]["peak"]
        print(f"first opening, which stores columns where there are none: {seconds:.1f} s, peak {peak:.2f} GiB")
    report["processes"] = run_processes(
        measure_training, options.processes, TableWork(options.out, options.batches, options.workers, options.dicts)
    )
    write_json(root / ("bench_dicts.json" if options.dicts else "bench_data.json"), report)
    show(report)


def bench_reading(options: Options, root: Path) -> None:
    """Read and collate, this checkout and another one in turns."""
    make_whole_databases(root, options.records)
    checkouts = {"this": Path(__file__).resolve().parents[1]}
    if options.against is not None:
        checkouts["other"] = Path(options.against)
    report = measure_reading(root, options.batch, options.rounds, options.seconds, checkouts)
    machine = {"device": device_name(torch.device("cpu")), "cores": os.cpu_count(), "numpy": np.__version__}
    write_json(root / "bench_reading.json", {"cases": report, "machine": machine} | cli.to_dict(options))
    print(f"{'case':28}{'checkout':9}{'examples/s':>11}{'spread':>16}{'GB/s':>7}{'copying':>9}   times as fast is this one")
    for case, found in report.items():
        for which, row in found.items():
            speed, ratio = row["examples_per_s"], row["times_as_fast"]
            print(
                f"{case:28}{which:9}{speed['median']:11.0f}{speed['min']:9.0f}–{speed['max']:<6.0f}{row['gb_per_s']:7.2f}"
                f"{row['copied_gb_per_s']:9.1f}   {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
            )


def show(report: dict) -> None:
    """The table, sizes in GiB."""
    print(f"{report['captions']:,} captions, {report['images']:,} images; GiB (own: of no other process)")
    print(f"{'process':>7} {'state':10}{'rss':>8}{'pss':>8}{'own':>8}{'peak':>8}   seconds")
    for found in report["processes"]:
        notes = {
            "open": f"{found['open_seconds']:.2f} to open",
            "training": f"{found.get('shuffle_seconds', 0):.2f} to shuffle an epoch, "
            f"{found.get('batch_seconds', 0):.2f} for the first batches by tokens",
        }
        for state in ("imports", "open", "training", "worker"):
            if state in found:
                sizes = "".join(f"{found[state][name]:8.2f}" for name in ("rss", "pss", "private", "peak"))
                print(f"{found['process']:7} {state:10}{sizes}   {notes.get(state, '')}")


if __name__ == "__main__":
    cli.run(main, Options)
