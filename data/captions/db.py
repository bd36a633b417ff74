"""CaptionDB: tokenised captions in the UNITER text-DB layout, read. `data.captions.writer` writes it.

A database folder holds an LMDB and, beside it::

    id2len.json     caption id -> number of word pieces, without [CLS] and [SEP]
    txt2img.json    caption id -> key of the picture in the image DB
    img2txts.json   key of the picture -> caption ids
    meta.json       annotations, output, task, bert, ids of the special tokens, v_range
    txt2lang.json   caption id -> language (ours; absent in UNITER's databases)
    columns/        these tables as arrays, when they are large (ours; made when absent, see `data.storage.columns`)
    checksums.npz   of every record (ours, see `data.storage.record_sums`)
    tokenizer/      the tokenizer that made it (ours)

Key: the caption id. Value: lz4 frame of a msgpack map ``raw, sentid, imgid, tokens, image_id, toked_caption, input_ids,
img_fname`` and, ours, ``lang``. Readers need ``input_ids`` (no specials) and ``img_fname``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import lmdb
import msgpack
import numpy as np

from data.captions.tables import CaptionTables, build_columns, column_files, columns_with_sums, table_files
from data.downloads.hub import DATASET, local_folder
from data.errors import BadInput
from data.storage.columns import load_columns
from data.storage.contents import content_digest
from data.storage.inflating import inflate_lz4
from data.storage.lmdb_env import Records, stored_value
from data.storage.record_sums import SUM, FirstReads, read_sums
from data.storage.regular_files import open_regular
from data.storage.shapes import check_shape
from data.storage.text_files import read_json

SPECIAL = ("CLS", "SEP", "MASK", "UNK", "PAD")
META = {"CLS": int, "SEP": int, "MASK": int, "UNK?": int, "PAD?": int, "v_range": [int]}


def read_meta(folder: Path) -> dict:
    """What a text DB says of its vocabulary: ids of the special tokens, and ``v_range``, the first id of a word and their end.

    Raises:
        BadInput: one of them is missing, or cannot be.
    """
    meta: dict = read_table(folder, "meta.json")
    missing = {"CLS", "SEP", "MASK", "v_range"} - meta.keys()
    if missing:
        raise BadInput(f"{folder / 'meta.json'}: has no {', '.join(sorted(missing))}; build the database again")
    check_shape(meta, META, str(folder / "meta.json"), "build the database again")
    if len(meta["v_range"]) != 2 or not 0 <= meta["v_range"][0] < meta["v_range"][1]:
        raise BadInput(f"{folder / 'meta.json'}: v_range is {meta['v_range']}, expected a first id and an end; build the database again")
    if negative := [name for name in SPECIAL if meta.get(name, 0) < 0]:
        raise BadInput(f"{folder / 'meta.json'}: {negative[0]} is {meta[negative[0]]}, expected an id of at least 0; build the database again")
    return meta


def vocabulary_size(meta: dict) -> int:
    """Rows a table of word embeddings needs: for the words, and special tokens behind them (RoBERTa's <mask>)."""
    return max(meta["v_range"][1], *(meta[name] + 1 for name in SPECIAL if name in meta))


class CaptionDB:
    """Read a text DB. Picklable; usable in forked and spawned DataLoader workers.

    >>> captions = CaptionDB("db/test")
    >>> name = captions.ids[0]
    >>> captions.txt2img[name].endswith(".npz"), len(captions.input_ids(name)) == captions.lengths[name]
    (True, True)

    Attributes:
        ids: caption ids, in the order they were written; like the tables below a view of `data.storage.columns`
        lengths: caption id -> number of word pieces, without specials
        txt2img, img2txts: caption id -> picture key, and back
        languages: caption id -> language, "" where it is not said; empty for databases that do not say
        max_words: `input_ids` gives no more than these of a caption; None: all
        meta: ids of the special tokens (``CLS, SEP, MASK, UNK``; ours also ``PAD``), ``v_range`` and more

    Raises:
        BadInput: the database is missing, truncated or empty, or its parts disagree.
    """

    def __init__(self, folder: str | Path):
        self.folder = local_folder(folder, DATASET)
        self.max_words: int | None = None
        self._records = Records(self.folder)
        self.meta: dict = read_meta(self.folder)
        self._vocabulary_size = vocabulary_size(self.meta)
        arrays = load_columns(self.folder, "columns", column_files(self.folder), self._build, rows="length")
        self._first_reads = FirstReads(self.folder, arrays) if SUM in arrays else None
        tables = CaptionTables(arrays)
        self.ids = tables.ids
        self.lengths: Mapping[str, int] = tables.lengths
        self.txt2img: Mapping[str, str] = tables.txt2img
        self.img2txts: Mapping[str, list[str]] = tables.img2txts
        self.languages: Mapping[str, str] = tables.languages
        if not self.ids:
            raise BadInput(f"{self.folder}: the database is empty; build it from a split that has captions")
        self.check_current()

    def _build(self) -> dict[str, np.ndarray]:
        arrays = build_columns(self.folder, partial(read_table, self.folder))
        if (sums := read_sums(self.folder, self._records.txn)) is not None:
            sums.say_other_files(self.folder.glob("*.json"))
        return columns_with_sums(arrays, sums, self.folder)

    def check_current(self) -> None:
        """Raise BadInput where another database stands in the folder by now. Whoever reads something else there asks behind it."""
        self._records.check_current()

    @property
    def tokenizer_folder(self) -> Path | None:
        """Folder of the tokenizer that made the database; None when it was not stored (UNITER's databases)."""
        folder = self.folder / "tokenizer"
        return folder if folder.is_dir() else None

    def tokenizer_files(self) -> dict[str, bytes] | None:
        """The files of that tokenizer, by their names; None when it was not stored. Raises BadInput where one cannot be read."""
        if (folder := self.tokenizer_folder) is None:
            return None
        files = {}
        try:
            for path in sorted(folder.iterdir()):
                with open_regular(path) as file:
                    files[path.name] = file.read()
        except OSError as error:
            raise BadInput(f"{folder}: cannot be read: {error.strerror}; copy the text DB again or build it again") from None
        self.check_current()
        return files

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, caption_id: str) -> bool:
        return caption_id in self.ids

    def __getitem__(self, caption_id: str) -> dict:
        """The whole record.

        Raises:
            BadInput: the caption is absent, its record is damaged, or it has words that are not in the vocabulary.
        """
        return self._record(caption_id, None)

    def input_ids(self, caption_id: str, row: int | None = None) -> list[int]:
        """Word-piece ids without [CLS] and [SEP], cut to ``max_words``.

        Args:
            row: of the caption in `ids`, when the caller knows it
        """
        return self._record(caption_id, row)["input_ids"][: self.max_words]

    def _record(self, caption_id: str, row: int | None) -> dict:
        value = stored_caption(self._records.txn, self.folder, caption_id)
        if self._first_reads is not None:
            row = self.ids.find(caption_id) if row is None else row
            if row >= 0:
                self._first_reads.check(row, caption_id, value)
        record = decoded_caption(value, self.folder, caption_id)
        if (ids := record["input_ids"]) and (min(ids) < 0 or max(ids) >= self._vocabulary_size):
            self._check_ids(caption_id, ids)
        return record

    def _check_ids(self, caption_id: str, ids: list[int]) -> None:
        """Raise BadInput where ids of words are none of the vocabulary, whose end meta.json says, or else the tokenizer: its special
        tokens may stand among the words."""
        if max(ids) >= self._vocabulary_size and self.tokenizer_folder is not None:
            from data.captions.tokenizers import CaptionTokenizer  # slow to import

            vocabulary = CaptionTokenizer.from_pretrained(self.tokenizer_folder).vocabulary()
            self._vocabulary_size = max(self._vocabulary_size, max(vocabulary.values()) + 1)
        if odd := [i for i in ids if not 0 <= i < self._vocabulary_size]:
            raise BadInput(
                f"{self.folder}: caption {caption_id!r} has the word {odd[0]} among its input_ids, expected 0 to {self._vocabulary_size - 1}, "
                "by meta.json; copy the database again or build it again"
            )

    def fingerprint(self) -> str:
        """Short hex that changes with any record, length, picture or language; the same for a copy of the folder."""
        digest = content_digest(self.folder, [path.name for path in table_files(self.folder)])
        self.check_current()
        special = {name: self.meta.get(name) for name in ("CLS", "SEP", "MASK", "UNK", "PAD", "v_range")}
        return hashlib.blake2b(f"{digest} {json.dumps(special)}".encode(), digest_size=8).hexdigest()


def read_table(folder: Path, name: str, shape: dict | type = dict) -> dict:
    """A JSON object beside the LMDB, such as ``id2len.json``; BadInput when it is missing or something else."""
    return read_json(folder / name, "copy or build the text DB again", shape)


def read_caption(txn: lmdb.Transaction, folder: Path, caption_id: str) -> dict:
    """The whole record: see `stored_caption` and `decoded_caption`."""
    return decoded_caption(stored_caption(txn, folder, caption_id), folder, caption_id)


def stored_caption(txn: lmdb.Transaction, folder: Path, caption_id: str) -> bytes | memoryview:
    """The bytes of a record. Raises BadInput when it is absent, or its page is damaged."""
    value = stored_value(txn, caption_id, folder, "caption")
    if value is None:
        raise BadInput(f"{folder}: no caption {caption_id!r}; check the id or build the database again")
    return value


def decoded_caption(value: bytes | memoryview, folder: Path, caption_id: str) -> dict:
    """The whole record; BadInput when it is damaged, or lacks ``input_ids`` or ``img_fname``."""
    try:
        record = msgpack.unpackb(inflate_lz4(value))
        if type(record["input_ids"]) is not list or not set(map(type, record["input_ids"])) <= {int}:
            raise TypeError("input_ids is no list of whole numbers")
        if type(record["img_fname"]) is not str or not isinstance(record.get("raw"), str | None):
            raise TypeError("img_fname or raw is no text")
        return record
    except Exception as error:  # whatever lz4 and msgpack raise on damaged bytes
        raise BadInput(f"{folder}: caption {caption_id!r} is damaged ({error!r}); build it again") from None
