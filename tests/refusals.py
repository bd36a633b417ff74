"""What commands refuse, and how that is said."""

from pathlib import Path

import numpy as np

import eval_itm
import pretrain
import train_itm
from data.regions.db import RegionDB, Regions
from data.regions.writer import RegionWriter
from scripts import build_captions, build_index, search

CONFIGS = {
    pretrain: pretrain.PretrainConfig,
    train_itm: train_itm.CONFIGS,
    eval_itm: eval_itm.EvalConfig,
    build_index: build_index.Options,
    build_captions: build_captions.Options,
    search: search.Options,
}


def the_error(stderr: str) -> str:
    """The one line of an error, and the last; progress bars may stand before it."""
    lines = [line for line in stderr.split("\n") if "error: " in line]
    assert (len(lines) == 1 and stderr.endswith("\n" + lines[0] + "\n")) or stderr == lines[0] + "\n", stderr
    assert lines[0].startswith("error: ") and "Traceback" not in stderr, stderr
    return lines[0]


def says(error: str, *parts) -> bool:
    missing = [str(part) for part in parts if str(part) not in error]
    assert not missing, f"{missing} not in {error!r}"
    return True


def changed_regions(source: Path, out: Path, change) -> Path:
    """A copy of an image DB in which every record went through ``change(key, regions)``; None leaves it out."""
    db = RegionDB(source)
    with RegionWriter(out) as writer:
        for key in db.keys:
            regions = change(key, Regions(*(np.array(x) for x in vars(db[key]).values())))
            if regions is not None:
                writer.add(key, regions)
    return out


def evaluation(small_world, finetuned, out):
    model, captions = ["--checkpoint", finetuned / "best"], ["--captions", small_world / "db/test"]
    return [*model, *captions, "--regions", small_world / "regions", "--out", out]
