"""Photographs of a folder, a list or a tar file, and reading any of them as upright RGB."""

from __future__ import annotations

import os
import posixpath
import sys
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from data.errors import BadInput
from data.progress import ProgressBar
from data.regions.keys import clash_of_keys, key_of_image, normal_name
from data.storage.picture_files import opened_picture
from data.storage.regular_files import check_regular, open_regular
from data.storage.tar_files import ends_as_a_tar, open_tar
from data.storage.text_files import read_lines

HEIF_SUFFIXES = (".heic", ".heif")
PICTURE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", *HEIF_SUFFIXES
)  # fmt: skip
ADVICE = {
    ".avif": "Pillow cannot read AVIF here; install Pillow 11.3 or later, or save it as JPEG",
    **dict.fromkeys(HEIF_SUFFIXES, "Pillow cannot read HEIC here; pip install pillow-heif, or save it as JPEG"),
}
MAX_SIDE = 4096  # a longer photo is shrunk while it is read: no network here looks at more


@dataclass(frozen=True)
class Photo:
    """Where a photo is.

    Args:
        name: for reports: its path, or `file.tar:member`
        key: in the image DB
        path: its file, or the tar file
        inside: its name in the folder or the tar
        offset, size: bytes of a tar's member; None for a file
        problem: why it cannot be read, where that is known already
    """

    name: str
    key: str
    path: Path
    inside: str
    offset: int | None = None
    size: int = 0
    problem: str | None = None

    def is_same_file(self, other: Photo) -> bool:
        """Whether both are one file: one of them is a link."""
        if self.offset is not None:
            return (self.path, self.offset) == (other.path, other.offset)
        return os.path.realpath(self.path) == os.path.realpath(other.path)


def find_photos(source: str, listing: str | None = None, template: str = "{stem}.npz") -> list[Photo]:
    """The photographs to read, sorted by name (or as listed); one that is missing is for the report. Links are followed; of two
    names of one file that get one key the first counts.

    Args:
        source: a folder, searched with its subfolders, or an uncompressed tar file
        listing: text file with a name per line, relative to `source`
        template: see `key_of_image`

    Raises:
        BadInput: no such folder, tar or list, no photo in it, two photographs of one key.
    """
    root = Path(source)
    if root.is_dir():
        members = None
    elif root.is_file():
        members = tar_members(root)
    else:
        raise BadInput(f"--photos {source}: no such folder; give the folder or the tar file that holds the photographs")
    if listing is not None:
        names = _read_list(listing, root, members)
    elif members is None:
        names = picture_names(root)
    else:
        names = sorted(name for name in members if is_picture(name))
    if not names:
        raise BadInput(f"{listing or source}: found no photographs, expected names ending in {', '.join(PICTURE_SUFFIXES)}")
    first: dict[str, Photo] = {}
    for name in names:
        key = key_of_image(name, template)
        if members is None:
            photo = Photo(str(root / name), key, root / name, name)
        else:
            member = members.get(name, Member(problem="No such file in the tar"))
            photo = Photo(f"{source}:{name}", key, root, name, *member)
        other = first.setdefault(key, photo)
        if other is not photo and not photo.is_same_file(other):
            raise BadInput(f"--photos {source}: {clash_of_keys(other.inside, name, key)}; or name those that are meant in --list")
    return list(first.values())


def is_picture(name: str) -> bool:
    """Whether a file's name is that of a picture."""
    return PurePosixPath(name).suffix.lower() in PICTURE_SUFFIXES


def _read_list(path: str, root: Path, members: dict | None) -> list[str]:
    """The names in a list, as the folder or tar spells them: in one of Unicode's forms."""
    lines = (line.strip() for line in read_lines(path, "give --list a file with a name per line"))
    spelled = {} if members is None else {normal_name(name): name for name in members}
    found = []
    for name in filter(None, lines):
        if members is None:
            forms = (name, *(unicodedata.normalize(form, name) for form in ("NFC", "NFD")))
            found.append(next((each for each in forms if (root / each).exists()), name))
        else:
            found.append(spelled.get(normal_name(name.removeprefix("./")), name))
    return list(dict.fromkeys(found))


# ---- folders ---------------------------------------------------------------------------------------------------------


def picture_names(root: Path) -> list[str]:
    """The pictures of a folder and its subfolders, relative to it and sorted. Linked folders are followed, each folder once; a
    link that leads back to a folder around it, or to one that was read, is told on the screen.

    Raises:
        BadInput: a folder cannot be read.
    """
    names: list[str] = []
    seen: set[str] = set()
    todo = [root]
    for start in todo:  # the real folders before those that are linked, whatever their names
        target = os.path.realpath(start)
        around = os.path.realpath(start.parent)
        if start != root and (target in seen or os.path.commonpath([target, around]) == target):
            print(f"{start}: is a link to {target}, which is read already or is around it; it is not followed", file=sys.stderr)
            continue
        for folder, subfolders, files in os.walk(start, onerror=_refuse_folder):
            real = os.path.realpath(folder)
            links = sorted(name for name in subfolders if os.path.islink(os.path.join(folder, name)))
            subfolders[:] = [] if real in seen else sorted(set(subfolders) - set(links))
            if real not in seen:
                todo += [Path(folder, name) for name in links]
                names += [os.path.relpath(os.path.join(folder, name), root) for name in files if is_picture(name)]
            seen.add(real)
    found = ProgressBar(names, f"looking for the pictures of {root}", unit="pictures")
    return sorted(name for name in found if (root / name).is_file() or (root / name).is_symlink())


def _refuse_folder(error: OSError) -> None:
    raise BadInput(f"{error.filename}: the folder cannot be read ({error.strerror})")


# ---- tar files -------------------------------------------------------------------------------------------------------


class Member(NamedTuple):
    """Where a file of a tar is: offset and size in bytes, or why it cannot be read."""

    offset: int = 0
    size: int = 0
    problem: str | None = None


def tar_members(path: Path) -> dict[str, Member]:
    """Name → place of the files in a tar, links with them. Only headers are read; a member is later read by its place.

    Raises:
        BadInput: it is no uncompressed tar, or it does not end as a tar does: a header is damaged, or it is truncated.
    """
    found: dict[str, Member] = {}
    links: dict[str, str] = {}
    check_regular(path)
    try:
        with open_tar(path, "r:") as archive:
            for member in ProgressBar(archive, f"reading the headers of {path}", unit="files"):
                name = member.name.removeprefix("./")
                if member.issym():
                    links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
                elif member.islnk():
                    links[name] = posixpath.normpath(member.linkname)
                elif member.isfile():
                    sparse = "a sparse file of the tar; pack it without --sparse" if member.sparse else None
                    found[name] = Member(member.offset_data, member.size, sparse)
                    links.pop(name, None)  # a name that comes again replaces the one before
            end, is_end = archive.offset, ends_as_a_tar(archive)
    except Exception as error:  # whatever tarfile raises on damaged bytes
        raise BadInput(
            f"--photos {path}: no folder, and cannot be read as an uncompressed tar ({error}); decompress a .tar.gz first"
        ) from None
    if not is_end:
        raise BadInput(
            f"--photos {path}: damaged or truncated: what stands at byte {end:,}, behind {len(found):,} files, is neither a file's header nor "
            "the end of a tar; copy or pack it again (of several tars in one file, give each by itself)"
        )
    for name in links:
        target, steps = name, 0
        while target in links and steps <= len(links):  # more steps are a loop
            target, steps = links[target], steps + 1
        found[name] = found.get(target, Member(problem=f"a link to {links[name]}, which is not a file of the tar"))
    return found


# ---- reading ---------------------------------------------------------------------------------------------------------


def photo_bytes(photo: Photo) -> bytes:
    """The file as it is.

    Raises:
        OSError, ValueError: it is not there, or shorter than it should be.
    """
    if photo.problem is not None:
        raise FileNotFoundError(photo.problem)
    if photo.offset is None:
        with open_regular(photo.path) as file:
            data = file.read()
    else:
        with open_regular(photo.path) as file:
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
    suffix = PurePosixPath(photo.inside).suffix.lower()
    if suffix in HEIF_SUFFIXES:
        _learn_heif()
    try:
        with opened_picture(data, side=MAX_SIDE) as image:
            upright = _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        if advice := ADVICE.get(suffix):
            raise ValueError(advice) from None
        raise
    upright.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BILINEAR)  # does nothing to a smaller one
    return upright


def scaled_photo(path: Path, side: int) -> Image.Image:
    """The photo of a file, as `read_photo` reads it, to be shown: whole, its longer side of so many pixels.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        picture = read_photo(Photo(str(path), path.name, path, path.name))
    except BadInput:
        raise
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot read the picture: {error}") from error
    return picture.resize([max(round(length * side / max(picture.size)), 1) for length in picture.size])


def _learn_heif() -> None:
    """Pillow reads the pictures of telephones with a package of its own."""
    with suppress(ImportError):
        from pillow_heif import register_heif_opener  # optional

        register_heif_opener()


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
