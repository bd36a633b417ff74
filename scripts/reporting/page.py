"""The page of a report: one HTML file that refers to nothing outside it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from data.storage.regular_files import real_path
from model.evaluation.recall import METRICS
from optim.curves import Curve
from optim.figures import default_metrics, draw_curves, finite_points, is_recall
from scripts.reporting.failures import Item, WorstQueries, data_uri
from scripts.reporting.results import RunReport


def render_page(run: RunReport, failures: list[dict[str, Any]]) -> str:
    """The report as HTML; whatever stands in a run's files is written as text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    steps = max((step for curve in run.curves.values() for step, _ in curve), default=0)
    about = [run.kind, *([f"{steps:,} updates"] if steps else []), str(run.facts.get("time", "")), str(run.path)]
    settings = [("", _as_yaml(run.settings))] if run.settings else []
    settings += [(e.name, _as_yaml(e.results["config"])) for e in run.evaluations if e.results.get("config")]
    return environment.get_template("page.html").render(
        title=real_path(run.path).name, about=" · ".join(filter(None, about)), metrics=METRICS, evaluations=run.evaluations,
        validation=run.validation, curves=draw_all(run.curves), speed=speed_of(run.curves), failures=failures,
        facts=[(name, _as_text(value)) for name, value in run.facts.items()], settings=settings,
    )  # fmt: skip


def failures_of(run: RunReport, number: int, photos: str | None) -> list[dict[str, Any]]:
    """The worst ``number`` queries of each kind of every evaluation, for the page."""
    found = []
    for evaluation in run.evaluations if number else ():
        worst = WorstQueries(evaluation, photos)
        texts, images = worst.texts(number), worst.images(number)
        pictures = [item for each in texts for item in each.right]
        notes = ["By the dot product, before any re-ranking."] if "reranker" in evaluation.results else []
        if pictures and not any(item.picture for item in pictures):
            notes.append("The pictures are not where the image database says; --photos DIR shows them.")
        if evaluation.results.get("config", {}).get("gallery"):
            notes.append("What stood before is left out: ranks are among the whole gallery.")
        found.append({"name": evaluation.name, "note": " ".join(notes), "texts": texts, "images": images})
    return found


def draw_all(curves: dict[str, Curve]) -> list[Item]:
    """Figures of the recall, of the losses, and of the rest, as pictures inside the page."""
    known = [name for name, curve in curves.items() if finite_points(curve) and name != "epoch"]
    recall = [name for name in default_metrics(known) if is_recall(name)]
    losses = [name for name in known if name.endswith("/loss")]
    others = [name for name in known if name not in losses and not is_recall(name)]
    figures = []
    for title, names in (("Recall of validation", recall), ("Losses", losses), ("Training", others)):
        if names:
            buffer = io.BytesIO()
            figure = draw_curves({"": curves}, names, title)
            figure.savefig(buffer, format="svg", metadata={"Date": None})
            figures.append(Item(title, picture=data_uri("image/svg+xml", buffer.getvalue())))
    return figures


def speed_of(curves: dict[str, Curve]) -> list[tuple[str, str]]:
    """What the metrics say of speed and memory, over the whole run."""
    values = {name: np.array([value for _, value in finite_points(curve)]) for name, curve in curves.items()}
    found = []
    if len(pairs := values.get("speed/pairs_per_s", np.empty(0))):
        low, median, high = np.percentile(pairs, [5, 50, 95])
        found.append(("pairs per second", f"{median:,.0f} (5th to 95th percentile {low:,.0f} to {high:,.0f})"))
    if len(waiting := values.get("speed/waiting_for_data", np.empty(0))):
        found.append(("time waiting for data", f"{waiting.mean():.1f}%"))
    if len(memory := values.get("memory/gpu_peak_gib", np.empty(0))):
        found.append(("most GPU memory", f"{memory.max():.1f} GiB"))
    for name, value in values.items():
        if name.startswith("passes/") and len(value):
            found.append((f"passes over {name.removeprefix('passes/')}", f"{value[-1]:.2f}"))
    return found


def _as_yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _as_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_as_text(each)}" for name, each in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else "–" if value is None else str(value)
