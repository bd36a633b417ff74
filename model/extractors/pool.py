"""Photographs → regions: one extractor at work in several processes."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from data.errors import BadInput
from data.regions.db import Found, Problem, Regions
from data.regions.photos import Photo, read_photo
from data.storage.processes import leave_ctrl_c_to_parent, starting_workers, worker_pool
from model.extractors.base import Detections, Extractor
from model.extractors.box_ops import norm_boxes

PHOTOS_PER_JOB = 4
OF_THE_MACHINE = re.compile("out of memory|can't allocate|CUDA|cuDNN|CUBLAS|HIP")  # errors that the next photo has, too

_extractor: Extractor | None = None  # of this process


@dataclass
class PhotoImages:
    """Photographs whose regions an extractor finds.

    Args:
        photos: in the order of the database
        extractor: picklable; see `build_extractor`
        workers: processes; 0 for this one only. The regions do not depend on it
        device: where the extractor computes
    """

    photos: list[Photo]
    extractor: Extractor
    workers: int
    device: torch.device

    def found(self, is_wanted: Callable[[str, str], bool]) -> tuple[int | None, Iterator[Found]]:
        """See `model.extractors.extraction.Images`.

        Raises:
            BadInput: a worker died.
        """
        photos = [photo for photo in self.photos if is_wanted(photo.name, photo.key)]
        return len(photos), self._extracted(photos)

    def _extracted(self, photos: list[Photo]) -> Iterator[Found]:
        """What is found in each photo, in their order."""
        jobs = [photos[i : i + PHOTOS_PER_JOB] for i in range(0, len(photos), PHOTOS_PER_JOB)]
        if self.workers == 0 or not jobs:
            set_up_worker(self.extractor, self.device)
            for job in jobs:
                yield from extract_job(job)
            return
        # Spawned, because a fork would inherit torch's threads in an undefined state.
        try:
            with worker_pool(min(self.workers, len(jobs)), "spawn", _start_worker, (self.extractor, self.device)) as pool:
                waiting: deque = deque()
                for job in jobs:
                    with starting_workers():
                        waiting.append(pool.submit(extract_job, job))
                    if len(waiting) > 3 * self.workers:  # results are large: never more of them than the writer keeps up with
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()
        except BrokenProcessPool:
            raise BadInput(
                "a worker process died, perhaps out of memory; use fewer --workers. What is written stays, and the same "
                "command goes on from there"
            ) from None


# ---- in a worker -----------------------------------------------------------------------------------------------------


def _start_worker(extractor: Extractor, device: torch.device) -> None:
    leave_ctrl_c_to_parent()
    set_up_worker(extractor, device)


def set_up_worker(extractor: Extractor, device: torch.device) -> None:
    """Several processes share the cores; and one thread adds in one order, so results do not depend on `workers`."""
    global _extractor
    torch.set_num_threads(1)
    _extractor = extractor if device.type == "cpu" else extractor.to(device)


def extract_job(photos: list[Photo]) -> list[Found]:
    """Each photo's regions, or the reason why there are none."""
    return [Found(photo.name, photo.key, regions_of_photo(photo)) for photo in photos]


def regions_of_photo(photo: Photo) -> Regions | Problem:
    """What this process's extractor finds in a photo.

    Raises:
        BadInput, RuntimeError: what is no fault of this photo: the next one would have it, too.
    """
    try:
        photo.key.encode()
        picture = read_photo(photo)
    except Exception as error:  # damaged files make Pillow raise almost anything; one photo never stops the rest
        return Problem(f"{type(error).__name__}: {error}")
    try:
        regions = to_regions(_extractor([picture])[0], picture.width, picture.height)
    except (RuntimeError, ValueError) as error:  # of a size or content that its network cannot take
        if isinstance(error, BadInput) or OF_THE_MACHINE.search(str(error)):
            raise
        return Problem(f"{type(error).__name__}: {error}")
    if len(regions) == 0:
        return Problem("no region was found")
    return regions if np.isfinite(regions.features).all() else Problem("features are beyond half precision")


def to_regions(found: Detections, width: int, height: int) -> Regions:
    """What an extractor found in a picture of that many pixels → what the database stores (fp16)."""
    arrays = (found.features, norm_boxes(found.boxes, width, height), found.conf, found.soft_labels)
    with np.errstate(over="ignore"):
        return Regions(*(a if a is None else a.cpu().numpy().astype(np.float16) for a in arrays))


@contextmanager
def one_thread() -> Iterator[None]:
    """As scripts/extract_regions.py computes: the same sums in the same order give the same regions."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)
