"""Batches of tensors, and the examples that they are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.batches.ragged import Images, Joined, Layout, Predicted, Ragged, Texts
from data.regions.arrays import PackedRegions, Regions, StoredPictures, positions_of


@dataclass
class Examples:
    """What the databases hold of B caption–image pairs, before an objective makes a batch of them.

    Attributes:
        meta: the caption DB's: ids of its special words ``CLS``, ``SEP``, ``MASK``, and ``v_range``, the half-open range
            that random words are drawn from
        txt_ids, img_keys: the B database keys
        image_ids: [B] int64, equal where two pairs show the same image
        text_image_ids: [B] int64, those of the images that the captions are about, where hard negatives have captions and
            images of their own; None: every caption is about its row's image
        words: B times [L] int64, the caption's words without [CLS] and [SEP]
        regions: the B images' regions, which are read when a batch is made of them
        num_pairs: pairs beyond this many are hard negatives for those before; None: there are none
        captions: B times [C] int64 with [CLS] and [SEP], captions of the images themselves; None without a third view
        caption_weight: share of the third view in a score
        teacher_images: [B,K] int64, ``image_ids`` that a re-ranker has scored for each text, -1 where fewer than K; None
            without distillation
        teacher_scores: [B,K] float32, those scores
    """

    meta: dict
    txt_ids: list[str]
    img_keys: list[str]
    image_ids: np.ndarray
    words: list[np.ndarray]
    regions: StoredPictures
    num_pairs: int | None = None
    captions: list[np.ndarray] | None = None
    caption_weight: float = 0.0
    teacher_images: np.ndarray | None = None
    teacher_scores: np.ndarray | None = None
    text_image_ids: np.ndarray | None = None


@dataclass
class Batch(Ragged):
    """B caption–image pairs, without padding: texts of T tokens and images of R regions together.

    Attributes:
        texts: the captions
        images: their images; features are float16, zero where masked
        image_ids: [B] int64, equal where two pairs show the same image
        text_image_ids: [B] int64, those of the images that the captions are about, where that is not the row's; None: it is
        txt_ids, img_keys: the B database keys
        num_pairs: the first so many pairs are queries, the others hard negatives for them; None: all are queries. 0: this
            rank has no pair in an epoch's last batch, and what is here gives the towers something to run on, no more
        captions: B captions of the images themselves, the third view (cmr)
        caption_weight: share of the third view in a score
        teacher_images: [B,K] int64, ``image_ids`` that a re-ranker has scored for each text, -1 where fewer than K (cmr)
        teacher_scores: [B,K] float32, those scores
        word_labels: [T] int64, the word to predict, -1 elsewhere (vmlm)
        masked_regions: [R] bool, True at regions to predict (mrfr, mrckl, mrc)
        predicted: those words, as rows of ``texts``, or those regions, as rows of ``images``, [CLS] included
        feature_targets: [N,F] float16, features of the masked regions in order (mrfr)
        label_targets: [N,C] float16, soft labels of the masked regions in order (mrckl, mrc)
        joined: pairs of texts and images that a re-ranker scores: the right ones, and then all with a mismatch
        image_rows: [B] int64, which of ``images`` each pair shows, where an image of several pairs stands there once (cmr); None:
            each pair has its own
    """

    texts: Texts
    images: Images
    image_ids: Tensor
    txt_ids: list[str]
    img_keys: list[str]
    num_pairs: int | None = None
    captions: Texts | None = None
    caption_weight: float = 0.0
    teacher_images: Tensor | None = None
    teacher_scores: Tensor | None = None
    word_labels: Tensor | None = None
    masked_regions: Tensor | None = None
    predicted: Predicted | None = None
    feature_targets: Tensor | None = None
    label_targets: Tensor | None = None
    text_image_ids: Tensor | None = None
    joined: Joined | None = None
    image_rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def device(self) -> torch.device:
        return self.texts.ids.device

    @property
    def num_rows(self) -> int:
        """Pairs and hard negatives; none where this rank has no pair."""
        return 0 if self.num_pairs == 0 else len(self)

    @property
    def num_queries(self) -> int:
        """Pairs that are no hard negatives."""
        return len(self) if self.num_pairs is None else self.num_pairs

    def split(self, rows: int) -> list[Batch]:
        """The batch in parts of at most ``rows`` rows, for the towers alone (cmr)."""
        parts = []
        for start in range(0, len(self), rows):
            part = slice(start, start + rows)
            values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
            values |= {name: value[part] for name, value in values.items() if isinstance(value, Tensor | list)}
            values |= {name: value.rows(part) for name, value in values.items() if isinstance(value, Texts)}
            if self.image_rows is None:
                values["images"] = self.images.rows(part)
            else:
                shown, values["image_rows"] = values["image_rows"].unique(return_inverse=True)
                values["images"] = self.images.take(shown.cpu().numpy())
            parts.append(dataclasses.replace(self, **values | {"num_pairs": None}))
        return parts


def collate_texts(texts: Sequence[np.ndarray]) -> Texts:
    """Id sequences of any length, one behind the other."""
    ids = np.concatenate(texts).astype(np.int64, copy=False)
    return Texts(torch.from_numpy(ids), Layout.of([len(text) for text in texts]))


def collate_images(images: Sequence[Regions]) -> Images:
    """Images of any box count, whose features are copied."""
    packed = PackedRegions(sum(len(image.features) for image in images), images[0].features.shape[1])
    for image in images:
        packed.add(image)
    return collate_packed(packed)


def collate_packed(packed: PackedRegions) -> Images:
    """Images of any box count, whose features are not copied; positions are made of all boxes together."""
    return Images.of(torch.from_numpy(packed.features), torch.from_numpy(positions_of(packed.norm_bb)), packed.counts)


def collate_pairs(examples: Examples, images_once: bool = False) -> Batch:
    """The pairs as they are: nothing masked, no third view, no teacher's scores.

    Args:
        images_once: an image that several pairs show stands in the batch once
    """
    cls, sep = (np.array([examples.meta[name]]) for name in ("CLS", "SEP"))
    shown, image_rows = None, None
    if images_once:
        _, firsts, of = np.unique(examples.image_ids, return_index=True, return_inverse=True)
        order = np.argsort(firsts)  # by the pair that shows an image first
        image_rows = torch.from_numpy(np.argsort(order)[of])
        shown = firsts[order]
    texts = np.concatenate([part for words in examples.words for part in (cls, words, sep)])
    return Batch(
        Texts(torch.from_numpy(texts), Layout.of([len(words) + 2 for words in examples.words])),
        collate_packed(examples.regions.packed(shown)),
        torch.from_numpy(examples.image_ids),
        examples.txt_ids,
        examples.img_keys,
        examples.num_pairs,
        text_image_ids=None if examples.text_image_ids is None else torch.from_numpy(examples.text_image_ids),
        image_rows=image_rows,
    )


def collate_for_ranking(examples: Examples) -> Batch:
    """The pairs, each with its mismatches: for each of its hard negatives its caption with the other image, and its image with
    the other caption."""
    batch = collate_pairs(examples)
    batch.joined = Joined.of(batch.texts, batch.images, *ranked_pairs(len(batch), batch.num_queries))
    return batch


def ranked_pairs(rows: int, num_pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """What a re-ranker scores of a batch whose first ``num_pairs`` rows are pairs, the others their hard negatives, the same
    number for each: rows of the texts and of the images, [P] each; the pairs come first. With no pair it is the first row, to
    run on something."""
    own = np.arange(max(num_pairs, 1))
    others = np.arange(len(own), rows)
    of = own.repeat(len(others) // len(own))
    return np.concatenate([own, of, others]), np.concatenate([own, others, of])
