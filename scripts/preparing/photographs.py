"""The regions of own photographs: with an extractor that is chosen or given, or as those of a checkpoint's training."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import BadInput
from data.regions.writer import is_extracted
from data.storage.processes import run_command

if TYPE_CHECKING:
    from model.retrieval.photo_index import PhotoOptions

ROOT = Path(__file__).resolve().parents[2]
OF_A_CHECKPOINT = ("workers", "device", "weights", "image-key")  # what is left to be said where a checkpoint says its extractor


def extract_with(extractor: str | None, photos: str, regions: Path, more: Sequence[str]) -> None:
    """Extract regions with scripts/extract_regions.py, unless they are there.

    Args:
        extractor: None: the best for photographs that can run here
        more: its other options, NAME=VALUE
    """
    if is_extracted(regions):
        print(f"{regions}: is there already and used as it is, without a look at --photos and --extract; delete it to extract regions again")
        return
    from model.extractors.choice import choose_extractor  # imports torch, which is slow

    words = ["--photos", photos, "--out", str(regions), "--extractor", extractor or choose_extractor(more)]
    run_script("scripts/extract_regions.py", words + [part for word in more for part in spell_option(word)])


def extract_as(checkpoint: str, photos: str, regions: Path, more: Sequence[str]) -> None:
    """Extract regions as those that a checkpoint was trained on, where they are absent or photographs changed."""
    from model.retrieval.own_pictures import OwnPictures  # both import torch, which is slow
    from model.retrieval.photo_index import extract_photos

    options = photo_options(more)
    extract_photos(photos, OwnPictures(checkpoint, options.weights, options.device), regions, options)


def index_as(checkpoint: str, photos: str, out: Path, more: Sequence[str]) -> None:
    """Regions and index of photographs, with a checkpoint."""
    from model.retrieval.photo_index import index_photos  # imports torch, which is slow

    index_photos(photos, checkpoint, out, photo_options(more))


def photo_options(more: Sequence[str]) -> PhotoOptions:
    """NAME=VALUE → `PhotoOptions`."""
    from model.precision import choose_device  # both import torch, which is slow
    from model.retrieval.photo_index import PhotoOptions

    given = {name.removeprefix("--"): value for name, value in map(spell_option, more)}
    other = [name for name in given if name not in OF_A_CHECKPOINT]
    if other:
        raise BadInput(f"--extract {other[0]}: the checkpoint says it; only {', '.join(OF_A_CHECKPOINT)} can be given beside --checkpoint")
    workers = given.get("workers", "2")
    if not workers.isdecimal():
        raise BadInput(f"--extract workers={workers}: expected a number of processes, 0 for this one only")
    key, device = given.get("image-key", "{stem}.npz"), choose_device(given.get("device", "auto"))
    return PhotoOptions(image_key=key, weights=given.get("weights"), workers=int(workers), device=device)


def spell_option(word: str) -> list[str]:
    """``feature-dim=512`` → ``--feature-dim 512``."""
    name, equals, value = word.partition("=")
    if not equals:
        raise BadInput(f"--extract {word}: expected NAME=VALUE, as in feature-dim=512")
    return [f"--{name}", value]


def run_script(script: str, words: Sequence[str]) -> None:
    """Run one of our commands, and stop where it stops."""
    print(f"$ python {script} {shlex.join(words)}", flush=True)
    if run_command([sys.executable, str(ROOT / script), *words]):
        raise BadInput(f"stopped at: python {script} {shlex.join(words)}")
