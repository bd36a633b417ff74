#!/usr/bin/env python
"""Your own pictures and captions → both databases, splits, checks, and the command that trains on them.

python scripts/prepare.py --photos photos --captions captions.jsonl --out data_sets/mine
python scripts/prepare.py --photos photos --captions captions.tsv --format pairs --tokenizer bert-base-cased --out data_sets/mine \\
    --extract feature-dim=512 workers=8
"""

import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

from configs import cli
from data.annotations import splits as splitting
from data.annotations.records import Caption, Format, Reading, read_captions
from data.checks.inspection import inspect_database
from data.checks.records import InspectionOptions
from data.errors import BadInput
from data.regions.db import layout_of, stored_keys
from data.regions.keys import key_of_image
from data.storage.atomic import atomic_file
from data.storage.text_files import read_json, write_json
from scripts import build_captions, train_tokenizer

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
        extractor: of regions, as in scripts/extract_regions.py
        extract: its other options, NAME=VALUE
        config: recipe of the training command
    """

    photos: str
    captions: str
    out: str
    format: Format = "jsonl"
    languages: list[str] | None = None
    shares: list[str] = field(default_factory=lambda: ["train=0.8", "val=0.1", "test=0.1"])
    seed: int = 0
    tokenizer: str | None = None
    vocab_size: int = 2000
    extractor: str = "random-conv"
    extract: list[str] = field(default_factory=list)
    config: str = "configs/finetune/own_small.yaml"


def main(options: Options) -> None:
    out, report = Path(options.out), {}
    captions = read(options, report)
    regions = out / "regions"
    if not list(regions.glob("feat_*/data.mdb")) and not list(regions.glob("all*/data.mdb")):
        words = ["--photos", options.photos, "--out", str(regions), "--extractor", options.extractor]
        command("scripts/extract_regions.py", words + [part for word in options.extract for part in option(word)])
    else:
        print(f"{regions}: is there already and used as it is; delete it to extract regions again")
    pictures = dict.fromkeys(c.image for c in captions)
    missing = without_regions(pictures, regions, Path(options.photos))
    for image in (image for image in pictures if image in missing):
        build_captions.note(report, "pictures_without_regions", image)
    build_captions.warn_of(
        report,
        "pictures_without_regions",
        "left out {n:,} pictures that are absent or cannot be read, the first: {first}",
    )
    captions = [c for c in captions if c.image not in missing]
    if not captions:
        raise BadInput(
            f"{options.captions}: none of its pictures is in {options.photos}; names must be those of the files"
        )
    captions = split(captions, options, report)
    write_lines(out / "captions.jsonl", captions)

    tokenizer = options.tokenizer or str(out / "tokenizer")
    annotations = ["--annotations", str(out / "captions.jsonl")]
    if options.tokenizer is None:
        words = [*annotations, "--vocab-size", str(options.vocab_size), "--out", tokenizer]
        inside("scripts/train_tokenizer.py", train_tokenizer, words)
    words = [*annotations, "--tokenizer", tokenizer, "--regions", str(regions), "--out", str(out / "db")]
    inside("scripts/build_captions.py", build_captions, words)
    splits = list(dict.fromkeys(c.split for c in captions))
    check([(regions, None), *((out / "db" / name, str(regions)) for name in splits)], report)
    write_json(out / "report.json", report)
    print(f"report: {out / 'report.json'}\n")
    show_commands(options, regions, splits)


# ---- captions --------------------------------------------------------------------------------------------------------


def read(options: Options, report: dict) -> list[Caption]:
    """The captions that can be used; bad records go to the report."""
    how = Reading(lambda line: build_captions.note(report, "bad_records", line), needs_split=False)
    captions = list(read_captions(options.captions, options.format, how))
    build_captions.warn_of(
        report, "bad_records", f"{options.captions}: left out {{n:,}} bad records, the first: {{first}}"
    )
    found = Counter(c.language for c in captions)
    for language in options.languages or []:
        if language not in found:
            raise BadInput(f"{options.captions}: no caption of language {language}, found {dict(found)}")
    captions = [c for c in captions if options.languages is None or c.language in options.languages]
    if not captions:
        raise BadInput(report.get("bad_records", {}).get("first", [f"{options.captions}: no captions in it"])[0])
    return captions


def without_regions(pictures: Iterable[str], regions: Path, photos: Path) -> set[str]:
    """Those that are not in the database: absent, bad, or another photo has their key."""
    known, report = stored_keys(regions), regions / "report.json"
    bad = read_json(report)["bad_photos"] if report.is_file() else {}
    return {p for p in pictures if key_of_image(p, "{stem}.npz") not in known or str(photos / p) in bad}


def split(captions: list[Caption], options: Options, report: dict) -> list[Caption]:
    """As the file says, a picture in one of its splits; drawn by picture when it does not."""
    if len({c.split for c in captions}) == 1:
        captions = splitting.by_shares(captions, build_captions.parse_shares(options.shares), options.seed)
        print(f"{options.captions}: splits are drawn by picture, {' '.join(options.shares)}, seed {options.seed}")
    captions, several = splitting.in_one_split(captions, options.format)
    for line in several:
        build_captions.note(report, "in_several_splits", line)
    build_captions.warn_of(report, "in_several_splits", "{n:,} photographs are in several splits, the first: {first}")
    splits = Counter(c.split for c in captions)
    for name in ("train", "val"):
        if name not in splits:
            raise BadInput(f"{options.captions}: no split {name}, found {dict(splits)}; training needs train and val")
    return captions


def write_lines(path: Path, captions: Iterable[Caption]) -> None:
    """JSON lines, as `data.annotations.read_jsonl` reads them."""
    pictures: dict[tuple[str, str], dict[str, list[str]]] = {}
    for caption in captions:
        pictures.setdefault((caption.image, caption.split), {}).setdefault(caption.language, []).append(caption.text)
    with atomic_file(path) as partial:
        lines = (
            json.dumps({"image": image, "captions": texts, "split": name}, ensure_ascii=False) + "\n"
            for (image, name), texts in pictures.items()
        )
        partial.write_text("".join(lines), encoding="utf-8")


# ---- the other commands ----------------------------------------------------------------------------------------------


def option(word: str) -> list[str]:
    """``feature-dim=512`` → ``--feature-dim 512``."""
    name, equals, value = word.partition("=")
    if not equals:
        raise BadInput(f"--extract {word}: expected NAME=VALUE, as in feature-dim=512")
    return [f"--{name}", value]


def command(script: str, words: list[str]) -> None:
    """Run one of our commands, and stop where it stops."""
    print(f"$ python {script} {shlex.join(words)}", flush=True)
    if subprocess.run([sys.executable, str(ROOT / script), *words]).returncode:
        raise BadInput(f"stopped at: python {script} {shlex.join(words)}")


def inside(script: str, module, words: list[str]) -> None:
    """The same in this process: it saves its start."""
    print(f"$ python {script} {shlex.join(words)}", flush=True)
    module.main(cli.parse(module.Options, words))


def check(databases: list[tuple[Path, str | None]], report: dict) -> None:
    """What scripts/inspect_db.py --verify says of each database, and of a text DB against its image DB.

    Raises:
        BadInput: something is wrong with one; names the command that shows all of it.
    """
    report["checks"] = {}
    for folder, regions in databases:
        words = [str(folder), "--verify", "--workers", "0", *(["--regions", regions] if regions else [])]
        for found in inspect_database(folder, InspectionOptions(verify=True, workers=0, regions=regions)):
            report["checks"][found.path] = {"records": found.facts["records"], "problems": dict(found.problems.counts)}
            if found.problems.counts:
                raise BadInput(
                    f"{found.path}: {'; '.join(found.problems.counts)}; see python scripts/inspect_db.py {shlex.join(words)}"
                )
            print(f"{found.path}: {found.facts['records']:,} records, nothing is wrong")


def show_commands(options: Options, regions: Path, splits: list[str]) -> None:
    """The commands that train and evaluate."""
    boxes = next(
        (b for b, _ in map(layout_of, sorted(p.name for p in regions.iterdir() if layout_of(p.name))) if b), None
    )
    told = []
    if boxes is not None:
        told = [
            "--boxes.conf-th",
            str(boxes.conf_th),
            "--boxes.max-bb",
            str(boxes.max_bb),
            "--boxes.min-bb",
            str(boxes.min_bb),
        ]
        told = [] if told[1::2] == ["0.2", "100", "10"] else told  # the default
    out = Path(options.out)
    out = Path(os.path.relpath(out)) if out.is_absolute() and out.is_relative_to(Path.cwd()) else out
    words = [
        "train_itm.py",
        "--config",
        options.config,
        "--data-root",
        str(out),
        *told,
        "--output-dir",
        str(out / "run"),
    ]
    print(f"train:    python {shlex.join(words)}")
    tested = "test" if "test" in splits else "val"
    words = ["eval_itm.py", "--checkpoint", str(out / "run/best"), "--captions", str(out / "db" / tested)]
    print(f"evaluate: python {shlex.join([*words, '--regions', str(out / 'regions'), *told])}")


if __name__ == "__main__":
    cli.run(main, Options)
