"""Where a model's weights come from before training: random, Hugging Face BERT folders, or a checkpoint of ours."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.batches.pairs import PairDataset
from data.captions.db import CaptionDB, vocabulary_size
from data.captions.tokenizers import CaptionTokenizer
from data.downloads.hub import local_folder
from data.errors import BadInput
from data.notices import say_once
from data.storage.contents import file_digest
from data.storage.regular_files import is_there
from model import checkpoints
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.made_from import check_tokenizer
from model.text_encoders import TEXT_ENCODERS, choose_text_encoder
from model.transformer import EncoderConfig

MANY_WEIGHTS = 20_000_000  # that do not learn from random weights
FEW_CAPTIONS = 1_000_000  # of so few


@dataclass
class EncoderOptions:
    """Where an encoder starts, and its sizes when it starts from random weights.

    Args:
        init: checkpoint folder of ours to start from, or its name on the Hugging Face hub; then sizes are its own, and do not count here
        hidden_size: of encoders from random weights
        num_hidden_layers: of encoders from random weights
        num_attention_heads: of encoders from random weights
        intermediate_size: of encoders from random weights
        max_position_embeddings: of encoders from random weights
        initializer_range: standard deviation of random weights; small encoders learn sooner with more than BERT's 0.02
        dropout: overrides both dropout rates of every encoder
    """

    init: str | None = None
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    initializer_range: float = 0.02
    dropout: float | None = None


@dataclass
class ModelOptions(EncoderOptions):
    """Where the two towers start.

    Args:
        kind: lightningdot; uniter is the re-ranker, which has settings of its own (``--model uniter`` on the command line)
        txt_init: Hugging Face folder or name for the text tower, as bert-base-cased (of the BERT family, or any encoder of AutoModel),
            or a converted UNITER; none: random weights
        txt_encoder: what reads txt_init: bert (our own block) or auto (transformers' AutoModel); none: bert for the BERT
            family, auto for others
        img_init: Hugging Face BERT-family folder or name, or a converted UNITER, for the image tower; none: random weights
        cls_token_id: the word that starts an image sequence; none: the captions' [CLS]. Where img_init has another vocabulary
            than the text tower, its own [CLS]: 101 in BERT's
        project_dim: width of the shared embedding; 0 takes the hidden state as it is
        similarity: of two embeddings: dot (the paper) or cosine, which needs a loss with a temperature; none: as the
            checkpoint, else dot
        pooling: of an encoder's hidden states: cls (position 0, as the paper) or mean, which sentence encoders are trained for; none:
            as the checkpoint, else cls
        freeze_txt: the text tower stays as it is
        freeze_img: the image tower stays as it is
    """

    kind: Literal["lightningdot"] = "lightningdot"
    txt_init: str | None = None
    txt_encoder: str | None = None
    img_init: str | None = None
    cls_token_id: int | None = None
    project_dim: int = 768
    similarity: Literal["dot", "cosine"] | None = None
    pooling: Literal["cls", "mean"] | None = None
    freeze_txt: bool = False
    freeze_img: bool = False

    def __post_init__(self):
        if self.freeze_txt and self.freeze_img:
            raise BadInput("model.freeze_txt and model.freeze_img leave nothing to train")
        if self.init and (self.txt_init or self.img_init):
            raise BadInput("model.init gives both towers; it excludes model.txt_init and model.img_init")
        if self.txt_encoder is not None and self.txt_encoder not in TEXT_ENCODERS:
            raise BadInput(f"model.txt_encoder {self.txt_encoder!r} is not one of {', '.join(TEXT_ENCODERS)}")
        if self.txt_encoder is not None and not self.txt_init:
            raise BadInput(f"model.txt_encoder {self.txt_encoder} says how to read a folder: give model.txt_init")


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
        if options.cls_token_id not in (None, model.config.cls_token_id):
            raise BadInput(f"model.cls_token_id is {options.cls_token_id}, and images begin with {model.config.cls_token_id} in {options.init}; leave it out")
    else:
        model = _from_towers(options, meta, feature_dim, num_labels)
    if options.similarity is not None:
        model.config.similarity = options.similarity
    if options.pooling is not None:
        model.config.pooling = options.pooling
    folders = [folder for folder in (options.txt_init, options.img_init) if folder]
    source = options.init or ", ".join(dict.fromkeys(folders)) or "model"
    check_model_fits(model.config, meta, feature_dim, source, regions)
    model.freeze(options.freeze_txt, options.freeze_img)
    return model.train()


def say_of_random_weights(options: EncoderOptions, encoders: list[str], captions: int, recipe: str) -> None:
    """Tell the user that large encoders from random weights learn little from few captions, and what to do.

    Args:
        encoders: those that start from random weights, as "text tower"
        captions: that training has
        recipe: with small encoders
    """
    weights = 12 * options.num_hidden_layers * options.hidden_size**2  # of the blocks, about
    if encoders and weights >= MANY_WEIGHTS and captions < FEW_CAPTIONS:
        say_once(
            f"warning: {' and '.join(encoders)} of {options.num_hidden_layers} layers, {options.hidden_size} wide, start from random "
            f"weights, and {captions:,} captions teach them little: take --config {recipe}, which has small ones, or start from a "
            "checkpoint (--model.init), or from pretrained BERTs (--model.txt-init, --model.img-init)"
        )


def check_model_fits(config: LightningDOTConfig, meta: dict, feature_dim: int, model_source: str, regions: str) -> None:
    """Refuse a model whose tables are too small for the data, or whose feature width is another."""
    if config.feature_dim != feature_dim:
        raise BadInput(
            f"{regions}: region features are {feature_dim} wide, but {model_source} was made for feature_dim "
            f"{config.feature_dim}; extract the regions with that width or use another checkpoint"
        )
    if config.cls_token_id >= config.img.vocab_size:
        raise BadInput(
            f"{model_source}: the image tower's vocab_size {config.img.vocab_size} does not hold the captions' [CLS] "
            f"{config.cls_token_id}; start it from a model of the captions' tokenizer, or from random weights, or give the "
            "image tower's own [CLS]: model.cls_token_id"
        )
    if config.cls_token_id != meta["CLS"] and config.img.vocab_size == config.txt.vocab_size:
        raise BadInput(
            f"{model_source}: [CLS] has id {config.cls_token_id}, in the captions {meta['CLS']} (tokenizer "
            f"{meta.get('bert')}); build the captions with the model's tokenizer"
        )
    if vocabulary_size(meta) > config.txt.vocab_size:
        raise BadInput(
            f"{model_source}: vocab_size {config.txt.vocab_size} is smaller than the captions' vocabulary "
            f"({vocabulary_size(meta)} words, tokenizer {meta.get('bert')}); build the captions with the model's tokenizer"
        )


def check_same_tokenizer(checkpoint: str | Path, captions: CaptionDB) -> None:
    """Refuse captions whose words have other ids than in the checkpoint's tokenizer, where both carry one. The checkpoint is one of
    ours, or a folder of Hugging Face with its tokenizer in it."""
    own_folder = local_folder(checkpoint)
    check_tokenizer(checkpoint)
    folder = next((each for each in (own_folder / "tokenizer", own_folder) if _vocabulary_file(each)), None)
    own = captions.tokenizer_folder
    if folder is not None and own is not None and not _same_words(folder, own):
        raise BadInput(
            f"{captions.folder}/tokenizer is not the tokenizer of {checkpoint}: their vocabularies differ; build the "
            f"captions with {folder}"
        )
    captions.check_current()


def check_one_tokenizer(datasets: Iterable[PairDataset]) -> None:
    """Refuse captions of one training whose words have different ids: those of its databases, its validation and its third views."""
    parts = [part for dataset in datasets for part, _ in dataset.parts]
    views = [part.image_captions.captions for part in parts if part.image_captions is not None]
    databases = [captions for captions in (*(part.captions for part in parts), *views) if captions.tokenizer_folder is not None]
    for captions in databases[1:]:
        if not _same_words(databases[0].tokenizer_folder, captions.tokenizer_folder):
            raise BadInput(
                f"{captions.folder}: was built with another tokenizer than {databases[0].folder}: their vocabularies differ, and one "
                f"model reads both; build it with {databases[0].tokenizer_folder}"
            )
    for captions in databases:
        captions.check_current()


def _vocabulary_file(folder: Path) -> Path | None:
    return next((path for name in ("tokenizer.json", "vocab.txt") if is_there(path := folder / name)), None)


def _same_words(a: Path, b: Path) -> bool:
    """Whether the tokenizers of two folders give the same ids to the same word pieces; also where one has none."""
    files = [_vocabulary_file(folder) for folder in (a, b)]
    if None in files or file_digest(files[0]) == file_digest(files[1]):
        return True
    first, second = (CaptionTokenizer.from_pretrained(folder).vocabulary() for folder in (a, b))
    return first == second


LongCaptions = Literal["refuse", "truncate"]  # that are evaluated on


def settle_long_captions(dataset: PairDataset, tokens: int, long_captions: LongCaptions) -> None:
    """Cut or refuse captions to be evaluated on that are longer than the model's ``tokens``; ``dataset.cut`` counts them.

    Raises:
        BadInput: there are some, and they are to be refused.
    """
    lengths = dataset.txt_lengths
    too_long, longest = int((lengths > tokens).sum()), int(lengths.argmax())
    if too_long and long_captions == "refuse":
        raise BadInput(
            f"{dataset.captions_folder(longest)}: {too_long:,} of {len(dataset):,} captions are longer than the model's {tokens} positions "
            f"for tokens, the longest is caption {dataset.ids[longest]} of {lengths[longest]} with [CLS] and [SEP]; shorten them, "
            "or cut them with long_captions truncate"
        )
    if too_long:
        dataset.cut_captions(tokens)


def check_caption_lengths(config: LightningDOTConfig, dataset: PairDataset) -> None:
    """Refuse captions that the text tower has no positions for, before hours of training meet the first of them."""
    longest = int(dataset.txt_lengths.argmax())
    _check_length(config, dataset.captions_folder(longest), f"caption {dataset.ids[longest]} has", int(dataset.txt_lengths[longest]))
    if dataset.image_captions is not None:
        captions = dataset.image_captions.captions
        lengths = dataset.image_captions.lengths(dataset.images)
        most = int(lengths.argmax())
        _check_length(config, captions.folder, f"the captions of {dataset.images[most]} have together", int(lengths[most]))
        for name in ("CLS", "SEP", "MASK", "v_range"):
            if captions.meta[name] != dataset.captions.meta[name]:
                raise BadInput(
                    f"{captions.folder}: {name} is {captions.meta[name]}, in {dataset.captions.folder} "
                    f"{dataset.captions.meta[name]}; build both with one tokenizer"
                )


def _check_length(config: LightningDOTConfig, captions: Path, subject: str, tokens: int) -> None:
    if tokens > config.txt.max_tokens:
        raise BadInput(
            f"{captions}: {subject} {tokens} tokens with [CLS] and [SEP], the model has {config.txt.max_tokens} positions; "
            "shorten it, or drop such captions with max_txt_len"
        )


def random_encoder(options: EncoderOptions, meta: dict) -> EncoderConfig:
    """Sizes of an encoder from random weights."""
    return EncoderConfig(
        vocab_size=vocabulary_size(meta),
        hidden_size=options.hidden_size,
        num_hidden_layers=options.num_hidden_layers,
        num_attention_heads=options.num_attention_heads,
        intermediate_size=options.intermediate_size,
        max_position_embeddings=options.max_position_embeddings,
        initializer_range=options.initializer_range,
        pad_token_id=meta.get("PAD", 0),
    )


def _from_towers(options: ModelOptions, meta: dict, feature_dim: int, num_labels: int) -> LightningDOT:
    """Towers from folders, or from random weights."""
    txt = img = random_encoder(options, meta)
    txt_tensors, img_tensors = {}, {}
    if options.txt_init:
        text_encoder = choose_text_encoder(options.txt_init, options.txt_encoder)
        txt, txt_tensors = text_encoder.read(options.txt_init)
    if options.img_init:
        img, img_tensors = checkpoints.read_bert(options.img_init)
    if options.dropout is not None:
        txt.set_dropout(options.dropout)
        img.set_dropout(options.dropout)
    of_regions = img_tensors.get("img_embeddings.img_linear.weight")  # UNITER's; a BERT has no region embeddings
    if of_regions is not None and of_regions.ndim == 2:
        feature_dim = of_regions.shape[1]  # the caller compares it with the data's
    cls_token_id = meta["CLS"] if options.cls_token_id is None else options.cls_token_id
    model = LightningDOT(LightningDOTConfig(txt, img, options.project_dim, feature_dim, num_labels, cls_token_id))
    if options.txt_init:
        checkpoints.load_strict(model.txt_model.bert, txt_tensors, options.txt_init, text_encoder.optional)
    if options.img_init:
        has_regions = any(name.startswith("img_embeddings.") for name in img_tensors)
        absent = r"^pooler\." if has_regions else r"^(pooler|img_embeddings)\."
        checkpoints.load_strict(model.img_model.bert, img_tensors, options.img_init, optional=absent)
    return model
