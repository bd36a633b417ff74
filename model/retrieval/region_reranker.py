"""A re-ranker of the images that a text finds: UNITER with the database of their regions, or anybody's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from data.captions.tokenizers import CaptionTokenizer
from data.downloads.hub import local_folder
from data.errors import BadInput
from data.regions.db import RegionDB
from data.search.base import SearchBackend
from model.bi_encoder import LightningDOT
from model.made_from import check_regions, check_tokenizer
from model.precision import Precision, for_inference
from model.retrieval.pair_scoring import PairScorer
from model.uniter import Reranker, UniterConfig

PAIRS_AT_ONCE = 128  # that a re-ranker looks at
PAIRS_ON_CPU = 32  # so that a batch fits the cache


@runtime_checkable
class ImageReranker(Protocol):
    """What looks at a text and an image together."""

    def rerank_images(self, text_ids: list[int], keys: list[str]) -> Sequence[float]:
        """Scores of images ``keys`` for a text, higher is better. text_ids: [CLS] words [SEP]"""


class RegionReranker:
    """A cross-attention re-ranker (``model.uniter``) with the database of the images' regions."""

    def __init__(self, model: Reranker, regions: RegionDB, device: torch.device | str = "cpu", precision: Precision = "fp32"):
        if regions.feature_dim != model.config.feature_dim:
            raise BadInput(
                f"{regions.folder}: features are {regions.feature_dim} wide, the re-ranker expects {model.config.feature_dim}"
            )
        at_once = PAIRS_ON_CPU if torch.device(device).type == "cpu" else PAIRS_AT_ONCE
        self.scorer, self.regions = PairScorer(model.to(device).eval(), device, precision, at_once), regions

    def look_up(self, keys: Sequence[str]) -> None:
        """Open the database once more where it lacked one of these images. Raises BadInput where it still does."""
        if (self.regions.keys.match(keys) >= 0).all():
            return
        found = RegionDB(self.regions.img_db, self.regions.boxes)
        absent = np.flatnonzero(found.keys.match(keys) < 0)
        if len(absent):
            raise BadInput(
                f"{found.folder}: the re-ranker has no regions of {len(absent):,} of {len(keys):,} images, the first: {keys[absent[0]]}; extract them"
            )
        self.regions = found

    def rerank_images(self, text_ids: list[int], keys: list[str]) -> list[float]:
        """[CLS] words [SEP] and n image keys → n scores."""
        regions = self.regions
        images = [regions.get(key, soft_labels=False) for key in keys]
        return self.scorer.score([np.array(text_ids)], images, np.zeros(len(keys), np.int64), np.arange(len(keys))).tolist()


def check_same_words(reranker: str | Path, config: UniterConfig, checkpoint: str | Path, model: LightningDOT) -> None:
    """Raise BadInput unless a re-ranker reads the word ids that the towers' tokenizer gives."""
    ours, theirs = model.config.txt.vocab_size, config.encoder.vocab_size
    if ours != theirs:
        raise BadInput(
            f"{reranker}: knows {theirs} word pieces, {checkpoint} {ours}: a re-ranker reads the ids of the towers' tokenizer"
        )
    check_tokenizer(reranker)
    folders = [local_folder(each) / "tokenizer" for each in (checkpoint, reranker)]
    if all(folder.is_dir() for folder in folders):
        own, other = (CaptionTokenizer.from_pretrained(folder).vocabulary() for folder in folders)
        if own != other:
            raise BadInput(f"{reranker}: its vocabulary is another than that of {checkpoint}; train a re-ranker on captions of this tokenizer")


def open_reranker(
    folder: str | Path, checkpoint: str | Path, model: LightningDOT, backend: SearchBackend, regions: RegionDB | None,
    device: torch.device | str, precision: Precision,
) -> RegionReranker:  # fmt: skip
    """A re-ranker that was trained here, or a converted UNITER, for what ``model`` of ``checkpoint`` finds with ``backend``.

    Raises:
        BadInput: no regions, regions of other contents than the index or of another extractor, another vocabulary.
    """
    if regions is None:
        raise BadInput(f"{folder}: a re-ranker looks at regions: give the region database of the images")
    backend.check_contents(regions.folder, regions.fingerprint())
    check_regions(folder, regions)
    scoring = Reranker.from_pretrained(folder)
    check_same_words(folder, scoring.config, checkpoint, model)
    for_inference(scoring, device, precision)
    return RegionReranker(scoring, regions, device, precision)
