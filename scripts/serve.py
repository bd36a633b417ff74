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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing
os.environ.update({n: os.environ.get(n, "16") for n in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")})  # 500 MB else, by shape

from configs import cli
from model.serving.gallery import Gallery
from model.serving.latencies import Latencies
from model.serving.searching import SearchService
from scripts.serving import opening
from scripts.serving.app import Application
from scripts.serving.checkpoints import checkpoints
from scripts.serving.first_index import build_captions_where_absent
from scripts.serving.guard import Guard, is_loopback
from scripts.serving.options import Options
from scripts.serving.reading import Reading
from scripts.serving.server import BACKLOG, address_of, bound_socket, serve


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
    given = checkpoints(options)
    regions = given[0].regions
    for each in given:
        build_captions_where_absent(each.captions_index, each.folder, options.captions, options.device, options.precision)
    captions = opening.open_captions(options.captions, options.captions_index)
    gallery = Gallery(opening.open_photos(options.photos, options.index, regions), captions, regions)
    failures = opening.open_failures(options.evaluation, options.second_evaluation, captions)
    models = {each.name: opening.open_model(each, options) for each in given}
    facts = {"photos": gallery.photos is not None, "captions": bool(captions), "regions": regions is not None}
    facts["evaluation"] = None if failures is None else {"languages": failures.languages, "second": failures.b is not None}
    service = SearchService(models, options.service, latencies)
    info = opening.described(models, captions, facts)
    return Application(service, gallery, Reading(service, gallery, failures, info), uploads)


if __name__ == "__main__":
    cli.run(main, Options, often="captions_index captions regions photos reranker rerank backends evaluation host port token device")
