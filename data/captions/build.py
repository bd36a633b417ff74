"""Text databases of captions that were chosen, one a split."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from data.annotations.records import Caption
from data.annotations.reports import note_case, warn_of_cases
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import check_replaceable, write_caption_db
from data.errors import BadInput
from data.regions.db import stored_keys
from data.regions.keys import clash_of_keys, key_of_image
from data.regions.pictures import KnownKeys
from data.storage.atomic import remove_folder
from data.storage.own_files import other_part
from data.storage.regular_files import is_there
from data.storage.text_files import read_json


def known_keys(regions: Sequence[str | Path], image_key: str | None) -> KnownKeys:
    """The keys of some image databases; `image_key` as for `KnownKeys`."""
    return KnownKeys(set().union(*(stored_keys(folder) for folder in regions)), regions, image_key)


def keep_with_regions(
    captions: list[Caption], regions: Sequence[str], known: KnownKeys, source: str, skip_missing: bool, report: dict
) -> list[Caption]:
    """The captions whose picture is in one of the image databases.

    Args:
        regions: folders of the image databases
        known: their keys
        source: annotation file, for messages
        skip_missing: leave the others out, note them in the report and say how many they are, instead of stopping at them
    """
    missing = [c for c in captions if known.find(c.image) is None]
    if missing and not skip_missing:
        first, other = missing[0], known.other(missing[0].image)
        key, places = key_of_image(first.image, known.image_key), ", ".join(regions)
        raise BadInput(
            f"{source}: caption {first.caption_id} is about {first.image}, "
            + (f"and the key {key} is {other} in {places} " if other else f"whose key {key} is not in {places} ")
            + f"({len(missing)} such captions); extract its regions, correct image_key, or use --skip-missing"
        )
    if missing:
        pictures = Counter(c.image for c in missing)
        for image, count in pictures.items():
            other = known.other(image)
            note_case(report, "captions_without_regions", f"{image} (its key is {other})" if other else image, count)
        print(f"left out: {len(missing)} captions of {len(pictures)} pictures that are not in {', '.join(regions)}")
    dropped = set(missing)
    return [c for c in captions if c not in dropped]


def keep_extracted(captions: list[Caption], regions: Path, photos: Path, source: str, report: dict) -> list[Caption]:
    """The captions whose picture was extracted; pictures that are absent or bad, or whose key another photo has, are
    noted and told, and so are extracted pictures that no caption is about.

    Args:
        regions: folder of the image DB, with the report of the extraction in it
        photos: folder that the pictures are in
        source: annotation file, for messages

    Raises:
        BadInput: no picture was extracted, or two have one key; names both.
    """
    known, extraction = known_keys([regions], None), regions / "report.json"
    bad = read_json(extraction, "it says what was not extracted", {"bad_photos": dict})["bad_photos"] if is_there(extraction) else {}
    pictures = dict.fromkeys(c.image for c in captions)
    others = {image: other for image in pictures if (other := known.other(image))}
    missing = {image for image in pictures if known.find(image) is None or str(photos / image) in bad}
    for image in pictures:
        if image in others:
            line = f"{image}, whose key {key_of_image(image, known.image_key)} is the picture {others[image]}"
            note_case(report, "other_pictures_of_that_name", line)
        elif image in missing:
            note_case(report, "pictures_without_regions", image)
    text = "left out {n:,} pictures that are absent or cannot be read, the first: {first}"
    warn_of_cases(report, "pictures_without_regions", text)
    for key in sorted(known.keys - {known.find(image) for image in pictures}):
        note_case(report, "regions_without_captions", key)
    warn_of_cases(report, "regions_without_captions", f"{{n:,}} pictures of {regions} have no caption, the first: {{first}}")
    warn_of_cases(report, "other_pictures_of_that_name", "left out {n:,} pictures that are not there, the first: {first}")
    captions = [c for c in captions if c.image not in missing]
    if not captions:
        found = f" (the first: {report['other_pictures_of_that_name']['first'][0]})" if others else ""
        raise BadInput(f"{source}: none of its pictures is in {photos}; names must be those of the files{found}")
    check_keys(captions, known.image_key, source)
    return captions


def check_keys(captions: Iterable[Caption], image_key: str, source: str, known: KnownKeys | None = None) -> None:
    """Raise BadInput, which names both, when two pictures of any splits get one key.

    Args:
        known: keys of image databases; a picture that is not the one that they have under its key does not count
    """
    pictures: dict[str, Caption] = {}
    of_image: dict[str, str] = {}
    for caption in captions:
        if caption.image in of_image:
            continue
        key = of_image[caption.image] = key_of_image(caption.image, image_key)
        if known is not None and known.other(caption.image):
            continue
        other = pictures.setdefault(key, caption)
        if other.image != caption.image:
            clash = clash_of_keys(f"{other.image} (split {other.split})", f"{caption.image} (split {caption.split})", key)
            raise BadInput(f"{source}: {clash}")


def write_split_dbs(
    out: str | Path,
    by_split: dict[str, list[Caption]],
    tokenizer: CaptionTokenizer,
    source: str,
    image_key: str,
    report: dict,
    keys: Mapping[str, str] | None = None,
) -> dict[str, dict]:
    """Write OUT/train, OUT/val ..., and print a line about each → split -> its counts, those of languages with them.

    Captions that have no word piece are left out, noted in the report and told.

    Args:
        keys: picture -> its key, where image databases say it

    Raises:
        BadInput: a split has no captions, or its folder holds what is no text DB, before anything is written.
    """
    for split, captions in by_split.items():
        if not captions:
            raise BadInput(f"{source}: split {split} is empty; no picture of it is in the image databases")
        check_replaceable(Path(out, split))
    counts_of: dict[str, dict] = {}
    for split, captions in by_split.items():
        folder = Path(out, split)
        on_wordless = functools.partial(note_case, report, "captions_without_words")
        counts = write_caption_db(folder, captions, tokenizer, [source], image_key, keys=keys, on_wordless=on_wordless)
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
        other = other_part(folder)
        if is_removed := remove and other is None:
            remove_folder(folder)
        report.setdefault("former_splits", {})[folder.name] = "removed" if is_removed else "kept"
        told = "removed" if is_removed else "kept as it is; --former-splits remove deletes it"
        told += f", once {other}, which is no part of it, is elsewhere" * (other is not None)
        print(f"warning: {folder}: is of an earlier build, this one has no split {folder.name}; {told}", file=sys.stderr)
