#!/usr/bin/env python
"""The search service under load: requests per second and latency, together and one at a time; minutes of mixed load.

python scripts/bench_serve.py --out benchmarks/serve_cpu.json          # all of it; half an hour on two CPU cores, after make demo
python scripts/bench_serve.py --galleries demo --seconds 5 --mixed.minutes 1
python scripts/bench_serve.py --galleries drawn --clients 1 32 --precision bf16 --mixed.minutes 0 --out benchmarks/serve_bf16.json

Two services of the same index run side by side, one of which answers queries one at a time; they are asked in turns, round after
round, so that a machine that speeds up or slows down does so for both. The clients are on the same machine and take their share
of it. Every answer is compared with the dot products of all vectors. Only 127.0.0.1 is asked.
"""

import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli  # isort: skip (before torch)
import torch

from data.errors import BadInput
from data.storage.locks import claim_output
from data.storage.text_files import write_json
from model.precision import Precision
from optim.run import environment
from scripts.benchmarking.measuring import device_name, refuse_empty_lists, refuse_plot_in_results
from scripts.benchmarking.serving_galleries import (
    ServedGallery,
    Sizes,
    demo_gallery,
    drawn_gallery,
    running_service,
)
from scripts.benchmarking.serving_load import Request, load_service, search_request
from scripts.benchmarking.serving_mixed import MixedOptions, mixed_load
from scripts.benchmarking.serving_report import plot, print_table
from scripts.benchmarking.work_folder import work_folder

WAYS = {"one at a time": ["--service.batch-size", "1", "--service.batch-ms", "0"], "together": []}


@dataclass
class Options:
    """Measure the search service under load.

    Args:
        out: JSON file to write; the same name with .png gets the plot
        work: folder for the model and the indexes, 2 GB; deleted at the end
        galleries: demo, what make demo made; drawn, towers of BERT-base and as many images as COCO has
        demo: folder that make demo wrote
        clients: connections at once
        seconds: of each measurement
        rounds: measurements of each number of clients; the middle one counts
        k: results of a query
        precision: of the models
        sizes: of what is drawn
        mixed: minutes of mixed load, with updates of the index
    """

    out: str = "benchmarks/serve.json"
    work: str = "bench_serve_work"
    galleries: list[Literal["demo", "drawn"]] = field(default_factory=lambda: ["demo", "drawn"])
    demo: str = "runs/demo"
    clients: list[int] = field(default_factory=lambda: [1, 8, 32, 128])
    seconds: float = 20.0
    rounds: int = 3
    k: int = 10
    precision: Precision = "fp32"
    sizes: Sizes = field(default_factory=Sizes)
    mixed: MixedOptions = field(default_factory=MixedOptions)

    def __post_init__(self):
        refuse_empty_lists(self)
        refuse_plot_in_results(self.out)
        if min(self.rounds, self.k, *self.clients) < 1 or self.seconds <= 0:
            raise BadInput("rounds, k and clients must be at least 1, seconds more than 0")
        if self.mixed.minutes and self.mixed.gallery not in self.galleries:
            raise BadInput(f"mixed.gallery is {self.mixed.gallery!r}, expected one of --galleries, {', '.join(self.galleries)}")


def main(options: Options) -> None:
    claim_output(options.out)
    results: dict[str, Any] = {"galleries": [], "mixed": None}
    with work_folder(options.work) as work:
        for name in options.galleries:
            if name == "demo":
                gallery = demo_gallery(Path(options.demo), work, options.precision)
            else:
                gallery = drawn_gallery(options.sizes, work, options.precision)
            results["galleries"].append({"name": gallery.name, "loads": loads(gallery, options)})
            if options.mixed.minutes and name == options.mixed.gallery:
                with running_service(gallery.words) as (port, process):
                    results["mixed"] = {"name": gallery.name} | mixed_load(gallery, port, process, options.mixed)
    results |= {"device": device_name(torch.device("cpu")), "options": cli.to_dict(options), "environment": environment()}
    results["options"] = {name: value for name, value in results["options"].items() if name not in ("work", "out", "demo")}
    write_json(options.out, results)
    print_table(results)
    plot(results, Path(options.out).with_suffix(".png"))
    print(f"results: {options.out} and {Path(options.out).with_suffix('.png')}")


def loads(gallery: ServedGallery, options: Options) -> list[dict[str, Any]]:
    """By the number of clients what each way to serve gives: its middle round."""

    def request(client: int, number: int) -> Request:
        query = (client * 31 + number) % len(gallery.texts)
        return search_request(lambda body: gallery.is_right(query, options.k, body), text=gallery.texts[query], k=options.k)

    with running_service([*gallery.words, *WAYS["one at a time"]]) as one, running_service(gallery.words) as together:
        ports = {"one at a time": one[0], "together": together[0]}
        for port in ports.values():
            load_service(port, 4, 2, request)  # pages in what is read
        found = []
        for clients in options.clients:
            rounds: dict[str, list[dict]] = {name: [] for name in WAYS}
            for _ in range(options.rounds):
                for name, port in ports.items():
                    rounds[name].append(load_service(port, clients, options.seconds, request).as_json())
            row = {name: _middle(each) for name, each in rounds.items()}
            times = row["together"]["requests_per_second"] / row["one at a time"]["requests_per_second"]
            found.append({"clients": clients, **row, "times": times})
    return found


def _middle(rounds: list[dict]) -> dict:
    """The round of middle throughput; what was wrong in any of them."""
    middle = statistics.median_low(each["requests_per_second"] for each in rounds)
    chosen = next(each for each in rounds if each["requests_per_second"] == middle)
    return chosen | {"wrong": sum(each["wrong"] for each in rounds)}


if __name__ == "__main__":
    cli.run(main, Options, often="out demo galleries clients seconds rounds k precision work mixed.minutes")
