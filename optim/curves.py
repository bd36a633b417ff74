"""Curves of runs, read back from their metrics.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data.storage.shapes import check_shape
from data.storage.text_files import parse_json, read_lines

Curve = list[tuple[int, float]]  # (step, value) in the order they were logged
METRICS = {"step": int, str: object}  # a line of metrics.jsonl


def read_curves(run: str | Path) -> dict[str, Curve]:
    """Read the curves of a run's folder: metric → curve.

    Raises:
        BadInput: the folder holds no metrics.jsonl, or a line of it is none of metrics.
    """
    path = Path(run, "metrics.jsonl")
    curves: dict[str, Curve] = {}
    for number, line in enumerate(read_lines(path, "give the folder of a run"), 1):
        values = metrics_of_line(line, f"{path}: line {number}")
        step = values.pop("step")
        for name, value in values.items():
            curves.setdefault(name, []).append((step, value))
    return curves


def metrics_of_line(line: str, where: str) -> dict[str, Any]:
    """The values of a line of metrics.jsonl, ``step`` among them. Raises BadInput, about ``where``, for another line."""
    values = parse_json(line, where)
    check_shape(values, METRICS, where)
    return values


def smooth_curve(curve: Curve, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Average ``points`` neighbours of a curve, or all where it has fewer → steps and values of the means."""
    points = min(points, len(curve))
    steps, values = np.array(curve, dtype=float).T
    window = np.ones(points) / points
    return np.convolve(steps, window, "valid"), np.convolve(values, window, "valid")
