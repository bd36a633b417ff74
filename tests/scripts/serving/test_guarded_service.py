"""A service with a token, a re-ranker and a queue of four: who may ask, how many may wait, and how it stops."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from jsonschema import validate

from configs import cli
from data.batches.pairs import open_pairs
from data.errors import BadInput
from data.regions.db import BoxOptions
from model.bi_encoder import LightningDOT
from model.retrieval.encoding import Encoding
from model.retrieval.indexing import build_index
from model.retrieval.retriever import Retriever
from model.retrieval.sources import image_source
from model.uniter import RerankerModelOptions, build_reranker
from scripts import serve
from scripts.serving.openapi import openapi
from tests.served import serving

TOKEN = "a secret of the tests"
KNOWN = {"Authorization": f"Bearer {TOKEN}"}
WAITING = 4


@pytest.fixture(scope="module")
def world(small_world, pretrained, tmp_path_factory):
    """Folders of an index of the test pictures and of a random re-ranker whose validation chose mix 0.5."""
    root = tmp_path_factory.mktemp("guarded")
    pairs = open_pairs(str(small_world / "db/test"), str(small_world / "regions"), BoxOptions(), languages=["en"])
    torch.manual_seed(1)
    model, _ = build_reranker(RerankerModelOptions(init=str(pretrained / "last")), pairs)
    torch.nn.init.normal_(model.rank_output.weight)
    model.save_pretrained(root / "uniter")
    (root / "uniter/val.json").write_text('{"mix": 0.5}')
    towers = LightningDOT.from_pretrained(pretrained / "last")
    build_index(image_source(towers, pairs.regions, pairs.images), root / "img", Encoding(progress=False))
    return root


@pytest.fixture(scope="module")
def client(world, pretrained, small_world):
    served = ["--checkpoint", pretrained / "last", "--index", world / "img", "--regions", small_world / "regions"]
    queue = ["--service.batch-ms", 400, "--service.batch-size", 64, "--service.waiting", WAITING]
    second = ["--second-checkpoint", pretrained / "last", "--second-index", world / "img", "--second-reranker", world / "uniter"]
    others = ["--second-rerank", 3, "--second-mix", 2.5, "--host", "0.0.0.0", "--token", TOKEN]
    with serving(*served, "--reranker", world / "uniter", "--rerank", 5, *second, *others, *queue) as client:
        yield client


def test_a_re_ranker_sorts_as_the_retrievers_does(client, world, pretrained, small_world):
    twin = Retriever.from_pretrained(pretrained / "last", world / "img", world / "uniter", small_world / "regions", rerank=5)
    for asked in ({}, {"rerank": 3}, {"rerank": 8, "mix": 0}, {"rerank": 0}, {"mix": 2.5}):
        found, expected = client.search(KNOWN, text="a red circle", k=3, **asked), twin.search("a red circle", 3, **asked)
        assert found.status == 200, found
        results = found.json["results"][0]
        assert [each["id"] for each in results] == [hit.id for hit in expected.hits[0]]
        np.testing.assert_allclose([each["score"] for each in results], [hit.score for hit in expected.hits[0]], rtol=1e-4)
        before = {hit.id: rank for rank, hit in enumerate(expected.first[0] if expected.first else [], 1)}
        assert {each["id"]: each["first_rank"] for each in results if "first_rank" in each} == {
            name: rank for name, rank in before.items() if name in {each["id"] for each in results}
        }
        assert (found.json["milliseconds"]["rerank"] > 0) == (found.json["rerank"] > 0)
    assert found.json["rerank"] == 5 and client.search(KNOWN, text="a star").json["mix"] == 0.5


def test_the_second_checkpoint_has_a_re_ranker_of_its_own(client, world, pretrained, small_world):
    twin = Retriever.from_pretrained(pretrained / "last", world / "img", world / "uniter", small_world / "regions", rerank=3, mix=2.5)
    for asked in ({}, {"rerank": 8, "mix": 0}):
        found, expected = client.search(KNOWN, text="a red circle", k=8, model="b", **asked).json, twin.search("a red circle", 8, **asked)
        assert [each["id"] for each in found["results"][0]] == [hit.id for hit in expected.hits[0]]
        assert (found["rerank"], found["mix"]) == (asked.get("rerank", 3), asked.get("mix", 2.5))
    validate(found, openapi()["paths"]["/api/search"]["post"]["responses"]["200"]["content"]["application/json"]["schema"])
    models = client.get("/api/info", **KNOWN).json["models"]
    assert [(models[name]["rerank"], models[name]["mix"]) for name in "ab"] == [(5, 0.5), (3, 2.5)]


def test_who_does_not_know_the_token_gets_nothing(client):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Cookie": f"lightningdot={TOKEN}"}):
        for reply in (client.search(headers, text="a star"), client.get("/", **headers), client.get("/api/info", **headers)):
            assert reply.status == 401 and list(reply.json) == ["error"] and TOKEN not in reply.body.decode()
    assert client.get("/?token=wrong").status == 401
    opened = client.get("/?token=a+secret+of+the+tests&text=a%20dog")
    assert (opened.status, opened.headers["location"]) == (303, "/?text=a+dog")
    cookie = opened.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and TOKEN not in cookie
    assert client.get("/api/info", Cookie=cookie.partition(";")[0]).status == 200
    assert client.get("//evil.example/?token=a+secret+of+the+tests").headers["location"].startswith("/evil.example")


def test_beyond_the_queue_a_search_is_refused_at_once_and_those_in_it_are_answered(client):
    for _ in range(20):  # where this process is halted between its requests, all find room
        with ThreadPoolExecutor(24) as pool:  # of which four are let in each 0.4 seconds
            replies = list(pool.map(lambda _: client.search(KNOWN, text="a star", rerank=0), range(24)))
        refused = [reply for reply in replies if reply.status == 503]
        if refused:
            break
    assert {reply.status for reply in replies} == {200, 503} and len(replies) - len(refused) >= WAITING
    assert all(reply.headers["retry-after"] == "1" and list(reply.json) == ["error"] for reply in refused)
    assert client.search(KNOWN, text="a star", rerank=0).status == 200


def test_who_gives_up_is_not_searched_for(client):
    import socket  # a client that closes its connection without reading

    def counted():
        stats = client.get("/api/stats", **KNOWN).json
        return stats["milliseconds"]["total"]["all"]["answers"], stats["counts"].get("gave up", 0)

    body = b'{"text": "a star", "rerank": 0}'
    head = f"POST /api/search HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    for _ in range(5):  # where this process is halted for longer than the service waits for others, it answers
        before = counted()
        with socket.create_connection(("127.0.0.1", client.port)) as connection:
            connection.sendall(head.encode() + body)
            time.sleep(0.1)
        until = time.monotonic() + 60
        while (after := counted()) == before and time.monotonic() < until:
            time.sleep(0.05)
        if after[1]:
            break
    time.sleep(0.5)  # longer than it waits
    assert after[1] == 1 and counted() == after and after[0] == before[0]


def test_sigterm_answers_what_is_in_flight_and_exits_with_0(client):
    """Last in this file: the service is gone afterwards."""
    replies = []
    threads = [threading.Thread(target=lambda: replies.append(client.search(KNOWN, text="a star"))) for _ in range(WAITING)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 60
    while time.monotonic() < until and not client.get("/api/stats", **KNOWN).json["waiting"]["search"]:
        pass
    client.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    out, err = client.process.communicate(timeout=120)
    assert [reply.status for reply in replies if reply.status != 503] and {reply.status for reply in replies} <= {200, 503}
    assert client.process.returncode == 0 and "Traceback" not in err and TOKEN not in out + err
    assert "warning: --host 0.0.0.0: other machines reach the service; what they send and get is not encrypted\n" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--host", "0.0.0.0"], "--token: others reach --host 0.0.0.0"),
        (["--host", "0.0.0.0", "--token", "short"], "at least 16 characters"),
        (["--second-checkpoint", "x"], "--second-checkpoint and --second-index go together"),
        (["--second-reranker", "x"], "--second-reranker says something of a second checkpoint: give --second-checkpoint, too"),
        (["--second-checkpoint", "x", "--second-index", "y", "--second-mix", "1"], "belong to --second-reranker"),
        (["--mix", "1"], "it needs --reranker"),
        (["--backends", "hnsw"], "expected exact among them"),
        (["--second-evaluation", "x"], "give both"),
        (["--service.batch-size", "0"], "batch_size is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(words, sentence):
    with pytest.raises(BadInput, match=sentence):
        cli.parse(serve.Options, ["--checkpoint", "x", "--index", "y", *words])


def test_a_port_that_is_taken_is_said(client):
    from scripts.serving.server import bound_socket  # the one function that this test is about

    taken = bound_socket("127.0.0.1", 0)
    taken.listen()
    with taken, pytest.raises(BadInput, match="cannot listen there"):
        bound_socket("127.0.0.1", taken.getsockname()[1])
