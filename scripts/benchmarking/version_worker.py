"""A process that measures one version of this project: scripts/bench_versions.py starts one for each of the two.

python scripts/benchmarking/version_worker.py FOLDER OPTIONS        # a case a line on stdin; seconds of an item a line on stdout

FOLDER is a working tree of the project, of which alone it imports. What the versions call differently is in
version_rooms.py, for those that have a folder data/batches, and in version_flat.py, for those before.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, sys.argv[1])  # before the folder of this file, which is in another version

import numpy as np
import torch

from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.transformer import EncoderConfig
from model.uniter import Reranker, UniterConfig
from optim.optimizer import OptimOptions, build_optimizer

version = importlib.import_module("version_rooms" if Path(sys.argv[1], "data", "batches").is_dir() else "version_flat")


class Data:
    """Captions and images of given lengths, in memory, with what is asked of a text DB and of an image DB.

    Args:
        tokens: of each caption, [CLS] and [SEP] included
        boxes: of each image; the captions are about the images in turn
    """

    folder, feature_dim = "memory", 2048

    def __init__(self, tokens: list[int], boxes: list[int]):
        rng = np.random.default_rng(0)
        self.meta = {"CLS": 101, "SEP": 102, "MASK": 103, "v_range": [1000, 28996]}
        self.tokens, self.image_of = np.array(tokens), np.arange(len(tokens)) % len(boxes)
        self.image_tokens = np.array(boxes)[self.image_of] + 1
        self.words = [rng.integers(1000, 28996, n - 2) for n in tokens]
        features = rng.normal(size=(max(boxes), self.feature_dim)).astype(np.float16)
        soft = rng.dirichlet(np.ones(1601), max(boxes)).astype(np.float16)
        place = rng.random((max(boxes), 6)).astype(np.float16)
        self.regions = [version.Regions(features[:n], place[:n], place[:n, 0], soft[:n]) for n in boxes]
        self.lengths = {f"t{n}": length - 2 for n, length in enumerate(tokens)}
        self.num_regions = {f"i{n}": count for n, count in enumerate(boxes)}

    def __contains__(self, key: str) -> bool:
        return key in self.num_regions

    def input_ids(self, name: str) -> np.ndarray:
        return self.words[int(name[1:])]

    def get(self, key: str, soft_labels: bool = True, count: int | None = None, row: int | None = None):
        return self.regions[int(key[1:])]

    def pictures(self, keys: list[str]):
        return version.stored_pictures(self, np.array([int(key[1:]) for key in keys]))

    def read_into(self, packed, key: str, row: int) -> None:
        packed.add(self.get(key))

    def soft_labels(self, key: str, row: int) -> np.ndarray:
        return self.get(key).soft_labels

    def fingerprint(self) -> str:
        return ""


def training(trained: tuple, case: dict, data: Data) -> Callable[[], int]:
    """Steps of fine-tuning (``batch`` pairs), or of pre-training (``budget`` tokens, one step of each objective)."""
    source = version.Source(1.0, data.tokens, data.image_tokens)
    draws, number = iter(version.DrawStream([source], case["budget"], seed=0)), iter(range(10**9))

    def call() -> int:
        if case["kind"] == "finetune":
            drawn = [(next(number) * case["batch"] + np.arange(case["batch"])) % len(data.words)]
        else:
            drawn = [next(draws).indices for _ in case["tasks"]]
        for task, rows in zip(case["tasks"], drawn, strict=False):
            version.train_step(*trained, data, rows, task, case["precision"])
        return sum(map(len, drawn))

    return call


def inference(case: dict, data: Data, tower: EncoderConfig) -> Callable[[], int]:
    """Encoding a database, one text query after the other, or the best images of a query ranked again."""
    torch.manual_seed(0)
    precision, kind = case["precision"], case["kind"]
    if kind == "rerank":
        reranker = Reranker(UniterConfig(tower)).eval()
        return lambda: version.rerank(reranker, data, case["top"], precision)
    model = LightningDOT(LightningDOTConfig(txt=tower, img=tower)).eval()
    if kind == "query":
        version.for_inference(model, torch.device("cpu"), precision)  # as search does
        number = iter(range(10**9))
        return lambda: version.encode_query(model, data.words[next(number) % len(data.words)], precision)
    encode = version.encode_images if kind == "images" else version.encode_captions
    return lambda: encode(model, data, precision)


def main(options: dict) -> None:
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    tower, calls, trained = EncoderConfig(**options["tower"]), {}, None
    for line in sys.stdin:
        case = json.loads(line)
        if line not in calls:
            data = Data(case["tokens"], case["boxes"])
            if case["kind"] in ("finetune", "pretrain"):
                if trained is None:
                    torch.manual_seed(0)
                    model = LightningDOT(LightningDOTConfig(txt=tower, img=tower)).train()
                    heads = version.PretrainingHeads(model.config).train()
                    trained = model, heads, build_optimizer([model, heads], OptimOptions(lr=1e-6))
                calls[line] = training(trained, case, data)
            else:
                calls[line] = inference(case, data, tower)
            calls[line]()  # not counted: it makes pages and kernels ready
        started, spent, items = time.perf_counter(), time.process_time(), 0
        while items == 0 or time.perf_counter() - started < case["seconds"]:
            items += calls[line]()
        seconds = {"wall": time.perf_counter() - started, "cpu": time.process_time() - spent}
        print(json.dumps({clock: each / items for clock, each in seconds.items()}), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[2]))
