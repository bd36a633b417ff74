#!/usr/bin/env python
"""Say what a database is, and what is wrong with it.

python scripts/inspect_db.py db/regions                        # a folder with feat_*, or one feat_* folder
python scripts/inspect_db.py db/captions/train --regions db/regions --verify
python scripts/inspect_db.py index/img --verify --json report.json
"""

import functools
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

import lmdb

from configs import cli
from data.captions.db import read_caption, read_table
from data.checks.records import (
    Checked,
    Findings,
    check_captions,
    check_images,
    check_vectors,
    duplicates,
    read_all,
    table_problems,
)
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.regions.db import BoxOptions, layout_of, read_keys, stored_arrays, stored_keys
from data.storage.atomic import atomic_file
from data.storage.lmdb_env import open_env, reader

SAMPLE = 256  # records read without --verify
TABLES = ("id2len", "txt2img", "img2txts", "meta")


@dataclass
class Options:
    """Say what a database is and what is wrong with it: image DB, text DB or feature index. Status 2 for any problem.

    Args:
        path: folder of the database
        verify: read every record, not a sample
        workers: processes that read with --verify; 0 reads in this one; null: one a CPU
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


@dataclass
class Report:
    """What one database is.

    Args:
        facts: name -> value, as printed
        histograms: what is counted -> (value -> how many)
        problems: what is wrong
        notes: what is worth knowing and not wrong
    """

    path: str
    kind: str
    facts: dict[str, str | int] = field(default_factory=dict)
    histograms: dict[str, Counter] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)
    problems: Findings = field(default_factory=Findings)
    notes: Findings = field(default_factory=Findings)


# ---- reading ---------------------------------------------------------------------------------------------------------


def _read(report: Report, check: Callable[[list], Checked], jobs: list, unit: str, options: Options) -> Checked:
    """`check` over all jobs with --verify, else over a sample."""
    workers = (os.cpu_count() if options.workers is None else options.workers) if options.verify else 0
    total = len(jobs)
    if not options.verify:
        jobs = jobs[:: max(1, -(-total // SAMPLE))]
    done = read_all(check, jobs, report.path, unit, workers, show_bar=options.verify)
    report.problems.merge(done.problems)
    report.facts["records read"] = "all" if len(jobs) == total else f"{len(jobs):,} of {total:,}; --verify reads all"
    return done


def _transaction(folder: Path) -> lmdb.Transaction:
    """One of its own: a damaged page ends the transaction that met it."""
    return open_env(folder).begin(buffers=True)


def _stored(folder: Path, listed: list[str], problems: Findings) -> list[str]:
    """The keys of an LMDB; those that are `listed` elsewhere when a damaged page ends the walk over them."""
    try:
        return [bytes(key).decode(errors="replace") for key in _transaction(folder).cursor().iternext(values=False)]
    except lmdb.Error as error:
        if not listed:
            raise BadInput(f"{folder}: its keys cannot be read ({error}); copy the database again") from None
        problems.add("damaged pages", f"{folder}: its keys cannot be walked ({error}); copy the database again")
        return listed


def _size(folder: Path) -> str:
    size = (folder / "data.mdb").stat().st_size
    return f"{size / 1e6:,.1f} MB"


# ---- image databases -------------------------------------------------------------------------------------------------


def inspect_images(folder: Path, options: Options) -> Report:
    """One LMDB folder of an image DB, with its nbb file."""
    boxes, compressed = layout_of(folder.name)
    report = Report(str(folder), "image DB")
    rule = boxes or options.boxes
    chosen = f"those with confidence above {rule.conf_th}, at least {rule.min_bb}, at most {rule.max_bb}"
    if rule.conf_th == -1:
        chosen = f"the first {rule.num_bb}"
    report.facts["layout"] = "compressed (npz)" if compressed else "plain (msgpack)"
    report.facts["boxes used"] = chosen + (" (--boxes)" if boxes is None else "")
    keys = _image_keys(folder, report.problems)
    report.facts |= {"records": len(keys), "size": _size(folder)}
    counts = _box_counts(folder, boxes, keys, report)
    widths = None
    for key in keys:
        try:
            arrays = stored_arrays(_transaction(folder), folder, key, compressed)
            widths = arrays["features"].shape[1], arrays["soft_labels"].shape[1] if "soft_labels" in arrays else 0
            break
        except (BadInput, IndexError):
            continue  # reported below
    if widths:
        report.facts["feature width"], report.facts["soft labels"] = widths[0], widths[1] or "none"
    check = functools.partial(check_images, folder=folder, compressed=compressed, boxes=rule, widths=widths)
    done = _read(report, check, [(key, counts.get(key)) for key in keys], "img", options)
    report.histograms["boxes used"] = done.sizes
    report.problems.add_all("pictures with equal features", duplicates(done.digests))
    for key in keys[: options.first]:
        try:
            report.first.append(
                _picture_line(key, counts.get(key), stored_arrays(_transaction(folder), folder, key, compressed))
            )
        except (BadInput, ValueError, IndexError):
            report.first.append(f"{key}: damaged")
    return report


def _image_keys(folder: Path, problems: Findings) -> list[str]:
    try:
        keys = read_keys(folder)
    except (BadInput, UnicodeDecodeError, lmdb.Error) as error:
        problems.add("a bad key list", str(error))
        keys = []
    stored = [key for key in _stored(folder, keys, problems) if key != "__keys__"]
    keys = keys or stored
    problems.add_all("keys of __keys__ that are not stored", sorted(set(keys) - set(stored)))
    problems.add_all("stored keys that __keys__ lacks", sorted(set(stored) - set(keys)))
    problems.add_all("keys that __keys__ lists twice", (key for key, n in Counter(keys).items() if n > 1))
    problems.add_all("keys that do not end in .npz", (key for key in keys if not key.endswith(".npz")))
    if not keys:
        raise BadInput(f"{folder}: the database is empty; extract region features into it first")
    have = set(stored)
    return [key for key in dict.fromkeys(keys) if key in have]


def _box_counts(folder: Path, boxes: BoxOptions | None, keys: list[str], report: Report) -> dict[str, int | None]:
    """What the nbb file says, if there is one to be read."""
    if boxes is None:
        for path in sorted(folder.parent.glob("nbb_*.json")):
            if not list(folder.parent.glob(path.stem.replace("nbb", "feat", 1) + "*/data.mdb")):
                kind = "box-count files that keep this layout from being read"
                report.problems.add(kind, f"{path}: stands without {path.stem.replace('nbb', 'feat', 1)}; delete it")
        return {}
    if boxes.conf_th == -1:
        return {}
    path = folder.parent / (folder.name.removesuffix("_compressed").replace("feat", "nbb", 1) + ".json")
    report.facts["box counts"] = path.name
    if not path.exists():
        report.facts["box counts"] += " is missing: counted from the confidences whenever the database is opened"
        report.problems.add("a missing nbb file", str(path))
        return {}
    try:
        counts = read_table(path.parent, path.name)
    except BadInput as error:
        report.problems.add("a bad nbb file", str(error))
        return {}
    numbers = {key: count for key, count in counts.items() if isinstance(count, int) and count > 0}
    report.problems.add_all(
        "box counts that are no positive number",
        (f"{path.name}: {key!r} has {counts[key]!r}" for key in counts if key not in numbers),
    )
    report.problems.add_all(
        "keys that the nbb file lacks", (f"{path.name}: {key!r}" for key in keys if key not in counts)
    )
    report.problems.add_all("keys of the nbb file that are not stored", sorted(counts.keys() - set(keys)))
    return numbers


def _picture_line(key: str, count: int | None, arrays: dict) -> str:
    rows = len(arrays["features"])
    box = " ".join(f"{value:.3f}" for value in arrays["norm_bb"][0])
    line = f"{key}: {rows if count is None else min(count, rows)} of {rows} boxes; first: confidence {arrays['conf'][0]:.3f}, box {box}"
    return line + (f", label {int(arrays['soft_labels'][0].argmax())}" if "soft_labels" in arrays else "")


# ---- text databases --------------------------------------------------------------------------------------------------


def inspect_captions(folder: Path, options: Options) -> Report:
    """A text DB, with its tables."""
    report = Report(str(folder), "text DB")
    tables = {name: read_table(folder, f"{name}.json") for name in TABLES}
    tables["txt2lang"] = read_table(folder, "txt2lang.json") if (folder / "txt2lang.json").exists() else {}
    stored = _stored(folder, list(tables["id2len"]), report.problems)
    lengths, languages, meta = tables["id2len"], tables["txt2lang"], tables["meta"]
    if not stored:
        raise BadInput(f"{folder}: the database is empty; build it from a split that has captions")
    have = set(stored)
    report.problems.merge(table_problems(tables, have))
    per_language = Counter(languages.values())
    report.facts |= {
        "records": len(stored),
        "pictures": len(tables["img2txts"]),
        "size": _size(folder),
        "languages": ", ".join(f"{name} {n:,}" for name, n in per_language.items()) or "not stored (no txt2lang.json)",
        "made of": ", ".join(map(str, meta.get("annotations", []))),
        "vocabulary": f"{meta.get('bert', 'not named')}, v_range {meta.get('v_range')}",
        "special ids": ", ".join(f"{n} {meta[n]}" for n in ("PAD", "UNK", "CLS", "SEP", "MASK") if n in meta),
        "tokenizer": "stored" if (folder / "tokenizer").is_dir() else "not stored",
    }
    jobs = [(i, (lengths.get(i), tables["txt2img"].get(i), languages.get(i))) for i in sorted(stored)]
    done = _read(report, functools.partial(check_captions, folder=folder, meta=meta), jobs, "caption", options)
    report.facts["unknown pieces"] = f"{done.unknown:,} of {sum(n * c for n, c in done.sizes.items()):,} read"
    report.histograms["captions of a picture"] = Counter(len(captions) for captions in tables["img2txts"].values())
    report.histograms["word pieces of a caption"] = Counter(n for n in lengths.values() if isinstance(n, int))
    report.notes.add_all("captions of one picture with equal words", duplicates(done.digests))
    if options.regions:
        _check_pictures(folder, tables, options.regions, report)
    for caption_id in itertools.islice((i for i in lengths if i in have), options.first):
        report.first.append(_caption_line(folder, caption_id, languages.get(caption_id)))
    return report


def _check_pictures(folder: Path, tables: dict[str, dict], regions: str, report: Report) -> None:
    path = Path(regions)
    keys = set(read_keys(path)) if layout_of(path.name) and (path / "data.mdb").exists() else stored_keys(path)
    missing = (
        f"{folder.name}: caption {i!r} is about {key!r}" for i, key in tables["txt2img"].items() if key not in keys
    )
    report.problems.add_all(f"captions whose picture is not in {regions}", missing)
    without = sorted(keys - tables["img2txts"].keys())
    report.notes.add_all(f"pictures of {regions} without captions here", without)
    report.facts["pictures found"] = (
        f"{len(keys & tables['img2txts'].keys()):,} of {len(tables['img2txts']):,} in {regions}"
    )


def _caption_line(folder: Path, caption_id: str, language: str | None) -> str:
    try:
        record = read_caption(_transaction(folder), folder, caption_id)
    except BadInput:
        return f"{caption_id}: damaged"
    words = record.get("raw") or " ".join(record.get("toked_caption") or map(str, record["input_ids"]))
    return f"{caption_id}{f' [{language}]' if language else ''} {record['img_fname']}: {words}"


# ---- feature indexes -------------------------------------------------------------------------------------------------


def inspect_index(folder: Path, options: Options) -> Report:
    """A feature index."""
    index = EmbeddingIndex(folder)
    report = Report(str(folder), f"feature index of {'images' if index.kind == 'img' else 'captions'}")
    names = ("version", "count", "dim", "dtype", "rows_per_block", "max_norm", "model", "data")
    report.facts |= {name: index.header[name] for name in names if name in index.header}
    report.facts |= {"size": _size(folder), "created": json.dumps(index.header.get("created"))}
    done = _read(report, functools.partial(check_vectors, folder=folder), list(range(index.count)), "row", options)
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


# ---- which kind, printing --------------------------------------------------------------------------------------------


def inspect(path: Path, options: Options) -> list[Report]:
    """The reports of one database; of an image DB one for each of its LMDB folders.

    Raises:
        BadInput: nothing that this command knows, a truncated LMDB, a missing or bad JSON table.
    """
    folders = sorted(p.parent for p in path.glob("*/data.mdb")) if path.is_dir() else []
    if (path / "data.mdb").exists():
        named = path if layout_of(path.name) else path.resolve()  # "." has no name
        if layout_of(named.name):
            return [inspect_images(named, options)]
        if any((path / f"{name}.json").exists() for name in TABLES):
            return [inspect_captions(path, options)]
        if reader(path).get(b"header") is not None:
            return [inspect_index(path, options)]
        keys = ", ".join(_stored(path, [], Findings())[:3])
        raise BadInput(
            f"{path}: an LMDB, but no image DB (by its name), text DB (id2len.json and others) or feature index "
            f"(key header); its first keys are {keys or 'none'}"
        )
    images = [folder for folder in folders if layout_of(folder.name)]
    if images:
        reports = [inspect_images(folder, options) for folder in images]
        for folder in sorted(set(folders) - set(images)):
            reports[0].notes.add("folders of another name, not read", str(folder))
        return reports
    if folders:
        raise BadInput(f"{path}: holds databases, give one of them: {', '.join(str(folder) for folder in folders)}")
    found = "a file" if path.is_file() else "no such folder" if not path.exists() else None
    found = found or f"a folder with {', '.join(sorted(p.name for p in path.iterdir())[:5]) or 'nothing'}"
    raise BadInput(f"{path}: found {found}; expected the folder of an image DB, a text DB or a feature index")


def bars(counts: Counter, width: int = 40, most: int = 20) -> list[str]:
    """A histogram in text: one line a value, or a range of values when there are more than `most`."""
    low, high = min(counts), max(counts)
    step = -(-(high - low + 1) // most)
    bins = Counter()
    for value, n in counts.items():
        bins[(value - low) // step] += n
    lines = []
    for i in range((high - low) // step + 1):
        start = low + i * step
        name = str(start) if step == 1 else f"{start}-{start + step - 1}"
        lines.append(f"{name:>9} {'#' * -(-bins[i] * width // max(bins.values())):{width}} {bins[i]:,}")
    return lines


def show(report: Report) -> None:
    """Print a report."""
    print(f"{report.path}: {report.kind}")
    for name, value in report.facts.items():
        print(f"  {name:15} {f'{value:,}' if isinstance(value, int) else value}")
    for name, counts in report.histograms.items():
        if counts:
            mean = sum(value * n for value, n in counts.items()) / counts.total()
            print(f"  {name}: min {min(counts)}, mean {mean:.1f}, max {max(counts)}")
            print("\n".join(bars(counts)))
    if report.first:
        print("  first records", *report.first, sep="\n    ")
    for title, findings in (("note", report.notes), ("problem", report.problems)):
        for kind, count in findings.counts.items():
            print(f"  {title}: {kind}: {count:,}", *findings.examples[kind], sep="\n    ")
    if not report.problems.counts:
        print("  nothing is wrong" + ("" if report.facts["records read"] == "all" else " with what was read"))


def as_json(report: Report) -> dict:
    """The report as plain values."""
    found = {
        name: {kind: {"count": n, "examples": findings.examples[kind]} for kind, n in findings.counts.items()}
        for name, findings in (("problems", report.problems), ("notes", report.notes))
    }
    return vars(report) | {"histograms": {k: dict(sorted(v.items())) for k, v in report.histograms.items()}} | found


def main(options: Options) -> None:
    reports = inspect(Path(options.path), options)
    if options.regions and reports[0].kind != "text DB":
        raise BadInput(f"{options.path}: found {reports[0].kind}, but --regions is for a text DB; leave it out")
    for report in reports:
        show(report)
    if options.json:
        with atomic_file(options.json) as partial:
            content = {
                "path": options.path,
                "verify": options.verify,
                "databases": [as_json(report) for report in reports],
            }
            partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    kinds = [kind for report in reports for kind in report.problems.counts]
    total = sum(report.problems.counts.total() for report in reports)
    if kinds:
        raise BadInput(f"{options.path}: {total:,} problem{'s' * (total > 1)} ({'; '.join(kinds)})")


if __name__ == "__main__":
    cli.run(main, Options, positional=("path",))
