#!/usr/bin/env python
"""Ask a feature index: a text finds images, an image finds captions.

python scripts/search.py "a dog on the beach" --index index/img --checkpoint runs/x/best
python scripts/search.py "a dog on the beach" --index index/img --checkpoint runs/x/best --photos photos --sheet out.png
python scripts/search.py --image beach.npz --regions db/regions --index index/txt --checkpoint runs/x/best --captions db/test
"""

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli
from data.atomic import atomic_file
from data.errors import BadInput
from data.regions import BoxOptions, RegionDB


@dataclass
class Options:
    """Ask a feature index: a text finds images, an image finds captions.

    Args:
        query: the text to find images for
        index: feature index: of images for a text query, of captions for --image
        checkpoint: the checkpoint folder that made the index
        tokenizer: folder or vocab.txt of the tokenizer; none: the one that the checkpoint carries
        k: number of results
        image: key of an image in --regions to find captions for, instead of a text
        regions: region database that holds the image
        captions: caption database, to print the text of the captions found
        photos: folder of pictures; a picture's file name without suffix is the image key without suffix
        sheet: PNG to write with the pictures found (needs --photos)
        json: JSON file to write with the results
        boxes: which boxes of the region database are used
    """

    index: str
    checkpoint: str
    query: str | None = None
    tokenizer: str | None = None
    k: int = 10
    image: str | None = None
    regions: str | None = None
    captions: str | None = None
    photos: str | None = None
    sheet: str | None = None
    json: str | None = None
    boxes: BoxOptions = field(default_factory=BoxOptions)

    def __post_init__(self):
        if bool(self.query and self.query.strip()) == (self.image is not None):
            raise BadInput('give either a text query, as in search.py "a dog on the beach", or --image KEY')
        if (self.image is None) != (self.regions is None):
            raise BadInput("--image KEY and --regions IMG_DB go together")
        if self.sheet and (self.image or not self.photos):
            raise BadInput("--sheet shows the pictures that a text finds: it needs a text query and --photos DIR")


def main(options: Options) -> None:
    from data.captions import CaptionDB, load_tokenizer
    from data.index import EmbeddingIndex
    from model.bi_encoder import LightningDOT
    from model.encoding import check_width, encode_images, encode_queries

    index = EmbeddingIndex(options.index)
    if index.kind != ("txt" if options.image else "img"):
        found, expected = ("images", "captions") if options.image else ("captions", "images")
        raise BadInput(f"{options.index}: is an index of {found}, this query needs one of {expected}")
    model = LightningDOT.from_pretrained(options.checkpoint)
    index.check_model(model.fingerprint)
    if options.image:
        regions = RegionDB(options.regions, **vars(options.boxes))
        check_width(regions, model, options.checkpoint)

        def encode():
            return next(encode_images(model, regions, [options.image], progress=False))[1].numpy()
    else:
        tokenizer = load_tokenizer(options.tokenizer or Path(options.checkpoint) / "tokenizer")

        def encode():
            return encode_queries(model, tokenizer, [options.query])

    # The first call also pages in weights and vectors and sets up the libraries; the second shows the standing cost.
    (vector, first_encoding), (_, encoding) = _timed(encode), _timed(encode)
    ((scores, rows), first_search), (_, search) = (_timed(lambda: index.search(vector, options.k)) for _ in range(2))
    ids, scores = index.ids(rows[0]), scores[0].tolist()

    texts = {}
    if options.captions and options.image:
        captions = CaptionDB(options.captions)
        texts = {i: captions[i]["raw"] for i in ids if i in captions}
    for rank, (name, score) in enumerate(zip(ids, scores, strict=True), 1):
        print(f"{rank:3d}  {score:9.4f}  {name}  {texts.get(name, '')}".rstrip())
    print(
        f"encoding {encoding:.1f} ms, search among {index.count} {search:.1f} ms "
        f"(first call: {first_encoding:.1f} ms, {first_search:.1f} ms)"
    )
    if options.json:
        results = [
            {"id": name, "score": score} | ({"text": texts[name]} if name in texts else {})
            for name, score in zip(ids, scores, strict=True)
        ]
        times = {"encoding": encoding, "search": search, "first_encoding": first_encoding, "first_search": first_search}
        answer = {"query": options.query or options.image, "results": results, "milliseconds": times}
        with atomic_file(options.json) as path:
            path.write_text(json.dumps(answer, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.sheet:
        from scripts.contact_sheet import contact_sheet, picture_files

        photos = picture_files(options.photos)
        pictures = [(photos.get(Path(name).stem), score, False) for name, score in zip(ids, scores, strict=True)]
        print(f"wrote {contact_sheet([(options.query, pictures)], options.sheet)}")


def _timed(function):
    started = time.perf_counter()
    result = function()
    return result, 1000 * (time.perf_counter() - started)  # milliseconds


if __name__ == "__main__":
    cli.run(main, Options, positional=("query",))
