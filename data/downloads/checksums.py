"""The checksum of a file: the published one, or the one that was recorded when it was fetched first."""

import hashlib
from pathlib import Path

from data.errors import BadInput
from data.progress import ProgressBar
from data.storage.regular_files import open_regular
from data.storage.text_files import read_json, write_json

ALGORITHMS = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")
CHUNK = 1 << 20  # bytes


def file_digest(path: Path, algorithm: str) -> str:
    """The hex digest of a file by an algorithm of ``hashlib``, with a bar for large files."""
    found = hashlib.new(algorithm)
    with (
        open_regular(path) as file,
        ProgressBar(what=algorithm, total=path.stat().st_size, in_bytes=True) as bar,
    ):
        while chunk := file.read(CHUNK):
            found.update(chunk)
            bar.update(len(chunk))
    return found.hexdigest()


def verify_checksum(path: Path, expected: str | None, record: Path) -> str:
    """Compare a file with its published checksum, or with the one of its first download, which is recorded.

    Args:
        expected: the published checksum as ``algorithm:hexdigest``; None: there is none
        record: JSON file of the checksums of first downloads, which is written when this is the first

    Returns: what was done, to be printed

    Raises:
        BadInput: it differs; the file is put aside as ``NAME.bad``.
    """
    known = read_recorded(record)
    source = "published"
    if expected is None:
        expected, source = known.get(path.name), f"recorded in {record}"
    algorithm, _, wanted = (expected or "sha256:").partition(":")
    if algorithm not in ALGORITHMS:
        raise BadInput(f"{path}: its checksum {expected!r} is {source}; expected one of {', '.join(ALGORITHMS)}, a colon and the digits")
    found = file_digest(path, algorithm)
    if wanted and found != wanted:
        aside = path.with_name(path.name + ".bad")
        path.replace(aside)
        raise BadInput(
            f"{path}: {algorithm} is {found}, but {wanted} is {source}; the file is put aside as {aside}, fetch it again"
        )
    if wanted:
        return f"{algorithm} as {source}"
    write_json(record, known | {path.name: f"sha256:{found}"})
    return f"no published checksum; sha256 {found[:16]}... is recorded in {record}"


def read_recorded(record: Path) -> dict[str, str]:
    """The checksums of first downloads: file name → ``sha256:hexdigest``."""
    if not record.exists():
        return {}
    return read_json(record, "delete it to record the checksums anew", {str: str})
