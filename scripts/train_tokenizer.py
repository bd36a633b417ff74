#!/usr/bin/env python
"""Train a WordPiece tokenizer on captions.

python scripts/train_tokenizer.py --annotations captions.jsonl --vocab-size 1000 --out db/tokenizer
python scripts/train_tokenizer.py --annotations dataset_flickr30k.json --format karpathy --vocab-size 8000 --out db/tokenizer
python scripts/train_tokenizer.py --annotations captions.jsonl --no-lowercase --splits train restval --out db/tokenizer
"""

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

from configs import cli
from data.annotations import FormatName, selection
from data.annotations.records import ReadingOptions
from data.captions.tokenizers import CaptionTokenizer
from data.captions.vocabulary import train_vocabulary
from data.errors import BadInput
from data.storage.atomic import atomic_file
from data.storage.locks import claim_output


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
    format: FormatName = "jsonl"
    vocab_size: int = 1000
    lowercase: bool = True
    splits: list[str] = field(default_factory=lambda: ["train"])


def main(options: Options) -> None:
    claim_output(options.out)
    settings = ReadingOptions(needs_split=False)
    captions = selection.read_usable_captions(options.annotations, options.format, settings, {})
    texts = [c.text for c in captions if c.split in options.splits]
    if not texts:
        raise BadInput(f"{options.annotations}: no caption in {options.splits}; name the splits with --splits")
    others = Counter(c.split for c in captions if not c.split.startswith(("val", "test", *options.splits)))
    if others:
        print(f"not learned from: {', '.join(f'{n:,} captions of split {name}' for name, n in others.items())}")
    vocabulary = train_vocabulary(texts, options.vocab_size, options.lowercase)
    out = Path(options.out)
    with atomic_file(out / "vocab.txt") as path:
        path.write_text("".join(f"{piece}\n" for piece in vocabulary), encoding="utf-8")
    tokenizer = CaptionTokenizer.from_pretrained(out / "vocab.txt", options.lowercase)
    tokenizer.save_pretrained(out)
    pieces = sum(len(encoding) for encoding in tokenizer.encode(texts))
    print(f"{out}: {len(vocabulary)} word pieces from {len(texts):,} captions of {pieces / len(texts):.1f} pieces each")


if __name__ == "__main__":
    cli.run(main, Options)
