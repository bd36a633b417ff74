"""Which split a picture belongs to: told by lists, drawn by shares, or one of several that a file puts it in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from data.annotations import FORMATS, guess_format, read_captions
from data.annotations.photographs import describe_photo, find_photos_in_several_splits, photo_within_file
from data.annotations.records import ADVICE, Caption, require_split_name
from data.errors import BadInput
from data.regions.keys import folders_agree, normal_name
from data.storage.text_files import read_lines


def read_split_lists(words: Sequence[str]) -> dict[str, str]:
    """Name of a picture without extension, as it is listed -> split, from files that list a picture a line.

    Args:
        words: ``train=lists/train.txt`` or ``lists/train.txt``, whose split is the file's name; or annotations that say the split
            of every picture, ``dataset_coco.json``, for captions of the same pictures in another language

    Raises:
        BadInput: a file that cannot be read, a picture in two splits.
    """
    found: dict[str, str] = {}
    by_stem: dict[str, list[str]] = {}
    for word in words:
        for where, image, split in _listed_pictures(word):
            listed = PurePosixPath(normal_name(image))
            name = str(listed.parent / listed.stem)
            other = next((o for o in by_stem.get(listed.stem, ()) if found[o] != split and folders_agree(o, name)), None)
            if other is not None:
                raise BadInput(f"{where}: {name} is in split {found[other]} too; a picture is in one split")
            if name not in found:
                by_stem.setdefault(listed.stem, []).append(name)
            found[name] = split
    return found


def _listed_pictures(word: str) -> Iterator[tuple[str, str, str]]:
    """Where it stands, picture and split, of each picture of one of `read_split_lists`' words."""
    split, equals, path = word.partition("=")
    if not equals:
        split, path = Path(word).stem, word
    if path.endswith((".json", ".json.gz")):
        form = guess_format(path)
        if equals or not FORMATS[form].names_splits:
            raise BadInput(
                f"--split-lists {word}: annotations are given without a split, and must be of a format that says it for every "
                "picture, such as Karpathy's dataset_coco.json"
            )
        pictures = dict.fromkeys((caption.image, caption.split) for caption in read_captions(path, form))
        yield from ((str(path), image, own) for image, own in pictures)
        return
    require_split_name("--split-lists", split)
    for n, line in enumerate(read_lines(path, ADVICE), 1):
        image = line.strip().partition("#")[0]
        if PurePosixPath(image).stem:
            yield f"{path}: line {n}", image, split


def assign_listed_splits(captions: Iterable[Caption], split_of: Mapping[str, str]) -> tuple[list[Caption], set[str]]:
    """Give the captions the splits of their pictures: by name, and by folders as far as list and caption both name them.

    Returns: the captions whose picture is in a list, and the listed names that were found
    """
    by_stem: dict[str, list[str]] = {}
    for name in split_of:
        by_stem.setdefault(PurePosixPath(name).name, []).append(name)
    kept: list[Caption] = []
    used: set[str] = set()
    for caption in captions:
        image = normal_name(caption.image)
        names = [name for name in by_stem.get(PurePosixPath(image).stem, ()) if folders_agree(name, image)]
        if len({split_of[name] for name in names}) > 1:
            raise BadInput(f"split lists: {image} may be {names[0]} or {names[1]}, which are in two splits; name its folder")
        if names:
            used.update(names)
            kept.append(replace(caption, split=split_of[names[0]]))
    return kept, used


def parse_shares(words: Sequence[str]) -> dict[str, float]:
    """``train=0.8`` ... → split -> share."""
    try:
        shares = {name: float(share) for name, _, share in (word.partition("=") for word in words)}
    except ValueError:
        raise BadInput(f"--shares {' '.join(words)}: expected words such as train=0.8 val=0.1 test=0.1") from None
    for name in shares:
        require_split_name("--shares", name)
    return shares


def check_one_source(given: Mapping[str, object], form: str) -> None:
    """Refuse two options that both say the split of all captions, and one for files that say it themselves.

    Args:
        given: ``--split``, ``--split-lists`` and ``--shares`` -> what the user gave, or None
        form: of the annotations, a key of ``FORMATS``
    """
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise BadInput(f"{' and '.join(given)} both say the split; give one of them")
    if "--split" in given:
        require_split_name("--split", given["--split"])
        if FORMATS[form].names_splits:
            raise BadInput(f"--split {given['--split']}: {form} says the split of every picture; choose with --splits")


def draw_splits(
    captions: Iterable[Caption], shares: Mapping[str, float], seed: int, former: Mapping[str, str] | None = None
) -> list[Caption]:
    """Give the captions splits that are drawn by picture: the same for the same pictures, shares and seed, whatever their order.

    Args:
        former: picture -> its split of an earlier drawing of some of the pictures, where it stays: the others are drawn so that the
            splits get their shares of all

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
    split_of = {name: former[name] for name in names if former and former.get(name) in shares}
    taken = Counter(split_of.values())
    wanted = [split for split, size in zip(shares, sizes.tolist(), strict=True) for _ in range(max(size - taken[split], 0))]
    split_of |= zip((names[i] for i in order if names[i] not in split_of), wanted, strict=False)  # more are wanted where a split has too many
    return [replace(caption, split=split_of[caption.image]) for caption in captions]


def put_photos_in_one_split(captions: Sequence[Caption], photo_of: Callable[[str], str]) -> tuple[list[Caption], list[str]]:
    """Put the captions of a photograph that is in several splits into one of them: test before val before train and others.

    Returns: captions, and a line for each such photograph
    """
    found = find_photos_in_several_splits(captions, photo_of, {})
    chosen = {photo: min(names, key=_order) for photo, names in found.items()}
    kept = [replace(c, split=chosen.get(photo_within_file(c.image, photo_of, {}), c.split)) for c in captions]
    return kept, [f"{describe_photo(photo, names)}; it stays in {chosen[photo]}" for photo, names in found.items()]


def _order(split: str) -> int:
    return 0 if split.startswith("test") else 1 if split.startswith("val") else 2
