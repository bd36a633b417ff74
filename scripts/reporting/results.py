"""A run's folder and its evaluations, read for a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import BadInput
from data.storage.regular_files import real_path
from data.storage.shapes import check_shape
from data.storage.text_files import read_json, read_yaml
from model.checkpoints import check_about
from model.evaluation.folders import RESULTS
from model.evaluation.recall import METRICS
from optim.curves import Curve, read_curves

VALIDATED = {"recall?": (None, {str: {str: float}})}  # val.json of a checkpoint
WHERE = ("results.json", "*/results.json", "*/*/results.json", "eval/*/*/results.json", "checkpoints/*/eval/*/results.json")


@dataclass
class RecallRow:
    """One row of a table: ``cells`` are texts, with the 95% interval where there is one."""

    name: str
    cells: list[str]


@dataclass
class EvaluationReport:
    """An evaluation as eval_itm.py wrote it.

    Attributes:
        name: its folder, below what the report is of
        folder: of results.json
        results: what that holds
    """

    name: str
    folder: Path
    results: Mapping[str, Any]

    @property
    def rows(self) -> list[RecallRow]:
        """Recall of each language and of all, of chance, of duplicate-aware counting, and after each re-ranking."""
        results = self.results
        rows = recall_rows(results, "")
        if "duplicate_aware" in results:
            rows += recall_rows(results["duplicate_aware"], "duplicate-aware ")
        for k, top in results.get("reranker", {}).get("top", {}).items():
            rows += recall_rows(top, f"best {k} re-ranked ")
            if "mixed" in top:
                rows += recall_rows(top["mixed"], f"best {k} re-ranked + {top['mixed'].get('mix', 0):g} × bi-encoder ")
        return rows

    @property
    def about(self) -> str:
        """What was evaluated on what."""
        config = self.results.get("config", {})
        parts = [f"{config.get('checkpoint', 'a checkpoint')} on {config.get('captions', 'captions')}"]
        parts += [f"{self.results[name]:,} {name}" for name in ("images", "captions") if isinstance(self.results.get(name), int)]
        if config.get("gallery"):
            parts.append("among those of " + ", ".join(config["gallery"]))
        if seconds := self.results.get("reranker", {}).get("seconds"):
            parts.append(", ".join(f"{name} {value:.1f} s" for name, value in seconds.items()))
        return "; ".join(parts)


def recall_rows(tables: Mapping[str, Any], prefix: str) -> list[RecallRow]:
    """Rows of ``recall`` with their ``intervals``, the mean of all languages last but chance."""
    rows = []
    for name, values in tables["recall"].items():
        bounds = tables.get("intervals", {}).get(name) or {}
        cells = []
        for metric in METRICS:
            own = bounds.get(metric)
            interval = f" [{own['low']:.1f}, {own['high']:.1f}]" if own else ""
            cells.append(f"{values[metric]:.1f}{interval}" if metric in values else "–")
        rows.append(RecallRow((prefix if name == "all" and prefix else f"{prefix}{name}").strip(), cells))
    return sorted(rows, key=lambda row: row.name == "chance")


@dataclass
class RunReport:
    """What a report is of.

    Attributes:
        path: the folder
        settings: config.yaml of a run, else empty
        facts: run.json of a run, else the environment of its first evaluation
        curves: metric → curve
        evaluations: those in the folder, by name
        validation: recall of the best checkpoint on the validation pairs, where val.json says it
    """

    path: Path
    settings: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Curve] = field(default_factory=dict)
    evaluations: list[EvaluationReport] = field(default_factory=list)
    validation: list[RecallRow] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """What the run trains."""
        if not self.settings:
            return "evaluations"
        model = self.settings.get("model")
        is_reranker = isinstance(model, dict) and model.get("kind") == "uniter"
        return "pre-training" if "data" in self.settings else "re-ranker" if is_reranker else "fine-tuning"


def read_run(path: str | Path) -> RunReport:
    """Read the folder of a run, of an evaluation, or of several.

    Raises:
        BadInput: it holds neither, or a file of it is damaged.
    """
    path = Path(path)
    found = RunReport(path)
    if (path / "config.yaml").is_file():
        found.settings, found.facts = read_yaml(path / "config.yaml", expected={str: object}), _read_optional(path / "run.json")
    if (path / "metrics.jsonl").is_file():
        found.curves = read_curves(path)
    for file in dict.fromkeys(file for pattern in WHERE for file in sorted(path.glob(pattern))):
        results = read_json(file)
        if isinstance(results.get("recall"), dict) and "ranks" in results:  # other commands write results.json, too
            check_shape(results, RESULTS, str(file))
            name = str(file.parent.relative_to(path)) if file.parent != path else real_path(path).name
            found.evaluations.append(EvaluationReport(name, file.parent, results))
    if not found.settings and not found.curves and not found.evaluations:
        raise BadInput(f"{path}: neither a run (config.yaml, metrics.jsonl) nor an evaluation (results.json of eval_itm.py)")
    said = _read_optional(path / "best" / "val.json", VALIDATED)
    check_about(path / "best" / "val.json", said)
    validated = said.get("recall")
    found.validation = recall_rows({"recall": validated}, "") if validated else []
    if not found.facts and found.evaluations:
        found.facts = found.evaluations[0].results.get("environment", {})
    return found


def _read_optional(path: Path, shape: dict = {str: object}) -> dict[str, Any]:  # noqa: B006  nobody changes it
    return read_json(path, expected=shape) if path.is_file() else {}
