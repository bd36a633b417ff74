"""An index that outgrows one machine: a feature index exported to Milvus, searched through the same interface.

    export_to_milvus(EmbeddingIndex("index/img"), "milvus.db", "img")           # a file: the embedded engine, milvus-lite
    export_to_milvus(EmbeddingIndex("index/img"), "http://milvus:19530", "img") # a server, distributed or not
    backend = open_backend("img", SearchOptions("milvus", uri="http://milvus:19530"))
    scores, rows = backend.search(queries, k=10)

Two collections: NAME has ``row`` (primary key), ``id`` and ``vector``, searched by inner product; NAME_header has one record,
the header of the feature index. It is marked complete after the last vector, and an interrupted export goes on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.search.base import SearchBackend, SearchOptions
from data.search.topk import best_candidates, checked_queries

SPARE = 16  # results beyond k whose scores are computed exactly, so that the engine's rounding does not choose
MOST = 16384  # results of a query that Milvus gives
QUERIES_AT_ONCE = 64  # a message holds their results and the vectors of these
SENT_AT_ONCE = 4 << 20  # bytes of vectors in a message
TIMEOUT = 10.0  # seconds to wait for a server


class MilvusSearch(SearchBackend):
    """An exported index, searched by Milvus.

    Args:
        collection: name it was exported under
        options: ``uri``, and ``token`` of a server that asks for one

    Attributes: ``header`` as that of the feature index.

    Raises:
        BadInput: no uri, pymilvus is not installed, Milvus cannot be reached, no such collection, or half an export.
    """

    def __init__(self, collection: str, options: SearchOptions):
        uri = self.place = options.uri or ""
        self.collection = collection
        self._client = _client(uri, options.token, TIMEOUT, must_exist=True)
        self.header = _header(self._client, uri, collection)
        if self.header is None:
            raise BadInput(f"{uri}: no collection {collection!r}; scripts/export_index.py makes it")
        if not self.header["complete"]:
            raise BadInput(f"{uri}: the export to {collection!r} was interrupted: run it again, it goes on")
        self.kind, self.dim, self.count = (self.header[name] for name in ("kind", "dim", "count"))
        with _talking(uri):
            self._client.load_collection(collection)

    def check_model(self, fingerprint: str) -> None:
        if fingerprint != self.header["model"]:
            raise BadInput(
                f"{self.place}: collection {self.collection!r} was made by model {self.header['model']}, the query comes from "
                f"model {fingerprint}: give the checkpoint that made the index, or export another"
            )

    def ids(self, rows) -> list[str]:
        rows, found = [int(row) for row in rows], {}
        for start in range(0, len(rows), 1000):
            with _talking(self.place):
                found |= {
                    record["row"]: record["id"]
                    for record in self._client.get(self.collection, rows[start : start + 1000], output_fields=["row", "id"])
                }
        missing = [row for row in rows if row not in found]
        if missing:
            raise BadInput(f"{self.place}: collection {self.collection!r} lacks row {missing[0]}: export it again")
        return [found[row] for row in rows]

    def search(self, queries, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k best rows that Milvus finds: see ``SearchBackend``.

        Raises:
            BadInput: as there; more results than Milvus gives; Milvus does not answer, or with fewer rows than there are.
        """
        queries = checked_queries(queries, k, self.dim, self.count, self.place)
        k = min(k, self.count)
        if k > MOST:
            raise BadInput(f"{self.place}: k is {k}, Milvus gives at most {MOST} results: search exactly")
        scores = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            part = slice(start, start + QUERIES_AT_ONCE)
            scores[part], rows[part] = self._search_part(queries[part], k)
        return scores, rows

    def _search_part(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        with _talking(self.place):
            found = self._client.search(
                self.collection,
                data=queries.tolist(),
                anns_field="vector",
                limit=min(k + SPARE, MOST, self.count),
                output_fields=["row", "vector"],  # a server names the primary key "id" in a hit, milvus-lite by its own name
                search_params={"metric_type": "IP"},
            )
        if min(map(len, found)) < k:
            raise BadInput(f"{self.place}: collection {self.collection!r} gave {min(map(len, found))} results of {k}")
        query = np.repeat(np.arange(len(queries)), [len(hits) for hits in found])
        records = [hit["entity"] for hits in found for hit in hits]
        rows = np.array([record["row"] for record in records], np.int64)
        vectors = np.array([record["vector"] for record in records], np.float32)
        known, where = np.unique(rows, return_index=True)

        def vectors_of(rows: np.ndarray) -> np.ndarray:
            return vectors[where[np.searchsorted(known, rows)]]

        return best_candidates(queries, vectors_of, query, rows, k)

    def close(self) -> None:
        """Let go of the engine; a file can be opened by one process at a time."""
        self._client.close()


def export_to_milvus(
    index: EmbeddingIndex, uri: str, collection: str, engine_index: str = "FLAT", token: str = "", timeout: float = TIMEOUT
) -> None:
    """Copy a feature index to Milvus. Another state of it under that name is replaced, half an export is gone on with.

    Args:
        timeout: seconds to wait for a server
        engine_index: what Milvus searches with: FLAT is exact; AUTOINDEX and HNSW are approximate

    Raises:
        BadInput: an empty index, a bad name, pymilvus is not installed, Milvus cannot be reached or refuses.
    """
    if not index.count:
        raise BadInput(f"{index.folder}: the index is empty; build it from a database with entries")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,200}", collection):
        raise BadInput(f"collection {collection!r}: expected letters, digits and _, as Milvus does")
    client = _client(uri, token, timeout)
    new_header = index.stamp | {"engine_index": engine_index}
    header = _header(client, uri, collection)
    with _talking(uri):
        if header is None or {name: header.get(name) for name in new_header} != new_header:
            _create(client, collection, index.dim, engine_index)
            _put_header(client, collection, new_header | {"complete": False})
        elif header["complete"]:
            return client.close()
        start = int(client.get_collection_stats(collection)["row_count"])
        at_once = max(1, SENT_AT_ONCE // (4 * index.dim))
        start = max(0, start - at_once)  # the last message may have arrived in part; a row sent twice is one row
        with tqdm(total=index.count, initial=start, desc=f"to {uri}", unit="vector", delay=2) as bar:
            for first in range(start, index.count, at_once):
                rows = np.arange(first, min(first + at_once, index.count))
                records = zip(rows.tolist(), index.ids(rows), index.vectors(rows))
                client.upsert(collection, [{"row": row, "id": name, "vector": vector} for row, name, vector in records])
                client.flush(collection)
                bar.update(len(rows))
        _put_header(client, collection, new_header | {"complete": True})
        client.close()


def _create(client, collection: str, dim: int, engine_index: str) -> None:
    from pymilvus import DataType  # optional: only who asks for Milvus needs it

    graph = {"M": 32, "efConstruction": 200} if engine_index == "HNSW" else {}
    columns = {
        collection: [("row", DataType.INT64, {"is_primary": True}), ("id", DataType.VARCHAR, {"max_length": 512})],
        f"{collection}_header": [
            ("row", DataType.INT64, {"is_primary": True}),
            ("json", DataType.VARCHAR, {"max_length": 8192}),
        ],
    }
    for name, fields in columns.items():
        is_header = name != collection
        client.drop_collection(name)
        schema = client.create_schema(auto_id=False)
        for field, kind, options in fields:
            schema.add_field(field, kind, **options)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2 if is_header else dim)  # Milvus wants one in each
        params = client.prepare_index_params()
        kind, options = ("FLAT", {}) if is_header else (engine_index, graph)
        params.add_index("vector", index_type=kind, metric_type="IP", params=options)
        client.create_collection(name, schema=schema, index_params=params, consistency_level="Strong")


def _put_header(client, collection: str, header: dict) -> None:
    client.upsert(f"{collection}_header", [{"row": 0, "json": json.dumps(header), "vector": [0.0, 0.0]}])
    client.flush(f"{collection}_header")


def _header(client, uri: str, collection: str) -> dict | None:
    with _talking(uri):
        if not (client.has_collection(collection) and client.has_collection(f"{collection}_header")):
            return None
        client.load_collection(f"{collection}_header")
        found = client.get(f"{collection}_header", [0], output_fields=["json"])
    try:
        return json.loads(found[0]["json"]) if found else None
    except (ValueError, KeyError):
        raise BadInput(f"{uri}: {collection}_header holds no header of an index: export it again") from None


def _client(uri: str, token: str, timeout: float, must_exist: bool = False):
    try:
        from pymilvus import MilvusClient  # optional: only who asks for Milvus needs it
    except ImportError as error:
        raise BadInput(f"Milvus needs pymilvus ({error}): pip install pymilvus milvus-lite") from None
    is_file = "://" not in uri
    if is_file and not uri.endswith(".db"):
        raise BadInput(f"{uri}: expected a file name ending in .db, or a server as in http://localhost:19530")
    if is_file and must_exist and not Path(uri).exists():
        raise BadInput(f"{uri}: no such file; scripts/export_index.py --to milvus makes it")
    if is_file:
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
    with _talking(uri):
        return MilvusClient(uri=uri, token=token, timeout=timeout)


@contextmanager
def _talking(uri: str) -> Iterator[None]:
    """Whatever the engine or the way to it raises is one line."""
    from pymilvus.exceptions import MilvusException  # optional: `_client` has imported it before

    try:
        yield
    except BadInput:
        raise
    except (MilvusException, OSError, ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(getattr(error, "message", None) or error).split())
        raise BadInput(f"{uri}: Milvus does not answer or refuses: {reason}") from None
