"""The indexes of an image DB and of captions, where nobody has built them yet: the service builds them before it answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.captions.db import CaptionDB
from data.errors import BadInput
from data.notices import say
from data.regions.db import RegionDB
from model.bi_encoder import LightningDOT
from model.initial import check_same_tokenizer
from model.made_from import check_regions
from model.precision import Precision, choose_device, for_inference
from model.retrieval.encoding import Encoding
from model.retrieval.indexing import build_index
from model.retrieval.sources import check_width, image_source, joined_captions


def build_where_absent(index: str, checkpoint: str, regions: RegionDB | None, device: str, precision: Precision) -> None:
    """Encode all images of the regions into ``index``, unless something is there.

    Raises:
        BadInput: nothing is there, and no regions are given; or regions of another extractor than the checkpoint's.
    """
    folder = Path(index)
    if folder.exists():
        return
    if regions is None:
        raise BadInput(f"--index {index}: no such folder; give --regions IMG_DB too, and it is built, or build it with scripts/build_index.py")
    check_regions(checkpoint, regions)
    say(f"{index}: is not there and is built of the {len(regions):,} images of {regions.img_db}")
    model, encoding = _encoder(checkpoint, device, precision)
    check_width(regions, model, checkpoint)
    build_index(image_source(model, regions, regions.keys), folder, encoding, checkpoint=checkpoint)


def build_captions_where_absent(index: str | None, checkpoint: str, captions: Sequence[str], device: str, precision: Precision) -> None:
    """Encode all captions of some caption databases into ``index``, unless something is there; None: nothing is asked.

    Raises:
        BadInput: nothing is there, and no captions are given; or captions of another tokenizer than the checkpoint's.
    """
    if index is None or Path(index).exists():
        return
    if not captions:
        raise BadInput(f"--captions-index {index}: no such folder; give --captions TEXT_DB too, and it is built, or build it with scripts/build_index.py")
    found = [CaptionDB(folder) for folder in captions]
    for database in found:
        check_same_tokenizer(checkpoint, database)
    say(f"{index}: is not there and is built of the {sum(map(len, found)):,} captions of {', '.join(map(str, captions))}")
    model, encoding = _encoder(checkpoint, device, precision)
    build_index(joined_captions(model, found), index, encoding, checkpoint=checkpoint)


def _encoder(checkpoint: str, device: str, precision: Precision) -> tuple[LightningDOT, Encoding]:
    where = choose_device(device)
    model = LightningDOT.from_pretrained(checkpoint).to(where)
    for_inference(model, where, precision)
    return model, Encoding(where, precision)
