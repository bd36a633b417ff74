"""Two evaluations of one split, query by query: differences of recall, how sure they are, and whether they are chance.

    a, b = (read_evaluation(folder) for folder in ("runs/a", "runs/b/eval/step-00012000/test"))
    compare_evaluations(a, b, resamples=10_000)["all"]["AR"]["difference"]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.errors import BadInput
from model.evaluation.folders import find_results, read_results
from model.evaluation.outcomes import QueryRanks, read_ranks
from model.evaluation.recall import METRICS, mean_table, recall_table
from model.evaluation.statistics import Units, difference_tests, holm, intervals, resampled_recall


@dataclass
class Evaluation:
    """What ``eval_itm.py`` wrote.

    Attributes:
        path: of its results.json
        img_ids: [I] keys of the images
        txt_ids: task → ids of its captions
        ranks: task → ranks of its queries
        data: digests of the databases it was measured on; empty where an older version did not write them
        model: fingerprint of the weights; None where it did not write that
    """

    path: Path
    img_ids: list[str]
    txt_ids: dict[str, list[str]]
    ranks: dict[str, QueryRanks]
    data: dict[str, str]
    model: str | None

    @property
    def text_dbs(self) -> set[str]:
        """Fingerprints of the text DBs it was measured on; empty where it does not say."""
        return set(self.data.get("captions", "").split())

    @property
    def num_captions(self) -> int:
        """Captions of all tasks."""
        return sum(map(len, self.txt_ids.values()))


def read_evaluation(path: str | Path) -> Evaluation:
    """Read a results.json, or that of a folder, checkpoint or run (`find_results`), with the ranks beside it.

    Raises:
        BadInput: a file is missing or damaged, or they are of two evaluations; a run has several.
    """
    path = find_results(path)
    results = read_results(path)
    recall, name = results["recall"], results.get("ranks")
    if not name or Path(name).name != name:
        raise BadInput(f"{path}: no 'ranks' in it: evaluate again with this version of eval_itm.py")
    ranks_path = path.with_name(name)
    evaluation = Evaluation(path, *read_ranks(ranks_path), data=results.get("data", {}), model=results.get("model"))
    for task, ranks in evaluation.ranks.items():
        table = recall_table(ranks.t2i, ranks.i2t)
        if any(abs(table[metric] - recall.get(task, {}).get(metric, -1)) > 1e-6 for metric in METRICS):
            raise BadInput(f"{ranks_path}: not of the same evaluation as {path} ({task}): evaluate again")
    return evaluation


def other_data(a: Evaluation, b: Evaluation) -> list[str]:
    """Which databases, of those that both name, had other contents in the one and in the other."""
    return [name for name in a.data if name in b.data and a.data[name] != b.data[name]]


def check_same_queries(a: Evaluation, b: Evaluation) -> None:
    """Raise BadInput unless both rank the same queries in the same order."""
    if "captions" in other_data(a, b):
        raise BadInput(
            f"{a.path} and {b.path}: the captions are not the same in both, though their ids may be (contents {a.data['captions']} "
            f"and {b.data['captions']}): the text DB was changed in between; evaluate both on what it holds now"
        )
    check_same_candidates(a, b)
    if list(a.ranks) != list(b.ranks):
        raise BadInput(f"{a.path} has {', '.join(a.ranks)}, {b.path} has {', '.join(b.ranks)}: evaluate one split")
    kinds = {"image": (a.img_ids, b.img_ids)}
    kinds |= {f"{name} caption": (a.txt_ids[name], b.txt_ids[name]) for name in a.ranks}
    for kind, (ours, theirs) in kinds.items():
        for number, pair in enumerate(zip(ours, theirs)):
            if pair[0] != pair[1]:
                raise BadInput(
                    f"{a.path} and {b.path}: not the same queries in the same order: {kind} {number} is {pair[0]} in the "
                    f"first and {pair[1]} in the second; evaluate both on one split"
                )
        if len(ours) != len(theirs):
            number = min(len(ours), len(theirs))
            extra, path = (ours[number], a.path) if len(ours) > number else (theirs[number], b.path)
            raise BadInput(f"{a.path} and {b.path}: not the same queries: {kind} {number}, {extra}, is only in {path}")
    for name in a.ranks:
        if (a.ranks[name].image_of != b.ranks[name].image_of).any():
            raise BadInput(
                f"{a.path} and {b.path}: captions ({name}) belong to other images; evaluate both on one split"
            )
        if not np.array_equal(a.ranks[name].queries, b.ranks[name].queries):
            raise BadInput(
                f"{a.path} and {b.path}: not the same queries: in {name} {len(a.ranks[name].queries)} images in the first and "
                f"{len(b.ranks[name].queries)} in the second; an image without a caption in a language was a query of it once: "
                "evaluate both with this version of eval_itm.py"
            )


def check_same_candidates(a: Evaluation, b: Evaluation) -> None:
    """Raise BadInput where the queries of the two were searched for among other galleries."""
    galleries = [{name: each.data[name] for name in each.data if name.startswith("gallery")} for each in (a, b)]
    if galleries[0] != galleries[1]:
        found = [", ".join(f"{name} {digest}" for name, digest in each.items() if digest) or "no gallery" for each in galleries]
        raise BadInput(
            f"{a.path} and {b.path}: the queries have other candidates, {found[0]} in the first and {found[1]} in the second; "
            "evaluate both with the same gallery"
        )


def compare_evaluations(
    a: Evaluation, b: Evaluation, resamples: int, units: Units = "queries"
) -> dict[str, dict[str, dict]]:
    """Task → metric → ``a``, ``b``, ``difference`` B - A, its 95% interval ``low`` to ``high``, ``test``, ``p``, and ``p_holm``,
    which is corrected for looking at all of them. With several tasks ``all`` is their mean.

    Args:
        resamples: paired ones for the intervals, and sign flips of the tests
        units: what is drawn, and flipped

    Raises:
        BadInput: they are not of the same queries in the same order.
    """
    check_same_queries(a, b)
    rows = {name: compare_tasks([a.ranks[name]], [b.ranks[name]], resamples, units) for name in a.ranks}
    if len(rows) > 1:
        rows["all"] = compare_tasks(list(a.ranks.values()), list(b.ranks.values()), resamples, units)
    cells = [cell for row in rows.values() for cell in row.values()]
    for cell, p in zip(cells, holm([cell["p"] for cell in cells])):
        cell["p_holm"] = p
    return rows


def compare_tasks(
    a: Sequence[QueryRanks], b: Sequence[QueryRanks], resamples: int, units: Units
) -> dict[str, dict]:
    """Metric → a, b, difference, low, high, test, p: of one task, or of the mean of several."""
    before, after = (mean_table([recall_table(task.t2i, task.i2t) for task in tasks]) for tasks in (a, b))
    samples = resampled_recall([a, b], resamples, units).mean(axis=2)  # [B,2,7]
    bounds = intervals(samples[:, 1] - samples[:, 0])
    tests = difference_tests(a, b, resamples, units)
    return {
        metric: {"a": before[metric], "b": after[metric], "difference": after[metric] - before[metric]}
        | bounds[metric]
        | dict(zip(("test", "p"), tests[metric]))
        for metric in METRICS
    }
