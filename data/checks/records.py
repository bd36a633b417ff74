"""Reading many records of a stored database, in this process or in others, and what they showed.

A check takes a chunk of the work and opens the database itself, so that it runs in any process.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import lmdb
import numpy as np

from data.checks.report import Findings, Report
from data.errors import BadInput
from data.notices import say_once
from data.progress import ProgressBar
from data.regions.db import BoxOptions
from data.storage.digest import hash_of_key
from data.storage.lmdb_env import open_env
from data.storage.processes import starting_workers, worker_pool
from data.storage.record_sums import FILE as SUMS_FILE
from data.storage.record_sums import read_sums
from data.storage.regular_files import is_there

OTHER_SUM = "records that are not what was written"
SAMPLE = 256  # records read without `verify`


@dataclass
class InspectionOptions:
    """How thoroughly a database is read.

    Args:
        verify: read every record, not a sample
        workers: processes that read with `verify`; 0 reads in this one; None: one a CPU
        first: records shown
        regions: image DB that a text DB is checked against
        boxes: which boxes of a layout `all` are counted
    """

    verify: bool = False
    workers: int | None = None
    first: int = 3
    regions: str | None = None
    boxes: BoxOptions = field(default_factory=BoxOptions)


@dataclass
class Checked:
    """What reading some records showed.

    Args:
        problems: what is wrong with them
        sizes: histogram of the boxes used, or of word pieces
        digests: (name, digest of the content): equal ones are duplicates
        unknown: word pieces that the vocabulary lacked
    """

    problems: Findings = field(default_factory=Findings)
    sizes: Counter[int] = field(default_factory=Counter)
    digests: list[tuple[str, bytes]] = field(default_factory=list)
    unknown: int = 0

    def merge(self, other: Checked) -> None:
        self.problems.merge(other.problems)
        self.sizes += other.sizes
        self.digests += other.digests
        self.unknown += other.unknown


def check_records(
    report: Report, check: Callable[[list], Checked], jobs: list, unit: str, options: InspectionOptions
) -> Checked:
    """`check` over all jobs with `verify`, else over a sample; the report gets the problems and how much was read."""
    workers = (os.cpu_count() if options.workers is None else options.workers) if options.verify else 0
    total = len(jobs)
    if not options.verify:
        jobs = jobs[:: max(1, -(-total // SAMPLE))]
    done = check_all(check, jobs, report.path, unit, workers, show_bar=options.verify)
    report.problems.merge(done.problems)
    report.facts["records read"] = "all" if len(jobs) == total else f"{len(jobs):,} of {total:,}; --verify reads all"
    return done


def check_all(
    check: Callable[[list], Checked], jobs: list, name: str, unit: str, workers: int = 0, show_bar: bool = True
) -> Checked:
    """`check` over all jobs, a chunk at a time, in `workers` processes (0: in this one), with a progress bar.

    Raises:
        BadInput: a worker died of what it read.
    """
    size = 64 if unit == "img" else 512
    chunks = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    done = Checked()
    with ProgressBar(what=name, total=len(jobs), unit=unit, show=show_bar) as bar:
        for chunk, checked in zip(chunks, _checked_chunks(check, chunks, min(workers, len(chunks)), name), strict=True):
            done.merge(checked)
            bar.update(len(chunk))
    return done


def _checked_chunks(check, chunks: list[list], workers: int, name: str) -> Iterator[Checked]:
    if workers < 1:
        yield from map(check, chunks)
        return
    # spawned, so that each worker opens the database itself and the map that a damaged page ruins is its own
    try:
        with worker_pool(workers, "spawn") as pool:
            with starting_workers():
                found = pool.map(check, chunks)
            yield from found
    except BrokenProcessPool:
        raise BadInput(f"{name}: a process died reading it: the LMDB is damaged, or memory ran out; copy the database again") from None


def duplicates(digests: list[tuple[str, bytes]]) -> Iterator[str]:
    """Pairs of names whose contents are equal."""
    seen: dict[bytes, str] = {}
    for name, digest in digests:
        if seen.setdefault(digest, name) != name:
            yield f"{seen[digest]} and {name}"


# ---- LMDBs that may be damaged ---------------------------------------------------------------------------------------


def own_transaction(folder: Path) -> lmdb.Transaction:
    """A read transaction that nobody else uses: a damaged page ends the transaction that met it."""
    return open_env(folder).begin(buffers=True)


def expected_sums(folder: Path, keys: Sequence[str], report: Report) -> list[int]:
    """The checksums that records should have, 0 where nothing says it; the report gets what there is of them, and what is gone.

    Args:
        keys: of all stored records
    """
    sums = read_sums(folder, own_transaction(folder))
    report.facts["checksums"] = "none" if sums is None else f"{len(sums):,}, in {SUMS_FILE}"
    if sums is None:
        if not is_there(folder / SUMS_FILE):
            say_once(f"{folder}: has no {SUMS_FILE}, which databases made here have: whether its records are what was written is not known")
        return [0] * len(keys)
    hashes = np.array([hash_of_key(key.encode()) for key in keys], np.uint64)
    if gone := sums.num_absent(hashes):
        report.problems.add("records that were written and are not stored", str(folder), gone)
    return sums.of(hashes).tolist()


def walked_keys(folder: Path, listed: list[str], problems: Findings) -> list[str]:
    """The keys of an LMDB; those that are `listed` elsewhere when a damaged page ends the walk over them."""
    try:
        return [bytes(key).decode(errors="replace") for key in own_transaction(folder).cursor().iternext(values=False)]
    except lmdb.Error as error:
        if not listed:
            raise BadInput(f"{folder}: its keys cannot be read ({error}); copy the database again") from None
        problems.add("damaged pages", f"{folder}: its keys cannot be walked ({error}); copy the database again")
        return listed


def file_size(folder: Path) -> str:
    """Size of an LMDB, as printed."""
    size = (folder / "data.mdb").stat().st_size
    return f"{size / 1e6:,.1f} MB"
