"""One BERT-family encoder, used by both towers and by the re-ranker.

Post-layer-norm BERT (Devlin et al., 2019) on packed rows: sequences of different lengths without padding, one behind the
other (data/batches/ragged.py). Parameter names are BERT's, so that Hugging Face, UNITER and LightningDOT checkpoints load
strictly and without renaming.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from data.batches.ragged import Layout, Texts
from data.errors import BadInput
from data.storage.memory import check_memory
from data.storage.shapes import check_shape, shape_of
from model.attention import attend, collect
from model.costs import Load, Work, trained
from model.dropout import Dropout

MOST_LAYERS, MOST_PARAMETERS = 1_000, 100_000_000_000  # of an encoder: a thousand times BERT


def check_amount(name: str, value: float) -> None:
    """Raise BadInput unless a setting is a finite number of at least 0."""
    if not 0 <= value < float("inf"):
        raise BadInput(f"{name} must be a finite number of at least 0, found {value}")


@dataclass
class EncoderConfig:
    """Sizes of one encoder, named as in Hugging Face's ``config.json``.

    Args:
        vocab_size: number of word embeddings
        hidden_size: width h of the hidden states
        num_hidden_layers: number of blocks
        num_attention_heads: heads; must divide hidden_size
        intermediate_size: width of the feed-forward layer
        hidden_act: "gelu" (exact), "gelu_new" (tanh) or "relu"
        hidden_dropout_prob: dropout after embeddings, attention and feed-forward
        attention_probs_dropout_prob: dropout of attention weights
        max_position_embeddings: rows of the position table
        type_vocab_size: rows of the token type table
        layer_norm_eps: epsilon of every layer norm
        initializer_range: standard deviation of random weights
        pad_token_id: id that pads a batch of texts
        position_offset: row of the position table that the first token takes: 0 in BERT, pad_token_id + 1 in RoBERTa
    """

    vocab_size: int = 28996
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 0
    position_offset: int = 0

    def __post_init__(self):
        if min(self.num_hidden_layers, self.num_attention_heads) < 1:
            raise BadInput(
                f"num_hidden_layers and num_attention_heads must be at least 1, found {self.num_hidden_layers} and "
                f"{self.num_attention_heads}"
            )
        for name in ("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings", "type_vocab_size"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"{name} must be 0 to 1, found {getattr(self, name)}")
        for name in ("layer_norm_eps", "initializer_range"):
            check_amount(name, getattr(self, name))
        if not 0 <= self.position_offset < self.max_position_embeddings:
            raise BadInput(f"position_offset must be 0 to {self.max_position_embeddings - 1}, found {self.position_offset}")
        if self.hidden_size % self.num_attention_heads:
            raise BadInput(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.hidden_act not in ACTIVATIONS:
            raise BadInput(f"hidden_act {self.hidden_act!r} is not one of {', '.join(ACTIVATIONS)}")
        if self.num_hidden_layers > MOST_LAYERS or self.num_parameters > MOST_PARAMETERS:
            raise BadInput(
                f"an encoder of {self.num_hidden_layers} layers and {self.num_parameters:.3g} parameters: expected at most {MOST_LAYERS:,} "
                f"and {MOST_PARAMETERS:,}; look at hidden_size, intermediate_size, vocab_size, max_position_embeddings"
            )

    @property
    def num_parameters(self) -> int:
        """Of the tables and the blocks' matrices; the rest is small."""
        rows = self.vocab_size + self.max_position_embeddings + self.type_vocab_size
        return self.hidden_size * (rows + self.num_hidden_layers * (4 * self.hidden_size + 2 * self.intermediate_size))

    @property
    def max_tokens(self) -> int:
        """The longest text that has a position for every token, [CLS] and [SEP] included."""
        return self.max_position_embeddings - self.position_offset

    def set_dropout(self, rate: float) -> None:
        """One rate for hidden states and attention weights."""
        self.hidden_dropout_prob = self.attention_probs_dropout_prob = rate

    @classmethod
    def from_dict(cls, values: dict) -> EncoderConfig:
        """Take what is ours from a larger mapping, such as Hugging Face's config.json. Raises BadInput for values that cannot be."""
        own = {f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values}
        check_shape(own, shape_of(cls), "the sizes of an encoder")
        return cls(**own)


ACTIVATIONS = {"gelu": F.gelu, "gelu_new": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu}


class TextEmbeddings(nn.Module):
    """Word + position + type embeddings, layer norm, dropout."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.position_offset = config.position_offset
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, texts: Texts) -> Tensor:
        """→ [T,h]; every token is of type 0."""
        positions = self.position_embeddings.num_embeddings - self.position_offset
        if texts.layout.longest > positions:
            raise BadInput(
                f"a text of {texts.layout.longest} tokens does not fit the model's {positions} positions; shorten it"
            )
        return self.of_tokens(texts.ids, texts.layout.columns)

    def of_tokens(self, ids: Tensor, columns: Tensor) -> Tensor:
        """Words ``ids`` [T] at positions ``columns`` [T] of their texts → [T,h]."""
        x = self.word_embeddings(ids) + self.token_type_embeddings.weight[0]
        return self.dropout(self.LayerNorm(x + self.position_embeddings(columns + self.position_offset)))


class SelfAttention(nn.Module):
    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.heads = config.num_attention_heads
        self.dropout_prob = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, queries: Tensor, x: Tensor, layout: Layout) -> Tensor:
        """``queries`` [T,h], or [B,h] of position 0; ``x`` [T,h] → in the shape of ``queries``."""
        dropout = self.dropout_prob if self.training else 0.0
        return attend(self.query(queries), self.key(x), self.value(x), layout, self.heads, dropout)


class AddNorm(nn.Module):
    """Linear, dropout, residual connection, layer norm: the end of both halves of a block."""

    def __init__(self, width: int, config: EncoderConfig):
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(x)) + residual)


class Block(nn.Module):
    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(config), "output": AddNorm(config.hidden_size, config)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden_size, config.intermediate_size)})
        self.output = AddNorm(config.intermediate_size, config)
        self.activation = ACTIVATIONS[config.hidden_act]
        self.compiled = False  # see `compile_blocks`

    def forward(self, x: Tensor, layout: Layout, first_only: bool = False) -> Tensor:
        """``x`` [T,h] → [T,h]. ``first_only``: compute position 0 of each sequence alone: [B,h]."""
        queries = collect(x, layout.firsts()) if first_only else x
        after_attention = _compiled_after_attention() if self.compiled else Block.after_attention
        return after_attention(self, self.attention["self"](queries, x, layout), queries)

    def after_attention(self, attended: Tensor, x: Tensor) -> Tensor:
        """All of a block behind attention, row by row: [n,h], [n,h] → [n,h]."""
        y = self.attention["output"](attended, x)
        return self.output(self.activation(self.intermediate["dense"](y)), y)

    def flops(self, length: float, queries: float) -> float:
        """Forward operations on one sequence, of which ``queries`` positions are computed."""
        h, i = self.output.dense.out_features, self.output.dense.in_features
        keys_and_values, rest = 2 * 2 * length * h * h, 2 * 2 * queries * h * h
        return keys_and_values + rest + 2 * 2 * queries * length * h + 2 * 2 * queries * h * i

    def kept_bytes(self, length: float, queries: float, load: Load) -> float:
        """What is kept of one sequence for backward. Attention is one fused kernel: its weights are not kept."""
        h, i, low = self.output.dense.out_features, self.output.dense.in_features, load.bytes_per_number
        norms = 4 * 4 * queries * h  # what goes into and out of both layer norms, always fp32
        copies = low * (2 * length + 2 * queries) * h if load.low_precision else 0  # of the linear layers' inputs
        # keys and values; queries and what attention gives; what goes into and out of GELU
        products = low * (2 * length * h + 2 * queries * h + 2 * queries * i)
        return norms + copies + products + (2 * queries * h if self.output.dropout.p else 0)


@functools.cache
def _compiled_after_attention() -> Callable[[Block, Tensor, Tensor], Tensor]:
    return torch.compile(Block.after_attention, dynamic=True)  # one for all blocks, whatever the number of rows


def compile_blocks(model: nn.Module, on: bool = True) -> None:
    """Let torch.compile make one kernel of what stands between the matrix products of the blocks: bias, GELU, dropout, residual
    and layer norm. Attention is one kernel already, and depends on the lengths. Dropout draws other numbers then.

    Raises:
        BadInput: torch.compile does not work here: on a CPU it needs a C++ compiler, everywhere a user with a name, or a cache folder.
    """
    if on:
        try:
            torch.compile(torch.neg)(torch.ones(3))
        except Exception as error:  # whatever inductor and its compiler raise
            reason = " ".join(str(error).split())[:200]
            advice = "it needs a C++ compiler, and TORCHINDUCTOR_CACHE_DIR for a user whom the system does not know; or leave it out"
            raise BadInput(f"compile: torch.compile does not work here ({reason}); {advice}") from None
    for part in model.modules():
        if isinstance(part, Block):
            part.compiled = on


class Encoder(nn.Module):
    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.layer = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.checkpointing = False  # keep the input of each block alone, and compute the rest again in backward

    def forward(self, x: Tensor, layout: Layout, first_only: bool = False) -> Tensor:
        """``x`` [T,h], the rows of B sequences → [T,h].

        An embedding reads position 0 alone; with ``first_only`` the last block computes no more: → [B,h].
        """
        for n, block in enumerate(self.layer, 1):
            inputs = x, layout, first_only and n == len(self.layer)
            saving = self.checkpointing and self.training and torch.is_grad_enabled()
            x = checkpoint(block, *inputs, use_reentrant=False) if saving else block(*inputs)
        return x

    def flops(self, length: float, first_only: bool) -> float:
        """Forward operations on one sequence."""
        *others, last = self.layer
        return sum(block.flops(length, length) for block in others) + last.flops(length, 1 if first_only else length)

    def kept_bytes(self, length: float, first_only: bool, load: Load) -> float:
        """What is kept of one sequence for backward."""
        *others, last = self.layer
        whole = [block.kept_bytes(length, length, load) for block in others]
        end = last.kept_bytes(length, 1 if first_only else length, load)
        if self.checkpointing:  # the input of every block, and one block's while it is computed again
            return len(others) * 4 * length * last.output.dense.out_features + max([*whole, end])
        return sum(whole) + end


class Pooler(nn.Module):
    """BERT's pooler. The towers read position 0 without it, and keep it so that checkpoints stay whole; the re-ranker
    reads through it."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states [B,h] of position 0 → [B,h]."""
        return torch.tanh(self.dense(hidden))


class Bert(nn.Module):
    """Text encoder: texts of T tokens together → hidden states [T,h], or [B,h] of position 0."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        if not torch.empty(0).is_meta:
            check_memory(4 * config.num_parameters, "weights of the encoder")
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config)
        self.pooler = Pooler(config)

    def forward(self, texts: Texts, first_only: bool = False) -> Tensor:
        return self.encoder(self.embeddings(texts), texts.layout, first_only)

    def work(self, side: str, rows: float, length: float, first_only: bool, load: Load) -> list[Work]:
        """What ``rows`` sequences of ``length`` cost in this, the encoder of ``side``: "text" or "image"."""
        learning = trained(self.encoder)
        embeddings = length * self.pooler.dense.in_features * (2 * 4 + (1 if self.embeddings.dropout.p else 0))
        kept = rows * (embeddings + self.encoder.kept_bytes(length, first_only, load)) if learning else 0.0
        passes = (4 if self.encoder.checkpointing else 3) if learning else 1
        flops = rows * self.encoder.flops(length, first_only)
        return [
            Work(f"{side} blocks", flops, passes, learning, kept, f"{side} activations"),
            Work(f"{side} embeddings", gradients=trained(self.embeddings)),
        ]

    def parts(self) -> dict[str, nn.Module]:
        """Its parts, for counts of their parameters."""
        return {"embeddings": self.embeddings, "blocks": self.encoder, "pooler": self.pooler}

    def draw_weights(self, std: float) -> None:
        """Random weights as BERT's (`init_weights`)."""
        init_weights(self, std)

    def set_checkpointing(self, on: bool) -> None:
        """Keep no activations inside blocks, and compute them again in backward."""
        self.encoder.checkpointing = on


def init_weights(module: nn.Module, std: float) -> None:
    """BERT's initialisation: normal weights, zero biases, unit layer norms."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
            if isinstance(part, nn.Linear):
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


@contextmanager
def empty_weights() -> Iterator[None]:
    """Modules built inside have names, shapes and types, but neither memory nor numbers (PyTorch's meta device).

    For models whose weights are read from a file right after, or whose sizes alone are of interest. No random number is
    drawn.
    """
    with torch.device("meta"), _WithoutInitialisation():
        yield


class _WithoutInitialisation(TorchFunctionMode):
    """Functions that draw initial weights draw nothing.

    On the meta device they would have nothing to fill, but ``normal_`` imports the whole of torch._dynamo to find that out:
    1.2 s of every command that opens a checkpoint.
    """

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        draws = getattr(function, "__name__", "") in ("normal_", "uniform_")
        if not draws and getattr(function, "__module__", "") != "torch.nn.init":
            return function(*args, **kwargs)
        tensor = args[0] if args else kwargs["tensor"]
        if draws and not tensor.is_meta:  # `trunc_normal_` draws until it finds numbers in range: zeros are
            tensor.detach().zero_()
        return tensor
