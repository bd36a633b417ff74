"""How versions before the folder data/batches are measured; see version_worker.py. They pad texts and images."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import numpy as np
import torch

# by name: this version of the project has no such modules
encoding, reranking, objectives = (import_module(f"model.{name}") for name in ("encoding", "reranking", "objectives"))
SINGLE, PairDataset = import_module("optim.distributed").SINGLE, import_module("data.pairs").PairDataset
precisions, apply_update = import_module("optim.precision"), import_module("optim.optimizer").apply_update
DrawStream, Source = (getattr(import_module("data.samplers"), name) for name in ("DrawStream", "Source"))
Regions, PretrainingHeads = import_module("data.regions").Regions, objectives.PretrainingHeads
for_inference = precisions.for_inference
CPU = torch.device("cpu")


def train_step(model, heads, optimizer, data, rows: np.ndarray, task: str, precision: str) -> None:
    """Collate, forward, backward, clip, update."""

    def examples(indices: np.ndarray, soft_labels: bool) -> tuple:
        names = [str(row) for row in indices]
        images = [data.regions[data.image_of[row]] for row in indices]
        return names, names, [data.words[row] for row in indices], images

    dataset = SimpleNamespace(
        captions=data, examples=examples, image_of=np.arange(len(data.words)), image_captions=None, teacher=None
    )
    batch = PairDataset.batch(dataset, rows, task, np.random.default_rng(0))
    scaler, predictions = precisions.loss_scaler(CPU, precision), batch.num_predictions(task)
    meeting = SINGLE.meet([0], len(rows), predictions)
    with precisions.autocast(CPU, precision):
        share = objectives.forward_task(task, model, heads, batch, None, SINGLE, meeting.sizes).share(meeting.predictions)
    scaler.scale(share).backward()
    apply_update(optimizer, scaler, SINGLE, 1e-6, 5.0)


def encode_images(model, data, precision: str) -> int:
    """Embed all images → how many."""
    found = encoding.encode_images(model, data, list(data.num_regions), precision=precision, progress=False)
    return sum(len(rows) for rows, _ in found)


def encode_captions(model, data, precision: str) -> int:
    """Embed all captions → how many."""
    found = encoding.encode_captions(model, data, list(data.lengths), precision=precision, progress=False)
    return sum(len(rows) for rows, _ in found)


def encode_query(model, words: np.ndarray, precision: str) -> int:
    """Embed one text."""

    class Tokenizer:
        cls_token_id, sep_token_id, pad_token_id = 101, 102, 0

        def __call__(self, texts: list[str], add_special_tokens: bool) -> dict:
            return {"input_ids": [words]}

    return len(encoding.encode_queries(model, Tokenizer(), [""], CPU, precision))


def rerank(reranker, data, top: int, precision: str) -> int:
    """Score the first text with the first ``top`` images."""
    dataset = SimpleNamespace(captions=data, regions=data, ids=["t0"], images=list(data.num_regions))
    none, images = np.zeros(top, np.int64), np.arange(top)
    return len(reranking.score_pairs(reranker, dataset, none, images, device=CPU, precision=precision, progress=False))
