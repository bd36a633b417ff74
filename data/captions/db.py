"""CaptionDB: tokenised captions in the UNITER text-DB layout, read and written.

A database folder holds an LMDB and, beside it::

    id2len.json     caption id -> number of word pieces, without [CLS] and [SEP]
    txt2img.json    caption id -> key of the picture in the image DB
    img2txts.json   key of the picture -> caption ids
    meta.json       annotations, output, task, bert, ids of the special tokens, v_range
    txt2lang.json   caption id -> language (ours; absent in UNITER's databases)
    columns/        these tables as arrays, when they are large (ours; made when absent, see `data.storage.columns`)
    tokenizer/      the tokenizer that made it (ours)

Key: the caption id. Value: lz4 frame of a msgpack map ``raw, sentid, imgid, tokens, image_id, toked_caption, input_ids,
img_fname`` and, ours, ``lang``. Readers need ``input_ids`` (no specials) and ``img_fname``.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import lmdb
import lz4.frame
import msgpack
from tqdm import tqdm

from data.annotations.records import Caption
from data.captions.tables import CaptionTables, build_columns, store_columns, table_files
from data.errors import BadInput
from data.storage.atomic import cannot_write_is_bad_input
from data.storage.columns import STORED_FROM, json_parts, load
from data.storage.lmdb_env import LmdbWriter, Records
from data.storage.text_files import read_json

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerFast


class CaptionDB:
    """Read a text DB. Picklable; usable in forked and spawned DataLoader workers.

    Attributes:
        ids: caption ids, in the order they were written; like the tables below a view of `data.storage.columns`
        lengths: caption id -> number of word pieces, without specials
        txt2img, img2txts: caption id -> picture key, and back
        languages: caption id -> language, "" where it is not said; empty for databases that do not say
        meta: ids of the special tokens (``CLS, SEP, MASK, UNK``; ours also ``PAD``), ``v_range`` and more

    Raises:
        BadInput: the database is missing, truncated or empty, or its parts disagree.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._records = Records(self.folder)
        self.meta: dict = read_table(self.folder, "meta.json")
        build = partial(build_columns, self.folder, partial(read_table, self.folder))
        tables = CaptionTables(load(self.folder, "columns", table_files(self.folder), build, rows="length"))
        self.ids: Sequence[str] = tables.ids
        self.lengths: Mapping[str, int] = tables.lengths
        self.txt2img: Mapping[str, str] = tables.txt2img
        self.img2txts: Mapping[str, list[str]] = tables.img2txts
        self.languages: Mapping[str, str] = tables.languages
        if not self.ids:
            raise BadInput(f"{self.folder}: the database is empty; build it from a split that has captions")
        missing = {"CLS", "SEP", "MASK", "v_range"} - self.meta.keys()
        if missing:
            raise BadInput(
                f"{self.folder / 'meta.json'}: has no {', '.join(sorted(missing))}; build the database again"
            )

    @property
    def tokenizer_folder(self) -> Path | None:
        """Folder of the tokenizer that made the database; None when it was not stored (UNITER's databases)."""
        folder = self.folder / "tokenizer"
        return folder if folder.is_dir() else None

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, caption_id: str) -> bool:
        return caption_id in self.ids

    def __getitem__(self, caption_id: str) -> dict:
        """The whole record.

        Raises:
            BadInput: the caption is absent or its record is damaged.
        """
        return read_caption(self._records.txn, self.folder, caption_id)

    def input_ids(self, caption_id: str) -> list[int]:
        """Word-piece ids without [CLS] and [SEP]."""
        return self[caption_id]["input_ids"]

    def fingerprint(self) -> str:
        """Short hex of the ids, lengths, pictures and a sample of the records; the same for a copy of the folder."""
        digest = hashlib.blake2b(digest_size=8)
        for part in (b"[", *json_parts(self.lengths), b", ", *json_parts(self.txt2img), b"]"):
            digest.update(part)
        digest.update(str(self._records.txn.stat()).encode())
        for caption_id in self.ids[:: max(1, len(self.ids) // 256)]:
            digest.update(self._records.txn.get(caption_id.encode(), b""))
        return digest.hexdigest()


def read_table(folder: Path, name: str) -> dict:
    """A JSON object beside the LMDB, such as ``id2len.json``; BadInput when it is missing or something else."""
    return read_json(folder / name, "copy or build the text DB again")


def read_caption(txn: lmdb.Transaction, folder: Path, caption_id: str) -> dict:
    """The whole record; BadInput when it is absent, damaged, or lacks ``input_ids`` or ``img_fname``."""
    try:
        value = txn.get(caption_id.encode())
    except lmdb.Error as error:
        raise BadInput(f"{folder}: caption {caption_id!r} cannot be read ({error}); copy the database again") from None
    if value is None:
        raise BadInput(f"{folder}: no caption {caption_id!r}; check the id or build the database again")
    try:
        record = msgpack.unpackb(lz4.frame.decompress(value))
        return {"input_ids": record["input_ids"], "img_fname": record["img_fname"], **record}
    except Exception as error:  # whatever lz4 and msgpack raise on damaged bytes
        raise BadInput(f"{folder}: caption {caption_id!r} is damaged ({error!r}); build it again") from None


# ---- tokenizers ------------------------------------------------------------------------------------------------------


def load_tokenizer(path: str | Path, lowercase: bool | None = None) -> PreTrainedTokenizerFast:
    """A fast tokenizer from a Hugging Face folder or from a BERT ``vocab.txt``.

    Args:
        path: folder with ``tokenizer.json`` or ``vocab.txt``, or a vocabulary file, one word piece per line
        lowercase: whether text is lower-cased (and loses its accents) first. None: as the folder says; if it does not,
            only when the vocabulary has no capital letter

    Raises:
        BadInput: no tokenizer there, `lowercase` contradicts the folder, or words are not told apart.
    """
    path = Path(path)
    if path.is_dir() and (path / "tokenizer.json").exists():
        tokenizer = _load_folder(path, lowercase)
    elif path.is_dir() and (path / "vocab.txt").exists():
        tokenizer = _load_vocabulary(
            path / "vocab.txt", _configured_lowercase(path) if lowercase is None else lowercase
        )
    elif path.is_file():
        tokenizer = _load_vocabulary(path, lowercase)
    else:
        raise BadInput(f"{path}: no tokenizer; expected a folder with tokenizer.json or vocab.txt, or a vocab.txt")
    _check_words(tokenizer, path)
    return tokenizer


def _load_folder(path: Path, lowercase: bool | None) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # transformers raises nearly anything here
        raise BadInput(f"{path}: cannot be loaded as a tokenizer ({str(error)[:200]})") from None
    stored = getattr(tokenizer.backend_tokenizer.normalizer, "lowercase", None)
    if None not in (lowercase, stored) and lowercase != stored:
        raise BadInput(f"{path}: its tokenizer has lowercase {stored}, not {lowercase}; leave `lowercase` out")
    return tokenizer


def _configured_lowercase(folder: Path) -> bool | None:
    try:
        return json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("do_lower_case")
    except (OSError, ValueError):
        return None


def _load_vocabulary(path: Path, lowercase: bool | None) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    try:
        words = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")  # splitlines would cut inside pieces
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: no vocabulary, not UTF-8 text ({error}); expected one word piece per line") from None
    vocabulary = {word: i for i, word in enumerate(words)}
    missing = [token for token in ("[UNK]", "[CLS]", "[SEP]", "[MASK]", "[PAD]") if token not in vocabulary]
    if missing:
        raise BadInput(f"{path}: no BERT vocabulary, it lacks {' '.join(missing)}; expected one word piece per line")
    if lowercase is None:
        lowercase = all(word == word.lower() for word in words if not _is_special(word))
    # cleaning, splitting and special tokens as in BERT, put together here because of what transformers 5 does to some
    # vocabulary files (see _check_words)
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        name_or_path=str(path.parent if path.stem == "vocab" else path.with_suffix("")),
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        model_max_length=512,
    )


def _check_words(tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """A sentence of the vocabulary's own words must not become one id (transformers 5 does that to some folders)."""
    names = ("unk_token", "cls_token", "sep_token", "pad_token", "mask_token")
    missing = [name for name in names if getattr(tokenizer, name) is None]
    if missing:
        raise BadInput(f"{path}: the tokenizer has no {', '.join(missing)}; use one of the BERT family")
    words = {word.lstrip("Ġ▁") for word in tokenizer.get_vocab()}
    words = sorted((word for word in words if word.isalpha()), key=lambda word: (len(word), word))[-20:]
    ids = tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
    if len(set(ids)) < max(2, len(words) // 2):
        raise BadInput(
            f"{path}: the tokenizer does not tell words apart: {words[:5]} become ids {ids[:5]}; "
            "check the vocabulary file and `lowercase`"
        )


def _is_special(token: str) -> bool:
    """Special, or reserved and never trained: [CLS], [unused12], <s>, <T>, but not a lone bracket."""
    return re.fullmatch(r"\[(UNK|CLS|SEP|MASK|PAD|unused\d+)\]|<\w+>", token) is not None


def word_range(tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    """First id and end (exclusive) of the ordinary word pieces, from which masking draws random words.

    It is the longest run of ids without a special or reserved token. BERT has those in front, the last ones
    [unused...]: (106, 28996) for bert-base-cased, (999, 30522) for bert-base-uncased, as UNITER stored them.
    """
    vocabulary = tokenizer.get_vocab()
    special = {i for token, i in vocabulary.items() if _is_special(token)} | set(tokenizer.all_special_ids)
    ends = [*sorted(special), max(vocabulary.values()) + 1]
    starts = [0, *(i + 1 for i in sorted(special))]
    return max(zip(starts, ends, strict=True), key=lambda run: run[1] - run[0])


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_caption_db(
    folder: str | Path,
    records: Iterable[Caption],
    tokenizer: PreTrainedTokenizerFast,
    annotations: list[str],
    image_key: str = "{stem}.npz",
    more: Mapping[str, dict] | None = None,
    more_meta: dict | None = None,
) -> dict[str, int]:
    """Tokenise captions and write them as one text DB, with a copy of the tokenizer; all or nothing appears.

    Args:
        folder: folder of the database
        records: captions of one split
        annotations: names of the files they come from, kept in ``meta.json``
        image_key: makes the image-DB key of a picture, see `key_of_image`
        more: caption id -> what its record holds besides
        more_meta: what ``meta.json`` holds besides

    Returns:
        counts: ``captions``, ``images``, ``pieces`` (word pieces in all) and ``unknown`` (those the vocabulary lacks)

    Raises:
        BadInput: no caption at all, an id used twice, a caption without words, a bad `image_key`, a full disk.
    """
    records = list(records)
    if not records:
        raise BadInput(f"{', '.join(annotations)}: no caption for {folder}; check the split and the languages")
    lengths: dict[str, int] = {}
    images: dict[str, str] = {}  # key -> picture
    txt2img: dict[str, str] = {}
    txt2lang: dict[str, str] = {}
    img2txts: dict[str, list[str]] = {}
    unknown = 0
    with LmdbWriter(folder) as writer:
        for caption, encoding in _encode(tqdm(records, desc=str(folder), unit="caption", delay=2), tokenizer):
            caption_id, key = caption.caption_id, key_of_image(caption.image, image_key)
            where = f"{', '.join(annotations)}: caption {caption_id}"
            if caption_id in lengths:
                raise BadInput(f"{where} occurs twice in {folder}; caption ids must differ")
            if not encoding.ids:
                raise BadInput(f"{where} ({caption.text!r}) has no word; correct or remove it")
            if images.setdefault(key, caption.image) != caption.image:
                raise BadInput(
                    f"{where}: pictures {images[key]} and {caption.image} both get the key {key}; "
                    "their names must differ before the extension"
                )
            img2txts.setdefault(key, []).append(caption_id)
            txt2img[caption_id], txt2lang[caption_id] = key, caption.language
            lengths[caption_id] = len(encoding.ids)
            unknown += encoding.ids.count(tokenizer.unk_token_id)
            record = make_record(caption, encoding, len(img2txts) - 1, key) | (more or {}).get(caption_id, {})
            writer.put(caption_id.encode(), pack_record(record))
        meta = {
            "annotations": annotations,
            "output": str(folder),
            "task": "itm",
            "bert": Path(tokenizer.name_or_path).name,
            "UNK": tokenizer.unk_token_id,
            "CLS": tokenizer.cls_token_id,
            "SEP": tokenizer.sep_token_id,
            "MASK": tokenizer.mask_token_id,
            "PAD": tokenizer.pad_token_id,
            "v_range": list(word_range(tokenizer)),
        } | (more_meta or {})
        files = {"id2len": lengths, "txt2img": txt2img, "img2txts": img2txts, "txt2lang": txt2lang, "meta": meta}
        for name, content in files.items():
            writer.write_file(f"{name}.json", json.dumps(content, ensure_ascii=False))
        if len(lengths) >= STORED_FROM:
            with cannot_write_is_bad_input(folder):
                store_columns(writer.partial, {f"{name}.json": content for name, content in files.items()})
        try:
            tokenizer.save_pretrained(writer.partial / "tokenizer")
        except OSError as error:
            raise BadInput(f"{folder}: cannot write the tokenizer: {error.strerror}") from error
    return {"captions": len(lengths), "images": len(images), "pieces": sum(lengths.values()), "unknown": unknown}


def _encode(records: Iterable[Caption], tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[Caption, Encoding]]:
    records = iter(records)
    while chunk := list(itertools.islice(records, 1000)):  # fast tokenizers work on many texts at once
        encodings = tokenizer([caption.text for caption in chunk], add_special_tokens=False).encodings
        yield from zip(chunk, encodings, strict=True)


def key_of_image(image: str, template: str) -> str:
    """Key in the image DB of a picture's file name.

    Args:
        template: a format string of ``stem``, the name without folders and extension, and ``lower``, the same in lower
            case: ``{stem}.npz``; UNITER's databases: ``flickr30k_{stem:0>12}.npz``, COCO ``{lower}.npz``
    """
    stem = PurePosixPath(image).stem
    try:
        return template.format(stem=stem, lower=stem.lower())
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise BadInput(f"image_key {template!r} cannot be filled in ({error!r}); use {{stem}} or {{lower}}") from None


def make_record(caption: Caption, encoding: Encoding, imgid: int, key: str) -> dict:
    """The stored record of a caption; `imgid` numbers the pictures of the database."""
    text, stem = caption.text, PurePosixPath(caption.image).stem
    continues = [start > 0 and not text[start - 1].isspace() for start, _ in encoding.offsets]
    return {
        "raw": text,
        "sentid": int(caption.caption_id) if caption.caption_id.isdecimal() else caption.caption_id,
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
