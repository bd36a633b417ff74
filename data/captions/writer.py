"""Tokenise captions and write them as a text DB, in the layout that `data.captions.db` describes."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import lz4.frame
import msgpack

from data.annotations.records import Caption, number_of_id, refuse_record
from data.captions.tables import store_columns
from data.captions.tokenizers import CaptionTokenizer
from data.errors import BadInput
from data.progress import ProgressBar
from data.regions.keys import clash_of_keys, key_of_image
from data.storage.atomic import cannot_write_is_bad_input
from data.storage.columns import STORED_FROM
from data.storage.lmdb_writer import LmdbWriter
from data.storage.own_files import check_only_own

if TYPE_CHECKING:
    from tokenizers import Encoding


def write_caption_db(
    folder: str | Path,
    captions: Iterable[Caption],
    tokenizer: CaptionTokenizer,
    annotations: list[str],
    image_key: str = "{stem}.npz",
    extra_fields: Mapping[str, dict] | None = None,
    extra_meta: dict | None = None,
    keys: Mapping[str, str] | None = None,
    on_wordless: Callable[[str], None] = refuse_record,
) -> dict:
    """Tokenise captions and write them as one text DB, with a copy of the tokenizer; all or nothing appears.

    Args:
        folder: folder of the database
        captions: those of one split
        annotations: names of the files they come from, kept in ``meta.json``
        image_key: makes the image-DB key of a picture, see `key_of_image`
        extra_fields: caption id -> what its record holds besides
        extra_meta: what ``meta.json`` holds besides
        keys: file name of a picture -> its image-DB key, where that is known; `image_key` makes the others
        on_wordless: called with a line about each caption that has no word piece; when it returns, the caption is left out

    Returns:
        counts: ``captions``, ``images``, ``pieces`` (word pieces), ``unknown`` (of them), ``languages`` (language -> captions)

    Raises:
        BadInput: no caption at all, an id used twice, a caption without words, a bad `image_key`, a full disk.
    """
    check_replaceable(Path(folder))
    captions, source = list(captions), ", ".join(annotations)
    if not captions:
        raise BadInput(f"{source}: no caption for {folder}; check the split and the languages")
    tables, unknown = _Tables(), 0
    with LmdbWriter(folder) as writer:
        for caption, encoding in _encode(ProgressBar(captions, str(folder), unit="caption"), tokenizer):
            if not encoding.ids:
                on_wordless(f"{source}: caption {caption.caption_id} ({caption.text!r}) has no word; correct or remove it")
                continue
            key = (keys or {}).get(caption.image) or key_of_image(caption.image, image_key)
            try:
                tables.add(caption, key, len(encoding.ids))
            except BadInput as error:
                raise BadInput(f"{source}: caption {caption.caption_id}{error}") from None
            unknown += encoding.ids.count(tokenizer.unk_id)
            record = make_record(caption, encoding, len(tables.img2txts) - 1, key)
            record |= (extra_fields or {}).get(caption.caption_id, {})
            writer.put(caption.caption_id.encode(), pack_record(record))
        if not tables.lengths:
            raise BadInput(f"{source}: no caption for {folder} has a word; check the tokenizer")
        meta = _meta(tokenizer, annotations, folder) | (extra_meta or {})
        tables.write(writer, meta)
        tokenizer.save_pretrained(writer.partial / "tokenizer")
    return tables.counts() | {"unknown": unknown}


def check_replaceable(folder: Path) -> None:
    """Raise BadInput where something stands in the place of a text DB that is no text DB, such as a feature index, or more than one."""
    if (folder / "data.mdb").exists() and not (folder / "id2len.json").exists():
        raise BadInput(f"{folder}: is no text DB, which would take its place; choose another name or delete it")
    check_only_own(folder)


@dataclass
class _Tables:
    """The JSON tables beside the LMDB, a caption at a time."""

    lengths: dict[str, int] = field(default_factory=dict)
    txt2img: dict[str, str] = field(default_factory=dict)
    txt2lang: dict[str, str] = field(default_factory=dict)
    img2txts: dict[str, list[str]] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)  # key -> file name

    def add(self, caption: Caption, key: str, length: int) -> None:
        """Enter a caption of `length` word pieces. Raises BadInput: the end of a sentence about the caption."""
        if caption.caption_id in self.lengths:
            raise BadInput(" occurs twice; caption ids must differ")
        other = self.pictures.setdefault(key, caption.image)
        if other != caption.image:
            raise BadInput(f": {clash_of_keys(other, caption.image, key)}")
        self.lengths[caption.caption_id] = length
        self.txt2img[caption.caption_id], self.txt2lang[caption.caption_id] = key, caption.language
        self.img2txts.setdefault(key, []).append(caption.caption_id)

    def counts(self) -> dict:
        """What `write_caption_db` returns, but for the unknown word pieces."""
        languages = dict(Counter(self.txt2lang.values()))
        pieces = sum(self.lengths.values())
        return {"captions": len(self.lengths), "images": len(self.pictures), "pieces": pieces, "languages": languages}

    def write(self, writer: LmdbWriter, meta: dict) -> None:
        """Put the tables, and their columns where they are large, beside the LMDB."""
        files = {
            "id2len.json": self.lengths,
            "txt2img.json": self.txt2img,
            "img2txts.json": self.img2txts,
            "txt2lang.json": self.txt2lang,
            "meta.json": meta,
        }
        for name, content in files.items():
            writer.write_file(name, json.dumps(content, ensure_ascii=False))
        if len(self.lengths) >= STORED_FROM:
            with cannot_write_is_bad_input(writer.folder):
                store_columns(writer.partial, files, writer.write_checksums())


def _encode(captions: Iterable[Caption], tokenizer: CaptionTokenizer) -> Iterator[tuple[Caption, Encoding]]:
    captions = iter(captions)
    while chunk := list(itertools.islice(captions, 1000)):  # a tokenizer works on many texts at once
        yield from zip(chunk, tokenizer.encode([caption.text for caption in chunk]), strict=True)


def _meta(tokenizer: CaptionTokenizer, annotations: list[str], folder: str | Path) -> dict:
    return {
        "annotations": annotations,
        "output": str(folder),
        "task": "itm",
        "bert": tokenizer.name,
        "UNK": tokenizer.unk_id,
        "CLS": tokenizer.cls_id,
        "SEP": tokenizer.sep_id,
        "MASK": tokenizer.mask_id,
        "PAD": tokenizer.pad_id,
        "v_range": list(tokenizer.word_range()),
    }


def make_record(caption: Caption, encoding: Encoding, imgid: int, key: str) -> dict:
    """The stored record of a caption.

    Args:
        encoding: its word pieces, without [CLS] and [SEP]
        imgid: number of its picture within the database
        key: of its picture in the image DB
    """
    text, stem, number = caption.text, PurePosixPath(caption.image).stem, number_of_id(caption.caption_id)
    continues = [start > 0 and not text[start - 1].isspace() for start, _ in encoding.offsets]
    return {
        "raw": text,
        "sentid": caption.caption_id if number is None else number,
        "imgid": imgid,
        "tokens": list(caption.tokens or text.lower().split()),
        "image_id": caption.image_id if caption.image_id is not None else stem,
        # UNITER marks pieces that continue a word of the raw text with @@
        "toked_caption": ["@@" * mark + piece for mark, piece in zip(continues, encoding.tokens, strict=True)],
        "input_ids": encoding.ids,
        "img_fname": key,
        "lang": caption.language,
    }


def pack_record(record: dict) -> bytes:
    """The stored bytes of a record: an lz4 frame of msgpack."""
    return lz4.frame.compress(msgpack.packb(record, use_bin_type=True))
