#!/usr/bin/env python
"""Reproduce a published table: check what it needs, run its steps, print paper, original and measured side by side.

python scripts/reproduce.py flickr30k --data-root DATA --dry-run   # what is there, what is missing and how to make it, the steps
python scripts/reproduce.py flickr30k --data-root DATA             # checkpoints/flickr30k where it is there, else trains it
python scripts/reproduce.py all --data-root DATA                   # every published table
python scripts/reproduce.py demo                                   # the same steps on the demo world, after `make demo`
"""

import os
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

import yaml

from configs import cli
from data.errors import BadInput
from data.storage.atomic import atomic_file
from data.storage.locks import claim_output
from data.storage.processes import run_command
from data.storage.text_files import read_json, write_json
from eval_itm import EvalConfig
from model.evaluation.published import compare_with_published
from model.evaluation.recall import format_table
from model.evaluation.reproduction import Places, Recipe, TablePlan, describe_needs
from optim.tasks.pretraining import PretrainConfig
from optim.tasks.retrieval import RetrievalConfig

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {"pretrain": PretrainConfig, "finetune": RetrievalConfig, "eval": EvalConfig}
TableName = Literal["flickr30k", "flickr30k-zeroshot", "coco5k", "coco1k", "demo", "all"]


@dataclass
class Options:
    """Reproduce a published table of recall.

    Args:
        table: flickr30k, flickr30k-zeroshot, coco5k, coco1k; demo: the demo world; all: every one but demo
        data_root: relative folders of databases start here; none: as the recipes say
        checkpoints: folder of weights: pretrained, flickr30k, coco (converted, or trained elsewhere), bert-base-cased
        out: folder of the runs, of TABLE.json and TABLE.txt; trainings that were stopped go on
        pretrain_config: another recipe of pre-training than the table's
        finetune_config: another recipe of fine-tuning, such as configs/finetune/original_flickr30k.yaml
        eval_config: another recipe of evaluation
        dry_run: only say what is there, what is missing and how to make it, and the steps
    """

    table: TableName
    data_root: str | None = None
    checkpoints: str = "checkpoints"
    out: str = "runs/reproduce"
    pretrain_config: str | None = None
    finetune_config: str | None = None
    eval_config: str | None = None
    dry_run: bool = False

    def __post_init__(self):
        if self.table == "all" and (self.pretrain_config or self.finetune_config or self.eval_config):
            raise BadInput("table all: every table has its own recipes; give another recipe for one table at a time")


def main(options: Options) -> None:
    published = yaml.safe_load((ROOT / "configs/published.yaml").read_text(encoding="utf-8"))
    names = [name for name in published if name != "demo"] if options.table == "all" else [options.table]
    plans = {name: plan_table(published[name], options) for name in names}
    needs = list({need.path: need for plan in plans.values() for need in plan.needs}.values())
    sources = yaml.safe_load((ROOT / "configs/sources.yaml").read_text(encoding="utf-8"))
    print(describe_needs(needs, sources, _places(options)), flush=True)
    for name, plan in plans.items():
        print(f"{name}: {published[name]['title']}")
        print("\n".join(f"  {n}. python {shlex.join(step)}" for n, step in enumerate(plan.steps, 1)), flush=True)
    if options.dry_run:
        return
    missing = [str(need.path) for need in needs if need.problem and not need.made]
    if missing:
        raise BadInput(f"{len(missing)} missing: {', '.join(missing)}; the list above says how to make each")

    for name in plans:
        claim_output(Path(options.out) / f"{name}.json")
    seconds: dict[str, float] = {}
    for name, plan in plans.items():
        for step in plan.steps:
            line = shlex.join(step)
            if line not in seconds:  # tables share steps
                seconds[line] = run_step(step)
        report(name, published[name], plan.results, {line: seconds[line] for line in map(shlex.join, plan.steps)}, options.out)


def plan_table(table: dict, options: Options) -> TablePlan:
    """The plan of an entry of configs/published.yaml, with its own recipes where the options name no others."""

    def read_recipe(command: str) -> Recipe:
        path = getattr(options, f"{command}_config") or _recipe_path(table[command])
        return Recipe(path, cli.parse(CONFIGS[command], ["--config", path]))

    return TablePlan(table, _places(options), read_recipe)


def _places(options: Options) -> Places:
    return Places(options.data_root, options.checkpoints, options.out)


def _recipe_path(path: str) -> str:
    """A recipe of ours, as one would type it from here."""
    return os.path.relpath(ROOT / path) if Path.cwd().is_relative_to(ROOT) else str(ROOT / path)


def run_step(step: list[str]) -> float:
    """Run a command → the seconds it took."""
    print(f"$ python {shlex.join(step)}", flush=True)
    started = time.perf_counter()
    if run_command([sys.executable, str(ROOT / step[0]), *step[1:]]):
        raise BadInput(f"stopped at: python {shlex.join(step)}")
    return round(time.perf_counter() - started, 1)


def report(name: str, table: dict, results_path: Path, seconds: dict[str, float], out: str) -> None:
    """Print and write paper, original repository and measured side by side."""
    results = read_json(results_path)
    comparison = compare_with_published(table, results, str(results_path))
    counts = f"{results['images']:,} images, {results['captions']:,} captions"
    header = f"{table['title']}: {results['config']['checkpoint']} on {counts}, in percent"
    text = f"{header}\n\n{format_table(comparison.rows(), str, 21)}\n"
    print(f"\n{text}")
    summary = {
        "table": name,
        "title": table["title"],
        **comparison.published,
        "measured": comparison.measured,
        "intervals": comparison.intervals,
        "seconds": seconds,
        "results": str(results_path),
        "environment": results["environment"],
    }
    with atomic_file(Path(out) / f"{name}.txt") as path:
        path.write_text(text, encoding="utf-8")
    write_json(Path(out) / f"{name}.json", summary)
    print(f"results: {Path(out) / name}.json")


if __name__ == "__main__":
    cli.run(main, Options, positional=("table",))
