"""Whether a tar file was read to its end: ``tarfile`` takes a damaged header for the end, and leaves out what comes behind it."""

from __future__ import annotations

import tarfile

LONGEST_END = 64 << 20  # bytes; tar fills its last record, which is 10 kB unless somebody wants larger ones


def ends_as_a_tar(archive: tarfile.TarFile) -> bool:
    """Whether there are nothing but zeros, at least a block of them and no more than fill a record, behind the last member; all members
    must have been read."""
    file = archive.fileobj
    file.seek(archive.offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or block.strip(b"\0"):
        return False
    for _ in range(0, LONGEST_END + 1, 1 << 20):
        chunk = file.read(1 << 20)
        if chunk.strip(b"\0"):
            return False
        if not chunk:
            return True
    return False
