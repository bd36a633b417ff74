"""Recipes and commands, as one types them from the current folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from configs import cli
from data.errors import BadInput
from eval_itm import EvalConfig
from model.evaluation.reproduction import Recipe, Step
from optim.tasks.pretraining import PretrainConfig
from scripts import bench_retrieval
from train_itm import CONFIGS

ROOT = Path(__file__).resolve().parents[2]
CONFIG_CLASSES = {"pretrain": PretrainConfig, "finetune": CONFIGS, "eval": EvalConfig, "speed": bench_retrieval.Options}


def path_from_here(path: str) -> str:
    """A file of this repository, named from the current folder where that is the repository's, else whole."""
    return path if Path.cwd() == ROOT else str(ROOT / path)


def command_of(step: Step, gpus: int) -> list[str]:
    """A step as words; trainings on several GPUs go through torchrun."""
    launcher = ["torchrun", "--nproc-per-node", str(gpus)] if step.is_training and gpus > 1 else ["python"]
    return [*launcher, path_from_here(step.words[0]), *step.words[1:]]


class RecipeReader:
    """Reads the tables' recipes, or others in their place.

    Args:
        folder: holds recipes that take the place of those of the same name in configs/; None: there is none
        chosen: pretrain, finetune or eval → a recipe that takes the place of the only one of its kind; None: the table's
    """

    def __init__(self, folder: str | None, chosen: Mapping[str, str | None]):
        self._folder, self._chosen = folder, chosen
        self._replaced: dict[str, str] = {}
        self._read: dict[tuple[str, ...], Recipe] = {}  # tables share recipes

    def read(self, path: str, options: list[str]) -> Recipe:
        """A recipe, with the options of its command.

        Raises:
            BadInput: it cannot be read; or another one was chosen in its place, and in that of a second one too.
        """
        kind = Path(path).parent.name
        name = self._chosen.get(kind) or path_from_here(path)
        if self._chosen.get(kind):
            if self._replaced.setdefault(kind, path) != path:
                raise BadInput(
                    f"--{kind}-config {name}: the table has several such recipes, {self._replaced[kind]} and {path}; give --recipes a "
                    "folder with those that are to be replaced"
                )
        elif self._folder is not None and (own := Path(self._folder, kind, Path(path).name)).is_file():
            name = str(own)
        if (name, *options) not in self._read:
            self._read[name, *options] = Recipe(name, cli.parse(CONFIG_CLASSES[kind], ["--config", name, *options]))
        return self._read[name, *options]
