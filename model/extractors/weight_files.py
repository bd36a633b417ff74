"""Reading the weights of a detector from the files in which they are published, without running what is in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.errors import BadInput, reason_of


class _ArraysOnly(pickle.Unpickler):
    """Unpickles dictionaries of numpy arrays; a file that asks for anything else is refused, and nothing in it runs."""

    ALLOWED = {("collections", "OrderedDict"), ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")} | {
        (f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, only arrays are read")
        return super().find_class(module, name)


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Name → tensor of a torch file (weights only) or of detectron2's form, a pickled {"model": {name: numpy array}}."""
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as torch_error:  # torch raises many kinds on a damaged file
        try:
            with open(path, "rb") as file:
                stored = _ArraysOnly(file, encoding="latin1").load()["model"]
            stored = {name: torch.from_numpy(np.array(value)) for name, value in stored.items()}
        except Exception as error:
            raise BadInput(
                f"{path}: not a file of weights (as a torch file: {reason_of(torch_error)}; as pickled arrays: {reason_of(error)}); "
                "download it again"
            ) from None
    if not isinstance(stored, dict) or not all(isinstance(value, torch.Tensor) for value in stored.values()):
        raise BadInput(f"{path}: holds no dictionary of tensors; expected name -> tensor")
    return stored
