"""The tables of the pages: what is in the registries, the commands and recipes, the corpora, what was published."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from configs import cli
from data.annotations import FORMATS
from data.search import BACKENDS
from model.extractors import EXTRACTORS
from model.objectives import OBJECTIVES
from model.objectives.contrastive import LOSSES
from model.original import settings as lightningdot
from model.original import uniter_retrieval
from model.original.keys import markdown_table
from optim.planning import Machine, make_plan
from optim.tasks.pretraining import PretrainConfig
from scripts.documenting.markdown import first_sentence, table
from scripts.documenting.pages import Table
from scripts.documenting.settings import tables_of_settings
from scripts.reproducing.costs import EFFICIENCY, SIZES

ROOT = Path(__file__).resolve().parents[2]
ROOT_SCRIPTS = ("pretrain.py", "train_itm.py", "eval_itm.py")


def all_tables() -> dict[str, Table]:
    """Name of a table, as a page has it → the function that gives its lines."""
    of_settings = functools.cache(tables_of_settings)
    names = ("training", "pretrain", "finetune", "retrieval", "rerank", "eval", "scripts")
    return {
        "objectives": lambda: registry(OBJECTIVES),
        "losses": lambda: registry(LOSSES),
        "extractors": lambda: registry(EXTRACTORS),
        "backends": lambda: registry(BACKENDS),
        "formats": formats,
        "commands": commands,
        "recipes": recipes,
        "corpora": corpora,
        "plan": plan,
        "published": published,
        "keys-lightningdot": lambda: markdown_table(lightningdot.KEYS),
        "keys-uniter": lambda: markdown_table(uniter_retrieval.KEYS),
        **{f"settings-{name}": lambda name=name: of_settings()[f"settings-{name}"] for name in names},
    }


def registry(entries: Mapping[str, Any]) -> list[str]:
    """Names, and what the class says of itself in its first sentence."""
    return table(("name", "what it is"), [(f"`{name}`", first_sentence(inspect.getdoc(entry))) for name, entry in entries.items()])


def formats() -> list[str]:
    """The formats of annotations, with the names that their files usually have."""
    rows = []
    for name, form in FORMATS.items():
        files = ", ".join(f"`{file}`" for file in form.file_names if file != "*")
        rows.append((f"`{name}`", files or "–", first_sentence(inspect.getmodule(form.read).__doc__)))
    return table(("`--format`", "usual files", "what it is"), rows)


def commands() -> list[str]:
    """Every command, with the first sentence of its file."""
    files = [*ROOT_SCRIPTS, *(f"scripts/{path.name}" for path in sorted((ROOT / "scripts").glob("[!_]*.py")))]
    docs = {name: ast.get_docstring(ast.parse((ROOT / name).read_text(encoding="utf-8"))) for name in files}
    return table(("command", "what it does"), [(f"`{name}`", first_sentence(doc)) for name, doc in docs.items()])


def recipes() -> list[str]:
    """Every recipe, with the first sentence of the comment on its top."""
    rows = []
    for path in sorted((ROOT / "configs").glob("*/*.yaml")):
        comment = path.read_text(encoding="utf-8").split("\n#\n")[0].split("\n")
        told = [line.lstrip("# ") for line in comment if line.startswith("#")]
        rows.append((f"`configs/{path.parent.name}/{path.name}`", first_sentence(" ".join(told))))
    return table(("recipe", "what it is"), rows)


def corpora() -> list[str]:
    """What the paper's pre-training reads of each corpus, as scripts/plan.py reckons it on eight GPUs."""
    config, plan = paper_plan()
    rows = []
    for corpus in config.data:
        found = plan["corpora"][corpus.name]
        size, labels = found["bytes"] / 1e9, found["soft_labels"] / 1e9
        rows.append((
            f"`{corpus.name}`", f"`{corpus.regions}`", f"{found['images']:,}", f"{size:.1f}", f"{size - labels:.1f}",
            f"{found['captions']:,}", f"{found['passes']:,.0f}",
        ))  # fmt: skip
    size, labels = (sum(each[key] for each in plan["corpora"].values()) / 1e9 for key in ("bytes", "soft_labels"))
    head = ("corpus", "regions", "pictures", "GB", "without soft labels", "captions", "passes")
    return table(head, [*rows, ("all", "", "", f"{size:,.0f}", f"{size - labels:,.0f}", "", "")])


def plan() -> list[str]:
    """What scripts/plan.py says of the paper's pre-training on eight GPUs, in short."""
    config, found = paper_plan()
    memory = [sum(parts.values()) / 1e9 for parts in found["memory_per_rank"].values()]
    sent = max(task["sent_per_rank"]["gradients"] for task in found["tasks"].values()) / 1e6
    return table(("the paper's pre-training on 8 x A100", ""), [
        ("trained parameters", f"{sum(found['parameters'].values()):,}"),
        ("an update", f"{found['pairs']['per_step']:,.0f} pairs, {found['seconds_per_step']:.2f} s"),
        (f"{config.num_steps:,} updates", f"{found['hours']:,.0f} hours"),
        ("sent by each rank in an update", f"{sent:,.0f} MB of gradients"),
        ("memory of a rank", f"{memory[0]:.0f} GB, with activation checkpointing {memory[1]:.0f} GB"),
        ("regions to be read", f"{found['regions_read_per_second'] / 1e9:.1f} GB a second"),
    ])  # fmt: skip


@functools.cache
def paper_plan() -> tuple[PretrainConfig, dict]:
    """The recipe, and its plan with the numbers of captions and pictures that configs/sources.yaml has."""
    config = cli.parse(PretrainConfig, ["--config", str(ROOT / "configs/pretrain/paper.yaml")])
    sources = yaml.safe_load((ROOT / "configs/sources.yaml").read_text(encoding="utf-8")).values()
    pictures = {path: source["pictures"] for source in sources if "pictures" in source for path in source["gives"]}
    captions = {path: count for source in sources for path, count in source.get("captions", {}).items()}
    counts = [f"{each.name}={captions[f'DATA/{each.captions}']}/{pictures[f'DATA/{each.regions}']}" for each in config.data]
    return config, make_plan(config, Machine("a100-80", 8, 8, EFFICIENCY), dataclasses.replace(SIZES, counts=counts))


def published() -> list[str]:
    """Published recall beside ours, which nobody has measured yet."""
    tables = yaml.safe_load((ROOT / "configs/published.yaml").read_text(encoding="utf-8"))["tables"]
    names, rows = ("TR@1", "TR@5", "TR@10", "IR@1", "IR@5", "IR@10"), []
    for each in tables.values():
        for row in each["rows"]:
            for source in ("paper", "original"):
                if "TR@1" in row.get(source, {}):
                    told = [f"{row[source][name]:.1f}" if name in row[source] else "–" for name in names]
                    rows.append((f"{each['title']}: {'the paper' if source == 'paper' else 'its repository'}", *told))
    return table(("", *names), rows)
