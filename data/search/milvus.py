"""An index that outgrows one machine: a feature index exported to Milvus, searched through the same interface.

    export_to_milvus(EmbeddingIndex("index/img"), "milvus.db", "img")           # a file: the embedded engine, milvus-lite
    export_to_milvus(EmbeddingIndex("index/img"), "http://milvus:19530", "img") # a server, distributed or not
    backend = open_backend("img", SearchOptions("milvus", uri="http://milvus:19530"))
    scores, rows = backend.search(queries, k=10)

An export is a collection of its own, NAME_ and a digest of the index's state, with ``row`` (primary key), ``id`` and ``vector``,
searched by inner product; it is never changed once it is complete. NAME_header says in record 0 which one is searched, with the
header of the feature index, and in record 1 which one is being sent and how far. So an interrupted export goes on, the export
before it is searched until the new one is whole, and who has opened that one gets an error afterwards, never rows of another.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import ArrayLike

from data.errors import BadInput, Unavailable
from data.index.reader import EmbeddingIndex, check_model_settings
from data.progress import ProgressBar
from data.search.base import SearchBackend, SearchOptions
from data.search.topk import best_candidates, checked_queries
from data.storage.atomic import cannot_write_is_bad_input
from data.storage.regular_files import check_tree, is_there
from data.storage.shapes import check_shape
from data.storage.text_files import parse_json

SPARE = 16  # results beyond k whose scores are computed exactly, so that the engine's rounding does not choose
MOST = 16384  # results of a query that Milvus gives
QUERIES_AT_ONCE = 64  # a message holds their results and the vectors of these
SENT_AT_ONCE = 4 << 20  # bytes of vectors in a message
TIMEOUT = 10.0  # seconds to wait for a server
EF = 256  # candidates of a search in an HNSW graph, at least
HEADER = {
    "kind": str, "dim": int, "count": int, "model": str, "engine_index": str, "collection?": str, "complete?": bool, "sent?": int,
    "model_settings?": (dict, None),
}  # fmt: skip
CURRENT, COMING = 0, 1  # records of the header: the export that is searched, and one that is being sent
UNCHANGED = {"consistency_level": "Eventually"}  # of a read: complete exports do not change, so nothing is waited for


class MilvusSearch(SearchBackend):
    """An exported index, searched by Milvus.

    Args:
        collection: name it was exported under
        options: ``uri``, and ``token`` of a server that asks for one

    Attributes: ``header`` as that of the feature index.

    Raises:
        BadInput: no uri, pymilvus is not installed, Milvus cannot be reached, no such collection, half an export, or one that
            lacks vectors.
    """

    def __init__(self, collection: str, options: SearchOptions):
        uri = self.place = options.uri or ""
        self.collection = collection
        self._client = _client(uri, options.token, TIMEOUT, must_exist=True)
        headers = _read_headers(self._client, uri, collection)
        self.header: dict[str, Any] = headers.get(CURRENT) or {}
        if not self.header or not self.header.get("complete"):
            if headers:
                raise BadInput(f"{uri}: the export to {collection!r} was interrupted: run it again, it goes on")
            raise BadInput(f"{uri}: no collection {collection!r}; scripts/export_index.py makes it")
        self.kind, self.dim, self.count = (self.header[name] for name in ("kind", "dim", "count"))
        self._vectors = self.header.get("collection", collection)  # the name itself, in exports of former versions
        if (found := _count(self._client, uri, self._vectors)) != self.count:
            raise BadInput(
                f"{uri}: collection {collection!r} holds {found:,} vectors, {self.count:,} were exported: run "
                "scripts/export_index.py again"
            )

    def check_model(self, fingerprint: str | None, settings: dict | None = None) -> None:
        if fingerprint != self.header["model"]:
            raise BadInput(
                f"{self.place}: collection {self.collection!r} was made by model {self.header['model']}, the query comes from "
                f"model {fingerprint}: give the checkpoint that made the index, or export another"
            )
        check_model_settings(f"{self.place}: collection {self.collection!r}", self.header.get("model_settings"), settings)

    def ids(self, rows: ArrayLike) -> list[str]:
        wanted: list[int] = np.asarray(rows, np.int64).ravel().tolist()
        found: dict[int, str] = {}
        for start in range(0, len(wanted), 1000):
            with self._talking():
                found |= {
                    record["row"]: record["id"]
                    for record in self._client.get(
                        self._vectors, wanted[start : start + 1000], output_fields=["row", "id"], timeout=TIMEOUT, **UNCHANGED
                    )
                }
        missing = [row for row in wanted if row not in found]
        if missing:
            raise BadInput(f"{self.place}: collection {self.collection!r} lacks row {missing[0]}: export it again")
        return [found[row] for row in wanted]

    def search(self, queries: ArrayLike, k: int) -> tuple[np.ndarray, np.ndarray]:
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
        with self._talking():
            found = self._client.search(
                self._vectors,
                data=queries.tolist(),
                anns_field="vector",
                limit=min(k + SPARE, MOST, self.count),
                output_fields=["row", "vector"],  # a server names the primary key "id" in a hit, milvus-lite by its own name
                search_params={"metric_type": "IP", "params": self._effort(k)},
                timeout=TIMEOUT,
                **UNCHANGED,
            )
        if min(map(len, found)) < k:
            raise BadInput(f"{self.place}: collection {self.collection!r} gave {min(map(len, found))} results of {k}")
        query = np.repeat(np.arange(len(queries)), [len(hits) for hits in found])
        records = [hit["entity"] for hits in found for hit in hits]
        try:
            rows = np.array([record["row"] for record in records], np.int64)
            vectors = np.array([record["vector"] for record in records], np.float32).reshape(len(rows), self.dim)
        except (KeyError, TypeError, ValueError):
            raise BadInput(f"{self.place}: collection {self.collection!r} is damaged, its results are no rows and vectors: export it again") from None
        known, where = np.unique(rows, return_index=True)

        def vectors_of(rows: np.ndarray) -> np.ndarray:
            return vectors[where[np.searchsorted(known, rows)]]

        return best_candidates(queries, vectors_of, query, rows, k)

    def _effort(self, k: int) -> dict[str, int]:
        """How many neighbours a graph keeps in sight; by itself Milvus keeps k, which loses many."""
        return {"ef": max(EF, 2 * (k + SPARE))} if self.header["engine_index"] != "FLAT" else {}

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """As `_talking`; and whether what was opened is still there."""
        try:
            with _talking(self.place):
                yield
        except BadInput:
            with _talking(self.place):
                replaced = not self._client.has_collection(self._vectors, timeout=TIMEOUT)
            if replaced:
                raise BadInput(f"{self.place}: collection {self.collection!r} was exported anew or deleted meanwhile: open it again") from None
            raise

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
    wanted = index.stamp | {"engine_index": engine_index}
    wanted["collection"] = f"{collection}_{hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:16]}"
    _clear_half_made(uri, wanted["collection"], f"{collection}_header")
    headers = _read_headers(client, uri, collection)
    current = headers.get(CURRENT) or {}
    if not (_is_same(current, wanted) and current.get("complete") and _count(client, uri, wanted["collection"]) == index.count):
        _send(index, client, uri, collection, wanted, headers)
    with _talking(uri):
        client.close()


def delete_from_milvus(uri: str, collection: str, token: str = "", timeout: float = TIMEOUT) -> None:
    """Remove an export, whole or half, with its header, and nothing of another name. Where there is none, nothing happens.

    Raises:
        BadInput: pymilvus is not installed, Milvus cannot be reached or refuses.
    """
    client = _client(uri, token, timeout, must_exist=True)
    headers = _read_headers(client, uri, collection)
    with _talking(uri):
        for header in headers.values():
            client.drop_collection(header.get("collection", collection))
        client.drop_collection(f"{collection}_header")
        client.close()


def _clear_half_made(uri: str, *names: str) -> None:
    """Delete what the embedded engine leaves of collections that it could not create, on a full disk: folders without a schema, which
    are no collections to it, and are in its way."""
    for name in names if _is_file(uri) else ():
        folder = Path(uri, "collections", name)
        if folder.is_dir() and not is_there(folder / "schema.json"):
            with cannot_write_is_bad_input(folder):
                shutil.rmtree(folder)


def _is_file(uri: str) -> bool:
    return "://" not in uri


def _is_same(header: dict, wanted: dict) -> bool:
    return {name: header.get(name) for name in wanted} == wanted


def _send(index: EmbeddingIndex, client: Any, uri: str, collection: str, wanted: dict, headers: dict[int, dict]) -> None:
    """Send what is missing of an export, and have searches find it instead of the one before."""
    vectors, coming = wanted["collection"], headers.get(COMING) or {}
    with _talking(uri):
        if not client.has_collection(f"{collection}_header"):
            _create_header(client, collection)
        elif not client.list_indexes(f"{collection}_header"):
            _make_searchable(client, f"{collection}_header", "FLAT")
        start = 0
        if _is_same(coming, wanted) and client.has_collection(vectors):
            start = coming.get("sent", 0)
        else:
            if coming:
                client.drop_collection(coming["collection"])
            client.drop_collection(vectors)
            _create_vectors(client, vectors, index.dim)
            _put_header(client, collection, COMING, wanted | {"sent": 0})
        at_once = max(1, SENT_AT_ONCE // (4 * index.dim))
        with ProgressBar(what=f"to {uri}", total=index.count, initial=start, unit="vector") as bar:
            for first in range(start, index.count, at_once):
                rows = np.arange(first, min(first + at_once, index.count))
                records = zip(rows.tolist(), index.ids(rows), index.vectors(rows))
                client.upsert(vectors, [{"row": row, "id": name, "vector": vector} for row, name, vector in records])
                _put_header(client, collection, COMING, wanted | {"sent": int(rows[-1]) + 1})
                bar.update(len(rows))
        client.flush(vectors)
        _make_searchable(client, vectors, wanted["engine_index"])
    arrived = _count(client, uri, vectors)
    with _talking(uri):
        if arrived != index.count:
            _put_header(client, collection, COMING, wanted | {"sent": 0})
            raise BadInput(f"{uri}: {arrived:,} of {index.count:,} vectors arrived in {vectors}: export again, which sends all")
        settings = index.header["created"].get("model_settings")
        _put_header(client, collection, CURRENT, wanted | {"complete": True, "model_settings": settings})
        client.delete(f"{collection}_header", [COMING])
        before = headers[CURRENT].get("collection", collection) if CURRENT in headers else vectors
        if before != vectors:
            client.drop_collection(before)


def _create_vectors(client: Any, name: str, dim: int) -> None:
    from pymilvus import DataType  # optional: only who asks for Milvus needs it

    schema = client.create_schema(auto_id=False)
    schema.add_field("row", DataType.INT64, is_primary=True)
    schema.add_field("id", DataType.VARCHAR, max_length=512)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    client.create_collection(name, schema=schema, consistency_level="Strong")


def _create_header(client: Any, collection: str) -> None:
    from pymilvus import DataType  # optional: only who asks for Milvus needs it

    schema = client.create_schema(auto_id=False)
    schema.add_field("row", DataType.INT64, is_primary=True)
    schema.add_field("json", DataType.VARCHAR, max_length=8192)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=2)  # Milvus wants one in each
    client.create_collection(f"{collection}_header", schema=schema, consistency_level="Strong")
    _make_searchable(client, f"{collection}_header", "FLAT")


def _make_searchable(client: Any, name: str, engine_index: str) -> None:
    """Build Milvus' own index of the vectors, once all are there, and load it."""
    if not client.list_indexes(name):  # an export that was killed has built it already
        params = client.prepare_index_params()
        graph = {"M": 32, "efConstruction": 200} if engine_index == "HNSW" else {}
        params.add_index("vector", index_type=engine_index, metric_type="IP", params=graph)
        client.create_index(name, params)
    client.load_collection(name)


def _count(client: Any, uri: str, name: str) -> int:
    """How many vectors a collection holds; 0 where there is none of that name."""
    with _talking(uri):
        if not client.has_collection(name):
            return 0
        client.load_collection(name)
        return client.query(name, "", output_fields=["count(*)"], consistency_level="Strong")[0]["count(*)"]


def _put_header(client: Any, collection: str, record: int, header: dict) -> None:
    client.upsert(f"{collection}_header", [{"row": record, "json": json.dumps(header), "vector": [0.0, 0.0]}])


def _read_headers(client: Any, uri: str, collection: str) -> dict[int, dict]:
    """The records of NAME_header; none where there is no such collection."""
    name = f"{collection}_header"
    with _talking(uri):
        if not (client.has_collection(name) and client.list_indexes(name)):  # without one an export was killed at its very beginning
            return {}
        client.load_collection(name)
        found = client.get(name, [CURRENT, COMING], output_fields=["row", "json"])
    headers = {}
    for record in found:
        where = f"{uri}: the header of an index in {name}"
        if not record.keys() >= {"row", "json"}:
            raise BadInput(f"{where} is damaged, it has {', '.join(map(str, record))} and neither row nor json: export it again")
        headers[record["row"]] = parse_json(record["json"], where, "export it again")
        check_shape(headers[record["row"]], HEADER, where, "export it again")
    return headers


def _client(uri: str, token: str, timeout: float, must_exist: bool = False) -> Any:
    try:
        from pymilvus import MilvusClient  # optional: only who asks for Milvus needs it
    except ImportError as error:
        raise BadInput(f"Milvus needs pymilvus ({error}): pip install pymilvus milvus-lite") from None
    for name in ("pymilvus", "milvus_lite.adapter", "milvus_lite.server_manager"):  # they log a traceback of each error that becomes one line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    is_file = _is_file(uri)
    if is_file and not uri.endswith(".db"):
        raise BadInput(f"{uri}: expected a file name ending in .db, or a server as in http://localhost:19530")
    if is_file and must_exist and not Path(uri).exists():
        raise BadInput(f"{uri}: no such file; scripts/export_index.py --to milvus makes it")
    if is_file:
        with cannot_write_is_bad_input(Path(uri)):
            Path(uri).parent.mkdir(parents=True, exist_ok=True)
        check_tree(uri)  # the engine reads its folder as it finds it
    try:
        with _talking(uri):
            return MilvusClient(uri=uri, token=token, timeout=timeout)
    except BadInput as error:
        if is_file or not _answers(uri):
            raise
        raise BadInput(f"{error}; a server answers there: is --token user:password right?") from None


def _answers(uri: str) -> bool:
    """Whether something listens at the address of a server."""
    address = urlsplit(uri)
    try:
        with socket.create_connection((address.hostname, address.port or 19530), timeout=TIMEOUT):
            return True
    except (OSError, ValueError):
        return False


@contextmanager
def _talking(uri: str) -> Iterator[None]:
    """Whatever the engine, its files or the way to it raise is one line."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # of pymilvus, gRPC, or the embedded engine's files
        reason = " ".join(str(getattr(error, "message", None) or error).split())
        raise Unavailable(f"{uri}: Milvus does not answer or refuses: {reason}") from None
