#!/usr/bin/env python
"""Draw queries and their best pictures as one PNG: a row per query, right answers framed in green.

python scripts/contact_sheet.py --index index/img --checkpoint runs/x/best --photos photos --captions db/test --out sheet.png
python scripts/contact_sheet.py --index index/img --checkpoint runs/x/best --photos photos --queries queries.txt --out sheet.png
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.notices import lowered
from data.regions.pictures import PictureFiles, read_pictures
from data.storage.locks import claim_output
from model.retrieval.contact_sheet import sheet_pictures, write_contact_sheet
from model.retrieval.queries import read_queries
from model.retrieval.retriever import Retriever


@dataclass
class Options:
    """Draw queries and their best pictures as one PNG.

    Args:
        index: feature index of images
        checkpoint: the checkpoint folder that made it
        photos: folder of the pictures, as the index says them; where it does not, their names are tried as keys
        out: the PNG to write
        queries: text file, one query a line
        captions: caption database (text LMDB) to draw random captions from; their own pictures are framed
        n: number of random captions, each of another picture; or as many as there are
        tokenizer: folder or vocab.txt of the tokenizer; none: the one that the checkpoint carries
        k: pictures per query
        seed: seed of the random choice
    """

    index: str
    checkpoint: str
    photos: str
    out: str
    queries: str | None = None
    captions: str | None = None
    n: int = 6
    tokenizer: str | None = None
    k: int = 5
    seed: int = 0

    def __post_init__(self):
        if (self.queries is None) == (self.captions is None):
            raise BadInput("give either --queries FILE or --captions TEXT_DB, not both and not neither")
        if self.n < 1 or self.k < 1:
            raise BadInput(f"n {self.n} and k {self.k} must be at least 1")


def main(options: Options) -> None:
    claim_output(options.out)
    index = EmbeddingIndex(options.index)
    retriever = Retriever.from_pretrained(options.checkpoint, index, tokenizer=options.tokenizer)
    if options.queries:
        queries = [(text, set()) for text in read_queries(options.queries)]
    else:
        queries = random_captions(CaptionDB(options.captions), index, retriever.tokenizer, options)
    photos = PictureFiles(options.photos, read_pictures(options.index))
    found = retriever.search_images([text for text, _ in queries], options.k)
    rows = [(text, sheet_pictures(hits, photos, right)) for (text, right), hits in zip(queries, found, strict=True)]
    write_contact_sheet(rows, options.out)
    print("\n".join([*photos.remarks(), f"wrote {options.out}: {len(rows)} queries"]))


def random_captions(
    captions: CaptionDB, index: EmbeddingIndex, tokenizer: CaptionTokenizer, options: Options
) -> list[tuple[str, set[str]]]:
    """Random captions of images that are in the index, each with the key of its image."""
    known = sorted(key for key in captions.img2txts if key in index)
    if not known:
        raise BadInput(f"{options.captions}: none of its {len(captions.img2txts)} images is in {options.index}")
    rng, number = random.Random(options.seed), lowered(options.n, len(known), f"{options.captions}: n", f"images in {options.index}")
    queries = []
    for key in rng.sample(known, number):
        record = captions[rng.choice(captions.img2txts[key])]
        queries.append((record.get("raw") or tokenizer.decode(record["input_ids"]), {key}))
    return queries


if __name__ == "__main__":
    cli.run(main, Options)
