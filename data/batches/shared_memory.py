"""How batches come from the processes that make them: through memory that is mapped in both.

torch's own way copies each tensor into new shared memory, which the kernel fills with zeros first, and sends a file for each. Here
a batch is copied into memory that is used again and again, and copied out where it is trained on; of the pickle that
describes it the tensors are no part.

The memory has no name: nothing of it is left behind, whatever ends the processes, and it is not limited as /dev/shm is.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any

import torch
from torch import Tensor

_ALIGNED = 64  # bytes at which every tensor begins


class SharedBuffers:
    """Memory for so many batches, each of any size. To be made before the processes that share it are started.

    Args:
        count: batches that can be underway at a time
    """

    def __init__(self, count: int):
        self._files = [os.memfd_create("batch") for _ in range(count)]
        self._maps: dict[int, mmap.mmap] = {}

    def __len__(self) -> int:
        return len(self._files)

    def __getstate__(self) -> dict:
        return {"files": [DupFd(file) for file in self._files]}  # for a process that is being spawned

    def __setstate__(self, state: dict) -> None:
        self._files, self._maps = [file.detach() for file in state["files"]], {}

    def __del__(self):
        for file in getattr(self, "_files", ()):  # none where there were no more files to be had
            os.close(file)

    def memory(self, number: int, size: int) -> Tensor:
        """The first ``size`` bytes of a buffer: uint8 [size]."""
        held = self._maps.get(number)
        if held is None or len(held) < size:
            length = max(size, os.fstat(self._files[number]).st_size)
            os.ftruncate(self._files[number], length)
            held = self._maps[number] = mmap.mmap(self._files[number], length)
        return torch.frombuffer(held, dtype=torch.uint8, count=size)


@dataclass
class Packed:
    """An object whose tensors lie in a shared buffer, until the buffer is used again.

    Attributes:
        number: of the buffer
        size: bytes that are used of it
        pickled: the object, with (first byte, type, shape) for each of its tensors
    """

    number: int
    size: int
    pickled: bytes

    @classmethod
    def pack(cls, value: Any, buffers: SharedBuffers, number: int) -> Packed:
        """Copy the tensors of ``value``, which are on the host, into a buffer."""
        pickled = io.BytesIO()
        packer = _Packer(pickled, pickle.HIGHEST_PROTOCOL)
        packer.dump(value)
        if packer.size:
            memory = buffers.memory(number, packer.size)
            for start, tensor in packer.tensors:
                memory[start : start + tensor.nbytes] = tensor.contiguous().reshape(-1).view(torch.uint8)
        return cls(number, packer.size, pickled.getvalue())

    def unpack(self, buffers: SharedBuffers, pin: bool) -> Any:
        """The object with tensors of its own, whose memory is one piece; in page-locked memory when ``pin``."""
        memory = torch.empty(self.size, dtype=torch.uint8, pin_memory=pin)
        if self.size:
            memory.copy_(buffers.memory(self.number, self.size))
        return _Unpacker(io.BytesIO(self.pickled), memory).load()


class _Packer(pickle.Pickler):
    """Leaves tensors out and notes where they shall be."""

    def __init__(self, file: io.BytesIO, protocol: int):
        super().__init__(file, protocol)
        self.tensors: list[tuple[int, Tensor]] = []
        self.size = 0

    def persistent_id(self, value: Any) -> tuple | None:
        if type(value) is not Tensor:
            return None
        start, self.size = self.size, self.size + -(-value.nbytes // _ALIGNED) * _ALIGNED
        self.tensors.append((start, value))
        return start, value.dtype, tuple(value.shape)


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, memory: Tensor):
        super().__init__(file)
        self.memory = memory

    def persistent_load(self, place: tuple) -> Tensor:
        start, dtype, shape = place
        size = torch.Size(shape).numel() * dtype.itemsize
        return self.memory[start : start + size].view(dtype).view(shape)
