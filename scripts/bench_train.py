#!/usr/bin/env python
"""Measure training steps: pairs and tokens per second, share of the machine's peak, memory; each objective, size, precision.

python scripts/bench_train.py --batch 16 64 --precision fp32 bf16 --out benchmarks/train_cpu.json
torchrun --nproc-per-node 2 scripts/bench_train.py --batch 16 --out benchmarks/train_cpu_2.json
python scripts/bench_train.py --batch 64 256 1024 4096 --precision bf16 fp16 fp32 --compiled false true    # on a GPU
python scripts/bench_train.py --tasks cmr --batch 4096 --grad-cache 0 64 --hidden-size 384 --num-hidden-layers 6

All cases are measured in turns, round after round in one run, so that a machine that speeds up or slows down does so for
all of them. A step is forward, backward, exchange of gradients between ranks, clipping and AdamW, on random input of one
length; data loading is not in it. The peak is a large matrix product in the same precision, measured in the same turns.
"waits" is the share of a step after backward in which a rank waits for the gradients of others.
"""

import itertools
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli  # isort: skip (before torch)
import torch

from data.errors import BadInput
from data.storage.text_files import write_json
from model import costs
from model.distributed import Backend, Ranks, start_ranks
from model.gradient_exchange import GradientFormat
from model.objectives import OBJECTIVES
from model.objectives.heads import PAPER
from model.precision import Precision, choose_device
from optim.run import environment
from scripts.benchmarking.measuring import device_name, spread
from scripts.benchmarking.random_batches import Sizes
from scripts.benchmarking.timed_rounds import Measured, measure
from scripts.benchmarking.timed_steps import Case, TimedModel


@dataclass(kw_only=True)
class Options(Sizes):
    """Measure training steps on random input.

    Args:
        out: JSON file to write
        tasks: objectives
        batch: pairs of a batch on one rank
        precision: of matrix products
        compiled: whether torch.compile fuses what stands between the blocks' products
        grad_cache: rows that cmr embeds at a time; 0: all at once. The other objectives take 0 only
        gradient_format: in which ranks send each other gradients
        activation_checkpointing: compute activations again in backward
        rounds: measurements of every case
        seconds: a measurement takes steps until so long has passed
        device: auto, cpu, cuda or cuda:N
        distributed: auto, torch, horovod or none
        threads: of the CPU, each rank; 0: as torch chooses
    """

    out: str = "benchmarks/train.json"
    tasks: list[str] = field(default_factory=lambda: list(PAPER))
    batch: list[int] = field(default_factory=lambda: [16])
    precision: list[Precision] = field(default_factory=lambda: ["fp32"])
    compiled: list[Literal["false", "true"]] = field(default_factory=lambda: ["false"])
    grad_cache: list[int] = field(default_factory=lambda: [0])
    gradient_format: list[GradientFormat] = field(default_factory=lambda: ["fp32"])
    activation_checkpointing: bool = False
    rounds: int = 3
    seconds: float = 2.0
    device: str = "auto"
    distributed: Backend = "auto"
    threads: int = 0

    def __post_init__(self):
        super().__post_init__()
        if unknown := [task for task in self.tasks if task not in OBJECTIVES]:
            raise BadInput(f"tasks: unknown task {unknown[0]!r}; tasks are {', '.join(OBJECTIVES)}")
        if min(self.rounds, *self.batch) < 1:
            raise BadInput("rounds and batch must be at least 1")


def main(options: Options) -> None:
    device = choose_device(options.device)
    ranks = start_ranks(options.distributed, device.type == "cuda", timeout=1800)
    ranks.claim_output(options.out)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    switches = [value == "true" for value in options.compiled]
    timed = TimedModel(options, options.activation_checkpointing, device, ranks)
    axes = options.tasks, options.batch, options.precision, switches, options.grad_cache, options.gradient_format
    cases = [Case(*each) for each in itertools.product(*axes) if each[0] == "cmr" or not each[4]]
    found = measure(timed, cases, options.rounds, options.seconds)
    rows = [_row(options, timed, case, found) for case in cases]
    ranks.barrier()
    ranks.close()
    if ranks.is_first:
        report(options, rows, found.peaks, device, ranks)


def _row(options: Options, timed: TimedModel, case: Case, found: Measured) -> dict:
    ranks = timed.ranks
    sizes, is_low = (case.batch, options.words, options.regions), case.precision != "fp32"
    load = costs.Load(*sizes, ranks=ranks.size, grad_cache=case.grad_cache, low_precision=is_low)
    works = OBJECTIVES[case.task]().work(timed.model, timed.heads, load)
    flops = sum(costs.step_flops(works).values())  # of one rank
    pairs, median = case.batch * ranks.size, statistics.median(found.seconds[case])
    return asdict(case) | {
        "seconds_per_step": spread(found.seconds[case]),
        "share_waiting_for_gradients": statistics.median(found.waits[case]) / median,
        "pairs_per_s": pairs / median,
        "tokens_per_s": pairs * (load.txt_length + load.img_length) / median,
        "flops_per_step_and_rank": flops,
        "share_of_peak": flops / median / statistics.median(found.peaks[case.precision]),
        "peak_memory_gib": found.memory[case] / 2**30,
    }


def report(options: Options, rows: list[dict], peaks: dict, device: torch.device, ranks: Ranks) -> None:
    results = {
        "rows": rows,
        "peak_tflops": {precision: spread([flops / 1e12 for flops in found]) for precision, found in peaks.items()},
        "ranks": ranks.size,
        "backend": ranks.backend,
        "device": device_name(device),
        "options": cli.to_dict(options),
        "environment": environment(),
    }
    write_json(options.out, results)
    for precision, found in results["peak_tflops"].items():
        print(f"peak {precision}: {found['median']:.3g} TFLOP/s ({found['min']:.3g} to {found['max']:.3g}), one rank")
    print(
        f"{'task':6}{'batch':>6} {'precision':9} {'':9}{'cache':>6}{'s/step':>8}{'spread':>15}{'pairs/s':>9}{'tokens/s':>10}{'peak':>6}{'GiB':>6}"
        f"{'sent':>6}{'waits':>6}"
    )
    for row in rows:
        each = row["seconds_per_step"]
        print(
            f"{row['task']:6}{row['batch']:6} {row['precision']:9} {'compiled' if row['compiled'] else 'eager':9}"
            f"{row['grad_cache'] or '':>6}{each['median']:8.3f}{each['min']:8.3f}–{each['max']:<6.3f}{row['pairs_per_s']:9.1f}"
            f"{row['tokens_per_s']:10.0f}{row['share_of_peak']:6.0%}{row['peak_memory_gib']:6.1f}"
            f"{row['gradient_format']:>6}{row['share_waiting_for_gradients']:6.1%}"
        )
    print(f"{ranks.size} rank(s) on {results['device']}; results: {options.out}")


if __name__ == "__main__":
    cli.run(main, Options, often="out tasks batch precision compiled grad_cache words regions hidden_size num_hidden_layers rounds seconds device threads")
