"""What the service is asked and answers, as JSON schemas: every name of an answer stands here, and none besides."""

from __future__ import annotations

from typing import Any

from scripts.serving.asking import CHARACTERS, RERANKED, RESULTS, TEXTS

Schema = dict[str, Any]
NUMBER, WHOLE, TEXT, FLAG = ({"type": name} for name in ("number", "integer", "string", "boolean"))
BYTES: Schema = {"type": "string", "format": "binary"}


def array_of(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def record(optional: dict[str, Schema] | None = None, **properties: Schema) -> Schema:
    """An object that has these, may have the optional ones, and has nothing else."""
    return {
        "type": "object", "properties": {**properties, **(optional or {})}, "required": list(properties), "additionalProperties": False,
    }  # fmt: skip


def table_of(values: Schema) -> Schema:
    """An object of any names."""
    return {"type": "object", "additionalProperties": values}


def or_null(schema: Schema) -> Schema:
    return {"oneOf": [schema, {"type": "null"}]}


ERROR = record(error=TEXT | {"description": "One sentence that says what is wrong."})

# ---- a search ----------------------------------------------------------------------------------------------------------

CHOICES: dict[str, Schema] = {
    "k": {"type": "integer", "minimum": 1, "maximum": RESULTS, "default": 10, "description": "Results of each query."},
    "backend": TEXT | {"description": "What searches, one of /api/info's.", "default": "exact"},
    "model": {"type": "string", "enum": ["a", "b"], "default": "a", "description": "The first checkpoint or the second."},
    "find": {"type": "string", "enum": ["images", "captions"], "description": "Of a picture; a text finds images."},
}
_TEXT = TEXT | {"maxLength": CHARACTERS}
ASKED = record({
    "text": {"oneOf": [_TEXT, array_of(_TEXT) | {"minItems": 1, "maxItems": TEXTS}], "description": "What to find images for."},
    "image": TEXT | {"description": "Id of the gallery: find its captions, or pictures like it."},
    "rerank": {"type": "integer", "minimum": 0, "maximum": RERANKED, "description": "How many of the best are sorted anew; 0: none."},
    "mix": {"type": "number", "minimum": 0, "description": "Weight of the dot product in the re-ranker's order."},
    **CHOICES,
}) | {"oneOf": [{"required": ["text"]}, {"required": ["image"]}]}  # fmt: skip
FORM = record(CHOICES, picture=BYTES)

_RESULT = record({
    "captions": array_of(TEXT) | {"description": "Of an image: what is known to be said of it."},
    "text": TEXT | {"description": "Of a caption, as the next two."}, "language": TEXT, "image": TEXT,
    "first_rank": WHOLE | {"description": "Before the re-ranker, as the next one."}, "first_score": NUMBER,
}, rank=WHOLE, id=TEXT, score=NUMBER)  # fmt: skip
FOUND = record(
    results=array_of(array_of(_RESULT)), milliseconds=record(wait=NUMBER, encode=NUMBER, search=NUMBER, rerank=NUMBER, total=NUMBER),
    notes=array_of(TEXT), queries=array_of(record(text=TEXT, unknown_words=array_of(TEXT))), count=WHOLE, find=TEXT, k=WHOLE,
    backend=TEXT, model=TEXT, rerank=WHOLE, mix=NUMBER,
)  # fmt: skip

# ---- a picture, an evaluation ------------------------------------------------------------------------------------------

_BOX = array_of(NUMBER) | {"minItems": 4, "maxItems": 4, "description": "x1 y1 x2 y2, shares of width and height."}
ITEM = record(
    id=TEXT, captions=array_of(record(id=TEXT, text=TEXT, language=TEXT)),
    regions=or_null(array_of(record(box=_BOX, confidence=NUMBER))), picture=FLAG,
)  # fmt: skip

_BEFORE = or_null(array_of(TEXT))
_MISSED = record(
    {"second_rank": WHOLE, "second_before": _BEFORE}, id=TEXT, right=array_of(TEXT), rank=WHOLE, before=_BEFORE, texts=table_of(TEXT)
)  # fmt: skip
FAILURES = record(
    direction=TEXT, only=TEXT, order=TEXT, k=WHOLE, language=TEXT, offset=WHOLE, limit=WHOLE, total=WHOLE, queries=array_of(_MISSED)
)  # fmt: skip
_PERCENT = table_of(table_of(NUMBER)) | {"description": "Task → metric → percent."}
RECALL = record(evaluations=array_of(record(
    path=TEXT, recall=_PERCENT, chance=_PERCENT, intervals=table_of(table_of(record(low=NUMBER, high=NUMBER))),
    queries=table_of(record(images=WHOLE, texts=WHOLE)),
)))  # fmt: skip

# ---- the service -------------------------------------------------------------------------------------------------------

HEALTH = record(status=TEXT)
_INDEX = record(
    folder=TEXT, count=WHOLE, dim=WHOLE, dtype=TEXT, commits=WHOLE, backends=array_of(TEXT), taken_up=WHOLE,
    refused=or_null(TEXT) | {"description": "Why what is on the disk now is not searched."},
)  # fmt: skip
_INDEXES = {"images": _INDEX, "captions": or_null(_INDEX)}
_VERSIONS = table_of(or_null(TEXT))
_SUMMARY = record(median=NUMBER, p95=NUMBER, answers=WHOLE)
STATS = record(
    counts=table_of(WHOLE) | {"description": "Answers by status, and searches that were given up."},
    milliseconds=table_of(record(latest=_SUMMARY, all=_SUMMARY)) | {"description": "By stage: of the latest 20, and of the latest 10,000."},
    waiting=record(search=WHOLE, rerank=WHOLE, pictures=WHOLE), indexes=table_of(record(**_INDEXES)), versions=_VERSIONS,
)  # fmt: skip
_MODEL = record(
    checkpoint=TEXT, similarity=TEXT, device=TEXT, precision=TEXT, reranker=FLAG, rerank=WHOLE, mix=NUMBER, own_pictures=FLAG, **_INDEXES
)  # fmt: skip
_LIMITS = record(texts=WHOLE, characters=WHOLE, k=WHOLE, rerank=WHOLE, pixels=WHOLE, picture_bytes=WHOLE)
INFO = record(
    models=table_of(_MODEL), languages=array_of(TEXT), limits=_LIMITS, versions=_VERSIONS, photos=FLAG, captions=FLAG, regions=FLAG,
    evaluation=or_null(record(languages=array_of(TEXT), second=FLAG)),
)  # fmt: skip
