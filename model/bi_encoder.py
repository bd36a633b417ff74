"""LightningDOT: a text tower and a region tower that meet only in a dot product (Sun et al., NAACL 2021, section 3).

model = LightningDOT.from_pretrained("runs/flickr30k/best")
text = model.encode_text(input_ids, attention_mask)                # [B,D]
image = model.encode_image(features, positions, region_mask)       # [B,D]
scores = text @ image.T                                            # [B,B]
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.batches.ragged import Images, Texts, pack_images, pack_texts
from data.downloads.hub import local_folder
from data.errors import BadInput
from data.storage.shapes import check_shape
from model import checkpoints
from model.attention import collect, mean_of_sequences
from model.costs import Load, Work, trained
from model.dropout import Dropout
from model.text_encoders import text_encoder_named
from model.text_encoders.base import TextEncoderConfig
from model.transformer import Bert, EncoderConfig, empty_weights, init_weights

# Rates and draws of training, heads, and what a library notes of itself.
_NOT_OF_VECTORS = re.compile(r"drop|initializer|num_labels|label2id|id2label|transformers_version|dtype")


@dataclass
class LightningDOTConfig:
    """Everything that fixes the shapes of the two towers.

    Args:
        txt: text encoder; which kind, its class says (model/text_encoders)
        img: image encoder; its word embeddings serve [CLS], and the masked language modelling decoder tied to them
        project_dim: width D of the embedding; 0 means no projection, so that D is the hidden size
        feature_dim: width F of a region feature
        num_labels: C, classes of the region detector, background included; 0 when the regions have no soft labels
        cls_token_id: the word that starts an image sequence
        similarity: of two embeddings, a dot product either way: "cosine" has them of length 1
        pooling: what an encoder's hidden states become before the projection: that of position 0 ("cls", as the paper), or the mean
            of all ("mean"), which sentence encoders are trained for
    """

    txt: TextEncoderConfig = field(default_factory=EncoderConfig)
    img: EncoderConfig = field(default_factory=EncoderConfig)
    project_dim: int = 768
    feature_dim: int = 2048
    num_labels: int = 1601
    cls_token_id: int = 101
    similarity: Literal["dot", "cosine"] = "dot"
    pooling: Literal["cls", "mean"] = "cls"

    @property
    def embedding_dim(self) -> int:
        """Width D of what ``encode_text`` and ``encode_image`` return."""
        return self.project_dim or self.txt.hidden_size

    @property
    def of_vectors(self) -> dict[str, Any]:
        """The settings that change an embedding of the same weights, by dotted names, as far as they are not the defaults. An
        index keeps them beside the fingerprint of the weights."""
        found: dict[str, Any] = {}
        parts: tuple[tuple[str, Any], ...] = (("", self), ("txt.", self.txt), ("img.", self.img))
        for prefix, part in parts:
            for each in dataclasses.fields(part):
                value = getattr(part, each.name)
                if each.name in ("txt", "img") or _NOT_OF_VECTORS.search(each.name) or value == each.default:
                    continue
                values = {f"{each.name}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {each.name: value}
                found |= {prefix + name: inner for name, inner in values.items() if not _NOT_OF_VECTORS.search(name)}
        return found

    @classmethod
    def from_dict(cls, values: dict, source: str | Path = "config.json") -> LightningDOTConfig:
        """The content of a checkpoint's ``config.json``, the file at ``source``. Raises BadInput for values that cannot be."""
        own = {f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values and f.name not in ("txt", "img")}
        check_shape(own, _SIZES, str(source))
        least = {"project_dim": 0, "feature_dim": 1, "num_labels": 0, "cls_token_id": 0}
        if bad := [name for name, value in own.items() if value < least.get(name, value)]:
            raise BadInput(f"{source}: {bad[0]} is {own[bad[0]]}, expected at least {least[bad[0]]}")
        try:
            text_encoder = text_encoder_named(values["txt"].get("encoder", "bert"))
            towers = text_encoder.config_class.from_dict(values["txt"]), EncoderConfig.from_dict(values["img"])
        except BadInput as error:
            raise BadInput(f"{source}: {error}") from None
        return cls(*towers, **own)


_SIZES = {"project_dim?": int, "feature_dim?": int, "num_labels?": int, "cls_token_id?": int, "similarity?": str, "pooling?": str}


class RegionEmbeddings(nn.Module):
    """Region feature + position + type, as in UNITER: LN(LN(W_f f) + LN(W_p p) + type_1)."""

    def __init__(self, config: EncoderConfig, feature_dim: int):
        super().__init__()
        h, eps = config.hidden_size, config.layer_norm_eps
        self.img_linear = nn.Linear(feature_dim, h)
        self.img_layer_norm = nn.LayerNorm(h, eps=eps)
        self.pos_layer_norm = nn.LayerNorm(h, eps=eps)
        self.pos_linear = nn.Linear(7, h)
        self.mask_embedding = nn.Embedding(2, feature_dim)  # row 1 is added where masked; row 0 unused
        self.LayerNorm = nn.LayerNorm(h, eps=eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, features: Tensor, positions: Tensor, type_embedding: Tensor, masked: Tensor | None) -> Tensor:
        """``features`` [R,F], ``positions`` [R,7], ``type_embedding`` [h], ``masked`` [R] bool → [R,h].

        The batch has already set masked features to zero, so that ``mask_embedding[1]`` stands in for them.
        """
        dtype = self.img_linear.weight.dtype
        features = features.to(dtype)
        if masked is not None:
            features = features + masked[..., None] * self.mask_embedding.weight[1]
        x = self.img_layer_norm(self.img_linear(features)) + self.pos_layer_norm(self.pos_linear(positions.to(dtype)))
        return self.dropout(self.LayerNorm(x + type_embedding))

    def work(self, rows: float, masked: bool, load: Load) -> Work:
        """What the regions of ``rows`` images cost. The features need no gradient, unless a mask embedding is learnt."""
        width, h, low = self.img_linear.in_features, self.img_linear.out_features, load.bytes_per_number
        learning, regions = trained(self), rows * load.regions
        kept = regions * (low * width + (2 * low + 4) * h) if learning else 0.0
        passes = (3 if masked else 2) if learning else 1
        return Work("image regions", regions * 2 * (width + 7) * h, passes, learning, kept, "region activations")


class ImageBert(Bert):
    """Image encoder: [CLS] followed by the regions, in no order, through the same blocks as a text."""

    def __init__(self, config: LightningDOTConfig):
        super().__init__(config.img)
        self.cls_token_id = config.cls_token_id
        self.img_embeddings = RegionEmbeddings(config.img, config.feature_dim)

    def forward(  # type: ignore[override]  # of images, where its base takes texts
        self, images: Images, masked: Tensor | None = None, first_only: bool = False
    ) -> Tensor:
        """Images of R regions together, ``masked`` [R] bool → [B+R,h], each image's [CLS] and its regions.

        With ``first_only``, [CLS] alone: [B,h].
        """
        if self.cls_token_id >= (words := self.embeddings.word_embeddings.num_embeddings):
            raise BadInput(f"config.json: cls_token_id is {self.cls_token_id}, and the image tower has {words} words; copy the checkpoint again")
        types = self.embeddings.token_type_embeddings.weight
        regions = self.img_embeddings(images.features, images.positions, types[-1], masked)  # type 1; the only one where there is one
        ids = images.order.new_full((len(images),), self.cls_token_id)
        cls = self.embeddings.of_tokens(ids, torch.zeros_like(ids))
        x = collect(torch.cat([cls, regions.to(cls.dtype)]), images.order)
        return self.encoder(x, images.layout, first_only)

    def parts(self) -> dict[str, nn.Module]:
        own = super().parts()
        return {"embeddings": own.pop("embeddings"), "regions": self.img_embeddings} | own


class Tower(nn.Module):
    """An encoder and the projection of what it makes of a sequence to the shared embedding space."""

    bert: Any  # whatever encoder it is
    encode_proj: Any  # a Sequential, or an Identity

    def __init__(self, encoder: nn.Module, hidden_size: int, project_dim: int):
        super().__init__()
        self.bert = encoder  # the original's name, whatever the encoder is
        self.encode_proj = (
            nn.Sequential(
                nn.Linear(hidden_size, 2 * hidden_size),
                nn.GELU(),
                nn.LayerNorm(2 * hidden_size, eps=1e-12),
                nn.Linear(2 * hidden_size, project_dim),
            )
            if project_dim
            else nn.Identity()
        )

    def embed(self, hidden: Tensor) -> Tensor:
        """Pooled hidden states [B,h] → embeddings [B,D]."""
        return self.encode_proj(hidden)

    def projection_work(self, side: str, rows: float) -> list[Work]:
        """What the projection of ``rows`` embeddings costs."""
        layers = [layer for layer in self.encode_proj.modules() if isinstance(layer, nn.Linear)]
        flops, learning = rows * sum(2 * layer.in_features * layer.out_features for layer in layers), trained(self.encode_proj)
        return [Work(f"{side} projection", flops, 3 if learning else 1, learning)] if layers else []


class LightningDOT(nn.Module):
    """Both towers. Nothing crosses between them before the dot product, so images are encoded once, offline."""

    def __init__(self, config: LightningDOTConfig):
        super().__init__()
        checkpoints.check_config(config)
        self.config = config
        self.fingerprint: str | None = None  # of the weights as last read or written; what a feature index is made for
        self._frozen: list[Tower] = []
        self.img_model = Tower(ImageBert(config), config.img.hidden_size, config.project_dim)
        text_encoder = text_encoder_named(getattr(config.txt, "encoder", "bert"))
        self.txt_model = Tower(text_encoder.module_class(config.txt), config.txt.hidden_size, config.project_dim)
        for tower, sizes in ((self.img_model, config.img), (self.txt_model, config.txt)):
            tower.bert.draw_weights(sizes.initializer_range)
            init_weights(tower.encode_proj, sizes.initializer_range)
            if config.project_dim:
                # Scores of unrelated pairs start with variance 1. With BERT's 0.02 they start around 17 wide at base
                # size, and training from random towers first has to unlearn them.
                std = config.project_dim**-0.25 / (2 * sizes.hidden_size) ** 0.5
                nn.init.normal_(tower.encode_proj[-1].weight, std=std)

    def freeze(self, txt: bool = False, img: bool = False) -> None:
        """Keep a tower as it is: no gradients, and no dropout while the other one trains."""
        self._frozen = [tower for tower, frozen in ((self.txt_model, txt), (self.img_model, img)) if frozen]
        for tower in self._frozen:
            tower.requires_grad_(False)
        self.train(self.training)

    def set_checkpointing(self, on: bool) -> None:
        """Activation checkpointing: keep no activations inside blocks, and compute them again in backward."""
        for tower in (self.txt_model, self.img_model):
            tower.bert.set_checkpointing(on)

    def train(self, mode: bool = True) -> LightningDOT:
        super().train(mode)
        for tower in self._frozen:
            tower.eval()
        return self

    def text_work(self, rows: float, load: Load, first_only: bool = True) -> list[Work]:
        """What ``rows`` texts cost in the text encoder, of which the pooled state is asked for, or with ``first_only`` false all."""
        first_only = first_only and self.config.pooling == "cls"
        return self.txt_model.bert.work("text", rows, load.txt_length, first_only, load)

    def image_work(self, rows: float, load: Load, first_only: bool = True, masked: bool = False) -> list[Work]:
        """What ``rows`` images cost in the image encoder; ``masked``: some of their regions are."""
        encoder = self.img_model.bert
        first_only = first_only and self.config.pooling == "cls"
        works = encoder.work("image", rows, load.img_length, first_only, load)
        return [*works, encoder.img_embeddings.work(rows, masked, load)]

    def parts(self) -> dict[str, nn.Module]:
        """All its parts by name, for counts of their parameters."""
        parts: dict[str, nn.Module] = {}
        for side, tower in (("text", self.txt_model), ("image", self.img_model)):
            parts |= {f"{side} {name}": part for name, part in tower.bert.parts().items()}
            parts[f"{side} projection"] = tower.encode_proj
        return parts

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed texts.

        Args:
            input_ids: [B,L] int64, [CLS] words [SEP] padding
            attention_mask: [B,L], true (or 1) at [CLS], words and [SEP]

        Returns: [B,D]
        """
        return self.embed_texts(pack_texts(input_ids, attention_mask))

    def encode_image(self, features: Tensor, positions: Tensor, region_mask: Tensor) -> Tensor:
        """Embed images.

        Args:
            features: [B,R,F] region features, any float type
            positions: [B,R,7] x1 y1 x2 y2 w h w·h as fractions of the image
            region_mask: [B,R], true (or 1) at real regions

        Returns: [B,D]
        """
        return self.embed_images(pack_images(features, positions, region_mask))

    def embed_texts(self, texts: Texts) -> Tensor:
        """`encode_text` of texts that hold no padding: → [B,D]."""
        return self._compared(self.txt_model.embed(self.pool_texts(texts)))

    def embed_images(self, images: Images) -> Tensor:
        """`encode_image` of images that hold no padding: → [B,D]."""
        return self._compared(self.img_model.embed(self.pool_images(images)))

    def pool_texts(self, texts: Texts) -> Tensor:
        """The text encoder's state of each text → [B,h]."""
        return self._pooled(self.txt_model.bert, texts)

    def pool_images(self, images: Images) -> Tensor:
        """The image encoder's state of each image, [CLS] and regions → [B,h]."""
        return self._pooled(self.img_model.bert, images)

    def _pooled(self, encoder: nn.Module, sequences: Texts | Images) -> Tensor:
        if self.config.pooling == "cls":
            return encoder(sequences, first_only=True)  # the last block computes no more
        return mean_of_sequences(encoder(sequences), sequences.layout)

    def _compared(self, embedding: Tensor) -> Tensor:
        """What the dot product takes: with cosine similarity, the unit vector, in fp32."""
        return embedding if self.config.similarity == "dot" else F.normalize(embedding.float(), dim=-1)

    @classmethod
    def from_pretrained(cls, folder: str | Path, dropout: float | None = None) -> LightningDOT:
        """Read a checkpoint (``model.safetensors``, ``config.json``): a folder, or a name on the Hugging Face hub; in eval mode.

        >>> model = LightningDOT.from_pretrained("checkpoint")
        >>> input_ids = torch.tensor([[2, 7, 9, 3]])
        >>> model.encode_text(input_ids, torch.ones_like(input_ids)).shape == (1, model.config.embedding_dim)
        True

        Args:
            dropout: overrides the rates the checkpoint was trained with

        Raises:
            BadInput: no such checkpoint, weights that are not those of its config.json, or a tensor missing, unexpected or of the
                wrong shape.
        """
        folder = checkpoints.one_checkpoint(local_folder(folder))
        values = checkpoints.read_config(folder)
        config = LightningDOTConfig.from_dict(values, Path(folder) / "config.json")
        if dropout is not None:
            config.txt.set_dropout(dropout)
            config.img.set_dropout(dropout)
        with empty_weights():
            model = cls(config)
        tensors = checkpoints.read_tensors(folder / "model.safetensors")
        checkpoints.load_strict(model, tensors, str(folder), assign=True)
        model.fingerprint = checkpoints.checked_fingerprint(folder, tensors, values)
        return model.float().eval()  # a converted checkpoint may hold half precision

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``config.json`` (which also holds the fingerprint of the weights)."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        self.fingerprint = self.write(folder, tensors, self.config)

    @staticmethod
    def write(folder: str | Path, tensors: dict[str, Tensor], config: LightningDOTConfig) -> str:
        """Write a state dict as `save_pretrained` does → its fingerprint."""
        fingerprint = checkpoints.fingerprint(tensors)
        values = dataclasses.asdict(config) | {"model_type": "lightningdot", "fingerprint": fingerprint}
        checkpoints.write(folder, tensors, values)
        return fingerprint
