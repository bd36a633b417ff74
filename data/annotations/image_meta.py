"""The original's ``coco_meta.json`` and ``flickr_meta.json``: captions of the pictures by a captioning model, the third view."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from data.annotations.records import (
    ADVICE,
    STRICT,
    AnnotationFormat,
    Caption,
    ReadingOptions,
    captions_of_records,
    captions_of_sentences,
    require,
)
from data.storage.text_files import read_json

MACHINE_WRITTEN = "caption_multiple"  # "annotation" holds the human ones: --fields annotation


def read_image_meta(path: str | Path, settings: ReadingOptions = STRICT) -> Iterator[Caption]:
    """Captions of the file: an object of image-DB key → ``{"caption_multiple": [captions], ...}``, all English.

    A picture is its key, so that ``{stem}.npz`` makes the same key again. Caption ids are ``{key without .npz}#{number}``; the
    split is ``settings.split``. ``settings.fields`` other than the default names another list of captions.

    Raises:
        BadInput: a file of another form; and, reported, a picture without that list, an empty caption.
    """
    content = read_json(path, ADVICE)
    field = MACHINE_WRITTEN if settings.fields == ("captions",) else settings.fields[0]
    seen: set[str] = set()

    def captions_of_image(where: str, entry: tuple[str, object]) -> Iterator[Caption]:
        key, record = entry
        require(isinstance(record, dict) and field in record, where, "it", record, f"an object with {field}")
        texts = [record[field]] if isinstance(record[field], str) else record[field]
        if texts == []:
            settings.on_picture_without_captions(key)
        stem = PurePosixPath(key).stem
        numbers = iter(range(len(texts) if isinstance(texts, list) else 0))

        def caption_of(at: str, text: str) -> Caption:
            return Caption(key, text, f"{stem}#{next(numbers)}", settings.split, "en")

        yield from captions_of_sentences(where, texts, caption_of, seen, settings)

    yield from captions_of_records(((f"{path}: {key}", (key, value)) for key, value in content.items()), captions_of_image, settings)


FORMAT = AnnotationFormat(read_image_meta, ("*_meta.json",))
