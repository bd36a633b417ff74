"""A small gallery: names of its 12 images, words of its captions, and a random model of its sizes."""

import torch

from configs import cli
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.transformer import EncoderConfig

WORDS = "a an the dog cat hund über straße kůň on beach red blue green runs sits big small two".split()
KEYS = [f"scene_{i:02d}.npz" for i in range(12)]


def small_model(seed, feature_dim=16):
    torch.manual_seed(seed)
    size = EncoderConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=40, initializer_range=0.3,
    )  # fmt: skip
    return LightningDOT(LightningDOTConfig(size, size, project_dim=24, feature_dim=feature_dim, cls_token_id=2))


def command(module, *words, positional=()):
    """Run a command in this process, as the shell would."""
    module.main(cli.parse(module.Options, [str(word) for word in words], positional))
