"""The queries of an evaluation that ranked their answers worst, with pictures and with what stood before them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from data.captions.db import CaptionDB
from data.downloads.hub import folder_under
from data.errors import BadInput
from data.regions.photos import scaled_photo
from data.regions.pictures import PictureFiles, read_pictures
from model.evaluation.failures import Choice, Failures
from scripts.reporting.results import EvaluationReport

SHOWN = 3  # right answers, and wrong ones, of a query
SIDE = 150  # pixels of a picture


@dataclass
class Item:
    """A picture or a caption: ``picture`` is a data URI, empty where there is none."""

    label: str
    text: str = ""
    picture: str = ""


@dataclass
class Failure:
    """A query, where its best right answer ranked, that answer, and what stood first."""

    query: Item
    rank: int
    task: str
    right: list[Item]
    first: list[Item] = field(default_factory=list)


class WorstQueries:
    """Reads what an evaluation left behind; what of it is gone or another's by now (indexes, captions, pictures) is left out.

    Args:
        photos: folder of the pictures; None: where the image DB says that they are
    """

    def __init__(self, report: EvaluationReport, photos: str | None = None):
        self.report, self._photos = report, photos
        self._failures = Failures(report.folder)
        self._thumbnails: dict[str, str] = {}

    @cached_property
    def _captions(self) -> CaptionDB | None:
        config = self.report.results.get("config", {})
        captions = _if_there(lambda: CaptionDB(folder_under(config.get("data_root", "."), config["captions"])))
        known = self._failures.a.text_dbs
        return captions if captions is not None and (not known or captions.fingerprint() in known) else None

    @cached_property
    def _pictures(self) -> PictureFiles | None:
        pictures = _if_there(lambda: read_pictures(self.report.folder / "img"))
        if self._photos is not None:
            return PictureFiles(self._photos, pictures)
        there = pictures is not None and pictures.photos and Path(pictures.photos).is_dir()
        return _if_there(lambda: PictureFiles(pictures.photos, pictures)) if there else None

    def texts(self, number: int) -> list[Failure]:
        """The captions whose picture ranked worst, worst first; those that ranked it first are none."""
        return self._worst("t2i", number, self.caption, self.picture)

    def images(self, number: int) -> list[Failure]:
        """The pictures whose best caption ranked worst, worst first."""
        return self._worst("i2t", number, self.picture, self.caption)

    def _worst(
        self, direction: Literal["t2i", "i2t"], number: int, query: Callable[[str], Item], answer: Callable[[str], Item]
    ) -> list[Failure]:
        """Of all languages together; ``query`` and ``answer`` say what is behind an id."""
        found = []
        for language in self._failures.languages:
            page = self._failures.page(Choice(direction, language), 0, number)
            found += [(each["rank"], language, each) for each in page["queries"]]
        return [
            Failure(query(each["id"]), rank, language, *([answer(i) for i in (each[names] or [])[:SHOWN]] for names in ("right", "before")))
            for rank, language, each in sorted(found, key=lambda one: -one[0])[:number]
        ]

    def caption(self, name: str) -> Item:
        record = _if_there(lambda: self._captions[name]) if self._captions is not None else None
        return Item(name, (record or {}).get("raw") or f"caption {name}")

    def picture(self, key: str) -> Item:
        if key not in self._thumbnails:
            path = self._pictures.find(key) if self._pictures is not None else None
            self._thumbnails[key] = "" if path is None else thumbnail(path)
        return Item(key, picture=self._thumbnails[key])


def thumbnail(path: Path) -> str:
    """A small copy of a picture as a data URI; empty when it cannot be read."""
    try:
        picture = scaled_photo(path, SIDE)
    except BadInput:
        return ""
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return data_uri("image/jpeg", buffer.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """Bytes inside a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _if_there(read: Callable):
    try:
        return read()
    except (BadInput, KeyError):
        return None
