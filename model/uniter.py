"""UNITER as a re-ranker: caption and regions go through one encoder together (Chen et al., ECCV 2020).

reranker = Reranker.from_pretrained("runs/uniter/best")     # or a folder that scripts/convert_checkpoint.py made of a UNITER
scores = reranker(input_ids, attention_mask, features, positions, region_mask)      # [B], one of each caption–image pair

Every pair costs a pass of the encoder, so that it ranks again only what the dot product found.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from data.batches.batch import Batch
from data.batches.pairs import PairDataset
from data.batches.ragged import Images, Joined, Texts, pack_images, pack_texts
from data.downloads.hub import local_folder
from data.errors import BadInput
from data.notices import say_once
from data.storage.atomic import atomic_file
from data.storage.regular_files import is_there
from model import checkpoints
from model.attention import spread
from model.bi_encoder import LightningDOTConfig, RegionEmbeddings
from model.costs import Load, Work, trained
from model.initial import EncoderOptions, check_model_fits, check_same_tokenizer, random_encoder
from model.made_from import check_regions
from model.transformer import Bert, EncoderConfig, empty_weights, init_weights

HEADS = "original_extra.safetensors"  # beside the encoder, where convert_checkpoint.py puts a UNITER's heads


@dataclass
class RerankerModelOptions(EncoderOptions):
    """Where the re-ranker's one encoder starts: ``init`` is a converted UNITER, a re-ranker, a BERT folder, or a LightningDOT
    checkpoint, whose text tower and region embeddings it takes.

    Args:
        kind: uniter
    """

    kind: Literal["uniter"] = "uniter"


@dataclass
class UniterConfig:
    """Everything that fixes the shapes of a re-ranker.

    Args:
        encoder: the one encoder of words and regions
        feature_dim: width F of a region feature
        num_labels: C, classes of the region detector, kept for the record
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    feature_dim: int = 2048
    num_labels: int = 1601


class Uniter(Bert):
    """[CLS] words [SEP] regions through one encoder."""

    def __init__(self, config: UniterConfig):
        super().__init__(config.encoder)
        self.img_embeddings = RegionEmbeddings(config.encoder, config.feature_dim)

    def embed(self, texts: Texts, images: Images, rows: Tensor, masked: Tensor | None = None) -> Tensor:
        """What the blocks read: the tokens ``rows`` [S] of all words and then all regions, ``masked`` [R] bool → [S,h]."""
        types = self.embeddings.token_type_embeddings.weight
        words = self.embeddings(texts)  # [T,h]
        regions = self.img_embeddings(images.features, images.positions, types[-1], masked)  # [R,h], type 1
        return torch.cat([words, regions.to(words.dtype)])[rows]

    def forward(self, texts: Texts, images: Images, pairs: Joined, masked: Tensor | None = None) -> Tensor:
        """All hidden states of texts that are each in one pair, as their images: → [T+R,h], all words and then all regions."""
        hidden = self.encoder(self.embed(texts, images, pairs.rows, masked), pairs.layout)
        return spread(hidden, pairs.rows, len(hidden))


class Reranker(nn.Module):
    """UNITER for image–text retrieval: one score of a caption–image pair."""

    def __init__(self, config: UniterConfig):
        super().__init__()
        self.config = config
        self.fingerprint: str | None = None  # of the weights as last read or written
        self.head = "rank_output"  # what the scores come from, as last read
        self.bert = Uniter(config)
        self.rank_output = nn.Linear(config.encoder.hidden_size, 1)
        self.itm_output = nn.Linear(config.encoder.hidden_size, 2)  # pre-training's: class 1 is a match
        init_weights(self, config.encoder.initializer_range)

    def set_checkpointing(self, on: bool) -> None:
        """Activation checkpointing: keep no activations inside blocks, and compute them again in backward."""
        self.bert.set_checkpointing(on)

    def work(self, load: Load) -> list[Work]:
        """What one batch costs whose pairs have ``load.hard_negatives`` each, as in `forward_ranking`.

        A pair is read by itself, and with each negative's image and each negative's caption.
        """
        sequences, length = load.pairs * (1 + 2 * load.hard_negatives), load.txt_length + load.regions
        h = self.config.encoder.hidden_size
        heads = [self.bert.pooler, self.rank_output]
        return [
            *self.bert.work("pair", sequences, length, True, load),
            self.bert.img_embeddings.work(load.rows, False, load),
            Work("pooler and head", sequences * 2 * h * (h + 1), 3, sum(map(trained, heads))),
        ]

    def parts(self) -> dict[str, nn.Module]:
        """All its parts by name, for counts of their parameters."""
        bert = {f"pair {name}": part for name, part in self.bert.parts().items()}
        return {**bert, "image regions": self.bert.img_embeddings, "rank head": self.rank_output, "match head": self.itm_output}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        features: Tensor,
        positions: Tensor,
        region_mask: Tensor,
        texts: Tensor | None = None,
        images: Tensor | None = None,
    ) -> Tensor:
        """Score pairs: higher is a better match. Training and UNITER's own evaluation look at its sigmoid, which ranks alike.

        Args:
            input_ids: [B,L] int64, [CLS] words [SEP] padding
            attention_mask: [B,L] bool, true at real tokens
            features: [B,R,F] region features, any float type
            positions: [B,R,7] x1 y1 x2 y2 w h w·h as fractions of the image
            region_mask: [B,R] bool, true at real regions
            texts, images: [P] int64, rows of the texts and of the images that make a pair; None: row i with row i

        Returns: [P]
        """
        packed = pack_texts(input_ids, attention_mask), pack_images(features, positions, region_mask)
        rows = (
            np.arange(len(packed[0])) if which is None else which.cpu().numpy() for which in (texts, images)
        )
        return self.score(*packed, Joined.of(*packed, *rows).to(input_ids.device))

    def score(self, texts: Texts, images: Images, pairs: Joined) -> Tensor:
        """`forward` of texts and images that hold no padding, each embedded once however many pairs it is in: → [P]."""
        return self.rank_output(self.pooled(texts, images, pairs))[:, 0]

    def pooled(self, texts: Texts, images: Images, pairs: Joined) -> Tensor:
        """What both heads read of each pair: → [P,h]."""
        tokens = self.bert.embed(texts, images, pairs.rows)
        return self.bert.pooler(self.bert.encoder(tokens, pairs.layout, first_only=True))

    @classmethod
    def from_pretrained(cls, folder: str | Path, dropout: float | None = None) -> Reranker:
        """Read a re-ranker that was trained here, or a UNITER that ``scripts/convert_checkpoint.py`` converted; in eval mode.

        A UNITER that was only pre-trained has no rank_output: it scores by itm_output, the log-odds of a match (its row 1 less its
        row 0), which rank as the head's probability of a match does. ``head`` says which of the two it is.

        Raises:
            BadInput: no such folder, no UNITER, one without either head, or a tensor missing or of the wrong shape.
        """
        model, tensors = cls._read(folder, dropout)
        absent = [name for name in model.state_dict() if name.startswith("rank_output.") and name not in tensors]
        if not absent:
            return model.eval()
        if len(absent) == 1 or not {"itm_output.weight", "itm_output.bias"} <= tensors.keys():
            raise BadInput(
                f"{folder}/{HEADS}: no {absent[0]}, and no itm_output in its place: this UNITER cannot score pairs; train it: "
                "train_itm.py --model uniter --model.init"
            )
        with torch.no_grad():
            model.rank_output.weight.copy_(model.itm_output.weight[1:] - model.itm_output.weight[:1])
            model.rank_output.bias.copy_(model.itm_output.bias[1:] - model.itm_output.bias[:1])
        model.head = "itm_output"
        say_once(f"{folder}: {model.describe_head()}")
        return model.eval()

    def describe_head(self) -> str:
        """What the scores come from, as a line for the screen."""
        if self.head == "rank_output":
            return "the re-ranker scores by rank_output, fine-tuned for retrieval"
        return "the re-ranker scores by itm_output, zero-shot: the log-odds of a match in pre-training"

    @classmethod
    def start_from(cls, folder: str | Path, dropout: float | None = None) -> tuple[Reranker, str]:
        """A re-ranker to train, from a UNITER as in ``from_pretrained``; without rank_output it ranks as itm_output matches.

        Returns: it, and a line that says where its head comes from
        """
        model, tensors = cls._read(folder, dropout)
        if "rank_output.weight" in tensors:
            return model, "rank_output: as in the checkpoint"
        if "itm_output.weight" not in tensors:
            return model, "rank_output: random weights"
        with torch.no_grad():
            model.rank_output.weight.copy_(model.itm_output.weight[1:])
            model.rank_output.bias.copy_(model.itm_output.bias[1:])
        return model, "rank_output: from row 1 of itm_output, the match"

    @classmethod
    def _read(cls, folder: str | Path, dropout: float | None) -> tuple[Reranker, dict[str, Tensor]]:
        """The model with what is in the folder, random weights for heads that are not, and the tensors that are."""
        folder = checkpoints.one_checkpoint(local_folder(folder))
        path = folder / "config.json"
        values = checkpoints.read_settings(path)
        if values.get("model_type") != "uniter":
            raise BadInput(
                f"{path}: not a UNITER (model_type {values.get('model_type')!r}); a re-ranker is trained with train_itm.py "
                "--model uniter, or converted with scripts/convert_checkpoint.py"
            )
        encoder, tensors = checkpoints.read_bert(folder)
        if dropout is not None:
            encoder.set_dropout(dropout)
        tensors = {f"bert.{name}": tensor for name, tensor in tensors.items()}
        if is_there(folder / HEADS):
            heads = checkpoints.read_tensors(folder / HEADS)
            tensors |= {n: t for n, t in heads.items() if n.startswith(("rank_output.", "itm_output."))}
        config = UniterConfig(encoder, values.get("feature_dim", 2048), values.get("num_labels", 1601))
        with empty_weights():
            model = cls(config)
        if all(name in tensors for name in model.state_dict()):
            model.to_empty(device="cpu")
        else:  # heads that are absent start from random weights
            model = cls(config)
        checkpoints.load_strict(model, tensors, str(folder), optional=r"^(rank|itm)_output\.")
        model.fingerprint = checkpoints.fingerprint(tensors)
        checkpoints.compare_fingerprints(folder, model.fingerprint, values)
        return model, tensors

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that ``from_pretrained`` reads."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        self.fingerprint = self.write(folder, tensors, self.config)

    @staticmethod
    def write(folder: str | Path, tensors: dict[str, Tensor], config: UniterConfig) -> str:
        """Write a state dict as ``save_pretrained`` does → its fingerprint. The layout is that of a converted UNITER, so that
        ``scripts/convert_checkpoint.py --to original`` makes a UNITER file of it."""
        fingerprint = checkpoints.fingerprint(tensors)
        values = dataclasses.asdict(config.encoder) | {
            "model_type": "uniter",
            "feature_dim": config.feature_dim,
            "num_labels": config.num_labels,
            "fingerprint": fingerprint,
            "original": {"kind": "uniter", "module": "", "prefix": "bert.", "beside": None},
        }
        heads = {name: tensor for name, tensor in tensors.items() if not name.startswith("bert.")}
        with atomic_file(Path(folder) / HEADS) as path:
            checkpoints.save_tensors(heads, path)
        encoder = {n.removeprefix("bert."): t for n, t in tensors.items() if n.startswith("bert.")}
        checkpoints.write(folder, encoder, values)
        return fingerprint


def forward_ranking(reranker: Reranker, batch: Batch, margin: float) -> Tensor:
    """Pairwise ranking loss: a pair's sigmoid must be above that of its mismatches by ``margin``.

    Args:
        batch: from `collate_for_ranking`, which says what the mismatches of a pair are

    Returns: [N], the mean of each pair's mismatches
    """
    n = batch.num_queries
    logits = reranker.score(batch.texts, batch.images, batch.joined)
    right, wrong = logits.float().sigmoid().tensor_split([max(n, 1)])  # with no pair: something to run on
    return (margin + wrong.view(2, len(right), -1) - right[:, None]).clamp(min=0).mean(dim=(0, 2))[:n]


def build_reranker(options: EncoderOptions, pairs: PairDataset) -> tuple[Reranker, str]:
    """The re-ranker that training starts from, in train mode, for the captions and regions of ``pairs``.

    ``options.init`` is a UNITER or re-ranker folder, a Hugging Face BERT folder (its region embeddings start at random), or
    a LightningDOT checkpoint; None: random weights.

    Of LightningDOT it takes the text tower, which knows words, with the image tower's region embeddings.

    Returns: it, and a line that says what it was made of

    Raises:
        BadInput: weights that do not fit the data's vocabulary or feature width.
    """
    regions = pairs.regions
    if not options.init:
        encoder, tensors, origin = random_encoder(options, pairs.captions.meta), {}, "random weights"
    else:
        values = checkpoints.read_settings(local_folder(options.init) / "config.json")
        if values.get("model_type") == "uniter":
            model, origin = Reranker.start_from(options.init, options.dropout)
            check_reranker(model.config, options.init, pairs)
            return model.train(), f"{options.init}, {origin}"
        if "txt" in values and "img" in values:
            encoder, tensors, origin = _of_towers(options.init)
        else:
            encoder, tensors = checkpoints.read_bert(options.init)
            origin = f"{options.init}, region embeddings and heads: random weights"
    if options.dropout is not None:
        encoder.set_dropout(options.dropout)
    of_regions = tensors.get("img_embeddings.img_linear.weight")
    width = regions.feature_dim if of_regions is None else of_regions.shape[1]  # compared with the data's just below
    model = Reranker(UniterConfig(encoder, width, regions.num_labels))
    check_reranker(model.config, options.init or "model", pairs)
    if tensors:
        checkpoints.load_strict(model.bert, tensors, options.init, optional=r"^(pooler|img_embeddings)\.")
    return model.train(), origin


def _of_towers(folder: str) -> tuple[EncoderConfig, dict[str, Tensor], str]:
    values = checkpoints.read_config(folder)
    config = LightningDOTConfig.from_dict(values, Path(folder) / "config.json")
    if not isinstance(config.txt, EncoderConfig):
        raise BadInput(f"{folder}: its text tower is not of the BERT family, which a re-ranker is; start from a BERT folder")
    if config.txt.hidden_size != config.img.hidden_size:
        raise BadInput(
            f"{folder}: a re-ranker of its towers needs both of one width, the text tower has hidden_size "
            f"{config.txt.hidden_size}, the image tower {config.img.hidden_size}; start from a BERT folder"
        )
    towers = checkpoints.read_tensors(local_folder(folder) / "model.safetensors")
    checkpoints.checked_fingerprint(local_folder(folder), towers, values)
    start = "txt_model.bert."
    tensors = {n.removeprefix(start): t.float() for n, t in towers.items() if n.startswith(start)}
    start = "img_model.bert."
    of_regions = f"{start}img_embeddings."
    tensors |= {n.removeprefix(start): t.float() for n, t in towers.items() if n.startswith(of_regions)}
    return config.txt, tensors, f"text tower and region embeddings of {folder}, heads: random weights"


def check_reranker(config: UniterConfig, source: str, pairs: PairDataset) -> None:
    """Refuse a re-ranker that was made for other words or other features than those of ``pairs``."""
    towers = LightningDOTConfig(
        config.encoder, config.encoder, 0, config.feature_dim, config.num_labels, pairs.captions.meta["CLS"]
    )
    check_model_fits(towers, pairs.captions.meta, pairs.regions.feature_dim, source, str(pairs.regions.folder))
    for regions in pairs.region_databases:
        check_regions(source, regions)
    for part, _ in pairs.parts:
        check_same_tokenizer(source, part.captions)
