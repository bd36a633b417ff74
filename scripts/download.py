#!/usr/bin/env python
"""Fetch a public source, or say what to request by hand.

python scripts/download.py                       # what there is
python scripts/download.py karpathy              # into data_sets/karpathy
python scripts/download.py coco-captions --out /data/coco
python scripts/download.py flickr30k             # says what to do

The same command again goes on with a file that was fetched in part. The sources are in configs/downloads.yaml. Where a machine
reaches a server of your own alone, copy that file, put the server's addresses into it (and leave out bytes and checksums of what is
repacked), and name it in the environment: export LIGHTNINGDOT_DOWNLOADS=my/downloads.yaml
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

from configs import cli
from data.downloads.archives import unpack_archive
from data.downloads.checksums import verify_checksum
from data.downloads.fetch import fetch_file
from data.errors import BadInput
from data.storage.locks import claim_output
from data.storage.text_files import read_yaml

ROOT = Path(__file__).resolve().parents[1]
SOURCES = "LIGHTNINGDOT_DOWNLOADS"  # in the environment: another file of sources
FILE_OF_SOURCES = {
    str: {
        "title": str, "licence?": str, "page?": str, "by_hand?": [str], "then?": str,
        "files?": [{"url": str, "name?": str, "bytes?": int, "checksum?": str, "unpack?": bool}],
    }
}  # fmt: skip
RECORD = "checksums.json"  # beside the files: checksums of first downloads


@dataclass
class Options:
    """Fetch a public source with checksum, resume and progress, or say exactly what to request by hand.

    Args:
        name: of the source; none: list them
        out: folder to write; default is data_sets/NAME
        sources: YAML file of sources; none: the one that LIGHTNINGDOT_DOWNLOADS in the environment names, else configs/downloads.yaml
        retries: further tries of a file whose connection breaks or stalls; each goes on where the last one stopped
        timeout: seconds without a byte after which a connection counts as broken
        unpack: unpack archives
    """

    name: str | None = None
    out: str | None = None
    sources: str | None = None
    retries: int = 5
    timeout: float = 60
    unpack: bool = True

    def __post_init__(self):
        if self.retries < 0 or self.timeout <= 0:
            raise BadInput(f"retries {self.retries} must be at least 0, and timeout {self.timeout} above 0")


def read_sources(path: str) -> dict[str, dict]:
    """The sources of configs/downloads.yaml: name → what to fetch, and what to do by hand."""
    return read_yaml(path, "give a file such as configs/downloads.yaml", FILE_OF_SOURCES)


def name_of(file: dict, source_file: str) -> str:
    """What a file is called in the folder: as its source says, else as its address ends.

    Raises:
        BadInput: it leads elsewhere, or to the folder itself, or is what checksums are kept under.
    """
    try:
        name = file.get("name") or PurePosixPath(urlsplit(file["url"]).path).name
    except ValueError as error:
        raise BadInput(f"{source_file}: {file['url']}: not an address that can be fetched ({error})") from None
    if name in ("", ".", "..", RECORD) or "/" in name:
        raise BadInput(f"{source_file}: {name!r} of {file['url']} is no name of a file in the folder; give it a name without folders")
    return name


def main(options: Options) -> None:
    source_file = options.sources or os.environ.get(SOURCES) or str(ROOT / "configs/downloads.yaml")
    sources = read_sources(source_file)
    if options.name is None:
        for name, source in sources.items():
            print(f"{name:22} {source['title']}{'' if source.get('files') else ' (by hand)'}")
        return
    if options.name not in sources:
        raise BadInput(f"no source {options.name}; there are {', '.join(sources)}")
    source = sources[options.name]
    folder = Path(options.out or Path("data_sets", options.name))
    if source.get("files"):
        claim_output(folder)
    print(f"{source['title']}", flush=True)
    print(f"licence: {source.get('licence', 'not named')}\npage:    {source.get('page', 'not named')}", flush=True)
    for file in source.get("files", []):
        path = folder / name_of(file, source_file)
        if not path.exists():
            fetch_file(file["url"], path, file.get("bytes"), "checksum" in file, options.retries, options.timeout)
        print(f"{path}: {path.stat().st_size:,} bytes, {verify_checksum(path, file.get('checksum'), folder / RECORD)}")
        if options.unpack and file.get("unpack"):
            count = unpack_archive(path, folder)
            print(f"{path}: " + (f"{count:,} files unpacked" if count else "was unpacked before"))
    steps = [step.replace("{folder}", str(folder)) for step in source.get("by_hand", [])]
    if steps:
        print("to be done by hand:\n" + "\n".join(f"  {n}. {step}" for n, step in enumerate(steps, 1)))
    if source.get("then"):
        print(f"then:    {source['then'].replace('{folder}', str(folder))}")


if __name__ == "__main__":
    cli.run(main, Options, positional=("name",))
