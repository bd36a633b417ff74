"""Padded twins of what the product holds without padding: sequences as rows of a rectangle, and an encoder that runs on it."""

import copy

import torch
from torch import Tensor, nn

from data.batches.ragged import Images, Layout, Texts


def padded(x: Tensor, lengths, value=0) -> Tensor:
    """[T,...] → [B,L,...], sequence by sequence."""
    rows = x.new_full((len(lengths), max(lengths), *x.shape[1:]), value)
    first = 0
    for n, length in enumerate(lengths):
        rows[n, :length] = x[first : first + length]
        first += length
    return rows


def mask_of(lengths) -> Tensor:
    """[B,L] bool, True at what is no padding."""
    return torch.tensor([[column < length for column in range(max(lengths))] for length in lengths])


def padded_texts(texts: Texts, pad: int = 0) -> tuple[Tensor, Tensor]:
    """What `encode_text` takes."""
    lengths = texts.layout.lengths.tolist()
    return padded(texts.ids, lengths, pad), mask_of(lengths)


def padded_images(images: Images) -> tuple[Tensor, Tensor, Tensor]:
    """What `encode_image` takes."""
    counts = images.counts.tolist()
    return padded(images.features, counts), padded(images.positions, counts), mask_of(counts)


class PaddedEncoder(nn.Module):
    """`model.transformer.Encoder` as its formula, on padded sequences; it shares the blocks of the one that it is made of."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.layer, self.checkpointing = encoder.layer, False

    def forward(self, x: Tensor, layout: Layout, first_only: bool = False) -> Tensor:
        lengths = layout.lengths.tolist()
        mask, x = mask_of(lengths), padded(x, lengths)  # [B,L], [B,L,h]
        for block in self.layer:
            x = self._block(block, x, mask)
        return x[:, 0] if first_only else x[mask]

    @staticmethod
    def _block(block: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        attention = block.attention["self"]
        q, k, v = (
            part(x).unflatten(2, (attention.heads, -1)).transpose(1, 2)  # [B,heads,L,d]
            for part in (attention.query, attention.key, attention.value)
        )
        scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
        weights = scores.masked_fill(~mask[:, None, None], float("-inf")).softmax(dim=3)
        y = block.attention["output"]((weights @ v).transpose(1, 2).flatten(2), x)
        return block.output(block.activation(block.intermediate["dense"](y)), y)


def padded_twin(model: nn.Module) -> nn.Module:
    """A copy of a model whose encoders run on padded sequences."""
    twin = copy.deepcopy(model)
    for part in list(twin.modules()):
        if type(getattr(part, "encoder", None)).__name__ == "Encoder":
            part.encoder = PaddedEncoder(part.encoder)
    return twin
