"""Which captions of an annotation file are used, and what is said of the others: on the screen and in the report."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from data.annotations import read_captions
from data.annotations.photographs import (
    all_names,
    bare_name,
    describe_photo,
    find_photos_in_several_splits,
    leave_out_photos,
    read_excluded_photos,
)
from data.annotations.published import differences
from data.annotations.records import STRICT, Caption, ReadingOptions
from data.annotations.reports import note_case, warn_of_cases
from data.annotations.splits import assign_listed_splits, put_photos_in_one_split, read_split_lists
from data.errors import BadInput
from data.progress import ProgressBar
from data.regions.photos import picture_names
from data.regions.pictures import KnownKeys, PictureFiles


def read_usable_captions(path: str, form: str, settings: ReadingOptions, report: dict, strict: bool = False) -> list[Caption]:
    """All captions of a file; bad ones, missing pictures, and pictures without captions are noted in the report and told.

    Args:
        settings: how the file is read; what it does with bad records and pictures is replaced
        strict: stop at the first bad record

    Raises:
        BadInput: the file has no caption that can be used, or with `strict` a bad record.
    """

    def on_bad_record(message: str, captions: int) -> None:
        if strict:
            raise BadInput(message)
        note_case(report, "bad_records", message, captions)

    def on_picture_without_captions(name: str) -> None:
        note_case(report, "pictures_without_captions", name)

    def on_missing_picture(name: str) -> None:
        note_case(report, "missing_pictures", name)

    def on_unread_file(name: str) -> None:
        note_case(report, "unread_files", name)

    settings = replace(
        settings,
        on_bad_record=on_bad_record,
        on_missing_picture=on_missing_picture,
        on_picture_without_captions=on_picture_without_captions,
        on_unread_file=on_unread_file,
    )
    captions = list(ProgressBar(read_captions(path, form, settings), f"reading {path}", unit="captions"))
    warn_of_cases(report, "bad_records", f"{path}: left out {{n:,}} bad captions, the first: {{first}}")
    if names := report.get("unread_files", {}).get("first"):
        warn_of_cases(report, "unread_files", f"{path}: {{n:,}} files are of languages or splits that are not read: {', '.join(names)}")
    text = f"{path}: {{n:,}} pictures have no caption and are left out, the first: {{first}}"
    warn_of_cases(report, "pictures_without_captions", text)
    if not captions:
        raise BadInput(report.get("bad_records", {}).get("first", [f"{path}: no captions in it"])[0])
    return captions


def keep_listed_pictures(captions: list[Caption], lists: Sequence[str], source: str, report: dict) -> list[Caption]:
    """The captions of pictures that the lists give a split, with that split. Raises BadInput when there are none."""
    split_of = read_split_lists(lists)
    all_captions, (captions, used) = captions, assign_listed_splits(captions, split_of)
    if outside := len(all_captions) - len(captions):
        report["in_no_split_list"] = outside
        print(f"left out: {outside:,} captions whose picture is in none of {', '.join(lists)}")
    for name in split_of:
        if name not in used:
            note_case(report, "listed_without_captions", f"{name} of {split_of[name]}")
    warn_of_cases(report, "listed_without_captions", "{n:,} listed pictures have no caption in it, the first: {first}")
    if not captions:
        raise BadInput(f"{source}: no picture of it is in {', '.join(lists)}")
    return captions


def compare_with_published(captions: list[Caption], data_set: str, source: str, report: dict) -> None:
    """Say where the counts are not those that were published for the data set."""
    report["counts"] = {"dataset": data_set, "differences": differences(data_set, captions)}
    for line in report["counts"]["differences"]:
        print(f"warning: {source}: {line}", file=sys.stderr)


def keep_present_pictures(
    captions: list[Caption], folder: str | None, source: str, report: dict, known: KnownKeys | None = None
) -> list[Caption]:
    """The captions whose picture is a file in the folder, if one is given; the others are noted in the report, and told
    together with the pictures that were missing when the file was read.

    Args:
        known: keys of image databases, which say where the pictures are

    Raises:
        BadInput: there is no such folder, or no caption is left.
    """
    if folder is not None:
        if not Path(folder).is_dir():
            raise BadInput(f"--photos {folder}: no such folder; give the folder that holds the pictures")
        is_there = _find_in_folder({c.image for c in captions}, folder, known)
        for caption in captions:
            if not is_there[caption.image]:
                note_case(report, "missing_pictures", caption.image)
        captions = [c for c in captions if is_there[c.image]]
    warn_of_cases(report, "missing_pictures", "left out {n:,} captions whose picture is missing, the first: {first}")
    if not captions:
        raise BadInput(f"{source}: no picture of it is there; check --photos and --downloaded")
    return captions


def _find_in_folder(images: Iterable[str], folder: str, known: KnownKeys | None) -> dict[str, bool]:
    """Whether each picture is a file: of that name, as the image databases say, or below another folder that its name allows."""
    is_there = {image: Path(folder, image).is_file() for image in images}
    if not all(is_there.values()) and picture_names(Path(folder)):
        files = PictureFiles(folder, known.pictures if known else None)
        for image in [image for image, found in is_there.items() if not found]:
            key = known.find(image) if known else None
            is_there[image] = bool((key and files.find(key)) or files.find_named(image))
        for line in files.remarks():
            print(line, file=sys.stderr)
    return is_there


def leave_out_excluded(
    captions: list[Caption],
    photo_of: Callable[[str], str],
    words: Sequence[str],
    same: Mapping[str, set[str]],
    splits: Iterable[str],
    report: dict,
    strict: bool = False,
) -> list[Caption]:
    """The captions without the photographs that other files hold, for splits that are trained on. Bad captions of those files are
    noted in the report and told: a photograph of which no caption is good cannot be left out.

    Args:
        photo_of: of the captions' format
        words: files and splits of them, see `read_excluded_photos`
        same: names of one photograph, see `data.annotations.photographs.read_addresses`
        splits: those that the photographs are left out of
        strict: stop at the first bad caption
    """

    def on_bad_record(message: str, captions: int) -> None:
        note_case(report, "bad_records_of_excluded", message, captions)

    settings = STRICT if strict else ReadingOptions(on_bad_record=on_bad_record)
    excluded = set().union(*(read_excluded_photos(word, settings) for word in words))
    text = "--exclude: {n:,} bad captions are passed over, and pictures that have no other are not excluded; the first: {first}"
    warn_of_cases(report, "bad_records_of_excluded", text)
    excluded = set().union(*(all_names(photo, same) for photo in excluded))
    excluded |= {bare_name(photo) for photo in excluded}
    captions, dropped = leave_out_photos(captions, photo_of, excluded, same, splits)
    report["excluded_pictures"] = dict(dropped)
    left_out = ", ".join(f"{n:,} pictures of {split}" for split, n in dropped.items()) or "no picture"
    print(f"excluded: {left_out}, which {', '.join(words)} have")
    return captions


def report_photos_in_several_splits(
    captions: list[Caption], photo_of: Callable[[str], str], same: Mapping[str, set[str]], report: dict
) -> None:
    """Note and tell which photographs are in more than one split."""
    for photo, places in find_photos_in_several_splits(captions, photo_of, same).items():
        note_case(report, "in_several_splits", describe_photo(photo, places))
    warn_of_cases(report, "in_several_splits", "{n:,} photographs are in several splits, the first: {first}")


def settle_splits(captions: list[Caption], photo_of: Callable[[str], str], report: dict) -> list[Caption]:
    """Put photographs that are in several splits into one of them; they are noted and told.

    So are splits that training, validation and test do not read, such as Karpathy's restval.
    """
    captions, several = put_photos_in_one_split(captions, photo_of)
    for line in several:
        note_case(report, "in_several_splits", line)
    warn_of_cases(report, "in_several_splits", "{n:,} photographs are in several splits, the first: {first}")
    others = Counter(c.split for c in captions if c.split.partition("_")[0] not in ("train", "val", "test"))
    if others:
        report["other_splits"] = dict(others)
        told = ", ".join(f"{count:,} captions of split {name}" for name, count in others.items())
        print(f"warning: {told}: the training command does not read them", file=sys.stderr)
    return captions


def keep_chosen(
    captions: list[Caption], name: str, wanted: Sequence[str] | None, source: str, report: dict
) -> list[Caption]:
    """The captions whose ``split`` or ``language`` is among those wanted; all, where None are.

    How many captions of which others are left out is noted in the report; of splits it is told, too.

    Raises:
        BadInput: one that no caption has.
    """
    if wanted is None:
        return captions
    found = Counter(getattr(c, name) for c in captions)
    for value in wanted:
        if value not in found:
            raise BadInput(f"{source}: no caption of {name} {value}, found {dict(found)}")
    others = {value: count for value, count in found.items() if value not in wanted}
    if others:
        report[f"left_out_{name}s"] = others
    if others and name == "split":
        print(f"left out: {', '.join(f'{count:,} captions of split {value}' for value, count in others.items())}")
    return [c for c in captions if getattr(c, name) in wanted]
