"""A tiny Marian model: what it says is nonsense, and the same every time."""

import json
from pathlib import Path

import sentencepiece
import torch
from transformers import MarianConfig, MarianMTModel, MarianTokenizer


def make_marian(folder: Path, texts: list[str]) -> None:
    """Write a model with random weights, and a tokenizer trained on `texts`, as Helsinki-NLP's folders are."""
    folder.mkdir()
    (folder / "text").write_text("\n".join(texts * 20), encoding="utf-8")
    for side in ("source", "target"):
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "text"),
            model_prefix=str(folder / side),
            vocab_size=120,
            hard_vocab_limit=False,
            minloglevel=2,
        )
        (folder / f"{side}.model").rename(folder / f"{side}.spm")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
    names = ["</s>", "<unk>", *(pieces.id_to_piece(i) for i in range(3, len(pieces))), "<pad>"]
    (folder / "vocab.json").write_text(json.dumps({name: n for n, name in enumerate(names)}), encoding="utf-8")
    MarianTokenizer(*(str(folder / name) for name in ("source.spm", "target.spm", "vocab.json"))).save_pretrained(
        folder
    )
    torch.manual_seed(0)
    pad = len(names) - 1
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64}
    ids = {"pad_token_id": pad, "eos_token_id": 0, "decoder_start_token_id": pad, "forced_eos_token_id": 0}
    model = MarianMTModel(MarianConfig(vocab_size=len(names), **sizes, **heads, **ids, init_std=1.0))
    model.generation_config.bad_words_ids = [[pad]]
    model.save_pretrained(folder)
