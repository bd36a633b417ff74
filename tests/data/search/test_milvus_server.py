"""A real Milvus server (PyPI's milvus, in an environment of its own that `make test` builds): everything that the embedded engine
does otherwise, and what can happen to a server. One server for all of them; it is stopped and started by the last."""

import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from data.errors import BadInput
from data.index.editor import IndexEditor
from data.index.reader import EmbeddingIndex
from data.search import open_backend
from data.search.base import SearchOptions
from data.search.exact import ExactSearch
from data.search.milvus import export_to_milvus
from scripts import bench_milvus
from tests.browsing import Tab, chromium, ids_of, text_of
from tests.gallery import command as run
from tests.served import serving
from tests.small_indexes import assert_same, naive_search, write

pytestmark = pytest.mark.milvus_server
ROOT = Path(__file__).resolve().parents[3]
TOKEN = "root:Milvus"


class Server:
    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.uri, self.process = folder, f"http://127.0.0.1:{self.port}", None

    def start(self):
        python = ROOT / ".venv-milvus/bin/python"
        assert python.exists(), "make .venv-milvus/installed makes the server's environment"
        command = [python, ROOT / "tests/milvus_server.py", self.folder, self.port]
        self.process = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"

    def stop(self):
        self.process.communicate("")

    def open(self, collection, token=TOKEN):
        return open_backend(collection, SearchOptions("milvus", uri=self.uri, token=token))

    def export(self, index, collection, engine_index="FLAT"):
        export_to_milvus(index, self.uri, collection, engine_index, TOKEN)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("milvus"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def vectors():
    return np.random.default_rng(1).standard_normal((2000, 24)).astype(np.float32)


@pytest.fixture(scope="module")
def exported(server, vectors, tmp_path_factory):
    """Indexes and their exports, sent at the same time, for most of that is waiting for the server."""
    folder = tmp_path_factory.mktemp("indexes")
    parts = {"FLAT": 2000, "HNSW": 2000, "AUTOINDEX": 2000, "edited": 300, "thinned": 300, "killed": 100}
    indexes = {name: write(folder / name, vectors[:count]) for name, count in parts.items()}

    def export(name):
        server.export(indexes[name], name, name if name.isupper() else "FLAT")

    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(export, parts))
    return indexes


@pytest.mark.parametrize("engine_index", ["FLAT", "HNSW", "AUTOINDEX"])
def test_ids_and_scores_are_those_of_the_exact_search(server, vectors, exported, engine_index):
    index = exported[engine_index]
    found, exact = server.open(engine_index), ExactSearch(index)
    assert (found.kind, found.dim, len(found)) == ("img", 24, 2000)
    assert_same(found.search(vectors[:70], 10), exact.search(vectors[:70], 10))
    assert found.ids([1999, 0]) == index.ids([1999, 0])
    if engine_index == "FLAT":
        assert_same(found.search(vectors[:2], 5000), naive_search(vectors[:2], vectors, 5000))
    found.close()


def test_a_killed_export_goes_on_and_the_one_before_is_found_until_then(server, vectors, exported, tmp_path):
    new = write(tmp_path / "new", vectors)
    program = (
        "import os, signal, sys; from data.index.reader import EmbeddingIndex; from data.search import milvus\n"
        "milvus.SENT_AT_ONCE = 24 * 4 * 200; real, sent = EmbeddingIndex.vectors, []\n"
        "def vectors(self, rows):\n"
        "    sent.append(rows)\n"
        "    if len(sent) == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(self, rows)\n"
        "EmbeddingIndex.vectors = vectors\n"
        "milvus.export_to_milvus(EmbeddingIndex(sys.argv[1]), sys.argv[2], 'killed', token=sys.argv[3])\n"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "new", server.uri, TOKEN], cwd=ROOT, stderr=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL
    before = server.open("killed")
    assert_same(before.search(vectors[:3], 10), naive_search(vectors[:3], vectors[:100], 10))
    server.export(new, "killed")
    after = server.open("killed")
    assert_same(after.search(vectors[:3], 10), naive_search(vectors[:3], vectors, 10))
    with pytest.raises(BadInput, match="'killed' was exported anew or deleted meanwhile: open it again"):
        before.search(vectors[:3], 10)
    before.close()
    after.close()


def test_update_and_delete_reach_the_server_and_two_clients_see_them(server, vectors, exported):
    with IndexEditor(exported["edited"].folder, "m0") as editor:
        editor.replace(["id_00001.npz"], vectors[500:501])
        editor.add(["new.npz"], vectors[501:502])
        editor.delete(["id_00000.npz"])
    changed = EmbeddingIndex(exported["edited"].folder)
    server.export(changed, "edited")
    clients, expected = [server.open("edited"), server.open("edited")], ExactSearch(changed).search(vectors[500:504], 10)
    for client in clients:
        assert_same(client.search(vectors[500:504], 10), expected)
        assert client.ids(expected[1][:2, 0]) == ["id_00001.npz", "new.npz"]
        client.close()


def test_vectors_that_are_gone_from_the_server_are_noticed_and_sent_again(server, vectors, exported):
    client = server.open("thinned")
    client._client.delete(client._vectors, [5, 6])
    client.close()
    with pytest.raises(BadInput, match="'thinned' holds 298 vectors, 300 were exported"):
        server.open("thinned")
    server.export(exported["thinned"], "thinned")
    client = server.open("thinned")
    assert_same(client.search(vectors[:3], 10), naive_search(vectors[:3], vectors[:300], 10))
    client.close()


def test_a_wrong_token_is_one_line_that_names_it(server, exported):
    for token in ("", "root:wrong"):
        with pytest.raises(BadInput, match="a server answers there: is --token user:password right"):
            server.open("edited", token)


def test_the_benchmark_counts_ids_and_leaves_nothing_but_its_results(server, exported, tmp_path):
    client = server.open("FLAT")
    before = sorted(client._client.list_collections())
    words = ["--uri", server.uri, "--token", TOKEN, "--images", 600, "--dim", 16, "--queries", 100, "--engines", "FLAT"]
    run(bench_milvus, *words, "--out", tmp_path / "out.json", "--work", tmp_path / "work")
    assert sorted(client._client.list_collections()) == before and not (tmp_path / "work").exists()
    client.close()
    text = (tmp_path / "out.json").read_text()
    found = json.loads(text)
    assert found["server"].startswith("v2") and found["export_seconds"].keys() == {"FLAT"} and found["export_seconds"]["FLAT"] > 0
    for name in ("exact", "FLAT"):
        each = found["search"][name]
        assert each["same_ids"] == 1 and 0 < each["one"]["median"] <= each["one"]["95th"] and each["batch of 100"]["median"] > 0
    assert TOKEN not in text and str(tmp_path) not in text and server.uri not in text


@pytest.fixture(scope="module")
def service(server, exported, small_world, finetuned, command, tmp_path_factory):
    """The search service over an index of real pictures, which the server has too."""
    folder = tmp_path_factory.mktemp("pictures") / "img"
    command("scripts/build_index.py", "--checkpoint", finetuned / "last", "--regions", small_world / "regions", "--out", folder)
    server.export(EmbeddingIndex(folder), "pictures")
    milvus = ["--milvus-uri", server.uri, "--milvus-token", TOKEN, "--milvus-collection", "pictures"]
    with serving("--checkpoint", finetuned / "last", "--index", folder, "--backends", "exact", "milvus", *milvus) as client:
        yield client


def found_by(client, backend):
    reply = client.search(text=["a red circle", "two shapes"], k=5, backend=backend)
    assert reply.status == 200, reply.body
    return [[(hit["id"], pytest.approx(hit["score"], abs=1e-4)) for hit in hits] for hits in reply.json["results"]]


def test_the_search_service_answers_from_the_server_what_it_finds_itself(service):
    assert found_by(service, "milvus") == found_by(service, "exact")


@pytest.fixture
def tab(service):
    with chromium() as browser:
        tab = Tab(browser, service)
        yield tab
        tab.close()


@pytest.mark.browser
def test_the_page_shows_from_the_server_what_the_exact_search_finds(service, tab):
    exact = service.search(text="a red circle", k=5, backend="exact").json["results"][0]
    page = tab.open("?q=a red circle&k=5", ".grid .result")
    page.select_option(".among select", "milvus")
    page.wait_for_url("**backend=milvus**")
    page.wait_for_function("() => document.querySelector('.among select').value === 'milvus' && !document.querySelector('#results.waiting')")
    assert ids_of(page) == [hit["id"] for hit in exact]
    shown = [float(score) for score in page.locator(".grid .score").all_inner_texts()]
    assert shown == pytest.approx([hit["score"] for hit in exact], abs=2e-4)  # four decimals are shown


@pytest.fixture(scope="module")
def client(server, exported, service):
    """Who opened the server, which is stopped now; `service` did, too."""
    client = server.open("FLAT")
    server.stop()
    return client


@pytest.mark.browser
def test_the_page_says_that_the_server_is_stopped_and_offers_the_exact_search(client, service, tab):
    tab.expected = ("status of 503",)
    page = tab.open("?q=a red circle&k=5&backend=milvus", "text=It is asked again in 5 s.")
    said = text_of(page, "#status")
    assert "Milvus does not answer" in said and TOKEN not in said
    page.click("text=Search with exact")
    page.wait_for_selector(".grid .result")
    assert ids_of(page) == [hit["id"] for hit in service.search(text="a red circle", k=5).json["results"][0]]
    assert text_of(page, "#status") == "" and page.input_value(".among select") == "exact"


def test_a_server_that_stops_is_one_line_and_what_it_held_is_there_when_it_comes_back(server, vectors, client, service):
    with pytest.raises(BadInput, match=r"127\.0\.0\.1:\d+: Milvus does not answer"):
        client.search(vectors[:3], 10)
    reply = service.search(text="a red circle", backend="milvus")  # not the asker's fault, and it may work later
    assert reply.status == 503 and int(reply.headers["retry-after"]) > 0 and "Milvus does not answer" in reply.json["error"]
    assert service.search(text="a red circle", backend="exact").status == 200
    server.start()
    expected = naive_search(vectors[:3], vectors, 10)
    assert_same(when_it_is_back(lambda: client.search(vectors[:3], 10)), expected)  # who had it open goes on
    client.close()
    another = when_it_is_back(lambda: server.open("FLAT"))
    assert_same(another.search(vectors[:3], 10), expected)
    another.close()
    assert when_it_is_back(lambda: found_by(service, "milvus")) == found_by(service, "exact")


def when_it_is_back(function):
    """A server that has just started refuses for some seconds, while it loads what it held."""
    until = time.monotonic() + 240
    while True:
        try:
            return function()
        except (BadInput, AssertionError):
            if time.monotonic() > until:
                raise
            time.sleep(1)
