"""Random batches of one size, for benchmarks of training."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch

from data.batches.batch import Batch
from data.batches.masking import NOT_MASKED
from data.batches.ragged import Images, Layout, Predicted, Texts
from data.errors import BadInput
from model.objectives.smrm import MaskedRegions
from scripts.benchmarking.measuring import refuse_empty_lists

FIRST_WORD = 1000  # of the vocabulary that is drawn


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

    def __post_init__(self):
        refuse_empty_lists(self)
        for size in dataclasses.fields(Sizes):
            if getattr(self, size.name) < 1:
                raise BadInput(f"{size.name}: found {getattr(self, size.name)}, expected at least 1")
        if self.num_labels == 1:
            raise BadInput("num_labels: found 1, which is the background alone, expected at least 2")
        if self.vocab_size <= FIRST_WORD:
            raise BadInput(f"vocab_size: found {self.vocab_size}, expected more than {FIRST_WORD}: words are drawn from there on")


def random_batch(sizes: Sizes, task: str, pairs: int, device: torch.device) -> Batch:
    """``pairs`` pairs of one length, masked for ``task``."""
    generator = torch.Generator().manual_seed(0)
    length = sizes.words + 2
    input_ids = torch.randint(FIRST_WORD, sizes.vocab_size, (pairs, length), generator=generator)
    features = torch.randn(pairs * sizes.regions, sizes.feature_dim, generator=generator).half()
    batch = Batch(
        Texts(input_ids.flatten(), Layout.of([length] * pairs)),
        Images.of(features, torch.rand(len(features), 7, generator=generator), np.full(pairs, sizes.regions)),
        torch.arange(pairs),
        [],
        [],
    )
    if task in ("vmlm", "mlm"):
        chosen = torch.rand(pairs, length, generator=generator) < 0.15
        chosen[:, 1] = True
        batch.word_labels = torch.where(chosen, input_ids, NOT_MASKED).flatten()
        batch.predicted = Predicted.at(chosen.flatten().numpy(), batch.texts.layout)
    elif task != "cmr":
        masked = torch.rand(pairs, sizes.regions, generator=generator) < 0.15
        masked[:, 0] = True
        MaskedRegions.mask(batch, masked.flatten().numpy())
        batch.label_targets = torch.rand(int(masked.sum()), sizes.num_labels, generator=generator).half()
    return batch.to(device)
