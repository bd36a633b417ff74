"""What is behind the ids of an index: the picture files of its images, the texts of its captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.errors import BadInput
from data.regions.pictures import PictureFiles, Pictures, read_pictures
from data.search.base import SearchBackend
from model.retrieval.results import Hit

CaptionsGiven = str | Path | CaptionDB | Sequence[str | Path] | Mapping[str, str] | None
"""A text database or several, or texts by their ids; None: they are not known."""


@dataclass
class Contents:
    """What is behind the ids of hits.

    Args:
        photos: the picture files of the images
        captions: text databases with the captions
        texts: captions by their ids, instead
        decode: reads the word pieces of a caption whose text a database does not hold
    """

    photos: PictureFiles | None = None
    captions: Sequence[CaptionDB] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    decode: Callable[[Sequence[int]], str] | None = None

    def shown(self, hits: Sequence[Hit], kind: str) -> list[Hit]:
        """The hits with what they say or where they are; ``kind`` is that of the index, "img" or "txt"."""
        if kind == "img":
            return [hit._replace(path=self.photos.find(hit.id)) for hit in hits] if self.photos is not None else list(hits)
        return [hit._replace(text=self._text(hit.id)) for hit in hits] if self.captions or self.texts else list(hits)

    def check_captions(self, backend: SearchBackend) -> None:
        """Raise BadInput where an index of captions was built from none of the text databases as they are."""
        problems = []
        for captions in self.captions if backend.kind == "txt" else ():
            try:
                backend.check_contents(captions.folder, captions.fingerprint())
            except BadInput as error:
                problems.append(error)
        if problems and len(problems) == len(self.captions):
            raise problems[0]

    def _text(self, name: str) -> str | None:
        for captions in self.captions:
            if name in captions:
                record = captions[name]
                return record.get("raw") or (self.decode(record["input_ids"]) if self.decode else None)
        return self.texts.get(name)


def open_contents(
    photos: str | Path | None, captions: CaptionsGiven, places: Sequence[object], words: CaptionTokenizer | None
) -> Contents:
    """What hits show.

    Args:
        photos: folder of the pictures
        captions: of the images, or of the index
        places: index and image DB, as far as they are folders: they say the pictures of their keys
        words: reads captions whose text a database does not hold

    Raises:
        BadInput: no pictures there, a text database that cannot be opened.
    """
    files = None
    if photos is not None:
        said: list[Pictures] = [found for place in places if isinstance(place, str | Path) and (found := read_pictures(place)) is not None]
        files = PictureFiles(photos, said[0] if said else None)
    if captions is None or isinstance(captions, Mapping):
        return Contents(files, texts=captions or {})
    given = [captions] if isinstance(captions, str | Path | CaptionDB) else list(captions)
    databases = [each if isinstance(each, CaptionDB) else CaptionDB(each) for each in given]
    return Contents(files, databases, decode=None if words is None else words.decode)
