"""What a text encoder has to offer to be the text tower."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn


class TextEncoderConfig(Protocol):
    """Sizes of a text encoder: a dataclass of plain values, which ``config.json`` of a checkpoint holds.

    Where it has a field ``encoder``, that is its name in the registry; without one it is ``bert``.

    Attributes:
        hidden_size: width h of the hidden states
        vocab_size: number of word embeddings
        initializer_range: standard deviation of random weights on top of the encoder
        hidden_act, layer_norm_eps: of the heads on top
        max_tokens: the longest text, [CLS] and [SEP] included
    """

    hidden_size: int
    vocab_size: int
    initializer_range: float
    hidden_act: str
    layer_norm_eps: float

    @property
    def max_tokens(self) -> int: ...

    def set_dropout(self, rate: float) -> None: ...


@dataclass(frozen=True)
class TextEncoder:
    """A kind of text encoder.

    Attributes:
        config_class: its sizes, a `TextEncoderConfig`, with ``from_dict(values)``
        module_class: the module, built from such a config. Its ``forward(texts, first_only)`` takes texts of T
            tokens together without padding (data/batches/ragged.py), and gives hidden states [T,h], or [B,h] of position 0 alone; ``draw_weights(std)`` draws initial weights;
            ``set_checkpointing(on)`` turns activation checkpointing on or off; ``work`` and ``parts`` say what it costs
            (model/costs.py)
        read: a folder → its config, and the module's tensors by name. BadInput for a folder that it cannot take
        read_config: the same folder → its config alone, without looking at weights
        optional: regular expression of the tensors that such a folder may lack
    """

    config_class: type[Any]
    module_class: type[nn.Module]
    read: Callable[[str | Path], tuple[TextEncoderConfig, dict[str, Tensor]]]
    read_config: Callable[[str | Path], TextEncoderConfig]
    optional: str
