"""What an evaluation's queries did not find: a list of them, with the right answer and what stood before it.

    failures = Failures("runs/x/eval/step-00012000/test", other="runs/y/eval/step-00012000/test")
    failures.page(Choice(direction="t2i", only="a_right_b_wrong"), offset=0, limit=20)
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.search.exact import ExactSearch
from model.evaluation.compare import Evaluation, check_same_queries, read_evaluation
from model.evaluation.folders import read_results
from model.evaluation.outcomes import QueryRanks

BEFORE = 5  # wrong answers shown of a query
Only = Literal["all", "wrong", "a_right_b_wrong", "b_right_a_wrong", "both_wrong"]
ONLY: tuple[Only, ...] = ("all", "wrong", "a_right_b_wrong", "b_right_a_wrong", "both_wrong")


@dataclass
class Choice:
    """Which queries are listed.

    Attributes:
        direction: "t2i", captions that look for their image, or "i2t", images that look for a caption
        language: task of the evaluation; None: the first
        only: all; or those of which the right answer is not among the first k; or those that one evaluation answers and the
            other does not
        k: within how many results an answer counts as found
        order: "worst" rank first, or "best"; by the rank in the second evaluation where the first is right and the second is not
    """

    direction: Literal["t2i", "i2t"] = "t2i"
    language: str | None = None
    only: Only = "wrong"
    k: int = 1
    order: Literal["worst", "best"] = "worst"


class Failures:
    """An evaluation, or two of the same queries.

    Args:
        folder: what eval_itm.py wrote
        other: that of the second checkpoint; None: there is none

    Raises:
        BadInput: no evaluation, or two that have other queries.
    """

    def __init__(self, folder: str | Path, other: str | Path | None = None):
        self.a = read_evaluation(folder)
        self.b = None if other is None else read_evaluation(other)
        if self.b is not None:
            check_same_queries(self.a, self.b)
        self._lock = threading.Lock()
        self._searches = {each.path: _opened_indexes(each) for each in (self.a, self.b) if each is not None}

    @property
    def languages(self) -> list[str]:
        """The tasks, as the evaluation names them."""
        return list(self.a.ranks)

    def recall(self) -> list[dict[str, Any]]:
        """Of each evaluation ``recall``, ``intervals`` (95%), numbers of ``queries`` and the recall of ``chance``, as results.json
        holds them: task → metric → percent."""
        return [_recall_of(each) for each in (self.a, self.b) if each is not None]

    def page(self, choice: Choice, offset: int, limit: int) -> dict[str, Any]:
        """Some of the queries that are chosen.

        Returns: ``total`` of them; ``queries``: of each its ``id``, ids of the ``right`` answers, 1-based ``rank`` of the best of
        them, and ids of what stood ``before`` it (None where the evaluation's indexes are not there any more); ``second_rank``
        and ``second_before`` are those of the second evaluation

        Raises:
            BadInput: a language that is not there; two evaluations are needed.
        """
        language = self.languages[0] if choice.language is None else choice.language
        if language not in self.a.ranks:
            raise BadInput(f"language is {language!r}, expected one of {', '.join(self.languages)}")
        if self.b is None and choice.only not in ("all", "wrong"):
            raise BadInput(f"only is {choice.only!r}, and there is no second evaluation to compare with")
        task = self.a.ranks[language]
        ranks = _ranks(task, choice.direction)
        others = ranks if self.b is None else _ranks(self.b.ranks[language], choice.direction)
        rows = np.flatnonzero(_chosen(ranks, others, choice))
        by = others if choice.only == "a_right_b_wrong" else ranks
        rows = rows[np.argsort(by[rows] if choice.order == "best" else -by[rows], kind="stable")]
        shown = rows[offset : offset + limit]
        names, right = self._names(language, choice.direction, shown)
        queries: list[dict[str, Any]] = [{"id": name, "right": own} for name, own in zip(names, right, strict=True)]
        for evaluation, key, of in ((self.a, "", ranks), (self.b, "second_", others)):
            if evaluation is not None:
                before = self._before(evaluation, names, of[shown], choice.direction, language)
                for query, rank, ahead in zip(queries, of[shown], before, strict=True):
                    query |= {f"{key}rank": int(rank) + 1, f"{key}before": ahead}
        return {"total": len(rows), "language": language, "queries": queries}

    def _names(self, language: str, direction: str, rows: np.ndarray) -> tuple[list[str], list[list[str]]]:
        """Ids of queries, and of the right answers of each."""
        task, captions, images = self.a.ranks[language], self.a.txt_ids[language], self.a.img_ids
        if direction == "t2i":
            return [captions[row] for row in rows], [[images[task.image_of[row]]] for row in rows]
        asked = task.queries[rows]
        return [images[row] for row in asked], [[captions[n] for n in np.flatnonzero(task.image_of == row)] for row in asked]

    def _before(
        self, evaluation: Evaluation, names: list[str], ranks: np.ndarray, direction: str, language: str
    ) -> list[list[str] | None]:
        """Of each query what stood before the right answer, the first of it."""
        searches = self._searches[evaluation.path]
        if searches is None or not names:
            return [None] * len(names)
        own, candidates = ("txt", "img") if direction == "t2i" else ("img", "txt")
        queries, search = searches[own].index, searches[candidates]
        among = set(self.a.txt_ids[language]) if direction == "i2t" and len(self.languages) > 1 else None
        with self._lock:
            vectors = queries.vectors([queries.row_of(name) for name in names])
            return [self._first(search, vector, min(BEFORE, int(rank)), among) for vector, rank in zip(vectors, ranks, strict=True)]

    @staticmethod
    def _first(search: ExactSearch, vector: np.ndarray, number: int, among: set[str] | None) -> list[str]:
        """The best ids of a query, of those that are candidates in its language."""
        depth, found = number, []
        while number and len(found) < number:
            ids = search.ids(search.search(vector[None], depth)[1][0])
            found = [name for name in ids if among is None or name in among]
            if depth >= search.count:
                break
            depth *= 4
        return found[:number]


def _ranks(task: QueryRanks, direction: str) -> np.ndarray:
    return task.t2i if direction == "t2i" else task.i2t


def _chosen(a: np.ndarray, b: np.ndarray, choice: Choice) -> np.ndarray:
    """Ranks [Q] of two evaluations → [Q] bool."""
    right_a, right_b = a < choice.k, b < choice.k
    return {
        "all": np.ones(len(a), bool),
        "wrong": ~right_a,
        "a_right_b_wrong": right_a & ~right_b,
        "b_right_a_wrong": right_b & ~right_a,
        "both_wrong": ~right_a & ~right_b,
    }[choice.only]


def _recall_of(evaluation: Evaluation) -> dict[str, Any]:
    results = read_results(evaluation.path)
    return {"path": str(evaluation.path.parent)} | {name: results.get(name, {}) for name in ("recall", "intervals", "queries", "chance")}


def _opened_indexes(evaluation: Evaluation) -> dict[str, ExactSearch] | None:
    """The indexes that the evaluation made; None where they are not there any more, are of other weights or hold something else
    by now, or are not all that was searched."""
    folder = evaluation.path.parent
    expected = {"img": evaluation.img_ids, "txt": [name for own in evaluation.txt_ids.values() for name in own]}
    if (folder / "gallery").is_dir():
        return None
    try:
        found = {kind: ExactSearch(EmbeddingIndex(folder / kind)) for kind in expected}
    except BadInput:
        return None
    same = all(search.count == len(expected[kind]) and set(search.index.ids()) == set(expected[kind]) for kind, search in found.items())
    made_by = {search.index.header["model"] for search in found.values()}
    return found if same and (evaluation.model is None or made_by == {evaluation.model}) else None
