"""The files of the original LightningDOT and of UNITER: what is in them, which names and shapes they must have.

finetuned    {model_dict, optimizer_dict, scheduler_dict, offset, epoch, encoder_params}, or model_dict alone: the towers
pretrained   a bare state dict: the towers with the prefix bert., and the heads
uniter       a bare state dict: one encoder with the prefix uniter. (pre-training) or bert. (fine-tuning), and heads
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import BadInput
from model import checkpoints
from model.bi_encoder import ImageBert, LightningDOT, LightningDOTConfig
from model.objectives.heads import PretrainingHeads
from model.transformer import EncoderConfig, empty_weights

BESIDE_MODEL = ("optimizer_dict", "scheduler_dict", "offset", "epoch", "encoder_params")
BUFFER = re.compile(r"\.position_ids$")  # constants that some versions of transformers stored
# Where an encoder's sizes can be read: name of a tensor, and its axis.
_SIZES = {
    "vocab_size": (r"embeddings\.word_embeddings\.weight", 0),
    "hidden_size": (r".*\.LayerNorm\.(weight|bias)", 0),
    "intermediate_size": (r"encoder\.layer\.\d+\.intermediate\.dense\.(weight|bias)", 0),
    "max_position_embeddings": (r"embeddings\.position_embeddings\.weight", 0),
    "type_vocab_size": (r"embeddings\.token_type_embeddings\.weight", 0),
}
FEATURE_DIM = (r".*\.img_embeddings\.(img_linear|mask_embedding)\.weight", 1)
NUM_LABELS = (r"region_classifier\.net\.3\.(weight|bias)", 0)
# What tensors cannot tell.
_UNSEEN = ("num_attention_heads", "hidden_act", "layer_norm_eps")


@dataclass
class File:
    """A .pt file of the original.

    Attributes:
        kind: finetuned, pretrained or uniter
        module: "module." where DataParallel put it before every name, else ""
        prefix: of encoders and towers: "", "bert." or "uniter."
        tensors: by their names without ``module``
        beside: what stood beside ``model_dict``; None for a bare state dict
    """

    kind: str
    module: str
    prefix: str
    tensors: dict[str, Tensor]
    beside: dict[str, Any] | None


def read(path: Path) -> File:
    """Take a .pt file apart; its kind is seen from the names.

    Raises:
        BadInput: more than tensors and plain values in it, or the names are of no kind that is known.
    """
    content, beside = checkpoints.read_pickle(path), None
    if isinstance(content, dict) and "model_dict" in content:
        beside = {name: value for name, value in content.items() if name != "model_dict"}
        content = content["model_dict"]
        unknown = [name for name in beside if name not in BESIDE_MODEL]
        if unknown:
            raise BadInput(f"{path}: unexpected beside model_dict: {', '.join(map(str, unknown))}")
    if not isinstance(content, dict) or not content:
        raise BadInput(f"{path}: expected a state dict (names to tensors), found {type(content).__name__}")
    others = [
        f"{name} ({type(value).__name__})"
        for name, value in content.items()
        if not isinstance(value, Tensor) or not isinstance(name, str)
    ]
    if others:
        raise BadInput(f"{path}: expected a state dict (names to tensors); no tensors are {', '.join(others)}")
    module = "module." if all(name.startswith("module.") for name in content) else ""
    tensors = {name[len(module) :]: tensor for name, tensor in content.items()}
    for kind, prefix, parts in (
        ("finetuned", "", ("img_model.", "txt_model.")),
        ("pretrained", "bert.", ("img_model.", "txt_model.")),
        ("uniter", "uniter.", ("embeddings.", "img_embeddings.", "encoder.", "pooler.")),
        ("uniter", "bert.", ("embeddings.", "img_embeddings.", "encoder.", "pooler.")),
    ):
        if any(name.startswith(tuple(prefix + part for part in parts)) for name in tensors):
            third = [name for name in tensors if re.match(rf"{prefix}(?!img_|txt_)\w+_model\.", name)]
            if third:
                raise BadInput(
                    f"{path}: has a third tower ({third[0]}, ...), of seperate_caption_encoder; here captions of images go "
                    "through the text tower, so that it cannot be converted"
                )
            return File(kind, module, prefix, tensors, beside)
    raise BadInput(
        f"{path}: neither LightningDOT's nor UNITER's: no name starts with img_model., bert.img_model., uniter. or bert.; "
        f"the first is {next(iter(tensors))}"
    )


def split(file: File) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The towers or the encoder, without prefix; and the rest, less what is tied."""
    tied = tied_names(file.kind, file.prefix, file.tensors)
    own, rest = {}, {}
    for name, tensor in file.tensors.items():
        if name.startswith(file.prefix) and not BUFFER.search(name):
            own[name.removeprefix(file.prefix)] = tensor
        elif name not in tied:
            rest[name] = tensor
    return own, rest


def record_of(file: File, notes: list[str]) -> dict:
    """How the file was laid out, for the way back; of what stood beside the weights only what JSON holds."""
    beside = None if file.beside is None else {}
    for name, value in (file.beside or {}).items():
        try:
            same = json.loads(json.dumps(value)) == value
        except (TypeError, ValueError):
            same = False
        beside[name] = value if same else {}
        if not same:
            notes.append(f"{name}: left out, and empty on the way back")
    return {"kind": file.kind, "module": file.module, "prefix": file.prefix, "beside": beside}


def encoder_config(
    tensors: dict[str, Tensor], source: Path, side: str, path: Path | None, notes: list[str]
) -> EncoderConfig:
    """Sizes from shapes; what shapes cannot tell from the JSON file ``path``, or BERT's habits."""
    found = {name: size for name, where in _SIZES.items() if (size := common_size(tensors, *where)) is not None}
    layers = [int(m[1]) for name in tensors if (m := re.match(r"encoder\.layer\.(\d{1,9})\.", name))]
    if layers:
        found["num_hidden_layers"] = max(layers) + 1
    values = checkpoints.read_settings(path) if path else {}
    wrong = [f"{n} is {values[n]}, in {source} {size}" for n, size in found.items() if values.get(n, size) != size]
    if wrong:
        raise BadInput(f"{path}: contradicts the shapes of the {side} encoder: {'; '.join(wrong)}")
    assumed = [name for name in _UNSEEN if name not in values]
    hidden_size = found.get("hidden_size", values.get("hidden_size", EncoderConfig.hidden_size))
    if "num_attention_heads" in assumed:
        if hidden_size % 64:
            raise BadInput(
                f"{source}: the number of heads of the {side} encoder cannot be seen, and width {hidden_size} is no "
                f"multiple of BERT's 64 a head; give num_attention_heads in a JSON file: --{side}-config"
            )
        values["num_attention_heads"] = hidden_size // 64
    config = checkpoints.bert_config(values | found, str(path or source))
    notes.append(f"{side} encoder: {', '.join(f'{name} {getattr(config, name)}' for name in (*found, *_UNSEEN))}")
    if assumed:
        notes.append(f"{side} encoder: {', '.join(assumed)} assumed as in BERT; otherwise give --{side}-config")
    return config


def common_size(tensors: dict[str, Tensor], pattern: str, axis: int) -> int | None:
    """What most tensors of that name say, so that one of a wrong shape is listed and not the others."""
    sizes = [t.shape[axis] for name, t in tensors.items() if re.fullmatch(pattern, name) and t.ndim > axis]
    return Counter(sizes).most_common(1)[0][0] if sizes else None


def check_file(kind: str, prefix: str, tensors: dict[str, Tensor], config: LightningDOTConfig, source: Path) -> None:
    """Every name and shape of a file of this kind and size, and that tied tensors are equal."""
    tied = tied_names(kind, prefix, tensors)
    try:
        with empty_weights():
            model = ImageBert(config) if kind == "uniter" else LightningDOT(config)
            expected = {prefix + name: tensor for name, tensor in model.state_dict().items()}
            if kind == "pretrained" or tied:
                expected |= PretrainingHeads(config, tasks=["vmlm"]).state_dict() | linear_head("itm_output", 2, config.img)
            elif kind == "uniter" and any(name.startswith(("itm_output.", "rank_output.")) for name in tensors):
                expected |= linear_head("itm_output", 2, config.img) | linear_head("rank_output", 1, config.img)
    except BadInput as error:  # towers that do not go together
        raise BadInput(f"{source}: {error}") from None
    expected |= {name: expected[owner] for name, owner in tied.items()}
    checkpoints.check_keys(expected, {n: t for n, t in tensors.items() if not BUFFER.search(n)}, str(source))
    differ = [f"{name} from {owner}" for name, owner in tied.items() if not torch.equal(tensors[name], tensors[owner])]
    if differ:
        raise BadInput(f"{source}: tensors that are tied to each other differ: {'; '.join(differ)}")


def tied_names(kind: str, prefix: str, names) -> dict[str, str]:
    """Second names of one tensor in a file with pre-training heads, and whose they are."""
    tower = f"{prefix}img_model.bert." if kind == "pretrained" else prefix
    if not any(name.startswith(("cls.", "feat_regress.", "region_classifier.")) for name in names):
        return {}
    return {
        "cls.predictions.decoder.weight": f"{tower}embeddings.word_embeddings.weight",
        "feat_regress.weight": f"{tower}img_embeddings.img_linear.weight",
    }


def linear_head(name: str, rows: int, config: EncoderConfig) -> dict[str, Tensor]:
    """Names and shapes (on the meta device) of a linear layer from the hidden state to ``rows`` numbers."""
    shapes = {"weight": (rows, config.hidden_size), "bias": (rows,)}
    return {f"{name}.{part}": torch.empty(shape, device="meta") for part, shape in shapes.items()}
