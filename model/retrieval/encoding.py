"""Encode every image or caption of a database once, into memory or into a feature index.

    for positions, vectors in encode_images(model, regions, keys):       # longest first; vectors [b,D] fp32
        matrix[positions] = vectors
    index = build_image_index(model, regions, keys, "index/img")

An index that is there already and was made by the same model from the same data is used as it is; one whose building was
interrupted is gone on with.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from data.batches.batch import collate_images, collate_texts
from data.batches.pairs import ImageCaptions
from data.captions.db import CaptionDB
from data.errors import BadInput
from data.index.editor import IndexEditor
from data.index.reader import EmbeddingIndex, data_fingerprint
from data.index.writer import IndexWriter
from data.regions.db import RegionDB, Regions
from model import distributed
from model.bi_encoder import LightningDOT
from model.precision import autocast

Encoded = Iterator[tuple[list[int], Tensor]]


def encode_images(
    model: LightningDOT,
    regions: RegionDB,
    keys: Sequence[str],
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    progress: bool = True,
    workers: int = 0,
    image_captions: ImageCaptions | None = None,
) -> Encoded:
    """Embed images, those with most regions first, so that batches hold little padding and memory runs out early.

    Args:
        keys: which images of ``regions``
        image_captions: the third view: an embedding is then (1-w) · image + w · its captions
        batch_size: images per batch
        device: where the model is
        precision: "fp32", or "bf16" or "fp16" for autocast
        workers: processes that read the database

    Yields: (positions in ``keys`` of the batch's images, their embeddings [b,D] float32 on ``device``). Dropout is off
    while the model runs, and as it was afterwards.

    Raises:
        BadInput: a key that the database lacks, features of another width than the model's, or an embedding that is
            not finite.
    """
    check_width(regions, model)
    for key in keys:
        if key not in regions:
            regions.get(key)  # says which key, and of what database
    lengths = [regions.num_regions[key] for key in keys]
    load = partial(_load_images, regions, keys, image_captions)
    tower = model.encode_image
    if image_captions is not None:
        image_captions.check(keys)
        tower = partial(_encode_image_and_captions, model, image_captions.weight)
    encoded = _encode(model, tower, load, lengths, batch_size, device, precision, progress, workers, "img")
    return _checked(encoded, regions.folder, keys)


def encode_captions(
    model: LightningDOT,
    captions: CaptionDB,
    ids: Sequence[str],
    batch_size: int = 256,
    device: torch.device | str = "cpu",
    precision: str = "fp32",
    progress: bool = True,
    workers: int = 0,
) -> Encoded:
    """Embed captions, longest first; otherwise as ``encode_images``.

    Raises:
        BadInput: an id that the database lacks, or words that the model's vocabulary lacks.
    """
    missing = next((i for i in ids if i not in captions.lengths), None)
    if missing is not None:
        raise BadInput(f"{captions.folder}: no caption {missing!r} among its {len(captions)}")
    lengths = [captions.lengths[i] for i in ids]
    load = partial(_load_captions, captions, ids, model.config.txt.vocab_size)
    encoded = _encode(model, model.encode_text, load, lengths, batch_size, device, precision, progress, workers, "txt")
    return _checked(encoded, captions.folder, ids)


def encode_queries(
    model: LightningDOT, tokenizer, texts: Sequence[str], device: torch.device | str = "cpu", precision: str = "fp32"
) -> np.ndarray:
    """Embed texts as typed → [Q,D] float32. ``tokenizer`` is the fast tokenizer of the checkpoint."""
    cls, sep, pad = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    ids = [np.array([cls, *words, sep]) for words in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    _check_vocabulary(max(map(np.max, ids)), model.config.txt.vocab_size, "the tokenizer")
    inputs = collate_texts(ids, pad)
    return _run(model, model.encode_text, inputs, device, precision).cpu().numpy()


def encode_image(
    model: LightningDOT, regions: Regions, device: torch.device | str = "cpu", precision: str = "fp32"
) -> np.ndarray:
    """Embed one image by its regions → [1,D] float32. BadInput for features of another width than the model's."""
    if regions.features.ndim != 2 or regions.features.shape[1] != model.config.feature_dim or not len(regions):
        raise BadInput(f"features of shape {regions.features.shape}, the model expects [n,{model.config.feature_dim}], n > 0")
    return _run(model, model.encode_image, collate_images([regions]), device, precision).cpu().numpy()


def build_image_index(model: LightningDOT, regions: RegionDB, keys: Sequence[str], out: str | Path, **options):
    """The feature index ``out`` of the images ``keys``: the one that is there when model and data are still the same.

    Args:
        options: ``dtype`` (how vectors are stored), ``checkpoint`` (its path, for the record), ``ranks`` (processes that
            share the work; the first one writes), ``update`` ("add": only what the index lacks goes into it; "replace":
            what it holds is encoded again too), and what ``encode_images`` takes

    Returns: ``EmbeddingIndex``; its rows are in the order of encoding, not of ``keys``

    Raises:
        BadInput: no keys, vectors that are not finite, ``out`` is something other than an index; see ``encode_images``.
    """
    view = options.get("image_captions")
    source = regions.fingerprint() + (f"+{view.weight}*{view.captions.fingerprint()}" if view else "")
    encode, lengths = partial(encode_images, model, regions), [regions.num_regions.get(key, 0) for key in keys]
    return _build("img", encode, lengths, model, regions, source, keys, out, **options)


def build_caption_index(model: LightningDOT, captions: CaptionDB, ids: Sequence[str], out: str | Path, **options):
    """As ``build_image_index``, for captions."""
    encode, lengths = partial(encode_captions, model, captions), [captions.lengths.get(i, 0) for i in ids]
    return _build("txt", encode, lengths, model, captions, captions.fingerprint(), ids, out, **options)


def check_width(regions: RegionDB, model: LightningDOT, checkpoint: str | Path = "the model") -> None:
    """Raise BadInput unless the database's features have the width that the model was made for."""
    if regions.feature_dim != model.config.feature_dim:
        raise BadInput(
            f"{regions.folder}: features are {regions.feature_dim} wide, {checkpoint} expects "
            f"{model.config.feature_dim}: extract the regions with the extractor that the model was trained on"
        )


def _encode(model, tower, load, lengths, batch_size, device, precision, progress, workers, unit) -> Encoded:
    if precision not in ("fp32", "bf16", "fp16"):
        raise BadInput(f"precision is {precision!r}, expected fp32, bf16 or fp16")
    if batch_size < 1:
        raise BadInput(f"batch_size is {batch_size}, expected at least 1")
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    loader = DataLoader(
        batches,
        batch_size=None,  # an element is a batch already
        collate_fn=load,
        num_workers=workers,
        pin_memory=torch.device(device).type == "cuda",
        generator=torch.Generator(),  # iterating must not draw from the generator that training draws from
    )
    with tqdm(total=len(order), unit=unit, desc=f"encoding {unit}", disable=not progress) as bar:
        for positions, inputs in zip(batches, loader, strict=True):
            yield positions, _run(model, tower, inputs, device, precision)
            bar.update(len(positions))


def _checked(encoded: Encoded, folder: Path, names: Sequence[str]) -> Encoded:
    """Stop at an embedding that is not finite: compared with anything it is never larger, so recall would count it."""
    for positions, vectors in encoded:
        finite = vectors.isfinite().all(dim=1).tolist()
        if not all(finite):
            name = names[positions[finite.index(False)]]
            raise BadInput(
                f"{folder}: the embedding of {name!r} is NaN or infinite: so are its stored features, or training diverged"
            )
        yield positions, vectors


@torch.no_grad()
def _run(model, tower: Callable, inputs, device, precision) -> Tensor:
    """One batch through one tower, without dropout; afterwards each module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with autocast(device, precision):
            return tower(*(tensor.to(device, non_blocking=True) for tensor in inputs)).float()
    finally:
        for module in training:
            module.training = True


def _load_images(regions, keys, image_captions, positions):
    images = collate_images([regions.get(keys[position], soft_labels=False) for position in positions])
    if image_captions is None:
        return images
    words = [image_captions.input_ids(keys[position]) for position in positions]
    return *images, *collate_texts(words, image_captions.captions.meta.get("PAD", 0))


def _encode_image_and_captions(model, weight, features, positions, region_mask, caption_ids, caption_mask):
    image = model.encode_image(features, positions, region_mask).float()
    return torch.lerp(image, model.encode_text(caption_ids, caption_mask).float(), weight)


def _load_captions(captions, ids, vocab_size, positions):
    cls, sep, pad = captions.meta["CLS"], captions.meta["SEP"], captions.meta.get("PAD", 0)
    input_ids, mask = collate_texts([np.array([cls, *captions.input_ids(ids[p]), sep]) for p in positions], pad)
    _check_vocabulary(int(input_ids.max()), vocab_size, captions.folder)
    return input_ids, mask


def _check_vocabulary(largest: int, vocab_size: int, source) -> None:
    if largest >= vocab_size:
        raise BadInput(
            f"{source}: holds word id {largest}, the model's vocabulary has {vocab_size} words: "
            "tokenise the captions with the checkpoint's tokenizer"
        )


def _build(
    kind, encode, lengths, model, database, source, names, out,
    dtype="fp32", precision="fp32", checkpoint=None, progress=True, ranks=distributed.SINGLE, batch_size=256,
    update=None, **options
) -> EmbeddingIndex:  # fmt: skip
    if not names:
        raise BadInput(f"{database.folder}: nothing to encode into {out}")
    if update:
        encode = partial(encode, precision=precision, progress=progress, batch_size=batch_size, **options)
        return _update(kind, encode, model, names, out, update, ranks)
    data = data_fingerprint(source, names)
    made = {"precision": precision, "checkpoint": str(checkpoint), "database": str(database.folder)}
    wanted = {"kind": kind, "dtype": dtype, "model": model.fingerprint, "data": data, "precision": precision}
    if (Path(out) / "data.mdb").exists():
        index = EmbeddingIndex(out)
        header = index.header | {"precision": index.header["created"].get("precision")}
        if all(header[name] == value for name, value in wanted.items()):
            if progress and ranks.is_first:
                print(f"{out}: up to date, {index.count} vectors", file=sys.stderr)
            return index
    options |= {"precision": precision, "batch_size": batch_size, "progress": progress and ranks.is_first}
    ranks.barrier()  # all have looked before one writes
    writing = IndexWriter(out, kind, model.config.embedding_dim, model.fingerprint, data, dtype, made)
    with writing if ranks.is_first else nullcontext() as writer:
        left = np.ones(len(names), np.int64)
        if writer is not None:
            left[[n for n, name in enumerate(names) if name in writer.done]] = 0
        left = np.flatnonzero(ranks.sum_array(left * ranks.is_first)).tolist()
        if writer is not None and progress and len(left) < len(names):
            print(f"{out}: going on after {len(names) - len(left)} of {len(names)} vectors", file=sys.stderr)
        for positions, vectors in _together(encode, ranks, left, names, lengths, model.config.embedding_dim, options):
            if writer is not None:
                writer.add([names[position] for position in positions], vectors.cpu().numpy())
    ranks.barrier()  # nobody opens it before it stands
    return EmbeddingIndex(out)


def _update(kind, encode, model, names, out, update, ranks) -> EmbeddingIndex:
    if ranks.size > 1:
        raise BadInput(f"{out}: an index is updated by one process, not by {ranks.size}")
    index = EmbeddingIndex(out)
    index.check_model(model.fingerprint)
    if index.kind != kind:
        raise BadInput(f"{out}: is an index of {index.kind}, what is to be added is {kind}")
    known = {name for name in names if name in index}
    if update == "add":
        names = [name for name in names if name not in known]
    if not names:
        return index
    with IndexEditor(out, model.fingerprint) as editor:
        for positions, vectors in encode(names):
            batch, vectors = [names[position] for position in positions], vectors.cpu().numpy()
            old = np.array([name in known for name in batch])
            editor.replace([name for name in batch if name in known], vectors[old])
            editor.add([name for name in batch if name not in known], vectors[~old])
    return EmbeddingIndex(out)


def _together(encode, ranks, left, names, lengths, dim, options) -> Encoded:
    """The batches of all ranks in the order that one process would make: each rank encodes every size-th."""
    left = sorted(left, key=lambda position: -lengths[position])
    size = options["batch_size"]
    batches = [left[start : start + size] for start in range(0, len(left), size)]
    mine = [position for batch in batches[ranks.rank :: ranks.size] for position in batch]
    encoded = encode([names[position] for position in mine], **options)
    for first in range(0, len(batches), ranks.size):
        round_ = batches[first : first + ranks.size]
        if ranks.rank < len(round_):
            vectors = next(encoded)[1]
        else:
            vectors = torch.empty(0, dim, device=options.get("device", "cpu"))
        sizes = [len(batch) for batch in round_] + [0] * (ranks.size - len(round_))
        yield [position for batch in round_ for position in batch], ranks.gather(vectors, sizes)
    next(encoded, None)  # to the end of its bar
