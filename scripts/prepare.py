#!/usr/bin/env python
"""Your own pictures and captions → both databases, splits, checks, and the command that trains on them.

python scripts/prepare.py --photos photos --captions captions.jsonl --out data_sets/mine
python scripts/prepare.py --photos photos --captions captions.jsonl --tokenizer bert-base-cased --out data_sets/mine
python scripts/prepare.py --photos photos --captions captions.tsv --format pairs --extractor hf:facebook/dinov2-base --out data_sets/mine
"""

import os
import shlex
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

from configs import cli
from data.annotations import FORMATS, FormatName, selection
from data.annotations.jsonl import write_jsonl
from data.annotations.records import Caption, ReadingOptions
from data.annotations.splits import draw_splits, parse_shares
from data.captions.build import keep_extracted
from data.checks.inspection import require_sound
from data.errors import BadInput
from data.regions.db import BoxOptions, layout_of
from data.storage.locks import claim_output
from data.storage.processes import run_command
from data.storage.text_files import write_json

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Options:
    """Make both databases of your own pictures and captions, check them, and print the training command.

    Writes OUT/captions.jsonl (the captions that are used, with their splits), OUT/regions, OUT/tokenizer, OUT/db/train, val
    and test, and OUT/report.json, which lists what was left out and why.

    Args:
        photos: folder of pictures, searched with its subfolders
        captions: annotation file; a line of JSON lines may lack the split
        out: folder to write; regions that are there already are used as they are
        format: of the captions, as in scripts/build_captions.py
        languages: keep only these; default is all
        shares: how pictures are split when the captions name no split, or one only
        seed: of that
        tokenizer: Hugging Face BERT-family folder, or a vocab.txt; default is to train one on the captions
        vocab_size: word pieces of one that is trained
        extractor: of regions, as in scripts/extract_regions.py; default is the best for photographs that can run here
        extract: its other options, NAME=VALUE; image-key={parent}_{stem}.npz tells pictures of one name apart by their folders
        config: recipe of the training command
    """

    photos: str
    captions: str
    out: str
    format: FormatName = "jsonl"
    languages: list[str] | None = None
    shares: list[str] = field(default_factory=lambda: ["train=0.8", "val=0.1", "test=0.1"])
    seed: int = 0
    tokenizer: str | None = None
    vocab_size: int = 2000
    extractor: str | None = None
    extract: list[str] = field(default_factory=list)
    config: str = "configs/finetune/own_small.yaml"


def main(options: Options) -> None:
    claim_output(options.out)
    out, report, source = Path(options.out), {}, options.captions
    captions = selection.read_usable_captions(source, options.format, ReadingOptions(needs_split=False), report)
    captions = selection.keep_chosen(captions, "language", options.languages, source, report)
    regions = out / "regions"
    if not list(regions.glob("feat_*/data.mdb")) and not list(regions.glob("all*/data.mdb")):
        from model.extractors.choice import choose_extractor  # imports torch, which is slow

        words = ["--photos", options.photos, "--out", str(regions), "--extractor", options.extractor or choose_extractor(options.extract)]
        run_script("scripts/extract_regions.py", words + [part for word in options.extract for part in spell_option(word)])
    else:
        print(f"{regions}: is there already and used as it is; delete it to extract regions again")
    captions = keep_extracted(captions, regions, Path(options.photos), source, report)
    captions = choose_splits(captions, options, report)
    write_jsonl(out / "captions.jsonl", captions)

    tokenizer = options.tokenizer or str(out / "tokenizer")
    annotations = ["--annotations", str(out / "captions.jsonl")]
    if options.tokenizer is None:
        run_script("scripts/train_tokenizer.py", [*annotations, "--vocab-size", str(options.vocab_size), "--out", tokenizer])
    words = [*annotations, "--tokenizer", tokenizer, "--regions", str(regions), "--out", str(out / "db")]
    words += ["--former-splits", "remove"]  # all of OUT/db is made of OUT/captions.jsonl
    run_script("scripts/build_captions.py", words)
    splits = list(dict.fromkeys(c.split for c in captions))
    report["checks"] = {}
    for folder, of_regions in [(regions, None), *((out / "db" / name, str(regions)) for name in splits)]:
        report["checks"] |= require_sound(folder, of_regions)
    write_json(out / "report.json", report)
    print(f"report: {out / 'report.json'}\n")
    show_commands(options, regions, splits)


def choose_splits(captions: list[Caption], options: Options, report: dict) -> list[Caption]:
    """The splits of the file, a picture in one of them; drawn by picture when it has one split or none."""
    if len({c.split for c in captions}) == 1:
        captions = draw_splits(captions, parse_shares(options.shares), options.seed)
        print(f"{options.captions}: splits are drawn by picture, {' '.join(options.shares)}, seed {options.seed}")
    captions = selection.settle_splits(captions, FORMATS[options.format].photo_of, report)
    splits = Counter(c.split for c in captions)
    for name in ("train", "val"):
        if name not in splits:
            raise BadInput(f"{options.captions}: no split {name}, found {dict(splits)}; training needs train and val")
    return captions


def spell_option(word: str) -> list[str]:
    """``feature-dim=512`` → ``--feature-dim 512``."""
    name, equals, value = word.partition("=")
    if not equals:
        raise BadInput(f"--extract {word}: expected NAME=VALUE, as in feature-dim=512")
    return [f"--{name}", value]


def run_script(script: str, words: list[str]) -> None:
    """Run one of our commands, and stop where it stops."""
    print(f"$ python {script} {shlex.join(words)}", flush=True)
    if run_command([sys.executable, str(ROOT / script), *words]):
        raise BadInput(f"stopped at: python {script} {shlex.join(words)}")


def show_commands(options: Options, regions: Path, splits: list[str]) -> None:
    """Print the commands that train and evaluate, and that train a re-ranker."""
    layouts = [layout for path in sorted(regions.iterdir()) if (layout := layout_of(path.name))]
    boxes = next((boxes for boxes, _ in layouts if boxes is not None), None)
    names = () if boxes is None or boxes == BoxOptions() else ("conf_th", "max_bb", "min_bb")
    told = [word for name in names for word in (f"--boxes.{name.replace('_', '-')}", str(getattr(boxes, name)))]
    out = Path(options.out)
    out = Path(os.path.relpath(out)) if out.is_absolute() and out.is_relative_to(Path.cwd()) else out
    best, shared = str(out / "run/best"), ["--data-root", str(out), *told]
    measured = ["--captions", str(out / "db" / ("test" if "test" in splits else "val")), "--regions", str(out / "regions"), *told]
    for name, words in {
        "train": ["train_itm.py", "--config", options.config, *shared, "--out", str(out / "run")],
        "evaluate": ["eval_itm.py", "--checkpoint", best, *measured],
        "re-rank": ["train_itm.py", "--model", "uniter", "--config", "configs/finetune/uniter_own_small.yaml", *shared, "--model.init", best, "--out", str(out / "reranker")],
    }.items():
        print(f"{name + ':':<9} python {shlex.join(words)}")


if __name__ == "__main__":
    cli.run(main, Options)
