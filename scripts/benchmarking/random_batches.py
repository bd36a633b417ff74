"""Random batches of one size, for benchmarks of training."""

from __future__ import annotations

from typing import Protocol

import torch

from data.batches.batch import Batch


class Sizes(Protocol):
    """Sizes of the model and of a batch, as the options of scripts/bench_train.py name them."""

    words: int
    regions: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    feature_dim: int
    num_labels: int
    project_dim: int


def random_batch(sizes: Sizes, task: str, pairs: int, device: torch.device) -> Batch:
    """``pairs`` pairs of one length, masked for ``task``."""
    generator = torch.Generator().manual_seed(0)
    length = sizes.words + 2
    masked = torch.rand(pairs, sizes.regions, generator=generator) < 0.15
    masked[:, 0] = True
    input_ids = torch.randint(1000, sizes.vocab_size, (pairs, length), generator=generator)
    features = torch.randn(pairs, sizes.regions, sizes.feature_dim, generator=generator).half()
    batch = Batch(
        input_ids,
        torch.ones(pairs, length, dtype=torch.bool),
        features,
        torch.rand(pairs, sizes.regions, 7, generator=generator),
        torch.ones(pairs, sizes.regions, dtype=torch.bool),
        torch.arange(pairs),
        [],
        [],
    )
    if task == "vmlm":
        chosen = torch.rand(pairs, length, generator=generator) < 0.15
        chosen[:, 1] = True
        batch.word_labels = torch.where(chosen, input_ids, -1)
    elif task != "cmr":
        batch.masked_regions = masked
        batch.feature_targets = features[masked]
        batch.label_targets = torch.rand(int(masked.sum()), sizes.num_labels, generator=generator).half()
    return batch.to(device)
