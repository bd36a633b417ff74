"""A split that is searched for in more than itself: the images and captions of other databases are candidates, not queries.

    pairs = open_gallery(open_pairs("db/test", "img/flickr30k", boxes), ["db/train", "db/val"], ["img/flickr30k"], boxes)
    pairs.num_queries, len(pairs.images)    # 5000, 31014: Flickr30k's full gallery
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.batches.joined import same_pictures, short_names
from data.batches.pairs import JoinedPairs, PairDataset
from data.captions.db import CaptionDB
from data.downloads.hub import folder_under
from data.errors import BadInput
from data.notices import say_once
from data.regions.db import BoxOptions, RegionDB, layout_of
from data.storage.regular_files import real_path


@dataclass
class IndexPart:
    """Images and captions of one database that are encoded into indexes of their own.

    Attributes:
        name: of the folder of the indexes, below that of the evaluation; "" for the split
        regions: where the images are
        images: [N] keys of those that no part before this one has
        pairs: whose captions they are; None: there are none
    """

    name: str
    regions: RegionDB
    images: Sequence[str]
    pairs: PairDataset | None


class GalleryPairs(JoinedPairs):
    """The pairs of a split, behind which those of its galleries stand; captions and images of the split alone are queries.

    A picture is a candidate once: in one image database a key is one picture, and so it is in two that hold the same regions under
    it. Other regions under an equal key are another picture. A caption that a gallery has of the split, or of a gallery before it,
    with the same id, picture and words, is a candidate once, too. Captions of a gallery that are about a picture of the split, and
    none of the split's, are right answers of that picture.

    Args:
        split: whose captions are queries
        galleries: pairs of further databases
        pictures: image databases of which all pictures are candidates

    Attributes:
        repeated: rows of the captions that are no candidates because they stand before already
    """

    must_agree = ("feature_dim",)

    def __init__(self, split: PairDataset, galleries: Sequence[PairDataset], pictures: Sequence[RegionDB] = ()):
        super().__init__([split, *galleries], pictures)
        self.split, self.galleries, self.pictures = split, galleries, pictures
        self.repeated = self._repeated_captions()
        for part in galleries:
            if bool(part.captions.languages) != bool(split.captions.languages):
                said, unsaid = (part, split) if part.captions.languages else (split, part)
                raise BadInput(
                    f"{said.captions.folder} says the languages of its captions, {unsaid.captions.folder} does not: which are "
                    "candidates of a query is then not known; build both with languages, or both without"
                )
        self._tell()

    @property
    def num_queries(self) -> int:
        return len(self.split)

    @property
    def candidate_rows(self) -> np.ndarray:
        return np.setdiff1d(np.arange(len(self)), self.repeated)

    def index_parts(self) -> list[IndexPart]:
        """The split and the galleries; their images, one part after the other, are ``images``, and their captions ``ids``."""
        parts = [self.split, *self.galleries, *[None] * len(self.pictures)]
        folders = [part.captions.folder if part else regions.img_db for part, (regions, _, _) in zip(parts, self._pictures, strict=True)]
        names = ["", *(f"gallery/{name}" for name in short_names(list(dict.fromkeys(folders[1:]))))]
        called, seen, found = dict(zip(dict.fromkeys(folders), names, strict=True)), 0, []
        for part, folder, (regions, keys, rows) in zip(parts, folders, self._pictures, strict=True):
            images = keys.take(np.flatnonzero(rows >= seen))
            found.append(IndexPart(called[folder], regions, images, part))
            seen += len(images)
        return found

    def _known_pictures(self, databases: Sequence[RegionDB], keys: Sequence[dict[str, None]]) -> list[dict[str, int]]:
        known: list[dict[str, int]] = [{} for _ in databases]
        for n, database in enumerate(databases):
            others = {key for m in range(n) for key in keys[n].keys() & keys[m].keys()}
            for m in range(n):
                shared = sorted(keys[m].keys() & others - known[n].keys())
                known[n] |= dict.fromkeys(same_pictures(databases[m], database, shared), m)
            if different := len(others) - len(known[n]):
                say_once(
                    f"{database.img_db}: has {different:,} keys of another image DB with other regions under them: they are taken for "
                    "other pictures"
                )
        return known

    def _repeated_captions(self) -> np.ndarray:
        seen: dict[tuple[int, str], int] = {}  # picture and id → row
        again: list[tuple[int, int]] = []
        for start, (part, rows) in zip(self._starts, self._parts):
            for row, key in enumerate(zip(rows[part.image_of].tolist(), part.ids), int(start)):
                if key in seen:
                    again.append((row, seen[key]))
                else:
                    seen[key] = row
        words = [self.words(np.array(rows)) for rows in zip(*again)] or [[], []]
        return np.array([row for (row, _), a, b in zip(again, *words, strict=True) if np.array_equal(a, b)], np.int64)

    def _tell(self) -> None:
        """Say what of the galleries is no candidate, or a right answer."""
        if len(self.repeated):
            say_once(f"galleries: {len(self.repeated):,} captions are there already (picture, id and words): they are candidates once")
        rest = self.candidate_rows[self.num_queries :]
        right = int((self.image_of[rest] < len(self.split.images)).sum())
        if right:
            say_once(f"galleries: {right:,} captions are of the split's images, and right answers of theirs")
        if self.split.captions.languages:
            spoken = self.caption_languages()
            other = rest[~np.isin(spoken[rest], spoken[: self.num_queries])]
            if len(other):
                names = ", ".join(dict.fromkeys(spoken[other].tolist()))
                say_once(f"galleries: {len(other):,} captions are in languages that no query has ({names}): they are no candidates")


def index_parts(pairs: PairDataset) -> list[IndexPart]:
    """A dataset and its galleries, where it has any."""
    return pairs.index_parts() if isinstance(pairs, GalleryPairs) else [IndexPart("", pairs.regions, pairs.images, pairs)]


def is_image_db(folder: str | Path) -> bool:
    """Whether a folder holds LMDB folders of regions."""
    return any(layout_of(path.name) and path.is_dir() for path in Path(folder).glob("*"))


def open_gallery(
    split: PairDataset,
    galleries: Sequence[str],
    regions: Sequence[str],
    options: BoxOptions,
    languages: list[str] | None = None,
    root: str = ".",
) -> GalleryPairs:
    """A split with galleries; relative folders start at ``root``.

    Args:
        galleries: text DBs, and image DBs of which all pictures are candidates, without captions
        regions: the image DB of the text DBs, or one for each
        languages: only captions in these; None: all

    Raises:
        BadInput: as `open_pairs` does; captions of which some say their language and some do not.
    """
    folders = [folder_under(root, name) for name in galleries]
    texts = [folder for folder in folders if not is_image_db(folder)]
    if len(regions) not in (1, len(texts)):
        raise BadInput(f"{len(texts)} text DBs among the galleries need one image DB or as many, found {len(regions)}: {', '.join(regions)}")
    opened = {real_path(split.regions.img_db): split.regions}

    def region_db(folder: Path) -> RegionDB:
        return opened.get(real_path(folder)) or opened.setdefault(real_path(folder), RegionDB(folder, options))

    parts = [
        PairDataset(CaptionDB(folder), region_db(folder_under(root, regions[n % len(regions)])), -1, languages, split.image_captions)
        for n, folder in enumerate(texts)
    ]
    return GalleryPairs(split, parts, [region_db(folder) for folder in folders if is_image_db(folder)])
