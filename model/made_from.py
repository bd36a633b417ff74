"""What a checkpoint was trained on, as far as it has to be the same again: the regions' extractor, their boxes, the tokenizer.

A run writes it into ``data.json`` of each checkpoint. Checkpoints that were made before, or elsewhere, have no such file, and
nothing is asked of the data that they are used on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from data.batches.pairs import PairDataset
from data.downloads.hub import local_folder
from data.errors import BadInput
from data.notices import say_once
from data.regions.db import BoxChoice, BoxOptions, RegionDB
from data.regions.extractor_record import FILE as EXTRACTOR_FILE
from data.regions.extractor_record import ExtractorRecord, described_apart
from data.storage.contents import file_digest
from data.storage.json_digest import check_digest, with_digest
from data.storage.regular_files import is_there
from data.storage.shapes import shape_of
from data.storage.text_files import read_json, write_json
from model.checkpoints import ABOUT, other_weights

FILE = "data.json"


@dataclass(frozen=True)
class MadeFrom:
    """What a model was trained on.

    Args:
        boxes: of its image DBs
        extractors: of their regions, each once; None among them where a database does not say it
        tokenizer: digest of the captions' tokenizer; None where they carry none
    """

    boxes: BoxOptions
    extractors: tuple[ExtractorRecord | None, ...]
    tokenizer: str | None = None

    def to_json(self) -> dict[str, Any]:
        extractors = [None if each is None else each.to_json() for each in self.extractors]
        return {"boxes": asdict(self.boxes), "extractors": extractors, "tokenizer": self.tokenizer}


def made_from_pairs(datasets: Iterable[PairDataset]) -> MadeFrom:
    """What training on these pairs makes a model from."""
    parts = [part for dataset in datasets for part, _ in dataset.parts]
    extractors: list[ExtractorRecord | None] = []
    for made_by in (part.regions.made_by for part in parts):
        if not any(made_by is each or (each and made_by and each.is_same(made_by)) for each in extractors):
            extractors.append(made_by)
    if len(extractors) > 1:
        names = " and ".join("nobody who says so" if each is None else each.described() for each in extractors)
        say_once(f"the training regions were made by {names}")
    folder = parts[0].captions.tokenizer_folder
    files = [] if folder is None else [path for name in ("tokenizer.json", "vocab.txt") if is_there(path := folder / name)]
    tokenizer = file_digest(files[0]) if files else None
    parts[0].captions.check_current()
    return MadeFrom(parts[0].regions.boxes, tuple(extractors), tokenizer)


def write_made_from(folder: Path, made_from: MadeFrom, fingerprint: str) -> None:
    """Write what the weights of a checkpoint, of this fingerprint, were trained on."""
    write_json(folder / FILE, with_digest({**made_from.to_json(), ABOUT: fingerprint}))


def read_made_from(checkpoint: str | Path) -> MadeFrom | None:
    """What a checkpoint was trained on; None where it does not say so.

    Raises:
        BadInput: the file is damaged.
    """
    path = local_folder(checkpoint) / FILE
    if not is_there(path):
        return None
    shape = shape_of(MadeFrom) | {"tokenizer": (str, None), f"{ABOUT}?": str}
    values = read_json(path, "it says what the model was trained on; copy the file again", shape)
    check_digest(path, values, "copy the checkpoint again")
    if said := other_weights(path, values):
        say_once(said)
    try:
        boxes = BoxOptions(**values["boxes"])
    except TypeError as error:
        raise BadInput(f"{path}: does not say what the model was trained on ({error!r}); copy the file again") from None
    extractors = (None if each is None else ExtractorRecord.from_json(each, path) for each in values["extractors"])
    return MadeFrom(boxes, tuple(extractors), values["tokenizer"])


def check_tokenizer(checkpoint: str | Path) -> None:
    """Refuse a checkpoint that carries another tokenizer than that of the captions it was trained on, where it says which that was.

    Raises:
        BadInput: the tokenizer is another one, or cannot be read.
    """
    kept, folder = read_made_from(checkpoint), local_folder(checkpoint) / "tokenizer"
    files = [path for name in ("tokenizer.json", "vocab.txt") if is_there(path := folder / name)]
    if kept is not None and kept.tokenizer and files and kept.tokenizer not in map(file_digest, files):
        raise BadInput(
            f"{files[0]}: is not the tokenizer of the captions that {checkpoint} was trained on, by its {FILE}: its words would be others; copy "
            "the checkpoint again"
        )


def boxes_for(checkpoint: str | Path, choice: BoxChoice | BoxOptions | None = None) -> BoxOptions:
    """Which boxes a model reads: those that it was trained on, but for what is chosen."""
    if isinstance(choice, BoxOptions):  # all of them
        return choice
    kept = read_made_from(checkpoint)
    return (choice or BoxChoice()).settled(kept.boxes if kept else BoxOptions())


def check_regions(checkpoint: str | Path, regions: RegionDB) -> None:
    """Refuse regions that another extractor made than those that a checkpoint was trained on; say what nothing tells, and
    boxes that are others.

    Raises:
        BadInput: another extractor.
    """
    kept = read_made_from(checkpoint)
    if kept is not None:
        check_made_from(kept, f"{checkpoint} was trained", regions)


def check_made_from(kept: MadeFrom, subject: str, regions: RegionDB) -> None:
    """As `check_regions`; ``subject`` is what the message says of ``kept``."""
    made_by = regions.made_by
    known = [each for each in kept.extractors if each is not None]
    if made_by is None and known:
        say_once(f"{regions.folder}: does not say who made its regions; {subject} on those of {known[0].described()}")
    elif made_by is not None and not any(made_by.is_same(each) for each in known):
        if None not in kept.extractors:
            found, expected = described_apart(made_by, known[0])
            raise BadInput(
                f"{regions.folder}: regions were made by {found}, {subject} on {expected}; extract these pictures with that "
                f"extractor (to take them all the same, remove {regions.folder / EXTRACTOR_FILE})"
            )
        say_once(f"{regions.folder}: regions were made by {made_by.described()}; {subject} on regions that do not say who made them")
    names = [each.name for each in fields(BoxOptions) if getattr(kept.boxes, each.name) != getattr(regions.boxes, each.name)]
    if names:
        now, then = (", ".join(f"{name} {getattr(boxes, name)}" for name in names) for boxes in (regions.boxes, kept.boxes))
        say_once(f"{regions.folder}: read with boxes {now}; {subject} with {then}")
