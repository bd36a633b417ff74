"""Databases whose records are all there, for benchmarks of reading; and how fast checkouts of this repository read them."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

from data.captions.writer import pack_record
from data.errors import BadInput
from data.progress import ProgressBar
from data.regions.db import BoxOptions, Regions
from data.regions.writer import RegionWriter
from data.storage.lmdb_writer import LmdbWriter
from data.storage.processes import ends_with_this
from data.storage.regular_files import real_path
from data.storage.text_files import read_json, write_json
from scripts.benchmarking.measuring import spread
from scripts.benchmarking.synthetic_databases import image_key

READER = Path(__file__).with_name("reader.py")
CASES = {  # boxes of an image; bottom-up attention's have 10 to 100, 36 in the mean
    "36 boxes, plain": (36, False),
    "36 boxes, compressed": (36, True),
    "10 to 100 boxes, plain": (None, False),
    "10 to 100 boxes, compressed": (None, True),
}


def make_whole_databases(root: Path, images: int) -> None:
    """Write for each case an image DB of 2,048 features and 1,601 soft labels, and one text DB of a caption for each image."""
    try:
        if read_json(root / "whole.json", expected=list) == [images, *CASES]:
            return
    except BadInput:
        pass
    (root / "whole.json").unlink(missing_ok=True)  # what is left half-way must not look whole
    rng = np.random.default_rng(0)
    with LmdbWriter(root / "whole" / "txt") as writer:
        lengths, keys = np.clip(rng.poisson(12, images), 3, 60).tolist(), [image_key(n) for n in range(images)]
        for n, length in enumerate(lengths):
            words = {"input_ids": rng.integers(5, 20_000, length).tolist(), "toked_caption": ["word"] * length}
            writer.put(str(n).encode(), pack_record(words | {"img_fname": keys[n]}))
        writer.write_file("id2len.json", json.dumps({str(n): length for n, length in enumerate(lengths)}))
        writer.write_file("txt2img.json", json.dumps({str(n): key for n, key in enumerate(keys)}))
        writer.write_file("img2txts.json", json.dumps({key: [str(n)] for n, key in enumerate(keys)}))
        writer.write_file("meta.json", json.dumps({"CLS": 2, "SEP": 3, "MASK": 4, "UNK": 1, "v_range": [5, 20_000]}))
    for name, (boxes, compressed) in CASES.items():
        shutil.rmtree(root / "whole" / name, ignore_errors=True)
        with RegionWriter(root / "whole" / name, BoxOptions(), compressed) as writer:
            for key in ProgressBar(keys, name, unit="img"):
                writer.add(key, _random_regions(boxes or int(np.clip(rng.gamma(2.2, 12) + 10, 10, 100)), rng))
    write_json(root / "whole.json", [images, *CASES])


def _random_regions(boxes: int, rng: np.random.Generator) -> Regions:
    """Of a detector's kind: half of the features are zero, soft labels are peaked."""
    labels = np.exp(3 * rng.standard_normal((boxes, 1601), np.float32))
    arrays = (
        np.maximum(rng.standard_normal((boxes, 2048), np.float32), 0),
        rng.random((boxes, 6)),
        np.sort(rng.uniform(0.3, 1, boxes))[::-1],
        labels / labels.sum(axis=1, keepdims=True),
    )
    return Regions(*(array.astype(np.float16) for array in arrays))


def measure_reading(root: Path, batch: int, rounds: int, seconds: float, checkouts: dict[str, Path]) -> dict[str, dict]:
    """Examples a second of one process of one thread that reads and collates, round after round, the checkouts in turns.

    Args:
        checkouts: name → folder of this repository, of any time since 3c6eea6

    Returns: case → checkout → spread; GB of features a second, beside those that this process copies from memory to memory;
        and how many times as fast the first checkout is as each other

    Raises:
        BadInput: a checkout cannot read them.
    """
    found: dict[str, dict[str, list]] = {name: {which: [] for which in checkouts} for name in CASES}
    for _ in ProgressBar(range(rounds), "reading", unit="round"):
        for name in CASES:
            for which, folder in checkouts.items():
                words = [sys.executable, READER, real_path(root) / "whole", "txt", name, str(batch), str(seconds)]
                env = os.environ | {"PYTHONPATH": str(real_path(folder)), "OMP_NUM_THREADS": "1"}
                done = subprocess.run(words, env=env, cwd=folder, stdout=subprocess.PIPE, text=True, preexec_fn=ends_with_this())
                if done.returncode:
                    raise BadInput(f"{root / 'whole' / name}: its reader, of {folder}, ended with status {done.returncode}; what it wrote says why")
                found[name][which].append(json.loads(done.stdout))
    first = next(iter(checkouts))
    report: dict[str, dict] = {}
    for name, turns in found.items():
        report[name] = {
            which: {
                "examples_per_s": spread([turn["examples_per_s"] for turn in measured]),
                "gb_per_s": statistics.median(turn["gb_per_s"] for turn in measured),
                "copied_gb_per_s": statistics.median(turn["copied_gb_per_s"] for turn in measured),
                "times_as_fast": spread(
                    [a["examples_per_s"] / b["examples_per_s"] for a, b in zip(turns[first], measured, strict=True)]
                ),
            }
            for which, measured in turns.items()
        }
    return report
