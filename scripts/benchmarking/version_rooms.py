"""How versions that have the folder data/batches are measured; see version_worker.py."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch

from data.batches.batch import Examples
from data.batches.samplers import DrawStream, Source
from data.regions.db import Regions
from model.distributed import SINGLE, Meeting
from model.objectives import OBJECTIVES
from model.objectives.backward import Backward
from model.objectives.heads import PretrainingHeads
from model.precision import for_inference, loss_scaler
from model.retrieval.encoding import Encoding, encode_batches, encode_queries
from model.retrieval.pair_scoring import PairScorer
from model.retrieval.sources import caption_source, image_source
from optim.optimizer import apply_update

try:
    from data.regions.arrays import StoredPictures
except ModuleNotFoundError:  # versions that read all regions of a batch into a list
    StoredPictures = None

__all__ = ["DrawStream", "PretrainingHeads", "Regions", "Source", "for_inference"]
CPU = torch.device("cpu")
try:
    from data.storage.memory import keep_freed_memory
except ImportError:  # versions whose trainings do not
    pass
else:
    keep_freed_memory()


def stored_pictures(data, pictures: np.ndarray):
    """The regions of pictures, as this version's batches are made of them."""
    if StoredPictures is None:
        return [data.regions[picture] for picture in pictures]
    counts = np.array([len(data.regions[picture].features) for picture in pictures])
    return StoredPictures(data, [f"i{picture}" for picture in pictures], pictures, counts)


def train_step(model, heads, optimizer, data, rows: np.ndarray, task: str, precision: str) -> None:
    """Collate, forward, backward, clip, update."""
    objective, names = OBJECTIVES[task](), [str(row) for row in rows]
    images = stored_pictures(data, data.image_of[rows])
    examples = Examples(data.meta, names, names, np.array(rows, np.int64), [data.words[row] for row in rows], images)
    batch, scaler = objective.prepare(examples, np.random.default_rng(0)), loss_scaler(CPU, precision)
    meeting = Meeting([len(rows)], objective.num_predictions(batch), False)
    Backward(model, heads, SINGLE, precision).add_gradients(objective, batch, meeting, scaler, 1)
    apply_update(optimizer, scaler, 1e-6, 5.0)


def encode_images(model, data, precision: str) -> int:
    """Embed all images → how many."""
    encoding = Encoding(CPU, precision, progress=False)
    return sum(len(rows) for rows, _ in encode_batches(image_source(model, data, list(data.num_regions)), encoding))


def encode_captions(model, data, precision: str) -> int:
    """Embed all captions → how many."""
    encoding = Encoding(CPU, precision, progress=False)
    return sum(len(rows) for rows, _ in encode_batches(caption_source(model, data, list(data.lengths)), encoding))


def encode_query(model, words: np.ndarray, precision: str) -> int:
    """Embed one text."""
    tokenizer = SimpleNamespace(cls_id=101, sep_id=102, pad_id=0, encode=lambda texts: [SimpleNamespace(ids=words)])
    return len(encode_queries(model, tokenizer, [""], CPU, precision))


def rerank(reranker, data, top: int, precision: str) -> int:
    """Score the first text with the first ``top`` images."""
    scorer, text = PairScorer(reranker, CPU, precision, progress=False), np.array([101, *data.words[0], 102])
    return len(scorer.score([text], data.regions[:top], np.zeros(top, np.int64), np.arange(top)))
