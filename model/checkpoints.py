"""Reading and writing weights: ours and Hugging Face's. Nothing here unpickles anything but tensors."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.atomic import atomic_file
from data.errors import BadInput
from model.transformer import EncoderConfig

# Heads and buffers of Hugging Face models that an encoder does not have.
_NOT_ENCODER = re.compile(r"^(cls|lm_head|classifier|qa_outputs)\.|position_ids$")


def check_config(config) -> None:
    """Refuse towers that cannot be compared by a dot product."""
    if not config.project_dim and config.txt.hidden_size != config.img.hidden_size:
        raise BadInput(
            f"project_dim 0 needs towers of one width; text has hidden_size {config.txt.hidden_size}, "
            f"image {config.img.hidden_size}"
        )


def read_config(folder: str | Path) -> dict:
    """``config.json`` of one of our checkpoints."""
    path = Path(folder) / "config.json"
    values = read_json(path)
    if "txt" not in values or "img" not in values:
        raise BadInput(f"{path}: not a LightningDOT checkpoint (no keys txt and img)")
    return values


def read_json(path: Path) -> dict:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInput(f"{path}: no such file; a checkpoint folder was expected at {path.parent}") from error
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise BadInput(f"{path}: holds a {type(values).__name__}, a mapping of settings was expected")
    return values


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """A flat ``{name: tensor}`` from a safetensors file or a PyTorch file that holds a bare state dict.

    Raises:
        BadInput: missing, truncated, or a PyTorch file with anything but tensors in it.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise BadInput(f"{path}: holds more than tensors and is not unpickled: {error}") from error
    except Exception as error:  # whatever safetensors, zip and pickle raise on damaged bytes
        raise BadInput(f"{path}: damaged or truncated weights: {error!r}") from error
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise BadInput(f"{path}: expected a state dict (names to tensors)")
    return tensors


def load_strict(
    module: nn.Module, tensors: dict[str, Tensor], source: str, optional: str = r"$^", assign: bool = False
) -> None:
    """Put ``tensors`` into ``module``; every missing, unexpected or mis-shaped name is an error that lists them all.

    Args:
        source: where the tensors come from, for the message
        optional: regular expression of names that may be missing
        assign: take the tensors themselves instead of copying (for a module on the meta device)
    """
    own = module.state_dict()
    problems = [f"missing {name}" for name in own if name not in tensors and not re.search(optional, name)]
    problems += [f"unexpected {name}" for name in tensors if name not in own]
    problems += [
        f"{name} has shape {list(tensors[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if problems:
        raise BadInput(f"{source}: {len(problems)} keys do not fit the model: {'; '.join(problems)}")
    module.load_state_dict(tensors, strict=False, assign=assign)


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """16 hex digits that change with any name, shape or value."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file. Raises BadInput when the disk is full."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise BadInput(f"{path}: cannot be written: {error}; is the disk full?") from error


def write(folder: str | Path, tensors: dict[str, Tensor], config: dict) -> None:
    """Write ``model.safetensors`` then ``config.json``, each under a temporary name first."""
    folder = Path(folder)
    with atomic_file(folder / "model.safetensors") as path:
        save_tensors(tensors, path)
    with atomic_file(folder / "config.json") as path:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_bert(folder: str | Path) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """A Hugging Face BERT-family folder (``config.json`` with ``model.safetensors`` or ``pytorch_model.bin``).

    Returns: the sizes, and the encoder's tensors under BERT's names (no prefix, no heads).

    Raises:
        BadInput: not such a folder, or a kind of model whose block is not BERT's.
    """
    folder = Path(folder)
    values = read_json(folder / "config.json")
    kind = values.get("model_type", "bert")
    if kind not in ("bert", "roberta", "xlm-roberta", "camembert"):
        raise BadInput(f"{folder}/config.json: model_type {kind!r} is not of the BERT family (bert, roberta, ...)")
    positions = values.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise BadInput(f"{folder}/config.json: position_embedding_type {positions!r} is not absolute")
    try:
        config = EncoderConfig.from_dict(values)
    except BadInput as error:
        raise BadInput(f"{folder}/config.json: {error}") from None
    if kind != "bert":
        config.position_offset = config.pad_token_id + 1
    files = [folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()]
    if not files:
        raise BadInput(f"{folder}: neither model.safetensors nor pytorch_model.bin is there")
    tensors = {}
    for name, tensor in read_tensors(files[0]).items():
        name = re.sub(r"^(bert|roberta)\.", "", name)
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if not _NOT_ENCODER.search(name):
            tensors[name] = tensor
    return config, tensors
