"""The search service over HTTP, in a process of its own, on a world of 40 pictures."""

import io
import itertools
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator, validate
from PIL import Image

from data.captions.db import CaptionDB
from data.index.editor import IndexEditor
from data.index.reader import EmbeddingIndex
from data.regions.db import RegionDB
from model.evaluation.outcomes import read_ranks
from model.made_from import boxes_for
from model.retrieval.retriever import Retriever
from scripts.serving.app import Application
from scripts.serving.openapi import openapi
from scripts.serving.reading import Reading
from tests.served import Client, serving

TEXTS = ["a red circle", "two shapes", "a big green star left of a small blue square", "a square", "ein roter Kreis", "blue"]


class World:
    """What is served: paths, and the naive twins, which answer one query at a time."""

    def __init__(self, root: Path, small_world: Path, finetuned: Path, command):
        self.root, self.data, self.checkpoint = root, small_world, finetuned / "last"
        shared = ["--captions", small_world / "db/train", "--regions", small_world / "regions", "--device", "cpu", "--bootstrap", 20]
        self.a, self.b, self.second = root / "a", root / "b", small_world / "pretrained/last"
        command("eval_itm.py", "--checkpoint", self.checkpoint, *shared, "--out", self.a)
        command("eval_itm.py", "--checkpoint", self.second, *shared, "--out", self.b)
        self.images = Retriever.from_pretrained(self.checkpoint, self.a / "img")
        self.captions = Retriever.from_pretrained(self.checkpoint, self.a / "txt", regions=small_world / "regions")
        self.other = Retriever.from_pretrained(self.second, self.b / "img")
        self.ids = EmbeddingIndex(self.a / "img").ids()

    @property
    def words(self):
        return [
            "--checkpoint", self.checkpoint, "--index", self.a / "img", "--captions-index", self.a / "txt",
            "--captions", self.data / "db/train", "--regions", self.data / "regions", "--photos", self.data / "photos",
        ]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory, small_world, finetuned, command):
    return World(tmp_path_factory.mktemp("served"), small_world, finetuned, command)


@pytest.fixture(scope="module")
def client(world):
    compared = ["--evaluation", world.a, "--second-evaluation", world.b]
    second = ["--second-checkpoint", world.second, "--second-index", world.b / "img"]
    with serving(*world.words, *second, *compared, "--backends", "exact", "hnsw") as client:
        yield client


def assert_same(results, hits):
    """What the service and the twin found: the same, but for the last digits of a batch's sums."""
    np.testing.assert_allclose([each["score"] for each in results], [hit.score for hit in hits], rtol=1e-5, atol=1e-6)
    scores = {hit.id: hit.score for hit in hits}
    for each, hit in zip(results, hits, strict=True):
        assert each["id"] == hit.id or abs(scores.get(each["id"], hit.score) - hit.score) < 1e-5
    assert [each["rank"] for each in results] == list(range(1, len(hits) + 1))


# ---- searches --------------------------------------------------------------------------------------------------------


def test_a_text_finds_what_the_retriever_finds(client, world):
    found = client.search(text=TEXTS, k=4)
    assert found.status == 200 and list(found.json)[:2] == ["results", "milliseconds"]
    for text, results in zip(TEXTS, found.json["results"], strict=True):
        assert_same(results, world.images.search_images(text, 4))
    captions = CaptionDB(world.data / "db/train")
    for each in found.json["results"][0]:
        assert each["captions"] == [captions[name]["raw"] for name in captions.img2txts[each["id"]]][:5]
    assert {"encode", "search", "rerank", "wait", "total"} == set(found.json["milliseconds"])
    assert found.json["count"] == len(world.ids)


def test_queries_of_many_clients_answer_each_what_it_asked(client, world):
    asked = list(itertools.islice(itertools.product(TEXTS, (1, 3, 7), ("exact", "hnsw"), ("a", "b")), 60))
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda each: client.search(text=each[0], k=each[1], backend=each[2], model=each[3]), asked))
    for (text, k, backend, model), reply in zip(asked, replies, strict=True):
        twin = world.images if model == "a" else world.other
        assert reply.status == 200 and (reply.json["backend"], reply.json["model"]) == (backend, model)
        assert_same(reply.json["results"][0], twin.search_images(text, k))


def test_an_image_finds_its_captions_and_pictures_like_it(client, world):
    key = world.ids[3]
    found = client.search(image=key, k=6).json
    assert found["find"] == "captions"
    assert_same(found["results"][0], world.captions.search_captions(key, 6))
    captions = CaptionDB(world.data / "db/train")
    for each in found["results"][0]:
        assert (each["text"], each["image"]) == (captions[each["id"]]["raw"], captions.txt2img[each["id"]])
    like = client.search(image=key, find="images", k=5).json
    index = EmbeddingIndex(world.a / "img")
    vectors = index.vectors(np.arange(len(index))).astype(np.float64)
    scores = vectors @ vectors[index.row_of(key)]
    best = [n for n in np.argsort(-scores, kind="stable") if n != index.row_of(key)][:5]
    assert [each["id"] for each in like["results"][0]] == index.ids(best) and "each other" in like["notes"][0]


def test_a_picture_of_ones_own_finds_captions(client, world):
    path = world.data / "photos" / "scene_000002.jpg"
    path = path if path.exists() else next(iter(sorted((world.data / "photos").rglob("*.*"))))
    reply = client.send_picture(path.read_bytes(), k=4)
    assert reply.status == 200, reply.body
    assert_same(reply.json["results"][0], world.captions.search_captions(path, 4))
    like = client.send_picture(path.read_bytes(), k=2, find="images").json
    assert like["results"][0][0]["id"] == RegionDB(world.data / "regions", boxes_for(world.checkpoint)).keys[0] or like["count"] == len(world.ids)


def test_unknown_words_and_lowered_numbers_are_said(client, world):
    found = client.search(text="zzz circle ☃", k=1000).json
    assert found["queries"][0]["unknown_words"] == ["☃"]
    assert found["notes"][1] == f"k 1,000 is lowered to {len(world.ids)}: there are no more images"
    assert len(found["results"][0]) == len(world.ids)


# ---- what is refused -------------------------------------------------------------------------------------------------

BAD = [
    (b"{", "the body is not JSON"),
    (b"[1]", "the body is [1] (list)"),
    (b"\xff\xfe", "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b'{"k": 5}', 'give one of "text"'),
    (b'{"text": "a", "image": "b"}', 'give one of "text"'),
    (b'{"text": ""}', "a query is empty"),
    (b'{"text": []}', "the query is empty"),
    (b'{"text": 5}', "a query is a text, or a list of texts; found 5"),
    (b'{"text": {"a": 1}}', "text is {'a': 1} (dict)"),
    (b'{"text": ["a", 5]}', "found 5 among them"),
    (b'{"text": "\\ud800"}', ""),
    (json.dumps({"text": "a " * 1001}).encode(), "a text has 2,002 characters, expected at most 2,000"),
    (json.dumps({"text": "word " * 300}).encode(), "does not fit the model's"),
    (json.dumps({"text": ["a"] * 65}).encode(), "text has 65 texts, expected at most 64"),
    (b'{"text": "a", "rerenk": 5}', "unknown key 'rerenk'; did you mean rerank?"),
    (b'{"text": "a", "k": 0}', "k is 0, expected at least 1"),
    (b'{"text": "a", "k": "5"}', "k is '5' (str), expected a whole number"),
    (b'{"text": "a", "k": true}', "k is True"),
    (b'{"text": "a", "k": 1001}', "k is 1001, expected at most 1,000"),
    (b'{"text": "a", "k": 1' + b"0" * 5000 + b"}", "not JSON"),
    (b'{"text": "a", "backend": "exakt"}', "backend is 'exakt', expected one of those served: exact, hnsw"),
    (b'{"text": "a", "backend": 5}', "backend is 5, expected a text"),
    (b'{"text": "a", "model": "c"}', "model is 'c' (str), expected one of a, b"),
    (b'{"text": "a", "model": ["a"]}', "expected one of a, b"),
    (b'{"text": "a", "rerank": 5}', "rerank is 5, and there is no re-ranker"),
    (b'{"text": "a", "mix": NaN}', "mix is nan"),
    (b'{"text": "a", "mix": 1e308}', "mix is 1e+308, expected a number of at least 0, at most 1,000,000"),
    (b'{"text": "a", "mix": 1' + b"0" * 400 + b"}", "mix is a huge number, expected a number"),
    (b'{"text": "a", "k": -1' + b"0" * 400 + b"}", "k is a huge number, expected at least 1"),
    (b'{"text": "a", "k": 1, "k": 2}', "'k' is given twice: give it once"),
    (b'{"text": "a", "find": "captions"}', "a text finds images"),
    (b'{"image": 5}', "image is 5, expected a text"),
    (b'{"image": "scene_000002.npz", "model": "b", "find": "captions"}', "without an index of captions"),
]


@pytest.mark.parametrize(("body", "sentence"), BAD, ids=range(len(BAD)))
def test_bad_input_is_4xx_and_one_sentence(client, body, sentence):
    reply = client.request("POST", "/api/search", body, {"Content-Type": "application/json"})
    assert reply.status == 400 and list(reply.json) == ["error"], reply
    assert sentence in reply.json["error"] and "\n" not in reply.json["error"]


def test_other_errors_are_sentences_too(client, world):
    for reply, status in (
        (client.search(image="no such"), 404),
        (client.search(image="\ud800"), 404),
        (client.get("/api/nothing"), 404),
        (client.get("/nothing.js"), 404),
        (client.request("DELETE", "/api/search"), 405),
        (client.request("POST", "/api/search", b"a", {"Content-Type": "text/plain"}), 415),
        (client.request("POST", "/api/search", b" " * 300_000, {"Content-Type": "application/json"}), 413),
        (client.request("POST", "/api/search", iter([b" " * 200_000] * 2), {"Content-Type": "application/json"}), 413),
        (client.send_picture(b"no picture"), 400),
        (client.send_picture(b"x", name="file"), 400),
        (client.send_picture(as_png(Image.new("1", (9, 9))), times=2), 400),
        (client.send_picture(as_png(Image.new("1", (9000, 9000)))), 400),
        (client.request("POST", "/api/search", b"", {"Content-Type": "multipart/form-data; boundary=edge", "Content-Length": str(21 << 20)}), 413),
        (client.request("POST", "/api/search", b"x", {"Content-Type": "multipart/form-data"}), 400),
        (client.request("POST", "/api/search", b"x", {"Content-Type": "multipart/form-data; boundary=edge; charset=undefined"}), 415),
        (client.request("POST", "/api/search", b"x", {"Content-Type": "multipart/form-data; boundary=edge; charset=punycode"}), 415),
        (client.request("POST", "/api/search", b"x", {"Content-Type": "multipart/form-data; boundary=edge; charset=UTF-8"}), 400),
        (client.request("POST", "/api/search", b"x", {"Content-Type": "application/json", "Content-Length": "9" * 20}), 413),
        (client.request("POST", "/api/search", b"x", {"Content-Type": "multipart/form-data; boundary=edge"}), 400),
        (client.get("/%00"), 404),
        (client.get("/api/image/%ff%00"), 404),
        (client.search({"Origin": "http://["}, text="a"), 403),
        (client.request("G{T", "/"), 400),  # is no HTTP
        (client.get("/api/failures?lnguage=en"), 400),
        (client.get("/api/failures?k=1&k=5"), 400),
        (client.get("/api/failures?language=fr"), 400),
        (client.get("/api/failures?k=-1"), 400),
        (client.get(f"/api/image/{world.ids[0]}?size=99999"), 400),
        (client.get(f"/api/image/{world.ids[0]}?size=x"), 400),
    ):
        assert reply.status == status and list(reply.json) == ["error"] and str(world.data) not in reply.json["error"], reply
        assert reply.headers["content-security-policy"].startswith("default-src 'self'"), reply


def as_png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_pictures_come_by_id_sized_and_cached(client, world):
    key = world.ids[0]
    reply = client.get(f"/api/image/{key}?size=40")
    assert reply.status == 200 and reply.headers["content-type"] == "image/jpeg"
    assert max(Image.open(io.BytesIO(reply.body)).size) == 40
    assert max(Image.open(io.BytesIO(client.get(f"/api/image/{key}?size=2048").body)).size) == 96  # never enlarged
    again = client.get(f"/api/image/{key}?size=40", **{"If-None-Match": reply.headers["etag"]})
    assert again.status == 304 and not again.body
    for path in ("../captions.jsonl", "..%2Fcaptions.jsonl", "%2Fetc%2Fpasswd", "/etc/passwd", "scene_000000.jpg", ""):
        assert client.get(f"/api/image/{path}").status == 404
    for path in ("/../serve.py", "/%2e%2e/app.py", "/..%2fapp.py"):
        assert client.get(path).status == 404


def test_an_item_has_its_captions_and_its_boxes(client, world):
    key = world.ids[5]
    found = client.get(f"/api/item/{key}").json
    regions = RegionDB(world.data / "regions", boxes_for(world.checkpoint))[key]
    np.testing.assert_allclose([each["box"] for each in found["regions"]], regions.norm_bb[:, :4])
    np.testing.assert_allclose([each["confidence"] for each in found["regions"]], regions.conf)
    captions = CaptionDB(world.data / "db/train")
    assert [each["id"] for each in found["captions"]] == list(captions.img2txts[key])
    assert {each["language"] for each in found["captions"]} == {"en", "de"} and found["picture"]


# ---- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("direction", "language"), [("t2i", "en"), ("i2t", "de")])
def test_failures_are_those_of_the_evaluation(client, world, direction, language):
    images, texts, a = read_ranks(world.a / "ranks.npz")
    ours, theirs = (vars(read_ranks(path / "ranks.npz")[2][language])[direction] for path in (world.a, world.b))
    asked = f"/api/failures?direction={direction}&language={language}&limit=100"
    found = client.get(asked).json
    assert found["total"] == (ours > 0).sum()
    ranks = [each["rank"] for each in found["queries"]]
    assert ranks == sorted(ours[ours > 0] + 1, reverse=True)[:100]
    names = texts[language] if direction == "t2i" else [images[row] for row in a[language].queries]
    for each in found["queries"]:
        row = names.index(each["id"])
        assert (each["rank"], each["second_rank"]) == (ours[row] + 1, theirs[row] + 1)
        for rank, before in ((each["rank"], each["before"]), (each["second_rank"], each["second_before"])):
            assert len(before) == min(5, rank - 1) and not set(before) & set(each["right"])
            assert direction == "t2i" or set(before) <= set(texts[language])
    only = client.get(f"{asked}&only=a_right_b_wrong&k=5").json
    assert only["total"] == ((ours < 5) & (theirs >= 5)).sum()
    seconds = [each["second_rank"] for each in only["queries"]]
    assert seconds == sorted(seconds, reverse=True) and min(seconds, default=6) > 5
    if direction == "t2i" and seconds:
        text = only["queries"][0]["texts"][only["queries"][0]["id"]]
        assert [hit.id for hit in world.other.search_images(text, 5)] == only["queries"][0]["second_before"]
    if direction == "t2i" and found["queries"][0]["rank"] > 5:
        text = found["queries"][0]["texts"][found["queries"][0]["id"]]
        assert [hit.id for hit in world.images.search_images(text, 5)] == found["queries"][0]["before"]


def test_an_evaluation_of_other_captions_is_refused(world, command):
    words = [word if word != world.data / "db/train" else world.data / "db/val" for word in world.words if word != "--captions-index"]
    words.remove(world.a / "txt")
    refused = command("scripts/serve.py", *words, "--evaluation", world.a, "--port", 0, "--device", "cpu", status=2).stderr
    assert f"error: --evaluation {world.a}: ranked other captions than --captions holds now" in refused


def test_the_recall_table_has_its_intervals(client, world):
    found = client.get("/api/recall").json["evaluations"]
    kept = json.loads((world.a / "results.json").read_text())
    assert found[0]["recall"] == kept["recall"] and found[0]["intervals"] == kept["intervals"] and len(found) == 2


# ---- what is told ----------------------------------------------------------------------------------------------------


def described(document, path, method, status, kind="application/json"):
    """The schema of an answer of a route."""
    return document["paths"][path][method]["responses"][str(status)]["content"][kind]["schema"]


def test_the_document_describes_every_route_and_what_they_answer(client, world):
    served = Application(None, None, Reading(None, None, None, {}), None).asgi().routes
    paths = {route.path.replace(":path", "") for route in served if route.path.startswith("/api")}
    document = client.get("/api/openapi.json").json
    assert document == openapi() and set(document["paths"]) == paths
    for path, asked in (
        ("/api/failures", "?limit=9"), ("/api/failures", "?direction=i2t&language=de&only=all"), ("/api/recall", ""), ("/api/item/{id}", ""),
        ("/api/healthz", ""), ("/api/stats", ""), ("/api/info", ""), ("/api/openapi.json", ""),
    ):  # fmt: skip
        answer = client.get(path.replace("{id}", world.ids[0]) + asked)
        validate(answer.json, described(document, path, "get", answer.status), Draft202012Validator)
        for parameter in document["paths"][path]["get"].get("parameters", []):
            if parameter["in"] == "query" and "enum" in parameter["schema"]:  # what stands in the document is what may be asked
                assert client.get(f"{path}?{parameter['name']}={parameter['schema']['enum'][-1]}").status == 200
    picture = client.get(f"/api/image/{world.ids[0]}")
    assert picture.headers["content-type"] in document["paths"]["/api/image/{id}"]["get"]["responses"]["200"]["content"]
    properties = described(document, "/api/search", "post", 200)["properties"]["results"]["items"]["items"]["properties"]
    seen = set()
    for asked in ({"text": ["a star", "☃"]}, {"image": world.ids[0]}, {"image": world.ids[1], "find": "images", "k": 3}):
        validate(asked, document["paths"]["/api/search"]["post"]["requestBody"]["content"]["application/json"]["schema"], Draft202012Validator)
        answer = client.search(**asked)
        validate(answer.json, described(document, "/api/search", "post", answer.status), Draft202012Validator)
        seen |= {name for found in answer.json["results"] for each in found for name in each}
    assert set(properties) - seen == {"first_rank", "first_score"}  # of a re-ranker, which is not served here


def test_what_is_refused_is_in_the_document_too(client, world):
    document = openapi()
    as_json = {"Content-Type": "application/json"}
    for path, method, reply in (
        ("/api/search", "post", client.request("POST", "/api/search", b"{", as_json)),
        ("/api/search", "post", client.search(image="no such")),
        ("/api/search", "post", client.search({"Origin": "http://evil.example"}, text="a star")),
        ("/api/search", "post", client.request("POST", "/api/search", b"a", {"Content-Type": "text/plain"})),
        ("/api/search", "post", client.request("POST", "/api/search", b" " * 300_000, as_json)),
        ("/api/image/{id}", "get", client.get("/api/image/nothing")),
        ("/api/image/{id}", "get", client.get(f"/api/image/{world.ids[0]}?size=1")),
        ("/api/item/{id}", "get", client.get("/api/item/nothing")),
        ("/api/failures", "get", client.get("/api/failures?k=0")),
        ("/api/stats", "get", client.get("/api/stats", Host="evil.example")),
    ):
        validate(reply.json, described(document, path, method, reply.status), Draft202012Validator)
    schema = document["paths"]["/api/search"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    refused = [{}, {"text": "a", "image": "b"}, {"text": []}, {"text": "a", "k": 0}, {"text": "a", "k": 1001}, {"text": "a", "rerenk": 5}]
    for asked in refused:
        assert not Draft202012Validator(schema).is_valid(asked) and client.search(**asked).status == 400, asked


def test_what_is_served_and_how_it_goes_is_told(client, world):
    info, stats = client.get("/api/info").json, client.get("/api/stats").json
    assert info["models"]["a"]["images"]["count"] == len(world.ids) and info["models"]["b"]["captions"] is None
    assert info["languages"] == ["de", "en"] and info["evaluation"] == {"languages": ["en", "de"], "second": True}
    assert stats["milliseconds"]["encode"]["latest"]["answers"] <= 20 <= stats["milliseconds"]["encode"]["all"]["answers"]
    assert stats["counts"]["400"] >= len(BAD) and "500" not in stats["counts"]


def test_the_page_is_there_and_only_this_site_may_be_asked_for_more(client):
    reply = client.get("/")
    assert reply.status == 200 and reply.headers["content-type"].startswith("text/html")
    assert reply.headers["content-security-policy"].startswith("default-src 'self'")
    assert reply.headers["x-content-type-options"] == "nosniff" and "server" not in reply.headers


def test_a_file_of_the_page_comes_whole_whatever_range_is_asked_for(client):
    whole = client.get("/page.js").body
    for asked in ("bytes=0-3", "bytes=9-1", "bytes=99999999-", "lines=1", "bytes=", "\xff"):
        reply = client.get("/page.js", Range=asked)
        assert (reply.status, reply.body) == (200, whole), asked


def test_other_hosts_and_other_sites_are_refused(client: Client):
    assert client.get("/api/info", Host="evil.example").status == 421
    assert client.get("/api/info", Host="evil.example:8000").status == 421
    assert client.get("/api/info", Host=f"localhost:{client.port}").status == 200
    own, other = f"http://127.0.0.1:{client.port}", "http://evil.example"
    assert client.search({"Origin": own}, text="a star").status == 200
    for headers in ({"Origin": other}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
        reply = client.search(headers, text="a star")
        assert reply.status == 403 and list(reply.json) == ["error"]


# ---- an index that changes -------------------------------------------------------------------------------------------


def test_a_changed_index_is_taken_up_and_that_of_another_model_is_not(client, world):
    """Last in this file: the index is another one afterwards."""
    folder, gone = world.b / "img", world.ids[0]

    def asked_until(is_over):
        until = time.monotonic() + 120
        while time.monotonic() < until:
            reply = client.search(text="a red circle", k=24, model="b")
            assert reply.status == 200, reply
            if is_over(reply.json):
                return reply.json
        raise AssertionError("not taken up")

    assert asked_until(lambda found: found["count"] == 24)
    with IndexEditor(folder, model=world.other.model.fingerprint) as editor:
        editor.delete([gone])
    found = asked_until(lambda found: found["count"] == 23)
    assert gone not in [each["id"] for each in found["results"][0]]
    assert_same(found["results"][0], Retriever.from_pretrained(world.second, folder).search_images("a red circle", 23))
    assert client.search(image=gone, model="b").status == 404

    (world.root / "other").mkdir()
    (world.root / "other/data.mdb").write_bytes((world.a / "img/data.mdb").read_bytes())
    (world.root / "other/data.mdb").replace(folder / "data.mdb")
    until = time.monotonic() + 120
    while not (refused := client.get("/api/stats").json["indexes"]["b"]["images"]["refused"]) and time.monotonic() < until:
        time.sleep(0.1)
    assert "was made by model" in refused
    assert client.search(text="a red circle", k=24, model="b").json["count"] == 23
