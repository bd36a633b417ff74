#!/usr/bin/env python
"""Search in a browser: a page and a JSON API on this machine, offline, from one process.

python scripts/serve.py --checkpoint runs/x/best --index index/img --photos photos             # http://127.0.0.1:8000/
python scripts/serve.py --checkpoint runs/x/best --index index/img --photos photos --captions-index index/txt --captions db/test \\
    --regions db/regions --reranker runs/uniter/best --backends exact hnsw --evaluation runs/x/eval/step-00012000/test
python scripts/serve.py --checkpoint runs/x/best --index index/img --photos photos --host 0.0.0.0 --token "$(openssl rand -hex 16)"
curl -d '{"text": "a dog on the beach", "k": 5}' -H 'Content-Type: application/json' http://127.0.0.1:8000/api/search
"""

import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing
os.environ.update({n: os.environ.get(n, "16") for n in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")})  # 500 MB else, by shape

from configs import cli
from data.errors import BadInput
from data.regions.db import BoxChoice
from model.serving.failures import Failures
from model.serving.gallery import Gallery
from model.serving.latencies import Latencies
from model.serving.searching import SearchService, ServiceOptions
from scripts.serving import opening
from scripts.serving.app import Application
from scripts.serving.guard import Guard, is_loopback
from scripts.serving.reading import Reading
from scripts.serving.server import BACKLOG, address_of, bound_socket, serve

SHORTEST_TOKEN = 16  # characters


@dataclass
class Options:
    """Search in a browser: a page and a JSON API on this machine.

    Args:
        checkpoint: the checkpoint folder that made the index, or its name on the Hugging Face hub
        index: feature index of the images, built of --regions where it is not there; what is published there later is taken up
        captions_index: feature index of captions, to find captions of an image
        captions: caption databases, to show what was said of the images
        regions: region database of the images, to show boxes; a re-ranker needs it
        photos: folder of the pictures, as the index (or --regions) says them
        reranker: folder of a re-ranker, which sorts the first results of a text anew
        rerank: how many of them it sees where a search does not say it
        mix: weight of the bi-encoder's score, which is added to the re-ranker's; none: what its validation chose
        extractor_weights: for pictures of one's own: weights of the extractor of the training regions; none: where they were then
        second_checkpoint: another checkpoint, to be shown beside the first
        second_index: its feature index of images
        second_captions_index: its feature index of captions
        evaluation: what eval_itm.py wrote, whose failures are listed
        second_evaluation: that of the second checkpoint, of the same queries
        backends: what a search may choose from: exact, hnsw, ivfpq (built beside the index where absent or stale), milvus
        target_recall: share of the exact top 10 that hnsw and ivfpq are tuned to; none: what they are tuned to, 0.99 at first
        milvus_uri: a file ending in .db or a server's address
        milvus_token: of a Milvus server that asks for one, "user:password"
        milvus_collection: its collection of the images
        milvus_captions_collection: its collection of the captions
        host: address to listen at; others than this machine reach one that is not 127.0.0.1
        port: 0 is any that is free
        token: what who asks must know, at least 16 characters; needed where others reach the service
        device: auto, cpu, cuda or cuda:N
        precision: how the models compute
        service: how queries that come together are answered together
        boxes: which boxes of the region database are used; those that are not given are the checkpoint's
    """

    checkpoint: str
    index: str
    captions_index: str | None = None
    captions: list[str] = field(default_factory=list)
    regions: str | None = None
    photos: str | None = None
    reranker: str | None = None
    rerank: int = 50
    mix: float | None = None
    extractor_weights: str | None = None
    second_checkpoint: str | None = None
    second_index: str | None = None
    second_captions_index: str | None = None
    evaluation: str | None = None
    second_evaluation: str | None = None
    backends: list[Literal["exact", "hnsw", "ivfpq", "milvus"]] = field(default_factory=lambda: ["exact"])
    target_recall: float | None = None
    milvus_uri: str | None = None
    milvus_token: str = ""
    milvus_collection: str = "img"
    milvus_captions_collection: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    service: ServiceOptions = field(default_factory=ServiceOptions)
    boxes: BoxChoice = field(default_factory=BoxChoice)

    def __post_init__(self):
        if (self.second_checkpoint is None) != (self.second_index is None):
            raise BadInput("--second-checkpoint and --second-index go together")
        if "exact" not in self.backends:
            raise BadInput(f"--backends {' '.join(self.backends)}: expected exact among them")
        if self.second_evaluation is not None and self.evaluation is None:
            raise BadInput("--second-evaluation is compared with --evaluation: give both")
        if 0 < len(self.token) < SHORTEST_TOKEN or (not is_loopback(self.host) and not self.token):
            raise BadInput(f"--token: others reach --host {self.host}; give a secret of at least {SHORTEST_TOKEN} characters that they must know")


def main(options: Options) -> None:
    listening = bound_socket(options.host, options.port)
    latencies = Latencies()
    with tempfile.TemporaryDirectory(prefix="lightningdot-") as uploads:
        app = open_application(options, latencies, Path(uploads))
        if not is_loopback(options.host):
            print(f"warning: --host {options.host}: other machines reach the service; what they send and get is not encrypted", file=sys.stderr)
        listening.listen(BACKLOG)
        print(f"{address_of(listening, options.host)}  (Ctrl-C ends it)", flush=True)
        serve(Guard(app.asgi(), options.host, options.token, latencies), listening)


def open_application(options: Options, latencies: Latencies, uploads: Path) -> Application:
    """Everything that is served, open and checked."""
    regions = opening.open_regions(options.regions, options.checkpoint, options.boxes)
    collections = options.milvus_collection, options.milvus_captions_collection
    searching = opening.Searching(
        options.backends, options.target_recall, options.milvus_uri, options.milvus_token, collections, options.device, options.precision
    )  # fmt: skip
    given = [opening.Checkpoint(
        "a", options.checkpoint, options.index, options.captions_index, options.reranker, options.rerank, options.mix, regions,
        options.extractor_weights,
    )]  # fmt: skip
    if options.second_checkpoint is not None:
        second = options.second_checkpoint, options.second_index, options.second_captions_index
        given.append(opening.Checkpoint("b", *second, extractor_weights=options.extractor_weights))
    captions = opening.open_captions(options.captions, options.captions_index)
    gallery = Gallery(opening.open_photos(options.photos, options.index, regions), captions, regions)
    failures = None if options.evaluation is None else Failures(options.evaluation, options.second_evaluation)
    models = {each.name: opening.open_model(each, searching) for each in given}
    facts = {"photos": gallery.photos is not None, "captions": bool(captions), "regions": regions is not None}
    facts["evaluation"] = None if failures is None else {"languages": failures.languages, "second": failures.b is not None}
    service = SearchService(models, options.service, latencies)
    info = opening.described(models, captions, facts)
    return Application(service, gallery, Reading(service, gallery, failures, info), uploads)


if __name__ == "__main__":
    cli.run(main, Options, often="captions_index captions regions photos reranker rerank backends evaluation host port token device")
