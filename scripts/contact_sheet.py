#!/usr/bin/env python
"""Draw queries and their best pictures as one PNG: right answers framed in green, a right one that was missed with its rank.

python scripts/contact_sheet.py --index index/img --checkpoint runs/x/best --photos photos --captions db/test --out sheet.png
python scripts/contact_sheet.py --index index/img --checkpoint runs/x/best --photos photos --queries queries.txt --out sheet.png
python scripts/contact_sheet.py --index index/img --checkpoint runs/x/best --photos photos --captions db/test --out sheet.png \\
    --reranker runs/uniter/best --regions db/regions --rerank 50     # both orders, beside each other
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli  # isort: skip (before numpy)
import numpy as np

from configs.idle import refuse_idle
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.notices import lowered, say
from data.regions.pictures import PictureFiles, read_pictures
from data.search.topk import ranks_of_rows
from data.storage.locks import claim_output
from model.retrieval.contact_sheet import first_captions, found_rows, sheet_pictures, write_contact_sheet
from model.retrieval.queries import read_queries
from model.retrieval.results import Hit
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
        captions: caption database (text LMDB): captions stand under the pictures; without --queries random ones of them are the
            queries, whose own pictures are right
        n: number of random captions, each of another picture; or as many as there are
        tokenizer: folder, hub name or vocab.txt of the tokenizer; none: the one that the checkpoint carries
        k: pictures per query
        reranker: folder of a re-ranker, which sorts the first results anew (needs --regions)
        regions: region database that it looks the images up in
        rerank: how many of the first results it sees, at least k
        mix: weight of the bi-encoder's score, which is added to the re-ranker's; none: what its validation chose
        seed: seed of the random choice
        device: auto, cpu, cuda or cuda:N
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
    reranker: str | None = None
    regions: str | None = None
    rerank: int = 50
    mix: float | None = None
    seed: int = 0
    device: str = "auto"

    def __post_init__(self):
        if self.queries is None and self.captions is None:
            raise BadInput("give --queries FILE, or --captions TEXT_DB to draw random captions from, or both")
        if self.n < 1 or self.k < 1:
            raise BadInput(f"n {self.n} and k {self.k} must be at least 1")
        if (self.reranker is None) != (self.regions is None):
            raise BadInput("--reranker and --regions go together: it looks at the regions of the images")
        if self.mix is not None and self.reranker is None:
            raise BadInput("--mix adds the bi-encoder's score to a re-ranker's: it needs --reranker")
        refuse_idle(self, (not self.reranker, "rerank", "without --reranker"), (self.queries is not None, "n seed", "with --queries"))


def main(options: Options) -> None:
    claim_output(options.out)
    index = EmbeddingIndex(options.index)
    retriever = Retriever.from_pretrained(
        options.checkpoint, index, options.reranker, options.regions, tokenizer=options.tokenizer, device=options.device,
        mix=options.mix,
    )  # fmt: skip
    captions = CaptionDB(options.captions) if options.captions else None
    if options.queries:
        queries, answers = read_queries(options.queries), None
    else:
        queries, answers = random_captions(captions, index, retriever.tokenizer, options)
    photos = PictureFiles(options.photos, read_pictures(options.index))
    rerank = options.rerank if options.reranker else None
    found = retriever.search(queries, max(options.k, min(rerank or 0, len(index))), rerank)  # so many: the right one's new rank
    for remark in found.remarks():
        say(remark)
    decode = retriever.tokenizer.decode
    rows = found_rows(queries, found, photos, options.k, captions, decode, answers)
    for row, answer in zip(rows, answers or ()):
        if row.answer is None and not any(picture.is_right for picture in row.pictures):
            place, score = ranks_of_rows(retriever.encode_texts([row.query]), index.blocks(), index.vectors, np.array([index.row_of(answer)]))
            said = first_captions(captions, [answer], decode)
            row.answer = sheet_pictures([Hit(answer, float(score[0]))], photos, {answer}, said, first_rank=int(place[0]) + 1)[0]
    write_contact_sheet(rows, options.out)
    print("\n".join([*photos.remarks(), f"wrote {options.out}: {len(rows)} queries"]))


def random_captions(
    captions: CaptionDB, index: EmbeddingIndex, tokenizer: CaptionTokenizer, options: Options
) -> tuple[list[str], list[str]]:
    """Random captions of images that are in the index, and the keys of their images."""
    known = sorted(key for key, own in captions.img2txts.items() if own and key in index)
    if not known:
        raise BadInput(f"{options.captions}: none of its {len(captions.img2txts)} images is in {options.index}")
    rng, number = random.Random(options.seed), lowered(options.n, len(known), f"{options.captions}: n", f"images in {options.index}")
    queries, answers = [], rng.sample(known, number)
    for key in answers:
        record = captions[rng.choice(captions.img2txts[key])]
        queries.append(record.get("raw") or tokenizer.decode(record["input_ids"]))
    return queries, answers


if __name__ == "__main__":
    cli.run(main, Options)
