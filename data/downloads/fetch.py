"""Fetch one file over HTTP, going on with what is there of it."""

import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException, InvalidURL
from pathlib import Path

from data.errors import BadInput, reason_of
from data.progress import ProgressBar
from data.storage.atomic import cannot_write_is_bad_input
from data.storage.regular_files import check_regular

CHUNK = 1 << 20  # bytes


def fetch_file(url: str, path: Path, size: int | None, checked: bool, retries: int, timeout: float) -> None:
    """Fetch ``url`` into ``path``, going on from ``path.part``, which stays there when this fails.

    Args:
        size: bytes of the file where its source names them
        checked: the caller compares the result with a checksum, so that a part which may be of another version of the
            file may be gone on with
        retries: further tries of a connection that breaks or stalls; each goes on where the last one stopped
        timeout: seconds without a byte after which a connection counts as broken

    Raises:
        BadInput: the server says no, or the connection breaks more than ``retries`` times in a row without progress; the file has
            another size than its source names, and no checksum says that it is right.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{path.parent}: cannot be made: {error.strerror}; give another --out") from None
    tries = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _fetch_rest(url, part, size, checked, timeout)
            if not checked:
                _check_size(url, part, size)
            part.rename(path)
            return
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):  # those two say: later
                raise BadInput(
                    f"{url}: the server says {error.code} {error.reason}; its page may name another address"
                ) from None
            reason = f"the server says {error.code} {error.reason}"
        except BadInput:  # of the disk
            raise
        except (ValueError, InvalidURL) as error:
            raise BadInput(f"{url}: not an address that can be fetched ({reason_of(error)})") from None
        except (OSError, HTTPException) as error:  # URLError, timeouts and broken connections
            reason = str(getattr(error, "reason", None) or error or type(error).__name__)
        tries = 0 if part.exists() and part.stat().st_size > before else tries + 1
        if tries > retries:
            raise BadInput(f"{url}: {reason}; the same command goes on with what is in {part}")
        time.sleep(min(2 ** (tries - 1), 30) * (tries > 0))


def _fetch_rest(url: str, part: Path, size: int | None, checked: bool, timeout: float) -> None:
    """One connection: the bytes that ``part`` lacks. Raises OSError or HTTPException when it ends too early."""
    tag = part.with_name(part.name + ".etag")  # or its date: goes on only with the very same file
    check_regular(part)
    check_regular(tag)
    have = part.stat().st_size if part.exists() else 0
    version = _noted_version(tag)
    if version is None and not checked:
        have = 0
    headers = {"User-Agent": "download.py"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if version is not None:
            headers["If-Range"] = version
    try:
        answer = urllib.request.urlopen(web_request(url, headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if error.code == 416 and total == str(have):  # all of it was there
            tag.unlink(missing_ok=True)
            return
        if error.code == 416:
            part.unlink(missing_ok=True)
            raise OSError("what was fetched before does not fit the file; it is fetched anew") from None
        raise
    with answer:
        if answer.status != 206:  # the whole file: the server knows no ranges, or the file is another one
            have = 0
        elif (begins := re.match(r"bytes (\d+)-", answer.headers.get("Content-Range") or "")) and int(begins[1]) != have:
            part.unlink(missing_ok=True)
            raise OSError(f"asked for what begins at byte {have:,}, it sends what begins at {int(begins[1]):,}; the file is fetched anew")
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length and length.isdecimal() else size
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        with (
            cannot_write_is_bad_input(part),
            open(part, "r+b" if have else "wb") as file,
            ProgressBar(what=part.stem, total=total, initial=have, in_bytes=True) as bar,
        ):
            if version:
                tag.write_text(version, encoding="ascii", errors="replace")
            elif not have:
                tag.unlink(missing_ok=True)
            file.seek(have)
            while chunk := answer.read1(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    found = part.stat().st_size
    if total is not None and found < total:
        raise OSError(f"the connection ended after {found:,} of {total:,} bytes")
    tag.unlink(missing_ok=True)


def _check_size(url: str, part: Path, size: int | None) -> None:
    """Refuse, and delete, a file of another size than its source names."""
    found = part.stat().st_size
    if size is not None and found != size:
        part.unlink()
        raise BadInput(f"{url}: {found:,} bytes came, its source names {size:,}; it may be another file now: correct its bytes there, or its url")


def web_request(url: str, headers: Mapping[str, str]) -> urllib.request.Request:
    """What asks a web server for an address. Raises ValueError for one that is none: a file of this machine may be a pipe."""
    if not url.lower().startswith(("http://", "https://")):
        raise ValueError("it begins with neither http:// nor https://")
    return urllib.request.Request(url, headers=dict(headers))


def _noted_version(tag: Path) -> str | None:
    """Which version of a file its part is of; None where nothing says so, or no server could have."""
    try:
        version = tag.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError):
        return None
    return version if version.isprintable() and version else None
