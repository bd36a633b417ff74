"""Recall of a model on the pairs of a dataset, straight from memory (``eval_itm.py`` goes through a stored index)."""

from __future__ import annotations

import torch
from torch import Tensor

from data.batches import PairDataset
from model.bi_encoder import LightningDOT
from model.encoding import encode_captions, encode_images
from model.metrics import mean_table, recall


def embed_pairs(model: LightningDOT, dataset: PairDataset, device, precision: str) -> tuple[Tensor, Tensor, Tensor]:
    """Encode every caption and every image once: → txt [T,D], img [I,D], image_of [T] (row of a caption's image)."""
    txt = torch.empty(len(dataset), model.config.embedding_dim)
    for rows, vectors in encode_captions(
        model, dataset.captions, dataset.ids, device=device, precision=precision, progress=False
    ):
        txt[rows] = vectors.cpu()
    img = torch.empty(len(dataset.images), model.config.embedding_dim)
    for rows, vectors in encode_images(
        model, dataset.regions, dataset.images, device=device, precision=precision, progress=False
    ):
        img[rows] = vectors.cpu()
    return txt, img, torch.from_numpy(dataset.image_of)


def evaluate(model: LightningDOT, dataset: PairDataset, device, precision: str = "fp32") -> dict[str, dict[str, float]]:
    """Recall tables of a dataset: one per language, and ``all``.

    With several languages each is a retrieval task of its own (its captions, all images), and ``all`` is their mean.
    """
    return recall_by_language(*embed_pairs(model, dataset, device, precision), dataset)


def recall_by_language(txt: Tensor, img: Tensor, image_of: Tensor, dataset: PairDataset) -> dict[str, dict[str, float]]:
    """Recall tables of embeddings ``txt`` [T,D], ``img`` [I,D]: as ``evaluate``."""
    languages = [dataset.captions.languages.get(i, "") for i in dataset.ids]
    names = list(dict.fromkeys(languages))
    if len(names) == 1:
        return {"all": recall(txt, img, image_of)}
    tables = {}
    for name in names:
        rows = torch.tensor([i for i, language in enumerate(languages) if language == name])
        tables[name] = recall(txt[rows], img, image_of[rows])
    return tables | {"all": mean_table(list(tables.values()))}
