"""What a checkpoint's own files, those of its run and its evaluations say of it."""

from __future__ import annotations

import sys
from pathlib import Path

from data.storage.shapes import check_shape
from data.storage.text_files import read_json, read_yaml
from model.evaluation.folders import RESULTS, evaluations_folder
from model.made_from import read_made_from
from scripts.publishing.card import Card
from scripts.reporting.results import VALIDATED, EvaluationReport, recall_rows


def read_card(checkpoint: Path, name: str, license: str | None = None) -> Card:
    """What the checkpoint's own files, those of its run and its evaluations say. An evaluation of other weights is left out, and said.

    Raises:
        BadInput: a damaged file, or no checkpoint.
    """
    config = read_json(checkpoint / "config.json", "a checkpoint was expected there")
    card = Card(name, "uniter" if config.get("model_type") == "uniter" else "lightningdot", license, made_from=read_made_from(checkpoint))
    for path in sorted(evaluations_folder(checkpoint).glob("*/results.json")):
        results = read_json(path)
        if not isinstance(results.get("recall"), dict) or "config" not in results:
            continue
        if "ranks" in results:
            check_shape(results, RESULTS, str(path))
        if results.get("model") != config.get("fingerprint"):
            print(f"{path}: was made with other weights, and is left out of the card", file=sys.stderr)
            continue
        card.evaluations.append(EvaluationReport(path.parent.name, path.parent, results))
    if (checkpoint / "val.json").is_file():
        validated = read_json(checkpoint / "val.json", expected=VALIDATED).get("recall")
        card.validation = recall_rows({"recall": validated}, "") if validated else []
    run = checkpoint.resolve().parent.parent
    if checkpoint.resolve().parent.name == "checkpoints" and (run / "config.yaml").is_file():
        card.settings = read_yaml(run / "config.yaml")
        card.facts = read_json(run / "run.json") if (run / "run.json").is_file() else {}
    return card
