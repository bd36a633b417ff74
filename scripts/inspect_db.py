#!/usr/bin/env python
"""Say what a database is, and what is wrong with it.

python scripts/inspect_db.py db/regions                        # a folder with feat_*, or one feat_* folder
python scripts/inspect_db.py db/captions/train --regions db/regions --verify
python scripts/inspect_db.py index/img --verify --json report.json
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli
from data.checks.inspection import inspect_database
from data.checks.records import InspectionOptions
from data.downloads.hub import DATASET, local_folder
from data.errors import BadInput
from data.regions.db import BoxOptions
from data.storage.locks import claim_output
from data.storage.text_files import write_json


@dataclass
class Options:
    """Say what a database is and what is wrong with it: image DB, text DB or feature index. Status 2 for any problem.

    Args:
        path: folder of the database
        verify: read every record, not a sample
        workers: processes that read with --verify; 0 reads in this one; none: one a CPU
        first: records shown
        regions: image DB that a text DB is checked against
        json: file to write the whole report to
        boxes: which boxes of a layout `all` are counted
    """

    path: str
    verify: bool = False
    workers: int | None = None
    first: int = 3
    regions: str | None = None
    json: str | None = None
    boxes: BoxOptions = field(default_factory=BoxOptions)


def main(options: Options) -> None:
    if options.json:
        claim_output(options.json)
    reading = InspectionOptions(options.verify, options.workers, options.first, options.regions, options.boxes)
    reports = inspect_database(local_folder(options.path, DATASET), reading)
    if options.regions and reports[0].kind != "text DB":
        raise BadInput(f"{options.path}: found {reports[0].kind}, but --regions is for a text DB; leave it out")
    for report in reports:
        print(*report.lines(), sep="\n")
    if options.json:
        databases = [report.as_json() for report in reports]
        write_json(options.json, {"path": options.path, "verify": options.verify, "databases": databases})
    kinds = [kind for report in reports for kind in report.problems.counts]
    total = sum(report.problems.counts.total() for report in reports)
    if kinds:
        raise BadInput(f"{options.path}: {total:,} problem{'s' * (total > 1)} ({'; '.join(kinds)})")


if __name__ == "__main__":
    cli.run(main, Options, positional=("path",))
