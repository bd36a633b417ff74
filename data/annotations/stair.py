"""STAIR Captions (Yoshikawa et al., ACL 2017): Japanese captions of COCO's pictures of 2014, in files laid out as COCO's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from data.annotations.coco import captions_of_coco
from data.annotations.records import STRICT, AnnotationFormat, Caption, ReadingOptions
from data.errors import BadInput

FILE_NAME = re.compile(r"stair_captions_v[\d.]+_(train|val)\.json(\.gz)?")


def read_stair(path: str | Path, settings: ReadingOptions = STRICT) -> Iterator[Caption]:
    """Captions of ``stair_captions_v1.2_train.json`` and its like, or of both files of a folder, by picture.

    The split is the one in the file's name, COCO's own, unless ``settings.split_is_given``; Karpathy's come from his file:
    ``--split-lists dataset_coco.json``. Caption ids are the file's numbers; of a folder ``val#17``, since both files count.
    ``*_tokenized.json`` hold the same captions with their words, and are read when they are given by name.

    Raises:
        BadInput: no such file in the folder, or two of one split; and as `data.annotations.coco.read_coco`.
    """
    if not Path(path).is_dir():
        found = re.search(r"_(train|val)(?=[._])", Path(path).name)
        named = None if settings.split_is_given or found is None else found[1]
        yield from captions_of_coco(path, settings, named or settings.split, "ja")
        return
    files: dict[str, Path] = {}
    for file in sorted(Path(path).iterdir()):
        if found := FILE_NAME.fullmatch(file.name):
            if found[1] in files:
                raise BadInput(f"{path}: both {files[found[1]].name} and {file.name} are STAIR's {found[1]}; give one file, or move one away")
            files[found[1]] = file
    if not files:
        raise BadInput(f"{path}: no stair_captions_v1.2_train.json or _val.json in it; give the folder that holds them, or a file")
    for split, file in files.items():
        yield from captions_of_coco(file, settings, settings.split if settings.split_is_given else split, "ja", f"{split}#")


FORMAT = AnnotationFormat(read_stair, ("stair_captions_*.json*",))
