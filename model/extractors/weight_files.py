"""Reading the weights of a detector from the files in which they are published, without running what is in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from data.errors import BadInput, reason_of
from data.storage.plain_pickle import read_plain_pickle
from data.storage.torch_files import is_torch_file, load_torch


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Name → tensor of a torch file (weights only) or of detectron2's form, a pickled {"model": {name: numpy array}}."""
    try:
        if is_torch_file(path):
            stored = load_torch(path)
        else:
            pickled = read_plain_pickle(path, most_axes=4)["model"]
            stored = {name: torch.from_numpy(np.array(value)) for name, value in pickled.items()}
    except Exception as error:  # torch raises many kinds on a damaged file; also what of a mapping is not there, or no array
        reason = reason_of(error).removeprefix(f"{path}: ")
        raise BadInput(f"{path}: not a file of weights, of torch's or of pickled arrays ({reason}); download it again") from None
    if not isinstance(stored, dict) or not all(isinstance(value, torch.Tensor) for value in stored.values()):
        raise BadInput(f"{path}: holds no dictionary of tensors; expected name -> tensor")
    return stored
