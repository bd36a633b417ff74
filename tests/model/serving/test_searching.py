"""Searches of many at once: an engine that sleeps keeps nobody else waiting, and what goes wrong is its own search's alone."""

import asyncio
import io
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data.search
from data.captions.tokenizers import CaptionTokenizer
from data.errors import Unavailable
from data.index.writer import IndexWriter
from data.regions.db import Regions
from data.search.base import SearchOptions
from data.search.exact import ExactSearch
from model.retrieval.retriever import Retriever
from model.serving.batching import Overloaded
from model.serving.followed_index import FollowedIndex
from model.serving.gallery import Gallery
from model.serving.searching import Question, SearchService, ServedModel, ServiceOptions
from scripts.serving.app import Application
from scripts.serving.reading import Reading
from tests.gallery import KEYS, WORDS, small_model

TEXTS = ["a dog", "two red cat", "the big beach", "blue"]


class Engine(ExactSearch):
    """In the place of Milvus: searches when it is woken, and remembers how many queries it was asked together."""

    awake, asked, batches, answers = threading.Event(), threading.Event(), [], True

    def __init__(self, index, options):
        if not self.answers:
            raise Unavailable("the engine does not answer")
        super().__init__(index)

    def search(self, queries, k):
        if not Engine.answers:
            raise Unavailable("the engine does not answer")
        Engine.batches.append(len(queries))
        Engine.asked.set()
        assert Engine.awake.wait(240)
        return super().search(queries, k)


class Pictures:
    """Regions of any picture, whose boxes are so many numbers."""

    def __init__(self, box: int = 6):
        self.box = box

    def regions(self, path: Path) -> Regions:
        return Regions(*(np.full(shape, 0.5, np.float16) for shape in ((3, 16), (3, self.box), (3,))))


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setitem(data.search.BACKENDS, "milvus", Engine)
    Engine.awake, Engine.asked, Engine.batches, Engine.answers = threading.Event(), threading.Event(), [], True
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    model = small_model(1)
    model.save_pretrained(tmp_path / "model")
    CaptionTokenizer.from_pretrained(tmp_path / "vocab.txt").save_pretrained(tmp_path / "model/tokenizer")
    write_index(tmp_path / "img", model.fingerprint, len(KEYS))
    retriever = Retriever.from_pretrained(tmp_path / "model", tmp_path / "img")
    searches = {"exact": SearchOptions(), "milvus": SearchOptions("milvus", uri="engine.db")}
    return ServedModel("a", tmp_path / "model", retriever, FollowedIndex(tmp_path / "img", "img", retriever, searches, str(tmp_path / "img")))


def write_index(folder, model, number):
    with IndexWriter(folder, "img", 24, model=model, data="drawn") as writer:
        writer.add(KEYS[:number], np.random.default_rng(number).standard_normal((number, 24)).astype(np.float32))


@pytest.fixture
def service(served):
    found = SearchService({"a": served}, ServiceOptions(batch_ms=0, waiting=4))
    yield found
    Engine.awake.set()
    found.close()


def ids(answer):
    return [hit.id for hit in answer.hits[0]]


def test_an_engine_that_sleeps_keeps_no_other_backend_waiting_and_is_asked_together(service, served):
    asleep = [service.submit(Question(texts=[TEXTS[0]], backend="milvus"))]
    assert Engine.asked.wait(240)
    asleep += [service.submit(Question(texts=[text], backend="milvus")) for text in TEXTS[1:]]
    expected = [served.retriever.search_images(text) for text in TEXTS]
    for text, hits in zip(TEXTS, expected, strict=True):
        assert ids(service.submit(Question(texts=[text])).result(240)) == [hit.id for hit in hits]
    assert not any(future.done() for future in asleep) and service.num_waiting == {"search": 3, "rerank": 0, "pictures": 0}
    with pytest.raises(Overloaded):
        service.submit(Question(texts=TEXTS[:2], backend="milvus"))
    Engine.awake.set()
    answers = [future.result(240) for future in asleep]
    assert [ids(answer) for answer in answers] == [[hit.id for hit in hits] for hits in expected] and Engine.batches == [1, 3]
    for answer in answers:
        took = answer.milliseconds
        assert took["total"] >= took["wait"] + took["search"] and (answer is answers[0] or took["wait"] > 0)


def test_a_picture_that_cannot_be_encoded_fails_alone(served):
    served.retriever.pictures = Pictures(5)  # no boxes that can be read
    service = SearchService({"a": served}, ServiceOptions(batch_ms=300))
    futures = [service.submit(Question(picture=Path("a.png"))), service.submit(Question(texts=["a dog"]))]
    assert ids(futures[1].result(240)) == [hit.id for hit in served.retriever.search_images("a dog")]
    assert futures[0].exception(240) is not None
    service.close()


def test_a_picture_that_the_engine_cannot_search_for_is_asked_for_again_like_a_text(service, served, tmp_path):
    served.retriever.pictures, Engine.answers = Pictures(), False
    application = Application(service, Gallery(None), Reading(service, Gallery(None), None, {}), tmp_path)
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    part = 'Content-Disposition: form-data; name="%s"'
    picture = f"--edge\r\n{part % 'picture'}; filename=\"a.png\"\r\n\r\n".encode() + out.getvalue()
    body = picture + f"\r\n--edge\r\n{part % 'backend'}\r\n\r\nmilvus\r\n--edge--\r\n".encode()
    assert status_of(application, b"multipart/form-data; boundary=edge", body) == 503
    assert status_of(application, b"application/json", b'{"text": "a dog", "backend": "milvus"}') == 503


def test_what_is_wrong_with_a_form_is_said_in_its_words(service, tmp_path):
    application = Application(service, Gallery(None), Reading(service, Gallery(None), None, {}), tmp_path)
    body = b'--edge\r\nContent-Disposition: form-data; name="k"\r\n\r\nNone\r\n--edge--\r\n'
    assert b"k is 'None' (str), expected a number" in answer_of(application, b"multipart/form-data; boundary=edge", body)[1]["body"]


def status_of(application: Application, kind: bytes, body: bytes) -> int:
    return answer_of(application, kind, body)[0]["status"]


def answer_of(application: Application, kind: bytes, body: bytes) -> list[dict]:
    sent, read = [], iter([{"type": "http.request", "body": body}])

    async def receive():
        return next(read, None) or await asyncio.sleep(30)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/api/search", "query_string": b"", "headers": [(b"content-type", kind)]}
    asyncio.run(application.asgi()(scope, receive, send))
    return sent


def test_an_index_that_was_published_while_the_engine_was_silent_is_taken_up_when_it_answers(served, tmp_path, capsys):
    index = served.images
    write_index(tmp_path / "there", served.retriever.model.fingerprint, 5)
    (tmp_path / "there/data.mdb").replace(tmp_path / "img/data.mdb")
    Engine.answers = False
    assert not any(index.look() for _ in range(4)) and "does not answer" in index.refused
    assert capsys.readouterr().err.count("is not taken up") == 1
    Engine.answers = True
    assert any(index.look() for _ in range(2)) and index.refused is None
    with index.use() as state:
        assert state.index.count == 5
