"""What is not written over: what else stands in a database's folder when it is built again, a file that the same command reads, and the
parts of databases, indexes, checkpoints and runs."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

from data.errors import BadInput

Settings = TypeVar("Settings")
# Of text and image databases, ours and UNITER's, and what our commands note beside them.
_PARTS = (
    "data.mdb", "lock.mdb", "checksums.npz", "digest.json", "columns*", "meta.json", "id2len.json", "txt2img.json", "img2txts.json",
    "txt2lang.json", "tokenizer", "extractor.json", "pictures.json", "settings.json", "nbb_*.json", ".*",
)  # fmt: skip

_HOLDERS = ("data.mdb", "model.safetensors", "ranks.npz", "run.json")  # a folder with one of these is a database's, a checkpoint's ...
_KEPT = (
    *_PARTS[:-1], "config.json", "data.json", "val.json", "model.safetensors", "*.pt", "results.json", "ranks.npz", "config.yaml", "run.json",
    "metrics.jsonl", "hnsw.*", "ivfpq.*",
)  # fmt: skip
_named: Counter[str] = Counter()  # real paths, as often as the words of this command name them


def note_named(settings: Settings) -> Settings:
    """These are the settings of this command, a dataclass, some of whose texts name files → the same."""
    _named.clear()
    _named.update(os.path.realpath(name) for name in _texts_of(settings) if name and "\0" not in name)
    return settings


def _texts_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif dataclasses.is_dataclass(value) or isinstance(value, dict):
        for each in (value if isinstance(value, dict) else vars(value)).values():
            yield from _texts_of(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts_of(each)


def check_written_over(path: str | Path) -> None:
    """Raise BadInput where a file that a command is about to write is there, and one that it reads, or part of something else."""
    real = Path(os.path.realpath(path))
    if not real.is_file():
        return
    if _named[str(real)] > 1:
        raise BadInput(f"{path}: is read by this command, which would write over it; choose another file to write")
    if any(fnmatch(real.name, name) for name in _KEPT) and any((real.parent / name).exists() for name in _HOLDERS):
        raise BadInput(f"{path}: is part of a database, an index, a checkpoint or a run, and is not written over; choose another file to write")


def other_part(folder: Path) -> str | None:
    """The name of something in a database's folder that is no part of a database, such as a run or an index that somebody put there."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return next((name for name in names if not any(fnmatch(name, part) for part in _PARTS)), None)


def check_only_own(folder: Path) -> None:
    """Raise BadInput where a folder that is about to be replaced holds more than a database."""
    if (name := other_part(folder)) is not None:
        raise BadInput(f"{folder}: holds {name}, which is no part of the database and would be deleted with it; move it elsewhere first")
