"""What the towers encode: the images or the captions of a database, as one kind of thing."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.batches.batch import collate_packed, collate_texts
from data.batches.pairs import ImageCaptions
from data.batches.ragged import Images, Ragged, Texts
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.errors import BadInput
from data.regions.db import RegionDB
from model.bi_encoder import LightningDOT
from model.retrieval.queries import checked_texts, read_texts


@dataclass
class Source:
    """Images or captions of a database, and the tower that embeds them.

    Attributes:
        kind: "img" or "txt"
        names: [N] keys of the images, or ids of the captions
        lengths: [N] regions or words of each; those of most are encoded first
        load: names of a batch → what ``tower`` takes; called in the processes that read the database
        tower: what ``load`` gives, on the model's device → [b,D]
        model: whose tower it is
        folder: the database, for the record and for messages
        fingerprint: ``() -> str``, changes with what the database holds
    """

    kind: str
    names: Sequence[str]
    lengths: Sequence[int]
    load: Callable[[list[str]], tuple[Ragged, ...]]
    tower: Callable[..., Tensor]
    model: LightningDOT
    folder: Path
    fingerprint: Callable[[], str]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, positions: Sequence[int]) -> Source:
        """Some of the images or captions."""
        names, lengths = [self.names[position] for position in positions], [self.lengths[position] for position in positions]
        return dataclasses.replace(self, names=names, lengths=lengths)


def image_source(
    model: LightningDOT, regions: RegionDB, keys: Sequence[str], image_captions: ImageCaptions | None = None
) -> Source:
    """The images ``keys`` of a region database.

    Args:
        image_captions: the third view: an embedding is then (1-w) · image + w · its captions

    Raises:
        BadInput: a key that the database lacks, or features of another width than the model's.
    """
    check_width(regions, model)
    for key in keys:
        if key not in regions:
            regions.get(key)  # says which key, and of what database
    load: Callable[[list[str]], tuple[Ragged, ...]] = partial(_load_images, regions)
    tower: Callable[..., Tensor] = model.embed_images
    fingerprint: Callable[[], str] = regions.fingerprint
    if image_captions is not None:
        image_captions.check(keys)
        load = partial(_load_images_and_captions, regions, image_captions)
        tower = partial(_embed_images_and_captions, model, image_captions.weight)
        fingerprint = partial(_fingerprint_of_both, regions, image_captions)
    lengths = [regions.num_regions[key] for key in keys]
    return Source("img", keys, lengths, load, tower, model, regions.folder, fingerprint)


def caption_source(model: LightningDOT, captions: CaptionDB, ids: Sequence[str]) -> Source:
    """The captions ``ids`` of a caption database.

    Raises:
        BadInput: an id that the database lacks; when they are encoded, words that the model's vocabulary lacks.
    """
    missing = next((i for i in ids if i not in captions.lengths), None)
    if missing is not None:
        raise BadInput(f"{captions.folder}: no caption {missing!r} among its {len(captions)}")
    lengths = [captions.lengths[i] for i in ids]
    load = partial(_load_captions, captions, model.config.txt.vocab_size)
    return Source("txt", ids, lengths, load, model.embed_texts, model, captions.folder, captions.fingerprint)


def joined_captions(model: LightningDOT, databases: Sequence[CaptionDB]) -> Source:
    """All captions of several caption databases; of those of one id the first counts.

    Raises:
        BadInput: when they are encoded, words that the model's vocabulary lacks.
    """
    owners = {name: captions for captions in reversed(databases) for name in captions.ids}
    names = list(dict.fromkeys(name for captions in databases for name in captions.ids))
    lengths = [owners[name].lengths[name] for name in names]
    load = partial(_load_joined, owners, model.config.txt.vocab_size)

    def fingerprint() -> str:
        return "+".join(captions.fingerprint() for captions in databases)

    return Source("txt", names, lengths, load, model.embed_texts, model, databases[0].folder, fingerprint)


def text_source(model: LightningDOT, texts: Mapping[str, str], tokenizer: CaptionTokenizer) -> Source:
    """Texts that are in no database, by their ids.

    Raises:
        BadInput: no texts, one without a word, one that is longer than the model's.
    """
    names, said = list(texts), checked_texts(list(texts.values()))
    ids = {name: query.input_ids for name, query in zip(names, read_texts(said, tokenizer, model.config.txt.max_tokens), strict=True)}
    check_vocabulary(max(int(each.max()) for each in ids.values()), model.config.txt.vocab_size, "the tokenizer")
    digest = hashlib.sha256("\0".join(said).encode()).hexdigest()
    return Source("txt", names, [len(ids[name]) for name in names], partial(_load_texts, ids), model.embed_texts, model, Path("texts"), lambda: digest)


def images_of_captions(captions: CaptionDB, regions: RegionDB) -> list[str]:
    """The images that a caption database mentions, sorted; BadInput when the region database lacks one."""
    keys = sorted(captions.img2txts)
    missing = [key for key in keys if key not in regions]
    if missing:
        raise BadInput(
            f"{captions.folder}: {len(missing)} of its {len(keys)} images are not in {regions.folder}, "
            f"the first is {missing[0]!r}: extract them, or give the right region database"
        )
    return keys


def check_width(regions: RegionDB, model: LightningDOT, checkpoint: str | Path = "the model") -> None:
    """Raise BadInput unless the database's features have the width that the model was made for."""
    if regions.feature_dim != model.config.feature_dim:
        raise BadInput(
            f"{regions.folder}: features are {regions.feature_dim} wide, {checkpoint} expects "
            f"{model.config.feature_dim}: extract the regions with the extractor that the model was trained on"
        )


def check_vocabulary(largest: int, vocab_size: int, source: object) -> None:
    """Raise BadInput for a word id that the model has no embedding of."""
    if largest >= vocab_size:
        raise BadInput(
            f"{source}: holds word id {largest}, the model's vocabulary has {vocab_size} words: "
            "tokenise the captions with the checkpoint's tokenizer"
        )


# ---- what the processes run that read a database -----------------------------------------------------------------------


def _load_images(regions: RegionDB, keys: list[str]) -> tuple[Images]:
    return (collate_packed(regions.pictures(keys).packed()),)


def _load_images_and_captions(regions: RegionDB, image_captions: ImageCaptions, keys: list[str]) -> tuple[Images, Texts]:
    return *_load_images(regions, keys), collate_texts([image_captions.input_ids(key) for key in keys])


def _load_captions(captions: CaptionDB, vocab_size: int, ids: list[str]) -> tuple[Texts]:
    cls, sep = captions.meta["CLS"], captions.meta["SEP"]
    texts = collate_texts([np.array([cls, *captions.input_ids(i), sep]) for i in ids])
    check_vocabulary(int(texts.ids.max()), vocab_size, captions.folder)
    return (texts,)


def _load_joined(owners: Mapping[str, CaptionDB], vocab_size: int, ids: list[str]) -> tuple[Texts]:
    return (collate_texts([_load_captions(owners[name], vocab_size, [name])[0].ids.numpy() for name in ids]),)


def _load_texts(input_ids: Mapping[str, np.ndarray], names: list[str]) -> tuple[Texts]:
    return (collate_texts([input_ids[name] for name in names]),)


# ---- the third view ----------------------------------------------------------------------------------------------------


def _embed_images_and_captions(model: LightningDOT, weight: float, images: Images, captions: Texts) -> Tensor:
    return torch.lerp(model.embed_images(images).float(), model.embed_texts(captions).float(), weight)


def _fingerprint_of_both(regions: RegionDB, image_captions: ImageCaptions) -> str:
    return f"{regions.fingerprint()}+{image_captions.weight}*{image_captions.captions.fingerprint()}"
