"""Text databases of captions that were chosen, one a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data.annotations.records import Caption
from data.annotations.reports import note_case, warn_of_cases
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.errors import BadInput
from data.regions.db import stored_keys
from data.regions.keys import key_of_image
from data.storage.text_files import read_json


def keep_with_regions(
    captions: list[Caption], regions: Sequence[str], image_key: str, source: str, skip_missing: bool
) -> list[Caption]:
    """The captions whose picture is in one of the image databases.

    Args:
        regions: folders of the image databases
        image_key: makes the key of a picture, see `key_of_image`
        source: annotation file, for messages
        skip_missing: leave the others out and say how many they are, instead of stopping at them
    """
    known = set().union(*(stored_keys(folder) for folder in regions))
    missing = [c for c in captions if key_of_image(c.image, image_key) not in known]
    if missing and not skip_missing:
        first = missing[0]
        raise BadInput(
            f"{source}: caption {first.caption_id} is about {first.image}, whose key "
            f"{key_of_image(first.image, image_key)} is not in {', '.join(regions)} "
            f"({len(missing)} such captions); extract its regions, correct image_key, or use --skip-missing"
        )
    if missing:
        images = len({c.image for c in missing})
        print(f"left out: {len(missing)} captions of {images} pictures that are not in {', '.join(regions)}")
    dropped = set(missing)
    return [c for c in captions if c not in dropped]


def keep_extracted(captions: list[Caption], regions: Path, photos: Path, report: dict) -> list[Caption]:
    """The captions whose picture was extracted; pictures that are absent, bad, or whose key another photo has are noted.

    Args:
        regions: folder of the image DB, with the report of the extraction in it
        photos: folder that the pictures are in
    """
    known, extraction = stored_keys(regions), regions / "report.json"
    bad = read_json(extraction)["bad_photos"] if extraction.is_file() else {}
    pictures = dict.fromkeys(c.image for c in captions)
    missing = {p for p in pictures if key_of_image(p, "{stem}.npz") not in known or str(photos / p) in bad}
    for image in pictures:
        if image in missing:
            note_case(report, "pictures_without_regions", image)
    text = "left out {n:,} pictures that are absent or cannot be read, the first: {first}"
    warn_of_cases(report, "pictures_without_regions", text)
    return [c for c in captions if c.image not in missing]


def write_split_dbs(
    out: str | Path, by_split: dict[str, list[Caption]], tokenizer: CaptionTokenizer, source: str, image_key: str
) -> dict[str, dict]:
    """Write OUT/train, OUT/val ..., and print a line about each → split -> its counts, those of languages with them.

    Raises:
        BadInput: a split has no captions, before anything is written.
    """
    for split, captions in by_split.items():
        if not captions:
            raise BadInput(f"{source}: split {split} is empty; no picture of it is in the image databases")
    counts_of: dict[str, dict] = {}
    for split, captions in by_split.items():
        folder = Path(out, split)
        counts = write_caption_db(folder, captions, tokenizer, [source], image_key)
        languages = Counter(c.language for c in captions)
        print(
            f"{folder}: {counts['captions']:,} captions of {counts['images']:,} pictures, "
            f"{', '.join(f'{n:,} {language}' for language, n in languages.items())}, "
            f"{counts['pieces'] / counts['captions']:.1f} word pieces each, {counts['unknown'] / counts['pieces']:.2%} unknown"
        )
        counts_of[split] = counts | {"languages": dict(languages)}
    return counts_of
