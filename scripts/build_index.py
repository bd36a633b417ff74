#!/usr/bin/env python
"""Encode every image (or caption) of a database once, into a feature index.

python scripts/build_index.py --checkpoint runs/x/best --regions db/regions --out index/img
python scripts/build_index.py --checkpoint runs/x/best --captions db/test --out index/txt --dtype fp16
python scripts/build_index.py --checkpoint runs/x/best --regions db/regions --images-of db/test --out index/img_test
python scripts/build_index.py --checkpoint runs/x/best --regions db/more --out index/img --update add    # or replace
python scripts/build_index.py --checkpoint runs/x/best --delete ids.txt --out index/img
torchrun --nproc-per-node 4 scripts/build_index.py --checkpoint runs/x/best --regions db/regions --out index/img
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli
from configs.idle import refuse_idle
from data.captions.db import CaptionDB
from data.errors import BadInput
from data.index.editor import IndexEditor
from data.index.reader import EmbeddingIndex
from data.regions.db import BoxChoice, RegionDB
from data.regions.keys import normal_name
from data.storage.text_files import read_lines


@dataclass
class Options:
    """Encode every image (or caption) of a database once, into a feature index; one that is up to date is kept, one that
    was interrupted is gone on with.

    Args:
        checkpoint: checkpoint folder of the model, or its name on the Hugging Face hub
        out: folder of the index to write
        regions: region database; the index is one of images
        captions: caption database; the index is one of captions
        images_of: with --regions, only the images that this caption database mentions (an evaluation split)
        image_captions: with --regions, text database with captions of the images themselves, for a model that was trained
            with a third view
        caption_score_weight: its share in an image's embedding; 0: there is none
        update: change the index that is there: "add" what it lacks, or "replace" also what it holds; "no": build it
        delete: file of ids, one a line, that are taken out of the index that is there
        batch_size: images or captions per batch and process
        dtype: how vectors are stored; int8 has one scale per vector
        precision: how the model computes
        workers: processes that read the database
        device: auto, cpu, cuda or cuda:N
        distributed: processes that share the work: "auto" takes the launcher (torchrun, horovodrun), when there is one
        distributed_timeout: seconds to wait for another process
        boxes: which boxes of the region database are used; those that are not given are the checkpoint's
    """

    checkpoint: str
    out: str
    regions: str | None = None
    captions: str | None = None
    images_of: str | None = None
    image_captions: str | None = None
    caption_score_weight: float = 0.0
    update: Literal["no", "add", "replace"] = "no"
    delete: str | None = None
    batch_size: int = 256
    dtype: Literal["fp32", "fp16", "bf16", "int8"] = "fp32"
    precision: Literal["fp32", "bf16"] = "fp32"
    workers: int = 0
    device: str = "auto"
    distributed: Literal["auto", "torch", "horovod", "none"] = "auto"
    distributed_timeout: float = 1800.0
    boxes: BoxChoice = field(default_factory=BoxChoice)

    def __post_init__(self):
        if self.delete:
            if self.regions or self.captions:
                raise BadInput("--delete ids.txt stands alone: give no --regions and no --captions")
        elif (self.regions is None) == (self.captions is None):
            raise BadInput("give either --regions IMG_DB or --captions TEXT_DB: an index holds images or captions")
        if (self.images_of or self.image_captions) and not self.regions:
            raise BadInput("--images-of and --image-captions are for an index of images: they need --regions")
        refuse_idle(
            self, (self.delete, "update dtype", "with --delete"), (self.update != "no", "dtype", "with --update"),
            (not self.image_captions, "caption_score_weight", "without --image-captions"), (not self.regions, "boxes", "without --regions"),
        )  # fmt: skip


def source_of(options: Options, model):
    """The images or captions that are to be encoded."""
    # torch is slow to import: --help and wrong options do without
    from data.batches.pairs import open_image_captions
    from model.initial import check_same_tokenizer
    from model.made_from import boxes_for, check_regions
    from model.retrieval.sources import caption_source, check_width, image_source, images_of_captions

    if options.captions:
        captions = CaptionDB(options.captions)
        check_same_tokenizer(options.checkpoint, captions)
        return caption_source(model, captions, captions.ids)
    regions = RegionDB(options.regions, boxes_for(options.checkpoint, options.boxes))
    check_regions(options.checkpoint, regions)
    check_width(regions, model, options.checkpoint)
    keys = images_of_captions(CaptionDB(options.images_of), regions) if options.images_of else regions.keys
    view = open_image_captions(options.image_captions, options.caption_score_weight)
    return image_source(model, regions, keys, view)


def delete_ids(model, path: str, out: str) -> EmbeddingIndex:
    """Take the ids of a file out of an index."""
    ids = list(read_lines(path, "give UTF-8 text, one id a line"))
    known = EmbeddingIndex(out)
    names = [name if name in known else normal_name(name) for name in map(str.strip, ids) if name]
    with IndexEditor(out, model.fingerprint) as editor:
        editor.delete(names)
    return EmbeddingIndex(out)


def main(options: Options) -> None:
    # torch is slow to import: --help and wrong options do without
    from model.bi_encoder import LightningDOT
    from model.distributed import start_ranks
    from model.precision import choose_device, for_inference
    from model.retrieval.encoding import Encoding
    from model.retrieval.indexing import build_index, update_index

    device = choose_device(options.device)
    ranks = start_ranks(options.distributed, device.type == "cuda", options.distributed_timeout)
    ranks.claim_output(options.out)
    model = LightningDOT.from_pretrained(options.checkpoint).to(device)
    for_inference(model, device, options.precision)
    encoding, started = Encoding(device, options.precision, options.batch_size, options.workers), time.perf_counter()
    if options.delete:
        index = delete_ids(model, options.delete, options.out)
    elif options.update == "no":
        index = build_index(source_of(options, model), options.out, encoding, ranks, options.dtype, options.checkpoint)
    elif ranks.size > 1:
        raise BadInput(f"{options.out}: an index is updated by one process, not by {ranks.size}")
    else:
        index = update_index(source_of(options, model), options.out, encoding, replace=options.update == "replace")
    if ranks.is_first:
        what = "images" if index.kind == "img" else "captions"
        print(f"{options.out}: {index.count} {what}, {index.dim} x {index.dtype}, {time.perf_counter() - started:.1f} s")
    ranks.close()


if __name__ == "__main__":
    cli.run(main, Options, often="regions captions images_of update delete dtype batch_size precision device workers")
