"""The index of an image DB, where nobody has built it yet: the service builds it before it answers."""

from __future__ import annotations

from pathlib import Path

from data.errors import BadInput
from data.notices import say
from data.regions.db import RegionDB
from model.bi_encoder import LightningDOT
from model.made_from import check_regions
from model.precision import Precision, choose_device, for_inference
from model.retrieval.encoding import Encoding
from model.retrieval.indexing import build_index
from model.retrieval.sources import check_width, image_source


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
    where = choose_device(device)
    model = LightningDOT.from_pretrained(checkpoint).to(where)
    check_width(regions, model, checkpoint)
    for_inference(model, where, precision)
    build_index(image_source(model, regions, regions.keys), folder, Encoding(where, precision), checkpoint=checkpoint)
