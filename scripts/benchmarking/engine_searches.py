"""Search engines asked in turns: milliseconds of a query, and whether they find what the exact search finds."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from data.progress import ProgressBar
from data.search.base import SearchBackend
from scripts.benchmarking.retrieval_report import BATCH


def measured_searches(systems: dict[str, SearchBackend], asked: np.ndarray, k: int) -> dict[str, dict[str, Any]]:
    """Of each system: milliseconds of one query and of ``BATCH`` at once, and the share of its ids that the exact backend finds."""
    alone, together = ({name: [] for name in systems} for _ in range(2))
    ids: dict[str, list[set[str]]] = {name: [] for name in systems}
    for search in systems.values():
        search.search(asked[:BATCH], k)  # pages in what is read
    with ProgressBar(what="asking", total=len(asked) * 2, unit="query") as bar:
        for times, at_once in ((alone, 1), (together, BATCH)):
            for first in range(0, len(asked), at_once):
                for name, search in systems.items():
                    started = time.perf_counter()
                    _, rows = search.search(asked[first : first + at_once], k)
                    times[name].append((time.perf_counter() - started) * 1e3)
                    if at_once == BATCH:
                        found = np.reshape(search.ids(rows.ravel()), rows.shape)
                        ids[name] += [set(row) for row in found.tolist()]
                bar.update(at_once)
    return {
        name: {
            "one": milliseconds(alone[name]),
            f"batch of {BATCH}": milliseconds(together[name]),
            "same_ids": float(np.mean([len(own & right) / k for own, right in zip(ids[name], ids["exact"])])),
        }
        for name in systems
    }


def milliseconds(times: list[float]) -> dict[str, float]:
    """The middle one, and what 95 of 100 are below."""
    return {"median": float(np.median(times)), "95th": float(np.percentile(times, 95))}


def print_table(results: dict[str, Any]) -> None:
    """The table."""
    options = results["options"]
    print(f"{options['images']:,} x {options['dim']}, {options['k']} results; milliseconds: median (95th percentile)")
    print(f"{'':10}{'export, s':>10}{'one query':>20}{f'{BATCH} at once':>20}   ids of the exact search")
    for name, each in results["search"].items():
        export = f"{results['export_seconds'][name]:.1f}" if name in results["export_seconds"] else ""
        one, together = (f"{found['median']:.2f} ({found['95th']:.2f})" for found in (each["one"], each[f"batch of {BATCH}"]))
        print(f"{name:10}{export:>10}{one:>20}{together:>20}   {each['same_ids']:.4f}")
