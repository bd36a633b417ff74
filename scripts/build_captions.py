#!/usr/bin/env python
"""Tokenise the captions of an annotation file into text databases, one per split.

python scripts/build_captions.py --annotations captions.jsonl --format jsonl --tokenizer runs/demo/tokenizer --out db/text
python scripts/build_captions.py --annotations dataset_flickr30k.json --format karpathy --tokenizer bert-base-cased \\
    --out db/text --regions db/flickr30k --image-key 'flickr30k_{stem:0>12}.npz'
"""

import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

from configs import cli
from data.annotations import Caption, read_captions
from data.captions import key_of_image, load_tokenizer, write_caption_db
from data.errors import BadInput
from data.regions import stored_keys


@dataclass
class Options:
    """Tokenise the captions of an annotation file into text databases, one per split: OUT/train, OUT/val ...

    Args:
        annotations: annotation file
        tokenizer: Hugging Face BERT-family folder, or a vocab.txt
        out: folder to write; databases of the same splits in it are replaced
        format: jsonl (lines of image, captions, split) or karpathy (dataset_*.json)
        lowercase: lower-case the captions first; default is as the tokenizer says
        languages: keep only these; default is all
        splits: write only these; default is all
        restval_as_train: add Karpathy's split restval to train
        regions: image databases; every picture must be in one of them
        skip_missing: leave out captions whose picture is in none of `regions`, instead of stopping
        image_key: image-database key of a picture; {stem} is its name without extension, {lower} the same in lower case
    """

    annotations: str
    tokenizer: str
    out: str
    format: Literal["jsonl", "karpathy"] = "jsonl"
    lowercase: bool | None = None
    languages: list[str] | None = None
    splits: list[str] | None = None
    restval_as_train: bool = False
    regions: list[str] | None = None
    skip_missing: bool = False
    image_key: str = "{stem}.npz"


def with_regions(captions: list[Caption], options: Options) -> list[Caption]:
    """The captions whose picture is in the image databases."""
    known = set().union(*(stored_keys(folder) for folder in options.regions))
    missing = [c for c in captions if key_of_image(c.image, options.image_key) not in known]
    if missing and not options.skip_missing:
        first = missing[0]
        raise BadInput(
            f"{options.annotations}: caption {first.caption_id} is about {first.image}, whose key "
            f"{key_of_image(first.image, options.image_key)} is not in {', '.join(options.regions)} "
            f"({len(missing)} such captions); extract its regions, correct image_key, or use --skip-missing"
        )
    if missing:
        images = len({c.image for c in missing})
        print(f"left out: {len(missing)} captions of {images} pictures that are not in {', '.join(options.regions)}")
    dropped = set(missing)
    return [c for c in captions if c not in dropped]


def main(options: Options) -> None:
    captions = list(read_captions(options.annotations, options.format))
    if not captions:
        raise BadInput(f"{options.annotations}: no captions in it")
    if options.restval_as_train:
        captions = [replace(c, split="train") if c.split == "restval" else c for c in captions]
    for name in ("split", "language"):
        wanted = getattr(options, f"{name}s")
        found = Counter(getattr(c, name) for c in captions)
        for value in wanted or []:
            if value not in found:
                raise BadInput(f"{options.annotations}: no caption of {name} {value}, found {dict(found)}")
        if wanted is not None:
            captions = [c for c in captions if getattr(c, name) in wanted]
    splits = list(dict.fromkeys(c.split for c in captions))
    if options.regions:
        captions = with_regions(captions, options)
    tokenizer = load_tokenizer(options.tokenizer, options.lowercase)

    by_split: dict[str, list[Caption]] = {split: [] for split in splits}
    for caption in captions:
        by_split[caption.split].append(caption)
    for split, records in by_split.items():
        if not records:
            raise BadInput(f"{options.annotations}: split {split} is empty; no picture of it is in {options.regions}")
    for split, records in by_split.items():
        folder = Path(options.out, split)
        counts = write_caption_db(folder, records, tokenizer, [options.annotations], options.image_key)
        languages = Counter(c.language for c in records)
        print(
            f"{folder}: {counts['captions']:,} captions of {counts['images']:,} pictures, "
            f"{', '.join(f'{n:,} {language}' for language, n in languages.items())}, "
            f"{counts['pieces'] / counts['captions']:.1f} word pieces each, {counts['unknown'] / counts['pieces']:.2%} unknown"
        )


if __name__ == "__main__":
    cli.run(main, Options)
