"""A WordPiece vocabulary that is learned from captions."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from data.errors import BadInput
from data.progress import ProgressBar, said_when_slow

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # [PAD] is 0, as in BERT's vocabularies
LETTERS = string.ascii_lowercase + string.digits
LARGEST = 1_000_000  # word pieces: the trainer takes memory for all that may come; the largest vocabularies have a quarter of that


def train_vocabulary(texts: Sequence[str], size: int, lowercase: bool) -> list[str]:
    """Learn word pieces from texts → the pieces in the order of their ids, the same in every process.

    Every ASCII letter is a piece at the start of a word and inside it, so that a query's new word is spelled rather than
    unknown.

    Args:
        size: most word pieces, special ones counted
        lowercase: lower-case and drop accents, as BERT uncased does

    Raises:
        BadInput: the size does not hold the single letters, or is larger than any vocabulary.
    """
    if size > LARGEST:
        raise BadInput(f"vocab_size {size:,} is too large, expected at most {LARGEST:,} word pieces")
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    first, inside = set(LETTERS), set(LETTERS)
    for text in ProgressBar(texts, "reading words", unit="captions"):
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)):
            first.add(word[0])
            inside.update(word[1:])
    if not lowercase:
        first.update(string.ascii_uppercase)
    least = len(SPECIAL) + len(first) + len(inside)
    if size < least:
        raise BadInput(f"vocab_size {size} is too small, {least} are needed for single letters alone")
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        # "##a" ... are no specials, but left to itself the trainer numbers them in random order and breaks ties by it
        special_tokens=[*SPECIAL, *sorted(f"##{letter}" for letter in inside)],
        initial_alphabet=sorted(first),
        show_progress=False,
    )
    with ExitStack() as merging:

        def counted() -> Iterator[str]:
            yield from ProgressBar(texts, "counting words", unit="captions")
            merging.enter_context(said_when_slow("merging word pieces"))

        backend.train_from_iterator(counted(), trainer)
    vocabulary = backend.get_vocab()
    return sorted(vocabulary, key=vocabulary.get)
