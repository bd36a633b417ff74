#!/usr/bin/env python
"""Recall of a checkpoint: encode every image and caption once into feature indexes, then rank by dot product.

python eval_itm.py --checkpoint runs/photos/best --captions db/captions/val --regions db/regions         # on a GPU where there is one
python eval_itm.py --checkpoint user/lightningdot-flickr30k --captions db/captions/val --regions db/regions --precision bf16
python eval_itm.py --checkpoint runs/coco/best --captions db/coco_test5k --regions db/coco_test2014 --coco-1k
python eval_itm.py --checkpoint runs/photos/best --captions db/captions/val --regions db/regions --device cuda:1
python eval_itm.py --checkpoint runs/coco/best --captions db/coco_test5k --regions db/coco_test2014 --search hnsw
python eval_itm.py --checkpoint runs/photos/best --captions db/captions/val --regions db/regions --reranker runs/uniter/best
python eval_itm.py --checkpoint runs/photos/best --captions db/captions/val --regions db/regions --rerank-scores scores.npz
python eval_itm.py --checkpoint runs/photos/best --captions db/captions/test --regions db/regions --gallery db/captions/train db/captions/val
"""

import dataclasses
import time
from pathlib import Path

from configs import cli
from data.batches.identity import digests_of_pairs
from data.storage.locks import claim_output
from data.storage.text_files import write_json
from model.checkpoints import one_checkpoint
from model.evaluation.folders import evaluations_folder
from model.evaluation.reranked import rerank_split
from model.evaluation.scoring import open_scoring
from model.evaluation.settings import EvalConfig
from model.evaluation.split import (
    chance_tables,
    duplicate_aware_chance,
    encode_split,
    open_model,
    open_split,
    rank_folds,
    rank_split,
    write_split_ranks,
)
from model.evaluation.tables import as_json, format_intervals, format_recall, mean_of_tasks, task_tables
from model.precision import choose_device
from model.retrieval.encoding import Encoding
from optim.run import environment


def main(config: EvalConfig) -> None:
    one = dataclasses.replace(config, checkpoint=str(one_checkpoint(config.checkpoint)))  # training may move its links meanwhile
    out = Path(config.out or evaluations_folder(one.checkpoint) / Path(config.captions).name)
    claim_output(out)
    device, pairs = choose_device(config.device), open_split(one)
    model, scoring = open_model(one, pairs, device), open_scoring(config, pairs, device)
    started, encoding = time.perf_counter(), Encoding(device, config.precision, config.batch_size, config.workers)
    split = encode_split(model, pairs, out, encoding, config.checkpoint)
    seconds = {"encoding": time.perf_counter() - started}

    hnsw, drawn = config.hnsw if config.search == "hnsw" else None, (config.bootstrap, config.resample)
    ranks = rank_split(split, hnsw)
    plain = task_tables(ranks.by_language, *drawn)
    if config.coco_1k:
        by_fold = rank_folds(split, hnsw)
        plain.append(mean_of_tasks(f"mean of {len(by_fold)} x 1K", by_fold, *drawn))
    aware = []
    if ranks.repeated:
        aware = [*task_tables(ranks.duplicate_aware, *drawn, note="duplicate-aware"), duplicate_aware_chance(split)]
    tops = []
    if scoring is not None:
        tops, seconds["search"] = rerank_split(split, scoring, config)
    chance = chance_tables(split, config.coco_1k)

    print(split.describe(config))
    if hnsw:
        for language, found in ranks.found.items():
            print(f"search: hnsw, {language}: found {found['t2i']:.2%} of the exact top 10 images, ", end="")
            print(f"{found['i2t']:.2%} of the exact top 10 captions")
    again = [table for top in tops for table in top.tables] + [table for top in tops for table in top.mixed]
    print(format_recall([*plain, *aware, *again, *chance], split.candidates if config.gallery else None))
    for top in tops:
        print(top.describe())
    if scoring is not None:
        print(f"{scoring.line}\nencoding {seconds['encoding']:.1f} s, search {seconds['search']:.1f} s")
    if config.bootstrap:
        print(f"\n95% intervals from {config.bootstrap:,} resamples of {config.resample}")
        print(format_intervals([*plain, *aware, *again]))
    if aware:
        print(f"duplicate-aware: {ranks.repeated} captions are worded like one of another image; either image is right")

    results = as_json([*plain, chance[-1]]) | {"chance": {table.name: table.recall for table in chance}, "candidates": split.candidates}
    if aware:
        results["duplicate_aware"] = {"captions": ranks.repeated} | as_json(aware)
    if scoring is not None:
        by_top = {str(top.k): top.as_json() for top in tops}
        results["reranker"] = scoring.record | {"seconds": seconds, "top": by_top}
    if hnsw:
        results["found_of_exact_top_10"] = ranks.found
    results |= {"data": digests_of_pairs(pairs), "ranks": "ranks.npz", "model": model.fingerprint, "cut_captions": pairs.cut}
    results |= {"images": split.num_images, "captions": pairs.num_queries}
    write_split_ranks(split, ranks, out / results["ranks"])
    write_json(out / "results.json", results | {"config": cli.to_dict(config), "environment": environment()})
    print(f"results: {out / 'results.json'}")


if __name__ == "__main__":
    cli.run(main, EvalConfig, often="out languages gallery coco_1k search reranker rerank_top rerank_mix bootstrap batch_size precision device")
