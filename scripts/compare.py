#!/usr/bin/env python
"""Is B better than A? Recall of two evaluations of one split, query by query.

python scripts/compare.py runs/a runs/b                        # their best checkpoints, evaluated by eval_itm.py
python scripts/compare.py runs/a/best runs/b/eval/step-00012000/test
python scripts/compare.py a/results.json b/results.json --resample images --json comparison.json
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli
from data.errors import BadInput
from data.storage.locks import claim_output
from data.storage.text_files import write_json
from model.evaluation.compare import compare_evaluations, other_data, read_evaluation
from model.evaluation.recall import format_table
from model.evaluation.statistics import Units, format_interval


@dataclass
class Options:
    """Compare two evaluations of one split: differences of recall, their 95% intervals, and paired tests.

    Args:
        a: results.json of eval_itm.py, or the folder, checkpoint or run that holds it
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
    if options.json:
        claim_output(options.json)
    a, b = (read_evaluation(path) for path in (options.a, options.b))
    rows = compare_evaluations(a, b, options.bootstrap, options.resample)
    images, captions, num_tests = len(a.img_ids), a.num_captions, sum(map(len, rows.values()))
    print(f"A: {a.path}\nB: {b.path}\n{images} images, {captions} captions")
    for name in other_data(a, b):
        print(f"{name}: A and B were measured on different ones")
    print(f"95% intervals of B - A from {options.bootstrap:,} paired resamples of {options.resample}")
    for name, row in rows.items():
        print(f"\n{name}\n{format_table({metric: _printed(cell) for metric, cell in row.items()}, str, column=16)}")
    print(
        "\np: two-sided, exact McNemar test or paired sign flips. p (Holm): corrected for looking at all "
        f"{num_tests} at once;\nhold this one against 0.05 unless one metric was chosen beforehand."
    )
    if options.json:
        facts = {"a": str(a.path), "b": str(b.path), "images": images, "captions": captions}
        resampling = {"resamples": options.bootstrap, "resample": options.resample}
        write_json(options.json, facts | resampling | {"comparison": rows})
        print(f"wrote {options.json}")


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
