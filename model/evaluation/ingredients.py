"""From nothing to the databases and weights that a table needs: which commands, in which order, and what they cost
(configs/sources.yaml)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from data.errors import BadInput
from data.storage.text_files import read_yaml
from model.evaluation.published import filled_dataclass
from model.evaluation.reproduction import Places

PICTURES_AN_HOUR = 36_000  # of an extraction on a GPU, as a guess


@dataclass(frozen=True)
class Ingredient:
    """Something that a command makes, or that somebody has to fetch by hand.

    ``DATA/`` in its texts is the data root, ``CHECKPOINTS/`` the folder of weights.

    Attributes:
        gives: the paths that are there afterwards
        title: what it is
        needs: names of the ingredients that have to be there before
        command: one line for a shell, run from the repository's folder
        by_hand: what to do before the command, or instead of one, that no command can
        instead: another way to the same, or what would be taken instead
        disk: GB that it leaves on the disk, estimated from the published sizes
        pictures: that an extraction goes through
        captions: path of a text DB → how many captions it gets, about
    """

    gives: list[str]
    title: str = ""
    needs: list[str] = field(default_factory=list)
    command: str | None = None
    by_hand: str | None = None
    instead: str | None = None
    disk: float = 0.0
    pictures: int = 0
    captions: dict[str, int] = field(default_factory=dict)


class Pantry:
    """All ingredients that a file knows, and where they are here.

    Args:
        ingredients: name → ingredient
        places: where databases and weights are
        folder: of this repository, as a command names it from here; empty where the command is run in it
    """

    def __init__(self, ingredients: dict[str, Ingredient], places: Places, folder: str = ""):
        self._ingredients, self._folder = ingredients, folder
        self._folders = {"DATA": shlex.quote(f"{places.data_root or '.'}/"), "CHECKPOINTS": shlex.quote(f"{places.checkpoints}/")}
        self._giver = {path: name for name, each in ingredients.items() for path in each.gives}

    def fill_in(self, text: str) -> str:
        """A text or a command with the folders of this run."""
        text = re.sub(r"(?<![\w/])(DATA|CHECKPOINTS)/", lambda found: self._folders[found[1]], text)
        if not self._folder:
            return text
        return re.sub(r"\bpython (?=scripts/)", lambda _: f"python {shlex.quote(self._folder + '/')}", text)

    def giver(self, path: str) -> str | None:
        """The name of the ingredient that gives a path such as ``DATA/img/flickr30k``; None where none does."""
        return self._giver.get(path)

    def captions(self) -> dict[str, int]:
        """Path of a text DB → how many captions it gets."""
        return {path: count for each in self._ingredients.values() for path, count in each.captions.items()}

    def to_make(self, missing: Iterable[str]) -> list[Ingredient]:
        """What to make for the paths that are missing, each after what it needs; what is there already is left out."""
        found: dict[str, Ingredient] = {}

        def add(name: str, asked_for: bool) -> None:
            each = self._ingredients[name]
            if name in found or (not asked_for and all(self._is_there(path) for path in each.gives)):
                return
            for other in each.needs:
                add(other, False)
            found[name] = each

        for path in missing:
            if path in self._giver:
                add(self._giver[path], True)
        return list(found.values())

    def _is_there(self, path: str) -> bool:
        return Path("".join(shlex.split(self.fill_in(path)))).exists()

    def describe(self, ingredients: Iterable[Ingredient], trained: Iterable[str] = ()) -> str:
        """What a user has to do: a line of a command begins with ``$``, one of what a hand must do with ``!``, the rest explain.

        Args:
            trained: paths of weights that steps make: instead of that others may be taken
        """
        lines, ingredients = [], list(ingredients)
        if ingredients:
            disk = sum(each.disk for each in ingredients)
            lines.append(f"To make what is missing, in this order ({disk:,.0f} GB of disk, as the published sizes have it):")
        for each in ingredients:
            costs = [f"{each.disk:g} GB"] * bool(each.disk)
            if each.pictures:
                costs.append(f"{each.pictures:,} pictures, {each.pictures / PICTURES_AN_HOUR:.3g} hours of a GPU at 10 a second")
            lines.append(f"  # {self.fill_in(each.title)}" + (f" ({', '.join(costs)})" if costs else ""))
            lines += [f"  # or {self.fill_in(each.instead)}"] if each.instead else []
            lines += [f"  ! by hand: {self.fill_in(each.by_hand)}"] if each.by_hand else []
            lines += [f"  $ {self.fill_in(each.command)}"] if each.command else []
        others: dict[str, list[str]] = {}
        for path in trained:
            if (name := self.giver(path)) and (instead := self._ingredients[name].instead):
                others.setdefault(instead, []).append(path)
        for instead, paths in others.items():
            lines.append(f"Instead of training {self.fill_in(', '.join(paths))}: {self.fill_in(instead)}")
        return "\n".join([*lines, ""]) if lines else ""


def read_ingredients(path: str | Path, section: str | None = None) -> dict[str, Ingredient]:
    """Read configs/sources.yaml, or a ``section`` of another file.

    Raises:
        BadInput: it cannot be read, says something that nobody knows, or needs an ingredient that it does not have.
    """
    content = read_yaml(path, "give a file of sources", {str: dict} if section is None else {f"{section}?": {str: dict}})
    content = content if section is None else content.get(section, {})
    found = {name: filled_dataclass(Ingredient, value, f"{path}: {name}") for name, value in content.items()}
    for name, each in found.items():
        if absent := [other for other in each.needs if other not in found]:
            raise BadInput(f"{path}: {name} needs {', '.join(absent)}, which is not there")
    return found
