"""The smallest world that commands run on, made in this process: six pictures, one broken file, two captions each, a model."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image

from configs import cli
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.transformer import EncoderConfig
from scripts import build_captions, extract_regions

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "dog", "blue", "cat", "runs", "sleeps"]
EXTRACTION = ["--extractor", "random-conv", "--feature-dim", "16", "--num-labels", "5", "--size", "32", "--workers", "0"]


def make_tiny_world(root: Path) -> None:
    """Write vocab.txt, captions.jsonl, photos/, regions/, db/train, db/val and model/ into a folder."""
    (root / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    (root / "photos").mkdir()
    lines = []
    for n in range(6):
        Image.new("RGB", (40 + n, 50), (40 * n, 90, 30)).save(root / "photos" / f"{n}.jpg")
        lines.append({"image": f"{n}.jpg", "captions": {"en": ["a red dog runs", f"a {WORDS[5 + n]} cat"]}, "split": "train" if n < 4 else "val"})
    (root / "photos" / "broken.jpg").write_bytes(b"no picture")
    (root / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sizes = EncoderConfig(
        vocab_size=12, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, max_position_embeddings=16
    )
    torch.manual_seed(0)
    LightningDOT(LightningDOTConfig(sizes, sizes, 6, 16, 5, 2)).save_pretrained(root / "model")
    words = ["--photos", str(root / "photos"), *EXTRACTION, "--out", str(root / "regions")]
    extract_regions.main(cli.parse(extract_regions.Options, words))
    words = ["--annotations", str(root / "captions.jsonl"), "--tokenizer", str(root / "vocab.txt"), "--out", str(root / "db")]
    build_captions.main(cli.parse(build_captions.Options, words))
