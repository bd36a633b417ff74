#!/usr/bin/env python
"""Fetch a public source, or say what to request by hand.

python scripts/download.py                       # what there is
python scripts/download.py karpathy              # into data_sets/karpathy
python scripts/download.py coco-captions --out /data/coco
python scripts/download.py flickr30k             # says what to do

The same command again goes on with a file that was fetched in part. The sources are in configs/downloads.yaml.
"""

import hashlib
import json
import shutil
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

import yaml
from tqdm import tqdm

from configs import cli
from data.errors import BadInput
from data.storage.atomic import atomic_file, atomic_folder, cannot_write_is_bad_input

ROOT = Path(__file__).resolve().parents[1]
CHUNK = 1 << 20  # bytes
LOCK = "checksums.json"


@dataclass
class Options:
    """Fetch a public source with checksum, resume and progress, or say exactly what to request by hand.

    Args:
        name: of the source; none: list them
        out: folder to write; default is data_sets/NAME
        sources: YAML file of sources
        retries: further tries of a file whose connection breaks or stalls; each goes on where the last one stopped
        timeout: seconds without a byte after which a connection counts as broken
        unpack: unpack archives
    """

    name: str | None = None
    out: str | None = None
    sources: str = str(ROOT / "configs/downloads.yaml")
    retries: int = 5
    timeout: float = 60
    unpack: bool = True

    def __post_init__(self):
        if self.retries < 0 or self.timeout <= 0:
            raise BadInput(f"retries {self.retries} must be at least 0, and timeout {self.timeout} above 0")


# ---- one file --------------------------------------------------------------------------------------------------------


def fetch(url: str, path: Path, size: int | None, checked: bool, retries: int, timeout: float) -> None:
    """Fetch `url` into `path`, going on from ``path.part``, which stays there when this fails.

    A part that may be of another version of the file is used only when the result is `checked`.

    Raises:
        BadInput: the server says no, or the connection breaks more than `retries` times in a row without progress.
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
            _continue(url, part, size, checked, timeout)
            part.rename(path)
            return
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):  # those two say: later
                raise BadInput(
                    f"{url}: the server says {error.code} {error.reason}; its page may name another address"
                ) from None
            reason = f"the server says {error.code} {error.reason}"
        except (OSError, HTTPException) as error:  # URLError, timeouts and broken connections
            reason = str(getattr(error, "reason", None) or error or type(error).__name__)
        tries = 0 if part.exists() and part.stat().st_size > before else tries + 1
        if tries > retries:
            raise BadInput(f"{url}: {reason}; the same command goes on with what is in {part}")
        time.sleep(min(2 ** (tries - 1), 30) * (tries > 0))


def _continue(url: str, part: Path, size: int | None, checked: bool, timeout: float) -> None:
    """One connection: the bytes that `part` lacks. Raises OSError or HTTPException when it ends too early."""
    have = part.stat().st_size if part.exists() else 0
    tag = part.with_name(part.name + ".etag")  # or its date: goes on only with the very same file
    if not tag.exists() and not checked:
        have = 0
    headers = {"User-Agent": "download.py"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if tag.exists():
            headers["If-Range"] = tag.read_text()
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
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
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else size
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        with (
            cannot_write_is_bad_input(part),
            open(part, "r+b" if have else "wb") as file,
            tqdm(total=total, initial=have, unit="B", unit_scale=True, unit_divisor=1024, desc=part.stem) as bar,
        ):
            if version:
                tag.write_text(version)
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


def digest(path: Path, algorithm: str) -> str:
    """Hex digest of a file, with a bar for large ones."""
    found = hashlib.new(algorithm)
    with (
        open(path, "rb") as file,
        tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=algorithm, delay=2) as bar,
    ):
        while chunk := file.read(CHUNK):
            found.update(chunk)
            bar.update(len(chunk))
    return found.hexdigest()


def verify(path: Path, expected: str | None, lock: Path) -> str:
    """Compare a file with its published checksum, or with the one of its first download, which is recorded.

    Returns: what was done, to be printed

    Raises:
        BadInput: it differs; the file is put aside as ``NAME.bad``.
    """
    known = read_lock(lock)
    source = "published"
    if expected is None:
        expected, source = known.get(path.name), f"recorded in {lock}"
    algorithm, _, wanted = (expected or "sha256:").partition(":")
    found = digest(path, algorithm)
    if wanted and found != wanted:
        aside = path.with_name(path.name + ".bad")
        path.replace(aside)
        raise BadInput(
            f"{path}: {algorithm} is {found}, but {wanted} is {source}; the file is put aside as {aside}, fetch it again"
        )
    if wanted:
        return f"{algorithm} as {source}"
    with atomic_file(lock) as partial:
        partial.write_text(json.dumps(known | {path.name: f"sha256:{found}"}, indent=1) + "\n", encoding="utf-8")
    return f"no published checksum; sha256 {found[:16]}... is recorded in {lock}"


def read_lock(lock: Path) -> dict[str, str]:
    """File name -> checksum of its first download."""
    if not lock.exists():
        return {}
    try:
        known = json.loads(lock.read_text(encoding="utf-8"))
        if not isinstance(known, dict) or not all(isinstance(value, str) for value in known.values()):
            raise ValueError(str(known)[:60])
    except (OSError, ValueError) as error:
        raise BadInput(f"{lock}: expected name -> checksum in JSON ({error}); delete it to record them anew") from None
    return known


def unpack(path: Path, folder: Path) -> int:
    """Unpack a zip or tar archive → number of its members; a file that marks it done stays in `folder`.

    Raises:
        BadInput: a damaged archive, or one that would write outside of `folder`.
    """
    done = folder / f".{path.name}.unpacked"
    if done.exists() and done.stat().st_mtime >= path.stat().st_mtime:
        return 0
    content = folder / f".{path.name}.content"
    shutil.rmtree(content, ignore_errors=True)  # of a run that was killed
    try:
        with atomic_folder(content) as partial:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as archive:  # extract() itself keeps to the folder
                    names = archive.namelist()
                    for name in tqdm(names, f"unpacking {path.name}", unit="file"):
                        archive.extract(name, partial)
            else:
                with tarfile.open(path) as archive:
                    names = archive.getnames()
                    for member in tqdm(archive, f"unpacking {path.name}", len(names), unit="file"):
                        archive.extract(member, partial, filter="data")
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, ValueError, OSError) as error:
        raise BadInput(f"{path}: cannot be unpacked ({error}); delete it and fetch it again") from None
    shutil.copytree(content, folder, dirs_exist_ok=True, copy_function=lambda old, new: Path(old).replace(new))
    shutil.rmtree(content)
    done.touch()
    return len(names)


# ---- a source --------------------------------------------------------------------------------------------------------


def read_sources(path: str) -> dict[str, dict]:
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise BadInput(f"{path}: cannot be read as YAML ({error})") from None


def main(options: Options) -> None:
    sources = read_sources(options.sources)
    if options.name is None:
        for name, source in sources.items():
            print(f"{name:22} {source['title']}{'' if source.get('files') else ' (by hand)'}")
        return
    if options.name not in sources:
        raise BadInput(f"no source {options.name}; there are {', '.join(sources)}")
    source = sources[options.name]
    folder = Path(options.out or Path("data_sets", options.name))
    print(f"{source['title']}", flush=True)
    print(f"licence: {source.get('licence', 'not named')}\npage:    {source.get('page', 'not named')}", flush=True)
    for file in source.get("files", []):
        path = folder / (file.get("name") or PurePosixPath(urlsplit(file["url"]).path).name)
        if not path.exists():
            fetch(file["url"], path, file.get("bytes"), "checksum" in file, options.retries, options.timeout)
        print(f"{path}: {path.stat().st_size:,} bytes, {verify(path, file.get('checksum'), folder / LOCK)}")
        if options.unpack and file.get("unpack"):
            count = unpack(path, folder)
            print(f"{path}: " + (f"{count:,} files unpacked" if count else "was unpacked before"))
    steps = [step.replace("{folder}", str(folder)) for step in source.get("by_hand", [])]
    if steps:
        print("to be done by hand:\n" + "\n".join(f"  {n}. {step}" for n, step in enumerate(steps, 1)))
    if source.get("then"):
        print(f"then:    {source['then'].replace('{folder}', str(folder))}")


if __name__ == "__main__":
    cli.run(main, Options, positional=("name",))
