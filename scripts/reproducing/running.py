"""Running the steps of tables, and reporting what came out."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from data.errors import BadInput
from data.storage.atomic import atomic_file
from data.storage.locks import claim_output
from data.storage.processes import run_command
from data.storage.text_files import read_json, write_json
from model.evaluation.published import PublishedTable
from model.evaluation.reproduction import Step, TablePlan
from model.evaluation.side_by_side import RowOutcome, outcome_of_row, table_as_markdown, tables_as_markdown
from scripts.reproducing.commands import command_of

LAUNCHERS = {"python": [], "torchrun": ["-m", "torch.distributed.run"]}


def make_tables(tables: Mapping[str, PublishedTable], plans: Mapping[str, TablePlan], gpus: int, out: Path) -> None:
    """Run the steps, each once, and report every table as soon as its own are done."""
    for name in plans:
        claim_output(out / f"{name}.json")
    seconds: dict[Step, float] = {}
    shown: list[tuple[PublishedTable, list[RowOutcome]]] = []
    for name, plan in plans.items():
        for step in plan.steps:
            if step not in seconds:  # tables share steps
                seconds[step] = run(command_of(step, gpus))
        took = {shlex.join(step.words): seconds[step] for step in plan.steps}
        shown.append((tables[name], report(name, tables[name], plan.results, took, out)))
    if len(shown) > 1:
        text = tables_as_markdown(shown)
        write_text(out / "all.md", text)
        print(f"\n{text}\nall tables: {out / 'all.md'}, {sum(seconds.values()) / 60:.1f} minutes of steps")


def run(words: list[str]) -> float:
    """Run a command that begins with python or torchrun → the seconds it took. Raises BadInput where it fails."""
    print(f"$ {shlex.join(words)}", flush=True)
    started = time.perf_counter()
    if run_command([sys.executable, *LAUNCHERS[words[0]], *words[1:]]):
        raise BadInput(f"stopped at: {shlex.join(words)}")
    return round(time.perf_counter() - started, 1)


def report(name: str, table: PublishedTable, results: list[Path], seconds: dict[str, float], out: Path) -> list[RowOutcome]:
    """Print and write what was published of a table and what was measured, side by side."""
    rows = [outcome_of_row(row, read_json(path), str(path)) for row, path in zip(table.rows, results, strict=True)]
    text = table_as_markdown(table, rows)
    print(f"\n{text}")
    write_text(out / f"{name}.md", text)
    as_json = [row.as_json() | {"results": str(path)} for row, path in zip(rows, results, strict=True)]
    write_json(out / f"{name}.json", {"table": name, "title": table.title, "rows": as_json, "seconds": seconds})
    print(f"results: {out / name}.json, {out / name}.md")
    return rows


def write_text(path: Path, text: str) -> None:
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
