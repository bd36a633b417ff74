#!/usr/bin/env python
"""Measure training steps: pairs and tokens per second, share of the machine's peak, memory; each objective, size, precision.

python scripts/bench_train.py --batch 16 64 --precision fp32 bf16 --out benchmarks/train_cpu.json
torchrun --nproc-per-node 2 scripts/bench_train.py --batch 16 --out benchmarks/train_cpu_2.json
python scripts/bench_train.py --batch 64 256 1024 4096 --precision bf16 fp16 fp32 --compiled false true    # on a GPU
python scripts/bench_train.py --tasks cmr --batch 4096 --grad-cache 0 64 --hidden-size 384 --num-hidden-layers 6

All cases are measured in turns, round after round in one run, so that a machine that speeds up or slows down does so for
all of them. A step is forward, backward, exchange of gradients between ranks, clipping and AdamW, on random input of one
length; data loading is not in it. The peak is a large matrix product in the same precision, measured in the same turns.
"""

import functools
import itertools
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

import torch

from configs import cli
from data.batches.batch import Batch
from data.errors import BadInput
from data.storage.text_files import write_json
from model import costs
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.distributed import Backend, Ranks, start
from model.objectives.gradient_cache import cached_backward
from model.objectives.pretraining import TASKS, CmrOptions, PretrainingHeads, forward_task
from model.precision import Precision, autocast, choose_device, loss_scaler
from model.transformer import EncoderConfig
from optim.optimizer import OptimOptions, apply_update, build_optimizer
from optim.run import environment, progress_bar
from scripts.measuring import device_name, matmul_flops, peak_bytes, reset_peak, seconds_each, spread


@dataclass
class Options:
    """Measure training steps on random input.

    Args:
        out: JSON file to write
        tasks: objectives
        batch: pairs of a batch on one rank
        precision: of matrix products
        compiled: whether the towers go through torch.compile
        grad_cache: rows that cmr embeds at a time; 0: all at once. The other objectives take 0 only
        activation_checkpointing: compute activations again in backward
        words: of a caption, [CLS] and [SEP] not included
        regions: of an image
        hidden_size: of both towers
        num_hidden_layers: of both towers
        num_attention_heads: of both towers
        intermediate_size: of both towers
        vocab_size: of both towers
        feature_dim: width of a region feature
        num_labels: classes of the region detector
        project_dim: width of the embedding
        rounds: measurements of every case
        seconds: a measurement takes steps until so long has passed
        device: auto, cpu, cuda or cuda:N
        distributed: auto, torch, horovod or none
        threads: of the CPU, each rank; 0: as torch chooses
    """

    out: str = "benchmarks/train.json"
    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    batch: list[int] = field(default_factory=lambda: [16])
    precision: list[Precision] = field(default_factory=lambda: ["fp32"])
    compiled: list[Literal["false", "true"]] = field(default_factory=lambda: ["false"])
    grad_cache: list[int] = field(default_factory=lambda: [0])
    activation_checkpointing: bool = False
    words: int = 16
    regions: int = 36
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    vocab_size: int = 28996
    feature_dim: int = 2048
    num_labels: int = 1601
    project_dim: int = 768
    rounds: int = 3
    seconds: float = 2.0
    device: str = "auto"
    distributed: Backend = "auto"
    threads: int = 0

    def __post_init__(self):
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown:
            raise BadInput(f"tasks: unknown task {unknown[0]!r}; tasks are {', '.join(TASKS)}")
        if min(self.rounds, *self.batch) < 1:
            raise BadInput("rounds and batch must be at least 1")


@dataclass(frozen=True)
class Case:
    task: str
    batch: int
    precision: Precision
    compiled: bool
    grad_cache: int


def random_batch(options: Options, task: str, pairs: int, device: torch.device) -> Batch:
    """``pairs`` pairs of one length, masked for ``task``."""
    generator = torch.Generator().manual_seed(0)
    length = options.words + 2
    masked = torch.rand(pairs, options.regions, generator=generator) < 0.15
    masked[:, 0] = True
    input_ids = torch.randint(1000, options.vocab_size, (pairs, length), generator=generator)
    features = torch.randn(pairs, options.regions, options.feature_dim, generator=generator).half()
    batch = Batch(
        input_ids,
        torch.ones(pairs, length, dtype=torch.bool),
        features,
        torch.rand(pairs, options.regions, 7, generator=generator),
        torch.ones(pairs, options.regions, dtype=torch.bool),
        torch.arange(pairs),
        [],
        [],
    )
    if task == "vmlm":
        chosen = torch.rand(pairs, length, generator=generator) < 0.15
        chosen[:, 1] = True
        batch.word_labels = torch.where(chosen, input_ids, -1)
    elif task != "cmr":
        batch.masked_regions = masked
        batch.feature_targets = features[masked]
        batch.label_targets = torch.rand(int(masked.sum()), options.num_labels, generator=generator).half()
    return batch.to(device)


class Bench:
    """The model and its optimizer, and steps of any case with them."""

    def __init__(self, options: Options, device: torch.device, ranks: Ranks):
        names = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size".split()
        sizes = EncoderConfig(**{name: getattr(options, name) for name in names})
        widths = {name: getattr(options, name) for name in ("project_dim", "feature_dim", "num_labels")}
        self.options, self.device, self.ranks = options, device, ranks
        self.model = LightningDOT(LightningDOTConfig(txt=sizes, img=sizes, **widths)).to(device).train()
        self.heads = PretrainingHeads(self.model.config).to(device).train()
        for tower in (self.model.txt_model, self.model.img_model):
            tower.bert.encoder.checkpointing = options.activation_checkpointing
        self.eager = self.model.txt_model.bert.encoder, self.model.img_model.bert.encoder
        self.compiled = (
            [torch.compile(encoder, dynamic=False) for encoder in self.eager] if "true" in options.compiled else []
        )
        ranks.broadcast([*self.model.state_dict().values(), *self.heads.state_dict().values()])
        self.optimizer = build_optimizer([self.model, self.heads], OptimOptions(lr=1e-6))

    def step_of(self, case: Case) -> Callable[[], None]:
        """One training step of the case, as a function."""
        towers = self.model.txt_model.bert, self.model.img_model.bert
        for tower, encoder in zip(towers, self.compiled if case.compiled else self.eager, strict=True):
            tower._modules["encoder"] = encoder
        batch = random_batch(self.options, case.task, case.batch, self.device)
        scaler = loss_scaler(self.device, case.precision)
        precision = functools.partial(autocast, self.device, case.precision)
        cmr = CmrOptions()

        def step() -> None:
            met = self.ranks.meet([0], batch.num_rows, batch.num_predictions(case.task))
            if case.grad_cache:
                cached_backward(self.model, batch, case.grad_cache, precision, cmr, self.ranks, met, scaler, 1)
            else:
                with precision():
                    outcome = forward_task(case.task, self.model, self.heads, batch, cmr, self.ranks, met.sizes)
                scaler.scale(outcome.share(met.predictions)).backward()
            apply_update(self.optimizer, scaler, self.ranks, 1e-6, 5.0)

        return step


def main(options: Options) -> None:
    device = choose_device(options.device)
    ranks = start(options.distributed, device.type == "cuda", timeout=1800)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    bench = Bench(options, device, ranks)
    switches = [value == "true" for value in options.compiled]
    cases = [
        Case(*each)
        for each in itertools.product(options.tasks, options.batch, options.precision, switches, options.grad_cache)
        if each[0] == "cmr" or not each[4]
    ]
    seconds: dict[Case, list[float]] = {case: [] for case in cases}
    memory: dict[Case, int] = dict.fromkeys(cases, 0)
    peaks: dict[str, list[float]] = {precision: [] for precision in options.precision}
    with progress_bar(ranks, total=options.rounds * (len(cases) + len(peaks)), unit="case") as bar:
        for _ in range(options.rounds):
            for precision, found in peaks.items():
                found.append(matmul_flops(device, precision, options.seconds / 2))
                bar.update()
            for case in cases:
                reset_peak(device)
                step = bench.step_of(case)
                try:
                    own = seconds_each(step, device, 0 if ranks.size > 1 else options.seconds)
                except torch.cuda.OutOfMemoryError:
                    torch.cuda.empty_cache()
                    own = float("inf")
                seconds[case].append(float(ranks.exchange([own]).max()))  # the slowest rank
                memory[case] = max(memory[case], peak_bytes(device))
                bar.update()
    rows = [_row(options, bench, case, seconds[case], memory[case], peaks, ranks) for case in cases]
    ranks.barrier()
    ranks.close()
    if ranks.is_first:
        report(options, rows, peaks, device, ranks)


def _row(
    options: Options, bench: Bench, case: Case, seconds: list[float], memory: int, peaks: dict, ranks: Ranks
) -> dict:
    load = costs.Load(case.batch, options.words, options.regions, ranks=ranks.size)
    training = costs.Training(
        activation_checkpointing=options.activation_checkpointing,
        grad_cache=case.grad_cache,
        low_precision=case.precision != "fp32",
    )
    flops = sum(costs.step_flops(bench.model.config, case.task, load, training).values())  # of one rank
    pairs, median = case.batch * ranks.size, statistics.median(seconds)
    return asdict(case) | {
        "seconds_per_step": spread(seconds),
        "pairs_per_s": pairs / median,
        "tokens_per_s": pairs * (load.txt_length + load.img_length) / median,
        "flops_per_step_and_rank": flops,
        "share_of_peak": flops / median / statistics.median(peaks[case.precision]),
        "peak_memory_gib": memory / 2**30,
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
    )
    for row in rows:
        each = row["seconds_per_step"]
        print(
            f"{row['task']:6}{row['batch']:6} {row['precision']:9} {'compiled' if row['compiled'] else 'eager':9}"
            f"{row['grad_cache'] or '':>6}{each['median']:8.3f}{each['min']:8.3f}–{each['max']:<6.3f}{row['pairs_per_s']:9.1f}"
            f"{row['tokens_per_s']:10.0f}{row['share_of_peak']:6.0%}{row['peak_memory_gib']:6.1f}"
        )
    print(f"{ranks.size} rank(s) on {results['device']}; results: {options.out}")


if __name__ == "__main__":
    cli.run(main, Options)
