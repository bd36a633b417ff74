"""Any encoder of Hugging Face's ``AutoModel`` as the text tower: ModernBERT, DistilBERT, DeBERTa, ALBERT ...

transformers is imported only when such a tower is read or built: that takes seconds, and most commands do without.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from data.batches.ragged import Texts
from data.downloads.hub import SIZES, local_folder
from data.errors import BadInput, reason_of
from data.storage.regular_files import check_folder
from data.storage.shapes import check_shape, shape_of
from data.storage.text_files import read_json
from model import checkpoints
from model.attention import collect
from model.costs import Load, Work, trained
from model.text_encoders.base import TextEncoder
from model.transformer import check_amount, empty_weights
from model.transformers_folder import check_all_were_loaded, check_folder_settings, check_transformers_settings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_NOT_KEPT = ("dtype", "torch_dtype", "architectures", "_name_or_path")  # say nothing about what is computed in fp32
_HEADS = ("pooler", "classif", "qa_")  # dropout rates of heads that a tower does not have


@dataclass
class AutoEncoderConfig:
    """What a checkpoint keeps of such an encoder, enough to build it again offline.

    Args:
        settings: transformers' own configuration, as its ``config.json`` has it
        hidden_size: width h of the hidden states
        vocab_size: number of word embeddings
        max_tokens: the longest text, [CLS] and [SEP] included
        initializer_range: standard deviation of random weights on top of the encoder
        pad_token_id: id that pads a batch of texts; None: any
        encoder: name in the registry of text encoders
    """

    settings: dict[str, Any]
    hidden_size: int
    vocab_size: int
    max_tokens: int
    initializer_range: float = 0.02
    pad_token_id: int | None = None
    encoder: str = "auto"

    def __post_init__(self):
        check_amount("initializer_range", self.initializer_range)

    hidden_act: ClassVar[str] = "gelu"  # of the heads on top, as BERT's
    layer_norm_eps: ClassVar[float] = 1e-12

    @classmethod
    def from_dict(cls, values: dict) -> AutoEncoderConfig:
        """What is ours of ``values``, the part ``txt`` of a checkpoint's config.json."""
        own = {f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values}
        check_shape(own, shape_of(cls), "text encoder auto")
        return cls(**own)

    @classmethod
    def from_model(cls, model: PreTrainedModel) -> AutoEncoderConfig:
        """The configuration of a built model of transformers."""
        values = json.loads(model.config.to_json_string(use_diff=False))
        config, table = model.config, getattr(getattr(model, "embeddings", None), "position_embeddings", None)
        positions = getattr(config, "max_position_embeddings", None) or 1_000_000  # relative positions have no table
        padding = getattr(table, "padding_idx", None)  # RoBERTa's positions start behind that of padding
        return cls(
            {name: value for name, value in values.items() if name not in _NOT_KEPT},
            hidden_size=config.hidden_size,
            vocab_size=model.get_input_embeddings().num_embeddings,
            max_tokens=positions - (0 if padding is None else padding + 1),
            initializer_range=getattr(config, "initializer_range", 0.02),
            pad_token_id=config.pad_token_id,
        )

    def set_dropout(self, rate: float) -> None:
        """One rate for every dropout of the encoder that its configuration names."""
        for name, value in self.settings.items():
            if "dropout" in name and not any(head in name for head in _HEADS) and type(value) in (int, float):
                self.settings[name] = rate


class AutoEncoder(nn.Module):
    """A model of transformers under the interface of our own text encoder (`model.transformer.Bert`)."""

    def __init__(self, config: AutoEncoderConfig):
        super().__init__()
        self.config = config
        self.checkpointing = False
        with torch.device("cpu"):  # it has buffers that no checkpoint holds: not on the meta device
            self.model = _built(config.settings, dtype=torch.float32)

    def forward(self, texts: Texts, first_only: bool = False) -> Tensor:
        """Texts of T tokens together → hidden states [T,h], or [B,h] of position 0. transformers' models read padded texts."""
        layout = texts.layout
        if layout.longest > self.config.max_tokens:
            raise BadInput(
                f"a text of {layout.longest} tokens does not fit the model's {self.config.max_tokens} positions; shorten it"
            )
        lengths = layout.offsets.diff()
        mask = torch.arange(layout.longest, device=lengths.device) < lengths[:, None]
        rows = torch.arange(len(layout), device=lengths.device).repeat_interleave(lengths, output_size=len(texts.ids))
        places = rows * layout.longest + layout.columns
        pad = self.config.pad_token_id or 0  # RoBERTa counts positions by it
        input_ids = texts.ids.new_full((len(layout) * layout.longest,), pad).index_copy(0, places, texts.ids)
        hidden = self.model(input_ids=input_ids.view(mask.shape), attention_mask=mask.long())[0]
        return hidden[:, 0] if first_only else collect(hidden.flatten(0, 1), places)

    def work(self, side: str, rows: float, length: float, first_only: bool, load: Load) -> list[Work]:
        """What ``rows`` texts cost: every linear layer once a token, and attention of all tokens to all. All positions are
        computed in the last block, too, and sizes between layers are estimated from those of its linear layers."""
        config = self.model.config
        layers = [
            m for name, m in self.model.named_modules() if isinstance(m, nn.Linear) and "pooler" not in name
        ]
        products = sum(2 * length * layer.in_features * layer.out_features for layer in layers)
        attention = config.num_hidden_layers * 2 * 2 * length * length * config.hidden_size
        learning = trained(self.model)
        saving = learning and self.checkpointing
        per_token = load.bytes_per_number * sum(layer.out_features + (layer.in_features if load.low_precision else 0) for layer in layers)
        per_token += 4 * 4 * config.hidden_size * config.num_hidden_layers
        if saving:  # the input of every block, and one block's while it is computed again
            per_token = 4 * config.hidden_size * config.num_hidden_layers + per_token / config.num_hidden_layers
        kept = rows * length * per_token if learning else 0.0
        passes = (4 if saving else 3) if learning else 1
        return [Work(f"{side} encoder", rows * (products + attention), passes, learning, kept, f"{side} activations")]

    def parts(self) -> dict[str, nn.Module]:
        """Its parts, for counts of their parameters."""
        return {"encoder": self.model}

    def draw_weights(self, std: float) -> None:
        """Nothing: building the model drew its weights, each kind of model its own way."""

    def set_checkpointing(self, on: bool) -> None:
        """Keep no activations inside blocks, and compute them again in backward. Raises BadInput where it cannot."""
        if not on:
            self.model.gradient_checkpointing_disable()
        elif self.model.supports_gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        else:
            kind = self.model.config.model_type
            raise BadInput(f"activation_checkpointing: transformers has none for {kind}; leave it out")
        self.checkpointing = on


def read_auto_encoder(folder: str | Path) -> tuple[AutoEncoderConfig, dict[str, Tensor]]:
    """An encoder that ``save_pretrained`` of transformers wrote, or that was downloaded from the Hub.

    Raises:
        BadInput: not such a folder, weights that are missing or mis-shaped, an encoder–decoder, or a model whose first
            position does not see the rest of the text.
    """
    from transformers import AutoModel  # slow to import, and only such towers need it

    folder = local_folder(folder)
    check_folder(folder)
    check_folder_settings(folder)
    try:
        model, report = AutoModel.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # transformers raises nearly anything here
        kind = read_json(folder / "config.json").get("model_type")
        raise BadInput(
            f"{folder}/config.json: model_type {kind!r}: transformers cannot read the folder as an encoder: {reason_of(error)}"
        ) from None
    check_all_were_loaded(model, report, str(folder))
    if model.config.is_encoder_decoder:
        raise BadInput(f"{folder}: {model.config.model_type} is an encoder with a decoder; a text tower is an encoder alone")
    _check_position_0_sees_all(model.eval(), folder)
    config = AutoEncoderConfig.from_model(model)
    return config, {f"model.{name}": tensor for name, tensor in model.state_dict().items()}


@torch.no_grad()
def _check_position_0_sees_all(model: PreTrainedModel, folder: str | Path) -> None:
    """The embedding of a text is its position 0: in a decoder that would be its first word alone."""
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.arange(vocabulary - 4, vocabulary).expand(2, 4).clone()
    ids[1, -1] = vocabulary - 5  # the same text but for its last word
    one, other = model(input_ids=ids, attention_mask=torch.ones_like(ids))[0][:, 0]
    if torch.equal(one, other):
        raise BadInput(f"{folder}: in a {model.config.model_type} the first position does not see the rest of the text; a text tower must")


def _transformers_config(settings: dict[str, Any]) -> PreTrainedConfig:
    import transformers  # slow to import, and only such towers need it

    kind = settings.get("model_type")
    if kind not in transformers.CONFIG_MAPPING:
        raise BadInput(f"text encoder auto: transformers {transformers.__version__} knows no model_type {kind!r}; install a newer one")
    return transformers.CONFIG_MAPPING[kind].from_dict(settings)


def _built(settings: dict[str, Any], **how: Any) -> PreTrainedModel:
    """The model of these settings, with random weights. Raises BadInput where transformers makes none."""
    from transformers import AutoModel  # slow to import, and only such towers need it

    check_transformers_settings(settings, "text encoder auto")
    try:
        return AutoModel.from_config(_transformers_config(settings), trust_remote_code=False, **how)
    except BadInput:
        raise
    except Exception as error:  # transformers raises nearly anything here
        raise BadInput(f"text encoder auto: transformers makes no {settings.get('model_type')} of its settings: {reason_of(error)}") from None


def read_auto_config(folder: str | Path) -> AutoEncoderConfig:
    """Its sizes alone, from its config.json."""
    settings = checkpoints.read_settings(local_folder(folder, SIZES) / "config.json")
    with empty_weights():
        return AutoEncoderConfig.from_model(_built(settings))


AUTO = TextEncoder(AutoEncoderConfig, AutoEncoder, read_auto_encoder, read_auto_config, optional=r"pooler\.")
