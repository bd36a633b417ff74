"""The card of a checkpoint: README.md with a header that the Hugging Face hub reads. What is not known is left out."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from model.evaluation.recall import METRICS
from model.made_from import MadeFrom
from scripts.reporting.results import EvaluationReport, RecallRow

CITATION = """@inproceedings{sun2021lightningdot,
  title = {LightningDOT: Pre-training Visual-Semantic Embeddings for Real-Time Image-Text Retrieval},
  author = {Sun, Siqi and Chen, Yen-Chun and Li, Linjie and Wang, Shuohang and Fang, Yuwei and Liu, Jingjing},
  booktitle = {NAACL-HLT},
  year = {2021}
}"""


@dataclass
class Card:
    """What is known of a checkpoint.

    Attributes:
        name: on the hub
        kind: lightningdot, or uniter for a re-ranker
        license: as the hub spells licences; None: it is not said
        evaluations: of this checkpoint, by eval_itm.py
        validation: recall on the validation pairs of its training
        settings, facts: config.yaml and run.json of its run; empty where it is of none
        made_from: extractor, boxes and tokenizer of its training; None where it does not say them
    """

    name: str
    kind: str
    license: str | None = None
    evaluations: list[EvaluationReport] = field(default_factory=list)
    validation: list[RecallRow] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    made_from: MadeFrom | None = None

    def to_markdown(self) -> str:
        """The file, header and text."""
        parts = [f"---\n{yaml.safe_dump(self.header(), sort_keys=False, allow_unicode=True)}---", f"# {self.name.rpartition('/')[2]}"]
        parts += [self._purpose(), *self._recall(), *self._use(), *self._training(), f"## Citation\n\n```bibtex\n{CITATION}\n```"]
        return without_home("\n\n".join(parts) + "\n")

    def header(self) -> dict[str, Any]:
        """What the hub reads."""
        languages = {row for each in self.evaluations for row in each.results["recall"] if row not in ("all", "chance") and len(row) == 2}
        header: dict[str, Any] = {"library_name": "lightningdot", "tags": ["image-text-retrieval", self.kind]}
        header |= {"license": self.license} if self.license else {}
        header |= {"language": sorted(languages)} if languages else {}
        header |= {"pipeline_tag": "feature-extraction"} if self.kind == "lightningdot" else {}
        results = [_indexed(each) for each in self.evaluations]
        return header | ({"model-index": [{"name": self.name, "results": results}]} if results else {})

    def _purpose(self) -> str:
        if self.kind == "uniter":
            return "A re-ranker for image–text retrieval: it looks at a text and the regions of an image together, and sorts anew what a LightningDOT finds."
        return (
            "Two towers for image–text retrieval, LightningDOT (Sun et al., NAACL 2021): texts and images become vectors apart from each other, "
            "and their dot product is the score."
        )

    def _recall(self) -> Iterator[str]:
        tables = [(each.about.partition(" on ")[2], each.rows) for each in self.evaluations]
        if self.validation:
            tables.append(("the validation pairs of its training, which chose this checkpoint", self.validation))
        if not tables:
            yield "## Recall\n\nIt was not measured."
        for number, (about, rows) in enumerate(tables):
            lines = ["| | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
            lines += [f"| {row.name} | {' | '.join(row.cells)} |" for row in rows]
            title = "## Recall\n\nTR: captions of an image, IR: images of a caption, in percent, with 95% intervals where they were computed.\n\n"
            yield title * (number == 0) + f"Of {about}:\n\n" + "\n".join(lines)

    def _use(self) -> Iterator[str]:
        if self.kind == "uniter":
            yield f"## Use\n\n```sh\npython scripts/serve.py --checkpoint CHECKPOINT --index INDEX --regions REGIONS --reranker {self.name}\n```"
            return
        yield (
            "## Use\n\nFrom a checkout of the code that trained it; `prepare.py` prints the command that opens the page.\n\n"
            f"```sh\npython scripts/prepare.py --photos photos --checkpoint {self.name}\n```\n\n"
            "```python\nfrom model.retrieval.retriever import Retriever\n\n"
            f'retriever = Retriever.from_photos("photos", "{self.name}")\nfor hit in retriever.search_images("a dog on the beach", k=5):\n'
            "    print(hit.score, hit.path)\n```"
        )

    def _training(self) -> Iterator[str]:
        lines = [f"- {what}: {value}" for what, value in self._data()]
        if lines:
            yield "## Training data\n\n" + "\n".join(lines)
        if self.facts:
            command = self.facts.get("command") or []
            words = [Path(word).name if n == 0 else word for n, word in enumerate(command)]
            versions = [f"{name} {version}" for name, version in self.facts.get("versions", {}).items()]
            said = [f"code {self.facts['git']}" if self.facts.get("git") else "", *versions, str(self.facts.get("gpu") or "CPU"), f"{self.facts.get('ranks', 1)} ranks"]
            yield f"## Training\n\n```sh\npython {shlex.join(words)}\n```\n\n{', '.join(filter(None, said))}."
        if self.settings:
            yield f"All settings:\n\n```yaml\n{yaml.safe_dump(self.settings, sort_keys=False, allow_unicode=True)}```"

    def _data(self) -> Iterator[tuple[str, str]]:
        corpora = self.settings.get("data") if isinstance(self.settings.get("data"), list) else []
        for corpus in corpora:
            size = {what: self.facts.get(what, {}).get(corpus["name"]) for what in ("captions", "images")}
            yield str(corpus["name"]), ", ".join(f"{number:,} {what}" for what, number in size.items() if number is not None)
        for name, setting in (("train", "train_captions"), ("val", "val_captions")):
            if self.settings.get(setting) and isinstance(self.facts.get(name), Mapping):
                sizes = ", ".join(f"{number:,} {what}" for what, number in self.facts[name].items())
                yield {"train": "training", "val": "validation"}[name], f"{self.settings[setting]} ({sizes})"
        if self.made_from is not None:
            makers = ["an extractor that is not known" if each is None else f"`{each.described()}`" for each in self.made_from.extractors]
            boxes = self.made_from.boxes
            yield "regions", f"by {' and '.join(makers)}, {boxes.min_bb} to {boxes.max_bb} of an image, those above confidence {boxes.conf_th}"


def without_home(text: str) -> str:
    """A text with ``~`` in the place of this user's home directory, if it has one: not where that is /, as in many containers."""
    home = os.path.expanduser("~").rstrip(os.sep)
    return text.replace(f"{home}{os.sep}", f"~{os.sep}") if os.path.isabs(home) else text


def _indexed(evaluation: EvaluationReport) -> dict[str, Any]:
    """An evaluation as the hub's index of results has it."""
    results, captions = evaluation.results, str(evaluation.results["config"].get("captions", evaluation.name))
    table = results["recall"].get("all") or next(iter(results["recall"].values()))
    metrics = [{"type": "recall", "name": metric, "value": round(float(table[metric]), 2)} for metric in METRICS if metric in table]
    return {
        "task": {"type": "image-text-retrieval", "name": "Image-text retrieval"},
        "dataset": {"type": Path(captions).name, "name": Path(captions).name},
        "metrics": metrics,
    }
