"""How much room the regions of an image DB take, and how much of it their soft labels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.regions.db import BoxOptions, find_layout
from data.regions.records import stored_arrays
from data.storage.lmdb_env import Records, damage_is_bad_input

BYTES = 2  # of a number, fp16
AROUND = 260  # bytes of a plain record that are not its arrays, about
PAGE = 4096  # a record of LMDB larger than half of it begins a page of its own


@dataclass(frozen=True)
class DiskSize:
    """Bytes on the disk.

    Args:
        bytes: of all
        soft_labels: the share of soft labels in them; None where that is not known: of compressed records
    """

    bytes: int
    soft_labels: int | None


def size_of_regions(img_db: str | Path, boxes: BoxOptions) -> DiskSize | None:
    """The size of the LMDB that readers take with ``boxes``; None where it is not here. Its first record tells the share of soft labels.

    Raises:
        BadInput: the database is damaged, or has other boxes.
    """
    found = _first_record(img_db, boxes)
    if found is None:
        return None
    folder, arrays = found
    size = (folder / "data.mdb").stat().st_size
    if "soft_labels" not in arrays:
        return DiskSize(size, 0)
    compressed = folder.name.endswith("_compressed")
    return DiskSize(size, None if compressed else int(size * arrays["soft_labels"].nbytes / sum(a.nbytes for a in arrays.values())))


def stored_widths(img_db: str | Path, boxes: BoxOptions) -> tuple[int, int] | None:
    """Numbers of a region's feature, and classes of its soft labels (0: it has none), as the first record has them; None where the
    database is not here, or empty. Raises BadInput as `size_of_regions`."""
    found = _first_record(img_db, boxes)
    if found is None or not found[1]:
        return None
    arrays = found[1]
    return arrays["features"].shape[1], arrays["soft_labels"].shape[1] if "soft_labels" in arrays else 0


def _first_record(img_db: str | Path, boxes: BoxOptions) -> tuple[Path, dict[str, np.ndarray]] | None:
    """The LMDB that readers take, and the arrays of its first record, none where it is empty; None where it is not here."""
    if not list(Path(img_db).glob("*/data.mdb")):
        return None
    folder = find_layout(img_db, boxes)
    txn = Records(folder).txn
    with damage_is_bad_input(folder):
        key = next((bytes(key).decode() for key in txn.cursor().iternext(values=False) if bytes(key) != b"__keys__"), None)
    return folder, {} if key is None else dict(stored_arrays(txn, folder, key, folder.name.endswith("_compressed")))


def region_bytes(images: int, regions: float, feature_dim: int, num_labels: int) -> DiskSize:
    """The size on paper of plain records of so many images, with so many regions on average: each has its features, box, confidence
    and soft labels, and half a page of LMDB is lost."""
    width = feature_dim + 6 + 1 + num_labels
    total = images * (regions * width * BYTES + AROUND + PAGE / 2)
    return DiskSize(int(total), int(total * num_labels / width))
