"""Recall of a re-ranker: where it puts the right answers among the best that a bi-encoder found."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from data.batches.pairs import PairDataset
from data.notices import say_once
from model.bi_encoder import LightningDOT
from model.distributed import SINGLE, Ranks
from model.evaluation.outcomes import QueryRanks
from model.evaluation.recall import listed_ranks, mean_table, recall_table, retrieval_ranks, with_mean
from model.evaluation.scoring import Scoring
from model.evaluation.settings import EvalConfig
from model.evaluation.split import Split
from model.evaluation.statistics import Units, intervals, resampled_recall
from model.evaluation.tables import Table, as_json, task_tables
from model.evaluation.tasks import RetrievalTask, gallery_sizes, retrieval_tasks
from model.retrieval.encoding import embed_pairs
from model.retrieval.pair_scoring import PairScorer
from model.retrieval.reranking import PairScores, Shortlist, mix_for, mixed_scores, say_where_fewer, shortlists
from model.retrieval.stored_scores import StoredScores


@dataclass
class FirstRanking:
    """How the bi-encoder ranks the captions of one language and all images, before the re-ranker does.

    Attributes:
        ranks: of the right answers
        images: the best images of each caption that is a query, rows among all images
        captions: the best captions of each image that is a query, rows among the captions of the language
        task: the queries and candidates
    """

    ranks: QueryRanks
    images: Shortlist
    captions: Shortlist
    task: RetrievalTask

    def reranked(
        self, scores: PairScores | StoredScores, k: int, mix: float = 0.0, i2t: PairScores | StoredScores | None = None
    ) -> QueryRanks:
        """Ranks of the right answers when the ``k`` best are in the order of ``scores`` + ``mix`` · the bi-encoder's.

        Args:
            i2t: scores for the captions of images, where they are others than those for the images of captions

        All others stay behind them in the bi-encoder's order, and equal scores keep it too.
        """
        lists, sources = (self.images.top(k), self.captions.top(k)), (scores, scores if i2t is None else i2t)
        if i2t is None:
            scores.compute(*lists)
        else:
            scores.compute(lists[0])
            i2t.compute(lists[1])
        ordered = (
            each.reorder(mixed_scores(source[each.pairs], each.scores, mix)).rows for each, source in zip(lists, sources)
        )
        after = listed_ranks(*ordered, self.task.image_of, self.task.num_images)
        before = self.ranks.t2i, self.ranks.i2t
        return self.task.query_ranks(
            *(np.where(new < each.rows.shape[1], new, old) for each, new, old in zip(lists, after, before))
        )


def first_ranking(txt: Tensor, img: Tensor, task: RetrievalTask, k: int) -> FirstRanking:
    """Ranks and the ``k`` best of the queries of a task, or all where there are fewer, from the embeddings of a whole dataset:
    ``txt`` [T,D], ``img`` [I,D]."""
    own = txt[task.rows]
    images, captions = shortlists(own, img, k, task.rows, task.num_queries, task.queries)
    ranks = task.query_ranks(*retrieval_ranks(own, img, task.image_of, num_queries=task.num_queries))
    return FirstRanking(ranks, images, captions, task)


def first_rankings(
    miner: LightningDOT, dataset: PairDataset, k: int, device, precision: str, ranks: Ranks = SINGLE
) -> dict[str, FirstRanking]:
    """Language → how ``miner`` ranks, with its ``k`` best candidates, or all where there are fewer, which is said."""
    tasks = retrieval_tasks(dataset)
    say_where_fewer(k, gallery_sizes(tasks), dataset.captions.folder)
    txt, img, _ = embed_pairs(miner, dataset, device, precision, ranks)
    return {name: first_ranking(txt, img, task, k) for name, task in tasks.items()}


def recall_before(first: dict[str, FirstRanking]) -> dict[str, float]:
    """Recall of the bi-encoder, the mean of the languages."""
    return mean_table([recall_table(each.ranks.t2i, each.ranks.i2t) for each in first.values()])


def evaluate_reranker(
    scorer: PairScorer, dataset: PairDataset, first: dict[str, FirstRanking], mix: float = 0.0, ranks: Ranks = SINGLE
) -> dict[str, dict[str, float]]:
    """Recall tables after all candidates of ``first`` are ranked again: one per language, and ``all``.

    Args:
        mix: weight of the bi-encoder's score, which is added to the re-ranker's
        ranks: each scores its share of the pairs
    """
    return rerank_all(PairScores(scorer, dataset, ranks), first, mix)


def rerank_all(scores: PairScores, first: dict[str, FirstRanking], mix: float = 0.0) -> dict[str, dict[str, float]]:
    """As ``evaluate_reranker``, with scores of pairs of which those that are known are not computed again."""
    tables = {}
    for name, each in first.items():
        after = each.reranked(scores, max(each.images.rows.shape[1], each.captions.rows.shape[1]), mix)
        tables[name] = recall_table(after.t2i, after.i2t)
    return with_mean(tables)


# ---- eval_itm.py -------------------------------------------------------------------------------------------------------


@dataclass
class RerankedTop:
    """Recall when the ``k`` best candidates of each query are ranked again, or all where there are fewer.

    Attributes:
        pairs: scored so far, those of fewer candidates among them
        seconds: that they took
        tables: in the re-ranker's order
        mixed: in the order of its scores and the bi-encoder's; empty without a mix
        candidates: the bi-encoder's recall among the ``k``, above which no re-ranker comes: ``TR@k``, ``IR@k``
        mix: weight of the bi-encoder's there
    """

    k: int
    pairs: int
    seconds: float
    tables: list[Table]
    mixed: list[Table]
    candidates: Table
    mix: float = 0.0

    def describe(self) -> str:
        """One line: what was ranked again how fast, and what the bi-encoder had found."""
        speed = f"{self.pairs} pairs in {self.seconds:.1f} s, {self.pairs / self.seconds:.0f} pairs/s"
        found = ", ".join(f"{name} {value:.2f}" for name, value in self.candidates.recall.items())
        return f"re-ranked top {self.k}: {speed}; the bi-encoder's {found}"

    def as_json(self) -> dict:
        """What ``results.json`` holds of it."""
        found = {"pairs": self.pairs, "seconds": self.seconds} | as_json(self.tables)
        found["bi-encoder"] = as_json([self.candidates])
        return found | ({"mixed": as_json(self.mixed) | {"mix": self.mix}} if self.mixed else {})


def rerank_split(split: Split, scoring: Scoring, config: EvalConfig) -> tuple[list[RerankedTop], float]:
    """Recall for each number of candidates in ``config.rerank_top``, from the fewest on, and the seconds of the search.

    A number above that of all candidates is lowered to it. A pair that is among fewer candidates already is not scored again.
    """
    mix = mix_for(config.reranker, config.rerank_mix) if config.reranker else config.rerank_mix or 0.0
    if mix and config.rerank_mix is None:
        say_once(f"{config.reranker}: its validation chose mix {mix:g}: tables with the bi-encoder's score are of that")
    started, largest = time.perf_counter(), max(gallery_sizes(split.tasks).values())
    numbers = sorted({min(k, largest) for k in config.rerank_top})
    first = {name: first_ranking(split.txt, split.img, task, numbers[-1]) for name, task in split.tasks.items()}
    search_seconds = time.perf_counter() - started
    seconds, tops = 0.0, []

    def tables(k: int, mix: float, note: str) -> list[Table]:
        ranks = {name: each.reranked(scoring.t2i, k, mix, scoring.other_i2t) for name, each in first.items()}
        found = task_tables(ranks, config.bootstrap, config.resample, note)
        return [dataclasses.replace(table, printed=table.name == "all") for table in found]

    for k in numbers:
        started = time.perf_counter()
        scoring.compute(first.values(), k)
        seconds += time.perf_counter() - started
        note = f"re-ranked top {k}"
        weight = "" if config.rerank_mix is not None else f"{mix:g} x "  # that the user did not give
        mixed = tables(k, mix, f"  {note} + {weight}bi-encoder") if mix else []
        found = candidate_table({name: each.ranks for name, each in first.items()}, k, config.bootstrap, config.resample)
        tops.append(RerankedTop(k, scoring.pairs, seconds, tables(k, 0.0, note), mixed, found, mix))
    return tops, search_seconds


def candidate_table(ranks: dict[str, QueryRanks], k: int, resamples: int, units: Units) -> Table:
    """Recall of a first ranking among its ``k`` best, ``TR@k`` and ``IR@k``, the mean of the tasks, with 95% intervals."""
    shares = [(float((task.i2t < k).mean()), float((task.t2i < k).mean())) for task in ranks.values()]
    recall = dict(zip((f"TR@{k}", f"IR@{k}"), (100 * np.mean(shares, axis=0)).tolist()))
    if not resamples:
        return Table("all", recall)
    samples = resampled_recall([list(ranks.values())], resamples, units, ks=(k,))[:, 0].mean(axis=1)
    return Table("all", recall, intervals(samples[:, :2], list(recall)))
