"""A small run: its folder, a save, and what a save holds."""

import dataclasses
from dataclasses import dataclass, field

import torch

from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.distributed import SINGLE
from model.transformer import EncoderConfig
from optim.optimizer import OptimOptions, build_optimizer
from optim.run import Run
from optim.saving import Saver


@dataclass
class Config:
    out: str = "x"
    optim: OptimOptions = field(default_factory=OptimOptions)
    languages: list[str] | None = None
    epochs: int = 3
    workers: int = 0
    keep_checkpoints: int = 1
    resume: bool = False


def small_model(seed=0, feature_dim=4):
    torch.manual_seed(seed)
    sizes = EncoderConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=8,
    )  # fmt: skip
    config = LightningDOTConfig(
        txt=sizes, img=sizes, project_dim=6, feature_dim=feature_dim, num_labels=3, cls_token_id=3
    )
    return LightningDOT(config)


def open_run(folder, config=None, resume=False, **facts):
    settings = dataclasses.replace(config or Config(), out=str(folder), resume=resume)
    return Run(settings, SINGLE, facts)


def save(
    run, step, is_best=False, keep=1, model=None, heads=None, optimizer=None, tokenizer=None, own=None, **training
):
    """Save, and wait until it is written → the checkpoint."""
    saver = Saver(run.folder, SINGLE, keep, tokenizer, timeout=5)
    model = model or small_model()
    optimizer = optimizer or build_optimizer([model], OptimOptions())
    saver.save(step, model, optimizer, training, own or {}, is_best, heads)
    saver.wait()
    return run.folder / "checkpoints" / f"step-{step:08d}"


def loaded(run):
    saved = run.load()
    return saved and saved[0]


def checkpoints(run):
    return sorted(path.name for path in (run.folder / "checkpoints").iterdir())


def target(run, name):
    return (run.folder / name).resolve().name
