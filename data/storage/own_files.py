"""What a database's folder holds of its own: who builds a database again replaces its folder, and nothing else may go with it."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from data.errors import BadInput

# Of text and image databases, ours and UNITER's, and what our commands note beside them.
_PARTS = (
    "data.mdb", "lock.mdb", "checksums.npz", "digest.json", "columns*", "meta.json", "id2len.json", "txt2img.json", "img2txts.json",
    "txt2lang.json", "tokenizer", "extractor.json", "pictures.json", "settings.json", "nbb_*.json", ".*",
)  # fmt: skip


def other_part(folder: Path) -> str | None:
    """The name of something in a database's folder that is no part of a database, such as a run or an index that somebody put there."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return next((name for name in names if not any(fnmatch(name, part) for part in _PARTS)), None)


def check_only_own(folder: Path) -> None:
    """Raise BadInput where a folder that is about to be replaced holds more than a database."""
    if (name := other_part(folder)) is not None:
        raise BadInput(f"{folder}: holds {name}, which is no part of the database and would be deleted with it; move it elsewhere first")
