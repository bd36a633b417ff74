"""A world of 40 pictures, made once per session by the real commands: databases, and a tiny pre-trained model."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the Hugging Face hub; those of it have a server of their own
os.environ["OMP_NUM_THREADS"] = "1"  # before torch: sums in one order, here and in the commands; tiny models run faster
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a script that starts the tests in the background lets them, and all they start, ignore

ROOT = Path(__file__).resolve().parents[1]

TINY = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": 80, "project_dim": 24, "initializer_range": 0.1, "dropout": 0.1,
}  # fmt: skip
PRETRAIN = {
    "data": [
        {
            "name": "scenes", "captions": "db/train", "val_captions": "db/val", "regions": "regions",
            "tasks": {"cmr": 2, "vmlm": 1, "mrfr": 1, "mrckl": 1, "mrc": 1},
        },
        {"name": "german", "captions": "db_de/train", "regions": "regions", "tasks": {"cmr": 1}},
    ],
    "model": TINY, "optim": {"lr": 2e-3, "warmup_steps": 4}, "tokens_per_batch": 700, "grad_accumulation": 2,
    "num_steps": 32, "valid_every": 8, "log_every": 1,
}  # fmt: skip
FINETUNE = {
    "train_captions": "db/train", "val_captions": "db/val", "train_regions": "regions",
    "optim": {"lr": 1e-3, "warmup_ratio": 0.1}, "batch_size": 16, "epochs": 2, "log_every": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_handler_stays():
    """A training that a test runs in this process takes the signals for good, as its command may."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def command():
    """Run ``command("pretrain.py", "--config", file)`` as a shell would, and expect the exit status."""

    def run(script, *words, status=0) -> subprocess.CompletedProcess:
        done = subprocess.run([sys.executable, ROOT / script, *map(str, words)], capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def small_world(tmp_path_factory, command) -> Path:
    """Folder with photos/, captions.jsonl, tokenizer/, db/ and db_de/ (train, val, test), regions/, and the recipes
    pretrain.yaml and finetune.yaml, which lack the output folder."""
    root = tmp_path_factory.mktemp("small_world")
    command(
        "scripts/make_scenes.py", "--out", root, "--train", 24, "--val", 8, "--test", 8, "--size", 96, "--workers", 1
    )
    annotations = ["--annotations", root / "captions.jsonl"]
    command("scripts/train_tokenizer.py", *annotations, "--vocab-size", 500, "--out", root / "tokenizer")
    tokenized = [*annotations, "--tokenizer", root / "tokenizer"]
    command("scripts/build_captions.py", *tokenized, "--languages", "en", "de", "--out", root / "db")
    command("scripts/build_captions.py", *tokenized, "--languages", "de", "--out", root / "db_de")
    small = ["--feature-dim", 32, "--num-labels", 11, "--size", 64, "--workers", 0]
    command("scripts/extract_regions.py", "--photos", root / "photos", "--out", root / "regions", *small)
    for name, recipe in (("pretrain", PRETRAIN), ("finetune", FINETUNE)):
        (root / f"{name}.yaml").write_text(yaml.safe_dump({"data_root": str(root)} | recipe))
    return root


@pytest.fixture(scope="session")
def pretrained(small_world, command) -> Path:
    """The run folder of ``pretrain.py --config pretrain.yaml``."""
    command("pretrain.py", "--config", small_world / "pretrain.yaml", "--out", small_world / "pretrained")
    return small_world / "pretrained"


@pytest.fixture(scope="session")
def finetuned(small_world, pretrained, command) -> Path:
    """The run folder of ``train_itm.py --config finetune.yaml``, from the end of the pre-training."""
    words = ["--config", small_world / "finetune.yaml", "--model.init", pretrained / "last"]
    command("train_itm.py", *words, "--out", small_world / "finetuned")
    return small_world / "finetuned"


@pytest.fixture
def homeless(monkeypatch):
    """A user without a home directory, as in containers that run under any number."""

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
