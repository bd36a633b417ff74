#!/usr/bin/env python
"""Your own pictures and captions → both databases, splits, checks, and the command that trains on them. Or pictures alone and a
checkpoint → what is searched in a browser.

python scripts/prepare.py --photos photos --captions captions.jsonl --out data_sets/mine
python scripts/prepare.py --photos photos --captions captions.jsonl --tokenizer bert-base-cased --out data_sets/mine
python scripts/prepare.py --photos photos --captions captions.tsv --format pairs --extractor hf:facebook/dinov2-base --out data_sets/mine
python scripts/prepare.py --photos photos --checkpoint user/lightningdot-flickr30k --out data_sets/mine      # without captions
"""

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

from configs import cli
from configs.idle import refuse_idle
from data.annotations import FORMATS, FormatName, selection
from data.annotations.jsonl import write_jsonl
from data.annotations.records import Caption, ReadingOptions
from data.captions.build import keep_extracted
from data.checks.inspection import require_sound
from data.errors import BadInput
from data.storage.locks import claim_output
from data.storage.regular_files import real_path
from data.storage.text_files import write_json
from scripts.preparing.commands import print_commands, search_command, training_commands, typed_path, warn_of_untrained
from scripts.preparing.earlier import DEFAULT, drawn_splits, keeps_tokenizer, say_stale_indexes
from scripts.preparing.photographs import extract_as, extract_with, index_as, run_script


@dataclass
class Options:
    """Make both databases of your own pictures and captions, check them, and print the training command; without captions make
    pictures searchable with a checkpoint, and print the command that opens them in a browser.

    Writes OUT/captions.jsonl (the captions that are used, with their splits), OUT/regions, OUT/tokenizer, OUT/db/train, val
    and test, and OUT/report.json, which lists what was left out and why; without captions OUT/regions and OUT/index.

    Args:
        photos: folder of pictures, searched with its subfolders
        captions: annotation file; a line of JSON lines may lack the split; none: pictures alone, with --checkpoint
        checkpoint: folder of a trained model, or its name on the Hugging Face hub: regions are made as those of its training, and with
            captions its tokenizer is taken and training goes on from it
        out: folder to write, data_sets/NAME_OF_PHOTOS by default; given again, it takes up photographs and captions that are new
        format: of the captions, as in scripts/build_captions.py
        languages: keep only these; default is all
        shares: how pictures are split when the captions name no split, or one only
        seed: of that
        tokenizer: Hugging Face BERT-family folder or name, or a vocab.txt; default is to train one on the captions
        vocab_size: word pieces of one that is trained
        extractor: of regions, as in scripts/extract_regions.py; default is the best for photographs that can run here
        extract: its other options, NAME=VALUE; image-key={parent}_{stem}.npz tells pictures of one name apart by their folders, and
            soft-labels=none leaves out what pre-training alone reads
        config: recipe of the training command
    """

    photos: str
    captions: str | None = None
    checkpoint: str | None = None
    out: str | None = None
    format: FormatName = "jsonl"
    languages: list[str] | None = None
    shares: list[str] = field(default_factory=lambda: list(DEFAULT["shares"]))
    seed: int = DEFAULT["seed"]
    tokenizer: str | None = None
    vocab_size: int = 2000
    extractor: str | None = None
    extract: list[str] = field(default_factory=list)
    config: str = "configs/finetune/own_small.yaml"

    def __post_init__(self):
        if self.captions is None and self.checkpoint is None:
            raise BadInput("give --captions FILE, to train on them, or --checkpoint DIR, to search pictures alone with it")
        if self.checkpoint is not None and self.extractor is not None:
            raise BadInput(f"--extractor {self.extractor}: the regions are made as those of --checkpoint {self.checkpoint}; give one of the two")
        refuse_idle(
            self, (self.captions is None, "format languages shares seed tokenizer vocab_size config", "without --captions"),
            (self.tokenizer, "vocab_size", "with --tokenizer"), (self.checkpoint, "vocab_size", "with --checkpoint, whose tokenizer is taken"),
        )  # fmt: skip


def main(options: Options) -> None:
    out = typed_path(options.out or Path("data_sets", real_path(options.photos).stem))
    if options.captions is None:
        index_as(options.checkpoint, options.photos, out, options.extract)
        print_commands({"search": search_command(options.checkpoint, out, options.photos)})
        warn_of_untrained(out / "regions")
        return
    claim_output(out)
    report, source = {}, options.captions
    captions = selection.read_usable_captions(source, options.format, ReadingOptions(needs_split=False), report)
    captions = selection.keep_chosen(captions, "language", options.languages, source, report)
    named = sorted({c.split for c in captions})
    refuse_idle(options, (len(named) > 1, "shares seed", f"where {source} names the splits {', '.join(named)}"))
    regions = out / "regions"
    if options.checkpoint is not None:
        extract_as(options.checkpoint, options.photos, regions, options.extract)
    else:
        extract_with(options.extractor, options.photos, regions, options.extract)
    captions = keep_extracted(captions, regions, Path(options.photos), source, report)
    captions = choose_splits(captions, options, out, report)
    write_jsonl(out / "captions.jsonl", captions)

    tokenizer = options.tokenizer or options.checkpoint or str(out / "tokenizer")
    annotations = ["--annotations", str(out / "captions.jsonl")]
    if tokenizer == str(out / "tokenizer") and not keeps_tokenizer(out):
        run_script("scripts/train_tokenizer.py", [*annotations, "--vocab-size", str(options.vocab_size), "--out", tokenizer])
    words = [*annotations, "--tokenizer", tokenizer, "--regions", str(regions), "--out", str(out / "db")]
    words += ["--former-splits", "remove"]  # all of OUT/db is made of OUT/captions.jsonl
    run_script("scripts/build_captions.py", words)
    splits, report["checks"] = list(dict.fromkeys(c.split for c in captions)), {}
    for folder, of_regions in [(regions, None), *((out / "db" / name, str(regions)) for name in splits)]:
        report["checks"] |= require_sound(folder, of_regions)
    write_json(out / "report.json", report)
    say_stale_indexes(out, splits)
    print(f"report: {out / 'report.json'}\n")
    print_commands(training_commands(out, options.photos, options.config, splits, options.checkpoint))
    warn_of_untrained(regions)


def choose_splits(captions: list[Caption], options: Options, out: Path, report: dict) -> list[Caption]:
    """The splits of the file, a picture in one of them; drawn by picture when it has one split or none."""
    if len({c.split for c in captions}) == 1:
        captions, report["drawn"] = drawn_splits(captions, options.captions, out, options.shares, options.seed)
    captions = selection.settle_splits(captions, FORMATS[options.format].photo_of, report)
    splits = Counter(c.split for c in captions)
    for name in ("train", "val"):
        if name not in splits:
            raise BadInput(f"{options.captions}: no split {name}, found {dict(splits)}; training needs train and val")
    return captions


if __name__ == "__main__":
    cli.run(main, Options)
