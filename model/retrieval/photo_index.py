"""A folder of photographs made searchable with a checkpoint: their regions, extracted as those of its training, and their index.

    made = index_photos("photos", "runs/x/best", "data_sets/mine")     # data_sets/mine/regions, data_sets/mine/index

What is there already is used: a photograph that is as it was (its size and time) is not extracted again, one that is new or changed is,
and one that is gone leaves. ``photos.json`` beside the image DB says how the photographs were.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.downloads.hub import local_folder
from data.errors import BadInput
from data.notices import say
from data.regions.db import Found, RegionDB, Regions, layout_names, layout_of, read_keys
from data.regions.extractor_record import read_extractor
from data.regions.photos import Photo, find_photos
from data.regions.pictures import pictures_of
from data.regions.records import CheckedRecords
from data.regions.writer import was_begun
from data.storage.digest import NOWHERE
from data.storage.digest import cache_folder as user_cache
from data.storage.locks import only_writer
from data.storage.text_files import read_json, write_json
from model.bi_encoder import LightningDOT
from model.extractors.extraction import Extraction, ExtractionSettings
from model.extractors.pool import PhotoImages
from model.initial import check_same_tokenizer
from model.made_from import check_regions
from model.precision import Precision, choose_device, for_inference
from model.retrieval.encoding import Encoding
from model.retrieval.indexing import build_index
from model.retrieval.own_pictures import OwnPictures, one_thread
from model.retrieval.sources import caption_source, image_source, text_source

STATE = "photos.json"  # key → the photograph's name, size and time, when its regions were extracted


@dataclass
class PhotoOptions:
    """How photographs are made searchable.

    Args:
        image_key: makes the id of a photograph of its name, as for scripts/extract_regions.py
        weights: where the extractor's weights are now; None: where they were when the training regions were extracted
        workers: processes that extract; 0: this one alone. The regions do not depend on it
        device: where extractor and model compute: "cpu", "cuda", "cuda:N", or "auto" for a GPU when there is one
        precision: how the model computes
        progress: whether a bar shows on the screen while the index is built
    """

    image_key: str = "{stem}.npz"
    weights: str | None = None
    workers: int = 0
    device: torch.device | str = "cpu"
    precision: Precision = "fp32"
    progress: bool = True


@dataclass(frozen=True)
class PhotoIndex:
    """Where the parts of a searchable folder of photographs are: the photographs, their image DB, and their index."""

    photos: Path
    regions: Path
    index: Path


def cache_folder(photos: str | Path, own: OwnPictures) -> Path:
    """Where photographs are made searchable when nobody says it: a folder for these photographs and the checkpoint's extractor and boxes
    below ``XDG_CACHE_HOME/lightningdot``, else below ``~/.cache/lightningdot``. Raises BadInput for a user without a home directory."""
    place = os.path.realpath(photos)
    known = json.dumps([place, own.record.kind, own.record.options, own.record.weights, vars(own.made_from.boxes)], sort_keys=True)
    if (root := user_cache()) == NOWHERE:
        raise BadInput(f"{photos}: nowhere to keep what is found in them, since this user has no home directory; set XDG_CACHE_HOME to a folder")
    return root / f"{Path(place).name}-{hashlib.sha256(known.encode()).hexdigest()[:16]}"


def index_photos(
    photos: str | Path, checkpoint: str | Path, out: str | Path | None = None, options: PhotoOptions | None = None
) -> PhotoIndex:
    """Extract the photographs of a folder (or tar file) as the checkpoint's training regions were, and build their index.

    Args:
        out: gets ``regions`` and ``index``; None: the `cache_folder`, whose index is one of several where several checkpoints ask

    Raises:
        BadInput: no photographs, two of one key, a checkpoint that does not say its extractor or whose weights are not here, regions in
            ``out`` of another extractor, another process that writes there.
    """
    options = options or PhotoOptions()
    device = choose_device(options.device)
    own = OwnPictures(checkpoint, options.weights, device)
    folder = Path(out) if out is not None else cache_folder(photos, own)
    model = LightningDOT.from_pretrained(checkpoint).to(device)
    index = folder / ("index" if out is not None else f"index-{model.fingerprint}")
    with only_writer(folder):
        extract_photos(photos, own, folder / "regions", options)
        regions = RegionDB(folder / "regions", own.made_from.boxes)
        check_regions(checkpoint, regions)
        for_inference(model, device, options.precision)
        encoding = Encoding(device, options.precision, progress=options.progress)
        build_index(image_source(model, regions, regions.keys), index, encoding, checkpoint=checkpoint)
    return PhotoIndex(Path(photos), folder / "regions", index)


def index_captions(
    captions: str | Path | Sequence[str], checkpoint: str | Path, made: PhotoIndex, options: PhotoOptions
) -> tuple[CaptionDB | dict[str, str], Path]:
    """An index of captions beside that of photographs.

    Args:
        captions: a text database, or texts

    Returns: the database, or the texts by their ids, which are their numbers; and the index

    Raises:
        BadInput: as `model.retrieval.indexing.build_index`; a text without a word, or longer than the model's.
    """
    device = choose_device(options.device)
    model = LightningDOT.from_pretrained(checkpoint).to(device)
    for_inference(model, device, options.precision)
    found: CaptionDB | dict[str, str]
    if isinstance(captions, str | Path):
        found = CaptionDB(captions)
        check_same_tokenizer(checkpoint, found)
        source = caption_source(model, found, found.ids)
    else:
        found = {str(number): text for number, text in enumerate(captions)}
        source = text_source(model, found, CaptionTokenizer.from_pretrained(local_folder(checkpoint) / "tokenizer"))
    index = made.index.with_name(made.index.name.replace("index", "captions", 1))
    build_index(source, index, Encoding(device, options.precision, progress=options.progress), checkpoint=checkpoint)
    return found, index


def extract_photos(photos: str | Path, own: OwnPictures, out: Path, options: PhotoOptions) -> None:
    """Bring the image DB ``out`` of a folder of photographs up to date, as far as it was made here; an image DB that another command made
    is used as it is, which is said. Photographs that cannot be read are said, too, and the rest goes on.

    Raises:
        BadInput: as `index_photos`.
    """
    found = find_photos(str(photos), None, options.image_key)
    there = sorted(path.parent for path in out.glob("*/data.mdb") if layout_of(path.parent.name) and not was_begun(path.parent))
    if there and not (out / STATE).is_file():
        say(f"{out}: is there already and used as it is; delete it to extract the regions again")
        return
    record, boxes = own.record, own.made_from.boxes
    made_by = read_extractor(there[0]) if there else record
    if made_by is None or not made_by.is_same(record) or (there and there[0].name != layout_names(boxes)[0]):
        raise BadInput(
            f"{out}: holds {there[0].name} of {made_by.described() if made_by else 'an extractor that is not known'}, the checkpoint was "
            f"trained on {layout_names(boxes)[0]} of {record.described()}; give another folder"
        )
    now = {photo.key: _state_of(photo) for photo in found}
    before = read_json(out / STATE, f"delete {out}", {"photos": {str: object}})["photos"] if there else {}
    if there and before == now:
        say(f"{out}: up to date, {len(read_keys(there[0])):,} photographs")
        return
    kept = {key for key in read_keys(there[0]) if before.get(key) == now.get(key)} if there else set()
    if not (out / STATE).is_file():  # from here on it is known who makes this image DB, whenever that ends
        write_json(out / STATE, {"photos": {}}, indent=None)
    command = {"photos": str(photos), "image_key": options.image_key, "extractor": record.described(), "boxes": vars(boxes), "states": _digest(now)}
    extraction = Extraction(ExtractionSettings(out, boxes, False, (1, 1), bool(there), command))
    with one_thread():  # so that the sums are those of the training regions
        extractor = own.extractor
        device = torch.device("cpu") if extractor.only_on_cpu else own.device
        images = PhotoImages([photo for photo in found if photo.key not in kept], extractor, options.workers, device)
        records = CheckedRecords(there[0]) if kept else None
        report = extraction.run(_WithKept(found, kept, records, images), record, pictures_of(found, str(photos), options.image_key))
    write_json(out / STATE, {"photos": now}, indent=None)
    say(report.summary(extraction))


@dataclass
class _WithKept:
    """Photographs (`model.extractors.extraction.Images`) of which some are taken from an image DB as they were."""

    photos: list[Photo]
    kept: set[str]
    records: CheckedRecords | None
    images: PhotoImages

    def found(self, is_wanted: Callable[[str, str], bool]) -> tuple[int, Iterator[Found]]:
        wanted = [photo for photo in self.photos if is_wanted(photo.name, photo.key)]
        keys = {photo.key for photo in wanted}
        _, extracted = self.images.found(lambda name, key: key in keys)
        return len(wanted), itertools.chain(self._stored([photo for photo in wanted if photo.key in self.kept]), extracted)

    def _stored(self, photos: list[Photo]) -> Iterator[Found]:
        if self.records is not None:
            for photo in photos:
                yield Found(photo.name, photo.key, Regions(**self.records.arrays(photo.key)))


def _state_of(photo: Photo) -> list:
    """A photograph's name, size and time (of a tar that of the whole file)."""
    with suppress(OSError):
        info = os.stat(photo.path)
        return [photo.inside, photo.size if photo.offset is not None else info.st_size, info.st_mtime_ns]
    return [photo.inside, None, None]


def _digest(states: dict) -> str:
    return hashlib.sha256(json.dumps(states, sort_keys=True).encode()).hexdigest()[:16]
