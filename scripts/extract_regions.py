#!/usr/bin/env python
"""Photographs → image DB: region boxes, features and soft labels in the UNITER layout.

python scripts/extract_regions.py --photos photos --out db/regions                                # every jpg and png
python scripts/extract_regions.py --photos photos --out db/regions --list train.txt --workers 8   # those in a list
python scripts/extract_regions.py --photos photos --out db/regions --feature-dim 512
"""

import dataclasses
import json
import multiprocessing
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from configs import cli
from data.atomic import atomic_file
from data.errors import BadInput
from data.regions import Regions, RegionWriter
from model import detector

SUFFIXES = (".jpg", ".jpeg", ".png")
PHOTOS_PER_JOB = 16


@dataclass
class Options:
    """Extract region features of photographs into an image DB; a photo's key is its name without suffix, plus .npz.

    Args:
        photos: folder of photographs (jpg, png), searched with its subfolders
        out: folder of the image DB to write; report.json in it lists the photos that could not be read
        list: file that names the photographs to use, one per line, relative to `photos`
        extractor: random-conv (frozen random network, boxes from the pixels; needs no weights)
        compressed: write compressed values: smaller, slower to read
        conf_th: confidence above which a region counts
        max_bb: most regions of a photo that readers use
        min_bb: fewest regions of a photo that readers use
        feature_dim: width of a region's feature
        num_labels: classes of the soft labels, background included; 0 for none
        size: longer side, in pixels, at which the network sees a photo; a multiple of 4
        seed: seed of the frozen weights
        workers: processes; 0 for this one only. The result does not depend on it
        overwrite: replace the database that is there
    """

    photos: str
    out: str
    list: str | None = None
    extractor: str = "random-conv"
    compressed: bool = False
    conf_th: float = 0.2
    max_bb: int = 100
    min_bb: int = 10
    feature_dim: int = 2048
    num_labels: int = 1601
    size: int = 192
    seed: int = 0
    workers: int = 2
    overwrite: bool = False


def find_photos(folder: str, listing: str | None) -> list[Path]:
    """The photographs to read, sorted (or as listed); a listed one may be missing, which is for the report.

    Raises:
        BadInput: no such folder or list, no photo in it, two photos that would have one key.
    """
    root = Path(folder)
    if not root.is_dir():
        raise BadInput(f"--photos {folder}: no such folder; give the folder that holds the photographs")
    if listing is None:
        paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    else:
        try:
            names = [line.strip() for line in Path(listing).read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(
                f"--list {listing}: cannot be read as text ({error}); give a file with a name per line"
            ) from None
        paths = [root / name for name in dict.fromkeys(names) if name]
    if not paths:
        raise BadInput(f"{listing or folder}: found no photographs, expected names ending in {', '.join(SUFFIXES)}")
    by_stem: dict[str, Path] = {}
    for path in paths:
        other = by_stem.setdefault(path.stem, path)
        if other is not path:
            raise BadInput(f"{other} and {path} would both have the key {path.stem}.npz; rename one of them")
    return paths


def read_photo(path: Path) -> Image.Image:
    """The photo as RGB, turned as its EXIF orientation says."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


_extractor = None  # of this process


def start_worker(extractor) -> None:
    """Several processes share the cores; and one thread adds in one order, so results do not depend on `workers`."""
    global _extractor
    torch.set_num_threads(1)
    _extractor = extractor


def extract(paths: list[Path]) -> list[tuple[Path, Regions | str]]:
    """Each photo's regions, or the reason why it could not be read."""
    results: dict[Path, Regions | str] = {}
    pictures: dict[Path, Image.Image] = {}
    for path in paths:
        try:
            path.stem.encode()
            pictures[path] = read_photo(path)
        except Exception as error:  # damaged files make Pillow raise almost anything; one photo never stops the rest
            results[path] = f"{type(error).__name__}: {error}"
    for (path, picture), found in zip(pictures.items(), _extractor(list(pictures.values()))):
        results[path] = to_regions(found, picture.width, picture.height)
    return [(path, results[path]) for path in paths]


def to_regions(found: detector.Detections, width: int, height: int) -> Regions:
    """What an extractor found in a picture of that many pixels → what the database stores (fp16)."""
    arrays = (found.features, detector.norm_boxes(found.boxes, width, height), found.conf, found.soft_labels)
    return Regions(*(a if a is None else a.cpu().numpy().astype(np.float16) for a in arrays))


def extract_all(extractor, paths: list[Path], workers: int) -> Iterator[tuple[Path, Regions | str]]:
    """`extract` over all photos, in their order, in `workers` processes."""
    jobs = [paths[i : i + PHOTOS_PER_JOB] for i in range(0, len(paths), PHOTOS_PER_JOB)]
    if workers == 0:
        start_worker(extractor)
        for job in jobs:
            yield from extract(job)
        return
    # Spawned, because a fork would inherit torch's threads in an undefined state.
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), multiprocessing.get_context("spawn"), start_worker, (extractor,)
    )
    try:
        waiting: deque = deque()
        for job in jobs:
            waiting.append(pool.submit(extract, job))
            if len(waiting) > 3 * workers:  # results are large: never more of them than the writer keeps up with
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise BadInput("a worker process died, perhaps out of memory; use fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def check(options: Options, writer: RegionWriter) -> None:
    """Contradictions between the settings, and with what is in the output folder, before any work."""
    if not 0 <= options.conf_th <= 1:
        raise BadInput(f"--conf-th: found {options.conf_th}, expected 0 to 1")
    if not 1 <= options.min_bb <= options.max_bb:
        raise BadInput(f"--min-bb {options.min_bb} --max-bb {options.max_bb}: expected 1 <= min-bb <= max-bb")
    if options.workers < 0:
        raise BadInput(f"--workers: found {options.workers}, expected 0 (this process only) or more")
    plain = Path(options.out, writer.folder.name.removesuffix("_compressed"))
    other = plain if options.compressed else plain.with_name(plain.name + "_compressed")
    if writer.folder.exists() and not options.overwrite:
        raise BadInput(f"{writer.folder}: exists already; give --overwrite to replace it, or another --out")
    if other.exists():  # two databases that may differ, and one file of box counts
        raise BadInput(
            f"{other}: the database exists in the other layout (--compressed); delete it or give another --out"
        )


def main(options: Options) -> None:
    writer = RegionWriter(options.out, options.conf_th, options.max_bb, options.min_bb, compressed=options.compressed)
    check(options, writer)
    paths = find_photos(options.photos, options.list)
    torch.set_num_threads(1)  # see start_worker: the extractor's calibration too
    extractor = detector.load_extractor(
        options.extractor, options.feature_dim, options.num_labels, options.size, options.seed
    )

    bad: dict[str, str] = {}
    written = regions_written = 0
    started = time.perf_counter()
    with writer:
        found = extract_all(extractor, paths, options.workers)
        for path, regions in tqdm(found, "extracting regions", len(paths), unit=" photos"):
            if isinstance(regions, str):
                bad[str(path)] = regions
                continue
            writer.add(path.stem + ".npz", regions)
            written += 1
            regions_written += len(regions)
        if not written:
            path, reason = next(iter(bad.items()))
            raise BadInput(f"{options.photos}: none of {len(bad)} photographs can be read; {path}: {reason}")
    seconds = time.perf_counter() - started

    report = {
        "photos": len(paths),
        "written": written,
        "skipped": len(bad),
        "regions_per_photo": round(regions_written / written, 2),
        "seconds": round(seconds, 2),
        "photos_per_second": round(written / seconds, 1),
        "bad_photos": bad,
        "settings": dataclasses.asdict(options),
    }
    with atomic_file(Path(options.out) / "report.json") as file:
        file.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"{written} photos, {regions_written / written:.1f} regions each, in {writer.folder}")
    if bad:
        print(f"{len(bad)} photos could not be read and were skipped; {Path(options.out) / 'report.json'} lists them")


if __name__ == "__main__":
    cli.run(main, Options)
