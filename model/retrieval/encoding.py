"""Encode every image or caption of a database once; a text as typed; an image by its regions.

    source = image_source(model, regions, keys)                      # model/retrieval/sources.py
    for positions, vectors in encode_batches(source, Encoding()):    # longest first; vectors [b,D] fp32
        matrix[positions] = vectors

Into a feature index: ``model/retrieval/indexing.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from data.batches.batch import collate_images, collate_texts
from data.batches.loader import batch_loader
from data.batches.pairs import PairDataset
from data.batches.ragged import Ragged
from data.captions.tokenizers import CaptionTokenizer
from data.errors import BadInput
from data.progress import ProgressBar
from data.regions.db import Regions
from data.storage.memory import keep_freed_memory
from data.storage.processes import leave_ctrl_c_to_parent
from model import distributed
from model.bi_encoder import LightningDOT
from model.precision import Precision, autocast, check_precision, dropout_off
from model.retrieval.sources import Source, caption_source, check_vocabulary, image_source


@dataclass
class Encoding:
    """How towers run over a database.

    Args:
        device: where the model is
        precision: of matrix products: fp32, or bf16 or fp16 for autocast
        batch_size: images or captions per batch and process
        workers: processes that read the database
        progress: whether a bar shows on the screen
    """

    device: torch.device | str = "cpu"
    precision: Precision = "fp32"
    batch_size: int = 256
    workers: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if self.batch_size < 1:
            raise BadInput(f"batch_size is {self.batch_size}, expected at least 1")


def encode_batches(source: Source, encoding: Encoding) -> Iterator[tuple[list[int], Tensor]]:
    """Embed everything of a source, the longest first, so that memory runs out early.

    Yields: (positions in ``source.names`` of a batch, their embeddings [b,D] float32 on the device). Dropout is off while
    the model runs, and as it was afterwards.

    Raises:
        BadInput: an embedding that is not finite, or what the database raises.
    """
    keep_freed_memory()
    order = sorted(range(len(source)), key=lambda position: -source.lengths[position])
    batches = [order[start : start + encoding.batch_size] for start in range(0, len(order), encoding.batch_size)]
    load, pin = partial(_load_batch, source.load, source.names), torch.device(encoding.device).type == "cuda"
    loader = batch_loader(load, batches, encoding.workers, pin, on_start=leave_ctrl_c_to_parent)
    unit = source.kind
    with ProgressBar(what=f"encoding {unit}", total=len(order), unit=unit, show=encoding.progress) as bar:
        for positions, inputs in loader:
            vectors = _run(source.model, source.tower, inputs, encoding.device, encoding.precision)
            _check_finite(vectors, source, positions)
            yield positions, vectors
            bar.update(len(positions))


def embed_pairs(
    model: LightningDOT,
    dataset: PairDataset,
    device: torch.device | str,
    precision: Precision,
    ranks: distributed.Ranks = distributed.SINGLE,
    third_view: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Encode every caption and every image of a dataset once, each rank its share of them.

    Args:
        third_view: whether captions of the images, where the dataset has any, are part of an image's embedding

    Returns: txt [T,D], img [I,D], image_of [T] (row of a caption's image), on the host and the same on all ranks
    """
    encoding = Encoding(device, precision)
    txt, img = [], torch.zeros(len(dataset.images), model.config.embedding_dim)
    for part, rows in dataset.parts:
        txt.append(_embed(caption_source(model, part.captions, part.ids), encoding, ranks))
        view = part.image_captions if third_view else None
        img[rows] = _embed(image_source(model, part.regions, part.images, view), encoding, ranks)
    return torch.cat(txt), img, torch.from_numpy(dataset.image_of.astype(np.int64))


def embed_rows(
    model: LightningDOT, dataset: PairDataset, captions: np.ndarray, images: np.ndarray, device: torch.device | str, precision: Precision,
    ranks: distributed.Ranks = distributed.SINGLE, at_once: int = 128,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Encode some captions and some images of a dataset, by their rows, each rank its share of them; without a third view.

    Returns: txt [t,D], img [i,D], on the host and the same on all ranks
    """
    special, dim = dataset.captions.meta, model.config.embedding_dim

    def texts(rows: np.ndarray) -> tuple[Ragged, ...]:
        return (collate_texts([np.array([special["CLS"], *words, special["SEP"]]) for words in dataset.words(rows)]),)

    def regions(rows: np.ndarray) -> tuple[Ragged, ...]:
        keys = zip(dataset.images.take(rows), dataset.region_rows[rows].tolist(), strict=True)
        return (collate_images([dataset.regions.get(key, False, row) for key, row in keys]),)

    embedded = []
    for rows, load, tower in ((captions, texts, model.embed_texts), (images, regions, model.embed_images)):
        vectors = np.zeros((len(rows), dim), np.float32)
        starts = range(ranks.rank * at_once, len(rows), ranks.size * at_once)
        for start in ProgressBar(starts, "encoding for recall", unit="batches"):
            part = slice(start, start + at_once)
            vectors[part] = _run(model, tower, load(rows[part]), device, precision).cpu().numpy()
        embedded.append(torch.from_numpy(ranks.sum_array(vectors)))
    return embedded[0], embedded[1]


def encode_queries(
    model: LightningDOT, tokenizer: CaptionTokenizer, texts: Sequence[str], device: torch.device | str = "cpu", precision: Precision = "fp32"
) -> np.ndarray:
    """Embed texts as typed → [Q,D] float32. ``tokenizer`` is the fast tokenizer of the checkpoint."""
    ids = [np.array([tokenizer.cls_id, *each.ids, tokenizer.sep_id]) for each in tokenizer.encode(texts)]
    return encode_ids(model, ids, device, precision)


def encode_ids(
    model: LightningDOT, ids: Sequence[np.ndarray], device: torch.device | str = "cpu", precision: Precision = "fp32"
) -> np.ndarray:
    """Embed texts by their word ids, [CLS] words [SEP] of each → [Q,D] float32."""
    check_vocabulary(max(map(np.max, ids)), model.config.txt.vocab_size, "the tokenizer")
    return _run(model, model.embed_texts, (collate_texts(ids),), device, precision).cpu().numpy()


def encode_image(
    model: LightningDOT, regions: Regions, device: torch.device | str = "cpu", precision: Precision = "fp32"
) -> np.ndarray:
    """Embed one image by its regions → [1,D] float32. BadInput for features of another width than the model's."""
    return encode_images(model, [regions], device, precision)


def encode_images(
    model: LightningDOT, images: Sequence[Regions], device: torch.device | str = "cpu", precision: Precision = "fp32"
) -> np.ndarray:
    """Embed images by their regions, together → [Q,D] float32. BadInput as of `encode_image`."""
    for regions in images:
        if regions.features.ndim != 2 or regions.features.shape[1] != model.config.feature_dim or not len(regions):
            raise BadInput(f"features of shape {regions.features.shape}, the model expects [n,{model.config.feature_dim}], n > 0")
    return _run(model, model.embed_images, (collate_images(list(images)),), device, precision).cpu().numpy()


def _embed(source: Source, encoding: Encoding, ranks: distributed.Ranks) -> Tensor:
    """All embeddings of a source [N,D], of which each rank has encoded a share."""
    vectors = torch.zeros(len(source), source.model.config.embedding_dim)
    mine = range(ranks.rank, len(source), ranks.size)
    for positions, found in encode_batches(source.take(mine), encoding):
        vectors[[mine[position] for position in positions]] = found.cpu()
    return torch.from_numpy(ranks.sum_array(vectors.numpy()))


def _load_batch(load: Callable, names: Sequence[str], positions: list[int]) -> tuple[Ragged, ...]:
    return load([names[position] for position in positions])


@torch.no_grad()
def _run(model: LightningDOT, tower: Callable, inputs: Sequence[Ragged], device: torch.device | str, precision: Precision) -> Tensor:
    """One batch through one tower, without dropout."""
    with dropout_off(model), autocast(device, precision):
        return tower(*(each.to(device) for each in inputs)).float()


def _check_finite(vectors: Tensor, source: Source, positions: list[int]) -> None:
    """Stop at an embedding that is not finite: compared with anything it is never larger, so recall would count it."""
    finite = vectors.isfinite().all(dim=1).tolist()
    if not all(finite):
        name = source.names[positions[finite.index(False)]]
        raise BadInput(
            f"{source.folder}: the embedding of {name!r} is NaN or infinite: so are its stored features, or training diverged"
        )
