#!/usr/bin/env python
"""Photographs, or features that somebody has extracted → image DB: boxes, features and soft labels in the UNITER layout.

python scripts/extract_regions.py --photos photos --out db/regions                                # every photo of a folder
python scripts/extract_regions.py --photos photos.tar --out db/regions --list train.txt --workers 8    # those in a list
python scripts/extract_regions.py --photos photos --out db/regions --extractor butd --weights frcnn-vg-finetuned
python scripts/extract_regions.py --photos photos --out db/regions --extractor hf:facebook/dinov2-base
python scripts/extract_regions.py --photos train2014_obj36.tsv --out db/regions --extractor precomputed
python scripts/extract_regions.py --photos db/regions --out /local/regions --extractor precomputed --soft-labels none    # a smaller copy
torchrun --nproc-per-node 8 scripts/extract_regions.py --photos photos --out db/regions --extractor butd   # 8 GPUs, then
python scripts/extract_regions.py --photos photos --out db/regions --extractor butd --merge                # their parts

A run that was stopped goes on when the same command is given again.
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # scripts run from any folder, without installing

from configs import cli  # isort: skip (before torch)
import torch

from configs.idle import refuse_idle
from data.errors import BadInput
from data.regions.box_forms import BoxForm, BoxFormat, BoxUnits, SizeOrder
from data.regions.conversion import GridOrder
from data.regions.db import BoxOptions, SoftLabels
from data.regions.photos import find_photos
from data.regions.pictures import pictures_of
from data.regions.precomputed import PrecomputedOptions
from data.regions.stored_images import given_images
from data.storage.locks import claim_output
from model.extractors.base import ExtractorOptions
from model.extractors.extraction import Extraction, ExtractionSettings, build_extractor, extractor_record, parse_shard
from model.extractors.pool import PhotoImages
from model.precision import choose_device


@dataclass
class Options:
    """Extract region features of photographs into an image DB; a photo's key is its name without suffix, plus .npz.

    Args:
        photos: folder of photographs, searched with its subfolders, or uncompressed tar file; with precomputed the features:
            TSV or HDF5 file, folder of .npz, .npy or .h5 files, or an image DB, which is stored again
        out: folder of the image DB to write; report.json in it lists the photos that could not be read
        list: file that names the photographs to use, one per line, relative to `photos`
        extractor: random-conv (frozen random network, boxes from the pixels; needs no weights), butd (bottom-up attention's
            Faster R-CNN), torchvision:NAME (its detectors), hf:NAME (patches of a Hugging Face vision backbone) or
            precomputed (features that are there already)
        weights: butd: folder of config.yaml and pytorch_model.bin, or its name on the hub; torchvision: file of weights
        image_key: key of a photo: {stem} its name without extension, {lower} in lower case, {parent} its folder, {parents} all
        compressed: write compressed values: smaller, slower to read
        soft_labels: keep them, or none: a record of 2,048 features and 1,601 classes is 44% smaller, and mrckl and mrc cannot read it
        conf_th: confidence above which a region counts
        max_bb: most regions of a photo that readers use, and a detector keeps
        min_bb: fewest regions of a photo that readers use, and a detector keeps
        feature_dim: random-conv: width of a region's feature
        num_labels: random-conv and precomputed: classes of the soft labels, background included; 0 for none
        size: random-conv: longer side, in pixels, at which the network sees a photo; a multiple of 4
        seed: random-conv: seed of the frozen weights
        box_units: precomputed: boxes are in pixels or fractions; auto: recognised, of all images together
        box_format: precomputed: a box is xyxy (two corners), xywh (a corner, width and height) or yxyx; auto: xyxy or xywh
        size_order: precomputed: wh takes the images' width and height as they are given, hw swaps them; auto: recognised
        grid_order: precomputed: axes of a map of features, hwc or chw; auto: recognised
        sizes: precomputed: JSON of image sizes, {name: [width, height]} or COCO's, for files that do not say them
        shard: I/N takes every N-th photo from the I-th, from 1, and writes part-I-of-N below `out`; torchrun's ranks do so
        merge: join the parts that all shards have written into one database
        workers: processes; 0 for this one only. The result does not depend on it
        device: auto, cpu, cuda or cuda:N; random-conv always runs on the CPU
        overwrite: replace the database that is there
    """

    photos: str
    out: str
    list: str | None = None
    extractor: str = "random-conv"
    weights: str | None = None
    image_key: str = "{stem}.npz"
    compressed: bool = False
    soft_labels: SoftLabels = "keep"
    conf_th: float = 0.2
    max_bb: int = 100
    min_bb: int = 10
    feature_dim: int = 2048
    num_labels: int = 1601
    size: int = 192
    seed: int = 0
    box_units: BoxUnits = "auto"
    box_format: BoxFormat = "auto"
    size_order: SizeOrder = "auto"
    grid_order: GridOrder = "auto"
    sizes: str | None = None
    shard: str | None = None
    merge: bool = False
    workers: int = 2
    device: str = "auto"
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.conf_th <= 1:
            raise BadInput(f"--conf-th: found {self.conf_th}, expected 0 to 1")
        if not 1 <= self.min_bb <= self.max_bb:
            raise BadInput(f"--min-bb {self.min_bb} --max-bb {self.max_bb}: expected 1 <= min-bb <= max-bb")
        if self.workers < 0:
            raise BadInput(f"--workers: found {self.workers}, expected 0 (this process only) or more")
        idle, of_demo, of_features = f"with --extractor {self.extractor}", "feature_dim size seed", "sizes box_units box_format size_order grid_order"
        if self.extractor == "precomputed":
            self.precomputed()  # which checks them
            refuse_idle(self, (True, f"list weights {of_demo}", f"{idle}, which takes every image of --photos, without a network"))
        else:
            refuse_idle(self, (True, of_features, idle), (self.extractor != "random-conv", f"num_labels {of_demo}", idle))

    def precomputed(self) -> PrecomputedOptions:
        return PrecomputedOptions(self.image_key, BoxForm(self.box_units, self.box_format, self.size_order), self.num_labels, self.sizes, self.max_bb, self.grid_order)


def main(options: Options) -> None:
    boxes = BoxOptions(options.conf_th, options.max_bb, options.min_bb)
    shard, command = parse_shard(options.shard, options.merge), dataclasses.asdict(options)
    settings = ExtractionSettings(Path(options.out), boxes, options.compressed, shard, options.overwrite, command, options.soft_labels)
    extraction = Extraction(settings)
    claim_output(extraction.out)
    if finished := extraction.finished_report():
        print(f"{extraction.out}: done already, {finished['written']} photos")
        return
    extraction.check_output()
    if options.extractor == "precomputed":
        images, made_by, pictures = given_images(options.photos, options.precomputed(), boxes)
        report = extraction.merge(images.keys(), pictures) if options.merge else extraction.run(images, made_by, pictures)
    else:
        photos = find_photos(options.photos, options.list, options.image_key)
        pictures = pictures_of(photos, options.photos, options.image_key)
        if options.merge:
            report = extraction.merge(pictures.names, pictures)
        else:
            torch.set_num_threads(1)  # as the workers do: the extractor's calibration must not depend on the machine either
            built_from = ExtractorOptions(options.feature_dim, options.num_labels, options.size, options.seed, options.weights, boxes)
            extractor = build_extractor(options.extractor, built_from)
            device = torch.device("cpu") if extractor.only_on_cpu else choose_device(options.device)
            made_by = extractor_record(options.extractor, extractor, built_from)
            report = extraction.run(PhotoImages(photos, extractor, options.workers, device), made_by, pictures)
    print(report.summary(extraction))


if __name__ == "__main__":
    cli.run(main, Options, often="list extractor weights image_key compressed soft_labels conf_th max_bb min_bb shard merge workers device")
