"""Whether a tar file was read to its end: ``tarfile`` takes a damaged header for the end, and leaves out what comes behind it."""

from __future__ import annotations

import tarfile


def ends_as_a_tar(archive: tarfile.TarFile) -> bool:
    """Whether there are nothing but zeros, at least a block of them, behind the last member; all members must have been read."""
    file = archive.fileobj
    file.seek(archive.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or block.strip(b"\0"):
        return False
    return not any(chunk.strip(b"\0") for chunk in iter(lambda: file.read(1 << 20), b""))
