"""The service's OpenAPI document."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

from model.evaluation.failures import Choice
from model.serving.gallery import SIZES
from scripts.serving import schemas
from scripts.serving.guard import COOKIE
from scripts.serving.parameters import LISTED
from scripts.serving.schemas import BYTES, TEXT, WHOLE, Schema

WRONG = {
    "304": "The picture is the one of If-None-Match.",
    "400": "What is asked is wrong, or is no HTTP.",
    "401": "The service has a token, and the request does not say it.",
    "403": "The page of another site asks.",
    "404": "There is no such thing.",
    "408": "The body did not arrive in time.",
    "413": "The body has more bytes than it may.",
    "415": "The body is neither JSON nor a form.",
    "421": "The Host of the request is no name of the service.",
    "503": "Too many wait, or Milvus does not answer: ask again.",
}
EVERYWHERE = ("401", "413", "421")  # where the guard refuses


def _answer(description: str, schema: Schema, kind: str = "application/json") -> Schema:
    return {"description": description, "content": {kind: {"schema": schema}}}


def _refused(*statuses: str) -> Schema:
    found = {status: _answer(WRONG[status], schemas.ERROR) for status in sorted({*statuses, *EVERYWHERE})}
    if "503" in found:
        found["503"]["headers"] = {"Retry-After": {"schema": WHOLE, "description": "Seconds."}}
    return found


def _get(summary: str, answer: Schema, *parameters: Schema, errors: tuple[str, ...] = ()) -> Schema:
    found = {"summary": summary, "responses": {"200": answer} | _refused(*errors)}
    return {"get": found | ({"parameters": list(parameters)} if parameters else {})}


def _parameter(name: str, schema: Schema, description: str, place: str = "query") -> Schema:
    return {"name": name, "in": place, "schema": schema, "description": description, "required": place == "path"}


def _failures() -> Schema:
    hints = get_type_hints(Choice)
    choices = [
        _parameter(name, {"type": "string", "enum": list(get_args(hints[name])), "default": getattr(Choice, name)}, description)
        for name, description in (
            ("direction", "Captions that look for their image, or images that look for a caption."),
            ("only", "Which of the two evaluations answers."),
            ("order", "By the rank of the right answer."),
        )
    ]
    numbers = [
        _parameter("k", WHOLE | {"default": 1, "minimum": 1, "maximum": 1000}, "Within how many results an answer counts as found."),
        _parameter("offset", WHOLE | {"default": 0, "minimum": 0}, "The first one."),
        _parameter("limit", WHOLE | {"default": 20, "minimum": 1, "maximum": LISTED}, "How many."),
    ]
    answer = _answer("Queries by the rank of their right answer, and what stood before it.", schemas.FAILURES)
    language = _parameter("language", TEXT, "Task of the evaluation; the first where it is left out.")
    return _get("What an evaluation's queries did not find.", answer, *choices, language, *numbers, errors=("400", "404"))


def openapi() -> dict[str, Any]:
    """What every route takes and answers."""
    search = {
        "summary": "Images of a text, captions of an image or a picture, pictures like one.",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schemas.ASKED}, "multipart/form-data": {"schema": schemas.FORM}},
        },
        "responses": {"200": _answer("Of each query the results, best first.", schemas.FOUND)}
        | _refused("400", "403", "404", "408", "415", "503"),
    }
    key = _parameter("id", TEXT, "Of the gallery.", "path")
    size = _parameter("size", {"type": "integer", "minimum": SIZES[0], "maximum": SIZES[1], "default": 512}, "Of the longer side.")
    picture = _get("A picture of the gallery.", _answer("The picture, never enlarged.", BYTES, "image/jpeg"), key, size, errors=("400", "404"))
    picture["get"]["responses"]["304"] = {"description": WRONG["304"]}
    paths = {
        "/api/search": {"post": search},
        "/api/image/{id}": picture,
        "/api/item/{id}": _get("What is known of an image.", _answer("Captions and regions.", schemas.ITEM), key, errors=("404",)),
        "/api/healthz": _get("Whether the service answers.", _answer("It does.", schemas.HEALTH)),
        "/api/stats": _get("How many and how fast, since the start.", _answer("Counts, milliseconds, indexes, versions.", schemas.STATS)),
        "/api/info": _get("What is served.", _answer("Models, languages, backends, limits.", schemas.INFO)),
        "/api/failures": _failures(),
        "/api/recall": _get("Recall of the evaluations, with 95% intervals.", _answer("Tables.", schemas.RECALL), errors=("404",)),
        "/api/openapi.json": _get("This document.", _answer("OpenAPI 3.1.", {"type": "object"})),
    }
    about = {"title": "LightningDOT", "version": "1", "description": "Search of images by text, and of captions by image."}
    known = {"bearer": {"type": "http", "scheme": "bearer"}, "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE}}
    return {
        "openapi": "3.1.0", "info": about, "paths": paths, "components": {"securitySchemes": known},
        "security": [{}, {"bearer": []}, {"cookie": []}],
    }  # fmt: skip
