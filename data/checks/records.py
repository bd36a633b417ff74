"""What is wrong with a stored database: checks of its tables and, record by record, of what it holds.

The functions that read take a chunk of the work and open the database themselves, so that they run in any process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.captions.db import read_caption
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.regions.codec import MEMBERS
from data.regions.db import BoxOptions, count_boxes, stored_arrays
from data.storage.lmdb_env import open_env

EXAMPLES = 3  # named of each kind of problem
_BOX = 4e-3  # a pixel of a small picture, and the rounding of fp16, in units of the picture
_SUM = 1e-2  # of fp16 probabilities
_CONF = 1e-3  # rounding of a confidence near the threshold


@dataclass
class Findings:
    """Problems by kind: how many, and the first few by name."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, example: str, count: int = 1) -> None:
        self.counts[kind] += count
        self.examples.setdefault(kind, []).append(example)
        del self.examples[kind][EXAMPLES:]

    def add_all(self, kind: str, examples: Iterable[str]) -> None:
        for example in examples:
            self.add(kind, example)

    def merge(self, other: Findings) -> None:
        for kind, count in other.counts.items():
            self.counts[kind] += count
            self.examples[kind] = [*self.examples.get(kind, []), *other.examples[kind]][:EXAMPLES]


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


def read_all(
    check: Callable[[list], Checked], jobs: list, name: str, unit: str, workers: int = 0, show_bar: bool = True
) -> Checked:
    """`check` over all jobs, a chunk at a time, in `workers` processes (0: in this one), with a progress bar.

    Raises:
        BadInput: a worker died of what it read.
    """
    size = 512 if unit == "caption" else 64
    chunks = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    done = Checked()
    with tqdm(total=len(jobs), desc=name, unit=unit, disable=not show_bar) as bar:
        for chunk, checked in zip(chunks, _results(check, chunks, min(workers, len(chunks)), name), strict=True):
            done.merge(checked)
            bar.update(len(chunk))
    return done


def _results(check, chunks: list[list], workers: int, name: str) -> Iterator[Checked]:
    if workers < 1:
        yield from map(check, chunks)
        return
    # spawned, so that each worker opens the database itself and the map that a damaged page ruins is its own
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        try:
            yield from pool.map(check, chunks)
        except BrokenProcessPool:
            raise BadInput(
                f"{name}: a process died reading it: the LMDB is damaged, or memory ran out; copy the database again"
            ) from None


def duplicates(digests: list[tuple[str, bytes]]) -> Iterator[str]:
    """Pairs of names whose contents are equal."""
    seen: dict[bytes, str] = {}
    for name, digest in digests:
        if seen.setdefault(digest, name) != name:
            yield f"{seen[digest]} and {name}"


# ---- image databases -------------------------------------------------------------------------------------------------


def check_images(
    chunk: list[tuple[str, int | None]],
    folder: Path,
    compressed: bool,
    boxes: BoxOptions,
    widths: tuple[int, int] | None,
) -> Checked:
    """Read pictures and say what is wrong with them.

    Args:
        chunk: (key, box count of the nbb file; None when it says none)
        folder: the LMDB folder
        boxes: which boxes count
        widths: of features and of soft labels (0: there are none), as other pictures have them
    """
    done = Checked()
    txn = open_env(folder).begin(buffers=True)
    for key, count in chunk:
        try:
            arrays = stored_arrays(txn, folder, key, compressed)
        except BadInput as error:
            done.problems.add("records that cannot be read", str(error))
            txn.abort()  # a damaged page ends the transaction that met it
            txn = open_env(folder).begin(buffers=True)
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


# ---- text databases --------------------------------------------------------------------------------------------------


def check_captions(chunk: list[tuple[str, tuple]], folder: Path, meta: dict) -> Checked:
    """Read captions and say what is wrong with them.

    Args:
        chunk: (caption id, (length, picture key, language) as the tables say; None where they say nothing)
        folder: the text DB
        meta: its ``meta.json``
    """
    done = Checked()
    txn = open_env(folder).begin(buffers=True)
    special = {meta[name]: name for name in ("CLS", "SEP", "MASK", "PAD") if name in meta}
    for caption_id, expected in chunk:
        try:
            record = read_caption(txn, folder, caption_id)
            ids = np.array(record["input_ids"], np.int64).reshape(len(record["input_ids"]))
        except BadInput as error:
            done.problems.add("records that cannot be read", str(error))
            txn.abort()  # a damaged page ends the transaction that met it
            txn = open_env(folder).begin(buffers=True)
            continue
        except (TypeError, ValueError, OverflowError):
            ids = f"input_ids is {str(record['input_ids'])[:60]}, expected a list of numbers"
            done.problems.add("records that cannot be read", f"{folder.name}: caption {caption_id!r}: {ids}")
            continue
        done.sizes[len(ids)] += 1
        done.unknown += int((ids == meta.get("UNK", -1)).sum())
        for kind, detail in caption_problems(record, ids, expected, special):
            done.problems.add(kind, f"{folder.name}: caption {caption_id!r}: {detail}")
        content = str(record["img_fname"]).encode() + b"\0" + ids.tobytes()
        done.digests.append((caption_id, blake2b(content, digest_size=8).digest()))
    return done


def caption_problems(
    record: dict, ids: np.ndarray, expected: tuple, special: dict[int, str]
) -> Iterator[tuple[str, str]]:
    """(Kind, detail) of everything wrong with one caption's record; `expected` as for `check_captions`."""
    length, image, language = expected
    if len(ids) == 0:
        yield "captions without words", "input_ids is empty"
    if length is not None and length != len(ids):
        yield "lengths that disagree with id2len.json", f"{len(ids)} word pieces, id2len.json says {length}"
    if image is not None and image != record["img_fname"]:
        yield "pictures that disagree with txt2img.json", f"img_fname {record['img_fname']!r}, txt2img.json {image!r}"
    if None not in (language, record.get("lang")) and language != record["lang"]:
        yield "languages that disagree with txt2lang.json", f"lang {record['lang']!r}, txt2lang.json {language!r}"
    inside = [special[i] for i in ids.tolist() if i in special]
    if inside:
        yield "special tokens inside captions", f"[{inside[0]}] among its input_ids"
    if len(ids) and ids.min() < 0:
        yield "negative word-piece ids", f"{ids.min()}"


def table_problems(tables: dict[str, dict], stored: set[str]) -> Findings:
    """What is wrong among the JSON tables of a text DB (``id2len, txt2img, img2txts, txt2lang, meta``) and its keys."""
    found = Findings()
    lengths, txt2img, img2txts = tables["id2len"], tables["txt2img"], tables["img2txts"]
    found.add_all("captions of id2len.json that are not stored", (i for i in lengths if i not in stored))
    found.add_all("stored captions that id2len.json lacks", sorted(stored - lengths.keys()))
    found.add_all("captions that txt2img.json lacks", (i for i in lengths if i not in txt2img))
    found.add_all("captions of txt2img.json that id2len.json lacks", (i for i in txt2img if i not in lengths))
    if tables["txt2lang"]:
        found.add_all("captions that txt2lang.json lacks", (i for i in lengths if i not in tables["txt2lang"]))
    back = Counter()
    for image, captions in img2txts.items():
        if not captions:
            found.add("pictures of img2txts.json without captions", image)
        for i in captions:
            back[i] += 1
            if txt2img.get(i) != image:
                found.add(
                    "captions of img2txts.json that txt2img.json gives to another picture",
                    f"caption {i!r} of {image!r}, txt2img.json says {txt2img.get(i)!r}",
                )
    found.add_all("captions that img2txts.json lacks", (i for i in txt2img if i not in back))
    found.add_all("captions that img2txts.json lists twice", (i for i, n in back.items() if n > 1))
    meta = tables["meta"]
    found.add_all(
        "settings that meta.json lacks", (name for name in ("CLS", "SEP", "MASK", "v_range") if name not in meta)
    )
    span = meta.get("v_range", [0, 1])
    if not (
        isinstance(span, list) and len(span) == 2 and all(isinstance(i, int) for i in span) and 0 <= span[0] < span[1]
    ):
        found.add("a bad v_range in meta.json", f"{span!r}, expected [first id, end]")
    else:
        drawn = [name for name in ("CLS", "SEP", "MASK", "UNK", "PAD") if meta.get(name) in range(*span)]
        found.add_all("special tokens inside v_range, drawn as random words", drawn)
    return found


# ---- feature indexes -------------------------------------------------------------------------------------------------


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
        if name not in index or index.row_of(name) != row:
            done.problems.add("ids that lead to another row", where)
    done.digests = list(zip(names, (blake2b(v.tobytes(), digest_size=8).digest() for v in vectors), strict=True))
    return done
