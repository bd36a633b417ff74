"""Multi30K's raw files (github.com/multi30k/dataset): captions in English, German, French and Czech.

::

    data/task1/raw/{train,val,test_2016_flickr,test_2017_flickr,test_2018_flickr,test_2017_mscoco}.{en,de,fr,cs}[.gz]
    data/task1/image_splits/{the same}.txt               one picture a line, as in the files of captions
    data/task2/raw/{train,val,test_2016 ...}.{1..5}.{en,de}[.gz]
    data/task2/image_splits/{train,val,test_2016 ...}_images.txt

Task 1 translates one English caption of a picture; task 2 has five captions a language, written independently. Languages
of a split that are not there are left out: some tests were published with fewer, or later. Files of other languages, and of splits
without a list of pictures, are not read, and named.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from data.annotations.records import (
    ADVICE,
    STRICT,
    AnnotationFormat,
    Caption,
    ReadingOptions,
    kept_if_valid,
    photo_of_flickr,
)
from data.errors import BadInput
from data.storage.text_files import read_lines

LANGUAGES = {1: ("en", "de", "fr", "cs"), 2: ("en", "de")}
# Task 2 calls test_2017 what task 1 calls test_2018_flickr: the pictures are the same 1,071.
SPLITS = {
    (1, "test_2016_flickr"): "test_2016",
    (1, "test_2017_flickr"): "test_2017",
    (1, "test_2018_flickr"): "test_2018",
    (1, "test_2017_mscoco"): "test_coco",
    (2, "test_2017"): "test_2018",
}


def read_task1(path: str | Path, settings: ReadingOptions = STRICT) -> Iterator[Caption]:
    """One aligned caption of a picture in each language; caption ids ``1000092795#fr``.

    Args:
        path: the repository's folder, or its ``data``

    Raises:
        BadInput: no file of captions there; and, reported, one with another number of lines than its list of pictures,
            or an empty caption.
    """
    return _read(path, settings, {1: LANGUAGES[1]})


def read_task2(path: str | Path, settings: ReadingOptions = STRICT) -> Iterator[Caption]:
    """Five independent captions of a picture in English and in German; caption ids ``1000092795#de0``. As `read_task1`."""
    return _read(path, settings, {2: LANGUAGES[2]})


def read_both(path: str | Path, settings: ReadingOptions = STRICT) -> Iterator[Caption]:
    """What multilingual retrieval is trained and tested on: task 2's five in English and German, task 1's one in French
    and Czech. As `read_task1`."""
    return _read(path, settings, {2: LANGUAGES[2], 1: ("fr", "cs")})


def _read(path: str | Path, settings: ReadingOptions, wanted: dict[int, tuple[str, ...]]) -> Iterator[Caption]:
    root = Path(path, "data") if Path(path, "data").is_dir() else Path(path)
    seen: set[str] = set()
    found = False
    for task, languages in wanted.items():
        for name in _unread_files(root, task):
            settings.on_unread_file(name)
        for listing in sorted(root.glob(f"task{task}/image_splits/*.txt")):
            stem = listing.stem.removesuffix("_images")
            split = SPLITS.get((task, stem), stem)
            pictures = [line.strip().partition("#")[0] for line in read_lines(listing, ADVICE)]  # COCO's have a number behind #
            for language in languages:
                for number in ("",) if task == 1 else tuple("12345"):
                    name = f"{stem}.{number}.{language}" if number else f"{stem}.{language}"
                    file = next(
                        (f for f in (root / f"task{task}/raw" / (name + e) for e in ("", ".gz")) if f.exists()), None
                    )
                    if file is None:
                        continue
                    found = True
                    mark = f"{language}{int(number) - 1}" if number else language
                    yield from _captions(file, pictures, listing, split, language, mark, seen, settings)
    if not found:
        tasks = " and ".join(f"task{task}/raw" for task in wanted)
        raise BadInput(f"{root}: no captions in {tasks}; give the folder of Multi30K's repository, or its data folder")


def _unread_files(root: Path, task: int) -> list[str]:
    """Files in a task's ``raw`` that are of a language nobody reads, or of a split whose pictures are listed nowhere."""
    listed = {path.stem.removesuffix("_images") for path in root.glob(f"task{task}/image_splits/*.txt")}
    unread = []
    for path in sorted(root.glob(f"task{task}/raw/*.*")):
        stem, _, language = path.name.removesuffix(".gz").rpartition(".")
        split = stem.rpartition(".")[0] if task == 2 else stem
        if (split in listed) != (language in LANGUAGES[task]):
            unread.append(f"task{task}/raw/{path.name}")
    return unread


def _captions(
    file: Path,
    pictures: list[str],
    listing: Path,
    split: str,
    language: str,
    mark: str,
    seen: set[str],
    settings: ReadingOptions,
) -> Iterator[Caption]:
    texts: list[str] = []
    try:
        texts += (line.strip() for line in read_lines(file, ADVICE))
        if len(texts) != len(pictures):
            raise BadInput(f"{file}: {len(texts):,} captions, but {listing} lists {len(pictures):,} pictures")
    except BadInput as error:
        settings.on_bad_record(f"{error}; the file is left out", len(texts) or len(pictures))
        return
    for n, (picture, text) in enumerate(zip(pictures, texts, strict=True), 1):
        caption = Caption(picture, text, f"{PurePosixPath(picture).stem}#{mark}", split, language)
        yield from kept_if_valid(f"{file}: line {n}", caption, seen, settings)


FORMAT = AnnotationFormat(read_both, data_set_of=lambda name: "multi30k", photo_of=photo_of_flickr, names_splits=True)
FORMAT_TASK1 = AnnotationFormat(read_task1, ("*/",), lambda name: "multi30k-task1", photo_of_flickr, names_splits=True)
FORMAT_TASK2 = AnnotationFormat(read_task2, data_set_of=lambda name: "multi30k-task2", photo_of=photo_of_flickr, names_splits=True)
