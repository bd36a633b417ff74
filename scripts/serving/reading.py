"""The routes that search nothing: pictures, what is known of them, what is served, how it goes, an evaluation's failures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from model.evaluation.failures import Choice, Failures
from model.serving.gallery import SIZES, Gallery
from model.serving.searching import SearchService
from scripts.serving.openapi import openapi
from scripts.serving.parameters import choice_of_query, number_of_query, once


@dataclass
class Reading:
    """What these routes answer with.

    Attributes:
        service: of which numbers are told
        gallery: pictures, captions and regions
        failures: of the evaluation; None: there is none
        info: what is served, as it does not change
    """

    service: SearchService
    gallery: Gallery
    failures: Failures | None
    info: Mapping[str, Any]

    def routes(self) -> list[Route]:
        """Of paths that begin with /api/."""
        return [
            Route("/api/image/{id:path}", self.image),
            Route("/api/item/{id:path}", self.item),
            Route("/api/healthz", self.healthz),
            Route("/api/stats", self.stats),
            Route("/api/info", self.about),
            Route("/api/failures", self.list_failures),
            Route("/api/recall", self.recall),
            Route("/api/openapi.json", self.openapi),
        ]

    async def image(self, request: Request) -> Response:
        key, size = self._known(request), number_of_query(once(request.query_params.multi_items()), "size", 512, *SIZES)
        found = await run_in_threadpool(self.gallery.picture, key, size)
        if found is None:
            raise HTTPException(404, f"no picture file of {key[:200]!r}")
        tag = f'"{hashlib.sha256(found).hexdigest()[:32]}"'
        headers = {"ETag": tag, "Cache-Control": "private, max-age=3600"}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(found, media_type="image/jpeg", headers=headers)

    async def item(self, request: Request) -> Response:
        key = self._known(request)
        captions, regions = await run_in_threadpool(lambda: (self.gallery.captions_of(key), self.gallery.regions_of(key)))
        return JSONResponse({"id": key, "captions": captions, "regions": regions, "picture": self.gallery.has_picture(key)})

    def _known(self, request: Request) -> str:
        """The id of the path, where a gallery has it."""
        key = request.path_params["id"]
        for served in self.service.models.values():
            with served.images.use() as state:
                if key in state.index:
                    return key
        raise HTTPException(404, f"no image {key[:200]!r} in the gallery")

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def stats(self, request: Request) -> Response:
        indexes = {name: served.indexes_as_json() for name, served in self.service.models.items()}
        counts = {"counts": self.service.latencies.counts(), "milliseconds": self.service.latencies.as_json()}
        return JSONResponse(counts | {"waiting": self.service.num_waiting, "indexes": indexes, "versions": self.info["versions"]})

    async def about(self, request: Request) -> Response:
        indexes = {name: served.indexes_as_json() for name, served in self.service.models.items()}
        models = {name: facts | indexes[name] for name, facts in self.info["models"].items()}
        return JSONResponse({**self.info, "models": models})

    async def list_failures(self, request: Request) -> Response:
        choice, offset, limit = choice_of_query(once(request.query_params.multi_items()))
        found = await run_in_threadpool(self._listed, choice, offset, limit)
        return JSONResponse(vars(choice) | found | {"offset": offset, "limit": limit})

    def _listed(self, choice: Choice, offset: int, limit: int) -> dict[str, Any]:
        """Failures, with the texts of the captions among their ids."""
        found = self._evaluation().page(choice, offset, limit)
        for query in found["queries"]:
            names = [query["id"], *query["right"], *(query["before"] or []), *(query.get("second_before") or [])]
            query["texts"] = {name: caption["text"] for name in names if (caption := self.gallery.caption(name)) is not None}
        return found

    async def recall(self, request: Request) -> Response:
        return JSONResponse({"evaluations": await run_in_threadpool(self._evaluation().recall)})

    def _evaluation(self) -> Failures:
        if self.failures is None:
            raise HTTPException(404, "the service was started without --evaluation")
        return self.failures

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi())
