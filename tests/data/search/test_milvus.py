"""Milvus for real: the embedded engine against the naive search; and what is refused."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.errors import BadInput
from data.index.editor import IndexEditor
from data.index.reader import EmbeddingIndex
from data.search import open_backend
from data.search.base import SearchOptions
from data.search.exact import ExactSearch
from data.search.milvus import delete_from_milvus, export_to_milvus
from tests.small_indexes import assert_same, galleries, naive_search, write

ROOT = Path(__file__).resolve().parents[3]


def opened(uri, collection):
    return open_backend(collection, SearchOptions("milvus", uri=uri))


@pytest.mark.milvus
def test_every_gallery_is_the_naive_search(tmp_path):
    rng = np.random.default_rng(1)
    uri = str(tmp_path / "deep" / "milvus.db")
    for number, (name, vectors) in enumerate(galleries(rng).items()):
        vectors = vectors[:300]
        queries = np.round(rng.standard_normal((8, 24)) * 8).astype(np.float32)
        index = write(tmp_path / f"{number}", vectors)
        export_to_milvus(index, uri, f"gallery_{number}")
        found = opened(uri, f"gallery_{number}")
        assert (found.kind, found.dim, len(found)) == ("img", 24, 300)
        for k in (5, 1000):
            scores, rows = found.search(queries, k)
            expected = naive_search(queries, vectors, k)
            if name in ("random", "zeros") or k == 1000:
                np.testing.assert_array_equal(scores, expected[0])
            true = (queries.astype(np.float64)[:, None] * vectors[rows].astype(np.float64)).sum(-1).astype(np.float32)
            np.testing.assert_array_equal(scores, true)  # whichever of equals it found
        assert_same((scores, rows), expected)
        assert found.ids([299, 0]) == index.ids([299, 0])
        found.close()


@pytest.mark.milvus
def test_what_a_full_disk_left_of_a_collection_is_cleared_away(tmp_path):
    vectors = np.random.default_rng(2).standard_normal((5, 8)).astype(np.float32)
    index, uri = write(tmp_path / "index", vectors), str(tmp_path / "m.db")
    export_to_milvus(index, uri, "other")
    whole = list(Path(uri, "collections").iterdir())
    for folder in whole:  # of which the schema could not be written
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "schema.json.tmp").touch()
    export_to_milvus(index, uri, "other")
    found = opened(uri, "other")
    assert found.ids([0]) == index.ids([0]) and len(whole) == 2
    found.close()


@pytest.mark.milvus
def test_export_goes_on_and_follows_the_index(tmp_path, monkeypatch):
    vectors = np.random.default_rng(2).standard_normal((500, 8)).astype(np.float32)
    index, uri = write(tmp_path / "index", vectors), str(tmp_path / "m.db")
    monkeypatch.setattr("data.search.milvus.SENT_AT_ONCE", 8 * 4 * 50)
    real, sent = EmbeddingIndex.vectors, []

    def dies(self, rows):
        sent.append(len(rows))
        if len(sent) == 4:
            raise KeyboardInterrupt
        return real(self, rows)

    monkeypatch.setattr(EmbeddingIndex, "vectors", dies)
    with pytest.raises(KeyboardInterrupt):
        export_to_milvus(index, uri, "img")
    with pytest.raises(BadInput, match="interrupted"):
        opened(uri, "img")
    export_to_milvus(index, uri, "img")
    assert len(sent) == 4 + 7  # of ten messages three had gone
    export_to_milvus(index, uri, "img")
    assert len(sent) == 4 + 7  # up to date
    monkeypatch.undo()
    found = opened(uri, "img")
    assert_same(found.search(vectors[:3], 10), naive_search(vectors[:3], vectors, 10))
    found.close()
    with IndexEditor(tmp_path / "index", "m0") as editor:
        editor.delete(["id_00000.npz"])
    changed = EmbeddingIndex(tmp_path / "index")
    export_to_milvus(changed, uri, "img")
    found = opened(uri, "img")
    assert_same(found.search(vectors[:3], 10), ExactSearch(changed).search(vectors[:3], 10))
    found.close()


@pytest.mark.milvus
@pytest.mark.parametrize("before", ["create_index 0", "load_collection 0", "create_index 1", "load_collection 1", "delete 0"])
def test_an_export_that_is_killed_between_two_calls_goes_on(tmp_path, monkeypatch, before):
    from pymilvus import MilvusClient  # optional

    vectors = np.random.default_rng(2).standard_normal((60, 8)).astype(np.float32)
    index, uri = write(tmp_path / "index", vectors), str(tmp_path / "m.db")
    name, left = before.split()[0], [int(before.split()[1])]
    real = getattr(MilvusClient, name)

    def dies(self, *words, **more):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(self, *words, **more)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(MilvusClient, name, dies)
        export_to_milvus(index, uri, "img")
    export_to_milvus(index, uri, "img")
    found = opened(uri, "img")
    assert_same(found.search(vectors[:3], 10), naive_search(vectors[:3], vectors, 10))
    found.close()


@pytest.mark.milvus
@pytest.mark.parametrize("damaged", ["*/schema.json", "*_*/partitions/_default/data/*.parquet"])
def test_a_damaged_file_of_the_embedded_engine_is_one_line(tmp_path, caplog, damaged):
    from milvus_lite.server_manager import server_manager_instance  # optional

    vectors = np.random.default_rng(2).standard_normal((50, 8)).astype(np.float32)
    uri = str(tmp_path / "m.db")
    export_to_milvus(write(tmp_path / "index", vectors), uri, "img")
    server_manager_instance.release_all()  # it keeps in memory what it has open
    for path in (tmp_path / "m.db" / "collections").glob(damaged):
        if "header" not in str(path):
            path.write_bytes(b"\xff" * 40)
    with pytest.raises(BadInput, match=r"m\.db: Milvus does not answer or refuses: "):
        opened(uri, "img").search(vectors[:3], 10)
    logged = [record for record in caplog.records if not record.name.startswith("grpc")]  # which has a handler that writes nothing
    assert not any(record.exc_info for record in logged), "the engine logs a traceback"


@pytest.mark.milvus
def test_a_pipe_among_the_files_of_the_embedded_engine_is_not_waited_for(tmp_path):
    place = tmp_path / "m.db" / "collections" / "img_header"
    place.mkdir(parents=True)
    os.mkfifo(place / "vector.flat.idx")
    index, uri = write(tmp_path / "index", np.eye(4, dtype=np.float32)), str(tmp_path / "m.db")
    for use in (lambda: opened(uri, "img"), lambda: export_to_milvus(index, uri, "img"), lambda: delete_from_milvus(uri, "img")):
        with pytest.raises(BadInput, match=f"{place}/vector.flat.idx: a named pipe, and only files are read"):
            use()


@pytest.mark.milvus
@pytest.mark.parametrize("sent", ["all", "half"])
def test_deleting_an_export_leaves_those_of_other_names(tmp_path, monkeypatch, sent):
    vectors = np.random.default_rng(2).standard_normal((60, 8)).astype(np.float32)
    index, uri = write(tmp_path / "index", vectors), str(tmp_path / "m.db")
    export_to_milvus(index, uri, "img")
    found = opened(uri, "img")
    before = sorted(found._client.list_collections())
    if sent == "half":

        def dies(self, rows):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(EmbeddingIndex, "vectors", dies)
            export_to_milvus(index, uri, "img_more")
    else:
        export_to_milvus(index, uri, "img_more")
    assert len(found._client.list_collections()) == len(before) + 2
    delete_from_milvus(uri, "img_more")
    assert sorted(found._client.list_collections()) == before
    assert_same(found.search(vectors[:3], 10), naive_search(vectors[:3], vectors, 10))
    found.close()
    delete_from_milvus(uri, "img")
    with pytest.raises(BadInput, match="no collection 'img'"):
        opened(uri, "img")


@pytest.mark.milvus
def test_refused(tmp_path):
    index, uri = write(tmp_path / "index", np.eye(4, dtype=np.float32)), str(tmp_path / "m.db")
    with pytest.raises(BadInput, match="no such file"):
        opened(uri, "img")
    export_to_milvus(index, uri, "img")
    with pytest.raises(BadInput, match="no collection 'txt'"):
        opened(uri, "txt")
    found = opened(uri, "img")
    with pytest.raises(BadInput, match=r"made by model m0.*m1"):
        found.check_model("m1")
    for queries, k, words in ((np.ones((1, 5)), 1, "expected"), (np.full((1, 4), np.nan), 1, "NaN"), (np.ones((1, 4)), 0, "k is 0")):
        with pytest.raises(BadInput, match=words):
            found.search(queries, k)
    with pytest.raises(BadInput, match="lacks row 9"):
        found.ids([9])
    found.close()
    with pytest.raises(BadInput, match=r"127\.0\.0\.1:port: Milvus does not answer or refuses"):
        opened("http://127.0.0.1:port", "img")
    for arguments, words in (((uri, "a-b"), "collection 'a-b'"), (("m.txt", "img"), r"ending in \.db")):
        with pytest.raises(BadInput, match=words):
            export_to_milvus(index, *arguments)
    with pytest.raises(BadInput, match="empty"):
        export_to_milvus(write(tmp_path / "none", np.zeros((0, 4), np.float32)), uri, "img")


@pytest.mark.milvus
def test_a_server_that_is_not_there_is_one_line(tmp_path):
    write(tmp_path / "index", np.eye(4, dtype=np.float32))
    words = ["--index", tmp_path / "index", "--uri", "http://127.0.0.1:9", "--timeout", "1"]
    done = subprocess.run(
        [sys.executable, "scripts/export_index.py", *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and "127.0.0.1:9: Milvus does not answer" in lines[0], done.stderr


def test_without_pymilvus_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(BadInput, match="pip install pymilvus milvus-lite"):
        opened("m.db", "img")
