#!/usr/bin/env python
"""Reproduce a published table: check what it needs, run its steps, print paper, original and measured side by side.

python scripts/reproduce.py flickr30k --data-root DATA --dry-run   # what is there, what is missing and how to make it, the steps
python scripts/reproduce.py flickr30k --data-root DATA             # checkpoints/flickr30k where it is there, else trains it
python scripts/reproduce.py all --data-root DATA                   # every published table
python scripts/reproduce.py demo                                   # the same steps on the demo world, after `make demo`
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

import yaml

from configs import cli
from data.captions.db import CaptionDB
from data.errors import BadInput
from data.regions.db import BoxOptions, RegionDB
from data.storage.atomic import atomic_file
from model.checkpoints import read_config, read_json
from model.evaluation.recall import METRICS, format_table
from model.evaluation.statistics import format_interval

ROOT = Path(__file__).resolve().parents[1]
Names = str | list[str]  # a database, or several that are joined
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


@dataclass
class Need:
    """A database or weights.

    Attributes:
        path: where it has to be
        key: its name in configs/sources.yaml
        problem: what is wrong with it; none: it is there
        made: a step makes it, where it is not there
    """

    path: Path
    key: str
    problem: str | None
    made: bool = False


@dataclass
class Plan:
    """How a table is made.

    Attributes:
        needs: databases and weights
        steps: commands, without `python`
        results: what the last step writes
    """

    needs: list[Need] = field(default_factory=list)
    steps: list[list[str]] = field(default_factory=list)
    results: Path | None = None


def main(options: Options) -> None:
    published = yaml.safe_load((ROOT / "configs/published.yaml").read_text(encoding="utf-8"))
    names = [name for name in published if name != "demo"] if options.table == "all" else [options.table]
    plans = {name: make_plan(published[name], options) for name in names}
    needs = list({need.path: need for plan in plans.values() for need in plan.needs}.values())
    show_needs(needs, options)
    for name, plan in plans.items():
        print(f"{name}: {published[name]['title']}")
        print("\n".join(f"  {n}. python {shlex.join(step)}" for n, step in enumerate(plan.steps, 1)), flush=True)
    if options.dry_run:
        return
    missing = [str(need.path) for need in needs if need.problem and not need.made]
    if missing:
        raise BadInput(f"{len(missing)} missing: {', '.join(missing)}; the list above says how to make each")

    seconds: dict[str, float] = {}
    for name, plan in plans.items():
        for step in plan.steps:
            line = shlex.join(step)
            if line not in seconds:  # tables share steps
                seconds[line] = _run(step)
        report(name, published[name], plan, {line: seconds[line] for line in map(shlex.join, plan.steps)}, options.out)


# ---- what is needed --------------------------------------------------------------------------------------------------


def make_plan(table: dict, options: Options) -> Plan:
    """Evaluate the table's checkpoint where it is there, else fine-tune it from the pre-trained one, else pre-train too."""
    from eval_itm import EvalConfig

    plan = Plan()
    recipe = options.eval_config or _recipe(table["eval"])
    config = cli.parse(EvalConfig, ["--config", recipe])
    root = Path(options.data_root or config.data_root)
    checkpoint = _checkpoint(table["checkpoint"], plan, options)
    if checkpoint is None:
        checkpoint = _train(table, plan, options)
    _databases(plan, root, config.boxes, [(config.captions, config.regions)])
    source = checkpoint.parent if checkpoint.name in ("last", "best") else checkpoint
    folder = Path(options.out) / "eval" / f"{source.name}_{Path(recipe).stem}"
    words = ["--config", recipe, "--data-root", str(root), "--checkpoint", str(checkpoint), "--output-dir", str(folder)]
    plan.steps.append(["eval_itm.py", *words])
    plan.results = folder / "results.json"
    return plan


def _train(table: dict, plan: Plan, options: Options) -> Path:
    """Plan the steps that make the table's checkpoint → its folder."""
    pretrained = None
    if "finetune" in table:
        pretrained = _checkpoint(table["pretrained"], plan, options)
    if pretrained is None:
        pretrained = _pretrain(table, plan, options)
    if "finetune" not in table:
        return pretrained
    from train_itm import FinetuneConfig

    recipe = options.finetune_config or _recipe(table["finetune"])
    config = cli.parse(FinetuneConfig, ["--config", recipe])
    root = Path(options.data_root or config.data_root)
    pairs = [(config.train_captions, config.train_regions)]
    pairs += [(config.val_captions, config.val_regions or config.train_regions)]
    for captions, regions in ((config.image_captions, pairs[0][1]), (config.val_image_captions, pairs[1][1])):
        pairs += [(captions, regions)] if captions else []
    _databases(plan, root, config.boxes, pairs)
    run = Path(options.out) / f"finetune_{Path(recipe).stem}"
    words = ["--config", recipe, "--data-root", str(root), "--model.init", str(pretrained), "--output-dir", str(run)]
    plan.steps.append(["train_itm.py", *words])
    return run / "best"


def _pretrain(table: dict, plan: Plan, options: Options) -> Path:
    from pretrain import PretrainConfig

    recipe = options.pretrain_config or _recipe(table["pretrain"])
    config = cli.parse(PretrainConfig, ["--config", recipe])
    root = Path(options.data_root or config.data_root)
    pairs = [(data.captions, data.regions) for data in config.data]
    pairs += [(d.val_captions, d.val_regions or d.regions) for d in config.data if d.val_captions]
    _databases(plan, root, config.boxes, pairs)
    run = Path(options.out) / f"pretrain_{Path(recipe).stem}"
    words = ["--config", recipe, "--data-root", str(root), "--output-dir", str(run)]
    for side in ("txt", "img"):
        folder = getattr(config.model, f"{side}_init")
        if folder:  # under the folder of checkpoints, wherever that is
            path = Path(options.checkpoints, Path(folder).name)
            _need(plan, path, f"checkpoints/{path.name}", lambda path=path: _check_weights(path, read_json))
            words += [f"--model.{side}-init", str(path)]
    plan.steps.append(["pretrain.py", *words])
    return run / "last"


def _checkpoint(name: str, plan: Plan, options: Options) -> Path | None:
    """The checkpoint ``name`` where it is there; else None, and a step has to make it. One that is damaged is missing."""
    path = Path(options.checkpoints, name)
    need = _need(plan, path, f"checkpoints/{name}", lambda: _check_weights(path, lambda file: read_config(file.parent)))
    need.made = not path.exists()
    return None if need.made else path


def _check_weights(folder: Path, read: Callable[[Path], dict]) -> None:
    read(folder / "config.json")
    if not any((folder / name).is_file() for name in ("model.safetensors", "pytorch_model.bin")):
        raise BadInput(f"{folder}: neither model.safetensors nor pytorch_model.bin is there")


def _databases(plan: Plan, root: Path, boxes: BoxOptions, pairs: list[tuple[Names, Names]]) -> None:
    for captions, regions in pairs:
        for name in [captions] if isinstance(captions, str) else captions:
            _need(plan, root / name, name, lambda path=root / name: CaptionDB(path))
        for name in [regions] if isinstance(regions, str) else regions:
            _need(plan, root / name, name, lambda path=root / name: RegionDB(path, boxes))


def _need(plan: Plan, path: Path, key: str, check: Callable[[], Any]) -> Need:
    for need in plan.needs:
        if need.path == path:
            return need
    problem = None
    try:
        check()
    except BadInput as error:
        problem = str(error)
    plan.needs.append(Need(path, key, problem))
    return plan.needs[-1]


def _recipe(path: str) -> str:
    """A recipe of ours, as one would type it from here."""
    return os.path.relpath(ROOT / path) if Path.cwd().is_relative_to(ROOT) else str(ROOT / path)


def show_needs(needs: list[Need], options: Options) -> None:
    """What is there; and what is not, with the command that makes it, once for all that it makes."""
    sources = yaml.safe_load((ROOT / "configs/sources.yaml").read_text(encoding="utf-8"))
    absent: dict[str, list[str]] = {}
    for need in needs:
        if need.problem is None:
            print(f"[ok]      {need.path}")
            continue
        how = sources.get(need.key, "your recipe names it, none of ours does: see README, On your own data")
        how = how.replace("DATA/", f"{options.data_root or '.'}/").replace("CHECKPOINTS/", f"{options.checkpoints}/")
        line = (
            f"[absent]  {need.path}: trained by the steps below; instead of that,"
            if need.made
            else f"[missing] {need.path}"
        )
        absent.setdefault(how, []).append(line + (f": {need.problem}" if need.path.exists() else ""))
    for how, lines in absent.items():
        print("\n".join(lines) + f"\n          {how}")
    print(flush=True)


# ---- running and reporting -------------------------------------------------------------------------------------------


def _run(step: list[str]) -> float:
    print(f"$ python {shlex.join(step)}", flush=True)
    started = time.perf_counter()
    if subprocess.run([sys.executable, str(ROOT / step[0]), *step[1:]]).returncode:
        raise BadInput(f"stopped at: python {shlex.join(step)}")
    return round(time.perf_counter() - started, 1)


def report(name: str, table: dict, plan: Plan, seconds: dict[str, float], out: str) -> None:
    """Print and write paper, original repository and measured side by side."""
    results = json.loads(plan.results.read_text(encoding="utf-8"))
    if table["row"] not in results["recall"]:
        raise BadInput(f"{plan.results}: no row {table['row']!r}, found {', '.join(results['recall'])}")
    measured, bounds = results["recall"][table["row"]], results["intervals"].get(table["row"], {})
    columns = {source: _with_mean(table[source]) for source in ("paper", "original")}
    rows = {
        metric: {
            "paper": _figure(columns["paper"].get(metric), 1),
            "original repository": _figure(columns["original"].get(metric), 1),
            "measured": _figure(measured[metric], 2),
            "95% interval": format_interval(bounds[metric]) if metric in bounds else "-",
        }
        for metric in METRICS
    }
    checkpoint = results["config"]["checkpoint"]
    header = (
        f"{table['title']}: {checkpoint} on {results['images']:,} images, {results['captions']:,} captions, in percent"
    )
    text = f"{header}\n\n{format_table(rows, str, 21)}\n"
    print(f"\n{text}")
    summary = {
        "table": name,
        "title": table["title"],
        **columns,
        "measured": measured,
        "intervals": bounds,
        "seconds": seconds,
        "results": str(plan.results),
        "environment": results["environment"],
    }
    for suffix, content in ((".txt", text), (".json", json.dumps(summary, indent=2) + "\n")):
        with atomic_file(Path(out) / f"{name}{suffix}") as path:
            path.write_text(content, encoding="utf-8")
    print(f"results: {Path(out) / name}.json")


def _with_mean(figures: dict[str, float]) -> dict[str, float]:
    """AR, the mean of the six, where all six are published."""
    if len(figures) < len(METRICS) - 1:
        return figures
    return figures | {"AR": round(sum(figures.values()) / len(figures), 2)}


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    cli.run(main, Options, positional=("table",))
