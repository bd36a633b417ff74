"""What ranks the best candidates of an evaluation again: a re-ranker, or scores that are looked up."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.batches.pairs import PairDataset
from data.errors import BadInput
from data.scores.files import MatrixIds, ScoreTable, read_ids, read_scores
from model.evaluation.settings import EvalConfig
from model.evaluation.tasks import gallery_sizes, retrieval_tasks
from model.initial import settle_long_captions
from model.precision import for_inference
from model.retrieval.pair_scoring import PairScorer
from model.retrieval.reranking import PairScores, say_where_fewer
from model.retrieval.stored_scores import StoredScores
from model.uniter import Reranker, check_reranker

DIRECTIONS = ("t2i", "i2t")


@dataclass
class Scoring:
    """Scores of pairs for both directions.

    Attributes:
        t2i: for the images of captions
        i2t: for the captions of images; the same object where one serves both
        record: what ``results.json`` says of them
        line: what the screen says
    """

    t2i: PairScores | StoredScores
    i2t: PairScores | StoredScores
    record: dict[str, Any]
    line: str

    @property
    def other_i2t(self) -> PairScores | StoredScores | None:
        """Those for the captions of images, where they are others."""
        return None if self.t2i is self.i2t else self.i2t

    @property
    def sources(self) -> list[PairScores | StoredScores]:
        """The one or two objects."""
        return [self.t2i] if self.t2i is self.i2t else [self.t2i, self.i2t]

    @property
    def pairs(self) -> int:
        """Number of pairs scored or looked up so far."""
        return sum(map(len, self.sources))

    def compute(self, rankings: Iterable, k: int) -> None:
        """Score the ``k`` best of some `FirstRanking`s, or see that their scores are there. Raises BadInput as those do."""
        for each in rankings:
            if self.t2i is self.i2t:
                self.t2i.compute(each.images.top(k), each.captions.top(k))
            else:
                self.t2i.compute(each.images.top(k))
                self.i2t.compute(each.captions.top(k))


def open_scoring(config: EvalConfig, pairs: PairDataset, device: torch.device) -> Scoring | None:
    """What is to rank again, where anything is; it is read before hours of encoding.

    Raises:
        BadInput: a re-ranker that is missing or does not fit the data; files of scores that cannot be read or do not fit.
    """
    if not config.reranker and not config.rerank_scores:
        return None
    say_where_fewer(max(config.rerank_top), gallery_sizes(retrieval_tasks(pairs)), config.captions)
    if config.rerank_scores:
        return _look_up(config, pairs)
    reranker = Reranker.from_pretrained(config.reranker).to(device)
    for_inference(reranker, device, config.precision)
    check_reranker(reranker.config, config.reranker, pairs)
    settle_long_captions(pairs, reranker.config.encoder.max_tokens, config.long_captions)
    scores = PairScores(PairScorer(reranker, device, config.precision, config.batch_size), pairs)
    return Scoring(scores, scores, {"model": reranker.fingerprint, "head": reranker.head}, reranker.describe_head())


def _look_up(config: EvalConfig, pairs: PairDataset) -> Scoring:
    ids = _matrix_ids(config, pairs)
    tables: dict[str, ScoreTable] = {}
    of: dict[str, list[str]] = {direction: [] for direction in DIRECTIONS}
    for word in config.rerank_scores:
        direction, path = (None, word) if Path(word).exists() or word[:4] not in ("t2i=", "i2t=") else (word[:3], word[4:])
        tables[path] = tables.get(path) or read_scores(path, ids)
        for each in DIRECTIONS if direction is None else (direction,):
            of[each].append(path)
    absent = [direction for direction in DIRECTIONS if not of[direction]]
    if absent:
        raise BadInput(f"rerank_scores: nothing for {absent[0]}; give {absent[0]}=FILE too, or one FILE for both directions")
    t2i = StoredScores([tables[path] for path in of["t2i"]], pairs, config.rerank_missing)
    i2t = t2i if of["t2i"] == of["i2t"] else StoredScores([tables[path] for path in of["i2t"]], pairs, config.rerank_missing)
    digests = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in tables}
    record = {"model": None, "scores": of, "sha256": digests, "missing": config.rerank_missing}
    return Scoring(t2i, i2t, record, f"scores to rank again by: {', '.join(tables)}")


def _matrix_ids(config: EvalConfig, pairs: PairDataset) -> MatrixIds:
    """What the user said of matrices without ids."""
    if config.rerank_ids is None:
        return MatrixIds(rows=config.rerank_rows)
    if config.rerank_ids == ["database"]:
        return MatrixIds(list(pairs.ids), list(pairs.images), config.rerank_rows)
    captions, images = config.rerank_ids
    return MatrixIds(read_ids(captions), read_ids(images), config.rerank_rows)
