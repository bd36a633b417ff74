"""How published tables are made again: what they need, and the commands that make them (``scripts/reproduce.py``)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.batches.gallery import is_image_db
from data.captions.db import CaptionDB
from data.downloads.hub import PREFIX, SIZES, NotInRepository, folder_under, local_folder
from data.errors import BadInput
from data.regions.db import BoxChoice, BoxOptions, RegionDB
from model.checkpoints import read_settings
from model.evaluation.published import Catalogue, Job, PublishedRow, PublishedTable

SCRIPTS = {"pretrain": "pretrain.py", "finetune": "train_itm.py", "eval": "eval_itm.py", "speed": "scripts/bench_retrieval.py"}  # folder of a recipe → its command
RESULT = {"pretrain": "last", "finetune": "best"}  # the checkpoint that goes on
STARTS = ("model.init", "model.txt_init", "model.img_init", "reranker.miner")  # settings of a recipe that name weights
Inputs = dict[str, Path]  # setting → folder of weights


@dataclass(frozen=True)
class Places:
    """Where a table's parts are.

    Attributes:
        data_root: relative folders of databases start here; None: as the recipes say
        checkpoints: folder of weights
        out: folder of the runs
        repository: on the hub, ``hf:USER/NAME``, with folders of weights that are taken before those here; None: there is none
    """

    data_root: str | None
    checkpoints: str
    out: str
    repository: str | None = None


@dataclass(frozen=True)
class Recipe:
    """A file of settings, read.

    Attributes:
        path: as it is given to the command
        config: the settings of pretrain.py, train_itm.py or eval_itm.py, with the options of the command
    """

    path: str
    config: Any


@dataclass(frozen=True)
class Need:
    """A database or weights that a table needs.

    Attributes:
        path: where it has to be
        key: what configs/sources.yaml calls it: ``DATA/`` or ``CHECKPOINTS/`` and its name
        problem: what is wrong with it; None: it is there
        made: a step makes it, where it is not there
    """

    path: Path
    key: str
    problem: str | None
    made: bool = False


@dataclass(frozen=True)
class Step:
    """A command of ours.

    Attributes:
        words: script, named from the repository's folder, and its words
        config: its settings, where it has a recipe
    """

    words: tuple[str, ...]
    config: Any = field(default=None, compare=False)

    @property
    def is_training(self) -> bool:
        return self.words[0] in (SCRIPTS["pretrain"], SCRIPTS["finetune"])


@dataclass
class TablePlan:
    """The steps that make a table, in their order, and where each of its rows then is."""

    steps: list[Step] = field(default_factory=list)
    results: list[Path] = field(default_factory=list)

    def add(self, step: Step) -> None:
        if step not in self.steps:
            self.steps.append(step)


class Planner:
    """Plans tables: a checkpoint is evaluated where it is there, else it is trained, from others that are there or are trained.

    Args:
        catalogue: the tables and their checkpoints
        places: where their parts are
        read_recipe: path and options → that recipe; called for the steps that are planned

    Attributes:
        needs: databases and weights of all that was planned

    Raises:
        BadInput: a recipe cannot be read. What is missing or damaged among the needs is told by them.
    """

    def __init__(self, catalogue: Catalogue, places: Places, read_recipe: Callable[[str, list[str]], Recipe]):
        self.needs: list[Need] = []
        self._catalogue, self._places, self._read_recipe = catalogue, places, read_recipe

    def plan(self, table: PublishedTable) -> TablePlan:
        """The steps of a table; what it needs is added to ``needs``."""
        plan = TablePlan()
        for row in table.rows:
            plan.results.append(self._plan_speed(row, plan) if _kind(row) == "speed" else self._plan_evaluation(row, plan))
        return plan

    def _plan_speed(self, row: PublishedRow, plan: TablePlan) -> Path:
        """A measurement of speed, without any data → the file that it writes."""
        recipe = self._read_recipe(row.recipe, shlex.split(row.options))
        results = Path(self._places.out, "_".join(["speed", Path(recipe.path).stem, *_slug(row.options)]) + ".json")
        words = [SCRIPTS["speed"], "--config", recipe.path, *shlex.split(row.options), "--out", str(results)]
        plan.add(Step((*words, "--work", f"{results.with_suffix('')}_work")))
        return results

    def _plan_evaluation(self, row: PublishedRow, plan: TablePlan) -> Path:
        recipe, inputs = self._prepare(row, plan)
        folder = "_".join([*map(_name_of, inputs.values()), Path(recipe.path).stem, *_slug(row.options)])
        results = Path(self._places.out, "eval", folder, "results.json")
        plan.add(self._step("eval", recipe, row, inputs, results.parent))
        return results

    def _plan_training(self, name: str, plan: TablePlan) -> Path:
        """Plan the steps that make a checkpoint → its folder."""
        job = self._catalogue.checkpoints[name]
        kind = _kind(job)
        recipe, inputs = self._prepare(job, plan)
        own = [name] * bool(job.options or job.inputs)  # else the recipe's name says what it is
        run = Path(self._places.out, "_".join([kind, Path(recipe.path).stem, *own]))
        plan.add(self._step(kind, recipe, job, inputs, run))
        return run / RESULT[kind]

    def _prepare(self, job: Job, plan: TablePlan) -> tuple[Recipe, Inputs]:
        """Read a job's recipe; note its databases; find or plan the weights that it starts from."""
        recipe = self._read_recipe(job.recipe, shlex.split(job.options))
        names: dict[str, str | list[str]] = {}
        for setting in STARTS:
            named = _setting(recipe.config, setting)
            if isinstance(named, str):
                names[setting] = _name_of(Path(named))  # under the folder of checkpoints, wherever that is
        inputs = {setting: self._weights(name, plan) for setting, name in (names | job.inputs).items()}
        self._need_databases(recipe)
        return recipe, inputs

    def _weights(self, names: str | list[str], plan: TablePlan) -> Path:
        """The folder of weights: of several names the first that is there, else the last. What is not there is planned, or needed."""
        choices = [names] if isinstance(names, str) else names
        there = {each: path for each in choices if (path := self._found(each)) is not None}
        name = next(iter(there), choices[-1])
        path = there.get(name, Path(self._places.checkpoints, name))
        made = name not in there and name in self._catalogue.checkpoints
        self._need(path, f"CHECKPOINTS/{name}", lambda: _check_weights(path), made)
        return self._plan_training(name, plan) if made else path

    def _found(self, name: str) -> Path | None:
        """Where weights are: in the repository of the hub, else in the folder here; None: in neither."""
        if self._places.repository is not None:
            word = f"{self._places.repository}/{name}"
            with suppress(NotInRepository):
                local_folder(word, SIZES)
                return Path(word)
        path = Path(self._places.checkpoints, name)
        return path if path.exists() else None

    def _step(self, kind: str, recipe: Recipe, job: Job, inputs: Inputs, folder: Path) -> Step:
        words = [SCRIPTS[kind], "--config", recipe.path, "--data-root", str(self._data_root(recipe))]
        for setting, path in inputs.items():
            words += [f"--{setting.replace('_', '-')}", str(path)]
        return Step((*words, *shlex.split(job.options), "--out", str(folder)), recipe.config)

    def _data_root(self, recipe: Recipe) -> Path:
        return Path(self._places.data_root or recipe.config.data_root)

    def _need_databases(self, recipe: Recipe) -> None:
        """Note text DBs with their image DBs, as the recipe names them."""
        root, boxes = self._data_root(recipe), recipe.config.boxes
        if isinstance(boxes, BoxChoice):  # of an evaluation
            boxes = boxes.settled(BoxOptions())
        for captions, regions in databases_of(recipe.config, root):
            for name in captions:
                self._need(root / name, f"DATA/{name}", lambda name=name: CaptionDB(folder_under(root, name)))
            for name in regions:
                self._need(root / name, f"DATA/{name}", lambda name=name: RegionDB(folder_under(root, name), boxes))

    def _need(self, path: Path, key: str, check: Callable[[], Any], made: bool = False) -> None:
        """Note what has to be at ``path``, once; ``check`` raises what is wrong with it."""
        if any(need.path == path for need in self.needs):
            return
        problem = None
        try:
            check()
        except BadInput as error:
            problem = str(error)
        self.needs.append(Need(path, key, problem, made))


def databases_of(config: Any, root: Path) -> list[tuple[list[str], list[str]]]:
    """The text DBs that the settings of a command name, each with its image DBs, or several with several; relative to ``root``."""
    if hasattr(config, "data"):  # pre-training
        pairs = [(corpus.captions, corpus.regions) for corpus in config.data]
        pairs += [(each.val_captions, each.val_regions or each.regions) for each in config.data if each.val_captions]
    elif hasattr(config, "train_captions"):
        val_regions = config.val_regions or config.train_regions
        pairs = [(config.train_captions, config.train_regions), (config.val_captions, val_regions)]
        pairs += [(getattr(config, "image_captions", None), []), (getattr(config, "val_image_captions", None), [])]
    else:
        pictures = [name for name in config.gallery if is_image_db(root / name)]
        texts = [name for name in config.gallery if name not in pictures]
        pairs = [(config.captions, config.regions), (texts, config.gallery_regions or [])]
        return [*((_listed(captions), _listed(regions)) for captions, regions in pairs), ([], pictures)]
    return [(_listed(captions), _listed(regions)) for captions, regions in pairs if captions]


def describe_needs(needs: Iterable[Need], is_known: Callable[[str], bool]) -> str:
    """Say what is there and what is not.

    Args:
        is_known: whether configs/sources.yaml says how to make what has such a key
    """
    lines = []
    for need in needs:
        if need.problem is None:
            lines.append(f"[ok]      {need.path}")
            continue
        line = f"[absent]  {need.path}: trained by the steps below" if need.made else f"[missing] {need.path}"
        line += f": {need.problem}" if need.path.exists() else ""
        if not need.made and not is_known(need.key):
            line += " (your recipe names it, none of ours does: see docs/data.md)"
        lines.append(line)
    return "\n".join([*lines, ""])


def _kind(job: Job) -> str:
    return Path(job.recipe).parent.name


def _name_of(path: Path) -> str:
    """What weights are called: the folder of a run, for its best or last checkpoint."""
    return path.parent.name if path.name in RESULT.values() else path.name


def _slug(options: str) -> list[str]:
    return [re.sub(r"[^A-Za-z0-9.]+", "-", options).strip("-")] * bool(options)


def _listed(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _setting(config: Any, name: str) -> Any:
    """The value of a dotted setting; None where the settings have no such."""
    for part in name.split("."):
        config = getattr(config, part, None)
    return config


def _check_weights(folder: Path) -> None:
    if str(folder).startswith(PREFIX):
        read_settings(local_folder(folder, SIZES) / "config.json")
        return  # whose weights are downloaded when they are read
    read_settings(folder / "config.json")
    if not any((folder / name).is_file() for name in ("model.safetensors", "pytorch_model.bin")):
        raise BadInput(f"{folder}: neither model.safetensors nor pytorch_model.bin is there")
