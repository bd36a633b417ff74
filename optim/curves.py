"""Curves of runs, read back from their metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from data.errors import BadInput
from data.storage.text_files import read_lines

Curve = list[tuple[int, float]]  # (step, value) in the order they were logged


def read_curves(run: str | Path) -> dict[str, Curve]:
    """Read the curves of a run's folder: metric → curve.

    Raises:
        BadInput: the folder holds no metrics.jsonl, or a line of it is none of metrics.
    """
    path = Path(run, "metrics.jsonl")
    curves: dict[str, Curve] = {}
    for number, line in enumerate(read_lines(path, "give the folder of a run"), 1):
        try:
            values = json.loads(line)
            step = values.pop("step")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise BadInput(f"{path}: line {number} is no line of metrics ({error!r})") from None
        for name, value in values.items():
            curves.setdefault(name, []).append((step, value))
    return curves


def smooth_curve(curve: Curve, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Average ``points`` neighbours of a curve, or all where it has fewer → steps and values of the means."""
    points = min(points, len(curve))
    steps, values = np.array(curve, dtype=float).T
    window = np.ones(points) / points
    return np.convolve(steps, window, "valid"), np.convolve(values, window, "valid")
