"""The whole path through the real commands, on a world of 40 pictures."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import eval_itm
import pretrain
import train_itm
from configs import cli
from data.captions.db import CaptionDB
from data.index.reader import EmbeddingIndex
from data.regions.db import RegionDB
from model.bi_encoder import LightningDOT
from scripts import build_index

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("cmr", "vmlm", "mrfr", "mrckl", "mrc")


def metrics(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_speed(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if not k.startswith("speed/")} for line in lines]


def same_tensors(first: Path, second: Path) -> bool:
    a, b = load_file(first), load_file(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def run_here(module, config_class, *words):
    """The command in this process: importing torch takes longer than these runs."""
    module.main(cli.parse(config_class, [str(word) for word in words]))


# ---- pre-training ----------------------------------------------------------------------------------------------------


def test_pretraining_trains_and_validates_every_task_and_keeps_best_and_last(pretrained, small_world):
    lines = metrics(pretrained)
    trained, validated = [x for x in lines if "lr" in x], [x for x in lines if "val/loss" in x]
    assert [x["step"] for x in trained] == list(range(1, 33)) and [x["step"] for x in validated] == [8, 16, 24, 32]
    losses = {name for x in trained for name in x if name.startswith("train/")}
    assert losses == {f"train/scenes/{task}/loss" for task in TASKS} | {"train/german/cmr/loss"}
    per_step = [sum(name.startswith("train/") for name in x) for x in trained]
    assert set(per_step) == {1}  # a step, all its accumulated batches, is of one task
    assert all(np.isfinite(x[f"val/scenes/{task}/loss"]) for x in validated for task in TASKS)
    # What was learnt carries over to other pictures; 32 steps on 40 are too few for the soft labels.
    for name in ("val/scenes/cmr/loss", "val/scenes/vmlm/loss", "val/scenes/mrfr/loss", "val/loss"):
        assert validated[-1][name] < validated[0][name], name
    ratios = {"cmr": 2, "vmlm": 1, "mrfr": 1, "mrckl": 1, "mrc": 1}
    mean = sum(ratio * validated[-1][f"val/scenes/{task}/loss"] for task, ratio in ratios.items()) / 6
    assert validated[-1]["val/loss"] == pytest.approx(mean)

    best = min(validated, key=lambda x: x["val/loss"])
    assert (pretrained / "best").resolve().name == f"step-{best['step']:08d}"
    assert (pretrained / "last").resolve().name == "step-00000032"
    kept = {p.name for p in (pretrained / "checkpoints").iterdir()}
    assert kept == {(pretrained / name).resolve().name for name in ("best", "last")}
    saved = cli.parse(pretrain.PretrainConfig, ["--config", str(pretrained / "config.yaml")])
    words = ["--config", str(small_world / "pretrain.yaml"), "--out", str(pretrained)]
    assert saved == cli.parse(pretrain.PretrainConfig, words)
    facts = json.loads((pretrained / "run.json").read_text())
    assert facts["effective_batch_tokens"] == 1400 and "git" in facts
    assert facts["captions"]["scenes"] > facts["captions"]["german"] > 0
    assert list((pretrained / "tensorboard").iterdir())


KILLED = """
import os, runpy, signal, sys, time
sys.path.insert(0, sys.argv.pop(1))
from optim.run import Run
log, validated = Run.log, []

def log_and_die(run, step, values, *more):
    log(run, step, values, *more)
    if "lr" in values and validated:
        while not (run.folder / "last").exists():  # it is written in the background
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    validated.extend([step] * ("lr" not in values))

Run.log = log_and_die
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_killed(*words) -> None:
    """A command that is killed, as by a crash, at the first line of metrics after its first validation."""
    done = subprocess.run([sys.executable, "-c", KILLED, *map(str, (ROOT, *words))], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]


def test_stopped_pretraining_goes_on_as_if_never_stopped(tmp_path, small_world, pretrained, command):
    words = ["--config", small_world / "pretrain.yaml", "--out", tmp_path / "run"]
    # the worker draws ahead of what is trained; what it drew and nobody saw must be drawn again
    run_killed(ROOT / "pretrain.py", *words, "--workers", 1)
    assert (tmp_path / "run" / "last").resolve().name < "step-00000032"
    with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
        file.write('{"step": 31, "train/sce')  # a line that was being written
    done = command("pretrain.py", *words, "--resume")
    assert "resumed at step" in done.stdout
    for name in ("model", "heads"):
        assert same_tensors(tmp_path / f"run/last/{name}.safetensors", pretrained / f"last/{name}.safetensors")
    assert without_speed(metrics(tmp_path / "run")) == without_speed(metrics(pretrained))
    assert os.readlink(tmp_path / "run" / "best") == os.readlink(pretrained / "best")


def test_without_validation_the_last_checkpoint_is_the_best(small_world, tmp_path, capsys):
    run, data = tmp_path / "run", "[{name: a, captions: db/train, regions: regions, tasks: {cmr: 1}}]"
    run_here(pretrain, pretrain.PretrainConfig, "--config", small_world / "pretrain.yaml", "--data", data, "--num-steps", 2, "--out", run)
    assert f"last checkpoint {run / 'last'}, which is the best: no corpus has val_captions\n" in capsys.readouterr().out
    assert os.readlink(run / "best") == os.readlink(run / "last")


@pytest.fixture
def short(small_world, tmp_path):
    """Pre-train for one update, in this process, with other settings → the metrics of its validation."""

    def run(*words) -> dict:
        out = tmp_path / "_".join(words).replace("/", "_")
        fixed = ["--config", small_world / "pretrain.yaml", "--num-steps", 2, "--valid-every", 2, "--out", out]
        run_here(pretrain, pretrain.PretrainConfig, *fixed, *words)
        return metrics(out)[-1]

    return run


def test_fusion_and_siblings_change_their_objectives_only(short):
    plain = short("--optim.lr", "1e-12")  # the weights stay where they are: what differs is the objective
    for fusion in ("none", "multiply"):
        other = short("--optim.lr", "1e-12", "--fusion", fusion)
        for task in TASKS:
            key = f"val/scenes/{task}/loss"
            assert (abs(other[key] - plain[key]) > 1e-6) == (task != "cmr"), (fusion, task)
    keep = short("--optim.lr", "1e-12", "--siblings", "keep")
    assert keep["val/scenes/cmr/loss"] > plain["val/scenes/cmr/loss"] + 1e-3  # more negatives
    assert keep["val/scenes/vmlm/loss"] == pytest.approx(plain["val/scenes/vmlm/loss"], rel=1e-6)


def test_bf16_is_near_fp32(short):
    plain, half = short(), short("--precision", "bf16")
    for task in TASKS:
        key = f"val/scenes/{task}/loss"
        assert half[key] != plain[key] and half[key] == pytest.approx(plain[key], rel=0.05)


# ---- fine-tuning -----------------------------------------------------------------------------------------------------


def naive_embeddings(checkpoint: Path, captions: CaptionDB, regions: RegionDB):
    """One caption, one image at a time → {caption id: vector}, {image key: vector}."""
    model = LightningDOT.from_pretrained(checkpoint)
    txt, img = {}, {}
    with torch.no_grad():
        for name in captions.ids:
            ids = torch.tensor([[captions.meta["CLS"], *captions.input_ids(name), captions.meta["SEP"]]])
            txt[name] = model.encode_text(ids, torch.ones_like(ids))[0].numpy()
        for key in captions.img2txts:
            image = regions[key]
            features, positions = (torch.from_numpy(np.array(a))[None] for a in (image.features, image.positions))
            img[key] = model.encode_image(features, positions, torch.ones(1, len(image)))[0].numpy()
    return txt, img


def naive_recall(txt: dict, img: dict, image_of: dict) -> dict[str, float]:
    hits = {f"{way}@{k}": [] for way in ("TR", "IR") for k in (1, 5, 10)}
    for name, vector in txt.items():
        ranked = sorted(img, key=lambda key: -float(vector @ img[key]))
        for k in (1, 5, 10):
            hits[f"IR@{k}"].append(image_of[name] in ranked[:k])
    for key, vector in img.items():
        ranked = sorted(txt, key=lambda name: -float(vector @ txt[name]))
        for k in (1, 5, 10):
            hits[f"TR@{k}"].append(any(image_of[name] == key for name in ranked[:k]))
    table = {name: 100 * float(np.mean(each)) for name, each in hits.items()}
    return table | {"AR": float(np.mean(list(table.values())))}


def naive_tables(checkpoint: Path, captions: CaptionDB, regions: RegionDB) -> dict[str, dict[str, float]]:
    txt, img = naive_embeddings(checkpoint, captions, regions)
    tables = {}
    for language in ("en", "de"):
        part = {name: vector for name, vector in txt.items() if captions.languages[name] == language}
        tables[language] = naive_recall(part, img, captions.txt2img)
    tables["all"] = {name: (tables["en"][name] + tables["de"][name]) / 2 for name in tables["en"]}
    return tables


def test_finetuning_shows_recall_of_each_epoch_and_keeps_the_best(finetuned, small_world):
    lines = metrics(finetuned)
    epochs = [x for x in lines if "epoch" in x]
    trained = [x for x in lines if "lr" in x]
    assert [x["epoch"] for x in epochs] == [1, 2]
    assert [x["step"] for x in trained] == list(range(1, epochs[-1]["step"] + 1))
    assert trained[-1]["train/cmr/loss"] < trained[0]["train/cmr/loss"]
    best = json.loads((finetuned / "best" / "val.json").read_text())
    expected = max(epochs, key=lambda x: x["val/all/AR"])
    assert best["epoch"] == expected["epoch"] and best["recall"]["all"]["AR"] == expected["val/all/AR"]
    assert (finetuned / "best").resolve().name == f"step-{expected['step']:08d}"
    captions, regions = CaptionDB(small_world / "db/val"), RegionDB(small_world / "regions")
    naive = naive_tables(finetuned / "last", captions, regions)
    for name, table in naive.items():
        assert {k: epochs[-1][f"val/{name}/{k}"] for k in table} == pytest.approx(table), name


def test_stopped_finetuning_goes_on_as_if_never_stopped(tmp_path, small_world, pretrained, finetuned, command):
    words = ["--config", small_world / "finetune.yaml", "--model.init", pretrained / "last"]
    words += ["--out", tmp_path / "run"]
    run_killed(ROOT / "train_itm.py", *words)
    done = command("train_itm.py", *words, "--resume")
    assert "resumed at step" in done.stdout
    assert same_tensors(tmp_path / "run/last/model.safetensors", finetuned / "last/model.safetensors")
    assert without_speed(metrics(tmp_path / "run")) == without_speed(metrics(finetuned))
    assert os.readlink(tmp_path / "run" / "best") == os.readlink(finetuned / "best")
    before = (tmp_path / "run" / "last" / "model.safetensors").stat().st_mtime_ns
    run_here(train_itm, train_itm.CONFIGS, *words, "--resume")  # nothing is left to do
    assert (tmp_path / "run" / "last" / "model.safetensors").stat().st_mtime_ns == before
    assert len(metrics(tmp_path / "run")) == len(metrics(finetuned))


# ---- retrieval -------------------------------------------------------------------------------------------------------


def test_evaluation_is_naive_recall_and_uses_its_indexes_again(finetuned, small_world, tmp_path, command, capsys):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(finetuned / "last", checkpoint)
    words = ["--checkpoint", checkpoint, "--captions", small_world / "db/test", "--regions", small_world / "regions"]
    shown = command("eval_itm.py", *words).stdout
    out = checkpoint / "eval" / "test"
    results = json.loads((out / "results.json").read_text())
    captions = CaptionDB(small_world / "db/test")
    naive = naive_tables(checkpoint, captions, RegionDB(small_world / "regions"))
    for name, table in naive.items():
        assert results["recall"][name] == pytest.approx(table), name
    assert results["recall"]["chance"]["IR@1"] == 12.5 and results["images"] == 8
    row = next(line for line in shown.splitlines() if line.startswith("all"))
    queries = [str(2 * 8), str(len(captions))]  # the images in each of two languages, and the captions
    assert row.split()[1:] == [f"{value:.2f}" for value in results["recall"]["all"].values()] + queries
    assert str(out / "results.json") in shown

    built = {kind: (out / kind / "data.mdb").stat() for kind in ("img", "txt")}
    run_here(eval_itm, eval_itm.EvalConfig, *words)
    assert capsys.readouterr().err.count("up to date") == 2
    for kind, before in built.items():
        after = (out / kind / "data.mdb").stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert json.loads((out / "results.json").read_text())["recall"] == results["recall"]

    run_here(eval_itm, eval_itm.EvalConfig, *words, "--languages", "de", "--precision", "bf16")
    german = json.loads((out / "results.json").read_text())["recall"]
    assert list(german) == ["all", "chance"]
    assert (out / "img" / "data.mdb").stat().st_ino != built["img"].st_ino  # another precision, other vectors


def test_index_and_search_both_ways(finetuned, small_world, tmp_path, command):
    model = ["--checkpoint", finetuned / "best"]
    regions = ["--regions", small_world / "regions"]
    captions = CaptionDB(small_world / "db/test")
    txt, img = naive_embeddings(finetuned / "best", captions, RegionDB(small_world / "regions"))
    command("scripts/build_index.py", *model, *regions, "--images-of", captions.folder, "--out", tmp_path / "img")
    words = [*model, "--captions", captions.folder, "--out", tmp_path / "txt"]
    run_here(build_index, build_index.Options, *words)
    for kind, vectors in (("img", img), ("txt", txt)):
        index = EmbeddingIndex(tmp_path / kind)
        assert sorted(index.ids()) == sorted(vectors)
        np.testing.assert_allclose(index.vectors(np.arange(len(index))), [vectors[i] for i in index.ids()], atol=1e-4)

    name = captions.ids[0]
    shown = command("scripts/search.py", captions[name]["raw"], *model, "--index", tmp_path / "img", "--k", 3).stdout
    found = re.findall(r"^ *\d+ +(-?[\d.]+) +(\S+)", shown, re.MULTILINE)
    scores = {key: float(txt[name] @ vector) for key, vector in img.items()}
    assert [key for _, key in found] == sorted(scores, key=scores.get, reverse=True)[:3]
    assert float(found[0][0]) == pytest.approx(max(scores.values()), abs=1e-3)

    key = captions.txt2img[name]
    words = ["--image", key, *regions, *model, "--index", tmp_path / "txt", "--captions", captions.folder]
    shown = command("scripts/search.py", *words).stdout
    found = re.findall(r"^ *\d+ +(-?[\d.]+) +(\S+) +(.*)$", shown, re.MULTILINE)
    scores = {i: float(img[key] @ vector) for i, vector in txt.items()}
    assert [i for _, i, _ in found] == sorted(scores, key=scores.get, reverse=True)[:10]
    assert [text for _, _, text in found] == [captions[i]["raw"] for _, i, _ in found]
