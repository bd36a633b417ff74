"""What a search found: of each query the hits, how its words were read, and what it took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from model.retrieval.queries import TextQuery


class Hit(NamedTuple):
    """A result. Its rank is its place among the results.

    >>> hit = Hit("beach.npz", 13.25, path=Path("photos/beach.jpg"))
    >>> hit.path.name, hit.score, hit.text
    ('beach.jpg', 13.25, None)

    Attributes:
        id: in the index: an image's key, or a caption's id
        score: the dot product, or where a re-ranker was asked its score + mix · the dot product
        text: what a caption says; None of an image, and where the retriever was given no captions
        path: the file of an image; None of a caption, where the retriever was given no photographs, and where they lack it
    """

    id: str
    score: float
    text: str | None = None
    path: Path | None = None


@dataclass
class Found:
    """What a search found for Q queries.

    Attributes:
        hits: of each query the results, best first
        first: where a re-ranker sorted them anew, of each query the candidates in the order of the dot product, with that as
            their score; else empty
        queries: how the texts were read, with the words that the model does not know; empty for an image
        mix: weight of the dot product in the re-ranker's order
        milliseconds: of all queries together: ``encode`` (reading a text, or extracting a picture's regions, included),
            ``search`` (looking up the ids included) and ``rerank``, 0 where nothing was
    """

    hits: list[list[Hit]]
    first: list[list[Hit]]
    queries: list[TextQuery]
    milliseconds: dict[str, float]
    mix: float = 0.0

    def remarks(self) -> list[str]:
        """A line for each text that has words which the model does not know."""
        return [query.remark for query in self.queries if query.remark is not None]

    def time_line(self, size: int) -> str:
        """What it took, in words; ``size`` is that of the index."""
        words = [f"encoding {self.milliseconds['encode']:.1f} ms", f"search among {size} {self.milliseconds['search']:.1f} ms"]
        if self.first:
            words.append(f"re-ranking the best {len(self.first[0])} (mix {self.mix:g}) {self.milliseconds['rerank']:.1f} ms")
        return ", ".join(words) + (f" for {len(self.hits)} queries" if len(self.hits) > 1 else "")

    def as_json(self, texts: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """Of each query its ``results``, best first, and for a text its ``unknown_words``.

        Args:
            texts: captions by their ids, where they are known
        """
        texts = texts or {}
        answers: list[dict[str, Any]] = []
        for hits in self.hits:
            said = ({"text": texts[hit.id]} if hit.id in texts else {} for hit in hits)
            ranked = ({"rank": rank, "id": hit.id, "score": hit.score} for rank, hit in enumerate(hits, 1))
            answers.append({"results": [each | text for each, text in zip(ranked, said, strict=True)]})
        for answer, query in zip(answers, self.queries):
            answer["unknown_words"] = list(query.unknown_words)
        return answers
