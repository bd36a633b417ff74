#!/usr/bin/env python
"""Ask a feature index: a text finds images, an image finds captions.

python scripts/search.py "a dog on the beach" --index index/img --checkpoint runs/x/best
python scripts/search.py "a dog on the beach" --index index/img --checkpoint runs/x/best --photos photos --sheet out.png
python scripts/search.py --image beach.npz --regions db/regions --index index/txt --checkpoint runs/x/best --captions db/test
python scripts/search.py --image my/photo.jpg --index index/txt --checkpoint runs/x/best --captions db/test
python scripts/search.py --queries queries.txt --json out.json --backend hnsw --target-recall 0.99 --index index/img --checkpoint runs/x/best
python scripts/search.py "a dog on the beach" --backend milvus --uri milvus.db --index img --checkpoint runs/x/best
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli
from configs.idle import refuse_idle
from data.captions.db import CaptionDB
from data.errors import BadInput
from data.regions.db import BoxChoice, RegionDB
from data.regions.pictures import PictureFiles, read_pictures
from data.search import open_backend
from data.search.base import SearchOptions
from data.storage.locks import claim_output
from data.storage.text_files import write_json
from model.made_from import boxes_for
from model.precision import choose_device
from model.retrieval.contact_sheet import found_rows, write_contact_sheet
from model.retrieval.own_pictures import is_picture_file
from model.retrieval.queries import read_queries
from model.retrieval.retriever import Retriever, check_kind


@dataclass
class Options:
    """Ask a feature index: a text finds images, an image finds captions.

    Args:
        query: the text to find images for
        queries: file with one text a line, instead of a text
        index: feature index: of images for a text query, of captions for --image; with backend milvus a collection's name
        checkpoint: the checkpoint folder that made the index, or its name on the Hugging Face hub
        tokenizer: folder, hub name or vocab.txt of the tokenizer; none: the one that the checkpoint carries
        k: number of results
        image: key of an image in --regions to find captions for, instead of a text; or a picture file of one's own
        extractor_weights: for a picture file: weights of the extractor of the training regions; none: where they were then
        regions: region database that holds the image, or the images that a re-ranker looks at
        captions: caption database, to print the text of the captions found, or to write under the pictures of --sheet
        photos: for --sheet: folder of the pictures, as the index (or --regions) says them; else their names are tried as keys
        sheet: PNG to write with the pictures found (needs --photos)
        json: JSON file to write with the results
        backend: what searches: exact, hnsw and ivfpq (approximate, built beside the index when absent or stale), or milvus
        target_recall: share of the exact top 10 that hnsw and ivfpq are tuned to; none: what they are tuned to, 0.99 at first
        uri: of Milvus: a file ending in .db or a server's address
        token: of a Milvus server that asks for one, "user:password"
        reranker: folder of a re-ranker, which sorts the first results of a text anew (needs --regions)
        rerank: how many of them it sees, at least k
        mix: weight of the bi-encoder's score, which is added to the re-ranker's; none: what its validation chose
        device: auto, cpu, cuda or cuda:N
        precision: how the model computes
        boxes: which boxes of the region database are used; those that are not given are the checkpoint's
    """

    index: str
    checkpoint: str
    query: str | None = None
    queries: str | None = None
    tokenizer: str | None = None
    k: int = 10
    image: str | None = None
    extractor_weights: str | None = None
    regions: str | None = None
    captions: str | None = None
    photos: str | None = None
    sheet: str | None = None
    json: str | None = None
    backend: str = "exact"
    target_recall: float | None = None
    uri: str | None = None
    token: str = ""
    reranker: str | None = None
    rerank: int = 50
    mix: float | None = None
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    boxes: BoxChoice = field(default_factory=BoxChoice)

    def __post_init__(self):
        asked = [bool(self.query and self.query.strip()), self.queries is not None, self.image is not None]
        if sum(asked) != 1:
            raise BadInput('give one of a text query, as in search.py "a dog on the beach", --queries FILE and --image KEY')
        if self.image is not None and self.regions is None and not is_picture_file(self.image):
            raise BadInput(f"--image {self.image}: no picture file is there; --image KEY and --regions IMG_DB go together")
        if self.reranker and (self.image or not self.regions):
            raise BadInput("--reranker sorts the images that a text finds: it needs a text query and --regions IMG_DB")
        if self.sheet and (self.image or not self.photos):
            raise BadInput("--sheet shows the pictures that a text finds: it needs a text query and --photos DIR")
        if self.json and self.sheet and Path(self.json).absolute() == Path(self.sheet).absolute():
            raise BadInput(f"--json and --sheet are both {self.sheet}: the one would be written over the other")
        refuse_idle(self, (not self.reranker, "rerank mix", "without --reranker"), (self.image, "tokenizer", "with --image"), (not self.sheet, "photos", "without --sheet"),
                    (not (self.image or self.reranker or self.sheet), "regions", "without --image KEY, --reranker or --sheet"),
                    (not (self.image or self.sheet), "captions", "without --image or --sheet"), (not (self.image and is_picture_file(self.image)), "extractor_weights", "without a picture file as --image"),
                    (not (self.regions and (self.image or self.reranker)), "boxes", "without --regions for --image or --reranker"),
                    (self.backend != "milvus", "token", "without --backend milvus"), (self.backend not in ("hnsw", "ivfpq"), "target_recall", "without --backend hnsw or ivfpq"))  # fmt: skip


def main(options: Options) -> None:
    list(map(claim_output, filter(None, (options.json, options.sheet))))
    queries = read_queries(options.queries) if options.queries else [options.image or options.query]
    retriever = open_retriever(options)
    found, texts = retriever.search(options.image or queries, options.k), {}
    if options.captions and options.image:
        captions = CaptionDB(options.captions)
        retriever.backend.check_contents(captions.folder, captions.fingerprint())
        texts = {hit.id: captions[hit.id].get("raw", "") for hit in found.hits[0] if hit.id in captions}
    for query, hits in zip(queries, found.hits, strict=True):
        if len(queries) > 1:
            print(query)
        for rank, hit in enumerate(hits, 1):
            print(f"{rank:3d}  {hit.score:9.4f}  {hit.id}  {texts.get(hit.id, '')}".rstrip())
    print(found.time_line(len(retriever.backend)))
    sys.stderr.writelines(f"{remark}\n" for remark in found.remarks())
    if options.json:
        answers = [{"query": query} | each for query, each in zip(queries, found.as_json(texts), strict=True)]
        write_json(options.json, ({"queries": answers} if options.queries else answers[0]) | {"milliseconds": found.milliseconds})
    if options.sheet:
        photos = PictureFiles(options.photos, read_pictures(options.index) or read_pictures(options.regions or options.index))
        captions = CaptionDB(options.captions) if options.captions else None
        write_contact_sheet(found_rows(queries, found, photos, options.k, captions, retriever.tokenizer.decode), options.sheet)
        print("\n".join([*photos.remarks(), f"wrote {options.sheet}"]))


def open_retriever(options: Options) -> Retriever:
    """What answers; refuses an index of the other kind before any model is read."""
    device = choose_device(options.device)
    backend = open_backend(options.index, SearchOptions(options.backend, options.target_recall, options.uri, options.token, str(device)))
    check_kind(backend, "txt" if options.image else "img")
    read = options.regions and (options.image or options.reranker)  # else it only says the pictures of keys
    regions = RegionDB(options.regions, boxes_for(options.checkpoint, options.boxes)) if read else None
    return Retriever.from_pretrained(
        options.checkpoint, backend, options.reranker, regions, tokenizer=options.tokenizer, device=device,
        rerank=options.rerank, precision=options.precision, extractor_weights=options.extractor_weights, mix=options.mix,
    )  # fmt: skip


if __name__ == "__main__":
    cli.run(main, Options, positional=("query",), often="queries image k photos sheet json regions captions backend reranker rerank device")
