"""Files that a search backend makes of an index and keeps in the index's folder.

Backend NAME owns ``NAME.json``, which says of which state of the index its files were made, and any other ``NAME.*``. Without a
``NAME.json`` that fits they are not read; and whoever changes the index deletes them all (``delete_derived_files``), whatever
backends there are.
"""

from __future__ import annotations

import glob
import json
from pathlib import Path

from isal.isal_zlib import crc32

from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.storage.text_files import read_json, write_json

_CHECKSUM = "checksum"  # in NAME.json, of what else it says


class DerivedFiles:
    """The files of one backend beside one index.

    Args:
        index: the index, in the state that the files are about
        name: of the backend
        version: of the files' format; those of another are stale
    """

    def __init__(self, index: EmbeddingIndex, name: str, version: int):
        self.folder, self.name = index.folder, name
        self._made_from = {"version": version, "index": index.stamp}

    def path(self, suffix: str) -> Path:
        return self.folder / f"{self.name}.{suffix}"

    def description(self) -> dict | None:
        """What NAME.json says; None where there are no files. Raises BadInput where it is damaged."""
        if not self.path("json").exists():
            return None
        about = read_json(self.path("json"))
        if about.pop(_CHECKSUM, None) != _checksum_of(about):  # which may itself be what is gone
            raise BadInput(f"{self.path('json')}: damaged, it is not what was written; delete it")
        return about

    def fit(self, about: dict) -> bool:
        """Whether the files that ``about`` describes were made of the index as it is."""
        return all(about.get(name) == value for name, value in self._made_from.items())

    def describe(self, about: dict) -> None:
        """Write NAME.json: what the files were made from, and ``about``. The files must be there already."""
        about = self._made_from | about
        write_json(self.path("json"), about | {_CHECKSUM: _checksum_of(about)})

    def disown(self) -> None:
        """Delete NAME.json before the files change: what is half written is then nobody's."""
        self.path("json").unlink(missing_ok=True)


def _checksum_of(about: dict) -> str:
    return f"{crc32(json.dumps(about, sort_keys=True).encode()):08x}"


def delete_derived_files(folder: Path) -> None:
    """Delete every backend's files of an index that has changed; other files that somebody put there stay."""
    for description in folder.glob("*.json"):
        try:
            ours = read_json(description).keys() >= {"version", "index"}
        except BadInput:
            continue
        if ours:
            for path in folder.glob(f"{glob.escape(description.stem)}.*"):
                if path != description:
                    path.unlink(missing_ok=True)
            description.unlink(missing_ok=True)  # last, so that an interrupted deletion is done again
