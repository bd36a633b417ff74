"""Ranking again by scores that are looked up: those of another program, of pairs of a dataset (`data.scores.files`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from data.batches.identity import digests_of_pairs
from data.batches.pairs import PairDataset
from data.errors import BadInput
from data.scores.files import ScoreTable
from model.retrieval.reranking import Shortlist

IfMissing = Literal["refuse", "below"]
SAME = 1e-3  # two files may have rounded a pair's score differently, relatively


class StoredScores:
    """Looked-up scores of pairs of a dataset, used as `PairScores` are.

    Args:
        tables: files of scores; a pair may be in any of them
        if_missing: what becomes of a pair that is in none: refuse, or rank it below all that have a score

    Raises:
        BadInput: no caption or no image of a file is in the dataset, or the file says that it was made from other databases.
    """

    def __init__(self, tables: Sequence[ScoreTable], dataset: PairDataset, if_missing: IfMissing = "refuse"):
        self._tables, self._dataset, self._if_missing = tables, dataset, if_missing
        self._places = [self._place(table) for table in tables]
        self._asked = np.zeros(0, np.int64)
        self.missing = 0  # pairs asked for so far without a score

    def __len__(self) -> int:
        """Number of pairs asked for."""
        return len(self._asked)

    def compute(self, *lists: Shortlist) -> None:
        """Note which pairs are asked for. Raises BadInput for pairs without a score, with their number, unless they rank below."""
        pairs = np.unique(np.concatenate([self._asked, *(each.pairs.ravel() for each in lists)]))
        absent = np.isnan(self._look_up(pairs))
        self._asked, self.missing = pairs, int(absent.sum())
        if self.missing and self._if_missing == "refuse":
            caption, image = self._names(pairs[absent.argmax()])
            raise BadInput(
                f"{self._files()}: {self.missing:,} of {len(pairs):,} pairs to be ranked again have no score, the first: caption {caption} "
                f"and image {image}; score them, lower --rerank-top, or rank them below the others: --rerank-missing below"
            )

    def __getitem__(self, pairs: np.ndarray) -> np.ndarray:
        """Scores of pairs, -inf for one without, in the shape of ``pairs``."""
        found = self._look_up(pairs)
        return np.where(np.isnan(found), np.float32(-np.inf), found)

    def _look_up(self, pairs: np.ndarray) -> np.ndarray:
        captions, images = np.divmod(pairs, len(self._dataset.images))
        found = np.full(pairs.shape, np.nan, np.float32)
        for table, (caption_rows, image_rows) in zip(self._tables, self._places, strict=True):
            scores = table.look_up(caption_rows[captions], image_rows[images])
            differ = np.abs(found - scores) > SAME * np.maximum(np.abs(found), np.abs(scores))  # never where one is NaN
            if differ.any():
                caption, image = self._names(pairs[differ].ravel()[0])
                raise BadInput(
                    f"{self._files()}: caption {caption} and image {image} have other scores in {table.path}; say which file is for which "
                    "direction: t2i=FILE i2t=FILE"
                )
            found = np.where(np.isnan(found), scores, found)
        return found

    def _names(self, pair: int) -> tuple[str, str]:
        caption, image = divmod(int(pair), len(self._dataset.images))
        return self._dataset.ids[caption], self._dataset.images[image]

    def _files(self) -> str:
        return ", ".join(table.path for table in self._tables)

    def _place(self, table: ScoreTable) -> tuple[np.ndarray, np.ndarray]:
        """For each caption and for each image of the dataset, its position in the table, -1 for none."""
        for name, digest in digests_of_pairs(self._dataset).items():
            if table.data.get(name, digest) != digest:
                raise BadInput(
                    f"{table.path}: the {name} that were scored are not those of {self._dataset.captions.folder} and its images (contents "
                    f"{table.data[name]}, now {digest}); score them again"
                )
        rows = {name: n for n, name in enumerate(table.captions)}
        captions = np.array([rows.get(name, -1) for name in self._dataset.ids])
        rows = {name: n for n, name in enumerate(table.images)}
        images = np.array([rows.get(name, rows.get(name.removesuffix(".npz"), -1)) for name in self._dataset.images])
        for what, found, theirs, ours in (
            ("captions", captions, table.captions, self._dataset.ids),
            ("images", images, table.images, self._dataset.images),
        ):
            if (found < 0).all():
                raise BadInput(f"{table.path}: none of its {what} is in the data: there the first is {theirs[0]!r}, here {ours[0]!r}")
        return captions, images
