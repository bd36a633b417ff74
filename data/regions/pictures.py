"""Which picture each key of an image DB is, in ``pictures.json`` in the LMDB's folder; and the picture files of keys.

The file holds ``photos``, the folder or tar file that was read; ``image_key``, how keys were made; and ``pictures``, key → the
picture's name in there. Databases of other tools lack it: their keys are those that they are known to give pictures.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from data.errors import BadInput
from data.regions.keys import folders_agree, key_of_image, normal_name
from data.regions.photos import Photo, picture_names
from data.storage.regular_files import real_path
from data.storage.text_files import read_json, write_json

FILE = "pictures.json"
_SHAPE = {"photos": str, "image_key": (str, None), "pictures": {str: str}}


@dataclass(frozen=True)
class Pictures:
    """The pictures of an image DB.

    Args:
        photos: path of the folder or tar file that holds them; empty where they come from several
        image_key: makes keys of names, see `key_of_image`; None where there are several
        names: key → the picture's name in the folder or tar
    """

    photos: str
    image_key: str | None
    names: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        return json.dumps({"photos": self.photos, "image_key": self.image_key, "pictures": dict(self.names)})

    def with_folder(self, key: str) -> str:
        """A picture's name with the folder that was read in front: what another name of it may carry of folders."""
        is_folder = Path(self.photos).suffix != ".tar"
        return str(PurePosixPath(Path(self.photos).name if self.photos and is_folder else "", self.names[key]))

    def joined(self, other: Pictures) -> Pictures:
        """The pictures of both."""
        photos = self.photos if self.photos == other.photos else ""
        image_key = self.image_key if self.image_key == other.image_key else None
        return Pictures(photos, image_key, {**other.names, **self.names})


def read_pictures(folder: str | Path) -> Pictures | None:
    """The pictures of an image DB (of all its LMDB folders), of one LMDB folder, or of an index; None where nothing says them.

    Raises:
        BadInput: a file of another form.
    """
    found = None
    for path in (Path(folder, FILE), *sorted(Path(folder).glob(f"*/{FILE}"))):
        if path.is_file():
            content = read_json(path, "it says the pictures of keys; copy the file again or delete it", _SHAPE)
            pictures = Pictures(content["photos"], content["image_key"], content["pictures"])
            found = pictures if found is None else found.joined(pictures)
    return found


def keep_pictures(pictures: Pictures | None, index: str | Path) -> None:
    """Put beside an index of images what the image DB that it was made from says of their pictures, if it does."""
    before = read_pictures(index)
    if pictures is not None and before is not None:
        pictures = pictures.joined(before)
    if pictures is not None and pictures != before:
        write_json(Path(index, FILE), json.loads(pictures.to_json()), indent=None)


def pictures_of(photos: Iterable[Photo], source: str, image_key: str) -> Pictures:
    """What an image DB of the photos of a folder or tar file says of them; arguments as for `find_photos`."""
    return Pictures(os.path.abspath(source), image_key, {photo.key: photo.inside for photo in photos})


# ---- files -----------------------------------------------------------------------------------------------------------

_KNOWN = {  # what a key is called that others make → patterns of the stem, and what the picture's stem is made from
    "flickr30k_{stem:0>12}.npz": (r"flickr30k_0*(.+)", "{}"),
    "{lower}.npz": (r"(.+)", "{}"),
    "coco_SPLIT_{stem}.npz": (r"coco_[a-z]+\d{4}_(\d{12})", "{}"),
    "vg_{stem}.npz": (r"vg_(.+)", "{}"),
    "nlvr2_{stem}.npz": (r"nlvr2_(.+)", "{}"),
    "gqa_{stem}.npz": (r"gqa_(.+)", "{}"),
}


class PictureFiles:
    """The picture files of a folder, found by key or by name. Never another picture of the same name.

    Args:
        folder: holds the pictures, in subfolders too
        pictures: what the image DB says of them; None: the naming schemes that are known are tried

    Raises:
        BadInput: the folder is missing or holds no picture.
    """

    def __init__(self, folder: str | Path, pictures: Pictures | None = None):
        self._root, self._pictures = Path(folder), pictures
        names = picture_names(self._root) if self._root.is_dir() else []
        if not names:
            found = "no picture in it" if self._root.is_dir() else "no such folder"
            raise BadInput(f"{folder}: {found}; --photos must be a folder of pictures (jpg, png, ...)")
        self._by_stem: dict[str, list[str]] = {}
        self._exact = {normal_name(name): name for name in names}
        for name in names:
            self._by_stem.setdefault(normal_name(PurePosixPath(name).stem), []).append(name)
        self._by_lower: dict[str, list[str]] = {}
        for stem, of_stem in self._by_stem.items():
            self._by_lower.setdefault(stem.lower(), []).extend(of_stem)
        self._schemes: Counter[str] = Counter()
        self._several: dict[str, list[str]] = {}
        self._other_folder = ""

    def find(self, key: str) -> Path | None:
        """The file of a key; None where there is none, or several that could be it."""
        if self._pictures is not None and key in self._pictures.names:
            return self._find_stored(key, self._pictures)
        stem = normal_name(key.removesuffix(".npz"))
        if names := self._by_stem.get(stem):
            return self._only(key, names)
        for scheme, (pattern, made) in _KNOWN.items():
            match = re.fullmatch(pattern, stem)
            names = self._by_lower.get(made.format(match[1]).lower()) if match else None
            if names:
                self._schemes[scheme] += 1
                return self._only(key, names)
        return None

    def _find_stored(self, key: str, pictures: Pictures) -> Path | None:
        """The picture itself where its folder is around this one, below it, or the same; else the one of its name in this folder."""
        root, photos = str(real_path(self._root)), os.path.realpath(pictures.photos) if pictures.photos else ""
        if photos and os.path.commonpath([root, photos]) in (root, photos):
            inside = os.path.relpath(os.path.join(photos, pictures.names[key]), root)
            exact = self._exact.get(normal_name(inside))
            return self._root / exact if exact is not None else None
        if photos and os.path.isdir(photos):
            self._other_folder = pictures.photos
        return self.find_named(pictures.names[key], pictures.with_folder(key))

    def find_named(self, name: str, full_name: str | None = None) -> Path | None:
        """The file of a picture's name, whose folders may be others as long as they do not contradict.

        Args:
            full_name: the name with more of its folders, where they are known
        """
        if (exact := self._exact.get(normal_name(name))) is not None:
            return self._root / exact
        last = PurePosixPath(normal_name(name)).name
        names = [other for other in self._by_stem.get(PurePosixPath(last).stem, ()) if PurePosixPath(normal_name(other)).name == last]
        root = Path(real_path(self._root).name)  # is a folder of theirs, too
        for known in (full_name or name, name):  # the folder that was read may have another name now
            if agreeing := [other for other in names if folders_agree(str(root / other), known)]:
                return self._only(name, agreeing)
        return None

    def _only(self, key: str, names: list[str]) -> Path | None:
        if len(names) > 1:
            self._several[key] = names
            return None
        return self._root / names[0]

    def remarks(self) -> list[str]:
        """Lines about how pictures were found, and which were not for there are several; none where all is plain."""
        lines = []
        for scheme, count in self._schemes.items():
            lines.append(f"{self._root}: nothing says the pictures of the keys, {count:,} found as those of {scheme}")
        if self._other_folder:
            lines.append(f"{self._root}: the regions were extracted from {self._other_folder}; pictures of the same names are taken")
        if self._several:
            key, names = next(iter(self._several.items()))
            lines.append(
                f"warning: {self._root}: {len(self._several):,} pictures are not taken, for several files could be theirs, the first: "
                f"{key} ({', '.join(names[:3])}); extract the regions anew, which keep each key's picture"
            )
        return lines


# ---- keys ------------------------------------------------------------------------------------------------------------


class KnownKeys:
    """The keys of image DBs, found by the pictures' file names as annotations give them.

    Args:
        keys: of the databases
        databases: their folders
        image_key: makes keys of names; None: as the databases say, else ``{stem}.npz``

    Attributes:
        keys: as they are stored
        image_key: the one that is taken
        pictures: what the databases say of their pictures; None where they do not
    """

    def __init__(self, keys: Iterable[str], databases: Iterable[str | Path], image_key: str | None = None):
        self._keys = {normal_name(key): key for key in keys}
        self.keys = set(self._keys.values())
        found = [pictures for pictures in map(read_pictures, databases) if pictures is not None]
        said = {pictures.image_key for pictures in found}
        self.image_key = image_key or (said.pop() if len(said) == 1 else None) or "{stem}.npz"
        self._pictures = found
        self.pictures = functools.reduce(Pictures.joined, found) if found else None

    def find(self, image: str) -> str | None:
        """The key of a picture; None where the databases lack it, or have another picture under its key."""
        key = self._keys.get(key_of_image(image, self.image_key))
        return None if key is None or self.other(image) else key

    def other(self, image: str) -> str | None:
        """The picture that the databases have under the key of ``image``, where its folders say that it is another one."""
        key = self._keys.get(key_of_image(image, self.image_key))
        named = [pictures.with_folder(key) for pictures in self._pictures if key in pictures.names]
        return None if not named or any(folders_agree(image, name) for name in named) else named[0]

    def keys_of(self, images: Iterable[str]) -> dict[str, str]:
        """Picture → its key, of those that the databases have."""
        return {image: key for image in dict.fromkeys(images) if (key := self.find(image)) is not None}
