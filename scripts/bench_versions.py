#!/usr/bin/env python
"""Measure this version against another in turns: steps of training, encoding, queries and re-ranking, with real lengths.

git worktree add ../before COMMIT
python scripts/bench_versions.py --other ../before --threads 2 --out benchmarks/versions.json
python scripts/bench_versions.py --other ../before --cases query rerank --precision fp32 --rounds 9

Two processes of their own measure each case one after the other, round after round, so that a machine that speeds up or slows
down does so for both. A ratio is of one round's two times; its middle one and its spread are shown. Lengths: Flickr8k's captions;
Flickr8k's images, or 10 to 100 boxes with 36 on average.
"""

import json
import statistics
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli  # isort: skip (before torch)
import numpy as np
import torch

from data.errors import BadInput
from data.progress import ProgressBar
from data.storage.locks import claim_output
from data.storage.regular_files import real_path
from data.storage.text_files import write_json
from model.objectives.heads import PAPER
from model.precision import Precision
from optim.run import environment
from scripts.benchmarking.lengths import box_counts, caption_lengths
from scripts.benchmarking.measuring import device_name, refuse_empty_lists, spread

ROOT = Path(__file__).resolve().parents[1]
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
Case = Literal["finetune", "pretrain", "images", "captions", "query", "rerank"]


@dataclass(kw_only=True)
class Options:
    """Measure this version of the project against another.

    Args:
        other: folder of a working tree of the other version
        out: JSON file to write
        cases: finetune, pretrain, images, captions, query, rerank
        precision: of matrix products
        boxes: of the images: flickr8k, or 10-100
        batch: pairs of a step of fine-tuning
        budget: tokens of a step of pre-training
        images: to encode
        captions: to encode
        top: images that are ranked again
        rounds: measurements of every case
        seconds: a measurement takes calls until so long has passed
        threads: of each process; 0: as torch chooses
        clock: wall, or cpu where others use the machine too
        hidden_size: of every encoder
        num_hidden_layers: of every encoder
        num_attention_heads: of every encoder
        intermediate_size: of every encoder
    """

    other: str
    out: str = "benchmarks/versions.json"
    cases: list[Case] = field(default_factory=lambda: list(get_args(Case)))
    precision: list[Precision] = field(default_factory=lambda: ["fp32", "bf16"])
    boxes: list[Literal["flickr8k", "10-100"]] = field(default_factory=lambda: ["flickr8k", "10-100"])
    batch: int = 64
    budget: int = 10240
    images: int = 1000
    captions: int = 5000
    top: int = 50
    rounds: int = 5
    seconds: float = 1.0
    threads: int = 0
    clock: Literal["wall", "cpu"] = "wall"
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072

    def __post_init__(self):
        refuse_empty_lists(self)
        if min(self.batch, self.budget, self.images, self.captions, self.top, self.rounds) < 1 or self.threads < 0:
            raise BadInput("batch, budget, images, captions, top and rounds must be at least 1, threads at least 0")
        if not (Path(self.other) / "model" / "bi_encoder.py").is_file():
            raise BadInput(f"other: {self.other} is no working tree of this project")


class Version:
    """A process that measures the version in a folder."""

    def __init__(self, folder: Path, options: Options):
        values = json.dumps({"threads": options.threads, "tower": {name: getattr(options, name) for name in SIZES}})
        command, pipe = [sys.executable, str(ROOT / "scripts/benchmarking/version_worker.py"), str(folder), values], subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=folder)

    def seconds_each(self, case: dict, clock: str) -> float:  # of one item
        with suppress(BrokenPipeError):  # it has ended, as is seen where its answer is missing
            print(json.dumps(case), file=self.process.stdin, flush=True)
        if not (answer := self.process.stdout.readline()):
            raise BadInput(f"{self.process.args[2]}: its process ended with status {self.process.wait()}")
        return json.loads(answer)[clock]


def cases_of(options: Options) -> dict[str, dict]:
    rng = np.random.default_rng(0)
    tokens, found = caption_lengths(max(options.captions, 4096), rng).tolist(), {}
    of_images = {kind: box_counts(kind, max(options.images, options.top), rng).tolist() for kind in options.boxes}
    values = {"tasks": list(PAPER)} | {name: getattr(options, name) for name in ("seconds", "batch", "budget", "top")}
    for kind in options.cases:
        for precision in options.precision:
            for boxes, counts in of_images.items() if kind not in ("captions", "query") else [("", of_images[options.boxes[0]])]:
                own = {"tokens": tokens[: options.captions] if kind == "captions" else tokens, "boxes": counts, "precision": precision, "kind": kind}
                found[" ".join(filter(None, (kind, precision, boxes)))] = values | own
    return found


def main(options: Options) -> None:
    claim_output(options.out)
    cases, folders = cases_of(options), {"other": real_path(options.other), "this": ROOT}
    times = {name: {version: [] for version in folders} for name in cases}
    with ProgressBar(what="measuring", total=options.rounds * len(cases), unit="measurement") as bar:
        for name, case in cases.items():
            versions = {version: Version(folder, options) for version, folder in folders.items()}
            for _ in range(options.rounds):
                for version, process in versions.items():
                    times[name][version].append(process.seconds_each(case, options.clock))
                bar.update()
            for each in versions.values():
                each.process.communicate()  # no further case: its memory is free
    rows, device = {}, device_name(torch.device("cpu"))
    print(f"{'case':26}{'other':>11}{'this':>11} items/s{'faster':>9}{'spread':>15}")
    for name, found in times.items():
        ratios = [before / now for before, now in zip(found["other"], found["this"], strict=True)]
        rates, each = {version: 1 / statistics.median(seconds) for version, seconds in found.items()}, spread(ratios)
        rows[name] = {"items_per_s": rates, "faster": each, "seconds_per_item": found}
        print(f"{name:26}{rates['other']:11.1f}{rates['this']:11.1f}        {each['median']:9.2f}{each['min']:8.2f}–{each['max']:<6.2f}")
    write_json(options.out, {"rows": rows, "device": device, "options": cli.to_dict(options), "environment": environment()})
    print(f"{device}; results: {options.out}")


if __name__ == "__main__":
    cli.run(main, Options, often="out cases precision boxes batch budget rounds seconds threads clock hidden_size num_hidden_layers")
