"""Which split a picture belongs to, which pictures are the same photograph, and what must stay out of training."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from data.annotations.records import ADVICE, Caption, check, check_split
from data.errors import BadInput
from data.storage.text_files import read_json, read_lines


def read_split_lists(words: Sequence[str]) -> dict[str, str]:
    """Name of a picture without folders and extension -> split, from files that list a picture a line.

    Args:
        words: ``train=lists/train.txt`` or ``lists/train.txt``, whose split is the file's name

    Raises:
        BadInput: a file that cannot be read, a picture in two splits.
    """
    found: dict[str, str] = {}
    for word in words:
        split, equals, path = word.partition("=")
        if not equals:
            split, path = Path(word).stem, word
        check_split("--split-lists", split)
        for n, line in enumerate(read_lines(path, ADVICE), 1):
            stem = PurePosixPath(line.strip().partition("#")[0]).stem
            if stem and found.setdefault(stem, split) != split:
                raise BadInput(f"{path}: line {n}: {stem} is in split {found[stem]} too; a picture is in one split")
    return found


def by_lists(captions: Iterable[Caption], split_of: Mapping[str, str]) -> tuple[list[Caption], int]:
    """Captions with the splits of their pictures → those in a list, and how many are in none."""
    kept, outside = [], 0
    for caption in captions:
        split = split_of.get(PurePosixPath(caption.image).stem)
        if split is None:
            outside += 1
        else:
            kept.append(replace(caption, split=split))
    return kept, outside


def by_shares(captions: Iterable[Caption], shares: Mapping[str, float], seed: int) -> list[Caption]:
    """Captions with splits drawn by picture: the same for the same pictures, shares and seed, whatever their order.

    Raises:
        BadInput: shares that do not add up to 1, or pictures too few for each to have one.
    """
    captions = list(captions)
    names = sorted({caption.image for caption in captions})
    if any(share <= 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise BadInput(f"shares: found {dict(shares)}, expected parts above 0 that add up to 1")
    ends = np.round(np.cumsum(list(shares.values())) * len(names)).astype(int)
    sizes = np.diff(ends, prepend=0)
    if (sizes < 1).any():
        raise BadInput(f"{len(names)} pictures are too few for the shares {dict(shares)}: a split would be empty")
    order = np.random.default_rng([seed, 6]).permutation(len(names))
    split_of = dict(zip((names[i] for i in order), np.repeat(list(shares), sizes).tolist(), strict=True))
    return [replace(caption, split=split_of[caption.image]) for caption in captions]


# ---- one photograph under several names ------------------------------------------------------------------------------


def photo_id(name: str, form: str) -> str:
    """What a picture's name says of the photograph it is.

    ``coco:42`` for COCO_val2014_000000000042.jpg and 000000000042.jpg; ``flickr:1000092795`` for Flickr's number, with
    or without its secret (1000092795.jpg, 1003163366_44323f5815.jpg); ``vg:1`` in Visual Genome; else the name.
    """
    stem = PurePosixPath(name).stem
    if form == "visual-genome":
        return f"vg:{stem}"
    if found := re.fullmatch(r"COCO_[a-z]+\d{4}_0*(\d+)|0(?=\d{11}$)0*(\d+)", stem):
        return f"coco:{found[1] or found[2]}"
    if found := re.fullmatch(r"(\d{5,})(_[0-9a-f]{6,}(_[a-z])?)?", stem):
        return f"flickr:{found[1]}"
    return f"name:{stem}"


def read_addresses(paths: Iterable[str]) -> dict[str, set[str]]:
    """Photographs of COCO and Visual Genome under their other names: ``coco:42`` -> {``flickr:6255196340``}.

    Args:
        paths: COCO's ``captions_*.json`` (or any other file of its with ``images``), Visual Genome's ``image_data.json``

    Raises:
        BadInput: a file of another form.
    """
    same: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        content = read_json(path, ADVICE, expected=None)
        images = content.get("images") if isinstance(content, dict) else content
        check(isinstance(images, list), str(path), "images", images, "a list, as in COCO's files or image_data.json")
        for n, image in enumerate(images):
            where = f"{path}: image {n}"
            check(isinstance(image, dict), where, "it", image, "an object")
            if "flickr_url" in image and "id" in image:
                found = re.search(r"/(\d+)_[0-9a-f]+(_\w)?\.\w+$", str(image["flickr_url"]))
                if found:
                    same[f"coco:{image['id']}"].add(f"flickr:{found[1]}")
            elif "image_id" in image:
                for site in ("flickr", "coco"):
                    if image.get(f"{site}_id"):
                        same[f"vg:{image['image_id']}"].add(f"{site}:{image[f'{site}_id']}")
            else:
                check(False, where, "what it has", sorted(image), "id and flickr_url, or image_id and flickr_id")
    return dict(same)


def names_of(photo: str, same: Mapping[str, set[str]]) -> set[str]:
    """A photograph's id and those that `read_addresses` found for it."""
    found, new = {photo}, {photo}
    while new:
        new = set().union(*(same.get(name, set()) for name in new)) - found
        found |= new
    return found


def without(
    captions: Iterable[Caption], form: str, excluded: set[str], same: Mapping[str, set[str]], splits: Iterable[str]
) -> tuple[list[Caption], Counter]:
    """Leave the excluded photographs out of the splits that are trained on → captions, and pictures left out by split."""
    splits = set(splits)
    is_out: dict[str, bool] = {}
    dropped: dict[str, set[str]] = defaultdict(set)
    kept = []
    for caption in captions:
        if caption.split in splits:
            if caption.image not in is_out:
                is_out[caption.image] = not excluded.isdisjoint(names_of(photo_id(caption.image, form), same))
            if is_out[caption.image]:
                dropped[caption.split].add(caption.image)
                continue
        kept.append(caption)
    return kept, Counter({split: len(images) for split, images in dropped.items()})


def _rank(photo: str) -> int:
    return ("coco", "flickr").index(photo.split(":")[0]) if photo.startswith(("coco:", "flickr:")) else -1


def in_several_splits(captions: Iterable[Caption], form: str, same: Mapping[str, set[str]]) -> list[str]:
    """One line for each photograph that is in more than one split, under one name or several."""
    return [_line(photo, found) for photo, found in _places(captions, form, same).items()]


def in_one_split(captions: Sequence[Caption], form: str) -> tuple[list[Caption], list[str]]:
    """Captions of a photograph in several splits, put into one of them: test before val before train and others.

    Returns: captions, and a line for each such photograph
    """
    places = _places(captions, form, {})
    chosen = {photo: min(found, key=_order) for photo, found in places.items()}
    kept = [replace(c, split=chosen.get(photo_id(c.image, form), c.split)) for c in captions]
    return kept, [f"{_line(photo, found)}; it stays in {chosen[photo]}" for photo, found in places.items()]


def _places(captions: Iterable[Caption], form: str, same: Mapping[str, set[str]]) -> dict[str, dict[str, str]]:
    """Photograph -> split -> its name there, of those in more than one split."""
    places: dict[str, dict[str, str]] = defaultdict(dict)
    done: set[tuple[str, str]] = set()
    for caption in captions:
        if (caption.split, caption.image) not in done:
            done.add((caption.split, caption.image))
            # the name that all of its names lead to
            photo = max(names_of(photo_id(caption.image, form), same), key=lambda name: (_rank(name), name))
            places[photo].setdefault(caption.split, caption.image)
    return {photo: found for photo, found in places.items() if len(found) > 1}


def _line(photo: str, found: Mapping[str, str]) -> str:
    return f"{photo}: " + ", ".join(f"{image} in {split}" for split, image in found.items())


def _order(split: str) -> int:
    return 0 if split.startswith("test") else 1 if split.startswith("val") else 2
