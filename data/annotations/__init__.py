"""Public annotation files, read into captions. ``FORMATS`` is the registry: a format is one file here and its line below."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from data.annotations import (
    coco,
    coco_cn,
    image_meta,
    jsonl,
    karpathy,
    multi30k,
    stair,
    token,
    visual_genome,
    web_pairs,
)
from data.annotations.records import STRICT, AnnotationFormat, Caption, ReadingOptions
from data.regions.keys import normal_name

FORMATS: dict[str, AnnotationFormat] = {
    "jsonl": jsonl.FORMAT,
    "karpathy": karpathy.FORMAT,
    "coco": coco.FORMAT,
    "stair": stair.FORMAT,
    "coco-cn": coco_cn.FORMAT,
    "token": token.FORMAT,
    "multi30k": multi30k.FORMAT,
    "multi30k-task1": multi30k.FORMAT_TASK1,
    "multi30k-task2": multi30k.FORMAT_TASK2,
    "pairs": web_pairs.FORMAT,
    "visual-genome": visual_genome.FORMAT,
    "image-meta": image_meta.FORMAT,
}
FormatName = Literal[tuple(FORMATS)]  # type: ignore[valid-type]


def read_captions(path: str | Path, form: str, settings: ReadingOptions = STRICT) -> Iterator[Caption]:
    """The captions of a file (of Multi30K: of its folder) in the format ``form``, a key of ``FORMATS``; names of pictures are in
    Unicode's composed form.

    Raises:
        BadInput: a file that cannot be read or is something else; and a bad record, unless ``settings.on_bad_record``
            returns.
    """
    for caption in FORMATS[form].read(path, settings):
        yield caption if caption.image.isascii() else replace(caption, image=normal_name(caption.image))


def guess_format(path: str | Path) -> str:
    """The format, a key of ``FORMATS``, of a file that is named as files of that format are; else JSON lines."""
    name = Path(path).name + "/" * Path(path).is_dir()
    lengths = {
        form: max((len(p) for p in own.file_names if fnmatchcase(name, p) and p.endswith("/") == name.endswith("/")), default=0)
        for form, own in FORMATS.items()
    }
    return max(lengths, key=lengths.get)
