"""What an earlier call with the same --out left there, which a later one keeps, or says that it is no longer of these databases."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data.annotations import read_captions
from data.annotations.records import Caption
from data.annotations.splits import draw_splits, parse_shares
from data.captions.db import CaptionDB
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.notices import say
from data.regions.db import RegionDB
from data.storage.text_files import read_json
from scripts.preparing.commands import boxes_of

DEFAULT = {"shares": ["train=0.8", "val=0.1", "test=0.1"], "seed": 0}


def drawn_splits(captions: list[Caption], source: str, out: Path, shares: Sequence[str], seed: int) -> tuple[list[Caption], dict[str, Any]]:
    """Draw splits by picture; a picture that had one of an earlier drawing with these shares and this seed stays in it, since a model may
    have been trained on the one split and measured on the other.

    Returns: captions, and what is to be remembered of the drawing
    """
    drawing, report, written = {"shares": list(shares), "seed": seed}, out / "report.json", out / "captions.jsonl"
    former: dict[str, str] = {}
    if report.is_file() and written.is_file():
        before = read_json(report, f"delete {report}", {"drawn?": {"shares": [str], "seed": int}}).get("drawn")
        former = {c.image: c.split for c in read_captions(written, "jsonl")} if before == drawing else {}
    kept = len({c.image for c in captions} & former.keys())
    captions = draw_splits(captions, parse_shares(shares), seed, former)
    told = f"; {kept:,} pictures stay where an earlier call put them" if kept else ""
    print(f"{source}: splits are drawn by picture, {' '.join(shares)}, seed {seed}{told}")
    return captions, drawing


def keeps_tokenizer(out: Path) -> bool:
    """Whether a run was trained with the tokenizer of an earlier call, and needs it; which is said."""
    run, tokenizer = out / "run", out / "tokenizer"
    if not (tokenizer / "vocab.txt").is_file() or not any((run / name).exists() for name in ("best", "last")):
        return False
    print(f"{tokenizer}: is kept as it is, since {run} was trained with it; delete {run} to train another on these captions")
    return True


def say_stale_indexes(out: Path, splits: Iterable[str]) -> None:
    """Say which indexes of an earlier call are not of these databases any more, and how they are built again."""
    databases: dict[str, Sequence[RegionDB | CaptionDB]] = {"index": [RegionDB(out / "regions", boxes_of(out / "regions"))], "index_captions": [CaptionDB(out / "db" / name) for name in splits]}
    for name, contents in databases.items():
        if not (out / name / "data.mdb").is_file():
            continue
        try:
            index = EmbeddingIndex(out / name)
            for database in contents:
                index.check_contents(database.folder, database.fingerprint())
        except BadInput:
            say(f"{out / name}: is not of {'the photographs' if name == 'index' else 'the captions'} as they are now; rm -r {shlex.quote(str(out / name))}, and the search command builds it again")
