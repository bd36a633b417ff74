#!/usr/bin/env python
"""Reproduce published tables: say what they need and how to make it, run their steps, print published beside measured figures.

python scripts/reproduce.py                                          # the tables
python scripts/reproduce.py flickr30k --data-root DATA --dry-run     # what is there, how to make what is missing, the steps, the cost
python scripts/reproduce.py flickr30k --data-root DATA               # checkpoints/flickr30k where it is there, else trains it
python scripts/reproduce.py all --data-root DATA --gpus 8            # every published table
python scripts/reproduce.py all --demo                               # all of them on the demo world, made from nothing
python scripts/reproduce.py demo                                     # what `make demo` made
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

from configs import cli
from data.downloads.hub import repository_of
from data.errors import BadInput
from model.evaluation.ingredients import Pantry, read_ingredients
from model.evaluation.published import Catalogue, PublishedTable, read_catalogue
from model.evaluation.reproduction import Places, Planner, describe_needs
from optim.planning import MOST_GPUS
from scripts.reproducing.commands import ROOT, RecipeReader, command_of, path_from_here
from scripts.reproducing.costs import Costs
from scripts.reproducing.running import make_tables, run


@dataclass
class Options:
    """Reproduce published tables of recall and speed.

    Args:
        table: a table of configs/published.yaml; demo: what `make demo` made; all: every table but demo; none: list them
        data_root: relative folders of databases start here; none: as the recipes say
        checkpoints: folder of weights: pretrained, flickr30k, coco (converted, or trained elsewhere), bert-base-cased ...; or a
            repository of such folders on the Hugging Face hub, USER/NAME; what it lacks is looked for in checkpoints/
        out: folder of the runs, of TABLE.json and TABLE.md; trainings that were stopped go on. Default is runs/reproduce, with
            demo runs/reproduce_demo, which then holds databases and weights too
        recipes: folder with recipes that take the place of those of the same name in configs/: RECIPES/finetune/flickr30k.yaml
        pretrain_config: another recipe of pre-training than the table's
        finetune_config: another recipe of fine-tuning, such as configs/finetune/original_flickr30k.yaml
        eval_config: another recipe of evaluation
        demo: the table on the demo world (configs/demo_tables.yaml), from nothing
        gpu: type of GPU that the hours are reckoned for, as scripts/plan.py knows it
        gpus: trainings run on so many GPUs of one machine, through torchrun
        dry_run: only say what is there, how to make what is missing, the steps and what they cost
    """

    table: str | None = None
    data_root: str | None = None
    checkpoints: str | None = None
    out: str | None = None
    recipes: str | None = None
    pretrain_config: str | None = None
    finetune_config: str | None = None
    eval_config: str | None = None
    demo: bool = False
    gpu: str = "a100-80"
    gpus: int = 1
    dry_run: bool = False

    def __post_init__(self):
        if self.table == "all" and (self.pretrain_config or self.finetune_config or self.eval_config):
            raise BadInput("table all: every table has its own recipes; give another recipe for one table at a time, or --recipes")
        if self.recipes is not None and not Path(self.recipes).is_dir():
            raise BadInput(f"--recipes {self.recipes}: no such folder")
        if not 1 <= self.gpus <= MOST_GPUS:
            raise BadInput(f"--gpus: found {str(self.gpus)[:20]}, expected 1 or more, at most {MOST_GPUS:,}")


def main(options: Options) -> None:
    source = ROOT / "configs" / ("demo_tables.yaml" if options.demo else "published.yaml")
    catalogue = read_catalogue(source)
    if options.table is None:
        print("\n".join(f"{name:20} {table.title}" for name, table in catalogue.tables.items()))
        return
    tables = chosen_tables(catalogue, options.table)
    ingredients = read_ingredients(source, "sources") if options.demo else read_ingredients(ROOT / "configs/sources.yaml")
    places = places_of(options)
    pantry = Pantry(ingredients, places, path_from_here(""))
    reader = RecipeReader(options.recipes, {kind: getattr(options, f"{kind}_config") for kind in ("pretrain", "finetune", "eval")})
    planner = Planner(catalogue, places, reader.read)
    plans = {name: planner.plan(table) for name, table in tables.items()}
    print(describe_needs(planner.needs, lambda key: pantry.giver(key) is not None), flush=True)
    missing = [need for need in planner.needs if need.problem]
    to_make = pantry.to_make([need.key for need in missing if not need.made])
    print(pantry.describe(to_make, [need.key for need in missing if need.made]), flush=True)
    costs = Costs(options.gpu, options.gpus, pantry, places, show=not options.demo)
    for name, plan in plans.items():
        print(f"{name}: {tables[name].title}")
        for number, step in enumerate(plan.steps, 1):
            print(f"  {number}. {shlex.join(command_of(step, options.gpus))}{costs.of(step)}", flush=True)
    print(costs.total(), flush=True)
    if options.dry_run:
        return
    if options.demo:
        for each in to_make:
            run(shlex.split(pantry.fill_in(each.command)))
    elif absent := [str(need.path) for need in missing if not need.made]:
        raise BadInput(f"{len(absent)} missing: {', '.join(absent)}; the list above says how to make each")
    make_tables(tables, plans, options.gpus, Path(places.out))


def chosen_tables(catalogue: Catalogue, name: str) -> dict[str, PublishedTable]:
    """The table of a name, or all. Raises BadInput for one that is not there."""
    if name == "all":
        return {name: table for name, table in catalogue.tables.items() if table.in_all}
    if name not in catalogue.tables:
        raise BadInput(f"no table {name}; there are {', '.join(catalogue.tables)}, all")
    return {name: catalogue.tables[name]}


def places_of(options: Options) -> Places:
    out = options.out or ("runs/reproduce_demo" if options.demo else "runs/reproduce")
    own = (f"{out}/data", f"{out}/checkpoints") if options.demo else (None, "checkpoints")
    repository = repository_of(options.checkpoints) if options.checkpoints else None
    folder = options.checkpoints if options.checkpoints and repository is None else own[1]
    return Places(options.data_root or own[0], folder, out, repository)


if __name__ == "__main__":
    cli.run(main, Options, positional=("table",))
