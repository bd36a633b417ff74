#!/usr/bin/env python
"""Is B better than A? Recall of two evaluations of one split, query by query.

python scripts/compare.py runs/a/best/eval/test runs/b/best/eval/test
python scripts/compare.py a/results.json b/results.json --resample images --json comparison.json
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli
from data.errors import BadInput
from data.storage.text_files import read_json, write_json
from model.evaluation.outcomes import QueryRanks, read_ranks
from model.evaluation.recall import METRICS, format_table, mean_table, recall_table
from model.evaluation.statistics import (
    Units,
    difference_tests,
    format_interval,
    holm,
    intervals,
    resampled_recall,
)


@dataclass
class Options:
    """Compare two evaluations of one split: differences of recall, their 95% intervals, and paired tests.

    Args:
        a: results.json of eval_itm.py, or the folder that holds it
        b: the other one; differences are B - A
        bootstrap: paired resamples for the intervals, and sign flips for the tests
        resample: what is drawn, and flipped: queries, or images with the queries of their captions
        json: JSON file to write with the results
    """

    a: str
    b: str
    bootstrap: int = 10000
    resample: Units = "queries"
    json: str | None = None

    def __post_init__(self):
        if self.bootstrap < 1:
            raise BadInput(f"bootstrap is the number of resamples, at least 1, found {self.bootstrap}")


def main(options: Options) -> None:
    a, b = (_Evaluation(path) for path in (options.a, options.b))
    _check_same_queries(a, b)
    names = list(a.ranks)
    rows = {name: _compare([a.ranks[name]], [b.ranks[name]], options) for name in names}
    if len(names) > 1:
        rows["all"] = _compare(list(a.ranks.values()), list(b.ranks.values()), options)
    cells = [cell for row in rows.values() for cell in row.values()]
    for cell, p in zip(cells, holm([cell["p"] for cell in cells])):
        cell["p_holm"] = p

    images, captions = len(a.img_ids), sum(map(len, a.txt_ids.values()))
    print(f"A: {a.path}\nB: {b.path}\n{images} images, {captions} captions")
    print(f"95% intervals of B - A from {options.bootstrap:,} paired resamples of {options.resample}")
    for name, row in rows.items():
        print(f"\n{name}\n{format_table({metric: _printed(cell) for metric, cell in row.items()}, str, column=16)}")
    print(
        "\np: two-sided, exact McNemar test or paired sign flips. p (Holm): corrected for looking at all "
        f"{len(cells)} at once;\nhold this one against 0.05 unless one metric was chosen beforehand."
    )
    if options.json:
        facts = {"a": str(a.path), "b": str(b.path), "images": images, "captions": captions}
        how = {"resamples": options.bootstrap, "resample": options.resample}
        write_json(options.json, facts | how | {"comparison": rows})
        print(f"wrote {options.json}")


class _Evaluation:
    """What ``eval_itm.py`` wrote: ``img_ids`` [I], and for each task ``txt_ids`` and ``ranks``."""

    def __init__(self, path: str):
        self.path = Path(path, "results.json") if Path(path).is_dir() else Path(path)
        try:
            results = read_json(self.path, "give a results.json of eval_itm.py")
            recall, name = results["recall"], results["ranks"]
        except KeyError as error:
            raise BadInput(f"{self.path}: no {error} in it: evaluate again with this version of eval_itm.py") from None
        ranks_path = self.path.with_name(name)
        self.img_ids, self.txt_ids, self.ranks = read_ranks(ranks_path)
        for task, ranks in self.ranks.items():
            table = recall_table(ranks.t2i, ranks.i2t)
            if any(abs(table[metric] - recall.get(task, {}).get(metric, -1)) > 1e-6 for metric in METRICS):
                raise BadInput(f"{ranks_path}: not of the same evaluation as {self.path} ({task}): evaluate again")


def _check_same_queries(a: _Evaluation, b: _Evaluation) -> None:
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


def _compare(a: list[QueryRanks], b: list[QueryRanks], options: Options) -> dict[str, dict]:
    """Metric → a, b, difference, low, high, test, p: of one task, or of the mean of several."""
    before, after = (mean_table([recall_table(task.t2i, task.i2t) for task in tasks]) for tasks in (a, b))
    samples = resampled_recall([a, b], options.bootstrap, options.resample).mean(axis=2)  # [B,2,7]
    bounds = intervals(samples[:, 1] - samples[:, 0])
    tests = difference_tests(a, b, options.bootstrap, options.resample)
    return {
        metric: {"a": before[metric], "b": after[metric], "difference": after[metric] - before[metric]}
        | bounds[metric]
        | dict(zip(("test", "p"), tests[metric]))
        for metric in METRICS
    }


def _printed(cell: dict) -> dict[str, str]:
    return {
        "A": f"{cell['a']:.2f}",
        "B": f"{cell['b']:.2f}",
        "B - A": f"{cell['difference']:+.2f}",
        "95%": format_interval(cell),
        "p": f"{cell['p']:.2g}",
        "p (Holm)": f"{cell['p_holm']:.2g}",
        "test": cell["test"],
    }


if __name__ == "__main__":
    cli.run(main, Options, positional=("a", "b"))
