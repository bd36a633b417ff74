"""The tokenizer of a text tower: word pieces and their ids, over the ``tokenizers`` package.

``transformers`` would read the same files, but takes a second to import, in every command, and its 5.23 makes of a BERT
``vocab.txt`` a tokenizer that maps every word to one id.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from data.downloads.hub import TOKENIZER, local_folder
from data.errors import BadInput, reason_of
from data.storage.atomic import atomic_file
from data.storage.json_digest import check_digest, with_digest
from data.storage.regular_files import check_folder, is_there, real_path
from data.storage.text_files import is_utf8, read_json, read_lines, read_text, write_json

if TYPE_CHECKING:
    from tokenizers import Encoding

# BERT's names of the special tokens, and those of RoBERTa and XLM-R, for folders that do not say them
_SPECIAL_TOKENS = {
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "pad_token": ("[PAD]", "<pad>"),
    "mask_token": ("[MASK]", "<mask>"),
}


_TOKEN = (None, str, {"content": str})
_CONFIG: dict[str, Any] = {f"{name}?": _TOKEN for name in _SPECIAL_TOKENS}  # tokenizer_config.json and special_tokens_map.json, as far as they are read
_CONFIG |= {f"{name}?": (bool, None) for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars")}


class CaptionTokenizer:
    """Cuts texts into word pieces. Two tokenizers of the same files give the same ids, in every process.

    Attributes:
        name: of the folder or vocabulary file that it came from, as ``meta.json`` of a text DB keeps it
        unk_id, cls_id, sep_id, pad_id, mask_id: ids of the special tokens
    """

    def __init__(self, backend: Tokenizer, special_tokens: dict[str, str], name: str, config: dict):
        """Take what was read; use `from_pretrained`.

        Args:
            backend: does the work
            special_tokens: ``cls_token`` ... -> token; it becomes one piece where it is typed in a text
            config: content of the ``tokenizer_config.json`` that `save_pretrained` writes
        """
        backend.no_truncation()
        backend.no_padding()
        added = {token.content for token in backend.get_added_tokens_decoder().values()}
        backend.add_special_tokens([token for token in special_tokens.values() if token not in added])
        self.backend, self.name, self._config = backend, name, config
        self.unk_id, self.cls_id, self.sep_id, self.pad_id, self.mask_id = (
            backend.token_to_id(special_tokens[name]) for name in _SPECIAL_TOKENS
        )

    @classmethod
    def from_pretrained(cls, path: str | Path, lowercase: bool | None = None) -> CaptionTokenizer:
        """Read a tokenizer from a Hugging Face folder or name, or from a BERT ``vocab.txt``.

        >>> tokenizer = CaptionTokenizer.from_pretrained("checkpoint")
        >>> tokenizer.decode(tokenizer.input_ids("a red circle"))
        'a red circle'

        Args:
            path: folder with ``tokenizer.json`` or ``vocab.txt`` (a checkpoint with it below), a name of such a one on the
                hub, or a vocabulary file, one word piece per line
            lowercase: whether text is lower-cased (and loses its accents) first. None: as the folder says; if it does not,
                only when the vocabulary has no capital letter

        Raises:
            BadInput: no tokenizer there, `lowercase` contradicts the folder, or words are not told apart.
        """
        path = local_folder(path, TOKENIZER)
        if (path / "tokenizer").is_dir() and not any(is_there(path / name) for name in ("tokenizer.json", "vocab.txt", "vocab.json")):
            path = path / "tokenizer"  # of one of our checkpoints
        if path.is_dir() and is_there(path / "tokenizer.json"):
            tokenizer = _from_tokenizer_json(path)
        elif path.is_dir() and is_there(path / "vocab.txt"):
            tokenizer = _from_vocabulary(path / "vocab.txt", lowercase, _read_config(path))
        elif path.is_dir() and (is_there(path / "vocab.json") or any(path.glob("*.model"))):
            tokenizer = _from_transformers(path)
        elif path.is_file():
            tokenizer = _from_vocabulary(path, lowercase, {})
        else:
            raise BadInput(f"{path}: no tokenizer; expected a folder with tokenizer.json or vocab.txt, or a vocab.txt")
        stored = getattr(tokenizer.backend.normalizer, "lowercase", None)
        if None not in (lowercase, stored) and lowercase != stored:
            raise BadInput(f"{path}: its tokenizer has lowercase {stored}, not {lowercase}; leave `lowercase` out")
        with _panic_is_bad_input(path):
            _check_words(tokenizer, path)
        return tokenizer

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json``, which `from_pretrained` and Hugging Face's
        ``AutoTokenizer`` read.

        Raises:
            BadInput: the folder cannot be written.
        """
        folder = Path(folder)
        words = self.backend.to_str(pretty=True)
        with atomic_file(folder / "tokenizer.json") as path:
            path.write_text(words, encoding="utf-8")
        write_json(folder / "tokenizer_config.json", with_digest(self._config, more=words.encode()))

    def __len__(self) -> int:
        """Number of word pieces, special ones included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def vocabulary(self) -> dict[str, int]:
        """Word piece -> id."""
        return self.backend.get_vocab(with_added_tokens=True)

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """The ``ids``, ``tokens`` and ``offsets`` of each text's word pieces, without [CLS] and [SEP]."""
        try:
            return self.backend.encode_batch(list(texts), add_special_tokens=False)
        except TypeError:
            for text in texts:
                if not (isinstance(text, str) and is_utf8(text)):
                    raise BadInput(f"the text {ascii(text)[:60]} is no UTF-8 text; correct or remove it") from None
            raise

    def input_ids(self, text: str) -> list[int]:
        """Ids of a text's word pieces, without [CLS] and [SEP]."""
        return self.encode([text])[0].ids

    def decode(self, ids: Sequence[int]) -> str:
        """A text that has these word pieces."""
        return self.backend.decode(list(ids), skip_special_tokens=False)

    def word_range(self) -> tuple[int, int]:
        """First id and end (exclusive) of the ordinary word pieces, from which masking draws random words.

        It is the longest run of ids without a special or reserved token. BERT has those in front, the last ones
        [unused...]: (106, 28996) for bert-base-cased, (999, 30522) for bert-base-uncased, as UNITER stored them.
        """
        vocabulary = self.vocabulary()
        special = {i for token, i in vocabulary.items() if _is_special(token)}
        special |= {i for i, token in self.backend.get_added_tokens_decoder().items() if token.special}
        ends = [*sorted(special), max(vocabulary.values()) + 1]
        starts = [0, *(i + 1 for i in sorted(special))]
        return max(zip(starts, ends, strict=True), key=lambda run: run[1] - run[0])


def _is_special(token: str) -> bool:
    """Special, or reserved and never trained: [CLS], [unused12], <s>, <T>, but not a lone bracket."""
    return re.fullmatch(r"\[(UNK|CLS|SEP|MASK|PAD|unused\d+)\]|<\w+>", token) is not None


@contextmanager
def _panic_is_bad_input(path: Path) -> Iterator[None]:
    """What the tokenizers' Rust makes of files that contradict themselves: no ``Exception``, so that nobody else catches it."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise BadInput(f"{path}: its tokenizer cannot be used ({reason_of(error)}); copy it again") from None


# ---- reading ---------------------------------------------------------------------------------------------------------


def _read_config(folder: Path) -> dict:
    path = folder / "tokenizer_config.json"
    return read_json(path, "copy the tokenizer again", _CONFIG) if is_there(path) else {}


def _from_tokenizer_json(folder: Path) -> CaptionTokenizer:
    text = read_text(folder / "tokenizer.json", "copy the tokenizer again")
    with _panic_is_bad_input(folder):
        try:
            backend = Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises nothing narrower
            raise BadInput(f"{folder}: cannot be loaded as a tokenizer ({str(error)[:200]})") from None
    _check_ids(backend, folder)
    config = _read_config(folder)
    check_digest(folder / "tokenizer_config.json", config, "it is about this file and tokenizer.json; copy the tokenizer again", more=text.encode())
    path = folder / "special_tokens_map.json"
    said = (read_json(path, "copy the tokenizer again", _CONFIG) if is_there(path) else {}) | config
    special_tokens = {}
    for name, usual in _SPECIAL_TOKENS.items():
        token = said.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        token = token or next((word for word in usual if backend.token_to_id(word) is not None), None)
        if token is None:
            raise BadInput(f"{folder}: the tokenizer has no {name}; use one of the BERT family")
        special_tokens[name] = token
    usual_config = {"tokenizer_class": "PreTrainedTokenizerFast", **special_tokens}
    return CaptionTokenizer(backend, special_tokens, real_path(folder).name, config or usual_config)


def _check_ids(backend: Tokenizer, folder: Path) -> None:
    """Ids count words: the library walks from 0 to the largest one when it writes them, and memory is taken for as many."""
    ids = backend.get_vocab(with_added_tokens=True)
    word, largest = max(ids.items(), key=lambda item: item[1], default=("", 0))
    if largest >= 2 * len(ids) + 10_000:
        raise BadInput(f"{folder / 'tokenizer.json'}: the id of {word!r} is {largest}, of {len(ids)} words; copy the tokenizer again")


def _from_vocabulary(path: Path, lowercase: bool | None, config: dict) -> CaptionTokenizer:
    """BERT's cleaning, splitting and special tokens around a vocabulary file."""
    words = list(read_lines(path, "expected a vocabulary, one word piece per line"))
    vocabulary = {word: i for i, word in enumerate(words)}
    special_tokens = {name: usual[0] for name, usual in _SPECIAL_TOKENS.items()}
    missing = [token for token in special_tokens.values() if token not in vocabulary]
    if missing:
        raise BadInput(f"{path}: no BERT vocabulary, it lacks {' '.join(missing)}; expected one word piece per line")
    if lowercase is None:
        lowercase = config.get("do_lower_case")
    if lowercase is None:
        lowercase = all(word == word.lower() for word in words if not _is_special(word))
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase,
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=config.get("tokenize_chinese_chars") is not False,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **special_tokens}
    name = real_path(path.parent).name if path.stem == "vocab" else path.stem
    return CaptionTokenizer(backend, special_tokens, name, config)


def _from_transformers(folder: Path) -> CaptionTokenizer:
    """What transformers makes of SentencePiece models and of byte-level vocabularies without a ``tokenizer.json``."""
    from transformers import AutoTokenizer  # slow to import, and not needed for the files of most folders

    check_folder(folder)
    try:
        theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        backend = theirs.backend_tokenizer
    except Exception as error:  # transformers raises nearly anything here
        raise BadInput(f"{folder}: cannot be loaded as a tokenizer ({reason_of(error)})") from None
    special_tokens = {name: getattr(theirs, name) for name in _SPECIAL_TOKENS}
    missing = [name for name, token in special_tokens.items() if token is None]
    if missing:
        raise BadInput(f"{folder}: the tokenizer has no {', '.join(missing)}; use one of the BERT family")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **special_tokens}
    return CaptionTokenizer(backend, special_tokens, real_path(folder).name, config)


def _check_words(tokenizer: CaptionTokenizer, path: Path) -> None:
    """A sentence of the vocabulary's own words must not become one id, as of capitals that are lower-cased."""
    pieces = {word.lstrip("Ġ▁") for word in tokenizer.vocabulary()}
    words = sorted((word for word in pieces if word.isalpha()), key=lambda word: (len(word), word))[-20:]
    ids = tokenizer.input_ids(" ".join(words))
    if len(set(ids)) < max(2, len(words) // 2):
        raise BadInput(
            f"{path}: the tokenizer does not tell words apart: {words[:5]} become ids {ids[:5]}; "
            "check the vocabulary file and `lowercase`"
        )
