"""Reading and writing weights: ours and Hugging Face's (the original's: ``original.py``). Only tensors are unpickled."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from data.downloads.hub import local_folder
from data.errors import BadInput, reason_of
from data.storage.atomic import atomic_file
from data.storage.file_facts import fact_of_file
from data.storage.json_digest import check_digest, with_digest
from data.storage.regular_files import is_there
from data.storage.text_files import read_json, write_json
from data.storage.torch_files import load_torch
from model.transformer import EncoderConfig

# config.json of a model, ours or Hugging Face's; the sizes of an encoder are checked where they are read
SETTINGS = {
    "model_type?": (str, None), "position_embedding_type?": (str, None), "hidden_size?": int, "feature_dim?": int, "num_labels?": int, "fingerprint?": (str, None), "txt?": dict, "img?": dict,
    "original?": {"kind": str, "prefix": str, "module?": str, "beside?": (dict, None), "config?": dict},
}  # fmt: skip
# Hugging Face's names of models whose block is BERT's; uniter is what scripts/convert_checkpoint.py calls a UNITER.
BERT_FAMILY = ("bert", "roberta", "xlm-roberta", "camembert", "uniter")
FINGERPRINT = "fingerprint"  # of weights, in config.json and in what a safetensors file says of itself
ABOUT = "model"  # in data.json and val.json: the fingerprint of the weights that they are about
LARGEST_WIDTH = 1_000_000  # of vectors and region features
# Heads and buffers of Hugging Face models that an encoder does not have.
NOT_ENCODER = re.compile(r"^(cls|lm_head|classifier|qa_outputs)\.|position_ids$")


def check_config(config: Any) -> None:
    """Refuse towers that cannot be compared by a dot product, and widths that nothing has."""
    for name in ("project_dim", "feature_dim", "num_labels"):
        if not 0 <= getattr(config, name) <= LARGEST_WIDTH:
            raise BadInput(f"{name} is 0 to {LARGEST_WIDTH:,}, found {getattr(config, name)}")
    if not config.project_dim and config.txt.hidden_size != config.img.hidden_size:
        raise BadInput(
            f"project_dim 0 needs towers of one width; text has hidden_size {config.txt.hidden_size}, "
            f"image {config.img.hidden_size}"
        )
    if config.similarity not in ("dot", "cosine"):
        raise BadInput(f"similarity {config.similarity!r} is neither dot nor cosine")
    if config.pooling not in ("cls", "mean"):
        raise BadInput(f"pooling {config.pooling!r} is neither cls nor mean")


def one_checkpoint(folder: str | Path) -> Path:
    """The folder that a run's link ``last`` or ``best`` points to now, else the folder itself: all files of a checkpoint are read of
    one, also when training moves the link meanwhile."""
    folder = Path(folder)
    return folder.parent / os.readlink(folder) if folder.is_symlink() else folder


def read_config(folder: str | Path) -> dict:
    """``config.json`` of one of our checkpoints."""
    path = local_folder(folder) / "config.json"
    values = read_settings(path)
    if "txt" not in values or "img" not in values:
        raise BadInput(f"{path}: not a LightningDOT checkpoint (no keys txt and img)")
    return values


def read_settings(path: Path) -> dict:
    """A JSON file of settings in a checkpoint's folder.

    Raises:
        BadInput: there is no such folder or file, or the file holds something else.
    """
    if path.parent.is_file():
        raise BadInput(
            f"{path.parent}: a file, a checkpoint folder was expected; scripts/convert_checkpoint.py makes a folder of "
            "a checkpoint of the original"
        )
    if not path.exists():
        raise BadInput(f"{path}: no such file; a checkpoint folder was expected at {path.parent}")
    values = read_json(path, "a mapping of settings was expected", SETTINGS)
    check_digest(path, values, "copy the checkpoint again", without=[FINGERPRINT])
    return values


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """A flat ``{name: tensor}`` from a safetensors file or a PyTorch file that holds a bare state dict.

    Raises:
        BadInput: missing, truncated, not what was written by its checksums, or a PyTorch file with anything but tensors in it.
    """
    path = Path(path)
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise BadInput(f"{path}: expected a state dict (names to tensors)")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            written = (file.metadata() or {}).get(FINGERPRINT)
    except Exception as error:  # whatever safetensors raises on damaged bytes
        raise BadInput(f"{path}: damaged or truncated weights: {error!r}") from error
    if written is not None and _fingerprint_of_file(path, tensors) != written:
        raise BadInput(f"{path}: damaged weights: they are not what was written by the file's own fingerprint; copy the file again")
    return tensors


def _fingerprint_of_file(path: Path, tensors: dict[str, Tensor]) -> str:
    return fact_of_file(path, FINGERPRINT, lambda: fingerprint(tensors))


def checked_fingerprint(folder: str | Path, tensors: dict[str, Tensor], values: dict) -> str:
    """The fingerprint of ``tensors``, as they were read from ``folder/model.safetensors``.

    Args:
        values: content of the folder's config.json

    Raises:
        BadInput: config.json says another: the weights are another run's, or damaged.
    """
    found = _fingerprint_of_file(Path(folder) / "model.safetensors", tensors)
    compare_fingerprints(folder, found, values)
    return found


def compare_fingerprints(folder: str | Path, found: str, values: dict) -> None:
    """As `checked_fingerprint`, of a fingerprint that is known."""
    if found != (values.get(FINGERPRINT) or found):
        raise BadInput(
            f"{folder}/model.safetensors: holds the weights {found}, and config.json beside it is about {values[FINGERPRINT]}: another "
            f"run's weights, or damaged ones; copy the checkpoint again (or remove {FINGERPRINT} from config.json to take them as they are)"
        )


def other_weights(path: Path, values: dict) -> str | None:
    """A sentence where a file beside the weights of a checkpoint names others (`ABOUT`) than config.json there does; else None."""
    config = path.with_name("config.json")
    own = read_settings(config).get(FINGERPRINT) if is_there(config) else None
    if own and values.get(ABOUT) and values[ABOUT] != own:
        return f"{path}: is about the weights {values[ABOUT]}, and config.json beside it about {own}: is it another checkpoint's?"
    return None


def check_about(path: Path, values: dict) -> None:
    """Raise BadInput where a file beside the weights of a checkpoint is about others."""
    if said := other_weights(path, values):
        raise BadInput(f"{said} Copy the checkpoint again, or delete the file")


def read_pickle(path: Path) -> Any:
    """What a PyTorch file holds: tensors, and plain containers and values around them.

    Raises:
        BadInput: missing, truncated, or with any other object in it.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no such file")
    try:
        return load_torch(path)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))  # torch's own text advises to unpickle it all the same
        reason = f"it names {named[1]}" if named else "not what torch.save writes for tensors"
        raise BadInput(f"{path}: holds more than tensors and is not unpickled: {reason}") from None
    except Exception as error:  # whatever zip and pickle raise on damaged bytes
        raise BadInput(f"{path}: damaged or truncated weights: {type(error).__name__}: {reason_of(error)}") from None


def load_strict(
    module: nn.Module, tensors: dict[str, Tensor], source: str, optional: str = r"$^", assign: bool = False
) -> None:
    """Put ``tensors`` into ``module``; every missing, unexpected or mis-shaped name is an error that lists them all.

    Args:
        source: where the tensors come from, for the message
        optional: regular expression of names that may be missing
        assign: take the tensors themselves instead of copying (for a module on the meta device)
    """
    check_keys(module.state_dict(), tensors, source, optional)
    module.load_state_dict(tensors, strict=False, assign=assign)


def check_keys(own: dict[str, Tensor], tensors: dict[str, Tensor], source: str, optional: str = r"$^") -> None:
    """Refuse ``tensors`` that differ in name or shape from ``own``, or are no floating-point numbers; all are listed."""
    problems = [f"missing {name}" for name in own if name not in tensors and not re.search(optional, name)]
    problems += [f"unexpected {name}" for name in tensors if name not in own]
    for name in own:
        if name in tensors and tensors[name].shape != own[name].shape:
            problems.append(f"{name} has shape {list(tensors[name].shape)}, expected {list(own[name].shape)}")
        elif name in tensors and own[name].is_floating_point() and not tensors[name].is_floating_point():
            problems.append(f"{name} has type {tensors[name].dtype}, expected floating-point numbers")
    if problems:
        raise BadInput(f"{source}: {len(problems)} keys do not fit the model: {'; '.join(problems)}")


def fingerprint(tensors: dict[str, Tensor]) -> str:
    """16 hex digits that change with any name, shape or value."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file with its own fingerprint, which transformers reads too. Raises BadInput when the disk is full."""
    try:
        save_file(tensors, path, metadata={"format": "pt", FINGERPRINT: (own := fingerprint(tensors))})
        _order_metadata(path, f'"format":"pt","{FINGERPRINT}":"{own}"'.encode())
    except SafetensorError as error:
        raise BadInput(f"{path}: cannot be written: {error}; is the disk full?") from error


def _order_metadata(path: Path, ordered: bytes) -> None:
    """Equal tensors give equal files: safetensors writes what a file says of itself in any order."""
    with open(path, "r+b") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
        start = header.index(b'"__metadata__":{') + len(b'"__metadata__":{')
        if header.index(b"}", start) - start == len(ordered):
            file.seek(8 + start)
            file.write(ordered)


def write(folder: str | Path, tensors: dict[str, Tensor], config: dict) -> None:
    """Write ``model.safetensors`` then ``config.json``, each under a temporary name first."""
    folder = Path(folder)
    with atomic_file(folder / "model.safetensors") as path:
        save_tensors(tensors, path)
    write_json(folder / "config.json", with_digest(config, without=[FINGERPRINT]))


def bert_config(values: dict, source: str) -> EncoderConfig:
    """Sizes from ``values``, the content of a BERT-family (or UNITER's) config.json at ``source``.

    Raises:
        BadInput: a kind of model whose block is not BERT's, or impossible sizes.
    """
    kind = values.get("model_type", "bert")
    if kind not in BERT_FAMILY:
        raise BadInput(f"{source}: model_type {kind!r} is not of the BERT family (bert, roberta, ...)")
    positions = values.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise BadInput(f"{source}: position_embedding_type {positions!r} is not absolute")
    try:
        config = EncoderConfig.from_dict(values)
        return config if kind in ("bert", "uniter") else dataclasses.replace(config, position_offset=config.pad_token_id + 1)
    except BadInput as error:
        raise BadInput(f"{source}: {error}") from None


def read_bert(folder: str | Path) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """A Hugging Face BERT-family folder or name (``config.json`` with ``model.safetensors`` or ``pytorch_model.bin``), or an
    encoder folder that ``scripts/convert_checkpoint.py`` wrote.

    Returns: the sizes, and the encoder's tensors under BERT's names (no prefix, no heads); ``img_embeddings.*`` among
        them where a UNITER was converted.

    Raises:
        BadInput: not such a folder, or a kind of model whose block is not BERT's.
    """
    folder = local_folder(folder)
    values = read_settings(folder / "config.json")
    config = bert_config(values, f"{folder}/config.json")
    tensors = {}
    for name, tensor in read_bert_tensors(folder).items():
        name = re.sub(r"^(bert|roberta)\.", "", name)
        if not NOT_ENCODER.search(name):
            tensors[name] = tensor
    if values.get("model_type") == "uniter" and not any(name.startswith("img_embeddings.") for name in tensors):
        raise BadInput(f"{folder}/model.safetensors: no img_embeddings, which a UNITER has; convert it again")
    return config, tensors


def read_bert_tensors(folder: str | Path) -> dict[str, Tensor]:
    """All tensors of a Hugging Face folder, heads too, with their prefixes; old names of layer norms made new."""
    folder = local_folder(folder)
    files = [path for name in ("model.safetensors", "pytorch_model.bin") if is_there(path := folder / name)]
    if not files:
        raise BadInput(f"{folder}: neither model.safetensors nor pytorch_model.bin is there")
    tensors = read_tensors(files[0])
    return {re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)): tensor
            for name, tensor in tensors.items()}  # fmt: skip
