#!/usr/bin/env python
"""Draw the curves of several runs beside each other, from their metrics.jsonl.

python scripts/plot_runs.py --runs runs/fp32 runs/bf16 runs/fp16 --out benchmarks/precision.png
python scripts/plot_runs.py --runs runs/a runs/b --metrics val/all/AR train/cmr/loss --smooth 5
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli
from data.errors import BadInput
from data.storage.atomic import atomic_file
from data.storage.locks import claim_output
from data.storage.text_files import write_json
from optim.curves import read_curves, smooth_curve


@dataclass
class Options:
    """Draw the curves of several runs beside each other.

    Args:
        runs: folders of runs
        out: PNG to write; the same name with .json gets the numbers
        metrics: names in metrics.jsonl; none: the losses of training
        smooth: points of a curve that are averaged into each point drawn
    """

    runs: list[str]
    out: str = "curves.png"
    metrics: list[str] | None = None
    smooth: int = 1

    def __post_init__(self):
        if len({Path(run).name for run in self.runs}) < len(self.runs):
            raise BadInput(f"runs: {' '.join(self.runs)} must have different names, curves are called by them")
        if self.smooth < 1:
            raise BadInput(f"smooth must be at least 1, found {self.smooth}")


def main(options: Options) -> None:
    claim_output(options.out)
    import matplotlib  # slow to import

    matplotlib.use("agg")  # before pyplot: there may be no screen
    from matplotlib import pyplot as plt  # slow to import

    curves = {Path(run).name: read_curves(run) for run in options.runs}
    known = list(dict.fromkeys(name for curves_of_run in curves.values() for name in curves_of_run))
    metrics = options.metrics or [name for name in known if name.startswith("train/")]
    missing = [name for name in metrics if name not in known]
    if missing or not metrics:
        raise BadInput(
            f"{options.runs[0]}/metrics.jsonl: no metric {missing or 'train/...'}; there are {', '.join(known)}"
        )
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(5 * columns, 3.5 * rows), squeeze=False, layout="constrained")
    numbers: dict[str, dict] = {}
    for axis, name in zip(axes.flat, metrics):
        for run, curves_of_run in curves.items():
            if name in curves_of_run:
                steps, values = smooth_curve(curves_of_run[name], options.smooth)
                axis.plot(steps, values, label=run, linewidth=1)
                numbers.setdefault(name, {})[run] = {"steps": steps.tolist(), "values": values.tolist()}
        axis.set(title=name, xlabel="update")
        axis.legend()
    for axis in axes.flat[len(metrics) :]:
        axis.remove()
    with atomic_file(options.out) as path:
        figure.savefig(path, format="png", dpi=120)
    plt.close(figure)
    write_json(Path(options.out).with_suffix(".json"), numbers, indent=None)
    for name, runs in numbers.items():
        print(name, *(f"{run} {curve['values'][-1]:.4g}" for run, curve in runs.items()), sep="  ")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    cli.run(main, Options)
