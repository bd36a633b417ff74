#!/usr/bin/env python
"""Copy a feature index to another engine.

python scripts/export_index.py --index index/img --to milvus --uri milvus.db --collection img
python scripts/export_index.py --index index/img --to milvus --uri http://localhost:19530 --collection img --engine-index HNSW
python scripts/export_index.py --index index/img --to milvus --uri http://localhost:19530 --token USER:PASSWORD --collection img
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli
from configs.idle import refuse_idle
from data.index.reader import EmbeddingIndex
from data.storage.locks import claim_output


@dataclass
class Options:
    """Copy a feature index to another engine; interrupted, it goes on; one that is up to date is kept.

    Args:
        index: folder of the feature index
        uri: a file ending in .db (the embedded engine, milvus-lite) or a server's address
        to: the engine
        collection: name to export under
        engine_index: what the engine searches with: FLAT is exact, the others are approximate
        token: of a server that asks for one, "user:password"
        timeout: seconds to wait for the server
    """

    index: str
    uri: str
    to: Literal["milvus"] = "milvus"
    collection: str = "lightningdot"
    engine_index: Literal["FLAT", "HNSW", "AUTOINDEX"] = "FLAT"
    token: str = ""
    timeout: float = 10.0

    def __post_init__(self):
        refuse_idle(self, ("://" not in self.uri, "token timeout", "without a server as --uri"))


def main(options: Options) -> None:
    from data.search.milvus import export_to_milvus  # torch is slow to import: --help and wrong options do without

    if "://" not in options.uri:
        claim_output(options.uri)
    index, started = EmbeddingIndex(options.index), time.perf_counter()
    export_to_milvus(index, options.uri, options.collection, options.engine_index, options.token, options.timeout)
    print(f"{options.uri}: {index.count} vectors in {options.collection!r}, {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    cli.run(main, Options)
