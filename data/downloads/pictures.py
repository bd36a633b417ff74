"""Pictures from a list of addresses on the web, of which many are gone (Conceptual Captions, SBU)."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from PIL import UnidentifiedImageError

from data.downloads.fetch import web_request
from data.storage.atomic import atomic_file
from data.storage.picture_files import opened_picture
from data.storage.regular_files import open_regular
from data.storage.text_files import read_lines

SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "GIF": ".gif", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif"}
MOST_BYTES = 64 << 20  # of a picture: what is longer is none
PLACEHOLDER = "photo_unavailable"  # of the picture that Flickr shows in place of one that is gone
FILES, GONE = "files.tsv", "gone.tsv"  # beside the pictures: address, tab, file; address, tab, reason


@dataclass(frozen=True)
class Fetched:
    """What came of an address: ``file``, relative to the folder of the pictures, or the ``reason`` why none came."""

    address: str
    file: str | None
    reason: str = ""


def fetch_pictures(addresses: Iterable[str], folder: Path, workers: int, timeout: float, again: bool = False) -> Iterator[Fetched]:
    """Fetch pictures into ``folder``, many at a time, and note in ``files.tsv`` what came and in ``gone.tsv`` what did not.

    A picture is called by its place in the list, ``000012/000012345.jpg``, so that the same list gives the same names. What stands
    in one of the two tables already is not fetched again.

    Args:
        addresses: the whole list; one that comes twice counts once
        workers: pictures that are fetched at a time
        timeout: seconds without a byte after which a picture counts as gone
        again: try those in ``gone.tsv`` again
    """
    known = _known(folder, again)
    rest = ((n, address) for n, address in enumerate(dict.fromkeys(addresses)) if address not in known)
    with ExitStack() as stack:
        tables = {name: stack.enter_context(open_regular(folder / name, "a", encoding="utf-8")) for name in (FILES, GONE)}
        pool = ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, cancel_futures=True)
        running: set[Future[Fetched]] = set()
        for n, address in rest:
            running.add(pool.submit(_fetch, n, address, folder, timeout))
            if len(running) >= 2 * workers:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from _note(done, tables)
        yield from _note(wait(running).done, tables)


def _known(folder: Path, again: bool) -> set[str]:
    """The addresses that the tables have; whole lines alone are read, the last one may be torn."""
    known: set[str] = set()
    for name in (FILES, GONE):
        path = folder / name
        if not path.exists():
            continue
        _drop_torn_end(path)
        lines = list(read_lines(path))
        lines = [] if name == GONE and again else [line for line in lines if line.count("\t") == 1]
        with atomic_file(path) as partial:
            partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        known |= {line.partition("\t")[0] for line in lines}
    return known


def _drop_torn_end(path: Path) -> None:
    """Cut off what stands behind the last whole line; it may end within a letter."""
    with open_regular(path) as file:
        content = file.read()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with atomic_file(path) as partial:
            partial.write_bytes(whole)


def _note(done: Iterable[Future[Fetched]], tables: dict) -> Iterator[Fetched]:
    for future in done:
        found = future.result()
        table, value = (tables[GONE], found.reason) if found.file is None else (tables[FILES], found.file)
        table.write(f"{found.address}\t{value}\n")
        table.flush()
        yield found


def _fetch(number: int, address: str, folder: Path, timeout: float) -> Fetched:
    try:
        with urllib.request.urlopen(web_request(address, {"User-Agent": "download_pictures.py"}), timeout=timeout) as answer:
            if PLACEHOLDER in answer.url:
                raise OSError("the photograph is not available any more")
            content = answer.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise OSError(f"more than {MOST_BYTES:,} bytes")
        suffix = _suffix(content)
    except (OSError, HTTPException, ValueError) as error:  # dead, slow and wrong addresses, and pages in place of pictures
        return Fetched(address, None, " ".join(str(getattr(error, "reason", None) or error or type(error).__name__).split()))
    name = f"{number // 1000:06d}/{number:09d}{suffix}"
    (folder / name).parent.mkdir(exist_ok=True)
    with atomic_file(folder / name) as partial:
        partial.write_bytes(content)
    return Fetched(address, name)


def _suffix(content: bytes) -> str:
    """What a picture's name ends in. Raises OSError for what is no picture that can be read."""
    try:
        with opened_picture(content) as picture:
            found = SUFFIXES.get(picture.format or "")
            picture.load()
    except UnidentifiedImageError as error:
        raise OSError(f"no picture: {error}") from None
    if found is None:
        raise OSError(f"no picture of a usual format: {picture.format}")
    return found
