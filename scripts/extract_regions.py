#!/usr/bin/env python
"""Photographs, or features that somebody has extracted → image DB: boxes, features and soft labels in the UNITER layout.

python scripts/extract_regions.py --photos photos --out db/regions                                # every photo of a folder
python scripts/extract_regions.py --photos photos.tar --out db/regions --list train.txt --workers 8    # those in a list
python scripts/extract_regions.py --photos photos --out db/regions --extractor butd --weights frcnn-vg-finetuned
python scripts/extract_regions.py --photos photos --out db/regions --extractor hf:facebook/dinov2-base
python scripts/extract_regions.py --photos train2014_obj36.tsv --out db/regions --extractor precomputed
torchrun --nproc-per-node 8 scripts/extract_regions.py --photos photos --out db/regions --extractor butd   # 8 GPUs, then
python scripts/extract_regions.py --photos photos --out db/regions --extractor butd --merge                # their parts

A run that was stopped goes on when the same command is given again.
"""

import dataclasses
import itertools
import multiprocessing
import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

import numpy as np
import torch
from tqdm import tqdm

from configs import cli
from data.errors import BadInput, CannotWrite
from data.regions.db import BoxOptions, Regions, read_keys, stored_arrays
from data.regions.photos import Photo, find_photos, read_photo
from data.regions.precomputed import read_precomputed
from data.regions.writer import RegionWriter
from data.storage.lmdb_env import Records
from data.storage.text_files import read_json, write_json
from model.extractors import detector
from model.extractors.box_ops import norm_boxes
from model.precision import choose_device

PHOTOS_PER_JOB = 4
NOT_IN_RECORDS = ("out", "shard", "workers", "device", "overwrite", "merge")  # settings on which no stored byte depends
OF_THE_MACHINE = re.compile("out of memory|can't allocate|CUDA|cuDNN|CUBLAS|HIP")  # errors that the next photo has, too
Found = Iterator[tuple[str, str, Regions | str]]  # name for reports, key, regions or why there are none


class NothingWritten(BadInput):
    """No photo of the run can be read."""


@dataclass
class Options:
    """Extract region features of photographs into an image DB; a photo's key is its name without suffix, plus .npz.

    Args:
        photos: folder of photographs, searched with its subfolders, or uncompressed tar file; with precomputed the features:
            TSV or HDF5 file, or folder of .npz, .npy or .h5 files
        out: folder of the image DB to write; report.json in it lists the photos that could not be read
        list: file that names the photographs to use, one per line, relative to `photos`
        extractor: random-conv (frozen random network, boxes from the pixels; needs no weights), butd (bottom-up attention's
            Faster R-CNN), torchvision:NAME (its detectors), hf:NAME (patches of a Hugging Face vision backbone) or
            precomputed (features that are there already)
        weights: butd: folder of config.yaml and pytorch_model.bin, or a Hugging Face name; torchvision: file of weights
        image_key: image-database key of a photo; {stem} is its name without extension, {lower} the same in lower case
        compressed: write compressed values: smaller, slower to read
        conf_th: confidence above which a region counts
        max_bb: most regions of a photo that readers use, and a detector keeps
        min_bb: fewest regions of a photo that readers use, and a detector keeps
        feature_dim: random-conv: width of a region's feature
        num_labels: random-conv and precomputed: classes of the soft labels, background included; 0 for none
        size: random-conv: longer side, in pixels, at which the network sees a photo; a multiple of 4
        seed: random-conv: seed of the frozen weights
        size_order: precomputed: wh or hw, the order of width and height in a TSV of 6 columns
        sizes: precomputed: JSON of image sizes, {name: [width, height]} or COCO's, for files that do not say them
        shard: I/N takes every N-th photo from the I-th (1 to N) and writes part-I-of-N below `out`; torchrun's ranks do by
            themselves
        merge: join the parts that all shards have written into one database
        workers: processes; 0 for this one only. The result does not depend on it
        device: auto, cpu, cuda or cuda:N; random-conv always runs on the CPU
        overwrite: replace the database that is there
    """

    photos: str
    out: str
    list: str | None = None
    extractor: str = "random-conv"
    weights: str | None = None
    image_key: str = "{stem}.npz"
    compressed: bool = False
    conf_th: float = 0.2
    max_bb: int = 100
    min_bb: int = 10
    feature_dim: int = 2048
    num_labels: int = 1601
    size: int = 192
    seed: int = 0
    size_order: str = "wh"
    sizes: str | None = None
    shard: str | None = None
    merge: bool = False
    workers: int = 2
    device: str = "auto"
    overwrite: bool = False


# ---- in a worker -----------------------------------------------------------------------------------------------------

_extractor = None  # of this process


def start_worker(extractor, device: torch.device) -> None:
    """Several processes share the cores; and one thread adds in one order, so results do not depend on `workers`."""
    global _extractor
    torch.set_num_threads(1)
    _extractor = extractor if device.type == "cpu" else extractor.to(device)


def extract(photos: list[Photo]) -> list[tuple[str, str, Regions | str]]:
    """Each photo's regions, or the reason why it could not be read."""
    results = []
    for photo in photos:
        try:
            photo.key.encode()
            picture = read_photo(photo)
        except Exception as error:  # damaged files make Pillow raise almost anything; one photo never stops the rest
            results.append((photo.name, photo.key, f"{type(error).__name__}: {error}"))
            continue
        try:
            found = to_regions(_extractor([picture])[0], picture.width, picture.height)
        except (RuntimeError, ValueError) as error:  # of a size or content that its network cannot take
            if isinstance(error, BadInput) or OF_THE_MACHINE.search(str(error)):
                raise
            results.append((photo.name, photo.key, f"{type(error).__name__}: {error}"))
            continue
        wrong = "no region was found" if len(found) == 0 else "features are beyond half precision"
        sound = len(found) > 0 and np.isfinite(found.features).all()
        results.append((photo.name, photo.key, found if sound else wrong))
    return results


def to_regions(found: detector.Detections, width: int, height: int) -> Regions:
    """What an extractor found in a picture of that many pixels → what the database stores (fp16)."""
    arrays = (found.features, norm_boxes(found.boxes, width, height), found.conf, found.soft_labels)
    with np.errstate(over="ignore"):
        return Regions(*(a if a is None else a.cpu().numpy().astype(np.float16) for a in arrays))


# ---- all photos ------------------------------------------------------------------------------------------------------


def open_images(options: Options) -> tuple[int | None, Iterator]:
    """How many images there are (None where only reading tells), and of each name for reports, key, and what is read."""
    if options.extractor == "precomputed":
        return read_precomputed(
            options.photos, options.image_key, options.num_labels, options.size_order, options.sizes, options.max_bb
        )
    photos = find_photos(options.photos, options.list, options.image_key)
    return len(photos), ((photo.name, photo.key, photo) for photo in photos)


def choose(images: Iterable, shard: tuple[int, int], done: Mapping, keys: dict, bad: dict[str, str]) -> Iterator:
    """Those of this shard that are not stored yet (`done`); its keys are put into `keys`.

    A file that was itself continued may hold a torn record, and later the same image again: that one counts.
    """
    for name, key, source in itertools.islice(images, shard[0] - 1, None, shard[1]):
        if key in keys and key in done:
            bad[name] = f"another image has the key {key}, too"
        keys[key] = None
        if key not in done:
            yield name, key, source


def extract_all(extractor, photos: list[Photo], workers: int, device: torch.device) -> Found:
    """`extract` over all photos, in their order, in `workers` processes."""
    jobs = [photos[i : i + PHOTOS_PER_JOB] for i in range(0, len(photos), PHOTOS_PER_JOB)]
    if workers == 0 or not jobs:
        start_worker(extractor, device)
        for job in jobs:
            yield from extract(job)
        return
    # Spawned, because a fork would inherit torch's threads in an undefined state.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(jobs)), spawn, start_worker, (extractor, device))
    try:
        waiting: deque = deque()
        for job in jobs:
            waiting.append(pool.submit(extract, job))
            if len(waiting) > 3 * workers:  # results are large: never more of them than the writer keeps up with
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        raise BadInput(
            "a worker process died, perhaps out of memory; use fewer --workers. What is written stays, and the same command "
            "goes on from there"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def read_all(images: Iterable) -> Found:
    """Precomputed features; a bad image's reason instead of its regions."""
    for name, key, read in images:
        try:
            key.encode()
            yield name, key, read()
        except Exception as error:  # numpy, zip and HDF5 raise almost anything on damaged files
            yield name, key, f"{type(error).__name__}: {error}"


def check(options: Options, writer: RegionWriter) -> None:
    """Contradictions between the settings, and with what is in the output folder, before any work."""
    if not 0 <= options.conf_th <= 1:
        raise BadInput(f"--conf-th: found {options.conf_th}, expected 0 to 1")
    if not 1 <= options.min_bb <= options.max_bb:
        raise BadInput(f"--min-bb {options.min_bb} --max-bb {options.max_bb}: expected 1 <= min-bb <= max-bb")
    if options.workers < 0:
        raise BadInput(f"--workers: found {options.workers}, expected 0 (this process only) or more")
    if options.size_order not in ("wh", "hw"):
        raise BadInput(f"--size-order: found {options.size_order}, expected wh or hw")
    if options.extractor == "precomputed":
        if options.num_labels < 0 or options.num_labels == 1:
            raise BadInput(f"--num-labels: found {options.num_labels}, expected 0 (none) or at least 2 (with background)")
        for name in ("list", "weights"):
            if getattr(options, name) is not None:
                raise BadInput(f"--{name}: precomputed takes every image of --photos, without a network; leave it out")
    elif options.sizes is not None:
        raise BadInput(f"--sizes {options.sizes}: only precomputed features need them; leave it out")
    plain = Path(writer.folder.parent, writer.folder.name.removesuffix("_compressed"))
    other = plain if options.compressed else plain.with_name(plain.name + "_compressed")
    if writer.folder.exists() and not options.overwrite:
        raise BadInput(f"{writer.folder}: exists already; give --overwrite to replace it, or another --out")
    if other.exists():  # two databases that may differ, and one file of box counts
        raise BadInput(
            f"{other}: the database exists in the other layout (--compressed); delete it or give another --out"
        )


def read_shard(options: Options) -> tuple[int, int]:
    """(I, N) of --shard or of torchrun's environment; (1, 1) for all photos."""
    shard = options.shard
    if shard is None and int(os.environ.get("WORLD_SIZE", 1)) > 1 and not options.merge:
        shard = f"{int(os.environ['RANK']) + 1}/{os.environ['WORLD_SIZE']}"
    if shard is None:
        return 1, 1
    index, slash, count = shard.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise BadInput(f"--shard: found {shard}, expected I/N with I from 1 to N, such as 1/4")
    if options.merge:
        raise BadInput(f"--shard {shard} --merge: merging takes all parts; leave --shard out")
    return int(index), int(count)


def read_report(part: Path) -> dict | None:
    """The report of a finished shard."""
    path = part / "report.json"
    return read_json(path) if path.is_file() else None


def differing(report: dict, options: Options) -> list[str]:
    """Names of settings on which stored bytes depend and that were others."""
    return [name for name, value in record_settings(options).items() if report["settings"].get(name) != value]


def find_parts(options: Options) -> dict[Path, dict]:
    """Folder → report of every part of a run with --shard.

    Raises:
        BadInput: no part, a part is missing or not finished, parts of other settings.
    """
    names = [re.fullmatch(r"part-(\d+)-of-(\d+)", path.name) for path in sorted(Path(options.out).glob("part-*-of-*"))]
    counts = {int(name[2]) for name in names if name}
    if len(counts) != 1:
        found = ", ".join(name[0] for name in names if name) or "none"
        raise BadInput(f"{options.out}: expected the parts of one run with --shard, found {found}")
    count = counts.pop()
    parts = [Path(options.out, f"part-{index}-of-{count}") for index in range(1, count + 1)]
    found = {part: read_report(part) for part in parts}
    missing = [part.name for part, report in found.items() if report is None]
    if missing:
        raise BadInput(f"{options.out}: {', '.join(missing)} not finished; run these shards, then merge")
    for part, report in found.items():
        if others := differing(report, options):
            raise BadInput(f"{part}: was made with other settings of {', '.join(others)}; give the same to merge")
    return found


def store(writer: RegionWriter, name: str, key: str, regions: Regions, bad: dict[str, str]) -> None:
    """Add a record; one that the database refuses is a bad one."""
    try:
        writer.add(key, regions)
    except CannotWrite:
        raise
    except BadInput as error:
        bad[name] = str(error)


def merge(writer: RegionWriter, parts: Mapping[Path, dict], compressed: bool, bad: dict[str, str]) -> None:
    """The records of all parts into `writer`."""
    for part, report in parts.items():
        bad |= report["bad_photos"]
        if not report["written"]:
            continue
        folder = part / writer.folder.name
        txn = Records(folder).txn
        for key in tqdm(read_keys(folder), f"merging {part.name}", unit=" photos"):
            if key not in writer.done:
                store(writer, key, key, Regions(**stored_arrays(txn, folder, key, compressed)), bad)


def record_settings(options: Options) -> dict:
    """The settings on which the stored bytes depend."""
    return {name: value for name, value in dataclasses.asdict(options).items() if name not in NOT_IN_RECORDS}


def main(options: Options) -> None:
    shard = read_shard(options)
    out = Path(options.out) if shard[1] == 1 else Path(options.out, f"part-{shard[0]}-of-{shard[1]}")
    settings = record_settings(options)
    finished = read_report(out) if shard[1] > 1 and not options.overwrite else None
    if finished and not differing(finished, options):
        print(f"{out}: done already, {finished['written']} photos")
        return
    boxes = BoxOptions(options.conf_th, options.max_bb, options.min_bb)
    writer = RegionWriter(out, boxes, options.compressed, settings)
    check(options, writer)
    total, images = open_images(options)
    extractor, parts = None, {}
    if options.merge:
        parts = find_parts(options)
    elif options.extractor != "precomputed":
        torch.set_num_threads(1)  # see start_worker: the extractor's calibration too
        extractor = detector.load_extractor(
            options.extractor, options.feature_dim, options.num_labels, options.size, options.seed, options.weights,
            options.conf_th, options.max_bb, options.min_bb,
        )  # fmt: skip

    bad: dict[str, str] = {}
    keys: dict[str, None] = {}
    started = time.perf_counter()
    try:
        with writer:
            before = len(writer.done)
            if options.merge:
                merge(writer, parts, options.compressed, bad)
                keys = {key: None for _, key, _ in images}
            else:
                rest = choose(images, shard, writer.done, keys, bad)
                if extractor is None:
                    found = read_all(rest)
                else:
                    photos = [photo for _, _, photo in rest]
                    total = len(photos)
                    device = torch.device("cpu") if options.extractor == "random-conv" else choose_device(options.device)
                    found = extract_all(extractor, photos, options.workers, device)
                for name, key, regions in tqdm(found, "extracting regions", total, unit=" photos"):
                    if isinstance(regions, str):
                        bad[name] = regions
                    else:
                        store(writer, name, key, regions, bad)
            writer.order(keys)
            written, regions_used = len(writer.done), sum(writer.done.values())
            if not written:
                name, reason = next(iter(bad.items()), (options.photos, "this shard has no photographs"))
                raise NothingWritten(f"{options.photos}: none of {len(bad)} photographs can be read; {name}: {reason}")
    except NothingWritten:
        if shard[1] == 1:  # the other parts may have some
            raise
    seconds = time.perf_counter() - started

    report = {
        "photos": written + len(bad),
        "written": written,
        "skipped": len(bad),
        "from_an_earlier_run": before,
        "regions_per_photo": round(regions_used / max(written, 1), 2),
        "seconds": round(seconds, 2),
        "photos_per_second": round((written - before) / seconds, 2),
        "bad_photos": bad,
        "settings": dataclasses.asdict(options),
    }
    write_json(out / "report.json", report)
    print(f"{written} photos, {report['regions_per_photo']:.1f} regions each, in {writer.folder}")
    if before:
        print(f"{before} of them were there from an earlier run")
    if bad:
        print(f"{len(bad)} photos could not be read and were skipped; {out / 'report.json'} lists them")


if __name__ == "__main__":
    cli.run(main, Options)
