"""One model whose weights are the mean of several that were trained from the same beginning (Wortsman et al., 2022: model soups).

Runs that differ in their seed, in the order of their data or in how long they took end near one another, and the middle of them
ranks better than each. Encoding costs what one model's costs.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from data.downloads.hub import local_folder
from data.errors import BadInput
from data.progress import ProgressBar
from data.storage.atomic import atomic_folder
from data.storage.regular_files import is_there
from data.storage.text_files import read_json
from model import checkpoints
from model.bi_encoder import LightningDOT
from model.made_from import FILE as MADE_FROM_FILE
from model.made_from import check_tokenizer, read_made_from, write_made_from

LEAST_COSINE = 0.2  # between a matrix of one model and of another; of fine-tunings from one beginning it is above 0.9 nearly everywhere
SMALL = 10_000  # numbers: smaller ones may begin at random


def average_checkpoints(folders: Sequence[str | Path], out: str | Path) -> str:
    """Write the mean of the weights of LightningDOT checkpoints as a checkpoint of its own.

    Args:
        folders: two or more, or their names on the hub, of the same sizes, settings, tokenizer and kind of regions
        out: folder to write, which is not there yet; it has no heads, from which a training would go on

    Returns: its fingerprint

    Raises:
        BadInput: they are not of one kind, are the same weights twice, or did not begin from the same weights.
    """
    parts = [checkpoints.one_checkpoint(local_folder(folder)) for folder in folders]
    if len(parts) < 2:
        raise BadInput("checkpoints: found one, expected two or more to average")
    if is_there(out):
        raise BadInput(f"{out}: already there; choose another name, or remove it")
    first = LightningDOT.from_pretrained(parts[0])
    mean = {name: tensor.double() for name, tensor in first.state_dict().items()}
    seen = {first.fingerprint: folders[0]}
    for number, (folder, shown) in enumerate(ProgressBar(list(zip(parts[1:], folders[1:], strict=True)), "averaging", unit="checkpoint"), 2):
        other = LightningDOT.from_pretrained(folder)
        if other.fingerprint in seen:
            raise BadInput(f"{shown}: has the same weights as {seen[other.fingerprint]}; give each once")
        seen[other.fingerprint] = shown
        _check_same(folders[0], first, shown, other)
        for name, tensor in other.state_dict().items():
            mean[name] += (tensor.double() - mean[name]) / number
    with atomic_folder(out) as partial:
        fingerprint = LightningDOT.write(partial, {name: tensor.float() for name, tensor in mean.items()}, first.config)
        _write_what_is_beside(parts, folders, partial, fingerprint)
    return fingerprint


def _check_same(name: str | Path, one: LightningDOT, other_name: str | Path, other: LightningDOT) -> None:
    """Raise BadInput where the mean of two models' weights is no model."""
    matrices, others = one.state_dict(), other.state_dict()
    checkpoints.check_keys(matrices, others, f"{other_name}, beside {name}")
    mine, theirs = one.config.of_vectors, other.config.of_vectors
    if differing := [key for key in sorted(mine.keys() | theirs) if mine.get(key) != theirs.get(key)]:
        raise BadInput(f"{other_name}/config.json: has another {', '.join(differing)} than {name}; average models of the same settings")
    for key, matrix in matrices.items():
        if matrix.ndim >= 2 and matrix.numel() >= SMALL and (cosine := _cosine(matrix, others[key])) < LEAST_COSINE:
            raise BadInput(
                f"{other_name}: {key} has nothing in common with that of {name} (their cosine is {cosine:.2f}): the two did not begin from "
                "the same weights, and their mean would be worse than both; average runs from one init, or from one txt_init and img_init "
                "with regions_as_words and project_dim 0"
            )


def _cosine(one: Tensor, other: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0).item()


def _write_what_is_beside(parts: Sequence[Path], shown: Sequence[str | Path], out: Path, fingerprint: str) -> None:
    """What the models were trained on, and their tokenizer, which have to be the same for all."""
    kept = [read_made_from(part) for part in parts]
    for part in parts:
        check_tokenizer(part)
    words = [_words_of(part) for part in parts]
    for made_from, own, name in zip(kept[1:], words[1:], shown[1:], strict=True):
        if made_from != kept[0]:
            raise BadInput(f"{name}: was trained on other regions, boxes or words than {shown[0]} ({MADE_FROM_FILE}); average runs on the same data")
        if own != words[0]:
            raise BadInput(f"{name}/tokenizer: is another one than that of {shown[0]}; average runs on the same data")
    if kept[0] is not None:
        write_made_from(out, kept[0], fingerprint)
    if words[0]:
        shutil.copytree(parts[0] / "tokenizer", out / "tokenizer", copy_function=shutil.copyfile)


def _words_of(part: Path) -> dict:
    path = part / "tokenizer/tokenizer.json"
    return read_json(path, "copy the tokenizer again") if is_there(path) else {}
