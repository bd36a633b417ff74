"""Feature indexes: their blocks, and each row's vector and id."""

from __future__ import annotations

import functools
import json
from hashlib import blake2b
from pathlib import Path

import numpy as np

from data.checks.records import Checked, InspectionOptions, check_records, duplicates, file_size
from data.checks.report import Report
from data.errors import BadInput
from data.index.reader import EmbeddingIndex


def inspect_index(folder: Path, options: InspectionOptions) -> Report:
    """A feature index."""
    index = EmbeddingIndex(folder)
    report = Report(str(folder), f"feature index of {'images' if index.kind == 'img' else 'captions'}")
    names = ("version", "count", "dim", "dtype", "rows_per_block", "max_norm", "model", "data")
    report.facts |= {name: index.header[name] for name in names if name in index.header}
    report.facts |= {"size": file_size(folder), "created": json.dumps(index.header.get("created"))}
    done = check_records(report, functools.partial(check_vectors, folder=folder), list(range(index.count)), "row", options)
    if options.verify:
        try:
            index.check_num_row_records()
        except BadInput as error:
            report.problems.add("records of rows that are not one an id", str(error))
    if index.count == 0:
        report.problems.add("an empty index", str(folder))
    report.notes.add_all("ids with equal vectors", duplicates(done.digests))
    try:
        report.first = [
            f"row {row}: {name}" for row, name in enumerate(index.ids(range(min(options.first, index.count))))
        ]
    except BadInput as error:
        report.first = [f"damaged: {error}"]
    return report


def check_vectors(chunk: list[int], folder: Path) -> Checked:
    """Read rows of a feature index and say what is wrong with them."""
    done = Checked()
    index = EmbeddingIndex(folder)
    for number in (row // index.header["rows_per_block"] for row in chunk if row % index.header["rows_per_block"] == 0):
        try:
            index.check(number)
        except BadInput as error:
            done.problems.add("blocks that are not what was written", str(error))
    try:
        names, vectors = index.ids(chunk), index.vectors(chunk)
    except Exception as error:  # a missing block is BadInput, a damaged one whatever numpy raises
        where = f"{folder.name}: rows {chunk[0]}..{chunk[-1]}"
        done.problems.add("rows that cannot be read", f"{where}: {error}", len(chunk))
        return done
    norms = np.linalg.norm(vectors, axis=1)
    for row, name, norm in zip(chunk, names, norms, strict=True):
        where = f"{folder.name}: row {row}, {name!r}"
        if not np.isfinite(norm):
            done.problems.add("vectors with NaN or infinity", where)
        elif norm > index.header["max_norm"] * (1 + 1e-5):
            done.problems.add("vectors longer than the header's max_norm", f"{where}: {norm:.6g}")
        elif norm == 0:
            done.problems.add("vectors that are all zero", where)
        if not _leads_to(index, name, row):
            done.problems.add("ids that lead to another row", where)
    done.digests = list(zip(names, (blake2b(v.tobytes(), digest_size=8).digest() for v in vectors), strict=True))
    return done


def _leads_to(index: EmbeddingIndex, name: str, row: int) -> bool:
    try:
        return index.row_of(name) == row
    except BadInput:  # the id is not found, or another stands where it leads to
        return False
