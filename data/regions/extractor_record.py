"""Who made the regions of an image DB: extractor, options and weights, in ``extractor.json`` in the LMDB's folder.

Databases of other tools have no such file, and features that somebody else extracted say nothing either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.storage.regular_files import is_there
from data.storage.shapes import check_shape
from data.storage.text_files import read_json

FILE = "extractor.json"
PRECOMPUTED = "precomputed"  # the name of features whose extractor nobody told us
_SHAPE = {"name": str, "options": {str: object}, "weights": (str, None), "source?": (str, None)}


@dataclass(frozen=True)
class ExtractorRecord:
    """An extractor as its database remembers it.

    Args:
        name: as --extractor takes it, for instance ``random-conv`` or ``hf:facebook/dinov2-base``
        options: those on which its features depend, and their values
        weights: digest of its weights; None where there are none
        source: where they were read from, as --weights took it; None for the usual ones
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    source: str | None = None

    @classmethod
    def from_json(cls, values: Any, source: str | Path) -> ExtractorRecord:
        """Raises BadInput for values of another form; ``source`` is where they stand."""
        check_shape(values, _SHAPE, str(source), "it says who made regions; copy the file again")
        return cls(values["name"], values["options"], values["weights"], values.get("source"))

    @property
    def kind(self) -> str:
        """The name without the network that it wraps, of which the digest of the weights tells more."""
        return self.name.partition(":")[0]

    def is_same(self, other: ExtractorRecord) -> bool:
        """Whether both give the same features."""
        return (self.kind, self.options, self.weights) == (other.kind, other.options, other.weights)

    def described(self, others: Mapping[str, Any] | None = None) -> str:
        """For messages, as it would be asked for; of its options those that differ from ``others``."""
        words = [self.name]
        words += [
            f"--{name.replace('_', '-')} {value}"
            for name, value in self.options.items()
            if others is None or others.get(name) != value
        ]
        return " ".join(words)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def described_apart(one: ExtractorRecord, other: ExtractorRecord) -> tuple[str, str]:
    """Both, so that a reader sees in what they differ."""
    if one.kind != other.kind:
        return one.described(), other.described()
    first, second = one.described(other.options), other.described(one.options)
    if one.weights != other.weights and first == second:
        first, second = f"{first} (weights {one.weights})", f"{second} (weights {other.weights})"
    return first, second


def read_extractor(folder: Path) -> ExtractorRecord | None:
    """Who made the regions of an LMDB folder; None where nothing says it.

    Raises:
        BadInput: the file is damaged.
    """
    path = folder / FILE
    if not is_there(path):
        return None
    return ExtractorRecord.from_json(read_json(path), path)
