"""Text databases of captions that were chosen, one a split."""

from __future__ import annotations

import functools
import itertools
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
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
    captions: list[Caption], regions: Sequence[str], image_key: str, source: str, skip_missing: bool, report: dict
) -> list[Caption]:
    """The captions whose picture is in one of the image databases.

    Args:
        regions: folders of the image databases
        image_key: makes the key of a picture, see `key_of_image`
        source: annotation file, for messages
        skip_missing: leave the others out, note them in the report and say how many they are, instead of stopping at them
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
        pictures = Counter(c.image for c in missing)
        for image, count in pictures.items():
            note_case(report, "captions_without_regions", image, count)
        print(f"left out: {len(missing)} captions of {len(pictures)} pictures that are not in {', '.join(regions)}")
    dropped = set(missing)
    return [c for c in captions if c not in dropped]


def keep_extracted(captions: list[Caption], regions: Path, photos: Path, report: dict) -> list[Caption]:
    """The captions whose picture was extracted; pictures that are absent, bad, or whose key another photo has are noted, and so
    are extracted pictures that no caption is about.

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
    for key in sorted(set(known) - {key_of_image(image, "{stem}.npz") for image in pictures}):
        note_case(report, "regions_without_captions", key)
    warn_of_cases(report, "regions_without_captions", f"{{n:,}} pictures of {regions} have no caption, the first: {{first}}")
    return [c for c in captions if c.image not in missing]


def check_keys(captions: Iterable[Caption], image_key: str, source: str) -> None:
    """Raise BadInput, which names both, when two pictures of any splits get one key."""
    pictures: dict[str, Caption] = {}
    for caption in captions:
        key = key_of_image(caption.image, image_key)
        other = pictures.setdefault(key, caption)
        if other.image != caption.image:
            raise BadInput(
                f"{source}: pictures {other.image} (split {other.split}) and {caption.image} (split {caption.split}) both get the "
                f"key {key}; rename one, or tell them apart with --image-key"
            )


def write_split_dbs(
    out: str | Path,
    by_split: dict[str, list[Caption]],
    tokenizer: CaptionTokenizer,
    source: str,
    image_key: str,
    report: dict,
) -> dict[str, dict]:
    """Write OUT/train, OUT/val ..., and print a line about each → split -> its counts, those of languages with them.

    Captions that have no word piece are left out, noted in the report and told.

    Raises:
        BadInput: a split has no captions, or two pictures one key, before anything is written.
    """
    check_keys(itertools.chain.from_iterable(by_split.values()), image_key, source)
    for split, captions in by_split.items():
        if not captions:
            raise BadInput(f"{source}: split {split} is empty; no picture of it is in the image databases")
    counts_of: dict[str, dict] = {}
    for split, captions in by_split.items():
        folder = Path(out, split)
        on_wordless = functools.partial(note_case, report, "captions_without_words")
        counts = write_caption_db(folder, captions, tokenizer, [source], image_key, on_wordless=on_wordless)
        languages = counts.pop("languages")
        print(
            f"{folder}: {counts['captions']:,} captions of {counts['images']:,} pictures, "
            f"{', '.join(f'{n:,} {language}' for language, n in languages.items())}, "
            f"{counts['pieces'] / counts['captions']:.1f} word pieces each, {counts['unknown'] / counts['pieces']:.2%} unknown"
        )
        counts_of[split] = counts | {"languages": languages}
    text = "left out {n:,} captions of which the tokenizer makes no word piece, the first: {first}"
    warn_of_cases(report, "captions_without_words", text)
    return counts_of


def settle_former_splits(out: str | Path, splits: Iterable[str], remove: bool, report: dict) -> None:
    """Say which text databases in OUT are of an earlier build and of no split of this one, and remove them where asked to."""
    splits = set(splits)
    for folder in sorted(Path(out).iterdir()):
        if folder.name in splits or not all((folder / name).is_file() for name in ("data.mdb", "txt2img.json", "meta.json")):
            continue
        if remove:
            shutil.rmtree(folder)
        report.setdefault("former_splits", {})[folder.name] = "removed" if remove else "kept"
        told = "removed" if remove else "kept as it is; --former-splits remove deletes it"
        print(f"warning: {folder}: is of an earlier build, this one has no split {folder.name}; {told}", file=sys.stderr)
