"""Databases of any size that hold all their tables and next to no records, for benchmarks of the tables."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.captions.writer import pack_record
from data.errors import BadInput
from data.progress import ProgressBar
from data.regions.codec import encode_plain
from data.storage.lmdb_writer import LmdbWriter
from data.storage.text_files import read_json, write_json

FEATURES = "feat_th0.2_max100_min10"
COUNTS = "nbb_th0.2_max100_min10.json"


def caption_id(n: int) -> str:
    return f"{n:09d}#{n % 7}"


def image_key(n: int) -> str:
    return f"synthetic_{n:012d}.npz"


def make_synthetic_databases(root: Path, total: int, images: int) -> None:
    """Write a text DB ``txt`` and an image DB ``img`` in the original's layout, where there are none of this size.

    They hold all their tables, and one record of each kind; each picture has one run of captions.

    Args:
        total: captions
        images: pictures they are about

    Raises:
        BadInput: databases of others stand there.
    """
    try:
        if read_json(root / "made.json", expected=list) == [total, images]:
            return
    except BadInput:
        pass
    for name in ("txt", "img"):
        if (root / name).exists() and not (root / "made.json").exists():
            raise BadInput(f"{root / name}: was not made by this benchmark, which would replace it; choose another folder")
    write_json(root / "made.json", [])  # whatever is half written from here on is the benchmark's
    for name in ("txt", "img"):
        shutil.rmtree(root / name, ignore_errors=True)
    image_of = np.arange(total) * images // total
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.poisson(12, total), 3, 60)
    boxes = rng.integers(10, 101, images)
    with LmdbWriter(root / "txt") as writer:
        ids = [5, 6, 7]
        writer.put(caption_id(0).encode(), pack_record({"input_ids": ids, "img_fname": image_key(0)}))
        starts = np.searchsorted(image_of, np.arange(images + 1)).tolist()
        fields: dict[str, tuple[int, Callable[[int], str]]] = {
            "id2len.json": (total, lambda n: f'"{caption_id(n)}": {lengths[n]}'),
            "txt2img.json": (total, lambda n: f'"{caption_id(n)}": "{image_key(image_of[n])}"'),
            "txt2lang.json": (total, lambda n: f'"{caption_id(n)}": "{("en", "de")[n % 5 == 0]}"'),
            "img2txts.json": (images, lambda k: _entry(k, range(starts[k], starts[k + 1]))),
        }
        for name, (rows, entry) in fields.items():
            _write_json(writer.partial / name, rows, entry)
        writer.write_file("meta.json", json.dumps({"CLS": 2, "SEP": 3, "MASK": 4, "UNK": 1, "v_range": [5, 100]}))
    rows = {"features": (100, 4), "norm_bb": (100, 6), "conf": (100,)}
    with LmdbWriter(root / "img" / FEATURES) as writer:
        record = encode_plain({name: np.ones(shape, "<f2") for name, shape in rows.items()})
        writer.put(image_key(0).encode(), record)
        writer.put(b"__keys__", json.dumps([image_key(k) for k in range(images)]).encode())
    _write_json(root / "img" / COUNTS, images, lambda k: f'"{image_key(k)}": {boxes[k]}')
    write_json(root / "made.json", [total, images])


def _entry(k: int, captions: range) -> str:
    return f'"{image_key(k)}": {json.dumps([caption_id(n) for n in captions])}'


def _write_json(path: Path, rows: int, entry: Callable[[int], str]) -> None:
    with open(path, "w", encoding="utf-8") as file, ProgressBar(what=path.name, total=rows, unit="row") as bar:
        for start in range(0, rows, 10_000):
            part = range(start, min(start + 10_000, rows))
            file.write(("{" if start == 0 else ", ") + ", ".join(map(entry, part)))
            bar.update(len(part))
        file.write("}")
