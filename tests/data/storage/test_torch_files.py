"""Files of torch.save: what it wrote is read; what has fewer bytes than it says, or would become more, is refused."""

import pickle
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.errors import BadInput
from data.storage.torch_files import is_torch_file, load_torch
from model.checkpoints import read_pickle
from model.extractors.weight_files import read_weights
from optim.saving import load_own


def saved(path: Path, value, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_writes(tmp_path, zipped):
    weights = torch.arange(12.0).reshape(3, 4)
    value = {"w": weights, "view": weights.T, "half": weights.half(), "whole": torch.arange(3), "none": torch.zeros(0, 4), "n": [1, None, "a"]}
    path = saved(tmp_path / "a.pt", value, zipped)
    found, twin = load_torch(path), torch.load(path, weights_only=True)
    assert is_torch_file(path) and list(found) == list(twin) and found["n"] == value["n"]
    for name in ("w", "view", "half", "whole", "none"):
        assert found[name].dtype == twin[name].dtype and torch.equal(found[name], twin[name])
    found["w"] += 1  # memory of this process alone
    assert torch.equal(load_torch(path)["w"], weights)


def repacked(path: Path, change=lambda name, content: content, packing: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(name, change(name, content))
    return path


READERS = {"checkpoint": read_pickle, "weights": read_weights, "training": lambda path: load_own(path.parent, SimpleNamespace(rank=0, size=1), {"ranks": 1})}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_tensors_without_bytes_are_one_line(tmp_path, read):
    path = saved(tmp_path / "rank-00000-of-00001.pt", {"x": torch.arange(1000.0)})
    read(path)
    longer = b"M\xe8\x03", b"J\x00\x00\x10\x00"  # in the pickle: 1000, and a million
    refused = {
        "longer than its bytes": lambda: repacked(path, lambda name, content: content.replace(*longer) if name.endswith("pkl") else content),
        "one number many times": lambda: saved(path, {"x": [torch.zeros(1).expand(1 << 40)]}),
        "packed": lambda: repacked(saved(path, {"x": torch.zeros(1 << 20)}), packing=zipfile.ZIP_DEFLATED),
        "without storage": lambda: saved(path, {"x": torch.zeros(3, device="meta")}),
        "sparse": lambda: saved(path, {"x": torch.eye(3).to_sparse()}),
        "cut": lambda: path.write_bytes(path.read_bytes()[:-100]),
        "of the former kind, longer": lambda: path.write_bytes(saved(path, {"x": torch.arange(1000.0)}, False).read_bytes().replace(*longer)),
    }
    for kind, make in refused.items():
        make()
        with pytest.raises(BadInput, match=r"rank-00000-of-00001\.pt: ") as caught:
            read(path)
        assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value), kind


@pytest.mark.parametrize("protocol", [2, 4])
def test_pickled_arrays_are_read_without_a_word_of_torchs(tmp_path, protocol):
    (tmp_path / "w.bin").write_bytes(pickle.dumps({"model": {"x": np.ones((1, 2, 3, 4), np.float32)}, "__author__": "a"}, protocol))
    assert not is_torch_file(tmp_path / "w.bin")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_weights(tmp_path / "w.bin")["x"].shape == (1, 2, 3, 4)
