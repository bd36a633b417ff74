#!/usr/bin/env python
"""Score captions and images with a re-ranker, for the bi-encoder to learn from (train_itm.py --distill.scores).

python scripts/score_pairs.py --reranker runs/uniter/best --checkpoint runs/photos/best --captions db/train \\
    --regions db/regions --out runs/uniter/scores.npz
python scripts/score_pairs.py --reranker runs/uniter/best --checkpoint runs/photos/best --captions db/train \\
    --regions db/regions --top 50 --precision bf16 --out runs/uniter/scores50.npz
python train_itm.py --config configs/finetune/photos_small.yaml --distill.scores runs/uniter/scores.npz --distill.weight 1
"""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli  # isort: skip (before numpy)
import numpy as np

from data.errors import BadInput
from data.regions.db import BoxChoice
from data.storage.locks import claim_output


@dataclass
class Options:
    """Score each caption's own image, and the images that a bi-encoder ranks first for it, with a re-ranker.

    Args:
        reranker: checkpoint folder of a re-ranker (train_itm.py --model uniter), or a converted UNITER
        checkpoint: LightningDOT checkpoint whose ranking the images come from
        captions: text DB to score, that of training
        regions: its image DB
        out: file of scores to write (data/batches/teacher.py)
        top: images of each caption, besides its own, or all where there are fewer
        data_root: relative folders of databases start here
        languages: only captions in these; none: all
        boxes: which boxes of the image DB are used; those that are not given are the checkpoint's
        batch_size: pairs scored at a time
        precision: of matrix products: fp32 or bf16
        device: auto, cpu, cuda or cuda:N
    """

    reranker: str
    checkpoint: str
    captions: str
    regions: str
    out: str
    top: int = 20
    data_root: str = "."
    languages: list[str] | None = None
    boxes: BoxChoice = field(default_factory=BoxChoice)
    batch_size: int = 256
    precision: Literal["fp32", "bf16"] = "fp32"
    device: str = "auto"

    def __post_init__(self):
        if self.top < 1 or self.batch_size < 1:
            raise BadInput(f"top {self.top} and batch_size {self.batch_size} must be at least 1")


def main(options: Options) -> None:
    # torch is slow to import: --help and wrong options do without
    from data.batches.identity import digests_of_pairs
    from data.batches.pairs import check_languages, open_pairs
    from data.batches.teacher import write_teacher_scores
    from model.bi_encoder import LightningDOT
    from model.initial import check_model_fits, check_same_tokenizer, settle_long_captions
    from model.made_from import boxes_for, check_regions
    from model.precision import choose_device, for_inference
    from model.retrieval.pair_scoring import PairScorer
    from model.retrieval.reranking import score_for_distillation
    from model.uniter import Reranker, check_reranker

    claim_output(options.out)
    device = choose_device(options.device)
    pairs = open_pairs(
        options.captions, options.regions, boxes_for(options.checkpoint, options.boxes), languages=options.languages,
        root=options.data_root,
    )  # fmt: skip
    check_languages(pairs, options.languages)
    miner = LightningDOT.from_pretrained(options.checkpoint).to(device)
    check_model_fits(miner.config, pairs.captions.meta, pairs.regions.feature_dim, options.checkpoint, options.regions)
    for part, _ in pairs.parts:
        check_regions(options.checkpoint, part.regions)
        check_same_tokenizer(options.checkpoint, part.captions)
    reranker = Reranker.from_pretrained(options.reranker).to(device)
    print(reranker.describe_head())
    check_reranker(reranker.config, options.reranker, pairs)
    settle_long_captions(pairs, reranker.config.encoder.max_tokens, "refuse")
    for each in (miner, reranker):
        for_inference(each, device, options.precision)
    started = time.perf_counter()
    scorer = PairScorer(reranker, device, options.precision, options.batch_size)
    images, scores = score_for_distillation(scorer, miner, pairs, options.top)
    write_teacher_scores(
        options.out, list(pairs.ids), list(pairs.images), images, scores, digests_of_pairs(pairs)
    )
    first = np.where(images >= 0, scores, -np.inf).argmax(axis=1)
    own_first = np.take_along_axis(images, first[:, None], axis=1)[:, 0] == pairs.image_of
    print(
        f"{options.out}: {(images >= 0).sum()} pairs of {len(pairs)} captions in {time.perf_counter() - started:.1f} s; the "
        f"re-ranker puts a caption's own image first for {own_first.mean():.1%}"
    )


if __name__ == "__main__":
    cli.run(main, Options)
