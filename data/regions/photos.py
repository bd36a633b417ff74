"""Photographs of a folder, a list or a tar file, and reading any of them as upright RGB."""

from __future__ import annotations

import io
import tarfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from data.errors import BadInput
from data.regions.keys import key_of_image
from data.storage.text_files import read_lines

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MAX_SIDE = 4096  # a longer photo is shrunk while it is read: no network here looks at more
MAX_PIXELS = 256 << 20  # what is decoded at most, 0.8 GB as RGB


@dataclass(frozen=True)
class Photo:
    """Where a photo is.

    Args:
        name: for reports: its path, or `file.tar:member`
        key: in the image DB
        path: its file, or the tar file
        offset, size: bytes of a tar's member; None for a file
        twin: name of the photo before it that has this key, too; this one cannot be read
    """

    name: str
    key: str
    path: Path
    offset: int | None = None
    size: int = 0
    twin: str | None = None


def find_photos(source: str, listing: str | None = None, template: str = "{stem}.npz") -> list[Photo]:
    """The photographs to read, sorted by name (or as listed); one that is missing or has another's key is for the report.

    Args:
        source: a folder, searched with its subfolders, or an uncompressed tar file
        listing: text file with a name per line, relative to `source`
        template: see `key_of_image`

    Raises:
        BadInput: no such folder, tar or list, no photo in it.
    """
    root = Path(source)
    if root.is_dir():
        everything = None
    elif root.is_file():
        everything = _tar_members(root)
    else:
        raise BadInput(f"--photos {source}: no such folder; give the folder or the tar file that holds the photographs")
    if listing is not None:
        names = _read_list(listing)
    elif everything is None:
        names = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES and p.is_file())
    else:
        names = sorted(name for name in everything if PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES)
    if not names:
        raise BadInput(f"{listing or source}: found no photographs, expected names ending in {', '.join(PICTURE_SUFFIXES)}")
    photos: list[Photo] = []
    first: dict[str, str] = {}
    for name in names:
        key = key_of_image(name, template)
        if everything is None:
            photo = Photo(str(root / name), key, root / name)
        else:
            photo = Photo(f"{source}:{name}", key, root, *everything.get(name, (0, -1)))
        other = first.setdefault(key, photo.name)
        photos.append(photo if other == photo.name else replace(photo, twin=other))
    return photos


def _read_list(path: str) -> list[str]:
    names = (line.strip() for line in read_lines(path, "give --list a file with a name per line"))
    return [name for name in dict.fromkeys(names) if name]


def _tar_members(path: Path) -> dict[str, tuple[int, int]]:
    """Name → offset and size of the files in a tar. Only headers are read; a member is later read by its place."""
    try:
        with tarfile.open(path, "r:") as archive:
            return {m.name.removeprefix("./"): (m.offset_data, m.size) for m in archive if m.isfile() and not m.sparse}
    except (tarfile.TarError, OSError) as error:
        raise BadInput(
            f"--photos {path}: no folder, and cannot be read as an uncompressed tar ({error}); decompress a .tar.gz first"
        ) from None


def photo_bytes(photo: Photo) -> bytes:
    """The file as it is.

    Raises:
        OSError, ValueError: it is not there, shorter than it should be, or has another's key.
    """
    if photo.twin is not None:
        raise ValueError(f"{photo.twin} has the key {photo.key}, too; rename one of them")
    if photo.offset is None:
        data = photo.path.read_bytes()
    elif photo.size < 0:
        raise FileNotFoundError("No such file in the tar")
    else:
        with open(photo.path, "rb") as file:
            file.seek(photo.offset)
            data = file.read(photo.size)
        if len(data) < photo.size:
            raise ValueError(f"the tar ends after {len(data)} of its {photo.size} bytes")
    if not data:
        raise ValueError("the file is empty")
    return data


def read_photo(photo: Photo) -> Image.Image:
    """The photo as RGB: turned as its EXIF orientation says, the first frame of an animation, 16 bits scaled to 8,
    transparency on white, and shrunk so that no side is longer than MAX_SIDE.

    Raises:
        Exception: almost any, on a damaged file: the caller reports it and goes on.
    """
    data = photo_bytes(photo)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a large picture (we have our own limit) and of odd metadata
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            with Image.open(io.BytesIO(data)) as image:
                return _upright_rgb(image)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _upright_rgb(image: Image.Image) -> Image.Image:
    width, height = image.size
    shrink = MAX_SIDE / max(width, height)
    if shrink < 1:
        image.draft(None, (max(int(width * shrink), 1), max(int(height * shrink), 1)))  # a JPEG decodes smaller at once
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels are more than can be decoded ({MAX_PIXELS}); scale it down")
    upright = _to_rgb(ImageOps.exif_transpose(image))
    upright.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BILINEAR)  # does nothing to a smaller one
    return upright


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # I;16 and its byte orders; older Pillows open 16-bit greys as I
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("32-bit integer pixels, whose range is not known; save it as 8 or 16 bits")
        if image.mode != "I" or values.max() > 255:
            values = values >> 8
        return Image.fromarray(values.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known; save it as 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
