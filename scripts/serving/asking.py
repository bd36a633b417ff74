"""What a search asks, checked: the JSON or the form of ``POST /api/search`` → a ``Question``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from configs.settings import nearest
from data.errors import BadInput
from model.retrieval.queries import checked_count, checked_mix, checked_texts, described
from model.serving.searching import Question
from scripts.serving.parameters import once

TEXTS, CHARACTERS = 64, 2000  # of a search, and of each of its texts
RESULTS, RERANKED = 1000, 500  # of each query
KEYS = ["text", "image", "find", "k", "rerank", "mix", "backend", "model"]
LIMITS = {"texts": TEXTS, "characters": CHARACTERS, "k": RESULTS, "rerank": RERANKED}


def question_of_json(body: bytes, models: Mapping[str, Any]) -> Question:
    """Raises BadInput for anything but an object of the keys that are known, with one of ``text`` and ``image``."""
    try:
        asked = json.loads(body, object_pairs_hook=once)
    except BadInput:
        raise
    except (ValueError, RecursionError):  # not UTF-8 is a ValueError, too
        raise BadInput('the body is not JSON: send an object such as {"text": "a dog", "k": 5}') from None
    if not isinstance(asked, dict):
        raise BadInput(f'the body is {described(asked)}: send an object such as {{"text": "a dog", "k": 5}}')
    if (asked.get("text") is None) == (asked.get("image") is None):
        raise BadInput('give one of "text", a text or a list of them, and "image", an id of the gallery; or a form with a picture')
    return _question(asked, KEYS, models)


def question_of_form(fields: Mapping[str, Any], models: Mapping[str, Any]) -> Question:
    """Of a form's fields other than the picture, whose numbers are written as texts."""
    asked: dict[str, Any] = {}
    for name, value in fields.items():
        if not isinstance(value, str):
            raise BadInput(f"{name[:60]} is a file: one file is expected, named picture")
        asked[name] = _number(name, value) if name in ("k", "rerank", "mix") else value
    return _question(asked, [key for key in KEYS if key not in ("text", "image", "rerank", "mix")], models)


def _number(name: str, value: str) -> int | float:
    try:
        return float(value) if name == "mix" else int(value)
    except ValueError:
        raise BadInput(f"{name} is {described(value)}, expected a number") from None


def _question(asked: Mapping[str, Any], keys: list[str], models: Mapping[str, Any]) -> Question:
    for key in asked:
        if key not in keys:
            raise BadInput(f"unknown key {key[:60]!r}{nearest(key[:60], keys) or f'; there are {chr(44).join(keys)}'}".replace(",", ", "))
    given = {key: value for key, value in asked.items() if value is not None}
    question = Question(model=_one_of("model", given.get("model", "a"), models))
    if "text" in given:
        question.texts = _texts(given["text"])
    elif "image" in given:
        question.image = _text("image", given["image"])
    find = "images" if question.texts or models[question.model].captions is None else "captions"
    question.find = _one_of("find", given.get("find", find), ("images", "captions"))
    if question.texts and question.find == "captions":
        raise BadInput("find is 'captions', and a text finds images: leave it out, or give an image")
    question.k = _at_most("k", checked_count(given.get("k", 10), "k"), RESULTS)
    for name in ("rerank", "mix"):
        if name in given and not question.texts and given[name] != 0:
            raise BadInput(f"{name} is {described(given[name])}, and the re-ranker sorts the images of a text: leave it out")
    if "rerank" in given:
        question.rerank = _at_most("rerank", checked_count(given["rerank"], "rerank", 0), RERANKED)
    if "mix" in given:
        question.mix = checked_mix(given["mix"])
    question.backend = _text("backend", given.get("backend", "exact"))
    return question


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        raise BadInput(f"text is {described(value)}, expected a text, or a list of texts")
    texts = checked_texts(value)
    if len(texts) > TEXTS:
        raise BadInput(f"text has {len(texts):,} texts, expected at most {TEXTS}: send several searches")
    for text in texts:
        if len(text) > CHARACTERS:
            raise BadInput(f"a text has {len(text):,} characters, expected at most {CHARACTERS:,}")
    return texts


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadInput(f"{name} is {described(value)}, expected a text")
    return value


def _one_of(name: str, value: Any, expected: Mapping[str, Any] | tuple[str, ...]) -> Any:
    if not isinstance(value, str) or value not in expected:
        raise BadInput(f"{name} is {described(value)}, expected one of {', '.join(expected)}")
    return value


def _at_most(name: str, value: int, most: int) -> int:
    if value > most:
        raise BadInput(f"{name} is {described(value)}, expected at most {most:,}")
    return value
