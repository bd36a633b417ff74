"""How much memory this machine has, for what would not fit: asked for all the same, the system gives it, and ends the process that uses it.
And that a process keeps what it will ask for again."""

from __future__ import annotations

import ctypes
import functools
import os

from data.errors import BadInput

_mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # of GNU's C library
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # its names of them in malloc.h


def machine_memory() -> int:
    """Bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def check_memory(num_bytes: int, what: str) -> None:
    """Refuse what is larger than all of it.

    Args:
        what: as the message's subject: ``weights of these sizes``

    Raises:
        BadInput: it does not fit.
    """
    if num_bytes > machine_memory():
        raise BadInput(f"{what}: {num_bytes / 2**30:,.1f} GiB, and this machine has {machine_memory() / 2**30:,.1f} of memory")


@functools.cache
def keep_freed_memory() -> None:
    """From now on this process keeps what it frees, for what it asks for next, and gives nothing back to the system.

    A step of training frees gigabytes of activations and gradients, and asks for as much in the next. A large tensor comes from
    the system otherwise, which clears each of its pages anew: 4 % of a step of BERT-base. Where another C library is used than
    GNU's, nothing changes.
    """
    if _mallopt is not None:
        _mallopt(_MMAP_MAX, 0)
        _mallopt(_TRIM_THRESHOLD, -1)  # never
