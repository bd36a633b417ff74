"""Which kind of database a folder holds, and the report on it."""

from __future__ import annotations

import shlex
from pathlib import Path

from data.checks.captions import TABLES, inspect_captions
from data.checks.images import COPIES, inspect_images
from data.checks.indexes import inspect_index
from data.checks.records import InspectionOptions, walked_keys
from data.checks.report import Findings, Report
from data.errors import BadInput
from data.notices import say
from data.regions.db import layout_of
from data.storage.lmdb_env import reader
from data.storage.regular_files import real_path


def inspect_database(path: Path, options: InspectionOptions) -> list[Report]:
    """The reports of one database; of an image DB one for each of its LMDB folders.

    Raises:
        BadInput: no database of ours or of UNITER's, a truncated LMDB, a missing or bad JSON table.
    """
    folders = sorted(p.parent for p in path.glob("*/data.mdb")) if path.is_dir() else []
    if (path / "data.mdb").exists():
        named = path if layout_of(path.name) else real_path(path)  # "." has no name
        if layout_of(named.name):
            return [inspect_images(named, options)]
        if any((path / f"{name}.json").exists() for name in TABLES):
            return [inspect_captions(path, options)]
        if reader(path).get(b"header") is not None:
            return [inspect_index(path, options)]
        keys = ", ".join(walked_keys(path, [], Findings())[:3])
        raise BadInput(
            f"{path}: an LMDB, but no image DB (by its name), text DB (id2len.json and others) or feature index "
            f"(key header); its first keys are {keys or 'none'}"
        )
    images = [folder for folder in folders if layout_of(folder.name)]
    if images:
        reports = [inspect_images(folder, options) for folder in images]
        for folder in sorted(set(folders) - set(images)):
            reports[0].notes.add("folders of another name, not read", str(folder))
        return reports
    if folders:
        raise BadInput(f"{path}: holds databases, give one of them: {', '.join(str(folder) for folder in folders)}")
    found = "a file" if path.is_file() else "no such folder" if not path.exists() else None
    found = found or f"a folder with {', '.join(sorted(p.name for p in path.iterdir())[:5]) or 'nothing'}"
    raise BadInput(f"{path}: found {found}; expected the folder of an image DB, a text DB or a feature index")


def require_sound(folder: Path, regions: str | None) -> dict[str, dict]:
    """Read all of a database, print that nothing is wrong → path of each database -> its number of records. Photographs of which there
    are copies are no reason to refuse the rest: they are said.

    Args:
        regions: of a text DB, the image DB that its pictures must be in

    Raises:
        BadInput: something is wrong; names the command that shows all of it.
    """
    sound = {}
    words = [str(folder), "--verify", "--workers", "0", *(["--regions", regions] if regions else [])]
    for found in inspect_database(folder, InspectionOptions(verify=True, workers=0, regions=regions)):
        if 0 < found.problems.counts[COPIES] <= found.facts["records"] // 2:  # of more the extractor is to blame
            say(f"{found.path}: {COPIES}: {found.problems.counts.pop(COPIES):,}, the first: {found.problems.examples[COPIES][0]}; each counts as one of its own")
        if found.problems.counts:
            raise BadInput(
                f"{found.path}: {'; '.join(found.problems.counts)}; see python scripts/inspect_db.py {shlex.join(words)}"
            )
        print(f"{found.path}: {found.facts['records']:,} records, nothing is wrong")
        sound[found.path] = {"records": found.facts["records"], "problems": {}}
    return sound
