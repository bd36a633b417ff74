"""Batches of tensors, and the examples that they are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.regions.db import Regions, positions_of


@dataclass
class Examples:
    """What the databases hold of B caption–image pairs, before an objective makes a batch of them.

    Attributes:
        meta: the caption DB's: ids of its special words ``CLS``, ``SEP``, ``MASK``, perhaps ``PAD``, and ``v_range``, the
            half-open range that random words are drawn from
        txt_ids, img_keys: the B database keys
        image_ids: [B] int64, equal where two pairs show the same image
        text_image_ids: [B] int64, those of the images that the captions are about, where hard negatives have captions and
            images of their own; None: every caption is about its row's image
        words: B times [L] int64, the caption's words without [CLS] and [SEP]
        regions: the B images' regions, with soft labels where they were asked for
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
    regions: list[Regions]
    num_pairs: int | None = None
    captions: list[np.ndarray] | None = None
    caption_weight: float = 0.0
    teacher_images: np.ndarray | None = None
    teacher_scores: np.ndarray | None = None
    text_image_ids: np.ndarray | None = None


_PADDED = {  # mask -> what is padded with it
    "attention_mask": ("input_ids",),
    "region_mask": ("features", "positions"),
    "caption_mask": ("caption_ids",),
}


@dataclass
class Batch:
    """B caption–image pairs, padded at the end. L counts [CLS] and [SEP]; R counts regions only.

    Attributes:
        input_ids: [B,L] int64
        attention_mask: [B,L] bool, True at real tokens
        features: [B,R,F] float16, zero where masked or padded
        positions: [B,R,7] float32
        region_mask: [B,R] bool, True at real regions
        image_ids: [B] int64, equal where two pairs show the same image
        text_image_ids: [B] int64, those of the images that the captions are about, where that is not the row's; None: it is
        txt_ids, img_keys: the B database keys
        num_pairs: the first so many pairs are queries, the others hard negatives for them; None: all are queries. 0: this
            rank has no pair in an epoch's last batch, and what is here gives the towers something to run on, no more
        caption_ids: [B,C] int64, captions of the images themselves, the third view (cmr)
        caption_mask: [B,C] bool, True at their real tokens
        caption_weight: share of the third view in a score
        teacher_images: [B,K] int64, ``image_ids`` that a re-ranker has scored for each text, -1 where fewer than K (cmr)
        teacher_scores: [B,K] float32, those scores
        word_labels: [B,L] int64, the word to predict, -1 elsewhere (vmlm)
        masked_regions: [B,R] bool, True at regions to predict (mrfr, mrckl, mrc)
        feature_targets: [N,F] float16, features of the masked regions in order (mrfr)
        label_targets: [N,C] float16, soft labels of the masked regions in order (mrckl, mrc)
    """

    input_ids: Tensor
    attention_mask: Tensor
    features: Tensor
    positions: Tensor
    region_mask: Tensor
    image_ids: Tensor
    txt_ids: list[str]
    img_keys: list[str]
    num_pairs: int | None = None
    caption_ids: Tensor | None = None
    caption_mask: Tensor | None = None
    caption_weight: float = 0.0
    teacher_images: Tensor | None = None
    teacher_scores: Tensor | None = None
    word_labels: Tensor | None = None
    masked_regions: Tensor | None = None
    feature_targets: Tensor | None = None
    label_targets: Tensor | None = None
    text_image_ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        tensors = {name: function(value) for name, value in values.items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **tensors)  # an objective's own kind of batch stays one

    @property
    def num_rows(self) -> int:
        """Pairs and hard negatives; none where this rank has no pair."""
        return 0 if self.num_pairs == 0 else len(self)

    @property
    def num_queries(self) -> int:
        """Pairs that are no hard negatives."""
        return len(self) if self.num_pairs is None else self.num_pairs

    def split(self, rows: int) -> list[Batch]:
        """The batch in parts of at most ``rows`` rows, each padded for itself; for the towers alone (cmr)."""
        parts = []
        for start in range(0, len(self), rows):
            part = slice(start, start + rows)
            values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
            values |= {k: v[part] for k, v in values.items() if isinstance(v, Tensor | list)}
            for mask, padded in _PADDED.items():
                if values[mask] is not None:
                    longest = int(values[mask].sum(dim=1).max())
                    values |= {name: values[name][:, :longest] for name in (mask, *padded)}
            parts.append(dataclasses.replace(self, **values | {"num_pairs": None}))
        return parts

    def to(self, device: torch.device | str) -> Batch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        return self._map(Tensor.pin_memory)


def collate_texts(texts: list[np.ndarray], pad: int = 0) -> tuple[Tensor, Tensor]:
    """Pad id sequences of any length: → ``input_ids`` [B,L] int64, ``attention_mask`` [B,L] bool."""
    lengths = np.array([len(ids) for ids in texts])
    mask = np.arange(lengths.max()) < lengths[:, None]
    input_ids = np.full(mask.shape, pad, dtype=np.int64)
    input_ids[mask] = np.concatenate(texts)
    return torch.from_numpy(input_ids), torch.from_numpy(mask)


def collate_images(images: list[Regions]) -> tuple[Tensor, Tensor, Tensor]:
    """Pad images of any box count: → features [B,R,F] float16, positions [B,R,7] float32, region_mask [B,R] bool."""
    counts = np.array([len(image.features) for image in images])
    mask = np.arange(counts.max()) < counts[:, None]
    features = np.empty((*mask.shape, images[0].features.shape[1]), dtype=np.float16)
    for row, image in enumerate(images):
        features[row, : counts[row]] = image.features
        features[row, counts[row] :] = 0
    positions = np.zeros((*mask.shape, 7), dtype=np.float32)
    positions[mask] = positions_of(np.concatenate([image.norm_bb for image in images]))
    return torch.from_numpy(features), torch.from_numpy(positions), torch.from_numpy(mask)


def collate_pairs(examples: Examples) -> Batch:
    """The pairs as they are: nothing masked, no third view, no teacher's scores."""
    meta = examples.meta
    cls, sep = np.array([meta["CLS"]]), np.array([meta["SEP"]])
    texts = [np.concatenate([cls, words, sep]) for words in examples.words]
    return Batch(
        *collate_texts(texts, meta.get("PAD", 0)),
        *collate_images(examples.regions),
        torch.from_numpy(examples.image_ids),
        examples.txt_ids,
        examples.img_keys,
        examples.num_pairs,
        text_image_ids=None if examples.text_image_ids is None else torch.from_numpy(examples.text_image_ids),
    )
