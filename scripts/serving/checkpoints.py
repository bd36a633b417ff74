"""The checkpoints that are served, each with what belongs to it, as the settings say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.regions.db import BoxChoice, RegionDB
from model.made_from import boxes_for
from scripts.serving.options import Options


@dataclass
class Checkpoint:
    """A checkpoint with what belongs to it.

    Attributes:
        name: of the model in a search
        folder, index, captions_index: the checkpoint and its indexes
        reranker, rerank, mix: as of ``Retriever.from_pretrained``
        regions: that the re-ranker looks at
        extractor_weights: for pictures of one's own
        collections: of Milvus, of its images and of its captions; one without a name is not there
    """

    name: str
    folder: str
    index: str
    captions_index: str | None = None
    reranker: str | None = None
    rerank: int = 50
    mix: float | None = None
    regions: RegionDB | None = None
    extractor_weights: str | None = None
    collections: tuple[str, str] = ("", "")


def checkpoints(options: Options) -> list[Checkpoint]:
    """What the settings say of the first checkpoint, and of the second where there is one."""
    regions = open_regions(options.regions, options.checkpoint, options.boxes)
    found = [Checkpoint(
        "a", options.checkpoint, options.index, options.captions_index, options.reranker, options.rerank, options.mix, regions,
        options.extractor_weights, (options.milvus_collection, options.milvus_captions_collection),
    )]  # fmt: skip
    if options.second_checkpoint is not None and options.second_index is not None:
        needs_regions = options.second_reranker or options.second_regions or not Path(options.second_index).exists()
        folder = (options.second_regions or options.regions) if needs_regions else None
        found.append(Checkpoint(
            "b", options.second_checkpoint, options.second_index, options.second_captions_index, options.second_reranker,
            options.rerank if options.second_rerank is None else options.second_rerank, options.second_mix,
            open_regions(folder, options.second_checkpoint, options.boxes),
            options.second_extractor_weights or options.extractor_weights,
            (options.second_milvus_collection, options.second_milvus_captions_collection),
        ))  # fmt: skip
    return found


def open_regions(folder: str | None, checkpoint: str, boxes: BoxChoice) -> RegionDB | None:
    """The image DB, with the boxes that the checkpoint was trained on."""
    return None if folder is None else RegionDB(folder, boxes_for(checkpoint, boxes))
