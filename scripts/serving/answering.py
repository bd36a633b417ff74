"""What was found, as the JSON that ``POST /api/search`` answers with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model.retrieval.results import Hit
from model.serving.gallery import Gallery
from model.serving.searching import Answer, Question

CAPTIONS = 5  # of an image among the results

LIKE_IT = {
    "dot": "pictures like it: dot products with the picture's own vector, which also grow with the length of a vector; the model "
    "was trained to compare pictures with texts, not with each other",
    "cosine": "pictures like it: cosines with the picture's own vector; the model was trained to compare pictures with texts, not "
    "with each other",
}


def answer_as_json(question: Question, answer: Answer, gallery: Gallery, similarity: str) -> dict[str, Any]:
    """``results`` of each query, best first, and what is known of the search."""
    firsts = answer.first or [[]] * len(answer.hits)
    notes = list(answer.notes)
    if question.find == "images" and not question.texts:
        notes.append(LIKE_IT[similarity])
    return {
        "results": [_results(question, hits, first, gallery) for hits, first in zip(answer.hits, firsts, strict=True)],
        "milliseconds": answer.milliseconds,
        "notes": notes,
        "queries": [{"text": query.text, "unknown_words": list(query.unknown_words)} for query in answer.queries],
        "count": answer.count,
        "find": question.find,
        "k": question.k,
        "backend": question.backend,
        "model": question.model,
        "rerank": answer.rerank,
        "mix": answer.mix,
    }


def _results(question: Question, hits: Sequence[Hit], first: Sequence[Hit], gallery: Gallery) -> list[dict[str, Any]]:
    """Of each hit ``rank``, ``id`` and ``score``; of an image its ``captions``; of a caption its ``text``, ``language`` and
    ``image``; where a re-ranker sorted them its ``first_rank`` and ``first_score``."""
    before = {hit.id: (rank, hit.score) for rank, hit in enumerate(first, 1)}
    found = []
    for rank, hit in enumerate(hits, 1):
        result: dict[str, Any] = {"rank": rank, "id": hit.id, "score": hit.score}
        if question.find == "images":
            result["captions"] = [caption["text"] for caption in gallery.captions_of(hit.id)[:CAPTIONS]]
        else:
            result |= gallery.caption(hit.id) or {}
        if hit.id in before:
            result["first_rank"], result["first_score"] = before[hit.id]
        found.append(result)
    return found
