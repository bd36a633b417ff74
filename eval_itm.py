#!/usr/bin/env python
"""Recall of a checkpoint: encode every image and caption once into feature indexes, then rank by dot product.

python eval_itm.py --checkpoint runs/photos/best --captions db/captions/val --regions db/regions
python eval_itm.py --checkpoint runs/coco/best --captions db/coco_test5k --regions db/coco_test2014 --coco-1k
python eval_itm.py --checkpoint runs/coco/best --captions db/coco_test5k --regions db/coco_test2014 --search hnsw
python eval_itm.py --checkpoint runs/photos/best --captions db/captions/val --regions db/regions --reranker runs/uniter/best
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from configs import cli
from data.batches.pairs import PairDataset, open_pairs
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.regions.db import BoxOptions
from data.search.faiss import HnswOptions
from data.storage.text_files import write_json
from model.bi_encoder import LightningDOT
from model.evaluation.outcomes import captions_by_language, ranker, summary, wordings, write_ranks
from model.evaluation.recall import chance_table, folds, format_table, mean_table, num_repeated, recall_table
from model.evaluation.reranked import first_ranking
from model.evaluation.statistics import QueryRanks, Units, format_interval, intervals, resampled_recall
from model.initial import check_fits, check_longest, check_tokenizer
from model.precision import Precision, choose_device, for_inference
from model.retrieval.encoding import Encoding
from model.retrieval.indexing import build_index
from model.retrieval.pair_scoring import PairScorer
from model.retrieval.reranking import PairScores, check_count
from model.retrieval.sources import caption_source, image_source
from model.uniter import Reranker, check_reranker
from optim.run import environment


@dataclass
class EvalConfig:
    """Image–text retrieval recall, both directions.

    Args:
        checkpoint: checkpoint folder
        captions: text DB of the split
        regions: image DB
        data_root: relative folders of databases start here
        output_dir: where the feature indexes (img, txt), results.json and ranks.npz go; indexes there that were made by
            this checkpoint from this data are used again. None: CHECKPOINT/eval/NAME_OF_CAPTIONS
        languages: only captions in these; none: all
        boxes: which boxes of the image DB are used
        image_captions: text DB with captions of the images themselves, for a model that was trained with a third view
        caption_score_weight: its share in an image's score; 0: there is none
        coco_1k: also the mean over consecutive folds of 1,000 images (COCO's 1K protocol: five folds of the 5K split)
        bootstrap: resamples for the 95% intervals; 0: no intervals
        resample: what is drawn with replacement: queries, or images with the queries of their captions
        search: exact, or hnsw: through approximate indexes of both sides; what they do not find counts as a miss
        hnsw: the graph of those indexes
        reranker: checkpoint folder of a re-ranker (train_itm.py --model uniter), or a converted UNITER: also the recall when it
            ranks the best candidates of each query again
        rerank_top: how many candidates, both directions; one table for each number
        rerank_mix: weight of the bi-encoder's score, which is added to the re-ranker's: a second table for each number. A
            re-ranker that was trained on the bi-encoder's hard negatives knows what that one does not, and less of the rest
        batch_size: images or captions encoded at a time, or pairs ranked again
        precision: of matrix products: fp32, bf16 or fp16
        device: auto, cpu, cuda or cuda:N
        num_workers: processes that read the databases
    """

    checkpoint: str
    captions: str
    regions: str
    data_root: str = "."
    output_dir: str | None = None
    languages: list[str] | None = None
    boxes: BoxOptions = field(default_factory=BoxOptions)
    image_captions: str | None = None
    caption_score_weight: float = 0.0
    coco_1k: bool = False
    bootstrap: int = 1000
    resample: Units = "queries"
    search: Literal["exact", "hnsw"] = "exact"
    hnsw: HnswOptions = field(default_factory=HnswOptions)
    reranker: str | None = None
    rerank_top: list[int] = field(default_factory=lambda: [20, 50, 100])
    rerank_mix: float = 0.0
    batch_size: int = 256
    precision: Precision = "fp32"
    device: str = "auto"
    num_workers: int = 0

    def __post_init__(self):
        if self.bootstrap < 0:
            raise BadInput(f"bootstrap is the number of resamples, at least 0, found {self.bootstrap}")
        if self.reranker and self.search != "exact":
            raise BadInput("reranker: its candidates come from the exact search; leave search exact")
        if not self.rerank_top or min(self.rerank_top) < 1 or self.rerank_mix < 0:
            raise BadInput(
                f"rerank_top needs numbers of candidates, each at least 1, found {self.rerank_top}; and rerank_mix a weight of at "
                f"least 0, found {self.rerank_mix}"
            )


def main(config: EvalConfig) -> None:
    device = choose_device(config.device)
    pairs = open_pairs(
        config.captions,
        config.regions,
        config.boxes,
        languages=config.languages,
        root=config.data_root,
        image_captions=config.image_captions,
        caption_weight=config.caption_score_weight,
    )
    model = LightningDOT.from_pretrained(config.checkpoint).to(device)
    for_inference(model, device, config.precision)
    check_fits(model.config, pairs.captions.meta, pairs.regions.feature_dim, config.checkpoint, config.regions)
    check_tokenizer(config.checkpoint, pairs.captions)
    check_longest(model.config, pairs)
    if config.coco_1k and len(pairs.images) < 1000:
        raise BadInput(f"{config.captions}: --coco-1k needs at least 1,000 images, found {len(pairs.images)}")

    if config.coco_1k and len({pairs.captions.languages.get(i, "") for i in pairs.ids}) > 1:
        raise BadInput(f"{config.captions}: --coco-1k needs one language; choose it with --languages")

    reranker = None
    if config.reranker:  # before hours of encoding
        reranker = Reranker.from_pretrained(config.reranker).to(device)
        for_inference(reranker, device, config.precision)
        check_reranker(reranker.config, config.reranker, pairs)
        check_count(max(config.rerank_top), len(pairs.images), len(pairs), config.captions)

    out = Path(config.output_dir or Path(config.checkpoint) / "eval" / Path(config.captions).name)
    encoding = Encoding(device, config.precision, config.batch_size, config.num_workers)
    started = time.perf_counter()
    images = image_source(model, pairs.regions, pairs.images, pairs.image_captions)
    img = _in_order(build_index(images, out / "img", encoding, checkpoint=config.checkpoint), pairs.images)
    captions = caption_source(model, pairs.captions, pairs.ids)
    txt = _in_order(build_index(captions, out / "txt", encoding, checkpoint=config.checkpoint), pairs.ids)
    seconds = {"encoding": time.perf_counter() - started}

    image_of, text_of = torch.from_numpy(pairs.image_of.astype(np.int64)), torch.from_numpy(wordings(pairs))
    languages = captions_by_language(pairs)
    repeated = sum(num_repeated(pairs.image_of[rows], text_of[rows].numpy()) for rows in languages.values())
    hnsw = config.hnsw if config.search == "hnsw" else None
    ranks, duplicate_aware, found = {}, {}, {}
    for language, rows in languages.items():
        rank, found[language] = ranker(txt[rows], img, hnsw)
        ranks[language] = QueryRanks(*rank(image_of[rows]), pairs.image_of[rows])
        if repeated:
            duplicate_aware[language] = QueryRanks(*rank(image_of[rows], text_of[rows]), pairs.image_of[rows])

    results = dict(zip(("recall", "intervals"), summary(ranks, config.bootstrap, config.resample)))
    if config.coco_1k:
        name, table, bounds = _folds(config, txt, img, image_of, hnsw)
        results["recall"][name] = table
        results["intervals"] |= {name: bounds} if bounds else {}
    if repeated:
        tables = summary(duplicate_aware, config.bootstrap, config.resample)
        results["duplicate_aware"] = {"captions": repeated} | dict(zip(("recall", "intervals"), tables))
    results["recall"]["chance"] = chance_table(np.bincount(pairs.image_of, minlength=len(pairs.images)))
    if reranker is not None:
        again = _rerank(config, reranker, pairs, txt, img, image_of, languages, device)
        results["reranker"] = {"model": reranker.fingerprint, "seconds": seconds | again.pop("seconds"), "top": again}
    if hnsw:
        results["found_of_exact_top_10"] = found
    _show(config, pairs, results)

    txt_ids = {language: [pairs.ids[row] for row in rows] for language, rows in languages.items()}
    results["ranks"] = "ranks.npz"
    write_ranks(out / results["ranks"], pairs.images, txt_ids, ranks)
    path = _write_results(out, config, model, pairs, results)
    print(f"results: {path}")


def _folds(config: EvalConfig, txt: Tensor, img: Tensor, image_of: Tensor, hnsw: HnswOptions | None) -> tuple:
    """COCO's 1K protocol: → its name, the mean of the folds' tables, and the intervals of the mean (None without)."""
    tables, samples = [], []
    for number, (images, rows) in enumerate(folds(image_of, len(img))):
        owner = image_of[rows] - images.start
        fold = QueryRanks(*ranker(txt[rows], img[images], hnsw)[0](owner), owner.numpy())
        tables.append(recall_table(fold.t2i, fold.i2t))
        if config.bootstrap:  # folds share no query, so each is drawn from by itself
            samples.append(resampled_recall([[fold]], config.bootstrap, config.resample, [0, number])[:, 0, 0])
    return f"mean of {len(tables)} x 1K", mean_table(tables), intervals(np.mean(samples, axis=0)) if samples else None


def _rerank(
    config: EvalConfig, reranker: Reranker, pairs: PairDataset, txt: Tensor, img: Tensor, image_of: Tensor,
    languages: dict[str, np.ndarray], device: torch.device,
) -> dict:  # fmt: skip
    """Recall when a re-ranker orders the best candidates anew: → K: recall, intervals, pairs, seconds; and seconds of the search."""
    started = time.perf_counter()
    top = max(config.rerank_top)
    first = {name: first_ranking(txt, img, image_of, rows, top, config.captions) for name, rows in languages.items()}
    results: dict = {"seconds": {"search": time.perf_counter() - started}}
    scores, spent = PairScores(PairScorer(reranker, device, config.precision, config.batch_size), pairs), 0.0
    for k in sorted(set(config.rerank_top)):  # a pair that is among fewer candidates already is not scored again
        started = time.perf_counter()
        for each in first.values():
            scores.compute(each.images.top(k), each.captions.top(k))
        spent += time.perf_counter() - started
        results[str(k)] = {"pairs": len(scores), "seconds": spent}
        for mix in (0.0, config.rerank_mix) if config.rerank_mix else (0.0,):
            ranks = {name: each.reranked(scores, k, mix) for name, each in first.items()}
            tables = dict(zip(("recall", "intervals"), summary(ranks, config.bootstrap, config.resample)))
            results[str(k)] |= {"mixed": tables | {"mix": mix}} if mix else tables
    return results


def _show(config: EvalConfig, pairs: PairDataset, results: dict) -> None:
    aware = results.get("duplicate_aware", {"recall": {}, "intervals": {}})
    rows, bounds = (
        results[what] | {"duplicate-aware" + f" {name}" * (name != "all"): row for name, row in aware[what].items()}
        for what in ("recall", "intervals")
    )
    print(f"{config.checkpoint} on {config.captions}: {len(pairs.images)} images, {len(pairs)} captions")
    for language, found in results.get("found_of_exact_top_10", {}).items():
        print(
            f"search: hnsw, {language}: found {found['t2i']:.2%} of the exact top 10 images, "
            f"{found['i2t']:.2%} of the exact top 10 captions"
        )
    again = results.get("reranker", {"top": {}})
    top = {f"re-ranked top {k}": each for k, each in again["top"].items()}
    top |= {f"  {name} + bi-encoder": each["mixed"] for name, each in top.items() if "mixed" in each}
    bounds |= {name: each["intervals"].get("all") for name, each in top.items()}
    chance = rows.pop("chance")
    rows |= {name: each["recall"]["all"] for name, each in top.items()} | {"chance": chance}  # last
    print(format_table(rows))
    for k, each in again["top"].items():
        print(f"re-ranked top {k}: {each['pairs']} pairs in {each['seconds']:.1f} s, {each['pairs'] / each['seconds']:.0f} pairs/s")
    if top:
        print(f"encoding {again['seconds']['encoding']:.1f} s, search {again['seconds']['search']:.1f} s")
    if config.bootstrap:
        print(f"\n95% intervals from {config.bootstrap:,} resamples of {config.resample}")
        print(format_table(bounds, format_interval, column=15))
    if aware["recall"]:
        print(
            f"duplicate-aware: {aware['captions']} captions are worded like one of another image; either image is right"
        )


def _in_order(index: EmbeddingIndex, names: list[str]) -> Tensor:
    """The index's vectors in the order of ``names``: [N,D] float32."""
    row = {name: n for n, name in enumerate(index.ids())}
    return torch.from_numpy(index.vectors(np.array([row[name] for name in names])))


def _write_results(out: Path, config: EvalConfig, model: LightningDOT, pairs: PairDataset, results: dict) -> Path:
    results |= {
        "images": len(pairs.images),
        "captions": len(pairs),
        "model": model.fingerprint,
        "config": cli.to_dict(config),
        "environment": environment(),
    }
    write_json(out / "results.json", results)
    return out / "results.json"


if __name__ == "__main__":
    cli.run(main, EvalConfig)
