"""Settings of commands as tables: the name as YAML spells it, the default, and what the dataclass says of it."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from docstring_parser import parse

from configs.settings import inner_dataclass, names_and_types
from model.evaluation.settings import EvalConfig
from optim.settings import TrainingSettings
from optim.tasks.finetuning import FinetuningSettings
from optim.tasks.pretraining import PretrainConfig
from optim.tasks.reranking import RerankingConfig
from optim.tasks.retrieval import RetrievalConfig
from scripts.documenting.markdown import one_line, table

ROOT = Path(__file__).resolve().parents[2]


class Setting(NamedTuple):
    name: str
    default: str
    text: str


def settings_of(config_class: type, prefix: str = "") -> Iterator[Setting]:
    """Every setting that is no group, in the order of the dataclass."""
    hints, explained = dict(names_and_types(config_class)), _explanations(config_class)
    for field in dataclasses.fields(config_class):
        inner = inner_dataclass(hints[field.name])
        if inner is None:
            yield Setting(prefix + field.name, _default(field), explained.get(field.name, ""))
        else:
            yield from settings_of(inner, f"{prefix}{field.name}.")


def settings_table(config_class: type, besides: Collection[type] = ()) -> list[str]:
    """The table of a class, without the settings that it shares with others."""
    shared = {setting.name for other in besides for setting in settings_of(other)}
    rows = [(f"`{s.name}`", s.default, s.text) for s in settings_of(config_class) if s.name not in shared]
    return table(("setting", "default", ""), rows)


def tables_of_settings() -> dict[str, list[str]]:
    """Name of a table → its lines: the trainings, the evaluation, and every other command by the name of its file."""
    trainings = {
        "settings-training": settings_table(TrainingSettings),
        "settings-pretrain": settings_table(PretrainConfig, [TrainingSettings]),
        "settings-finetune": settings_table(FinetuningSettings, [TrainingSettings]),
        "settings-retrieval": settings_table(RetrievalConfig, [FinetuningSettings]),
        "settings-rerank": settings_table(RerankingConfig, [FinetuningSettings]),
        "settings-eval": settings_table(EvalConfig),
    }
    return trainings | {"settings-scripts": _tables_of_scripts()}


def _tables_of_scripts() -> list[str]:
    lines = []
    for path in sorted(Path(ROOT, "scripts").glob("*.py")):
        options = getattr(importlib.import_module(f"scripts.{path.stem}"), "Options", None)
        if options is not None and dataclasses.fields(options):
            lines += ["", f"### scripts/{path.name}", "", *settings_table(options)]
    return lines[1:]


def _explanations(config_class: type) -> dict[str, str]:
    """Name of a setting → what the docstring says of it, that of a base class where it is set there."""
    found = {}
    for each in reversed(config_class.__mro__):
        if dataclasses.is_dataclass(each):
            found |= {p.arg_name: one_line(p.description or "") for p in parse(each.__doc__ or "").params}
    return found


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        value: Any = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "has to be given"
    if value is None:
        return "none"
    shown = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000).removesuffix("...\n").strip()
    return f"`{shown}`"
