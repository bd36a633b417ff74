"""How a published table is made again: what it needs, and the commands that make it (``scripts/reproduce.py``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.batches.gallery import is_image_db
from data.captions.db import CaptionDB
from data.errors import BadInput
from data.regions.db import BoxChoice, BoxOptions, RegionDB
from model.checkpoints import read_config, read_settings

Names = str | list[str]  # a database, or several that are joined


@dataclass(frozen=True)
class Places:
    """Where a table's parts are.

    Attributes:
        data_root: relative folders of databases start here; None: as the recipes say
        checkpoints: folder of weights
        out: folder of the runs
    """

    data_root: str | None
    checkpoints: str
    out: str


@dataclass(frozen=True)
class Recipe:
    """A file of settings, read.

    Attributes:
        path: as it is given to the command
        config: the settings of pretrain.py, of train_itm.py for retrieval, or of eval_itm.py
    """

    path: str
    config: Any


@dataclass(frozen=True)
class Need:
    """A database or weights that a table needs.

    Attributes:
        path: where it has to be
        key: its name in configs/sources.yaml
        problem: what is wrong with it; None: it is there
        made: a step makes it, where it is not there
    """

    path: Path
    key: str
    problem: str | None
    made: bool = False


class TablePlan:
    """What a published table needs, and the steps that make it: its checkpoint is evaluated where it is there, else it is
    fine-tuned from the pre-trained one, and where that is not there either, that one is pre-trained first.

    Args:
        table: an entry of configs/published.yaml
        places: where its parts are
        read_recipe: ``pretrain``, ``finetune`` or ``eval`` → that recipe of the table; called for the steps that are planned

    Attributes:
        needs: databases and weights
        steps: commands in their order, as words without ``python``
        results: what the last step writes

    Raises:
        BadInput: a recipe cannot be read. What is missing or damaged among the needs is told by them.
    """

    def __init__(self, table: dict, places: Places, read_recipe: Callable[[str], Recipe]):
        self.needs: list[Need] = []
        self.steps: list[list[str]] = []
        self._table, self._places, self._read_recipe = table, places, read_recipe
        recipe = read_recipe("eval")
        checkpoint = self._existing_checkpoint(table["checkpoint"]) or self._plan_training()
        self._need_databases(recipe, [(recipe.config.captions, recipe.config.regions)])
        self._need_galleries(recipe)
        source = checkpoint.parent if checkpoint.name in ("last", "best") else checkpoint
        folder = Path(places.out) / "eval" / f"{source.name}_{Path(recipe.path).stem}"
        self._add_step("eval_itm.py", recipe, "--checkpoint", checkpoint, "--output-dir", folder)
        self.results = folder / "results.json"

    def _plan_training(self) -> Path:
        """Plan the steps that make the table's checkpoint → its folder."""
        finetunes = "finetune" in self._table
        pretrained = self._existing_checkpoint(self._table["pretrained"]) if finetunes else None
        if pretrained is None:
            pretrained = self._plan_pretraining()
        return self._plan_finetuning(pretrained) if finetunes else pretrained

    def _plan_finetuning(self, pretrained: Path) -> Path:
        recipe = self._read_recipe("finetune")
        config = recipe.config
        val_regions = config.val_regions or config.train_regions
        pairs = [(config.train_captions, config.train_regions), (config.val_captions, val_regions)]
        views = (config.image_captions, config.train_regions), (config.val_image_captions, val_regions)
        self._need_databases(recipe, pairs + [(captions, regions) for captions, regions in views if captions])
        run = Path(self._places.out) / f"finetune_{Path(recipe.path).stem}"
        self._add_step("train_itm.py", recipe, "--model.init", pretrained, "--output-dir", run)
        return run / "best"

    def _plan_pretraining(self) -> Path:
        recipe = self._read_recipe("pretrain")
        corpora = recipe.config.data
        pairs = [(corpus.captions, corpus.regions) for corpus in corpora]
        pairs += [(c.val_captions, c.val_regions or c.regions) for c in corpora if c.val_captions]
        self._need_databases(recipe, pairs)
        run = Path(self._places.out) / f"pretrain_{Path(recipe.path).stem}"
        initial = []
        for side in ("txt", "img"):
            folder = getattr(recipe.config.model, f"{side}_init")
            if folder:  # under the folder of checkpoints, wherever that is
                path = Path(self._places.checkpoints, Path(folder).name)
                self._need(path, f"checkpoints/{path.name}", lambda path=path: _check_weights(path, _read_bert_config))
                initial += [f"--model.{side}-init", path]
        self._add_step("pretrain.py", recipe, "--output-dir", run, *initial)
        return run / "last"

    def _add_step(self, script: str, recipe: Recipe, *words: Any) -> None:
        words = ("--config", recipe.path, "--data-root", self._data_root(recipe), *words)
        self.steps.append([script, *map(str, words)])

    def _data_root(self, recipe: Recipe) -> Path:
        return Path(self._places.data_root or recipe.config.data_root)

    def _existing_checkpoint(self, name: str) -> Path | None:
        """The checkpoint ``name`` where it is there; else None, and a step has to make it. One that is damaged is missing."""
        path = Path(self._places.checkpoints, name)
        made = not path.exists()
        self._need(path, f"checkpoints/{name}", lambda: _check_weights(path, read_config), made)
        return None if made else path

    def _need_databases(self, recipe: Recipe, pairs: Iterable[tuple[Names, Names]]) -> None:
        """Note text DBs with their image DBs, as the recipe names them."""
        root, boxes = self._data_root(recipe), recipe.config.boxes
        if isinstance(boxes, BoxChoice):  # of an evaluation
            boxes = boxes.settled(BoxOptions())
        for captions, regions in pairs:
            for name in [captions] if isinstance(captions, str) else captions:
                self._need(root / name, name, lambda path=root / name: CaptionDB(path))
            for name in [regions] if isinstance(regions, str) else regions:
                self._need(root / name, name, lambda path=root / name: RegionDB(path, boxes))

    def _need_galleries(self, recipe: Recipe) -> None:
        """Note the galleries of a recipe of evaluation: text DBs with their image DBs, and image DBs."""
        config, root = recipe.config, self._data_root(recipe)
        pictures = [name for name in config.gallery if is_image_db(root / name)]
        texts = [name for name in config.gallery if name not in pictures]
        if config.gallery:
            self._need_databases(recipe, [(texts, [*(config.gallery_regions or [config.regions]), *pictures])])

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


def describe_needs(needs: Iterable[Need], sources: dict[str, str], places: Places) -> str:
    """Say what is there; and what is not, with the command that makes it, once for all that it makes.

    Args:
        sources: the contents of configs/sources.yaml: a need's key → the command
    """
    lines: list[str] = []
    absent: dict[str, list[str]] = {}
    for need in needs:
        if need.problem is None:
            lines.append(f"[ok]      {need.path}")
            continue
        command = sources.get(need.key, "your recipe names it, none of ours does: see README, On your own data")
        command = command.replace("DATA/", f"{places.data_root or '.'}/")
        command = command.replace("CHECKPOINTS/", f"{places.checkpoints}/")
        if need.made:
            line = f"[absent]  {need.path}: trained by the steps below; instead of that,"
        else:
            line = f"[missing] {need.path}"
        absent.setdefault(command, []).append(line + (f": {need.problem}" if need.path.exists() else ""))
    for command, of_command in absent.items():
        lines += [*of_command, f"          {command}"]
    return "\n".join([*lines, ""])


def _read_bert_config(folder: Path) -> dict:
    return read_settings(folder / "config.json")


def _check_weights(folder: Path, read: Callable[[Path], Any]) -> None:
    read(folder)
    if not any((folder / name).is_file() for name in ("model.safetensors", "pytorch_model.bin")):
        raise BadInput(f"{folder}: neither model.safetensors nor pytorch_model.bin is there")
