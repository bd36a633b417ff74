"""Image databases: their key lists and box counts, and what can be wrong with a picture's regions."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import lmdb
import numpy as np

from data.captions.db import read_table
from data.checks.records import (
    OTHER_SUM,
    Checked,
    InspectionOptions,
    check_records,
    duplicates,
    expected_sums,
    file_size,
    own_transaction,
    walked_keys,
)
from data.checks.report import Findings, Report
from data.errors import BadInput
from data.regions.codec import MEMBERS
from data.regions.db import BoxOptions, count_boxes, layout_of, read_keys
from data.regions.extractor_record import read_extractor
from data.regions.records import decoded_arrays, stored_arrays, stored_record
from data.storage.record_sums import is_as_written

COPIES = "pictures with equal features"
_BOX = 4e-3  # a pixel of a small picture, and the rounding of fp16, in units of the picture
_SUM = 1e-2  # of fp16 probabilities
_CONF = 1e-3  # rounding of a confidence near the threshold


def inspect_images(folder: Path, options: InspectionOptions) -> Report:
    """One LMDB folder of an image DB, with its nbb file."""
    boxes, compressed = layout_of(folder.name)
    report = Report(str(folder), "image DB")
    rule = boxes or options.boxes
    chosen = f"those with confidence above {rule.conf_th}, at least {rule.min_bb}, at most {rule.max_bb}"
    if rule.conf_th == -1:
        chosen = f"the first {rule.num_bb}"
    report.facts["layout"] = "compressed (npz)" if compressed else "plain (msgpack)"
    report.facts["boxes used"] = chosen + (" (--boxes)" if boxes is None else "")
    try:
        made_by = read_extractor(folder)
        report.facts["extractor"] = made_by.described() if made_by else "not said"
    except BadInput as error:
        report.problems.add("a bad extractor.json", str(error))
    keys, stored = _image_keys(folder, report.problems)
    report.facts |= {"records": len(keys), "size": file_size(folder)}
    sums = dict(zip(stored, expected_sums(folder, stored, report), strict=True))
    counts = _box_counts(folder, boxes, keys, report)
    widths = None
    for key in keys:
        try:
            arrays = stored_arrays(own_transaction(folder), folder, key, compressed)
            widths = arrays["features"].shape[1], arrays["soft_labels"].shape[1] if "soft_labels" in arrays else 0
            break
        except (BadInput, IndexError):
            continue  # reported below
    if widths:
        report.facts["feature width"], report.facts["soft labels"] = widths[0], widths[1] or "none"
    check = functools.partial(check_images, folder=folder, compressed=compressed, boxes=rule, widths=widths)
    done = check_records(report, check, [(key, counts.get(key), sums[key]) for key in keys], "img", options)
    report.histograms["boxes used"] = done.sizes
    report.problems.add_all(COPIES, duplicates(done.digests))
    for key in keys[: options.first]:
        try:
            report.first.append(
                _picture_line(key, counts.get(key), stored_arrays(own_transaction(folder), folder, key, compressed))
            )
        except (BadInput, ValueError, IndexError):
            report.first.append(f"{key}: damaged")
    return report


def _image_keys(folder: Path, problems: Findings) -> tuple[list[str], list[str]]:
    """The keys of the pictures, and those of all that is stored."""
    try:
        keys = read_keys(folder)
    except (BadInput, UnicodeDecodeError, lmdb.Error) as error:
        problems.add("a bad key list", str(error))
        keys = []
    records = walked_keys(folder, keys, problems)
    stored = [key for key in records if key != "__keys__"]
    keys = keys or stored
    problems.add_all("keys of __keys__ that are not stored", sorted(set(keys) - set(stored)))
    problems.add_all("stored keys that __keys__ lacks", sorted(set(stored) - set(keys)))
    problems.add_all("keys that __keys__ lists twice", (key for key, n in Counter(keys).items() if n > 1))
    problems.add_all("keys that do not end in .npz", (key for key in keys if not key.endswith(".npz")))
    if not keys:
        raise BadInput(f"{folder}: the database is empty; extract region features into it first")
    have = set(stored)
    return [key for key in dict.fromkeys(keys) if key in have], records


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


# ---- record by record ------------------------------------------------------------------------------------------------


def check_images(
    chunk: list[tuple[str, int | None, int]],
    folder: Path,
    compressed: bool,
    boxes: BoxOptions,
    widths: tuple[int, int] | None,
) -> Checked:
    """Read pictures and say what is wrong with them.

    Args:
        chunk: (key, box count of the nbb file, or None when it says none, checksum of the record, or 0)
        folder: the LMDB folder
        boxes: which boxes count
        widths: of features and of soft labels (0: there are none), as other pictures have them
    """
    done = Checked()
    txn = own_transaction(folder)
    for key, count, expected in chunk:
        try:
            value = stored_record(txn, folder, key)
            if not is_as_written(value, expected):
                done.problems.add(OTHER_SUM, f"{folder.name}: key {key!r}")
            arrays = decoded_arrays(value, folder, key, compressed)
        except BadInput as error:
            done.problems.add("records that cannot be read", str(error))
            txn.abort()  # a damaged page ends the transaction that met it
            txn = own_transaction(folder)
            continue
        found = list(region_problems(arrays, widths))
        if not any(kind == _SHAPES for kind, _ in found):
            rows = len(arrays["conf"])
            found += count_problems(arrays["conf"], count, boxes)
            done.sizes[min(count, rows) if count is not None else _count(arrays["conf"], boxes)] += 1
            done.digests.append((key, blake2b(arrays["features"].tobytes(), digest_size=8).digest()))
        for kind, detail in found:
            done.problems.add(kind, f"{folder.name}: key {key!r}: {detail}")
    return done


_SHAPES = "arrays of another shape"


def region_problems(arrays: dict[str, np.ndarray], widths: tuple[int, int] | None) -> Iterator[tuple[str, str]]:
    """(Kind, detail) of everything wrong with one picture's `features`, `norm_bb`, `conf` and `soft_labels`."""
    rows = arrays["features"].shape[0] if arrays["features"].ndim == 2 else 0
    features, labels = widths or (arrays["features"].shape[-1], arrays.get("soft_labels", np.empty((0, 0))).shape[-1])
    expected = {"features": (rows, features), "norm_bb": (rows, 6), "conf": (rows,), "soft_labels": (rows, labels)}
    if not labels:
        del expected["soft_labels"]
    shapes = {name: array.shape for name, array in arrays.items()}
    if shapes != expected or rows == 0:
        yield _SHAPES, f"it has {shapes}, expected {expected} with at least one row"
        return
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    for name in MEMBERS[: len(arrays)]:
        bad = int((~np.isfinite(arrays[name])).sum())
        if bad:
            yield f"NaN or infinity in {name}", f"{bad} of {arrays[name].size} values"
            arrays[name][~np.isfinite(arrays[name])] = np.nan  # passes every comparison below: named once is enough
    if not arrays["features"].any():
        yield "features that are all zero", f"{rows} boxes"
    yield from _box_problems(arrays["norm_bb"])
    conf = arrays["conf"]
    bad = (conf < 0) | (conf > 1 + _CONF)
    if bad.any():
        yield "confidences outside 0..1", f"{_first(bad)}: {conf[bad.argmax()]:.4g}"
    if labels:
        sums = arrays["soft_labels"].sum(axis=1)
        bad = (np.abs(sums - 1) > _SUM) | (arrays["soft_labels"] < 0).any(axis=1)
        if bad.any():
            yield "soft labels that are no probabilities", f"{_first(bad)}: they sum to {sums[bad.argmax()]:.4g}"


def _box_problems(norm_bb: np.ndarray) -> Iterator[tuple[str, str]]:
    x1, y1, x2, y2, w, h = norm_bb.T
    inverted = (x2 < x1) | (y2 < y1)
    outside = ((norm_bb < -_BOX) | (norm_bb > 1 + _BOX)).any(axis=1)
    empty = ~inverted & ((x2 == x1) | (y2 == y1) | (w <= 0) | (h <= 0))
    sizes = ~inverted & ((np.abs(x2 - x1 - w) > _BOX) | (np.abs(y2 - y1 - h) > _BOX))
    kinds = {
        "boxes outside the picture": outside,
        "boxes with x2 < x1 or y2 < y1": inverted,
        "boxes without area": empty,
        "boxes whose w, h disagree with their corners": sizes,
    }
    for kind, bad in kinds.items():
        if bad.any():
            values = " ".join(f"{value:.4g}" for value in norm_bb[bad.argmax()])
            yield kind, f"{_first(bad)}: x1 y1 x2 y2 w h = {values}"


def _first(bad: np.ndarray) -> str:
    return f"{int(bad.sum())} of {len(bad)} boxes, the first is box {int(bad.argmax())}"


def _count(conf: np.ndarray, boxes: BoxOptions, shift: float = 0.0) -> int:
    if shift and boxes.conf_th != -1:
        boxes = replace(boxes, conf_th=boxes.conf_th + shift)
    return count_boxes(conf.astype(np.float32), boxes)


def count_problems(conf: np.ndarray, count: int | None, boxes: BoxOptions) -> Iterator[tuple[str, str]]:
    """(Kind, detail) of what is wrong with the number of boxes used, or with which they are."""
    rows = len(conf)
    if boxes.conf_th == -1:
        if rows < boxes.num_bb:
            yield "fewer boxes than the folder's name says", f"{rows} stored, {boxes.num_bb} expected"
        return
    least, most = _count(conf, boxes, _CONF), _count(conf, boxes, -_CONF)
    # UNITER's tools write min_bb for a picture of fewer boxes, which readers trim
    if count is not None and not (least <= count <= most or rows < count == boxes.min_bb):
        expected = str(least) if least == most else f"{least} to {most}"
        yield "box counts that disagree with the stored confidences", f"the nbb file says {count}, expected {expected}"
    used = min(_count(conf, boxes) if count is None else max(count, 0), rows)
    if 0 < used < rows and conf[used:].max() > conf[:used].min():
        yield (
            "boxes left out that are more confident than one used",
            f"{used} of {rows} are used, down to {conf[:used].min():.4g}; left out up to {conf[used:].max():.4g}",
        )
