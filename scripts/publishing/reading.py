"""What a checkpoint's own files, those of its run and its evaluations say of it."""

from __future__ import annotations

import sys
from pathlib import Path

from data.storage.regular_files import is_there, real_path
from data.storage.shapes import check_shape
from data.storage.text_files import read_json, read_yaml
from model.checkpoints import check_about
from model.evaluation.folders import RESULTS, evaluations_folder
from model.made_from import read_made_from
from scripts.publishing.card import Card
from scripts.reporting.results import VALIDATED, EvaluationReport, recall_rows

# as far as a card shows them: a run's config.yaml and run.json
SETTINGS = {"data?": ([{"name": str}], None)}
COUNTS = {str: int}
FACTS = {"command?": ([str], None), "versions?": {str: str}, "ranks?": int, "captions?": COUNTS, "images?": COUNTS, "train?": (COUNTS, None), "val?": (COUNTS, None)}


def read_card(checkpoint: Path, name: str, license: str | None = None) -> Card:
    """What the checkpoint's own files, those of its run and its evaluations say. An evaluation of other weights is left out, and said.

    Raises:
        BadInput: a damaged file, or no checkpoint.
    """
    config = read_json(checkpoint / "config.json", "a checkpoint was expected there")
    card = Card(name, "uniter" if config.get("model_type") == "uniter" else "lightningdot", license, made_from=read_made_from(checkpoint))
    for path in sorted(evaluations_folder(checkpoint).glob("*/results.json")):
        results = read_json(path)
        if not results.get("recall") or "config" not in results:
            continue
        check_shape(results, RESULTS, str(path))
        if results.get("model") != config.get("fingerprint"):
            print(f"{path}: was made with other weights, and is left out of the card", file=sys.stderr)
            continue
        card.evaluations.append(EvaluationReport(path.parent.name, path.parent, results))
    if is_there(checkpoint / "val.json"):
        said = read_json(checkpoint / "val.json", expected=VALIDATED)
        check_about(checkpoint / "val.json", said)
        validated = said.get("recall")
        card.validation = recall_rows({"recall": validated}, "") if validated else []
    run = real_path(checkpoint).parent.parent
    if real_path(checkpoint).parent.name == "checkpoints" and (run / "config.yaml").is_file():
        card.settings = read_yaml(run / "config.yaml", expected=SETTINGS)
        card.facts = read_json(run / "run.json", expected=FACTS) if is_there(run / "run.json") else {}
    return card
