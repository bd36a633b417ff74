"""Our own BERT block as the text tower: the fast path of the BERT family."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from data.downloads.hub import SIZES, local_folder
from model import checkpoints
from model.text_encoders.base import TextEncoder
from model.transformer import Bert, EncoderConfig


def read_words_encoder(folder: str | Path) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """A Hugging Face folder of the BERT family, or a converted UNITER without its region embeddings."""
    config, tensors = checkpoints.read_bert(folder)
    return config, {name: tensor for name, tensor in tensors.items() if not name.startswith("img_embeddings.")}


def read_bert_config(folder: str | Path) -> EncoderConfig:
    """Its sizes alone."""
    path = local_folder(folder, SIZES) / "config.json"
    return checkpoints.bert_config(checkpoints.read_settings(path), str(path))


BERT = TextEncoder(EncoderConfig, Bert, read_words_encoder, read_bert_config, optional=r"^pooler\.")
