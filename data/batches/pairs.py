"""Caption–image pairs: a caption database and a region database as one dataset."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.batches.batch import Examples
from data.batches.joined import JoinedRegions, ListColumn, distinct_databases, names_apart, short_names
from data.captions.db import CaptionDB
from data.downloads.hub import DATASET, PREFIX, folder_under, is_on_hub, local_folder
from data.errors import BadInput
from data.regions.arrays import StoredPictures
from data.regions.db import BoxOptions, RegionDB
from data.storage.columns import SelectedStrings, Strings


@dataclass
class ImageCaptions:
    """Captions of the images themselves, written by a captioning model for instance: the third view.

    Attributes:
        captions: text DB; all its captions of an image are read as one text, [CLS] c1 [SEP] c2 [SEP] ...
        weight: share of their embedding in an image's score
    """

    captions: CaptionDB
    weight: float

    def input_ids(self, key: str) -> np.ndarray:
        """[C] int64 with [CLS] and [SEP]."""
        meta = self.captions.meta
        words = [meta["CLS"]]
        for caption_id in self.captions.img2txts[key]:
            words += [*self.captions.input_ids(caption_id), meta["SEP"]]
        return np.array(words, dtype=np.int64)

    def lengths(self, images: Sequence[str]) -> np.ndarray:
        """[N] how many ``input_ids`` gives for each of N images; 1 where an image has no caption."""
        captions = self.captions.img2txts.column
        ends = np.cumsum(np.append(0, self.captions.lengths.column.array[captions.rows] + 1))[captions.ends]
        rows = self.captions.img2txts.names.match(images)
        return 1 + np.where(rows < 0, 0, np.diff(ends)[rows])

    def check(self, keys: Sequence[str]) -> None:
        """Raise BadInput unless every image has a caption."""
        absent = np.flatnonzero(self.lengths(keys) == 1)  # [CLS] alone
        if len(absent):
            raise BadInput(
                f"{self.captions.folder}: has no caption of image {keys[absent[0]]}, which the third view needs ({len(absent)} of "
                f"{len(keys)} images have none)"
            )


class PairDataset:
    """The caption–image pairs of one caption DB and one region DB.

    Args:
        max_txt_len: captions of more tokens than this, [CLS] and [SEP] included, are dropped; -1 keeps all
        languages: keep only captions in these; None keeps all
        image_captions: the third view

    Attributes:
        ids: [N] caption ids; views of the database's columns, as ``images``
        images: the pictures of those captions, in the order of the annotations
        image_of: [N] int32, the caption's picture in ``images``; may be mapped from disk, read-only
        region_rows: [I] int32, the picture's row in its region database
        txt_lengths, img_lengths: [N] int32, [CLS] and [SEP] included
        cut: captions that `cut_captions` made shorter
        dropped: captions in those languages that are longer than ``max_txt_len``
        teacher: what `read_teacher_scores` gave for ``ids`` and ``images``; None without distillation

    Raises:
        BadInput: a caption's image is not in the region DB, or no caption is left.
    """

    def __init__(
        self,
        captions: CaptionDB,
        regions: RegionDB,
        max_txt_len: int = -1,
        languages: list[str] | None = None,
        image_captions: ImageCaptions | None = None,
    ):
        self.captions, self.regions, self.image_captions = captions, regions, image_captions
        self.teacher: tuple[np.ndarray, np.ndarray] | None = None
        self.languages, self.cut = languages, 0
        self.ids, self.txt_lengths, of, self.dropped = _kept(captions, max_txt_len, languages)
        keys = captions.img2txts.names  # in the order of the annotations
        is_used = np.zeros(len(keys), bool)
        is_used[of] = True
        used = np.flatnonzero(is_used)
        self.images: Strings | SelectedStrings = keys if len(used) == len(keys) else SelectedStrings(keys, used)
        self.image_of = of
        if len(used) < len(keys):
            number = np.zeros(len(keys), np.int32)
            number[used] = np.arange(len(used))
            self.image_of = number[of]
        rows = regions.keys.match(self.images)
        absent = np.flatnonzero(rows < 0)
        if len(absent):
            caption_id = self.ids[int((self.image_of == absent[0]).argmax())]
            raise BadInput(
                f"{captions.folder}: caption {caption_id} is about {self.images[absent[0]]}, which is not in "
                f"{regions.folder} ({len(absent)} of {len(used)} images are not); extract their regions, or build "
                "the captions with --regions and --skip-missing"
            )
        self.region_rows = rows
        if image_captions is not None:
            image_captions.check(self.images)
        self.img_lengths = (regions.num_regions.column.array[rows] + 1)[self.image_of]  # with [CLS]

    def __len__(self) -> int:
        return len(self.ids)

    def at_most(self, tokens: int) -> PairDataset:
        """The pairs whose captions have at most so many tokens, [CLS] and [SEP] included; itself where all have.

        Raises:
            BadInput: none has.
        """
        if int(self.txt_lengths.max()) <= tokens:
            return self
        return PairDataset(self.captions, self.regions, tokens, self.languages, self.image_captions)

    def cut_captions(self, tokens: int) -> None:
        """Cut captions to so many tokens, [CLS] and [SEP] included, wherever those of this dataset are read."""
        self.cut = max(self.cut, int((self.txt_lengths > tokens).sum()))  # lengths are of what an earlier cut left
        for part, _ in self.parts:
            part.captions.max_words = tokens - 2
            part.txt_lengths = np.minimum(part.txt_lengths, tokens)
        self.txt_lengths = np.minimum(self.txt_lengths, tokens)

    def examples(
        self,
        indices: np.ndarray,
        num_pairs: int | None = None,
        image_indices: np.ndarray | None = None,
    ) -> Examples:
        """What the databases hold of the pairs at ``indices``; the arguments are as in `Examples`.

        Args:
            image_indices: the pairs whose images are taken instead, as many
        """
        indices = np.asarray(indices)
        of_images = indices if image_indices is None else np.asarray(image_indices)
        images = self.image_of[of_images]
        view, img_keys = self.image_captions, self.images.take(images)
        regions = StoredPictures(self.regions, img_keys, self.region_rows[images], self.img_lengths[of_images] - 1)
        examples = Examples(
            self.captions.meta, self.ids.take(indices), img_keys, images.astype(np.int64), self.words(indices), regions, num_pairs
        )
        if image_indices is not None:
            examples.text_image_ids = self.image_of[indices].astype(np.int64)
        if view is not None:
            examples.captions = [view.input_ids(key) for key in img_keys]
            examples.caption_weight = view.weight
        if self.teacher is not None:
            examples.teacher_images, examples.teacher_scores = (each[indices] for each in self.teacher)
        return examples

    def words(self, indices: np.ndarray) -> list[np.ndarray]:
        """Word pieces of the captions at ``indices``, [L] int64 without [CLS] and [SEP]."""
        indices = np.asarray(indices)
        rows = self.ids.rows[indices] if isinstance(self.ids, SelectedStrings) else indices  # in the database
        named = zip(self.ids.take(indices), rows.tolist(), strict=True)
        return [np.asarray(self.captions.input_ids(caption_id, row), dtype=np.int64) for caption_id, row in named]

    def caption_languages(self) -> np.ndarray:
        """[N] the language of each caption, "" where it is not said."""
        return np.array([self.captions.languages.get(i, "") for i in self.ids])

    @property
    def parts(self) -> list[tuple[PairDataset, np.ndarray]]:
        """The datasets of one database each, and for each the rows of its pictures in ``images``."""
        return [(self, np.arange(len(self.images)))]

    @property
    def region_databases(self) -> list[RegionDB]:
        """Where the regions of its pictures are, each database once."""
        return [self.regions]

    def captions_folder(self, row: int) -> Path:
        """The database that a caption is in."""
        return self.captions.folder

    @property
    def num_queries(self) -> int:
        """So many captions, the first, are queries of an evaluation; what else there is are candidates only."""
        return len(self)

    @property
    def candidate_rows(self) -> np.ndarray:
        """Rows of the captions that are candidates of an evaluation, in their order."""
        return np.arange(len(self))


class JoinedPairs(PairDataset):
    """The pairs of several databases as one dataset: COCO's train and restval, for instance.

    Equal keys of two region databases are two pictures, and equal ids of two caption databases two captions: those of the later
    database get its name in front (``flickr/train/17``). Of one region database, or of one and its copy, a key is one picture,
    whichever captions are about it.

    Args:
        parts: the pairs of one database each
        more: databases whose pictures stand behind those of ``parts``, whether a caption is about them or not

    Raises:
        BadInput: the databases have other special words, feature widths or soft labels than the first; one caption database comes
            twice.
    """

    must_agree: tuple[str, ...] = ("feature_dim", "num_labels")  # among region databases

    def __init__(self, parts: Sequence[PairDataset], more: Sequence[RegionDB] = ()):
        first = parts[0]
        pictures = [(part.regions, part.images) for part in parts] + [(database, database.keys) for database in more]
        for part in parts[1:]:
            for name in ("CLS", "SEP", "MASK", "v_range"):
                _check_same(part.captions.folder, name, part.captions.meta[name], first.captions.meta[name])
        for regions, _ in pictures:
            for name in self.must_agree:
                _check_same(regions.folder, name, getattr(regions, name), getattr(first.regions, name))
        _check_different([part.captions for part in parts])
        self.captions, self.image_captions, self.teacher = first.captions, first.image_captions, None
        captions_called = short_names([part.captions.folder for part in parts])
        self.ids = ListColumn(i for own in names_apart([part.ids for part in parts], captions_called) for i in own)
        names = self._name_pictures(pictures)
        self.images = ListColumn(dict.fromkeys(name for own in names for name in own))
        number = {name: n for n, name in enumerate(self.images)}
        self.region_rows = self.regions.rows_of(self.images)
        rows = [np.array([number[name] for name in own], np.int32) for own in names]
        self.image_of = np.concatenate([of[part.image_of] for part, of in zip(parts, rows)])
        self.txt_lengths = np.concatenate([part.txt_lengths for part in parts])
        self.img_lengths = np.concatenate([part.img_lengths for part in parts])
        self.dropped, self.cut = sum(part.dropped for part in parts), 0
        self._parts, self._starts = list(zip(parts, rows)), np.cumsum([0, *map(len, parts)])
        self._pictures = [(regions, keys, own) for (regions, keys), own in zip(pictures, rows, strict=True)]

    def at_most(self, tokens: int) -> PairDataset:
        shorter = [part.at_most(tokens) for part, _ in self._parts]
        return self if all(new is part for new, (part, _) in zip(shorter, self._parts, strict=True)) else JoinedPairs(shorter)

    def _name_pictures(self, pictures: Sequence[tuple[RegionDB, Sequence[str]]]) -> list[list[str]]:
        """The names, in this dataset, of some pictures of each database; also sets `regions`, which finds them by those names."""
        of = distinct_databases([database for database, _ in pictures])
        databases = [pictures[of.index(n)][0] for n in range(max(of) + 1)]
        keys = [dict.fromkeys(k for (_, own), m in zip(pictures, of, strict=True) if m == n for k in own) for n in range(max(of) + 1)]
        known = self._known_pictures(databases, keys)
        new = [[key for key in own if key not in same] for own, same in zip(keys, known, strict=True)]
        apart = names_apart(new, short_names([database.img_db for database in databases]))
        name_of = [dict(zip(own, names, strict=True)) for own, names in zip(new, apart, strict=True)]
        renamed = next(((db, k, n) for db, named in zip(databases, name_of) for k, n in named.items() if n != k), None)
        if renamed and self.image_captions is not None:
            raise BadInput(
                f"{renamed[0].folder}: key {renamed[1]!r} is in another of the joined databases too, and image_captions cannot tell "
                "the two pictures apart; join databases of different keys, or leave the third view out"
            )
        self.regions, self._databases = JoinedRegions(databases, [dict(named) for named in name_of]), databases
        for named, same in zip(name_of, known, strict=True):
            named |= {key: name_of[n][key] for key, n in same.items()}
        return [[name_of[n][key] for key in own] for (_, own), n in zip(pictures, of, strict=True)]

    def _known_pictures(self, databases: Sequence[RegionDB], keys: Sequence[dict[str, None]]) -> list[dict[str, int]]:
        """For each database, the keys that are pictures of one before it, and of which."""
        return [{} for _ in databases]

    @property
    def parts(self) -> list[tuple[PairDataset, np.ndarray]]:
        return self._parts

    @property
    def region_databases(self) -> list[RegionDB]:
        return self._databases

    def captions_folder(self, row: int) -> Path:
        return self._parts[int(np.searchsorted(self._starts, row, side="right")) - 1][0].captions.folder

    def words(self, indices: np.ndarray) -> list[np.ndarray]:
        indices = np.asarray(indices)
        of = np.searchsorted(self._starts, indices, side="right") - 1
        found: list[np.ndarray] = [np.empty(0)] * len(indices)
        for n, (part, _) in enumerate(self._parts):
            rows = np.flatnonzero(of == n)
            for row, words in zip(rows, part.words(indices[rows] - self._starts[n]), strict=True):
                found[row] = words
        return found

    def caption_languages(self) -> np.ndarray:
        return np.concatenate([part.caption_languages() for part, _ in self._parts])


def _check_different(captions: Sequence[CaptionDB]) -> None:
    """Raise BadInput where one caption database comes twice: as one folder, or as a copy."""
    numbers = distinct_databases(captions)
    for n, database in enumerate(captions):
        first = numbers.index(numbers[n])
        if first < n:
            raise BadInput(f"{database.folder}: is joined with itself ({captions[first].folder}); give each caption database once")


def _check_same(folder: Path, name: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise BadInput(f"{folder}: {name} is {found}, in the first of the joined databases {expected}; they must agree")


def _kept(captions: CaptionDB, max_txt_len: int, languages: list[str] | None):
    """Ids, lengths with [CLS] and [SEP], and rows of the pictures of the captions that are kept; how many are too long."""
    lengths, image_of = captions.lengths.column.array + 2, captions.txt2img.column.rows
    keep, fits = np.ones(len(lengths), bool), lengths <= (max_txt_len if max_txt_len >= 0 else lengths.max())
    if languages is not None:
        if captions.languages:
            stored = captions.languages.column
            keep &= np.array([name in languages for name in stored.strings])[stored.rows]
        else:  # the database does not say
            keep[:] = False
    dropped = int((keep & ~fits).sum())
    keep &= fits
    if keep.all():
        return captions.ids, lengths, image_of, 0
    if not keep.any():
        limits = f"max_txt_len {max_txt_len}, languages {languages or 'any'}"
        raise BadInput(f"{captions.folder}: no caption of {len(captions.ids)} is left ({limits})")
    rows = np.flatnonzero(keep).astype(np.int32)
    return SelectedStrings(captions.ids, rows), lengths[rows], image_of[rows], dropped


def open_pairs(
    captions: str | list[str],
    regions: str | list[str],
    options: BoxOptions,
    max_txt_len: int = -1,
    languages: list[str] | None = None,
    root: str = ".",
    image_captions: str | None = None,
    caption_weight: float = 0.0,
) -> PairDataset:
    """Open the databases; relative folders start at ``root``. Raises BadInput as they and ``PairDataset`` do.

    Args:
        captions: text DB, or several that are joined
        regions: their image DB, or one for each text DB
    """
    texts, images = ([each] if isinstance(each, str | Path) else list(each) for each in (captions, regions))
    if len(images) not in (1, len(texts)):
        raise BadInput(f"{len(texts)} text DBs ({texts}) need one image DB or as many, found {len(images)} ({images})")
    region_dbs = {name: RegionDB(folder_under(root, name), options) for name in dict.fromkeys(images)}
    view = open_image_captions(image_captions, caption_weight, root)
    parts = [
        PairDataset(CaptionDB(folder_under(root, text)), region_dbs[images[n % len(images)]], max_txt_len, languages, view)
        for n, text in enumerate(texts)
    ]
    return parts[0] if len(parts) == 1 else JoinedPairs(parts)


def check_databases_exist(databases: Iterable[str | Sequence[str] | None], root: str) -> None:
    """Raise BadInput that names all that are absent, where several are; of one alone `open_pairs` says what is wrong with it.

    Args:
        databases: folders, or several each, text DBs and image DBs; relative ones start at ``root``
    """
    names = [str(name) for each in databases if each for name in ([each] if isinstance(each, str | Path) else each)]
    start = local_folder(root, DATASET)
    folders = dict.fromkeys(Path(start, name) for name in names if not name.startswith(PREFIX))
    absent = [str(path) for path in folders if not path.exists() and not is_on_hub(str(path))]
    if len(absent) > 1:
        raise BadInput(f"{len(absent)} databases are not there: {', '.join(absent)}; build them, or correct data_root or their paths")


def check_languages(pairs: PairDataset, languages: list[str] | None) -> None:
    """Raise BadInput where a language is asked for that no database of ``pairs`` has a caption in."""
    databases = [part.captions for part, _ in pairs.parts]
    there = {name for captions in databases if captions.languages for name in captions.languages.column.strings}
    absent = [name for name in dict.fromkeys(languages or []) if name not in there]
    if absent:
        folders = ", ".join(str(captions.folder) for captions in databases)
        raise BadInput(f"{folders}: no caption of language {' and of '.join(absent)}, found {', '.join(sorted(there))}; correct languages")


def open_image_captions(folder: str | None, weight: float, root: str = ".") -> ImageCaptions | None:
    """The third view, when it counts. Raises BadInput when only one of the two is given."""
    if (folder is None) != (weight == 0) or not 0 <= weight <= 1:
        raise BadInput(
            f"image_captions {folder}, caption_score_weight {weight}: the third view needs both, a weight above 0 and at "
            "most 1"
        )
    return None if folder is None else ImageCaptions(CaptionDB(folder_under(root, folder)), weight)
