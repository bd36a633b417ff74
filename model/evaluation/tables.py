"""Tables of recall, as they are printed and as ``results.json`` holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.evaluation.outcomes import QueryRanks
from model.evaluation.recall import format_table, mean_table, recall_table, with_mean
from model.evaluation.statistics import Units, format_interval, intervals, resampled_recall


@dataclass
class Table:
    """Recall in one task, with one way to rank or to count.

    Attributes:
        name: of the task: a language, ``all``, ``chance``, or ``mean of 5 x 1K``
        recall: metric → percent
        intervals: metric → {"low", "high"} of 95%; None: there are none
        note: what is special about ranking or counting, as ``duplicate-aware``; the printed row starts with it
        printed: whether it is a row of what is printed
        queries: numbers of queries, ``images`` and ``texts``
    """

    name: str
    recall: dict[str, float]
    intervals: dict[str, dict[str, float]] | None = None
    note: str = ""
    printed: bool = True
    queries: dict[str, int] | None = None

    @property
    def row_name(self) -> str:
        """What the printed row starts with."""
        return self.name if not self.note else self.note + f" {self.name}" * (self.name != "all")


def task_tables(ranks: dict[str, QueryRanks], resamples: int, units: Units, note: str = "") -> list[Table]:
    """Tables of several tasks and of their mean, ``all``, with 95% intervals; without them for 0 resamples."""
    recall = with_mean({name: recall_table(task.t2i, task.i2t) for name, task in ranks.items()})
    bounds: dict[str, dict] = {}
    if resamples:
        by_task = resampled_recall([list(ranks.values())], resamples, units)[:, 0]  # [B,L,7]
        samples = {name: by_task[:, number] for number, name in enumerate(ranks)}
        samples.setdefault("all", by_task.mean(axis=1))
        bounds = {name: intervals(each) for name, each in samples.items()}
    counts = query_counts(ranks)
    return [Table(name, table, bounds.get(name), note, queries=counts[name]) for name, table in recall.items()]


def query_counts(ranks: dict[str, QueryRanks]) -> dict[str, dict[str, int]]:
    """Task → numbers of its queries; ``all``: of the queries of all tasks."""
    counts = {name: {"images": len(task.i2t), "texts": len(task.t2i)} for name, task in ranks.items()}
    return counts | {"all": {kind: sum(each[kind] for each in counts.values()) for kind in ("images", "texts")}}


def mean_of_tasks(name: str, ranks: Sequence[QueryRanks], resamples: int, units: Units) -> Table:
    """The mean of tasks that share no query, so that each is drawn from by itself."""
    mean = mean_table([recall_table(task.t2i, task.i2t) for task in ranks])
    counts = query_counts(dict(enumerate(ranks)))["all"]
    if not resamples:
        return Table(name, mean, queries=counts)
    samples = [resampled_recall([[task]], resamples, units, [0, number])[:, 0, 0] for number, task in enumerate(ranks)]
    return Table(name, mean, intervals(np.mean(samples, axis=0)), queries=counts)


def as_json(tables: Sequence[Table]) -> dict[str, dict]:
    """``recall``, ``intervals`` and numbers of ``queries`` of tables, by their names."""
    bounds = {table.name: table.intervals for table in tables if table.intervals is not None}
    counts = {table.name: table.queries for table in tables if table.queries is not None}
    return {"recall": {table.name: table.recall for table in tables}, "intervals": bounds, "queries": counts}


def format_recall(tables: Sequence[Table], candidates: dict[str, dict[str, int]] | None = None) -> str:
    """The rows that are printed, as aligned text: recall, how many images and texts were queries, and among how many ``candidates``
    of a table's name, where those are given."""
    among = {name: {"in imgs": each["images"], "in txts": each["texts"]} for name, each in (candidates or {}).items()}
    rows = [table for table in tables if table.printed]
    return format_table({table.row_name: table.recall | (table.queries or {}) | among.get(table.name, {}) for table in rows})


def format_intervals(tables: Sequence[Table]) -> str:
    """The intervals of the rows that are printed and have any."""
    rows = {table.row_name: table.intervals for table in tables if table.printed and table.intervals is not None}
    return format_table(rows, format_interval, column=15)
