"""The routes of the service: each reads what is asked, has it answered, and says it as JSON."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from python_multipart.multipart import parse_options_header
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from data.errors import BadInput, Unavailable
from model.serving.batching import Overloaded
from model.serving.gallery import Gallery
from model.serving.searching import Question, SearchService
from scripts.serving.answering import answer_as_json
from scripts.serving.asking import question_of_form, question_of_json
from scripts.serving.bodies import TooLarge, in_time, refusal, stored_picture
from scripts.serving.parameters import once
from scripts.serving.reading import Reading

PAGE = Path(__file__).parent / "page"
FEW = 200  # results whose captions are looked up without leaving the others waiting
RETRY_AFTER = 5  # seconds, where another program does not answer
GONE = 499  # the client has: nobody reads it, but it is counted


class WholeFiles(StaticFiles):
    """Files that are small: a part that is asked for (`Range`) is answered with all of it, as HTTP allows, whatever the range says."""

    async def __call__(self, scope, receive, send):
        headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
        await super().__call__(scope | {"headers": headers}, receive, send)


@dataclass
class Application:
    """What the routes answer with.

    Attributes:
        service: searches
        gallery: pictures, captions and regions
        reading: the routes that search nothing
        uploads: folder for pictures while they are looked at
    """

    service: SearchService
    gallery: Gallery
    reading: Reading
    uploads: Path

    def asgi(self) -> Starlette:
        """The routes, the page, and what errors look like."""
        routes = [
            Route("/api/search", self.search, methods=["POST"]),
            *self.reading.routes(),
            Mount("/", WholeFiles(directory=PAGE, html=True)),
        ]
        handlers = {
            BadInput: lambda request, error: refusal(400, str(error)),
            Unavailable: lambda request, error: refusal(503, str(error), RETRY_AFTER),
            TooLarge: lambda request, error: refusal(413, str(error)),
            Overloaded: lambda request, error: refusal(503, str(error), error.seconds),
            HTTPException: _http_error,
            ClientDisconnect: lambda request, error: Response(status_code=GONE),
            Exception: lambda request, error: refusal(500, "something went wrong here; the service's terminal says what"),
        }
        return Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, _app):
        yield
        await run_in_threadpool(self.service.close)

    async def search(self, request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            return await self._search_picture(request)
        if kind != "application/json":
            raise HTTPException(415, "send application/json, or multipart/form-data with a picture")
        question = question_of_json(await in_time(request.body()), self.service.models)
        if question.image is not None:
            with self.service.models[question.model].images.use() as state:
                if question.image not in state.index:
                    raise HTTPException(404, f"no image {question.image[:200]!r} in the gallery of model {question.model}")
        return await self._answer(request, question)

    async def _search_picture(self, request: Request) -> Response:
        charset = parse_options_header(request.headers["content-type"])[1].get(b"charset", b"utf-8")
        if charset.lower() not in (b"utf-8", b"utf8"):  # Python knows some that raise what starlette does not expect, or take minutes
            raise HTTPException(415, "send the form in UTF-8, which needs no charset")
        form = await in_time(request.form(max_files=2, max_fields=10))
        path = None
        try:
            fields = once(form.multi_items())
            picture = fields.pop("picture", None)
            question = question_of_form(fields, self.service.models)
            question.picture = path = await stored_picture(picture, self.uploads)
            return await self._answer(request, question)
        except BadInput as error:
            if path is None:
                raise
            raise type(error)(str(error).replace(str(path), "the picture")) from None
        finally:
            await form.close()
            if path is not None:
                path.unlink(missing_ok=True)

    async def _answer(self, request: Request, question: Question) -> Response:
        """The answer; who has gone meanwhile is searched for no more."""
        future = asyncio.wrap_future(self.service.submit(question))
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({future, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                self.service.latencies.count("gave up")
                return Response(status_code=GONE)
            answer = future.result()
            many = sum(map(len, answer.hits)) > FEW
            similarity = self.service.models[question.model].retriever.model.config.similarity
            told = (await run_in_threadpool(answer_as_json, question, answer, self.gallery, similarity)) if many else answer_as_json(question, answer, self.gallery, similarity)
            return JSONResponse(told)
        finally:
            future.cancel()
            gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _http_error(request: Request, error: HTTPException) -> Response:
    words = {404: f"nothing is at {request.url.path[:200]!r}", 405: f"{request.method[:20]} is not for {request.url.path[:200]!r}"}
    is_ours = error.detail not in ("Not Found", "Method Not Allowed")
    answer = refusal(error.status_code, error.detail if is_ours else words[error.status_code])
    answer.headers.update(error.headers or {})
    return answer
