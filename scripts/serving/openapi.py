"""The service's OpenAPI document."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

from model.serving.failures import Choice
from model.serving.gallery import SIZES
from scripts.serving.asking import CHARACTERS, RERANKED, RESULTS, TEXTS
from scripts.serving.parameters import LISTED

NUMBER, WHOLE, TEXT, FLAG = ({"type": name} for name in ("number", "integer", "string", "boolean"))


def _list(items: dict) -> dict:
    return {"type": "array", "items": items}


def _object(**properties: dict) -> dict:
    return {"type": "object", "properties": properties}


def _answer(description: str, schema: dict | None = None, kind: str = "application/json") -> dict:
    return {"description": description, "content": {kind: {"schema": schema or {"type": "object"}}}}


_ERROR = _answer("One sentence that says what is wrong.", _object(error=TEXT) | {"required": ["error"]})
_BUSY = _ERROR | {"headers": {"Retry-After": {"schema": WHOLE, "description": "Seconds."}}}
_RESULT = _object(
    rank=WHOLE, id=TEXT, score=NUMBER, captions=_list(TEXT), text=TEXT, language=TEXT, image=TEXT, first_rank=WHOLE, first_score=NUMBER
)  # fmt: skip
_CAPTION = _object(id=TEXT, text=TEXT, language=TEXT)
_REGION = _object(box=_list(NUMBER) | {"description": "x1 y1 x2 y2, shares of width and height"}, confidence=NUMBER)
_MILLISECONDS = _object(wait=NUMBER, encode=NUMBER, search=NUMBER, rerank=NUMBER, total=NUMBER)
_FOUND = _object(
    results=_list(_list(_RESULT)), milliseconds=_MILLISECONDS, notes=_list(TEXT),
    queries=_list(_object(text=TEXT, unknown_words=_list(TEXT))), count=WHOLE, find=TEXT, k=WHOLE, backend=TEXT, model=TEXT,
    rerank=WHOLE, mix=NUMBER,
)  # fmt: skip
_CHOICES = {
    "k": {"type": "integer", "minimum": 1, "maximum": RESULTS, "default": 10, "description": "Results of each query."},
    "backend": TEXT | {"description": "What searches, one of /api/info's.", "default": "exact"},
    "model": {"type": "string", "enum": ["a", "b"], "default": "a", "description": "The first checkpoint or the second."},
    "find": {"type": "string", "enum": ["images", "captions"], "description": "Of a picture; a text finds images."},
}
_ASKED = _object(
    text={"oneOf": [TEXT | {"maxLength": CHARACTERS}, _list(TEXT) | {"maxItems": TEXTS}], "description": "What to find images for."},
    image=TEXT | {"description": "Id of the gallery: find its captions, or pictures like it."},
    rerank={"type": "integer", "minimum": 0, "maximum": RERANKED, "description": "How many of the best are sorted anew; 0: none."},
    mix={"type": "number", "minimum": 0, "description": "Weight of the dot product in the re-ranker's order."},
    **_CHOICES,
) | {"additionalProperties": False}  # fmt: skip
_FORM = _object(picture={"type": "string", "format": "binary"}, **_CHOICES) | {"required": ["picture"], "additionalProperties": False}


def _get(summary: str, answer: dict, *parameters: dict, errors: tuple[str, ...] = ()) -> dict:
    found = {"summary": summary, "responses": {"200": answer} | dict.fromkeys(errors, _ERROR)}
    return {"get": found | ({"parameters": list(parameters)} if parameters else {})}


def _parameter(name: str, schema: dict, description: str, place: str = "query") -> dict:
    return {"name": name, "in": place, "schema": schema, "description": description, "required": place == "path"}


def _failures() -> dict:
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
        _parameter("k", WHOLE | {"default": 1}, "Within how many results an answer counts as found."),
        _parameter("offset", WHOLE | {"default": 0}, "The first one."),
        _parameter("limit", WHOLE | {"default": 20, "maximum": LISTED}, "How many."),
    ]
    before = _list(TEXT) | {"nullable": True}
    query = _object(
        id=TEXT, right=_list(TEXT), rank=WHOLE, before=before, second_rank=WHOLE, second_before=before, texts={"type": "object"}
    )  # fmt: skip
    answer = _answer("Queries by the rank of their right answer, and what stood before it.", _object(total=WHOLE, queries=_list(query)))
    language = _parameter("language", TEXT, "Task of the evaluation; the first where it is left out.")
    return _get("What an evaluation's queries did not find.", answer, *choices, language, *numbers, errors=("400", "404"))


def openapi() -> dict[str, Any]:
    """What every route takes and answers."""
    search = {
        "summary": "Images of a text, captions of an image or a picture, pictures like one.",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _ASKED}, "multipart/form-data": {"schema": _FORM}},
        },
        "responses": {"200": _answer("Of each query the results, best first.", _FOUND)}
        | dict.fromkeys(("400", "404", "408", "413", "415"), _ERROR)
        | {"503": _BUSY},
    }
    key = _parameter("id", TEXT, "Of the gallery.", "path")
    size = _parameter("size", {"type": "integer", "minimum": SIZES[0], "maximum": SIZES[1], "default": 512}, "Of the longer side.")
    item = _object(id=TEXT, captions=_list(_CAPTION), regions=_list(_REGION) | {"nullable": True}, picture=FLAG)
    picture = _answer("The picture, never enlarged.", {"type": "string", "format": "binary"}, "image/jpeg")
    recall = _object(evaluations=_list(_object(path=TEXT, recall={}, intervals={}, queries={}, chance={})))
    paths = {
        "/api/search": {"post": search},
        "/api/image/{id}": _get("A picture of the gallery.", picture, key, size, errors=("400", "404")),
        "/api/item/{id}": _get("What is known of an image.", _answer("Captions and regions.", item), key, errors=("404",)),
        "/api/healthz": _get("Whether the service answers.", _answer("It does.", _object(status=TEXT))),
        "/api/stats": _get("How many and how fast, since the start.", _answer("Counts, milliseconds, indexes, versions.")),
        "/api/info": _get("What is served.", _answer("Models, languages, backends, limits.")),
        "/api/failures": _failures(),
        "/api/recall": _get("Recall of the evaluations, with 95% intervals.", _answer("Tables.", recall), errors=("404",)),
        "/api/openapi.json": _get("This document.", _answer("OpenAPI 3.0.")),
    }
    about = {"title": "LightningDOT", "version": "1", "description": "Search of images by text, and of captions by image."}
    return {"openapi": "3.0.3", "info": about, "paths": paths}
