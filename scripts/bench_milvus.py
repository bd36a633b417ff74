#!/usr/bin/env python
"""A gallery on a Milvus server: seconds of its export, milliseconds of a query, and whether it finds what the exact search finds.

python scripts/bench_milvus.py --uri http://localhost:19530 --out benchmarks/milvus.json    # as many images as COCO has; minutes
python scripts/bench_milvus.py --uri http://localhost:19530 --token USER:PASSWORD --images 5000 --engines FLAT
python scripts/bench_milvus.py --uri milvus.db --images 5000 --engines FLAT    # the embedded engine

Vectors and queries are drawn as a trained model's are (``scripts/benchmarking/galleries.py``), written as an index and exported as
scripts/export_index.py does, to a collection of their own for each engine; its name is drawn, and it is deleted at the end, or by the
next one with this folder of work where this is killed. No other is touched. The exact backend, which searches the same index in this
process, and the engines are asked in turns, query after query.
"""

import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli  # isort: skip (before torch)
import numpy as np
import torch

from data.errors import BadInput, Unavailable
from data.index.reader import EmbeddingIndex
from data.search import open_backend
from data.search.base import SearchBackend, SearchOptions
from data.search.milvus import delete_from_milvus, export_to_milvus
from data.storage.locks import claim_output
from data.storage.text_files import write_json
from optim.run import environment
from scripts.benchmarking.engine_searches import measured_searches, print_table
from scripts.benchmarking.galleries import Synthetic, write_drawn_index
from scripts.benchmarking.measuring import device_name
from scripts.benchmarking.retrieval_report import BATCH
from scripts.benchmarking.work_folder import work_folder


@dataclass
class Options:
    """Measure export to and search by a Milvus server.

    Args:
        uri: the server's address, or a file ending in .db (the embedded engine, milvus-lite)
        token: of a server that asks for one, "user:password"
        images: vectors that are drawn and exported
        dim: width of a vector
        engines: what the server searches with; each has a collection of its own
        queries: asked one at a time, and then 100 at once; as many hundreds
        k: results of a query
        timeout: seconds to wait for the server
        out: JSON file to write
        work: folder for the index, 0.4 GB; deleted at the end
    """

    uri: str
    token: str = ""
    images: int = 123287
    dim: int = 768
    engines: list[Literal["FLAT", "HNSW", "AUTOINDEX"]] = field(default_factory=lambda: ["FLAT", "HNSW"])
    queries: int = 500
    k: int = 10
    timeout: float = 10.0
    out: str = "benchmarks/milvus.json"
    work: str = "bench_milvus_work"

    def __post_init__(self):
        if self.queries < BATCH or self.queries % BATCH:
            raise BadInput(f"queries is {self.queries}, expected hundreds: {BATCH} are asked at once")
        if not 0 < self.k <= self.images or self.dim < 1 or len(set(self.engines)) < max(1, len(self.engines)):
            raise BadInput("bench_milvus: need images >= k > 0, dim > 0, and engines, each once")


def main(options: Options) -> None:
    claim_output(options.out)
    if "://" not in options.uri:
        claim_output(options.uri)
    name = f"bench_milvus_{secrets.token_hex(8)}"
    collections = {engine: f"{name}_{engine}" for engine in options.engines}

    def delete_left(names: str) -> None:
        for collection in names.split() if "://" in options.uri or Path(options.uri).exists() else ():
            delete_from_milvus(options.uri, collection, options.token, options.timeout)

    with ExitStack() as at_the_end:
        work = at_the_end.enter_context(work_folder(options.work, " ".join(collections.values()), delete_left))
        shape, rng = Synthetic(options.dim), np.random.default_rng(options.images)
        some = write_drawn_index(work / "index", shape, rng, options.images, "bench_milvus")
        asked = shape.queries(rng, some[rng.integers(len(some), size=options.queries)])
        index = EmbeddingIndex(work / "index")
        systems, exports = {"exact": open_backend(index)}, {}
        for engine in options.engines:
            exported = exported_index(index, collections[engine], engine, options)
            systems[engine], exports[engine] = at_the_end.enter_context(exported)
        server = settled_server(options, [systems[engine].header["collection"] for engine in options.engines])
        searches = measured_searches(systems, asked, options.k)
    results = {"server": server, "export_seconds": exports, "search": searches, "device": device_name(torch.device("cpu"))}
    results["options"] = {name: value for name, value in cli.to_dict(options).items() if name not in ("uri", "token", "out", "work")}
    results["environment"] = {name: value for name, value in environment().items() if name != "command"}  # which may hold the token
    write_json(options.out, results)
    print_table(results)
    print(f"results: {options.out}")


def settled_server(options: Options, collections: list[str]) -> str:
    """Its version, once it builds nothing any more: some time after an export it brings vectors together, and builds anew."""
    from pymilvus import MilvusClient  # optional: only who asks for Milvus needs it

    with closing(MilvusClient(options.uri, token=options.token, timeout=options.timeout)) as client:
        while any(client.describe_index(name, "vector").get("pending_index_rows", 0) for name in collections):
            time.sleep(1)
        return client.get_server_version()


@contextmanager
def exported_index(index: EmbeddingIndex, collection: str, engine: str, options: Options) -> Iterator[tuple[SearchBackend, float]]:
    """The index on the server, and the seconds that this took: sending, and until the server has built what it searches with."""
    try:
        started = time.perf_counter()
        export_to_milvus(index, options.uri, collection, engine, options.token, options.timeout)
        seconds = time.perf_counter() - started
        with closing(open_backend(collection, SearchOptions("milvus", uri=options.uri, token=options.token))) as found:
            yield found, seconds
    except BaseException:
        with suppress(Unavailable):  # what went wrong first is told
            delete_from_milvus(options.uri, collection, options.token, options.timeout)
        raise
    delete_from_milvus(options.uri, collection, options.token, options.timeout)


if __name__ == "__main__":
    cli.run(main, Options)
