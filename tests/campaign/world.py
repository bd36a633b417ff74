"""A small world of everything that a command reads: made once by the commands themselves, without damage."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import yaml

from tests.campaign import foreign
from tests.campaign.children import Child, Command
from tests.campaign.isolation import ROOT, become_nobody
from tests.tiny_marian import make_marian

TINY = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 80, "project_dim": 24, "initializer_range": 0.1, "dropout": 0.1,
}  # fmt: skip
PRETRAIN = {
    "data": [{
        "name": "scenes", "captions": "db/train", "val_captions": "db/val", "regions": "regions",
        "tasks": {"cmr": 2, "vmlm": 1, "mrfr": 1, "mrckl": 1, "mrc": 1},
    }],
    "model": TINY, "optim": {"lr": 2e-3, "warmup_steps": 2}, "tokens_per_batch": 500, "num_steps": 6, "valid_every": 3,
    "save_every": 2, "log_every": 1, "device": "cpu", "output_dir": "out",
}  # fmt: skip
FINETUNE = {
    "train_captions": "db/train", "val_captions": "db/val", "train_regions": "regions", "languages": ["en"],
    "optim": {"lr": 1e-3}, "batch_size": 8, "epochs": 2, "log_every": 1, "save_every": 2, "device": "cpu", "output_dir": "out", "model": {"init": "pre/last"},
}  # fmt: skip
RERANKER = FINETUNE | {
    "epochs": 1, "model": {"kind": "uniter", "init": "pre/last"}, "reranker": {"miner": "pre/last", "top": 4},
    "hard_negatives": {"count": 2, "window": "0-6", "from_epoch": 1},
}  # fmt: skip
ORIGINAL = {
    "conf_th": 0.2, "max_bb": 100, "min_bb": 10, "num_bb": 36, "max_txt_len": 60, "fp16": True, "pin_mem": True, "compressed_db": False,
    "seed": 42, "project_dim": 768, "txt_model_type": "bert-base", "txt_model_config": "bert-base-cased", "img_model_type": "uniter-base",
    "img_model_config": "./config/img_base.json", "img_checkpoint": "./data/model/uniter-base.pt", "train_txt_dbs": ["db/train.db/"],
    "train_img_dbs": ["img/flickr30k/"], "val_txt_db": "db/val.db/", "val_img_db": "img/flickr30k/", "test_txt_db": "db/test.db/",
    "test_img_db": "img/flickr30k/", "train_batch_size": 64, "gradient_accumulation_steps": 1, "learning_rate": 2e-5, "warmup_steps": 100,
    "valid_steps": 500, "num_train_epochs": 15, "output_dir": "runs/original", "num_hard_negatives": 0, "hard_negatives_sampling": "none",
}  # fmt: skip
SMALL = ["--feature-dim", "32", "--num-labels", "11", "--size", "64", "--workers", "0"]
SEARCHED = ["--index", "img", "--checkpoint", "fine/best"]
EVALUATED = ["--checkpoint", "fine/best", "--captions", "db/test", "--regions", "regions", "--device", "cpu"]
TOKENIZED = ["--annotations", "captions.jsonl", "--tokenizer", "tokenizer"]
OWN = ["scripts/prepare.py", "--captions", "captions.jsonl", "--vocab-size", "200", "--extractor", "random-conv", "--extract", "feature-dim=32", "num-labels=11", "size=64", "workers=1", "--out", "own"]  # fmt: skip
FOUND = ["scripts/prepare.py", "--checkpoint", "fine/best", "--extract", "workers=1", "--out", "found"]

STEPS = [
    ["scripts/make_scenes.py", "--out", ".", "--train", "14", "--val", "5", "--test", "6", "--size", "64", "--workers", "1"],
    ["scripts/train_tokenizer.py", "--annotations", "captions.jsonl", "--vocab-size", "300", "--out", "tokenizer"],
    ["scripts/build_captions.py", *TOKENIZED, "--languages", "en", "de", "--out", "db"],
    ["scripts/extract_regions.py", "--photos", "photos", "--out", "regions", *SMALL],
    ["pretrain.py", "--config", "pretrain.yaml", "--output-dir", "pre"],
    ["train_itm.py", "--config", "finetune.yaml", "--output-dir", "fine"],
    ["train_itm.py", "--config", "finetune.yaml", "--output-dir", "other", "--seed", "7"],
    ["train_itm.py", "--config", "uniter.yaml", "--output-dir", "uniter"],
    ["scripts/build_index.py", "--checkpoint", "fine/best", "--regions", "regions", "--out", "img", "--device", "cpu"],
    ["scripts/build_index.py", "--checkpoint", "fine/best", "--captions", "db/test", "--out", "txt", "--device", "cpu"],
    ["eval_itm.py", *EVALUATED, "--output-dir", "eval"],
    ["eval_itm.py", *EVALUATED, "--output-dir", "eval_b", "--checkpoint", "other/best"],
    ["scripts/score_pairs.py", "--reranker", "uniter/best", "--checkpoint", "fine/best", "--captions", "db/train", "--regions", "regions",
     "--top", "6", "--languages", "en", "--device", "cpu", "--out", "teacher.npz"],
    ["scripts/convert_checkpoint.py", "pre/last", "original.pt", "--to", "original"],
]  # fmt: skip
STOPPED = {
    "stopped": ["pretrain.py", "--config", "pretrain.yaml", "--output-dir", "stopped"],
    "stopped_fine": ["train_itm.py", "--config", "finetune.yaml", "--output-dir", "stopped_fine"],
}


def make_world(folder: Path, log: Path, say: Callable[[str], None]) -> None:
    """Make it in a folder that is nobody's. Raises RuntimeError when a command fails."""
    Child(lambda: (become_nobody(), write_recipes(folder))[1]).result()
    for words in STEPS:
        say(" ".join(words[:1]))
        run(words, folder, log)
    for words in STOPPED.values():
        say(f"{words[0]}, stopped")
        run(words, folder, log, status=75, before=stop_after_some_steps)
    say("files of others")
    Child(lambda: (become_nobody(), os.chdir(folder), write_files(folder))[2]).result()
    for words in (OWN, FOUND):
        say(f"{words[0]}, of photographs that change")
        run([*words, "--photos", "fewer"], folder, log)


def run(words: list[str], folder: Path, log: Path, status: int = 0, before: Callable[[], None] | None = None) -> None:
    def in_child() -> list:
        if before:
            before()
        ended = Command(words, folder, log).wait(300)
        return [ended.status, ended.errors[-2000:]]

    found, errors = Child(in_child).result()
    if found != status:
        raise RuntimeError(f"{' '.join(words)}: status {found}, expected {status}\n{errors}")


def stop_after_some_steps() -> None:
    """In the process that a training is forked from: it is told to stop behind its third line of metrics."""
    from optim.run import Run

    log = Run.log

    def log_and_stop(self, step, *values, **more):
        log(self, step, *values, **more)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    Run.log = log_and_stop


def write_recipes(folder: Path) -> None:
    for name, recipe in (("pretrain", PRETRAIN), ("finetune", FINETUNE), ("uniter", RERANKER)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "bert.json").write_text('{"num_attention_heads": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12}')
    evaluation = {"checkpoint": "fine/best", "captions": "db/test", "regions": "regions", "device": "cpu", "bootstrap": 20, "output_dir": "out"}
    (folder / "eval.yaml").write_text(yaml.safe_dump(evaluation))
    (folder / "queries.txt").write_text("a red circle\ntwo blue squares\nein Kreis\n")
    (folder / "sources.yaml").write_text(yaml.safe_dump({"x": {"title": "x", "licence": "none", "page": "none", "by_hand": ["nothing to do"]}}))
    (folder / "original.json").write_text(json.dumps(ORIGINAL))


def write_files(folder: Path) -> None:
    """What no command of ours writes: annotations, regions, scores and archives in the forms of others."""
    from data.captions.db import CaptionDB
    from data.regions.db import RegionDB

    captions, regions = CaptionDB("db/test"), RegionDB("regions")
    foreign.write_annotations(folder / "annotations", folder / "captions.jsonl")
    foreign.write_regions(folder / "forms", regions)
    foreign.write_archives(folder, folder / "photos")
    (folder / "photo").mkdir()
    for path in sorted((folder / "photos").iterdir())[:5]:
        (folder / "photo" / path.name).write_bytes(path.read_bytes())
    write_scores(folder / "scores", [name for name in captions.ids], sorted({captions[name]["img_fname"] for name in captions.ids}))
    for kind in ("pretrain", "finetune", "eval"):
        (folder / "recipes" / kind).mkdir(parents=True)
        for path in (ROOT / "configs" / kind).glob("*flickr30k*.yaml" if kind != "pretrain" else "paper.yaml"):
            shutil.copyfile(path, folder / "recipes" / kind / path.name)
    shutil.copytree(Path(__file__).resolve().parents[1] / "fixtures/uniter_db/txt", folder / "uniter_db/txt")
    foreign.write_uniter_db(folder / "uniter_db/img", regions)
    for path in sorted((Path(__file__).resolve().parents[2] / "benchmarks").glob("retrieval*.json"))[:1]:
        shutil.copy(path, folder / "measured.json")
    make_marian(folder / "marian", [captions[name]["raw"] for name in captions.ids])
    foreign.write_models(folder / "others", folder / "tokenizer/vocab.txt")
    shutil.copyfile(sorted((folder / "photos").iterdir())[2], folder / "asked.jpg")
    write_former_photographs(folder)
    (folder / "lists").mkdir()
    names = [line.split("#")[0] for line in (folder / "annotations/results.token").read_text().splitlines()]
    for name, part in (("train", names[:12]), ("val", names[12:]), ("excluded", names[3:5])):
        (folder / f"lists/{name}.txt").write_text("".join(f"{each}\n" for each in part))
    (folder / "delete.txt").write_text("\n".join(sorted(regions.keys)[:3]) + "\n")
    (folder / "pictures.txt").write_text("\n".join(path.name for path in sorted((folder / "photos").iterdir())[:6]) + "\n")


def write_former_photographs(folder: Path) -> None:
    """``fewer``: the photographs as they were before two came, one was changed, and one was deleted."""
    first, second, third, *others = sorted((folder / "photos").iterdir())
    (folder / "fewer").mkdir()
    for path in others:
        shutil.copy2(path, folder / "fewer" / path.name)
    shutil.copyfile(first, folder / "fewer" / third.name)
    shutil.copyfile(second, folder / "fewer" / "deleted.jpg")


def write_scores(folder: Path, captions: list[str], images: list[str]) -> None:
    import torch

    folder.mkdir()
    scores = np.random.default_rng(0).standard_normal((len(captions), len(images))).astype(np.float32)
    np.savez(folder / "matrix.npz", scores=scores, caption_ids=np.array(captions), image_ids=np.array(images))
    np.save(folder / "matrix.npy", scores)
    (folder / "captions.txt").write_text("\n".join(captions))
    (folder / "images.txt").write_text("\n".join(images))
    rows = [f"{c}\t{i}\t{scores[a, b]}" for a, c in enumerate(captions) for b, i in enumerate(images)]
    (folder / "list.tsv").write_text("\n".join(["caption\timage\tscore", *rows]) + "\n")
    (folder / "results.bin").write_bytes(pickle.dumps((scores, captions, images), protocol=2))
    torch.save(torch.from_numpy(scores), folder / "tensor.bin")
