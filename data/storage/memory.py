"""How much memory this machine has, for what would not fit: asked for all the same, the system gives it, and ends the process that uses it;
and memory that is kept for the next step of the same work."""

from __future__ import annotations

import ctypes
import os

from data.errors import BadInput


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


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of glibc's malloc.h
_KEEPING = {_TRIM_THRESHOLD: -1, _MMAP_MAX: 0}  # never give back; take all from the heap


def keep_freed_memory() -> bool:
    """Keep what this process frees, for what it asks for next.

    glibc gives large pieces back to the system at once. Where each step asks for the same again, as training does for gradients and
    activations, the system clears every page of them anew, which takes a fifteenth of a step of BERT-base in bf16 on a CPU. From now on the
    process stays as large as it once was. Whoever sets ``MALLOC_TRIM_THRESHOLD_`` or ``MALLOC_MMAP_MAX_`` is heard.

    Returns: whether it does; without glibc, or where the environment says otherwise, nothing changes.
    """
    if os.environ.keys() & {"MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_"}:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(name, value) for name, value in _KEEPING.items()])
