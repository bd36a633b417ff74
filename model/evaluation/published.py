"""Published tables as data: what is trained and evaluated for each row, and what was published of it (configs/published.yaml).

A file of tables is a mapping of two parts::

    checkpoints:                       # trained by a recipe, where they are not among the user's checkpoints
      flickr30k: {recipe: configs/finetune/flickr30k.yaml, inputs: {model.init: pretrained}, options: --optim.lr 5e-5}
    tables:
      flickr30k:
        title: Flickr30k 1K test, fine-tuned
        rows:
          - {name: fine-tuned, recipe: configs/eval/flickr30k.yaml, inputs: {checkpoint: flickr30k}, original: {TR@1: 83.9}}
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from data.errors import BadInput
from data.storage.shapes import check_shape, shape_of
from data.storage.text_files import read_yaml

SOURCES = ("paper", "original")  # who published a figure
Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Job:
    """What a step computes.

    Attributes:
        recipe: of pretrain.py, train_itm.py, eval_itm.py or scripts/bench_retrieval.py, as the folder that it is in says
        inputs: setting → name of a checkpoint, or several names: the first that is there, else the last
        options: more words of the command
    """

    recipe: str
    inputs: dict[str, str | list[str]] = field(default_factory=dict)
    options: str = ""


@dataclass(frozen=True)
class PublishedRow(Job):
    """A row of a table, beside what was published of it.

    Attributes:
        name: what the row is called
        part: where in the results the row's section is, for instance ``reranker.top.20``; none: the results themselves
        row: the row of that section; ``*`` stands for anything
        paper, original: metric → published figure, in percent where it is a recall
    """

    name: str = ""
    part: str | None = None
    row: str = "all"
    paper: dict[str, float] = field(default_factory=dict)
    original: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishedTable:
    """A table that can be made again.

    Attributes:
        title: what it shows
        rows: from the first to the last
        in_all: whether it is one of all tables
        note: what a reader of the table has to know
    """

    title: str
    rows: list[PublishedRow]
    in_all: bool = True
    note: str = ""


@dataclass(frozen=True)
class Catalogue:
    """All tables of a file, and the checkpoints that they are made from."""

    checkpoints: dict[str, Job]
    tables: dict[str, PublishedTable]


def read_catalogue(path: str | Path) -> Catalogue:
    """Read a file of tables.

    Raises:
        BadInput: it cannot be read, or says something that nobody knows; the message names where.
    """
    content = read_yaml(path, "give a file of tables", {"checkpoints?": {str: dict}, "tables?": {str: {"rows?": [dict]}}, str: object})
    unknown = content.keys() - {"checkpoints", "tables", "sources"}
    if unknown:
        raise BadInput(f"{path}: found {', '.join(sorted(unknown))}, expected checkpoints and tables")
    checkpoints = {
        name: filled_dataclass(Job, value, f"{path}: checkpoints.{name}") for name, value in content.get("checkpoints", {}).items()
    }
    tables = {}
    for name, value in content.get("tables", {}).items():
        where = f"{path}: tables.{name}"
        table = filled_dataclass(PublishedTable, value, where)
        rows = [filled_dataclass(PublishedRow, row, f"{where}.rows[{n}]") for n, row in enumerate(table.rows)]
        tables[name] = dataclasses.replace(table, rows=rows)
    return Catalogue(checkpoints, tables)


def filled_dataclass(kind: type[Kind], value: Any, where: str) -> Kind:
    """A dataclass from a mapping of its fields. Raises BadInput for a field that it does not have, that is absent, or of another
    type."""
    check_shape(value, {str: object}, where)
    names = {each.name for each in dataclasses.fields(kind)}
    if unknown := value.keys() - names:
        raise BadInput(f"{where}: unknown {', '.join(sorted(unknown))}; there are {', '.join(sorted(names))}")
    check_shape(value, shape_of(kind), where)
    return kind(**value)
