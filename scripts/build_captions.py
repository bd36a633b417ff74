#!/usr/bin/env python
"""Tokenise the captions of an annotation file into text databases, one per split.

python scripts/build_captions.py --annotations captions.jsonl --tokenizer runs/demo/tokenizer --out db/text
python scripts/build_captions.py --annotations dataset_flickr30k.json --format karpathy --tokenizer bert-base-cased \\
    --out db/text --regions db/flickr30k --image-key 'flickr30k_{stem:0>12}.npz'
python scripts/build_captions.py --annotations multi30k --format multi30k --tokenizer bert-base-multilingual-cased --out db
python scripts/build_captions.py --annotations Train_GCC-training.tsv --format pairs --downloaded files.tsv --photos cc \\
    --tokenizer bert-base-cased --out db/cc
python scripts/build_captions.py --annotations region_descriptions.json --format visual-genome --shares train=0.98 val=0.02 \\
    --tokenizer bert-base-cased --image-key 'vg_{stem}.npz' --out db/vg
python scripts/build_captions.py --annotations dataset_coco.json --format karpathy --exclude dataset_flickr30k.json \\
    --addresses captions_train2014.json captions_val2014.json --tokenizer bert-base-cased --out db/pretrain_coco
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

from configs import cli
from configs.idle import refuse_idle
from data.annotations import FORMATS, FormatName, selection
from data.annotations.photographs import read_addresses
from data.annotations.published import COUNTS
from data.annotations.records import Caption, ReadingOptions
from data.annotations.splits import check_one_source, draw_splits, parse_shares
from data.annotations.web_pairs import read_downloaded
from data.captions.build import check_keys, keep_with_regions, known_keys, settle_former_splits, write_split_dbs
from data.captions.tokenizers import CaptionTokenizer
from data.errors import BadInput
from data.storage.locks import claim_output
from data.storage.text_files import write_json


@dataclass
class Options:
    """Tokenise the captions of an annotation file into text databases, one per split: OUT/train, OUT/val ...

    Args:
        annotations: annotation file; of Multi30K the folder of its repository; of STAIR and COCO-CN theirs too
        tokenizer: Hugging Face BERT-family folder or name, or a vocab.txt
        out: folder to write; databases of the same splits in it are replaced. report.json in it says what was left out
        format: jsonl (lines of image, captions, split), karpathy (dataset_*.json), coco, token (Flickr30k's), multi30k, multi30k-task1,
            multi30k-task2, stair, coco-cn, pairs (tsv, json, jsonl), visual-genome, image-meta (the original's *_meta.json)
        strict: stop at the first bad record, instead of leaving it out
        lowercase: lower-case the captions first; default is as the tokenizer says
        languages: keep only these; default is all
        splits: write only these; default is all
        former_splits: keep or remove the splits in OUT of an earlier build that this one does not have
        restval_as_train: add Karpathy's split restval to train
        fields: jsonl, image-meta: keys that hold captions; a language is taken from the first that has it
        split: of files and lines that name none: that of all captions, default train; wins over the name of a COCO file
        split_lists: files of picture names, one a line: SPLIT=FILE, or FILE named after it; or Karpathy's JSON; others are left out
        shares: splits drawn by picture: train=0.8 val=0.1 test=0.1
        seed: of that drawing
        exclude: FILE, or FILE:val,test: annotations whose photographs (Flickr's, COCO's numbers) must not be trained on
        exclude_from: the splits they are left out of
        addresses: files of one photograph's several names: COCO's captions_*.json, Visual Genome's image_data.json
        downloaded: pairs: file of lines address<TAB>file
        photos: folder of pictures: captions whose picture is not there are left out
        expect: compare the counts with those published for this data set; default goes by the file's name; none
        regions: image databases; every picture must be in one of them
        skip_missing: leave out captions whose picture is in none of `regions`, instead of stopping
        image_key: key of a picture, as in scripts/extract_regions.py; default is as `regions` say, else {stem}.npz
    """

    annotations: str
    tokenizer: str
    out: str
    format: FormatName = "jsonl"
    strict: bool = False
    lowercase: bool | None = None
    languages: list[str] | None = None
    splits: list[str] | None = None
    former_splits: Literal["keep", "remove"] = "keep"
    restval_as_train: bool = False
    fields: list[str] = field(default_factory=lambda: ["captions"])
    split: str | None = None
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
    image_key: str | None = None

    def __post_init__(self):
        check_one_source({"--split": self.split, "--split-lists": self.split_lists, "--shares": self.shares}, self.format)
        if self.expect not in (None, "none", *COUNTS):
            raise BadInput(f"--expect: found {self.expect}, expected one of {', '.join(COUNTS)}, none")
        refuse_idle(self, (not self.shares, "seed", "without --shares"), (not self.exclude, "exclude_from", "without --exclude"), (not self.regions, "skip_missing", "without --regions"), (self.format != "pairs", "downloaded", "without --format pairs"))  # fmt: skip


def read_and_split(options: Options, report: dict) -> list[Caption]:
    """The captions of the file with their splits; bad records and missing pictures go to the report."""
    settings = ReadingOptions(
        fields=tuple(options.fields),
        split=options.split or "train",
        split_is_given=options.split is not None,
        needs_split=not (options.shares or options.split_lists or options.split),
        downloaded=read_downloaded(options.downloaded) if options.downloaded else None,
    )
    source = options.annotations
    captions = selection.read_usable_captions(source, options.format, settings, report, options.strict)
    if options.split_lists:
        captions = selection.keep_listed_pictures(captions, options.split_lists, source, report)
    elif options.shares:
        captions = draw_splits(captions, parse_shares(options.shares), options.seed)
    data_set = options.expect or FORMATS[options.format].data_set_of(Path(source).name)
    if data_set and data_set != "none":
        selection.compare_with_published(captions, data_set, source, report)
    return captions


def main(options: Options) -> None:
    claim_output(options.out)
    report, source, photo_of = {}, options.annotations, FORMATS[options.format].photo_of
    captions = read_and_split(options, report)
    known = known_keys(options.regions or [], options.image_key)
    check_keys(captions, known.image_key, source, known)
    captions = selection.keep_present_pictures(captions, options.photos, source, report, known)
    same = read_addresses(options.addresses or [])
    if options.exclude:
        captions = selection.leave_out_excluded(captions, photo_of, options.exclude, same, options.exclude_from, report, options.strict)
    if options.restval_as_train:
        captions = [replace(c, split="train") if c.split == "restval" else c for c in captions]
    selection.report_photos_in_several_splits(captions, photo_of, same, report)
    captions = selection.keep_chosen(captions, "split", options.splits, source, report)
    captions = selection.keep_chosen(captions, "language", options.languages, source, report)
    by_split: dict[str, list[Caption]] = {c.split: [] for c in captions}
    if options.regions:
        captions = keep_with_regions(captions, options.regions, known, source, options.skip_missing, report)
    for caption in captions:
        by_split[caption.split].append(caption)
    tokenizer, keys = CaptionTokenizer.from_pretrained(options.tokenizer, options.lowercase), known.keys_of(c.image for c in captions)
    counts = write_split_dbs(options.out, by_split, tokenizer, source, known.image_key, report, keys)
    settle_former_splits(options.out, by_split, options.former_splits == "remove", report)
    write_json(Path(options.out, "report.json"), {"annotations": source, "settings": cli.to_dict(options), **report, "splits": counts})


if __name__ == "__main__":
    cli.run(main, Options, often="format languages splits shares exclude photos regions image_key skip_missing")
