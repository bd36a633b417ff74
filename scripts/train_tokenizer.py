#!/usr/bin/env python
"""Train a WordPiece tokenizer on captions.

python scripts/train_tokenizer.py --annotations captions.jsonl --vocab-size 1000 --out db/tokenizer
"""

import string
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

from configs import cli
from data.annotations.records import Format, read_captions
from data.captions.tokenizers import CaptionTokenizer
from data.errors import BadInput
from data.storage.atomic import atomic_file

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]  # [PAD] is 0, as in BERT's vocabularies

LETTERS = string.ascii_lowercase + string.digits


@dataclass
class Options:
    """Train a WordPiece tokenizer on captions, of all languages together.

    Args:
        annotations: annotation file
        out: folder to write: a Hugging Face tokenizer, and vocab.txt
        format: as in scripts/build_captions.py
        vocab_size: most word pieces, specials counted
        lowercase: lower-case and drop accents, as BERT uncased does
        splits: learn from these only, never from what is tested on
    """

    annotations: str
    out: str
    format: Format = "jsonl"
    vocab_size: int = 1000
    lowercase: bool = True
    splits: list[str] = field(default_factory=lambda: ["train"])


def main(options: Options) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers  # slow to import

    texts = [c.text for c in read_captions(options.annotations, options.format) if c.split in options.splits]
    if not texts:
        raise BadInput(f"{options.annotations}: no caption in {options.splits}; name the splits with --splits")
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=options.lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # With every ASCII letter at the start of a word and inside it, a query's new word is spelled rather than unknown.
    first, inside = set(LETTERS), set(LETTERS)
    for text in texts:
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)):
            first.add(word[0])
            inside.update(word[1:])
    if not options.lowercase:
        first.update(string.ascii_uppercase)
    least = len(SPECIAL) + len(first) + len(inside)
    if options.vocab_size < least:
        raise BadInput(f"vocab_size {options.vocab_size} is too small, {least} are needed for single letters alone")
    trainer = trainers.WordPieceTrainer(
        vocab_size=options.vocab_size,
        # "##a" ... are no specials, but left to itself the trainer numbers them in random order and breaks ties by it
        special_tokens=[*SPECIAL, *sorted(f"##{letter}" for letter in inside)],
        initial_alphabet=sorted(first),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    vocabulary = backend.get_vocab()
    out = Path(options.out)
    with atomic_file(out / "vocab.txt") as path:
        path.write_text("".join(f"{piece}\n" for piece in sorted(vocabulary, key=vocabulary.get)), encoding="utf-8")
    tokenizer = CaptionTokenizer.from_pretrained(out / "vocab.txt", options.lowercase)
    tokenizer.save_pretrained(out)
    pieces = [len(encoding) for encoding in tokenizer.encode(texts)]
    print(
        f"{out}: {len(vocabulary)} word pieces from {len(texts):,} captions of {sum(pieces) / len(texts):.1f} pieces each"
    )


if __name__ == "__main__":
    cli.run(main, Options)
