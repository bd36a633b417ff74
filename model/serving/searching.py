"""Searches of many users at once: texts that arrive together are encoded together, and searched together.

    service = SearchService({"a": served}, ServiceOptions())
    answer = service.submit(Question(texts=["a dog"], k=5)).result()
    answer.hits[0]                       # as Retriever.search gives them

One thread encodes and searches. Who does not ask for what may take longer need not wait for it, since that is done on threads of its
own: one asks Milvus, one ranks again, one extracts the regions of pictures, and one looks after indexes that change on disk.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from data.errors import BadInput
from data.notices import lowered_line, say
from data.regions.db import Regions
from model.retrieval.encoding import encode_image
from model.retrieval.queries import TextQuery
from model.retrieval.results import Hit
from model.retrieval.retriever import Retriever
from model.serving.batching import Job, MicroBatches
from model.serving.followed_index import FollowedIndex, IndexState
from model.serving.latencies import Latencies

Target = Literal["images", "captions"]
THINGS: dict[Target, str] = {"images": "img", "captions": "txt"}
LOOK_EVERY = 0.5  # seconds between two looks at indexes on the disk
ENGINE = "milvus"  # the backend that is another program, which may answer late or not at all


@dataclass
class ServiceOptions:
    """How queries of many users are brought together.

    Args:
        batch_ms: milliseconds that a query waits for others, to be encoded and searched together
        batch_size: queries that are encoded and searched together; 1: one at a time
        waiting: queries that may wait, to be encoded and once more for Milvus; beyond it a search is refused, to be asked again
        waiting_reranks: searches that may wait for the re-ranker
        waiting_pictures: pictures that may wait for the extractor
    """

    batch_ms: float = 3.0
    batch_size: int = 64
    waiting: int = 256
    waiting_reranks: int = 16
    waiting_pictures: int = 8

    def __post_init__(self):
        if not 0 <= self.batch_ms <= 1000:
            raise BadInput(f"batch_ms is {self.batch_ms}, expected 0 to 1000")
        for name in ("batch_size", "waiting", "waiting_reranks", "waiting_pictures"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}, expected at least 1")


@dataclass
class Question:
    """One search, checked: one of texts, an image and a picture is given.

    Attributes:
        texts: that images are looked for
        image: id in the image index, whose vector is looked for
        picture: file of a picture of one's own
        find: what is looked for
        k: results of each query
        rerank: of a text, how many of the best the re-ranker sorts anew; None: as the retriever was made; 0: none
        mix: weight of the dot product, which is added to the re-ranker's score; None: as the retriever was made
        backend: what searches
        model: which of the models served
    """

    texts: list[str] = field(default_factory=list)
    image: str | None = None
    picture: Path | None = None
    find: Target = "images"
    k: int = 10
    rerank: int | None = None
    mix: float | None = None
    backend: str = "exact"
    model: str = "a"

    @property
    def num_queries(self) -> int:
        return len(self.texts) or 1


@dataclass
class Answer:
    """What a search found.

    Attributes:
        hits: of each query the results, best first
        first: where a re-ranker sorted them anew, of each query the candidates in the order of the dot product; else empty
        queries: how texts were read; empty for an image or a picture
        count: what was searched among
        rerank, mix: how many were ranked again, with which weight of the dot product
        milliseconds: ``wait`` for the others of the batch and for its turn; ``encode`` and ``search``, of the whole batch;
            ``rerank``; ``total``
        notes: lines for the user: words that are not known, numbers that were lowered
    """

    hits: list[list[Hit]] = field(default_factory=list)
    first: list[list[Hit]] = field(default_factory=list)
    queries: list[TextQuery] = field(default_factory=list)
    count: int = 0
    rerank: int = 0
    mix: float = 0.0
    milliseconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class ServedModel:
    """A checkpoint with its indexes.

    Attributes:
        name: what a search calls it, as "a"
        checkpoint: its folder
        images: the index of images
        captions: the index of captions, where there is one
        retriever: of the model, over any index
    """

    name: str
    checkpoint: Path
    retriever: Retriever
    images: FollowedIndex
    captions: FollowedIndex | None = None

    def index(self, find: Target) -> FollowedIndex:
        """Raises BadInput where there are no captions."""
        found = self.images if find == "images" else self.captions
        if found is None:
            raise BadInput(f"find is captions, and model {self.name!r} is served without an index of captions: build one (scripts/build_index.py --captions) and give it as --captions-index")
        return found

    def indexes_as_json(self) -> dict[str, dict | None]:
        """What is searched now, ``images`` and ``captions``."""
        return {"images": self.images.as_json(), "captions": None if self.captions is None else self.captions.as_json()}


@dataclass(kw_only=True, eq=False)
class SearchJob(Job):
    """A question on its way to its answer."""

    question: Question
    served: ServedModel
    rerank: int
    mix: float
    answer: Answer = field(default_factory=Answer)
    regions: Regions | None = None
    vectors: np.ndarray | None = None  # [Q,D]
    retriever: Retriever | None = None  # that found the hits, and ranks them again
    handed_on: float = 0.0  # to the thread that asks the engine, in seconds of ``time.perf_counter``


class SearchService:
    """Answers questions; the only one that computes with the models.

    Args:
        models: by the name that questions use
        options: how queries are brought together
        latencies: what is told how long answers took
    """

    def __init__(self, models: dict[str, ServedModel], options: ServiceOptions, latencies: Latencies | None = None):
        self.models, self.latencies = models, latencies or Latencies()
        window, at_once = options.batch_ms / 1000, options.batch_size
        self._searches = MicroBatches(self._encode_and_search, window, at_once, options.waiting, "searching")
        self._engine = MicroBatches(self._ask_engine, 0, at_once, options.waiting, "asking Milvus")
        self._reranks = MicroBatches(self._rerank, 0, 1, options.waiting_reranks, "re-ranking")
        self._pictures = MicroBatches(self._extract, 0, 1, options.waiting_pictures, "extracting")
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watching", daemon=True)
        self._watcher.start()

    def submit(self, question: Question) -> Future:
        """→ a future of the ``Answer``; who cancels it is not searched for, if that has not begun.

        Raises:
            BadInput: what is asked cannot be had here.
            Overloaded: too many wait.
        """
        served = self.models[question.model]
        index = served.index(question.find)
        if question.backend not in index.backends:
            raise BadInput(f"backend is {question.backend!r}, expected one of those served: {', '.join(index.backends)}")
        rerank, mix = (0, 0.0) if not question.texts else served.retriever.checked_reranking(question.rerank, question.mix)
        job = SearchJob(size=question.num_queries, question=question, served=served, rerank=rerank, mix=mix)
        for queue in [self._engine] * (question.backend == ENGINE) + [self._reranks] * bool(rerank):
            queue.check_room(job.size)
        (self._pictures if question.picture is not None else self._searches).submit(job)
        return job.future

    @property
    def num_waiting(self) -> dict[str, int]:
        """Queries that wait now."""
        return {"search": self._searches.num_waiting + self._engine.num_waiting, "rerank": self._reranks.num_waiting, "pictures": self._pictures.num_waiting}

    def close(self) -> None:
        """Answer what waits, and end the threads."""
        self._stopped.set()
        for queue in (self._pictures, self._searches, self._engine, self._reranks):
            queue.close()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._stopped.wait(LOOK_EVERY):
            for served in self.models.values():
                for index in filter(None, (served.images, served.captions)):
                    try:
                        index.look()
                    except Exception as error:  # of whatever kind: the index before it goes on answering
                        index.refused = f"{type(error).__name__}: {error}"
                        say(f"{index.folder}: cannot be taken up: {index.refused}")

    # ---- the stages, each on its thread --------------------------------------------------------------------------------

    def _extract(self, jobs: list[SearchJob]) -> None:
        for job in jobs:
            started = time.perf_counter()
            job.regions = job.served.retriever.pictures.regions(job.question.picture)
            job.answer.milliseconds["encode"] = 1000 * (time.perf_counter() - started)
            self._searches.submit(job)

    def _encode_and_search(self, jobs: list[SearchJob]) -> None:
        """Encode, model by model, and search; what the engine is to search is handed on."""
        started = time.perf_counter()
        by_model: dict[str, list[SearchJob]] = defaultdict(list)
        for job in jobs:
            by_model[job.served.name].append(job)
            extracted = job.answer.milliseconds.get("encode", 0.0)
            job.answer.milliseconds = {"wait": 1000 * (started - job.arrived) - extracted, "encode": extracted}
        for group in by_model.values():
            self._encode(group)
        if of_engine := [job for job in jobs if job.question.backend == ENGINE and not job.is_settled]:
            self._or_fail(of_engine, self._hand_on)
        self._search([job for job in jobs if job.question.backend != ENGINE])

    def _hand_on(self, jobs: list[SearchJob]) -> None:
        """To the thread that asks the engine: together, so that they are searched together."""
        for job in jobs:
            job.handed_on = time.perf_counter()
        self._engine.submit(*jobs)

    def _ask_engine(self, jobs: list[SearchJob]) -> None:
        for job in jobs:
            job.answer.milliseconds["wait"] += 1000 * (time.perf_counter() - job.handed_on)
        self._search(jobs)

    def _search(self, jobs: list[SearchJob]) -> None:
        """Search, index by index and backend by backend."""
        groups: dict[tuple, list[SearchJob]] = defaultdict(list)
        for job in jobs:
            if not job.is_settled:
                groups[job.served.name, job.question.find, job.question.backend].append(job)
        for group in groups.values():
            self._or_fail(group, self._search_one_index)

    def _encode(self, jobs: list[SearchJob]) -> None:
        """Vectors of all texts of one model together, and of pictures."""
        started = time.perf_counter()
        retriever, texts = jobs[0].served.retriever, []
        for job in jobs:
            try:
                if job.question.texts:
                    job.answer.queries = retriever.read_texts(job.question.texts)
                    job.answer.notes += [query.remark for query in job.answer.queries if query.remark is not None]
                    texts.append(job)
                elif job.regions is not None:
                    job.vectors = encode_image(retriever.model, job.regions, retriever.device, retriever.precision)
            except Exception as error:  # of whatever kind: it is of this job alone
                job.fail(error)
        if texts:
            self._or_fail(texts, self._encode_texts)
        took = 1000 * (time.perf_counter() - started)
        for job in jobs:
            job.answer.milliseconds["encode"] += took * (job.question.image is None)

    def _encode_texts(self, jobs: list[SearchJob]) -> None:
        queries = [query for job in jobs for query in job.answer.queries]
        ends = np.cumsum([job.size for job in jobs])
        for job, vectors in zip(jobs, np.split(jobs[0].served.retriever.encode_queries(queries), ends[:-1]), strict=True):
            job.vectors = vectors

    def _search_one_index(self, jobs: list[SearchJob]) -> None:
        """Search one index with one backend: those that ask for equally many results together, since an approximate search finds
        others where it is asked for more."""
        index, backend = jobs[0].served.index(jobs[0].question.find), jobs[0].question.backend
        with jobs[0].served.images.use() as images, index.use() as state:
            by_depth: dict[int, list[SearchJob]] = defaultdict(list)
            for job in jobs:
                try:
                    by_depth[self._depth(job, images, state)].append(job)
                except BadInput as error:
                    job.fail(error)
            for depth, group in by_depth.items():
                started = time.perf_counter()
                vectors = np.concatenate([job.vectors for job in group])
                hits = iter(self._nearest(index, state, backend, vectors, depth))
                took = 1000 * (time.perf_counter() - started)
                for job in group:
                    job.answer.hits, job.retriever = [next(hits) for _ in range(job.size)], state[backend]
                    job.answer.milliseconds["search"] = took
        for job in jobs:
            if not job.is_settled:
                self._or_fail([job], self._finish)

    def _depth(self, job: SearchJob, images: IndexState, state: IndexState) -> int:
        """How many results to look for; the image's own vector, where an image is asked with."""
        question, answer, count = job.question, job.answer, state.index.count
        answer.count = count
        for name, value in (("k", question.k), ("rerank", job.rerank)):
            line = lowered_line(value, count, name, question.find)
            answer.notes += [line] if line else []
        answer.rerank, answer.mix, k = min(job.rerank, count), job.mix, min(question.k, count)
        if question.image is None:
            return max(k, answer.rerank, 1)
        if question.image not in images.index:
            raise BadInput(f"image {question.image!r} is not in this gallery any more")
        job.vectors = images.index.vectors([images.index.row_of(question.image)])
        return min(k + (question.find == "images"), max(count, 1))  # itself is among them

    @staticmethod
    def _nearest(index: FollowedIndex, state: IndexState, backend: str, vectors: np.ndarray, depth: int) -> list[list[Hit]]:
        try:
            return state[backend].nearest(vectors, depth)
        except BadInput:
            if backend != ENGINE:
                raise
            return index.reopen(state, backend).nearest(vectors, depth)  # exported anew, or the server was started again

    def _finish(self, jobs: list[SearchJob]) -> None:
        """Settle what has its hits, or hand it to the re-ranker."""
        for job in jobs:
            question, answer = job.question, job.answer
            if answer.rerank:
                self._reranks.submit(job)
                continue
            if question.image is not None and question.find == "images":
                answer.hits = [[hit for hit in answer.hits[0] if hit.id != question.image]]
            answer.hits = [hits[: question.k] for hits in answer.hits]
            answer.milliseconds["rerank"] = 0.0
            self._settle(job)

    def _rerank(self, jobs: list[SearchJob]) -> None:
        for job in jobs:
            started, answer = time.perf_counter(), job.answer
            answer.first = answer.hits
            sorted_anew = [job.retriever.reranked(query, hits, answer.mix) for query, hits in zip(answer.queries, answer.hits, strict=True)]
            answer.hits = [hits[: job.question.k] for hits in sorted_anew]
            answer.milliseconds["rerank"] = 1000 * (time.perf_counter() - started)
            self._settle(job)

    def _settle(self, job: SearchJob) -> None:
        job.answer.milliseconds["total"] = 1000 * (time.perf_counter() - job.arrived)
        self.latencies.add(job.answer.milliseconds)
        job.settle(job.answer)

    @staticmethod
    def _or_fail(jobs: Sequence[SearchJob], stage: Callable[[list[SearchJob]], None]) -> None:
        """A stage, whose errors are those of its jobs and not of the others in the batch."""
        try:
            stage(list(jobs))
        except Exception as error:  # of whatever kind: those who wait must learn of it
            for job in jobs:
                job.fail(error)
