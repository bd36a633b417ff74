"""Files of ``torch.save``: tensors, and plain values around them, with nothing unpickled and no more memory taken than they have bytes.

A zip archive's tensors are mapped into memory: torch copies a packed member whatever it becomes, and older versions take a tensor's length
from the pickle without looking how many bytes are there.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from data.storage.regular_files import check_regular, open_regular
from data.storage.zip_damage import zip_damage

_BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # what torch.save wrote first, before it wrote zip archives


def is_torch_file(path: str | Path) -> bool:
    """Whether a file begins as ``torch.save`` lets it begin. Raises OSError when it cannot be read."""
    with open_regular(path) as file:
        return zipfile.is_zipfile(file) or _begins_as_before(file)


def _begins_as_before(file: IO[bytes]) -> bool:
    file.seek(0)
    return file.read(len(_BEFORE_ZIP)) == _BEFORE_ZIP


def load_torch(source: str | Path | IO[bytes]) -> Any:
    """What a file holds, tensors on the CPU; those of a zip archive that is a file are mapped: they stay on the disk until they are used.

    Raises:
        BadInput: it is a pipe or a device.
        Exception: whatever torch raises on damaged bytes and on other objects (`data.errors.reason_of` says it in a line); ValueError when a
            tensor has more numbers than bytes are there, or a member of a zip archive another checksum than was written.
    """
    is_file = isinstance(source, str | Path)
    if is_file:
        check_regular(source)
    if (reason := zip_damage(source)) is not None:  # torch does not compare the archive's checksums
        raise ValueError(reason)
    is_zip = zipfile.is_zipfile(source)
    if is_zip:
        with zipfile.ZipFile(source) as archive:
            members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise ValueError("its members are packed, and torch packs none")
    if not is_file:
        source.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's on pickles of another protocol speaks to its developers
        content = torch.load(source, map_location="cpu", weights_only=True, mmap=is_zip and is_file)
    _check_tensors(content)
    return content


def _check_tensors(content: Any) -> None:
    """Refuse tensors that have no bytes of their own, or fewer than their shape says."""
    left, seen = [content], set()
    while left:
        value = left.pop()
        if isinstance(value, torch.Tensor):
            plain = value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
            if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError(f"a tensor of shape {tuple(value.shape)} has not so many numbers in the file")
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left.extend(value.values() if isinstance(value, dict) else value)
