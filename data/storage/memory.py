"""How much memory this machine has, for what would not fit: asked for all the same, the system gives it, and ends the process that uses it."""

from __future__ import annotations

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
