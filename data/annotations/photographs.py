"""Which pictures are the same photograph under several names, and what must stay out of training.

A photograph is called by the name that a site gave it, ``coco:42`` or ``flickr:1000092795``, which the file name of the
picture says (``photo_of`` of its format).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from data.annotations import FORMATS, guess_format, read_captions
from data.annotations.records import ADVICE, STRICT, Caption, ReadingOptions, photo_of_flickr, require
from data.errors import BadInput
from data.regions.keys import normal_name
from data.storage.text_files import read_json, read_lines


def read_addresses(paths: Iterable[str]) -> dict[str, set[str]]:
    """Photographs of COCO and Visual Genome under their other names: ``coco:42`` -> {``flickr:6255196340``}.

    Args:
        paths: COCO's ``captions_*.json`` (or any other file of its with ``images``), Visual Genome's ``image_data.json``

    Raises:
        BadInput: a file of another form.
    """
    same: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        content = read_json(path, ADVICE, expected=object)
        images = content.get("images") if isinstance(content, dict) else content
        require(isinstance(images, list), str(path), "images", images, "a list, as in COCO's files or image_data.json")
        for n, image in enumerate(images):
            where = f"{path}: image {n}"
            require(isinstance(image, dict), where, "it", image, "an object")
            if "flickr_url" in image and "id" in image:
                found = re.search(r"/(\d+)_[0-9a-f]+(_\w)?\.\w+$", str(image["flickr_url"]))
                if found:
                    same[f"coco:{image['id']}"].add(f"flickr:{found[1]}")
            elif "image_id" in image:
                for site in ("flickr", "coco"):
                    if image.get(f"{site}_id"):
                        same[f"vg:{image['image_id']}"].add(f"{site}:{image[f'{site}_id']}")
            else:
                require(False, where, "what it has", sorted(image), "id and flickr_url, or image_id and flickr_id")
    return dict(same)


def all_names(photo: str, same: Mapping[str, set[str]]) -> set[str]:
    """All names of a photograph that lead to one another by what `read_addresses` found."""
    found, new = {photo}, {photo}
    while new:
        new = set().union(*(same.get(name, set()) for name in new)) - found
        found |= new
    return found


def bare_name(photo: str) -> str:
    """What a photograph is called where the file does not tell whose number it is: ``name:1000092795`` for Flickr's."""
    return f"name:{photo.removeprefix('flickr:')}" if photo.startswith("flickr:") else photo


def read_excluded_photos(word: str, settings: ReadingOptions = STRICT) -> set[str]:
    """The photographs of ``FILE`` or ``FILE:val,test``: a list of picture names, or annotations, whose pictures without a caption
    are among them, of whatever split.

    Raises:
        BadInput: a file that cannot be read, or that has no such split.
    """
    path, splits = word, None
    if not Path(word).exists() and ":" in word:
        path, _, names = word.rpartition(":")
        splits = names.split(",")
    if path.endswith(".txt"):
        if splits:
            raise BadInput(f"--exclude {word}: a list of pictures has no splits; give {path}")
        return {photo_of_flickr(normal_name(line.strip().partition("#")[0])) for line in read_lines(path) if line.strip()}
    form, bare = guess_format(path), []
    settings = replace(settings, on_picture_without_captions=lambda name: bare.append(normal_name(name)))
    found = list(read_captions(path, form, settings))
    for split in splits or []:
        if split not in {c.split for c in found}:
            raise BadInput(f"--exclude {word}: {path} has no split {split}, found {sorted({c.split for c in found})}")
    images = [c.image for c in found if splits is None or c.split in splits]
    return {FORMATS[form].photo_of(image) for image in images + bare}


def leave_out_photos(
    captions: Iterable[Caption],
    photo_of: Callable[[str], str],
    excluded: set[str],
    same: Mapping[str, set[str]],
    splits: Iterable[str],
) -> tuple[list[Caption], Counter]:
    """Leave the excluded photographs out of the splits that are trained on → captions, and pictures left out by split."""
    splits = set(splits)
    is_out: dict[str, bool] = {}
    dropped: dict[str, set[str]] = defaultdict(set)
    kept = []
    for caption in captions:
        if caption.split in splits:
            if caption.image not in is_out:
                names = all_names(photo_of(caption.image), same)
                is_out[caption.image] = not excluded.isdisjoint(names | {bare_name(photo) for photo in names})
            if is_out[caption.image]:
                dropped[caption.split].add(caption.image)
                continue
        kept.append(caption)
    return kept, Counter({split: len(images) for split, images in dropped.items()})


def find_photos_in_several_splits(
    captions: Iterable[Caption], photo_of: Callable[[str], str], same: Mapping[str, set[str]]
) -> dict[str, dict[str, str]]:
    """Photograph -> split -> its name there, of those that are in more than one split, under one name or several.

    Args:
        same: what `read_addresses` found
    """
    places: dict[str, dict[str, str]] = defaultdict(dict)
    done: set[tuple[str, str]] = set()
    for caption in captions:
        if (caption.split, caption.image) not in done:
            done.add((caption.split, caption.image))
            photo = photo_within_file(caption.image, photo_of, same)
            places[photo].setdefault(caption.split, caption.image)
    return {photo: found for photo, found in places.items() if len(found) > 1}


def photo_within_file(image: str, photo_of: Callable[[str], str], same: Mapping[str, set[str]]) -> str:
    """The photograph that a picture of one file is: the name that all of its names lead to.

    Where no site has named it, it is the picture's path: cats/1.jpg and dogs/1.jpg are two.
    """
    photo = max(all_names(photo_of(image), same), key=lambda name: (_rank(name), name))
    return f"name:{PurePosixPath(image).with_suffix('')}" if photo.startswith("name:") else photo


def describe_photo(photo: str, places: Mapping[str, str]) -> str:
    """One line about a photograph that `find_photos_in_several_splits` found."""
    return f"{photo}: " + ", ".join(f"{image} in {split}" for split, image in places.items())


def _rank(photo: str) -> int:
    return ("coco", "flickr").index(photo.split(":")[0]) if photo.startswith(("coco:", "flickr:")) else -1
