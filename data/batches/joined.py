"""What several databases hold under one name is told apart: pictures and captions of joined databases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from data.captions.db import CaptionDB
from data.errors import BadInput
from data.progress import ProgressBar
from data.regions.arrays import PackedRegions, Regions
from data.regions.db import RegionDB
from data.storage.columns import Strings, string_arrays
from data.storage.regular_files import real_path


class ListColumn(list):
    """A list that is read like the databases' columns."""

    def take(self, rows) -> list:
        return [self[row] for row in rows]


class JoinedRegions:
    """Several region databases, with what a dataset reads of one.

    Args:
        databases: those of the pictures, each once
        names: for each database, key → the picture's name in the joined dataset
    """

    def __init__(self, databases: Sequence[RegionDB], names: Sequence[dict[str, str]]):
        self._first = databases[0]
        self._place = {
            name: (database, key)
            for database, named in zip(databases[1:], names[1:], strict=True)
            for key, name in named.items()
        }
        self.folder = ", ".join(dict.fromkeys(str(database.folder) for database in databases))
        self.feature_dim, self.num_labels = databases[0].feature_dim, databases[0].num_labels

    def rows_of(self, names: Sequence[str]) -> np.ndarray:
        """[N] int32 of each picture its row in its database."""
        places = [self._place.get(name, (self._first, name)) for name in names]
        rows = np.full(len(places), -1, np.int32)
        for database in dict.fromkeys(database for database, _ in places):
            own = [n for n, (each, _) in enumerate(places) if each is database]
            keys = Strings(string_arrays("key", [places[n][1] for n in own]), "key")  # all are looked up at once
            rows[own] = database.keys.match(keys)
        return rows

    def get(self, name: str, soft_labels: bool = True, row: int | None = None) -> Regions:
        """The regions of a picture of the joined dataset; the first database's pictures keep their keys as names. The arguments
        are as of `RegionDB.get`."""
        database, key = self._place.get(name, (self._first, name))
        return database.get(key, soft_labels, row)

    def read_into(self, packed: PackedRegions, name: str, row: int) -> None:
        """As `RegionDB.read_into`."""
        database, key = self._place.get(name, (self._first, name))
        database.read_into(packed, key, row)

    def soft_labels(self, name: str, row: int) -> np.ndarray:
        """As `RegionDB.soft_labels`."""
        database, key = self._place.get(name, (self._first, name))
        return database.soft_labels(key, row)

    def __getitem__(self, name: str) -> Regions:
        return self.get(name)


def names_apart(columns: Sequence[Iterable[str]], databases: Sequence[str]) -> list[list[str]]:
    """The names in several databases, told apart: where a database has a name that one before it has, all of its names get the
    database's in front.

    Args:
        columns: the names in each database
        databases: what each is called, see `short_names`
    """
    seen: set[str] = set()
    apart = []
    for column, database in zip(columns, databases, strict=True):
        own = list(column)
        if not seen.isdisjoint(own):
            own = [f"{database}/{name}" for name in own]
        if not seen.isdisjoint(own):
            raise BadInput(f"{database}: {min(seen.intersection(own))} is a name in another of the joined databases too")
        seen.update(own)
        apart.append(own)
    return apart


def short_names(folders: Sequence[str | Path]) -> list[str]:
    """For each of some folders, all different, the end of its path that no other has: ``coco/train`` and ``flickr/train``."""
    parts = [Path(folder).absolute().parts for folder in folders]
    for length in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def distinct_databases(databases: Sequence[RegionDB] | Sequence[CaptionDB]) -> list[int]:
    """For each region or caption database, which of the distinct ones it is: a folder under two names, or its copy, is one."""
    folders = [real_path(database.folder) for database in databases]
    first: list[int] = []  # the place of the first that is the same
    for n, database in enumerate(databases):
        first.append(next((m for m in range(n) if folders[m] == folders[n] or _is_copy(databases[m], database)), n))
    numbers = {m: number for number, m in enumerate(dict.fromkeys(first))}
    return [numbers[m] for m in first]


def _is_copy(a: RegionDB | CaptionDB, b: RegionDB | CaptionDB) -> bool:
    keys = [each.keys if isinstance(each, RegionDB) else each.ids for each in (a, b)]
    return len(a) == len(b) and keys[0][0] == keys[1][0] and a.fingerprint() == b.fingerprint()


def same_pictures(a: RegionDB, b: RegionDB, keys: Iterable[str]) -> set[str]:
    """Those of ``keys``, which both databases have, under which they hold the same regions."""
    same = set()
    for key in ProgressBar(keys, f"comparing {b.folder} with {a.folder}", unit="img"):
        if a.num_regions[key] != b.num_regions[key]:
            continue
        ours, theirs = (database.get(key, soft_labels=False) for database in (a, b))
        if np.array_equal(ours.features, theirs.features) and np.array_equal(ours.norm_bb, theirs.norm_bb):
            same.add(key)
    return same
