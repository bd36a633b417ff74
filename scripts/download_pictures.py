#!/usr/bin/env python
"""Fetch the pictures of a list of captions and addresses: Conceptual Captions, SBU and their like. Many are gone; what came is noted.

python scripts/download_pictures.py Train_GCC-training.tsv --out pictures/cc
python scripts/download_pictures.py sbu-captions-all.json --out pictures/sbu --workers 128
python scripts/download_pictures.py sbu-captions-all.json --out pictures/sbu --again        # what did not come

The same command again goes on. OUT/files.tsv (address, tab, file) is what scripts/build_captions.py --downloaded reads, and OUT the
folder for scripts/extract_regions.py --photos; OUT/gone.tsv says why others did not come; OUT/report.json stands there when all were tried.
"""

import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

from configs import cli
from data.annotations.records import ReadingOptions
from data.annotations.web_pairs import read_pairs
from data.downloads.pictures import FILES, GONE, fetch_pictures
from data.errors import BadInput
from data.progress import ProgressBar
from data.storage.locks import claim_output
from data.storage.text_files import write_json

REPORT = "report.json"  # the last thing that is written


@dataclass
class Options:
    """Fetch the pictures of a list of captions and addresses.

    Args:
        list: table or JSON of captions and addresses, as scripts/build_captions.py --format pairs reads it
        out: folder to write
        workers: pictures that are fetched at a time
        timeout: seconds without a byte after which a picture counts as gone
        again: try once more what did not come
    """

    list: str
    out: str
    workers: int = 64
    timeout: float = 20
    again: bool = False

    def __post_init__(self):
        if self.workers < 1 or self.timeout <= 0:
            raise BadInput(f"workers {self.workers} must be at least 1, and timeout {self.timeout} above 0")


def read_addresses(path: str) -> list[str]:
    """The addresses of a list of pairs, in its order. Raises BadInput where it has none, or cannot be read."""
    found: list[str] = []
    settings = replace(ReadingOptions(), downloaded={}, on_missing_picture=found.append, on_bad_record=lambda *_: None)
    for _ in read_pairs(path, settings):
        pass
    if not found:
        raise BadInput(f"{path}: no address of a picture in it")
    return list(dict.fromkeys(found))


def main(options: Options) -> None:
    claim_output(options.out)
    addresses, folder = read_addresses(options.list), Path(options.out)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT).unlink(missing_ok=True)  # a run that stops half-way must not look complete
    came: Counter[bool] = Counter()
    with ProgressBar(what="fetching", total=len(addresses), unit="pictures") as bar:
        for found in fetch_pictures(addresses, folder, options.workers, options.timeout, options.again):
            came[found.file is not None] += 1
            bar.update()
            bar.set_postfix(gone=came[False])
    before = len(addresses) - came.total()
    print(f"{len(addresses):,} addresses: {came[True]:,} pictures came, {came[False]:,} did not" + f", {before:,} were done before" * bool(before))
    write_json(folder / REPORT, {"addresses": len(addresses), "came": came[True], "gone": came[False], "before": before})
    print(f"{folder / FILES}: what is here; {folder / GONE}: why others are not")


if __name__ == "__main__":
    cli.run(main, Options, positional=("list",))
