"""A contact sheet of each validation: some captions, always the same ones, and the pictures that they find."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from data.batches.pairs import PairDataset
from data.errors import BadInput
from data.regions.pictures import PictureFiles, read_pictures
from model.evaluation.reranked import FirstRanking
from model.retrieval.contact_sheet import SheetPicture, draw_contact_sheet, found_rows
from model.retrieval.reranking import PairScores, mixed_scores
from model.retrieval.results import Found, Hit

SHOWN = 5  # pictures of a query
THUMB = 150  # pixels


@dataclass
class ValidationSheet:
    """Draws what some validation captions find.

    Attributes:
        val: the validation pairs
        queries: rows of the captions, each of another image
        photos: their pictures
    """

    val: PairDataset
    queries: list[int]
    photos: PictureFiles

    @classmethod
    def open(cls, val: PairDataset, number: int, seed: int) -> ValidationSheet | None:
        """Choose the captions; None where none are asked for, the image DB does not say its pictures, or they are not there."""
        try:
            pictures = read_pictures(val.regions.folder) if number else None
            if pictures is None or not pictures.photos or not Path(pictures.photos).is_dir():
                return None
            photos = PictureFiles(pictures.photos, pictures)
        except BadInput:
            return None
        rows, seen = [], set()
        for row in random.Random(seed).sample(range(len(val)), len(val)):
            if len(rows) < number and int(val.image_of[row]) not in seen:
                seen.add(int(val.image_of[row]))
                rows.append(row)
        return cls(val, rows, photos)

    def found(self, txt: Tensor, img: Tensor) -> Found:
        """All images for each of the captions, best first, from embeddings of all captions [T,D] and images [I,D]."""
        scores = (txt[self.queries] @ img.T).cpu().numpy()
        orders = np.argsort(-scores, axis=1, kind="stable")
        return Found([self._hits(order, own) for order, own in zip(orders, scores)], [], [], {})

    def found_again(self, first: dict[str, FirstRanking], scores: PairScores, mix: float) -> Found:
        """The best images of each of the captions in the order of a re-ranker, which has scored them."""
        hits, before = [], []
        for row in self.queries:
            ranking, at = next((each, int(at[0])) for each in first.values() if len(at := np.flatnonzero(each.task.rows == row)))
            rows, own, pairs = (array[at] for array in (ranking.images.rows, ranking.images.scores, ranking.images.pairs))
            new = mixed_scores(scores[pairs], own, mix)
            order = np.argsort(-new, kind="stable")
            before.append([Hit(key, float(score)) for key, score in zip(self.val.images.take(rows), own)])
            hits.append([Hit(before[-1][n].id, float(new[n])) for n in order])
        return Found(hits, before, [], {}, mix)

    def _hits(self, order: np.ndarray, scores: np.ndarray) -> list[Hit]:
        return [Hit(key, float(scores[row])) for key, row in zip(self.val.images.take(order), order)]

    def draw(self, found: Found) -> Image.Image | None:
        """The sheet; None where a picture cannot be read: a training goes on without."""
        keys = self.val.images.take(self.val.image_of[self.queries])
        captions = self.val.captions
        texts = [captions[name].get("raw") or f"caption {name}" for name in self.val.ids.take(np.array(self.queries))]
        rows = found_rows(texts, found, self.photos, SHOWN, captions, answers=keys)
        for row, key, hits in zip(rows, keys, found.hits):
            if key not in [hit.id for hit in hits]:  # behind those that a re-ranker sees
                row.answer = SheetPicture(self.photos.find(key), None, True, key, rank=None)
        try:
            return draw_contact_sheet(rows, THUMB)
        except BadInput:
            return None
