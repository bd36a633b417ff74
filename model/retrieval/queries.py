"""What a user asks, checked and read: texts, how many results, how many of them to rank again, and how.

Whatever is wrong with them is ``BadInput``, one sentence, wrong types too: they come from a caller's JSON as well as from Python.
"""

from __future__ import annotations

import numbers
import operator
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.annotations.records import has_word
from data.captions.tokenizers import CaptionTokenizer
from data.errors import BadInput
from data.storage.text_files import read_lines

_SHOWN = 60  # characters of a query in a message
LARGEST_MIX = 1_000_000


@dataclass(frozen=True)
class TextQuery:
    """A text as the models read it.

    Attributes:
        text: as typed
        input_ids: [L] int64, [CLS] words [SEP]
        unknown_words: its words that the vocabulary lacks, in their order; the model reads one and the same [UNK] for each
        is_unknown: whether it has no other words
    """

    text: str
    input_ids: np.ndarray
    unknown_words: tuple[str, ...]
    is_unknown: bool

    @property
    def remark(self) -> str | None:
        """A line for the user; None where every word is known."""
        if self.is_unknown:
            return f"query {shown(self.text)}: none of its words is in the model's vocabulary, so what is found says nothing about them"
        if self.unknown_words:
            return f"query {shown(self.text)}: not in the model's vocabulary, and so not looked for: {', '.join(shown(word) for word in self.unknown_words)}"
        return None


def read_queries(path: str | Path) -> list[str]:
    """The texts of a file of queries, one a line. Raises BadInput for a file that holds none or cannot be read."""
    queries = [line.strip() for line in read_lines(path, "give UTF-8 text, one query a line") if line.strip()]
    if not queries:
        raise BadInput(f"{path}: holds no query, expected one a line")
    return queries


def checked_texts(text: Any) -> list[str]:
    """A text, or several, as a list. Raises BadInput for anything else, for none, and for one without a word."""
    if isinstance(text, str):
        texts = [text]
    elif text is None or (isinstance(text, Iterable) and not isinstance(text, bytes | bytearray | Mapping | Set)):
        texts = [] if text is None else list(text)
    else:
        raise BadInput(f"a query is a text, or a list of texts; found {described(text)}")
    if not texts:
        raise BadInput("the query is empty: give the words to find images for")
    for each in texts:
        if (isinstance(each, str) and not each.strip()) or each is None:
            raise BadInput("a query is empty: give the words to find images for")
        if not isinstance(each, str):
            raise BadInput(f"a query is a text, or a list of texts; found {described(each)} among them")
        if not has_word(each):
            raise BadInput(f"the query {ascii(each)[:_SHOWN]} has nothing in it that can be seen: give the words to find images for")
    return texts


def read_texts(texts: Sequence[str], tokenizer: CaptionTokenizer, longest: int) -> list[TextQuery]:
    """Texts as the models read them.

    Args:
        longest: tokens that the text tower has positions for, [CLS] and [SEP] included

    Raises:
        BadInput: a text that is longer, or that cannot be written as UTF-8.
    """
    queries = []
    for text, encoding in zip(texts, tokenizer.encode(texts), strict=True):
        ids = np.array([tokenizer.cls_id, *encoding.ids, tokenizer.sep_id], np.int64)
        if len(ids) > longest:
            raise BadInput(
                f"query {shown(text)}: with [CLS] and [SEP] it has {len(ids)} tokens and does not fit the model's {longest} positions; shorten it"
            )
        words = [(text[start:end].strip(), number) for number, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)]
        unknown = tuple(word for word, number in words if number == tokenizer.unk_id)
        known = any(number != tokenizer.unk_id and any(map(str.isalnum, word)) for word, number in words)
        queries.append(TextQuery(text, ids, unknown, bool(unknown) and not known))
    return queries


def checked_count(value: Any, name: str, least: int = 1) -> int:
    """A number of results, for instance. Raises BadInput unless it is an integer of at least ``least``."""
    if isinstance(value, bool | np.bool_) or not hasattr(value, "__index__"):
        raise BadInput(f"{name} is {described(value)}, expected a whole number of at least {least}")
    value = operator.index(value)
    if value < least:
        raise BadInput(f"{name} is {described(value)}, expected at least {least}")
    return value


def checked_mix(value: Any) -> float:
    """The weight of the bi-encoder's score. Raises BadInput unless it is a number of 0 to a million, beyond which a re-ranker's score
    is lost in float32."""
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)
    if not is_number or not 0 <= value <= LARGEST_MIX:
        raise BadInput(f"mix is {described(value)}, expected a number of at least 0, at most {LARGEST_MIX:,}: the weight of the bi-encoder's score")
    return float(value)


def check_argument(name: str, value: Any, expected: str, *kinds: type) -> None:
    """Raise BadInput unless an argument is of one of these types."""
    if not isinstance(value, kinds):
        raise BadInput(f"{name} is {described(value)}, expected {expected}")


def described(value: Any) -> str:
    """A wrong value with its type, for a message."""
    if isinstance(value, int) and abs(value) >= 10**_SHOWN:
        return "a huge number"
    text = ascii(value) if isinstance(value, str | bytes) else repr(value)
    kind = type(value).__name__
    return text if kind in ("NoneType", "bool") or isinstance(value, numbers.Number) else f"{' '.join(text.split())[:_SHOWN]} ({kind})"


def shown(text: str) -> str:
    """A query in a message: in quotation marks, its first characters where it is long."""
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
