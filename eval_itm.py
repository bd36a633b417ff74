#!/usr/bin/env python
"""Recall of a checkpoint: encode every image and caption once into feature indexes, then rank by dot product.

python eval_itm.py --checkpoint runs/photos/best --captions db/captions/val --regions db/regions
python eval_itm.py --checkpoint runs/coco/best --captions db/coco_test5k --regions db/coco_test2014 --coco-1k
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from configs import cli
from data.atomic import atomic_file
from data.batches import PairDataset, open_pairs
from data.errors import BadInput
from data.index import EmbeddingIndex
from data.regions import BoxOptions
from model.bi_encoder import LightningDOT
from model.encoding import build_caption_index, build_image_index
from model.evaluation import recall_by_language
from model.initial import check_fits, check_longest, check_tokenizer
from model.metrics import chance_table, fold_tables, format_table, mean_table
from optim.precision import Precision, choose_device
from optim.run_state import environment


@dataclass
class EvalConfig:
    """Image–text retrieval recall, both directions.

    Args:
        checkpoint: checkpoint folder
        captions: text DB of the split
        regions: image DB
        output_dir: where the feature indexes (img, txt) and results.json go; indexes there that were made by this
            checkpoint from this data are used again. None: CHECKPOINT/eval/NAME_OF_CAPTIONS
        languages: only captions in these; none: all
        boxes: which boxes of the image DB are used
        coco_1k: also the mean over consecutive folds of 1,000 images (COCO's 1K protocol: five folds of the 5K split)
        batch_size: images or captions encoded at a time
        precision: of matrix products: fp32 or bf16
        device: auto, cpu, cuda or cuda:N
        num_workers: processes that read the databases
    """

    checkpoint: str
    captions: str
    regions: str
    output_dir: str | None = None
    languages: list[str] | None = None
    boxes: BoxOptions = field(default_factory=BoxOptions)
    coco_1k: bool = False
    batch_size: int = 256
    precision: Precision = "fp32"
    device: str = "auto"
    num_workers: int = 0


def main(config: EvalConfig) -> None:
    device = choose_device(config.device)
    pairs = open_pairs(config.captions, config.regions, config.boxes, languages=config.languages)
    model = LightningDOT.from_pretrained(config.checkpoint).to(device)
    check_fits(model.config, pairs.captions.meta, pairs.regions.feature_dim, config.checkpoint, config.regions)
    check_tokenizer(config.checkpoint, pairs.captions)
    check_longest(model.config, pairs)
    if config.coco_1k and len(pairs.images) < 1000:
        raise BadInput(f"{config.captions}: --coco-1k needs at least 1,000 images, found {len(pairs.images)}")

    if config.coco_1k and len({pairs.captions.languages.get(i, "") for i in pairs.ids}) > 1:
        raise BadInput(f"{config.captions}: --coco-1k needs one language; choose it with --languages")

    name = Path(config.captions).name
    out = Path(config.output_dir) if config.output_dir else Path(config.checkpoint) / "eval" / name
    options = {
        "batch_size": config.batch_size,
        "precision": config.precision,
        "workers": config.num_workers,
        "checkpoint": config.checkpoint,
        "device": device,
    }
    img = _in_order(build_image_index(model, pairs.regions, pairs.images, out / "img", **options), pairs.images)
    txt = _in_order(build_caption_index(model, pairs.captions, pairs.ids, out / "txt", **options), pairs.ids)

    image_of = torch.from_numpy(pairs.image_of)
    rows = recall_by_language(txt, img, image_of, pairs)
    if config.coco_1k:
        folds = fold_tables(txt, img, image_of)
        rows[f"mean of {len(folds)} x 1K"] = mean_table(folds)
    rows["chance"] = chance_table(np.bincount(pairs.image_of, minlength=len(pairs.images)))
    print(f"{config.checkpoint} on {config.captions}: {len(pairs.images)} images, {len(pairs)} captions")
    print(format_table(rows))
    path = _write_results(out, config, model, pairs, rows)
    print(f"results: {path}")


def _in_order(index: EmbeddingIndex, names: list[str]) -> Tensor:
    """The index's vectors in the order of ``names``: [N,D] float32."""
    row = {name: n for n, name in enumerate(index.ids())}
    return torch.from_numpy(index.vectors(np.array([row[name] for name in names])))


def _write_results(out: Path, config: EvalConfig, model: LightningDOT, pairs: PairDataset, rows: dict) -> Path:
    results = {
        "recall": rows,
        "images": len(pairs.images),
        "captions": len(pairs),
        "model": model.fingerprint,
        "config": cli.to_dict(config),
        "environment": environment(),
    }
    with atomic_file(out / "results.json") as path:
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return out / "results.json"


if __name__ == "__main__":
    cli.run(main, EvalConfig)
