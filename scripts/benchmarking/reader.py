"""Read and collate a database for a while; prints how fast. It runs in a process of its own, with the checkout whose code is to be
measured in PYTHONPATH: ``python reader.py ROOT CAPTIONS REGIONS BATCH SECONDS``.
"""

import json
import sys
import time

import numpy as np


def pairs_and_batches(root: str, captions: str, regions: str):
    """The data set, and the function that makes a batch of some of its pairs."""
    try:  # the modules of the checkout, which this process is told of when it starts
        # as they are called now
        from data.batches.batch import collate_pairs
        from data.batches.pairs import open_pairs
        from data.regions.db import BoxOptions
    except ModuleNotFoundError:
        from data.pairs import open_pairs  # as they were called at first

        from data.regions import BoxOptions  # as they were called at first

        pairs = open_pairs(captions, regions, BoxOptions(), root=root)
        return pairs, pairs.batch
    pairs = open_pairs(captions, regions, BoxOptions(), root=root)
    return pairs, lambda indices: collate_pairs(pairs.examples(indices))


def main(root: str, captions: str, regions: str, batch: str, least: str) -> None:
    pairs, make = pairs_and_batches(root, captions, regions)
    order, size = np.random.default_rng(0).permutation(len(pairs)), min(int(batch), len(pairs))
    boxes = int((pairs.img_lengths - 1).sum())
    passes, started = -1, time.perf_counter()  # the first pass brings the database into the page cache
    while passes < 1 or time.perf_counter() - started < float(least):
        for start in range(0, len(order), size):
            make(order[start : start + size])
        passes += 1
        if passes == 0:
            started = time.perf_counter()
    seconds = (time.perf_counter() - started) / passes
    source = np.ones(min(boxes * 4096, 1 << 29) // 2, np.float16)  # larger than a cache, as the database is
    target = np.empty(size * 36 * 2048, np.float16)
    copies = [source[start : start + len(target)] for start in range(0, len(source) - len(target), len(target))]
    started, copied = time.perf_counter(), 0
    while copies and time.perf_counter() - started < float(least) / 4:
        for part in copies:
            np.copyto(target, part)
            copied += part.nbytes
    speed = copied / (time.perf_counter() - started) / 1e9
    found = {"examples_per_s": len(pairs) / seconds, "gb_per_s": boxes * 4096 / seconds / 1e9, "copied_gb_per_s": speed}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
