"""Where a model's weights come from before training: random, Hugging Face BERT folders, or a checkpoint of ours."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from data.batches import PairDataset
from data.captions import CaptionDB
from data.errors import BadInput
from model import checkpoints
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.transformer import EncoderConfig


@dataclass
class ModelOptions:
    """Where the towers start, and the sizes of those that start from random weights.

    Args:
        init: checkpoint folder of ours to start from; then nothing else here but dropout counts
        txt_init: Hugging Face BERT-family folder for the text tower; none: random weights
        img_init: Hugging Face BERT-family folder for the image tower; none: random weights
        project_dim: width of the shared embedding; 0 takes the hidden state as it is
        hidden_size: of towers from random weights
        num_hidden_layers: of towers from random weights
        num_attention_heads: of towers from random weights
        intermediate_size: of towers from random weights
        max_position_embeddings: of towers from random weights
        initializer_range: standard deviation of random weights; small towers learn sooner with more than BERT's 0.02
        dropout: overrides both dropout rates of both towers
    """

    init: str | None = None
    txt_init: str | None = None
    img_init: str | None = None
    project_dim: int = 768
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    initializer_range: float = 0.02
    dropout: float | None = None

    def __post_init__(self):
        if self.init and (self.txt_init or self.img_init):
            raise BadInput("model.init gives both towers; it excludes model.txt_init and model.img_init")


def build_model(options: ModelOptions, meta: dict, feature_dim: int, num_labels: int, regions: str) -> LightningDOT:
    """The model that training starts from, in train mode.

    Args:
        meta: a caption DB's meta: its special ids and ``v_range``
        feature_dim, num_labels: of the region DB
        regions: that DB's folder, for messages

    Raises:
        BadInput: weights that do not fit the data's vocabulary or feature width.
    """
    if options.init:
        model = LightningDOT.from_pretrained(options.init, dropout=options.dropout)
    else:
        model = _from_towers(options, meta, feature_dim, num_labels)
    source = options.init or options.txt_init or "model"
    check_fits(model.config, meta, feature_dim, source, regions)
    return model.train()


def check_fits(config: LightningDOTConfig, meta: dict, feature_dim: int, model_source: str, regions: str) -> None:
    """Refuse a model whose tables are too small for the data, or whose feature width is another."""
    if config.feature_dim != feature_dim:
        raise BadInput(
            f"{regions}: region features are {feature_dim} wide, but {model_source} was made for feature_dim "
            f"{config.feature_dim}; extract the regions with that width or use another checkpoint"
        )
    if config.cls_token_id >= config.img.vocab_size:
        raise BadInput(
            f"{model_source}: the image tower's vocab_size {config.img.vocab_size} does not hold the captions' [CLS] "
            f"{config.cls_token_id}; start it from a model of the captions' tokenizer, or from random weights"
        )
    if config.cls_token_id != meta["CLS"]:
        raise BadInput(
            f"{model_source}: [CLS] has id {config.cls_token_id}, in the captions {meta['CLS']} (tokenizer "
            f"{meta.get('bert')}); build the captions with the model's tokenizer"
        )
    if vocabulary_size(meta) > config.txt.vocab_size:
        raise BadInput(
            f"{model_source}: vocab_size {config.txt.vocab_size} is smaller than the captions' vocabulary "
            f"({vocabulary_size(meta)} words, tokenizer {meta.get('bert')}); build the captions with the model's tokenizer"
        )


def check_tokenizer(checkpoint: str | Path, captions: CaptionDB) -> None:
    """Refuse captions whose words have other ids than in the checkpoint's tokenizer, where both carry one."""
    vocabularies = []
    for folder in (Path(checkpoint) / "tokenizer", captions.tokenizer_folder):
        if folder is None or not (folder / "tokenizer.json").is_file():
            return
        vocabularies.append(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"])
    if vocabularies[0] != vocabularies[1]:
        raise BadInput(
            f"{captions.folder}/tokenizer is not the tokenizer of {checkpoint}: their vocabularies differ; build the "
            f"captions with {checkpoint}/tokenizer"
        )


def check_longest(config: LightningDOTConfig, dataset: PairDataset) -> None:
    """Refuse captions that the text tower has no positions for, before hours of training meet the first of them."""
    positions = config.txt.max_position_embeddings - config.txt.position_offset
    longest = int(dataset.txt_lengths.argmax())
    if dataset.txt_lengths[longest] > positions:
        raise BadInput(
            f"{dataset.captions.folder}: caption {dataset.ids[longest]} has {dataset.txt_lengths[longest]} tokens with "
            f"[CLS] and [SEP], the model has {positions} positions; shorten it, or drop such captions with max_txt_len"
        )


def vocabulary_size(meta: dict) -> int:
    """Rows a table of word embeddings needs: for the words, and special tokens behind them (RoBERTa's <mask>)."""
    return max(meta["v_range"][1], *(meta[name] + 1 for name in ("CLS", "SEP", "MASK", "UNK", "PAD") if name in meta))


def _from_towers(options: ModelOptions, meta: dict, feature_dim: int, num_labels: int) -> LightningDOT:
    random = EncoderConfig(
        vocab_size=vocabulary_size(meta),
        hidden_size=options.hidden_size,
        num_hidden_layers=options.num_hidden_layers,
        num_attention_heads=options.num_attention_heads,
        intermediate_size=options.intermediate_size,
        max_position_embeddings=options.max_position_embeddings,
        initializer_range=options.initializer_range,
        pad_token_id=meta.get("PAD", 0),
    )
    sizes, tensors = {}, {}
    for side, folder in (("txt", options.txt_init), ("img", options.img_init)):
        sizes[side], tensors[side] = checkpoints.read_bert(folder) if folder else (random, None)
        if options.dropout is not None:
            sizes[side].set_dropout(options.dropout)
    model = LightningDOT(
        LightningDOTConfig(
            txt=sizes["txt"],
            img=sizes["img"],
            project_dim=options.project_dim,
            feature_dim=feature_dim,
            num_labels=num_labels,
            cls_token_id=meta["CLS"],
        )
    )
    if options.txt_init:
        checkpoints.load_strict(model.txt_model.bert, tensors["txt"], options.txt_init, optional=r"^pooler\.")
    if options.img_init:
        absent = r"^(pooler|img_embeddings)\."  # region embeddings are what a BERT has not got
        checkpoints.load_strict(model.img_model.bert, tensors["img"], options.img_init, optional=absent)
    return model
