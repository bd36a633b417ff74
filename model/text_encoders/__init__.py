"""The registry of text encoders: what can be the text tower, by the names that ``model.txt_encoder`` takes.

A text encoder is a file of its own here and a line below; ``base.py`` says what it has to offer.
"""

from __future__ import annotations

from pathlib import Path

from data.downloads.hub import SIZES, local_folder
from data.errors import BadInput
from model import checkpoints
from model.text_encoders.auto import AUTO
from model.text_encoders.base import TextEncoder
from model.text_encoders.bert import BERT

TEXT_ENCODERS: dict[str, TextEncoder] = {
    "bert": BERT,  # our own block: BERT, RoBERTa, XLM-R, CamemBERT, and UNITER's words
    "auto": AUTO,  # any other encoder that transformers knows
}


def choose_text_encoder(folder: str | Path, name: str | None = None) -> TextEncoder:
    """The encoder called ``name``; None: ``bert`` for a folder of the BERT family, ``auto`` for any other.

    Raises:
        BadInput: an unknown name, or no ``config.json`` in the folder.
    """
    if name is None:
        kind = checkpoints.read_settings(local_folder(folder, SIZES) / "config.json").get("model_type", "bert")
        name = "bert" if kind in checkpoints.BERT_FAMILY else "auto"
    return text_encoder_named(name)


def text_encoder_named(name: str) -> TextEncoder:
    """The entry of the registry. Raises BadInput for a name that it lacks."""
    if name not in TEXT_ENCODERS:
        raise BadInput(f"text encoder {name!r} is not one of {', '.join(TEXT_ENCODERS)}")
    return TEXT_ENCODERS[name]
