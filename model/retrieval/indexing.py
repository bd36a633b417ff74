"""Feature indexes from a database: built, or brought up to date.

    source = image_source(model, regions, keys)                  # or caption_source(model, captions, ids)
    index = build_index(source, "index/img", Encoding(device, "bf16"))

An index that is there already and was made by the same model from the same data is used as it is; one whose building was
interrupted is gone on with.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.errors import BadInput
from data.index.editor import IndexEditor
from data.index.reader import EmbeddingIndex, data_fingerprint
from data.index.writer import IndexWriter
from data.regions.pictures import keep_pictures, read_pictures
from model import distributed
from model.made_from import read_made_from
from model.retrieval.encoding import Encoding, encode_batches
from model.retrieval.sources import Source

_KINDS = {"img": "images", "txt": "captions"}


def build_index(
    source: Source,
    out: str | Path,
    encoding: Encoding,
    ranks: distributed.Ranks = distributed.SINGLE,
    dtype: str = "fp32",
    checkpoint: str | Path | None = None,
) -> EmbeddingIndex:
    """The feature index ``out`` of a source: the one that is there when model and data are still the same.

    Args:
        ranks: processes that share the work; the first one writes
        dtype: how vectors are stored
        checkpoint: its path, for the record

    Returns: the index; its rows are in the order of encoding, not of ``source.names``

    Raises:
        BadInput: an empty source, ``out`` is something other than an index, or one of the other kind, or as ``encode_batches``.
    """
    if not len(source):
        raise BadInput(f"{source.folder}: nothing to encode into {out}")
    model, names = source.model, source.names
    pictures = read_pictures(source.folder) if source.kind == "img" else None  # before the fingerprint, which sees to it that they are of one
    data = data_fingerprint(source.fingerprint(), names)
    made: dict[str, Any] = {"precision": encoding.precision, "checkpoint": str(checkpoint), "database": str(source.folder)}
    made |= {"contents": source.fingerprint(), "model_settings": model.config.of_vectors}
    if checkpoint is not None and (kept := read_made_from(checkpoint)) is not None:
        made["checkpoint_made_from"] = kept.to_json()
    wanted = {"kind": source.kind, "dtype": dtype, "model": model.fingerprint, "data": data, "precision": encoding.precision}
    index = _up_to_date(out, wanted, model.config.of_vectors)
    if index is not None:
        if ranks.is_first and source.kind == "img":
            keep_pictures(pictures, out)
        if encoding.progress and ranks.is_first:
            print(f"{out}: up to date, {index.count} vectors", file=sys.stderr)
        return index
    ranks.barrier()  # all have looked before one writes
    writing = IndexWriter(out, source.kind, model.config.embedding_dim, model.fingerprint or "", data, dtype, made)
    with writing if ranks.is_first else nullcontext() as writer:
        absent = np.ones(len(names), np.int64)
        if writer is not None:
            absent[[n for n, name in enumerate(names) if name in writer.done]] = 0
        left: list[int] = np.flatnonzero(ranks.sum_array(absent * ranks.is_first)).tolist()
        if writer is not None and encoding.progress and len(left) < len(names):
            print(f"{out}: going on after {len(names) - len(left)} of {len(names)} vectors", file=sys.stderr)
        for batch, vectors in _encode_by_ranks(source.take(left), encoding, ranks):
            if writer is not None:
                writer.add(batch, vectors.cpu().numpy())
    if ranks.is_first and source.kind == "img":
        keep_pictures(pictures, out)
    ranks.barrier()  # nobody opens it before it stands
    return EmbeddingIndex(out)


def update_index(source: Source, out: str | Path, encoding: Encoding, replace: bool = False) -> EmbeddingIndex:
    """Put into the index ``out`` what it lacks of a source; with ``replace`` also encode again what it holds of it.

    Raises:
        BadInput: no index, one of another model or of the other kind, or as ``encode_batches``.
    """
    model = source.model
    index = EmbeddingIndex(out)
    index.check_model(model.fingerprint, model.config.of_vectors)
    if index.kind != source.kind:
        raise BadInput(f"{out}: is an index of {index.kind}, what is to be added is {source.kind}")
    pictures = read_pictures(source.folder) if source.kind == "img" else None
    known = {name for name in source.names if name in index}
    if not replace:
        source = source.take([position for position, name in enumerate(source.names) if name not in known])
    if not len(source):
        return index
    with IndexEditor(out, model.fingerprint) as editor:
        for positions, embedded in encode_batches(source, encoding):
            batch, vectors = [source.names[position] for position in positions], embedded.cpu().numpy()
            old = np.array([name in known for name in batch])
            editor.replace([name for name in batch if name in known], vectors[old])
            editor.add([name for name in batch if name not in known], vectors[~old])
    if source.kind == "img":
        keep_pictures(pictures, out)
    return EmbeddingIndex(out)


def _up_to_date(out: str | Path, wanted: dict, settings: dict) -> EmbeddingIndex | None:
    """The index in ``out``, if it is what would be built by a model with these settings of its vectors."""
    if not (Path(out) / "data.mdb").exists():
        return None
    index = EmbeddingIndex(out)
    if index.kind != wanted["kind"]:
        here, new = (_KINDS[kind] for kind in (index.kind, wanted["kind"]))
        raise BadInput(f"{out}: is an index of {here}, which one of {new} does not replace; choose another folder, or delete it")
    header = index.header | {"precision": index.header["created"].get("precision")}
    if not all(header[name] == value for name, value in wanted.items()):
        return None
    if index.header["created"].get("model_settings", settings) != settings:
        return None
    index.check_model(wanted["model"], settings)  # which says so where the index does not tell
    return index


def _encode_by_ranks(
    source: Source, encoding: Encoding, ranks: distributed.Ranks
) -> Iterator[tuple[list[str], Tensor]]:
    """Names and embeddings of all ranks' batches, in the order that one process would make: each encodes every size-th."""
    order = sorted(range(len(source)), key=lambda position: -source.lengths[position])
    batches = [order[start : start + encoding.batch_size] for start in range(0, len(order), encoding.batch_size)]
    mine = [position for batch in batches[ranks.rank :: ranks.size] for position in batch]
    encoding = dataclasses.replace(encoding, progress=encoding.progress and ranks.is_first)
    encoded = encode_batches(source.take(mine), encoding)
    for first in range(0, len(batches), ranks.size):
        round_ = batches[first : first + ranks.size]
        if ranks.rank < len(round_):
            vectors = next(encoded)[1]
        else:
            vectors = torch.empty(0, source.model.config.embedding_dim, device=encoding.device)
        sizes = [len(batch) for batch in round_] + [0] * (ranks.size - len(round_))
        yield [source.names[position] for batch in round_ for position in batch], ranks.gather(vectors, sizes)
