"""Whether the members of a zip archive are what was put into it, by its own checksums: torch reads its files without looking at
them, and numpy those of the arrays that it is asked for."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO


def zip_damage(file: str | Path | IO[bytes]) -> str | None:
    """What is wrong with an archive; None where all is well, or where the file is no zip archive.

    One whose checksums are all zero was written without any (``torch.serialization.set_crc32_options``) and is taken as it is.
    """
    try:
        if not zipfile.is_zipfile(file):
            return None
        with zipfile.ZipFile(file) as archive:
            has_checksums = any(member.CRC for member in archive.infolist())
            bad = archive.testzip() if has_checksums else None
    except Exception as error:  # whatever zipfile and zlib raise on damaged bytes
        return f"the archive's directory is damaged ({error})"
    finally:
        if not isinstance(file, str | Path):
            file.seek(0)
    return None if bad is None else f"{bad} has another checksum than was written"
