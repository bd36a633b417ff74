"""The regions of own photographs: with an extractor that is chosen or given, or as those of a checkpoint's training."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import BadInput
from data.regions.writer import is_extracted
from data.storage.processes import run_command

if TYPE_CHECKING:
    from model.extractors.photo_folder import StoredMaker
    from model.retrieval.photo_index import PhotoOptions

ROOT = Path(__file__).resolve().parents[2]
NOT_STORED = ("workers", "device", "weights")  # options of an extraction that the regions do not depend on
OF_A_CHECKPOINT = ("workers", "device", "weights", "image-key")  # what is left to be said where a checkpoint says its extractor


def extract_with(extractor: str | None, photos: str, regions: Path, more: Sequence[str]) -> None:
    """Extract regions with scripts/extract_regions.py; where they are there, those of the photographs that are new or changed since, by
    the extractor of the others.

    Args:
        extractor: None: the best for photographs that can run here
        more: its other options, NAME=VALUE
    """
    # these import torch, which is slow
    from model.extractors import photo_folder
    from model.extractors.choice import choose_extractor
    from model.precision import choose_device

    given = options_of(more)
    if is_extracted(regions):
        photo_folder.settle_states(photos, regions)
    is_kept = photo_folder.is_kept_up_to_date(regions)
    if is_kept or is_extracted(regions):
        maker = photo_folder.StoredMaker(regions, given.get("weights"), choose_device(given.get("device", "auto")))
        if is_kept or extractor is not None or set(given).difference(NOT_STORED):
            check_same_options(maker, regions, extractor, given)
        photo_folder.extract_photos(photos, maker, regions, workers_of(given))
        return
    words = ["--photos", photos, "--out", str(regions), "--extractor", extractor or choose_extractor(more)]
    with photo_folder.states_of_command(photos, regions):
        run_script("scripts/extract_regions.py", words + [part for word in more for part in spell_option(word)])


def check_same_options(maker: StoredMaker, regions: Path, extractor: str | None, given: Mapping[str, str]) -> None:
    """Refuse to add regions to an image DB that would be made otherwise than those that are there."""
    from model.extractors.photo_folder import made_with  # imports torch, which is slow

    record, way_out = maker.record, f"leave that out, give another --out, or delete {regions} to extract all photographs again"
    if extractor not in (None, record.name):
        raise BadInput(f"--extractor {extractor}: {regions} holds regions of {record.described()}; {way_out}")
    known = {"list": None, "compressed": False, "soft_labels": "keep"} | made_with(regions) | vars(maker.boxes) | record.options
    for name, value in given.items():
        if name not in NOT_STORED and not (name in known and is_same_value(value, known[name])):
            found = f"made with {name.replace('_', '-')}={known[name]}" if name in known else f"of {record.described()}"
            raise BadInput(f"--extract {name.replace('_', '-')}={value}: {regions} holds regions {found}; {way_out}")


def is_same_value(word: str, value: object) -> bool:
    """Whether a word of the command line is a value that a report tells: ``.60`` is 0.6."""
    with suppress(ValueError):
        return not isinstance(value, str) and value is not None and float(word) == value
    return word.lower() == str(value).lower()


def extract_as(checkpoint: str, photos: str, regions: Path, more: Sequence[str]) -> None:
    """Extract regions as those that a checkpoint was trained on, where they are absent or photographs changed."""
    from model.extractors.photo_folder import extract_photos  # both import torch, which is slow
    from model.retrieval.own_pictures import OwnPictures

    options = photo_options(more)
    own = OwnPictures(checkpoint, options.weights, options.device)
    extract_photos(photos, own, regions, options.workers, options.image_key)


def index_as(checkpoint: str, photos: str, out: Path, more: Sequence[str]) -> None:
    """Regions and index of photographs, with a checkpoint."""
    from model.retrieval.photo_index import index_photos  # imports torch, which is slow

    index_photos(photos, checkpoint, out, photo_options(more))


def photo_options(more: Sequence[str]) -> PhotoOptions:
    """NAME=VALUE → `PhotoOptions`."""
    from model.precision import choose_device  # both import torch, which is slow
    from model.retrieval.photo_index import PhotoOptions

    given = options_of(more)
    other = [name.replace("_", "-") for name in given if name.replace("_", "-") not in OF_A_CHECKPOINT]
    if other:
        raise BadInput(f"--extract {other[0]}: the checkpoint says it; only {', '.join(OF_A_CHECKPOINT)} can be given beside --checkpoint")
    device = choose_device(given.get("device", "auto"))
    return PhotoOptions(image_key=given.get("image_key"), weights=given.get("weights"), workers=workers_of(given), device=device)


def options_of(more: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE → values by names, which are spelled as settings are."""
    return {name.removeprefix("--").replace("-", "_"): value for name, value in map(spell_option, more)}


def workers_of(given: Mapping[str, str]) -> int:
    """How many processes extract."""
    workers = given.get("workers", "2")
    if not (workers.isdecimal() and len(workers) < 10):
        raise BadInput(f"--extract workers={workers}: expected a number of processes, 0 for this one only")
    return int(workers)


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
