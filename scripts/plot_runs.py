#!/usr/bin/env python
"""Draw the curves of several runs beside each other, from their metrics.jsonl.

python scripts/plot_runs.py runs/a runs/b                                              # recall of validation, else the losses
python scripts/plot_runs.py runs/a runs/b --metrics val/all/AR --title "two runs" --out two.png
python scripts/plot_runs.py runs/fp32 runs/bf16 --metrics train/cmr/loss --smooth 5 --out benchmarks/precision.png
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli
from data.errors import BadInput
from data.notices import say
from data.storage.atomic import atomic_file
from data.storage.locks import claim_output
from data.storage.regular_files import real_path
from data.storage.text_files import write_json
from optim.curves import read_curves, smooth_curve
from optim.figures import default_metrics, draw_curves, finite_points


@dataclass
class Options:
    """Draw the curves of several runs beside each other.

    Args:
        runs: folders of runs
        out: PNG to write; the same name with .json gets the numbers
        metrics: names in metrics.jsonl; none: the recall of validation where there is any, else the losses
        smooth: points of a curve that are averaged into each point drawn
        title: above the panels; none: the names of the runs
    """

    runs: list[str]
    out: str = "curves.png"
    metrics: list[str] | None = None
    smooth: int = 1
    title: str | None = None

    def __post_init__(self):
        if len({real_path(run).name for run in self.runs}) < len(self.runs):
            raise BadInput(f"runs: {' '.join(self.runs)} must have different names, curves are called by them")
        if os.path.splitext(self.out)[1] == ".json":
            raise BadInput(f"out: {self.out} is where the numbers are written; give a name of the picture that ends in .png")
        if self.smooth < 1:
            raise BadInput(f"smooth must be at least 1, found {self.smooth}")


def main(options: Options) -> None:
    claim_output(options.out)
    curves = {real_path(run).name: read_curves(run) for run in options.runs}
    known = list(dict.fromkeys(name for curves_of_run in curves.values() for name in curves_of_run))
    metrics = list(dict.fromkeys(options.metrics or default_metrics(known)))
    missing = [name for name in metrics if name not in known]
    if missing or not metrics:
        raise BadInput(
            f"{options.runs[0]}/metrics.jsonl: no metric {missing or 'of recall or loss'}; there are {', '.join(known)}"
        )
    numbers: dict[str, dict] = {}
    for name in metrics:
        for run, curves_of_run in curves.items():
            if points := finite_points(curves_of_run.get(name, [])):
                steps, values = smooth_curve(points, options.smooth)
                numbers.setdefault(name, {})[run] = {"steps": steps.tolist(), "values": values.tolist()}
    if empty := [name for name in metrics if name not in numbers]:
        say(f"not drawn, for no value is a finite number: {', '.join(empty)}")
    if not numbers:
        raise BadInput(f"{options.runs[0]}/metrics.jsonl: nothing to draw, no value of {', '.join(metrics)} is a finite number")
    drawn = {run: each for run, each in curves.items() if any(run in runs for runs in numbers.values())}
    if absent := [run for run in curves if run not in drawn]:
        say(f"not drawn, for they have no value of {', '.join(numbers)}: {', '.join(absent)}")
    figure = draw_curves(drawn, list(numbers), options.title or ", ".join(drawn), options.smooth)
    with atomic_file(options.out) as path:
        figure.savefig(path, format="png", dpi=120)
    write_json(Path(f"{os.path.splitext(options.out)[0]}.json"), numbers, indent=None)
    for name, runs in numbers.items():
        print(name, *(f"{run} {curve['values'][-1]:.4g}" for run, curve in runs.items()), sep="  ")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    cli.run(main, Options, positional=("runs",))
