#!/usr/bin/env python
"""Tokenise the captions of an annotation file into text databases, one per split.

python scripts/build_captions.py --annotations captions.jsonl --tokenizer runs/demo/tokenizer --out db/text
python scripts/build_captions.py --annotations dataset_flickr30k.json --format karpathy --tokenizer bert-base-cased \\
    --out db/text --regions db/flickr30k --image-key 'flickr30k_{stem:0>12}.npz'
python scripts/build_captions.py --annotations multi30k --format multi30k --tokenizer bert-base-multilingual-cased --out db/text
python scripts/build_captions.py --annotations Train_GCC-training.tsv --format pairs --downloaded files.tsv --photos cc \\
    --tokenizer bert-base-cased --out db/cc
python scripts/build_captions.py --annotations region_descriptions.json --format visual-genome --shares train=0.98 val=0.02 \\
    --tokenizer bert-base-cased --image-key 'vg_{stem}.npz' --out db/vg
python scripts/build_captions.py --annotations dataset_coco.json --format karpathy --exclude dataset_flickr30k.json \\
    --addresses captions_train2014.json captions_val2014.json --tokenizer bert-base-cased --out db/pretrain_coco
"""

import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

from configs import cli
from data.annotations import splits as splitting
from data.annotations.formats import read_downloaded
from data.annotations.published import COUNTS, dataset_of, differences
from data.annotations.records import Caption, Format, Reading, check_split, read_captions
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.errors import BadInput
from data.regions.db import stored_keys
from data.regions.keys import key_of_image
from data.storage.text_files import read_lines, write_json

SHOWN = 100  # bad records, missing pictures and duplicates that the report lists


@dataclass
class Options:
    """Tokenise the captions of an annotation file into text databases, one per split: OUT/train, OUT/val ...

    Args:
        annotations: annotation file; of Multi30K the folder of its repository
        tokenizer: Hugging Face BERT-family folder, or a vocab.txt
        out: folder to write; databases of the same splits in it are replaced. report.json in it says what was left out
        format: jsonl (lines of image, captions, split), karpathy (dataset_*.json), coco (captions_*.json), token (Flickr30k's
            results.token), multi30k (five captions in English and German, one in French and Czech; or multi30k-task1,
            multi30k-task2), pairs (Conceptual Captions, SBU: tsv, json, jsonl), visual-genome (region_descriptions.json)
        strict: stop at the first bad record, instead of leaving it out
        lowercase: lower-case the captions first; default is as the tokenizer says
        languages: keep only these; default is all
        splits: write only these; default is all
        restval_as_train: add Karpathy's split restval to train
        fields: jsonl: keys of a line that hold captions; a language is taken from the first that has it
        split: of formats that name none: that of all captions
        split_lists: files of picture names, one a line, that say the split: train=FILE, or FILE named after it; pictures
            in none are left out
        shares: splits drawn by picture: train=0.8 val=0.1 test=0.1
        seed: of that drawing
        exclude: annotation files whose photographs must not be trained on, found by Flickr's and COCO's numbers:
            FILE, or FILE:val,test for some of its splits
        exclude_from: the splits they are left out of
        addresses: files that know one photograph under several names: COCO's captions_*.json, Visual Genome's
            image_data.json
        downloaded: pairs: file of lines address<TAB>file
        photos: folder of pictures: captions whose picture is not there are left out
        expect: compare the counts with those published for this data set; default goes by the file's name; none
        regions: image databases; every picture must be in one of them
        skip_missing: leave out captions whose picture is in none of `regions`, instead of stopping
        image_key: image-database key of a picture; {stem} is its name without extension, {lower} the same in lower case
    """

    annotations: str
    tokenizer: str
    out: str
    format: Format = "jsonl"
    strict: bool = False
    lowercase: bool | None = None
    languages: list[str] | None = None
    splits: list[str] | None = None
    restval_as_train: bool = False
    fields: list[str] = field(default_factory=lambda: ["captions"])
    split: str = "train"
    split_lists: list[str] | None = None
    shares: list[str] | None = None
    seed: int = 0
    exclude: list[str] | None = None
    exclude_from: list[str] = field(default_factory=lambda: ["train", "restval"])
    addresses: list[str] | None = None
    downloaded: str | None = None
    photos: str | None = None
    expect: str | None = None
    regions: list[str] | None = None
    skip_missing: bool = False
    image_key: str = "{stem}.npz"

    def __post_init__(self):
        check_split("--split", self.split)
        if self.split_lists and self.shares:
            raise BadInput("--split-lists and --shares both say the split; give one of them")
        if self.expect not in (None, "none", *COUNTS):
            raise BadInput(f"--expect: found {self.expect}, expected one of {', '.join(COUNTS)}, none")


# ---- reading ---------------------------------------------------------------------------------------------------------


def read(options: Options, report: dict) -> list[Caption]:
    """All captions of the file; bad records and missing pictures go to the report."""

    def bad(message: str) -> None:
        if options.strict:
            raise BadInput(message)
        note(report, "bad_records", message)

    downloaded = read_downloaded(options.downloaded) if options.downloaded else None
    how = Reading(
        bad,
        tuple(options.fields),
        options.split,
        not (options.shares or options.split_lists),
        downloaded,
        lambda name: note(report, "missing_pictures", name),
    )
    captions = list(read_captions(options.annotations, options.format, how))
    warn_of(report, "bad_records", f"{options.annotations}: left out {{n:,}} bad records, the first: {{first}}")
    if not captions:
        raise BadInput(report.get("bad_records", {}).get("first", [f"{options.annotations}: no captions in it"])[0])

    dataset = options.expect or dataset_of(Path(options.annotations).name, options.format)
    if options.split_lists:
        captions, outside = splitting.by_lists(captions, splitting.read_split_lists(options.split_lists))
        if outside:
            report["in_no_split_list"] = outside
            print(f"left out: {outside:,} captions whose picture is in none of {', '.join(options.split_lists)}")
        if not captions:
            raise BadInput(f"{options.annotations}: no picture of it is in {', '.join(options.split_lists)}")
    elif options.shares:
        captions = splitting.by_shares(captions, parse_shares(options.shares), options.seed)
    if dataset and dataset != "none":
        report["counts"] = {"dataset": dataset, "differences": differences(dataset, captions)}
        for line in report["counts"]["differences"]:
            print(f"warning: {options.annotations}: {line}", file=sys.stderr)
    if options.photos:
        captions = _with_files(captions, options.photos, report)
    warn_of(report, "missing_pictures", "left out {n:,} captions whose picture is missing, the first: {first}")
    if not captions:
        raise BadInput(f"{options.annotations}: no picture of it is there; check --photos and --downloaded")
    return captions


def parse_shares(words: list[str]) -> dict[str, float]:
    """``train=0.8`` ... → split -> share."""
    try:
        shares = {name: float(share) for name, _, share in (word.partition("=") for word in words)}
    except ValueError:
        raise BadInput(f"--shares {' '.join(words)}: expected words such as train=0.8 val=0.1 test=0.1") from None
    for name in shares:
        check_split("--shares", name)
    return shares


def _with_files(captions: list[Caption], folder: str, report: dict) -> list[Caption]:
    if not Path(folder).is_dir():
        raise BadInput(f"--photos {folder}: no such folder; give the folder that holds the pictures")
    is_there = {image: Path(folder, image).is_file() for image in {c.image for c in captions}}
    for caption in captions:
        if not is_there[caption.image]:
            note(report, "missing_pictures", caption.image)
    return [c for c in captions if is_there[c.image]]


def note(report: dict, what: str, line: str) -> None:
    noted = report.setdefault(what, {"count": 0, "first": []})
    noted["count"] += 1
    if len(noted["first"]) < SHOWN:
        noted["first"].append(line)


def warn_of(report: dict, what: str, line: str) -> None:
    if what in report:
        text = line.format(n=report[what]["count"], first=report[what]["first"][0])
        print(f"warning: {' '.join(text.split())}", file=sys.stderr)


# ---- what stays ------------------------------------------------------------------------------------------------------


def keep_apart(captions: list[Caption], options: Options, report: dict) -> list[Caption]:
    """Leave out what --exclude names, and report photographs that are in several splits."""
    same = splitting.read_addresses(options.addresses or [])
    if options.exclude:
        excluded = set().union(*(excluded_photos(word) for word in options.exclude))
        excluded = set().union(*(splitting.names_of(photo, same) for photo in excluded))
        captions, dropped = splitting.without(captions, options.format, excluded, same, options.exclude_from)
        report["excluded_pictures"] = dict(dropped)
        print(
            f"excluded: {', '.join(f'{n:,} pictures of {split}' for split, n in dropped.items()) or 'no picture'}, "
            f"which {', '.join(options.exclude)} have"
        )
    if options.restval_as_train:
        captions = [replace(c, split="train") if c.split == "restval" else c for c in captions]
    for line in splitting.in_several_splits(captions, options.format, same):
        note(report, "in_several_splits", line)
    warn_of(report, "in_several_splits", "{n:,} photographs are in several splits, the first: {first}")
    return captions


def excluded_photos(word: str) -> set[str]:
    """The photographs of ``FILE`` or ``FILE:val,test``: a list of picture names, or annotations."""
    path, splits = word, None
    if not Path(word).exists() and ":" in word:
        path, _, names = word.rpartition(":")
        splits = names.split(",")
    name = Path(path).name
    if name.endswith(".txt"):
        if splits:
            raise BadInput(f"--exclude {word}: a list of pictures has no splits; give {path}")
        return {splitting.photo_id(line.strip().partition("#")[0], "list") for line in read_lines(path) if line.strip()}
    form = "coco" if name.startswith("captions_") else "karpathy" if name.endswith(".json") else "jsonl"
    form = "multi30k-task1" if Path(path).is_dir() else "token" if name.endswith(".token") else form
    found = list(read_captions(path, form))
    for split in splits or []:
        if split not in {c.split for c in found}:
            raise BadInput(f"--exclude {word}: {path} has no split {split}, found {sorted({c.split for c in found})}")
    return {splitting.photo_id(c.image, form) for c in found if splits is None or c.split in splits}


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
    report: dict = {}
    captions = keep_apart(read(options, report), options, report)
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
    tokenizer = CaptionTokenizer.from_pretrained(options.tokenizer, options.lowercase)

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
        report.setdefault("splits", {})[split] = counts | {"languages": dict(languages)}
    report = {"annotations": options.annotations, "settings": cli.to_dict(options), **report}
    write_json(Path(options.out) / "report.json", report)


if __name__ == "__main__":
    cli.run(main, Options)
