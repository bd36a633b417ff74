#!/usr/bin/env python
"""One HTML page about a run: recall with intervals, curves, failures with pictures, speed, versions, settings. No network.

python scripts/report.py runs/finetune                       # writes runs/finetune/report.html
python scripts/report.py runs/finetune --photos photos/ --failures 20 --out report.html
python scripts/report.py runs/finetune/eval                  # of evaluations alone
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli
from data.errors import BadInput
from data.storage.atomic import atomic_file
from data.storage.locks import claim_output
from scripts.reporting.page import failures_of, render_page
from scripts.reporting.results import read_run


@dataclass
class Options:
    """Write one HTML page about a run.

    Args:
        run: folder of a pre-training, a fine-tuning or a re-ranker's training, of an evaluation, or of several evaluations
        out: the page; none: report.html in that folder
        failures: the worst queries of each evaluation that are shown, both directions; 0: none
        photos: folder of the pictures; none: where the image database says that they are
    """

    run: str
    out: str | None = None
    failures: int = 10
    photos: str | None = None

    def __post_init__(self):
        if self.failures < 0:
            raise BadInput(f"failures must be at least 0, found {self.failures}")


def main(options: Options) -> None:
    out = Path(options.out or Path(options.run) / "report.html")
    if not options.out and not Path(options.run).is_dir():
        raise BadInput(f"{options.run}: no such folder; give the folder of a run or of an evaluation")
    claim_output(out)
    run = read_run(options.run)
    failures = failures_of(run, options.failures, options.photos)
    page = render_page(run, failures)
    with atomic_file(out) as partial:
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")
    shown = sum(len(each["texts"]) + len(each["images"]) for each in failures)
    print(f"wrote {out}: {run.kind}, {len(run.evaluations)} evaluations, {shown} failures, {len(page) / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main, Options, positional=("run",))
