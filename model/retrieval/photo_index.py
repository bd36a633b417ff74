"""A folder of photographs made searchable with a checkpoint: their regions, extracted as those of its training, and their index.

    made = index_photos("photos", "runs/x/best", "data_sets/mine")     # data_sets/mine/regions, data_sets/mine/index

What is there already is used, and brought up to date (`model.extractors.photo_folder`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.downloads.hub import local_folder
from data.errors import BadInput
from data.regions.db import RegionDB
from data.storage.digest import NOWHERE
from data.storage.digest import cache_folder as user_cache
from data.storage.locks import only_writer
from model.bi_encoder import LightningDOT
from model.extractors.photo_folder import extract_photos
from model.initial import check_same_tokenizer
from model.made_from import check_regions, check_tokenizer
from model.precision import Precision, choose_device, for_inference
from model.retrieval.encoding import Encoding
from model.retrieval.indexing import build_index
from model.retrieval.own_pictures import OwnPictures
from model.retrieval.sources import caption_source, image_source, text_source


@dataclass
class PhotoOptions:
    """How photographs are made searchable.

    Args:
        image_key: makes the id of a photograph of its name, as for scripts/extract_regions.py; None: as before, at first {stem}.npz
        weights: where the extractor's weights are now; None: where they were when the training regions were extracted
        workers: processes that extract; 0: this one alone. The regions do not depend on it
        device: where extractor and model compute: "cpu", "cuda", "cuda:N", or "auto" for a GPU when there is one
        precision: how the model computes
        progress: whether a bar shows on the screen while the index is built
    """

    image_key: str | None = None
    weights: str | None = None
    workers: int = 0
    device: torch.device | str = "cpu"
    precision: Precision = "fp32"
    progress: bool = True


@dataclass(frozen=True)
class PhotoIndex:
    """Where the parts of a searchable folder of photographs are: the photographs, their image DB, and their index."""

    photos: Path
    regions: Path
    index: Path


def cache_folder(photos: str | Path, own: OwnPictures) -> Path:
    """Where photographs are made searchable when nobody says it: a folder for these photographs and the checkpoint's extractor and boxes
    below ``XDG_CACHE_HOME/lightningdot``, else below ``~/.cache/lightningdot``. Raises BadInput for a user without a home directory."""
    place = os.path.realpath(photos)
    known = json.dumps([place, own.record.kind, own.record.options, own.record.weights, vars(own.made_from.boxes)], sort_keys=True)
    if (root := user_cache()) == NOWHERE:
        raise BadInput(f"{photos}: nowhere to keep what is found in them, since this user has no home directory; set XDG_CACHE_HOME to a folder")
    return root / f"{Path(place).name}-{hashlib.sha256(known.encode()).hexdigest()[:16]}"


def index_photos(
    photos: str | Path, checkpoint: str | Path, out: str | Path | None = None, options: PhotoOptions | None = None
) -> PhotoIndex:
    """Extract the photographs of a folder (or tar file) as the checkpoint's training regions were, and build their index.

    Args:
        out: gets ``regions`` and ``index``; None: the `cache_folder`, whose index is one of several where several checkpoints ask

    Raises:
        BadInput: no photographs, two of one key, a checkpoint that does not say its extractor or whose weights are not here, regions in
            ``out`` of another extractor, another process that writes there.
    """
    options = options or PhotoOptions()
    device = choose_device(options.device)
    own = OwnPictures(checkpoint, options.weights, device)
    folder = Path(out) if out is not None else cache_folder(photos, own)
    model = LightningDOT.from_pretrained(checkpoint).to(device)
    index = folder / ("index" if out is not None else f"index-{model.fingerprint}")
    with only_writer(folder):
        extract_photos(str(photos), own, folder / "regions", options.workers, options.image_key)
        regions = RegionDB(folder / "regions", own.made_from.boxes)
        check_regions(checkpoint, regions)
        for_inference(model, device, options.precision)
        encoding = Encoding(device, options.precision, progress=options.progress)
        build_index(image_source(model, regions, regions.keys), index, encoding, checkpoint=checkpoint)
    return PhotoIndex(Path(photos), folder / "regions", index)


def index_captions(
    captions: str | Path | Sequence[str], checkpoint: str | Path, made: PhotoIndex, options: PhotoOptions
) -> tuple[CaptionDB | dict[str, str], Path]:
    """An index of captions beside that of photographs.

    Args:
        captions: a text database, or texts

    Returns: the database, or the texts by their ids, which are their numbers; and the index

    Raises:
        BadInput: as `model.retrieval.indexing.build_index`; a text without a word, or longer than the model's.
    """
    device = choose_device(options.device)
    model = LightningDOT.from_pretrained(checkpoint).to(device)
    for_inference(model, device, options.precision)
    found: CaptionDB | dict[str, str]
    if isinstance(captions, str | Path):
        found = CaptionDB(captions)
        check_same_tokenizer(checkpoint, found)
        source = caption_source(model, found, found.ids)
    else:
        found = {str(number): text for number, text in enumerate(captions)}
        check_tokenizer(checkpoint)
        source = text_source(model, found, CaptionTokenizer.from_pretrained(local_folder(checkpoint) / "tokenizer"))
    index = made.index.with_name(made.index.name.replace("index", "captions", 1))
    build_index(source, index, Encoding(device, options.precision, progress=options.progress), checkpoint=checkpoint)
    return found, index
