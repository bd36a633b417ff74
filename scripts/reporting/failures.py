"""The queries of an evaluation that ranked their answers worst, with pictures and with what stood before them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import ImageOps

from data.captions.db import CaptionDB
from data.downloads.hub import folder_under
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.regions.pictures import PictureFiles, read_pictures
from data.search.exact import ExactSearch
from data.storage.picture_files import opened_picture
from model.evaluation.outcomes import read_ranks
from scripts.reporting.results import EvaluationReport

BEFORE = 3  # wrong answers shown
LOOKED_AT = 100  # results among which those of a language are looked for
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


class Failures:
    """Reads what an evaluation left behind; what of it is gone (indexes, captions, pictures) is left out.

    Args:
        photos: folder of the pictures; None: where the image DB says that they are
    """

    def __init__(self, report: EvaluationReport, photos: str | None = None):
        self.report, self._photos = report, photos
        self.img_ids, self.txt_ids, self.ranks = read_ranks(report.folder / str(report.results["ranks"]))
        self._thumbnails: dict[str, str] = {}

    @cached_property
    def _captions(self) -> CaptionDB | None:
        config = self.report.results.get("config", {})
        return _if_there(lambda: CaptionDB(folder_under(config.get("data_root", "."), config["captions"])))

    @cached_property
    def _pictures(self) -> PictureFiles | None:
        pictures = _if_there(lambda: read_pictures(self.report.folder / "img"))
        if self._photos is not None:
            return PictureFiles(self._photos, pictures)
        there = pictures is not None and pictures.photos and Path(pictures.photos).is_dir()
        return _if_there(lambda: PictureFiles(pictures.photos, pictures)) if there else None

    @cached_property
    def _indexes(self) -> dict[str, EmbeddingIndex]:
        found = {kind: _if_there(lambda kind=kind: EmbeddingIndex(self.report.folder / kind)) for kind in ("img", "txt")}
        return {kind: index for kind, index in found.items() if index is not None}

    def texts(self, number: int) -> list[Failure]:
        """The captions whose picture ranked worst, worst first; those that ranked it first are none."""
        worst = [(int(rank), name, n) for name, task in self.ranks.items() for n, rank in enumerate(task.t2i) if rank > 0]
        found = []
        for rank, name, n in sorted(worst, key=lambda each: -each[0])[:number]:
            caption, image = self.txt_ids[name][n], self.img_ids[self.ranks[name].image_of[n]]
            first = self._before("txt", caption, "img", {image}, None)
            found.append(Failure(self.caption(caption), rank + 1, name, [self.picture(image)], [self.picture(i) for i in first]))
        return found

    def images(self, number: int) -> list[Failure]:
        """The pictures whose best caption ranked worst, worst first."""
        worst = [(int(rank), name, n) for name, task in self.ranks.items() for n, rank in enumerate(task.i2t) if rank > 0]
        found = []
        for rank, name, n in sorted(worst, key=lambda each: -each[0])[:number]:
            row, ids = int(self.ranks[name].queries[n]), self.txt_ids[name]
            own = [ids[caption] for caption in np.flatnonzero(self.ranks[name].image_of == row)]
            first = self._before("img", self.img_ids[row], "txt", set(own), set(ids))
            found.append(Failure(self.picture(self.img_ids[row]), rank + 1, name, [self.caption(i) for i in own[:BEFORE]], [self.caption(i) for i in first]))
        return found

    def _before(self, kind: str, query: str, other: str, right: set[str], among: set[str] | None) -> list[str]:
        """Ids of the best wrong answers of a query, from the indexes of the evaluation."""
        if kind not in self._indexes or other not in self._indexes or query not in self._indexes[kind]:
            return []
        index, backend = self._indexes[kind], ExactSearch(self._indexes[other])
        _, rows = backend.search(index.vectors(np.array([index.row_of(query)])), min(LOOKED_AT, backend.count))
        names = backend.ids(rows[0])
        return [name for name in names if name not in right and (among is None or name in among)][:BEFORE]

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
        with opened_picture(path) as file:
            picture = ImageOps.contain(ImageOps.exif_transpose(file).convert("RGB"), (SIDE, SIDE))
    except (OSError, BadInput):
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
