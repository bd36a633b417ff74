"""The dress rehearsal: from an empty disk to every table, by the commands that scripts/reproduce.py prints, verbatim.

The public files are small stand-ins on a server of this machine; its address is the only thing that a user would not have, by the file
of sources that LIGHTNINGDOT_DOWNLOADS names. The recipes are ours with less of everything (--recipes). bash reads every command as it is
printed; the python that it finds forks a process that has torch already, but for a few that start as a user's do.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from model.evaluation.published import read_catalogue
from tests.public_sources import COCO, PublicServer
from tests.warm_python import warm_python

ROOT = Path(__file__).resolve().parents[2]
TABLES = {name: table for name, table in read_catalogue(ROOT / "configs/published.yaml").tables.items() if table.in_all}
LESS = {
    "pretrain": {"num_steps": 3, "valid_every": 3, "valid_batches": 1, "tokens_per_batch": 300, "grad_accumulation": 1},
    "finetune": {"epochs": 1, "batch_size": 4},
    "eval": {"bootstrap": 20},
}
RERANKER = {"hard_negatives": {"count": 1, "window": "0-4", "from_epoch": 1}, "reranker": {"top": 4}}
SPEED = {
    "galleries": [1000, 5000, 123287], "backends": ["exact"], "encoded": 8, "rerank_top": [4], "regions": 4, "hidden_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "feature_dim": 8, "dim": 8, "vocab_size": 300,
    "rounds": 2, "seconds": 0.01, "precision": ["fp32"],
}  # fmt: skip


class Rehearsal:
    """An empty disk, the public server, and a shell."""

    def __init__(self, folder: Path, server: PublicServer, environment: dict[str, str]):
        self.folder, self._server = folder, server
        self._environment = environment | {"LIGHTNINGDOT_DOWNLOADS": str(server.downloads)}
        self._started_cold: set[str] = set()
        places = f"--data-root {folder}/data --checkpoints {folder}/weights --out {folder}/runs --recipes {folder}/recipes"
        self.command = f"python scripts/reproduce.py {{table}} {places}"

    def shell(self, command: str, cold: bool = False) -> str:
        """Run a command as bash reads it → what it printed; ``cold``: with an interpreter that starts from nothing."""
        environment = dict(self._environment)
        if cold:
            environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def make_what_is_missing(self, listing: str) -> int:
        """Do what the listing says, line by line → how many commands that were."""
        number = 0
        for line in listing.splitlines():
            if line.startswith("  ! by hand: "):
                self._server.by_hand(line)
            elif line.startswith("  $ "):
                script = line.split()[2]
                cold = script in ("scripts/download.py", "scripts/build_captions.py") and script not in self._started_cold
                self._started_cold.add(script)
                self.shell(line.removeprefix("  $ "), cold)
                number += 1
        return number


def write_recipes(folder: Path) -> None:
    """Every recipe of ours with less of everything."""
    for path in sorted((ROOT / "configs").glob("*/*.yaml")):
        kind, recipe = path.parent.name, yaml.safe_load(path.read_text(encoding="utf-8"))
        if kind == "speed":
            recipe = SPEED
        else:
            recipe |= LESS[kind] | {"workers": 0, "precision": "fp32"}
        if recipe.get("model", {}).get("kind") == "uniter":
            recipe = recipe | {name: recipe[name] | less for name, less in RERANKER.items()}
        if path.name == "coco_reranked.yaml":  # of the thousand pictures that COCO's folds need there would be 200,000 pairs
            recipe["captions"] = recipe["captions"].replace("_test_", "_val_")
        (folder / kind).mkdir(parents=True, exist_ok=True)
        (folder / kind / path.name).write_text(yaml.safe_dump(recipe), encoding="utf-8")


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rehearsal")
    (folder / "public").mkdir()
    (folder / "bin").mkdir()
    write_recipes(folder / "recipes")
    with PublicServer(folder / "public") as server, warm_python(folder / "bin") as environment:
        yield Rehearsal(folder, server, environment)


@pytest.mark.parametrize("table", TABLES)
def test_a_table_from_nothing_by_the_commands_that_are_printed(rehearsal, table):
    command = rehearsal.command.format(table=table)
    listing = rehearsal.shell(f"{command} --dry-run")
    planned = re.findall(r"^  \d+\. (.*)$", listing, re.MULTILINE)
    if rehearsal.make_what_is_missing(listing):
        after = rehearsal.shell(f"{command} --dry-run")
        assert "[missing]" not in after and "  $ " not in after and "  ! " not in after
        assert re.findall(r"^  \d+\. (.*)$", after, re.MULTILINE) == planned
    else:
        assert "[missing]" not in listing
    if table == "flickr30k":  # step by step, as somebody does who runs them on a cluster
        for step in planned:
            rehearsal.shell(step, cold=step.startswith("python eval_itm.py"))
    shown = rehearsal.shell(command)
    assert re.findall(r"^\$ (.*)$", shown, re.MULTILINE) == planned, "what is run is what is printed"
    summary = json.loads((rehearsal.folder / f"runs/{table}.json").read_text())
    rows = summary["rows"]
    assert [row["name"] for row in rows] == [row.name for row in TABLES[table].rows]
    for row in rows:
        for metric, value in row["measured"].items():
            if metric in row["intervals"]:
                assert row["intervals"][metric]["low"] <= value <= row["intervals"][metric]["high"], (row["name"], metric)
    assert all(row["intervals"] for row in rows)
    text = (rehearsal.folder / f"runs/{table}.md").read_text()
    assert text in shown and TABLES[table].title in text
    check_numbers(table, rows)


def check_numbers(table: str, rows: list[dict]) -> None:
    """How much was asked about, and of what."""
    if table in ("coco5k", "coco1k", "coco-zeroshot"):
        assert {row["images"] for row in rows} == {len(COCO["test"])}
    if table.endswith("-reranked"):
        assert [("bi-encoder TR@K" in row["measured"]) for row in rows] == [False] + [True] * 6
        assert rows[1]["measured"]["bi-encoder IR@K"] < rows[2]["measured"]["bi-encoder IR@K"] <= rows[3]["measured"]["bi-encoder IR@K"]
        assert rows[3]["measured"]["AR"] != rows[6]["measured"]["AR"], "two re-rankers"
    if table == "ablation":
        assert len({json.loads(Path(row["results"]).read_text())["model"] for row in rows}) == len(rows), "a model of its own each"


def test_the_originals_own_pretraining_from_nothing(rehearsal):
    """UNITER's weights are found elsewhere and convert; databases have the original's names, and all four corpora are validated."""
    recipe = rehearsal.folder / "recipes/pretrain/original_pretrain.yaml"
    command = f"{rehearsal.command.format(table='flickr30k-zeroshot')} --pretrain-config {recipe}"
    rehearsal.make_what_is_missing(rehearsal.shell(f"{command} --dry-run"))
    shown = rehearsal.shell(command)
    assert "[missing]" not in shown and "pretrain_original_pretrain/last" in shown
    metrics = (rehearsal.folder / "runs/pretrain_original_pretrain/metrics.jsonl").read_text()
    assert all(f"val/{name}/cmr/" in metrics for name in ("coco", "vg", "conceptual_captions", "sbu"))


def test_pictures_that_must_not_be_trained_on_are_left_out(rehearsal):
    """A picture of COCO is one of Flickr30k's test, one of Visual Genome's of COCO's test, another of Flickr30k: three are left out."""
    listing = rehearsal.shell(rehearsal.command.format(table="flickr30k-zeroshot") + " --dry-run")
    rehearsal.make_what_is_missing(listing)
    excluded = {name: json.loads((rehearsal.folder / f"data/db/{name}/report.json").read_text()) for name in ("pretrain_coco", "vg")}
    assert excluded["pretrain_coco"]["excluded_pictures"] == {"train": 1}
    assert sum(excluded["vg"]["excluded_pictures"].values()) in (1, 2)  # one may have been drawn into its val
    for name in ("cc", "sbu"):
        report = json.loads((rehearsal.folder / f"data/db/{name}/report.json").read_text())
        assert (report["missing_pictures"]["count"], report["splits"]["train"]["captions"]) == {"cc": (7, 12), "sbu": (31, 60)}[name]
