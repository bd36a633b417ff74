"""Random batches of one size, for benchmarks of training."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from data.batches.batch import Batch


@dataclass(kw_only=True)
class Sizes:
    """Sizes of the model and of a batch.

    Args:
        words: of a caption, [CLS] and [SEP] not included
        regions: of an image
        hidden_size: of both towers
        num_hidden_layers: of both towers
        num_attention_heads: of both towers
        intermediate_size: of both towers
        vocab_size: of both towers
        feature_dim: width of a region feature
        num_labels: classes of the region detector
        project_dim: width of the embedding
    """

    words: int = 16
    regions: int = 36
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    vocab_size: int = 28996
    feature_dim: int = 2048
    num_labels: int = 1601
    project_dim: int = 768


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
