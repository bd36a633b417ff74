"""Tar files of others: read as ``tarfile`` does, but never back, and with no more memory than a file warrants; and whether one was read to its
end, since ``tarfile`` takes a damaged header for the end, and leaves out what comes behind it."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from data.storage.inflating import most_inflated

LONGEST_END = 64 << 20  # bytes; tar fills its last record, which is 10 kB unless somebody wants larger ones
_ABOUT = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_MOST_ABOUT = 1 << 20  # bytes that say something of a member, its long name for instance, and are read at once


def open_tar(path: str | Path, mode: str = "r") -> tarfile.TarFile:
    """``tarfile.open`` for reading. A sparse member has a true ``sparse``, and not always the places of its holes.

    Raises:
        tarfile.ReadError: here, or where members are gone through: no tar, or one that leads back, or that becomes more than it warrants.
    """
    return tarfile.open(path, mode, tarinfo=_Member)


class _Member(tarfile.TarInfo):
    """A member whose header is looked at before it is followed. What is overridden is tarfile's own, by its names since Python 3.0."""

    def _proc_member(self, archive):
        most = most_inflated(os.path.getsize(archive.name))
        if self.size < 0 or (self.type in _ABOUT and self.size > _MOST_ABOUT) or self.offset > most:
            raise tarfile.ReadError(f"the header at byte {self.offset:,} tells of {self.size:,} bytes")
        if self.type == tarfile.GNUTYPE_SPARSE and self._sparse_structs[1]:  # whose places are read before anything is told of it
            raise tarfile.ReadError("it has a sparse file; pack it without --sparse")
        found = super()._proc_member(archive)
        if found.size < 0 or archive.offset <= self.offset:  # as its settings say it
            raise tarfile.ReadError(f"the header at byte {self.offset:,} leads back to byte {archive.offset:,}")
        return found

    def _proc_gnusparse_10(self, member, *_):
        member.sparse = [(0, 0)]  # the true ones are any number, and nobody asks


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
