"""COCO-CN (Li et al., IEEE Transactions on Multimedia 2019): Chinese captions of some of COCO's pictures of 2014.

::

    coco-cn-version1805v1.1/imageid.human-written-caption.txt      COCO_val2014_000000123456#0<TAB>caption
                            imageid.manually-translated-caption.txt and their like: the same
                            coco-cn_train.txt, coco-cn_val.txt, coco-cn_test.txt: a picture a line, COCO_val2014_000000123456
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data.annotations.records import (
    ADVICE,
    STRICT,
    AnnotationFormat,
    Caption,
    ReadingOptions,
    captions_of_records,
    kept_if_valid,
    number_of_id,
    numbered_lines,
    require,
)
from data.errors import BadInput
from data.storage.text_files import read_lines

CAPTIONS = "imageid.human-written-caption.txt"
SPLITS = ("train", "val", "test")


def read_coco_cn(path: str | Path, settings: ReadingOptions = STRICT) -> Iterator[Caption]:
    """Captions of the folder's human-written file, or of a file of captions that is named; the lists of the splits lie beside it.

    Caption ids are the file's, ``COCO_val2014_000000123456#0`` or ``...#zhm#0``; a picture is COCO's file, ``.jpg`` behind its name.

    Raises:
        BadInput: a list of the splits is not there, or has a picture of another; and, reported, a line of another form, a
            picture in no list, an empty caption or an id used twice.
    """
    file = Path(path, CAPTIONS) if Path(path).is_dir() else Path(path)
    split_of = _read_splits(file.parent)
    seen: set[str] = set()

    def captions_of_line(where: str, line: str) -> Iterator[Caption]:
        caption_id, _, text = _cut(line)
        name, mark, rest = caption_id.partition("#")
        right = name and mark and rest.rpartition("#")[2].isdecimal() and text
        require(right, where, "the line", line, "COCO_val2014_000000123456#0, a tab, a caption")
        require(name in split_of, where, "the picture", name, "one that is in coco-cn_train.txt, _val.txt or _test.txt")
        number = number_of_id(name.rpartition("_")[2])
        yield from kept_if_valid(where, Caption(f"{name}.jpg", text, caption_id, split_of[name], "zh", None, number), seen, settings)

    yield from captions_of_records(numbered_lines(file), captions_of_line, settings)


def _cut(line: str) -> tuple[str, str, str]:
    """Id, separator, caption: at the first tab or, where the id has none behind it, space of ASCII."""
    tab, space = line.find("\t"), line.find(" ")
    return line.partition("\t" if tab >= 0 and (space < 0 or tab < space) else " ")


def _read_splits(folder: Path) -> dict[str, str]:
    """Picture -> split. Raises BadInput when a list is absent, or two have one picture."""
    split_of: dict[str, str] = {}
    for split in SPLITS:
        file = folder / f"coco-cn_{split}.txt"
        if not file.is_file():
            raise BadInput(f"{file}: no such file; COCO-CN's lists of train, val and test lie beside its captions")
        for line in read_lines(file, ADVICE):
            name = line.strip()
            if name and split_of.setdefault(name, split) != split:
                raise BadInput(f"{file}: {name} is in coco-cn_{split_of[name]}.txt too; a picture is in one split")
    return split_of


def data_set_of(name: str) -> str | None:
    """The published data set of a file's or folder's name; those that were translated are others."""
    return "coco-cn" if name == CAPTIONS or name.startswith("coco-cn") else None


FORMAT = AnnotationFormat(read_coco_cn, ("imageid.*-caption*.txt", "coco-cn*/"), data_set_of, names_splits=True)
