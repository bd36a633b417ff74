"""The JSON tables of a text DB as columns: rows are captions, in the order of ``id2len.json``, and pictures, in the order
of ``img2txts.json``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from data.errors import BadInput
from data.storage.columns import Lists, Numbers, SelectedStrings, Strings, Table, store_arrays, string_arrays
from data.storage.record_sums import FILE as SUMS_FILE
from data.storage.record_sums import RecordSums
from data.storage.regular_files import is_there
from data.storage.text_files import is_utf8

JSON_TABLES = ("id2len.json", "txt2img.json", "img2txts.json", "txt2lang.json")  # the last one is ours


def table_files(folder: Path) -> list[Path]:
    """Those that a text DB has."""
    return [folder / name for name in JSON_TABLES if name != "txt2lang.json" or is_there(folder / name)]


def build_columns(folder: Path, read: Callable[[str], Mapping]) -> dict[str, np.ndarray]:
    """The arrays that `CaptionTables` looks at.

    Args:
        folder: of the text DB, for messages
        read: name of one of the JSON tables -> what it holds; called one after the other, since each may be gigabytes

    Raises:
        BadInput: a caption without a picture or a picture without captions, tables that disagree, or values of another kind.
    """
    lengths = read("id2len.json")
    _check_texts(folder / "id2len.json", lengths)
    arrays = string_arrays("id", lengths) | {"length": _whole_numbers(folder / "id2len.json", lengths)}
    row_of = {caption_id: row for row, caption_id in enumerate(lengths)}
    del lengths

    img2txts = read("img2txts.json")
    _check_texts(folder / "img2txts.json", img2txts)
    arrays |= string_arrays("image", img2txts)
    counts = np.zeros(len(img2txts) + 1, np.int64)
    rows = []
    for n, (key, captions) in enumerate(img2txts.items(), 1):
        if not isinstance(captions, list) or not set(map(type, captions)) <= {str}:
            raise BadInput(f"{folder / 'img2txts.json'}: {key} has {captions!r:.60}, expected a list of ids; build the text DB again")
        known = [row_of[i] for i in captions if i in row_of]
        counts[n] = len(known)
        rows.append(np.array(known, np.int32))
    number_of = {key: n for n, key in enumerate(img2txts)}
    del img2txts
    arrays |= {"captions": np.concatenate([np.empty(0, np.int32), *rows]), "captions_ends": np.cumsum(counts)}
    del rows

    txt2img = read("txt2img.json")
    _check_texts(folder / "txt2img.json", txt2img.values())
    image = np.fromiter((number_of.get(txt2img.get(i), -1) for i in row_of), np.int32, len(row_of))
    if (image < 0).any():
        caption_id = next(i for i, n in zip(row_of, image, strict=True) if n < 0)
        if caption_id not in txt2img:
            raise BadInput(f"{folder / 'txt2img.json'}: no image for caption {caption_id} of id2len.json")
        raise BadInput(f"{folder / 'img2txts.json'}: no captions for {txt2img[caption_id]} of txt2img.json")
    arrays["image_of"] = image
    listed = np.repeat(np.arange(len(counts) - 1), counts[1:])  # the picture under which each of "captions" stands
    if len(differ := np.flatnonzero(image[arrays["captions"]] != listed)):
        caption_id, keys = list(row_of)[arrays["captions"][differ[0]]], list(number_of)
        raise BadInput(
            f"{folder / 'txt2img.json'}: caption {caption_id} is of {txt2img[caption_id]}, and img2txts.json has it under {keys[listed[differ[0]]]} "
            f"({len(differ):,} such); copy the text DB again or build it again"
        )
    del txt2img, number_of

    if folder / "txt2lang.json" in table_files(folder):
        txt2lang = read("txt2lang.json")
        _check_texts(folder / "txt2lang.json", txt2lang.values())
        names: dict[str, int] = {}
        languages = (names.setdefault(txt2lang.get(i, ""), len(names)) for i in row_of)
        arrays["language"] = _smallest(np.fromiter(languages, np.int32, len(row_of)))
        arrays |= string_arrays("language", names)
    return arrays


def _check_texts(path: Path, values: Iterable) -> None:
    """Refuse a table whose ``values`` are not all texts that UTF-8 has."""
    for value in values:
        if type(value) is not str or not (value.isascii() or is_utf8(value)):
            raise BadInput(f"{path}: holds {ascii(value)[:60]}, expected texts; build the text DB again")


def _whole_numbers(path: Path, table: Mapping) -> np.ndarray:
    try:
        values = np.array(list(table.values()) or [0])
        if values.ndim == 1 and values.dtype.kind == "i" and 0 <= values.min() <= values.max() < 1 << 31:
            return values[: len(table)].astype(np.int32)
    except ValueError:  # lists of several lengths
        pass
    raise BadInput(f"{path}: holds something other than numbers of word pieces; build the text DB again")


def _smallest(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))


def store_columns(folder: Path, tables: Mapping[str, Mapping], sums: RecordSums) -> None:
    """Store the columns of `tables`, whose JSON files are in the folder, and of the checksums of its records. Raises OSError when they
    cannot be written."""
    arrays = columns_with_sums(build_columns(folder, tables.__getitem__), sums, folder)
    store_arrays(folder / "columns", column_files(folder), arrays)


def columns_with_sums(arrays: dict[str, np.ndarray], sums: RecordSums | None, folder: Path) -> dict[str, np.ndarray]:
    """Columns, and with them the checksum of each caption's record, where there are any."""
    return arrays if sums is None else arrays | sums.columns(Strings(arrays, "id"), folder)


def column_files(folder: Path) -> list[Path]:
    """The files of a text DB from which its columns are made."""
    return table_files(folder) + [path for path in (folder / SUMS_FILE,) if is_there(path)]


class CaptionTables:
    """Columns as the lists and dicts that the JSON tables are; ids in `img2txts` that `ids` lacks are left out.

    Attributes:
        ids, lengths, txt2img, img2txts, languages: as in `CaptionDB`
        images: the keys of `img2txts`
        image_of: int32 [T] of each caption the row of its picture in `images`
    """

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.ids, self.images = Strings(arrays, "id"), Strings(arrays, "image")
        self.image_of = arrays["image_of"]
        self.lengths = Table(self.ids, Numbers(arrays["length"]))
        self.txt2img = Table(self.ids, SelectedStrings(self.images, self.image_of))
        self.img2txts = Table(self.images, Lists(self.ids, arrays["captions"], arrays["captions_ends"]))
        self.languages: Mapping[str, str] = {}
        if "language" in arrays:
            self.languages = Table(self.ids, SelectedStrings(Strings(arrays, "language"), arrays["language"]))
