"""Several languages: one model for all by a sampling temperature, and an English model on translations; tables of both."""

import json

import numpy as np
import pytest
import yaml
from tiny_marian import make_marian

import train_itm
from configs import cli
from data.batches.pairs import open_pairs
from data.batches.samplers import epoch_draws, tempered_order
from data.captions.db import CaptionDB
from data.errors import BadInput
from data.regions.db import BoxOptions
from model.evaluation.recall import METRICS
from model.evaluation.tasks import captions_by_language

LANGUAGES = ["en", "de", "fr", "cs"]


@pytest.fixture(scope="module")
def four(small_world, tmp_path_factory, command):
    """Folder with a text DB as Multi30K's: several captions in English and German, one in French and Czech; and a run on it."""
    root = tmp_path_factory.mktemp("four")
    lines = []
    for line in (small_world / "captions.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        captions = record["captions"]
        record["captions"] = {name: captions[name] for name in ("en", "de")}
        record["aligned"] = {name: captions[name][0] for name in LANGUAGES}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    (root / "captions.jsonl").write_text("".join(lines), encoding="utf-8")
    words = ["--annotations", root / "captions.jsonl", "--fields", "captions", "aligned", "--out", root / "db"]
    command("scripts/build_captions.py", *words, "--tokenizer", small_world / "tokenizer")
    recipe = yaml.safe_load((small_world / "finetune.yaml").read_text())
    recipe |= {"data_root": ".", "train_regions": str(small_world / "regions"), "languages": LANGUAGES}
    recipe |= {f"{split}_captions": str(root / "db" / split) for split in ("train", "val")}
    recipe |= {"language_temperature": 3.0, "epochs": 1, "batch_size": 32, "model": TINY}
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command("train_itm.py", "--config", root / "recipe.yaml", "--out", root / "run")
    return root


TINY = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 80, "project_dim": 24, "initializer_range": 0.1,
}  # fmt: skip


def test_an_epoch_mixes_the_languages_by_the_temperature(four, small_world):
    pairs = open_pairs(str(four / "db/train"), str(small_world / "regions"), BoxOptions(), languages=LANGUAGES)
    spoken = captions_by_language(pairs)
    assert {name: len(rows) for name, rows in spoken.items()} == {"en": 120, "de": 48, "fr": 24, "cs": 24}
    weights = np.array([120, 48, 24, 24]) ** (1 / 3)
    order = tempered_order(list(spoken.values()), 3.0, 42, 0)
    drawn = [sum(pairs.captions.languages[pairs.ids[int(i)]] == name for i in order) for name in LANGUAGES]
    assert drawn == pytest.approx(len(pairs) * weights / weights.sum(), abs=1)
    metrics = [json.loads(line) for line in (four / "run/metrics.jsonl").read_text().splitlines()]
    steps = len(list(epoch_draws(len(pairs), 32, 42, 0)))
    assert max(line["step"] for line in metrics) == steps, "an epoch is as long as without a temperature"


def test_validation_chooses_by_the_mean_over_the_languages(four):
    metrics = [json.loads(line) for line in (four / "run/metrics.jsonl").read_text().splitlines()]
    found = next(line for line in metrics if "val/all/AR" in line)
    assert found["val/all/AR"] == pytest.approx(np.mean([found[f"val/{name}/AR"] for name in LANGUAGES]))


def test_the_temperature_reaches_the_run(four, command):
    words = ["--config", four / "recipe.yaml", "--out", four / "plain", "--language-temperature", 1]
    command("train_itm.py", *words)
    losses = {}
    for name in ("run", "plain"):
        metrics = [json.loads(line) for line in (four / name / "metrics.jsonl").read_text().splitlines()]
        losses[name] = [line["train/cmr/loss"] for line in metrics if "train/cmr/loss" in line]
    assert len(losses["run"]) == len(losses["plain"]) > 1 and losses["run"] != losses["plain"]


def evaluation_of(four, name):
    """results.json of the run's evaluation of a split."""
    return json.loads(next((four / "run/eval").glob(f"*/{name}/results.json")).read_text())


def test_a_table_of_languages(four, small_world, command):
    words = ["--checkpoint", four / "run/best", "--regions", small_world / "regions", "--captions", four / "db/test"]
    shown = command("eval_itm.py", *words, "--languages", *LANGUAGES, "--bootstrap", 20).stdout
    results = evaluation_of(four, "test")["recall"]
    assert set(results) == {*LANGUAGES, "all", "chance"}
    for metric in METRICS:
        assert results["all"][metric] == pytest.approx(np.mean([results[name][metric] for name in LANGUAGES]))
    for name in LANGUAGES:
        assert any(line.split()[:1] == [name] and len(line.split()) == len(METRICS) + 3 for line in shown.splitlines())


def test_a_translated_database_is_evaluated_by_language(four, small_world, command):
    """The others' captions come to an English model as English words, under their own language's name."""
    for name in LANGUAGES[1:]:
        lines = [
            json.loads(line)["aligned"] for line in (four / "captions.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        make_marian(four / f"opus-mt-{name}-en", [line[each] for line in lines for each in (name, "en")])
    words = ["--captions", four / "db/test", "--tokenizer", small_world / "tokenizer", "--out", four / "translated"]
    command("scripts/translate.py", *words, "--model", four / "opus-mt-{language}-en", "--max-length", 8)
    before, after = CaptionDB(four / "db/test"), CaptionDB(four / "translated")
    assert after.ids[:] == before.ids[:] and after.fingerprint() != before.fingerprint()
    words = ["--checkpoint", four / "run/best", "--regions", small_world / "regions", "--captions", four / "translated"]
    command("eval_itm.py", *words, "--languages", *LANGUAGES, "--bootstrap", 0)
    tables = [
        evaluation_of(four, name)["recall"]
        for name in ("test", "translated")
    ]
    assert tables[0]["en"] == tables[1]["en"] and set(tables[1]) == {*LANGUAGES, "all", "chance"}
    assert any(tables[0][name] != tables[1][name] for name in LANGUAGES[1:])


def test_a_temperature_below_one_is_refused():
    words = ["--out", "x", "--train-captions", "a", "--train-regions", "b", "--val-captions", "c"]
    with pytest.raises(BadInput, match=r"language_temperature must be at least 1, found 0.5"):
        cli.parse(train_itm.CONFIGS, [*words, "--language-temperature", "0.5"])
