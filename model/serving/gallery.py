"""The pictures of a gallery, by their ids: what they look like, what was said of them, and where their regions are."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from data.captions.db import CaptionDB
from data.errors import BadInput
from data.regions.db import RegionDB
from data.regions.photos import Photo, read_photo
from data.regions.pictures import PictureFiles

SIZES = (16, 2048)  # least and most pixels of a picture's longer side
CACHE_BYTES = 64 << 20  # of pictures, as they are sent
CAPTIONS_REMEMBERED = 50_000  # pictures


class Gallery:
    """What is shown of the images of an index.

    Args:
        photos: their files; None: there are none
        captions: text DBs; where several have a caption of one id, the first counts
        regions: image DB of the boxes; None: they are not shown

    All methods may be called by any thread.
    """

    def __init__(self, photos: PictureFiles | None, captions: Sequence[CaptionDB] = (), regions: RegionDB | None = None):
        self.photos, self.captions, self.regions = photos, list(captions), regions
        self._sent = _RecentBytes(CACHE_BYTES)
        self.captions_of = lru_cache(CAPTIONS_REMEMBERED)(self._captions_of)

    def _captions_of(self, key: str) -> list[dict[str, str]]:
        """``id``, ``text`` and ``language`` of the captions of an image."""
        found: dict[str, dict[str, str]] = {}
        for database in self.captions:
            for name in database.img2txts.get(key, ()):
                found.setdefault(name, self._caption(database, name))
        return list(found.values())

    def caption(self, name: str) -> dict[str, str] | None:
        """``id``, ``text``, ``language`` and ``image`` of a caption; None where no text DB has it."""
        for database in self.captions:
            if name in database:
                return self._caption(database, name) | {"image": database.txt2img[name]}
        return None

    @staticmethod
    def _caption(database: CaptionDB, name: str) -> dict[str, str]:
        return {"id": name, "text": str(database[name].get("raw", "")), "language": database.languages.get(name, "")}

    def regions_of(self, key: str) -> list[dict[str, Any]] | None:
        """``box`` (x1 y1 x2 y2, shares of width and height) and ``confidence`` of the regions that the model sees, most confident
        first; None where no image DB has the image."""
        if self.regions is None or key not in self.regions:
            return None
        regions = self.regions.get(key, soft_labels=False)
        boxes, confidence = regions.norm_bb[:, :4].astype(float).tolist(), regions.conf.astype(float).tolist()
        return [{"box": box, "confidence": value} for box, value in zip(boxes, confidence, strict=True)]

    def has_picture(self, key: str) -> bool:
        """Whether there is a file of the image."""
        return self._path(key) is not None

    def _path(self, key: str) -> Path | None:
        return None if self.photos is None else self.photos.find(key)

    def picture(self, key: str, size: int) -> bytes | None:
        """The picture as JPEG, upright, no side longer than ``size`` and never enlarged; None where there is no file.

        Raises:
            BadInput: a size out of bounds; the file cannot be read.
        """
        if not SIZES[0] <= size <= SIZES[1]:
            raise BadInput(f"size is {size}, expected {SIZES[0]} to {SIZES[1]} pixels")
        path = self._path(key)
        return None if path is None else self._sent.get((key, size), lambda: _as_jpeg(path, key, size))


def _as_jpeg(path: Path, key: str, size: int) -> bytes:
    try:
        image = read_photo(Photo(key, key, path, path.name))
    except Exception as error:  # Pillow raises many kinds on damaged files; the path is nobody's business
        raise BadInput(f"the picture of {key!r} cannot be read ({type(error).__name__})") from None
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=88)
    return out.getvalue()


class _RecentBytes:
    """Values that were asked for lately, up to so many bytes."""

    def __init__(self, limit: int):
        self._limit, self._size, self._lock = limit, 0, threading.Lock()
        self._values: OrderedDict[Any, bytes] = OrderedDict()

    def get(self, key: Any, make: Callable[[], bytes]) -> bytes:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self._size += len(value)
            while self._size > self._limit:
                self._size -= len(self._values.popitem(last=False)[1])
        return value
