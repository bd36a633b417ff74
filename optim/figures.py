"""Curves of runs, drawn: a panel for each metric, a line for each run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from optim.curves import Curve, smooth_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3
# What a panel's vertical axis says of the metrics that a pattern matches whole: the unit, or what is counted.
UNITS = (
    (r".*/((TR|IR)@\d+|AR)", "recall, %"),
    (r".*/acc", "share of predictions"),
    (r".*loss", "loss"),
    (r"lr", "learning rate"),
    (r"loss_scale", "factor"),
    (r"grad_norm", "L2 norm"),
    (r"passes/.*|epoch", "passes over the pairs"),
    (r"speed/pairs_per_s", "pairs/s"),
    (r"speed/waiting_for_data", "time, %"),
    (r"memory/.*_gib", "GiB"),
)


def unit_of(metric: str) -> str:
    """What the numbers of a metric are; empty where that is not known."""
    return next((unit for pattern, unit in UNITS if re.fullmatch(pattern, metric)), "")


def is_recall(metric: str) -> bool:
    """Whether a metric is a recall or the mean of recalls, in percent."""
    return unit_of(metric) == UNITS[0][1]


def default_metrics(known: Sequence[str]) -> list[str]:
    """What to draw where nobody says it: the recall of validation, of all languages together; where there is none, the losses."""
    recall = [name for name in known if is_recall(name)]
    return [name for name in recall if "/all/" in name] or recall or [name for name in known if name.endswith("loss")]


def finite_points(curve: Curve) -> Curve:
    """The points of a curve that are numbers and can be drawn."""
    return [(step, value) for step, value in curve if isinstance(value, int | float) and abs(value) < 1e300]


def draw_curves(
    runs: Mapping[str, Mapping[str, Curve]], metrics: Sequence[str], title: str, smooth: int = 1, columns: int = COLUMNS
) -> Figure:
    """Draw the metrics of some runs; a curve of one point is a point. The panels of the last row share its width.

    Args:
        runs: name of a run → metric → curve
        metrics: each has a finite point in some run
        smooth: points of a curve that are averaged into each point drawn
    """
    from matplotlib.figure import Figure  # slow to import

    columns = min(columns, len(metrics))
    rows = -(-len(metrics) // columns)
    last = len(metrics) - columns * (rows - 1)
    figure = Figure(figsize=(4.6 * columns, 3.1 * rows + 0.7), layout="constrained")
    grid = figure.add_gridspec(rows, math.lcm(columns, last))
    colours: dict[str, str] = {}
    handles = {}
    for number, metric in enumerate(metrics):
        row, column = divmod(number, columns)
        width = grid.ncols // (last if row == rows - 1 else columns)
        axis = figure.add_subplot(grid[row, column * width : (column + 1) * width])
        for run, curves in runs.items():
            points = finite_points(curves.get(metric, []))
            if points:
                steps, values = smooth_curve(points, smooth)
                colour = colours.setdefault(run, f"C{len(colours) % 10}")
                handles[run] = axis.plot(steps, values, label=run, linewidth=1.3, color=colour, marker="o" if len(steps) == 1 else None)[0]
        axis.set_title(metric, fontsize=10)
        axis.set(xlabel="updates", ylabel=unit_of(metric))
        axis.grid(color="0.9", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.ticklabel_format(axis="both", style="sci", scilimits=(-3, 5), useMathText=True)
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title, fontsize=13)
    if len(runs) > 1:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
    return figure
