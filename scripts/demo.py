#!/usr/bin/env python
"""The whole pipeline on the embedded demo world: pictures to recall table, by the commands a user would type.

python scripts/demo.py                   # what `make demo` runs: under six minutes on two CPU cores
python scripts/demo.py && python scripts/report.py runs/demo/finetune    # and a page about it
python scripts/reproduce.py demo         # its table again
"""

import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

from configs import cli
from data.errors import BadInput
from data.storage.atomic import remove_folder
from data.storage.locks import claim_output
from data.storage.processes import run_command
from data.storage.text_files import read_json, write_json
from model.evaluation.recall import format_table

ROOT = Path(__file__).resolve().parents[1]
OUT = "runs/demo"  # as in configs/*/demo.yaml

BOXES = "--boxes.conf-th 0.6 --boxes.min-bb 4"

PREPARE = f"""
scripts/make_scenes.py --out {OUT} --train 6000 --val 200 --test 500 --size 128 --workers 2
scripts/extract_regions.py --extractor random-conv --photos {OUT}/photos --out {OUT}/regions --feature-dim 512 --size 128 --conf-th 0.6 --min-bb 4 --workers 2
scripts/train_tokenizer.py --annotations {OUT}/captions.jsonl --vocab-size 1000 --out {OUT}/tokenizer
scripts/build_captions.py --annotations {OUT}/captions.jsonl --languages en --tokenizer {OUT}/tokenizer --regions {OUT}/regions --out {OUT}/db
"""
TRAIN = f"""
train_itm.py --config configs/finetune/demo.yaml --out {OUT}/finetune_only
pretrain.py --config configs/pretrain/demo.yaml
train_itm.py --config configs/finetune/demo.yaml --model.init {OUT}/pretrain/last
"""
EVALUATE = f"""
eval_itm.py --checkpoint {OUT}/finetune_only/best --captions {OUT}/db/test --regions {OUT}/regions {BOXES} --out {OUT}/eval/finetune_only
eval_itm.py --checkpoint {OUT}/finetune/best --captions {OUT}/db/test --regions {OUT}/regions {BOXES} --out {OUT}/eval/finetune
scripts/contact_sheet.py --checkpoint {OUT}/finetune/best --index {OUT}/eval/finetune/img --captions {OUT}/db/test --photos {OUT}/photos --out {OUT}/contact_sheet.png
"""
SERVE = (
    f"scripts/serve.py --checkpoint {OUT}/finetune/best --index {OUT}/eval/finetune/img --captions-index {OUT}/eval/finetune/txt "
    f"--captions {OUT}/db/test --regions {OUT}/regions --photos {OUT}/photos --evaluation {OUT}/eval/finetune "
    f"--second-checkpoint {OUT}/finetune_only/best --second-index {OUT}/eval/finetune_only/img "
    f"--second-evaluation {OUT}/eval/finetune_only --backends exact hnsw ivfpq"
)


@dataclass
class Options:
    """Run the main job on the embedded demo world, into runs/demo (which is emptied first)."""


def main(options: Options) -> None:
    claim_output(f"{ROOT / OUT} (all of it)")  # the commands claim their own parts of it
    started = time.perf_counter()
    empty_folder(ROOT / OUT)
    seconds = {}
    for line in (PREPARE + TRAIN + EVALUATE).split("\n"):
        if line:
            seconds[line] = _run(line)

    recall = {
        name: read_json(ROOT / OUT / "eval" / name / "results.json")["recall"]
        for name in ("finetune_only", "finetune")
    }
    rows = {
        "chance": recall["finetune"]["chance"],
        "fine-tuning only": recall["finetune_only"]["all"],
        "pre-training + fine-tuning": recall["finetune"]["all"],
    }
    total = time.perf_counter() - started
    write_json(ROOT / OUT / "results.json", {"recall": rows, "seconds": seconds, "total_seconds": total})
    print(
        "\nRecall on 500 test pictures, 2,500 English captions, in percent (TR: picture to caption, IR: caption to picture)\n"
    )
    print(format_table(rows))
    print(f"\ncontact sheet: {OUT}/contact_sheet.png\nresults:       {OUT}/results.json\n{total / 60:.1f} minutes")
    python = Path(sys.executable)
    python = python.relative_to(ROOT) if python.is_relative_to(ROOT) else python
    print(f"\nsearch it in a browser:\n{python} {SERVE}")


def empty_folder(folder: Path) -> None:
    """Delete all that is in a folder, which may be a link to one, or not there."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.is_dir():
            remove_folder(path)
        else:
            path.unlink()


def _run(line: str) -> float:
    print(f"\n$ python {line}", flush=True)
    started = time.perf_counter()
    if run_command([sys.executable, *shlex.split(line)], cwd=ROOT):
        raise BadInput(f"the demo stopped at: python {line}")
    return round(time.perf_counter() - started, 1)


if __name__ == "__main__":
    cli.run(main, Options)
