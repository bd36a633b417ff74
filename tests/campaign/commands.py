"""Commands that write, as the campaign kills them, starts them twice, and takes away their disk; and commands as one types them."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.campaign.targets import (
    CAPTIONS,
    CONVERT,
    EVALUATE,
    EXPORT,
    EXTRACT,
    INDEX,
    INSPECT,
    PUBLISH,
    REPRODUCE,
    SEARCH,
    TESTED,
    TRAIN,
    TRAINED,
    TRANSLATE,
)
from tests.campaign.world import FOUND, OWN, SEARCHED, SMALL

SMALLEST = ["--hidden-size", "32", "--num-hidden-layers", "1", "--num-attention-heads", "2", "--intermediate-size", "64", "--feature-dim", "16", "--vocab-size", "2000"]  # fmt: skip


@dataclass(frozen=True)
class Writing:
    """A command that writes.

    Attributes:
        words: script, and its words
        inputs: parts of the world that it reads, or changes
        outputs: what it writes
        weight: share of the cases
        again: status 2 is right when it is given once more behind its end: there is nothing left to do
        served: it asks a server, whose address {server} in its words stands for
    """

    words: list[str]
    inputs: list[str]
    outputs: list[str] = field(default_factory=lambda: ["out"])
    weight: float = 1.0
    again: bool = False
    served: bool = False


WRITING = {
    "build_captions": Writing([*CAPTIONS, "--annotations", "captions.jsonl"], ["tokenizer", "captions.jsonl"]),
    "train_tokenizer": Writing(["scripts/train_tokenizer.py", "--annotations", "captions.jsonl", "--vocab-size", "300", "--out", "out"], ["captions.jsonl"]),
    "make_scenes": Writing(["scripts/make_scenes.py", "--out", "out", "--train", "6", "--val", "2", "--test", "2", "--size", "64", "--workers", "2"], []),
    "extract_regions": Writing([*EXTRACT[:-1], "2", *SMALL[:-2], "--photos", "photos"], ["photos"], again=True),
    "extract_regions in one process": Writing([*EXTRACT, *SMALL[:-2], "--photos", "photos.tar"], ["photos.tar"], again=True),
    "build_index": Writing([*INDEX, "--regions", "regions", "--out", "out", "--batch-size", "2"], ["fine", "regions"]),
    "build_index --update": Writing([*INDEX, "--regions", "regions", "--out", "img", "--update", "replace"], ["fine", "regions", "img", "queries.txt"], ["img"]),
    "build_index --delete": Writing([*INDEX, "--delete", "delete.txt", "--out", "img"], ["fine", "img", "delete.txt", "queries.txt"], ["img"], again=True),
    "build_index again": Writing([*INDEX, "--checkpoint", "other/best", "--regions", "regions", "--out", "img"], ["fine", "other", "regions", "img", "queries.txt"], ["img/data.mdb"]),
    "extract_regions again": Writing(["scripts/extract_regions.py", "--out", "regions", "--workers", "0", *SMALL[:-2], "--photos", "photo", "--overwrite"], ["photo", "regions"], ["regions"]),
    "search, which builds hnsw": Writing([*SEARCH, "--backend", "hnsw"], ["fine", "img", "queries.txt"], ["out.json"]),
    "pretrain": Writing(["pretrain.py", "--config", "pretrain.yaml", "--output-dir", "out", "--num-workers", "1"], ["db", "regions", "pretrain.yaml"]),
    "train_itm": Writing([*TRAIN, "--epochs", "2"], TRAINED),
    "train_itm --model uniter": Writing(["train_itm.py", "--config", "uniter.yaml", "--output-dir", "out"], ["db", "regions", "pre", "uniter.yaml"]),
    "eval_itm": Writing(EVALUATE, TESTED),
    "score_pairs": Writing(["scripts/score_pairs.py", "--reranker", "uniter/best", "--checkpoint", "fine/best", "--captions", "db/val", "--regions", "regions", "--top", "3", "--languages", "en", "--device", "cpu", "--out", "out.npz"], ["fine", "uniter", "db/val", "regions"], ["out.npz"]),
    "convert_checkpoint": Writing(CONVERT, ["original.pt", "bert.json"], again=True),
    "prepare": Writing(["scripts/prepare.py", "--photos", "photos", "--captions", "captions.jsonl", "--out", "out", "--vocab-size", "200", "--extractor", "random-conv", "--extract", "feature-dim=32", "num-labels=11", "size=64", "workers=1"], ["photos", "captions.jsonl"]),
    "prepare of changed photographs": Writing([*OWN, "--photos", "photos"], ["photos", "captions.jsonl", "own"], ["own"], weight=0.5),
    "prepare of changed photographs, without captions": Writing([*FOUND, "--photos", "photos"], ["photos", "fine", "found"], ["found"]),
    "reproduce": Writing(["scripts/reproduce.py", "demo", "--data-root", ".", "--pretrain-config", "pretrain.yaml", "--finetune-config", "finetune.yaml", "--eval-config", "eval.yaml", "--out", "out"], ["db", "regions", "pretrain.yaml", "finetune.yaml", "eval.yaml"], weight=0.3),
    "translate": Writing(TRANSLATE, ["db/val", "marian", "tokenizer"], weight=0.5),
    "export_index": Writing(EXPORT, ["img"], ["out.db"]),
    "push_to_hub --out": Writing(PUBLISH, ["fine"], again=True),
    "download": Writing(["scripts/download.py", "x", "--sources", "served.yaml", "--out", "out", "--retries", "1"], ["captions.zip", "captions.tar", "photos.tar"], served=True),
    "download_pictures": Writing(["scripts/download_pictures.py", "served.tsv", "--out", "out", "--workers", "3"], ["photo"], ["out/files.tsv"], served=True),
}  # fmt: skip

# What is typed: every command that can run here in about a second, for words that it does not expect.
TYPED = {
    "search": (["scripts/search.py", "a red circle", *SEARCHED, "--json", "out.json"], ["fine", "img", "db/test", "regions", "photos"]),
    "inspect_db": ([*INSPECT, "regions"], ["regions", "db/test", "img"]),
    "build_captions": ([*CAPTIONS, "--annotations", "captions.jsonl"], ["tokenizer", "captions.jsonl", "regions"]),
    "train_tokenizer": (WRITING["train_tokenizer"].words, ["captions.jsonl"]),
    "make_scenes": (["scripts/make_scenes.py", "--out", "out", "--train", "1", "--val", "1", "--test", "1", "--size", "32", "--workers", "1"], []),
    "extract_regions": ([*EXTRACT, *SMALL, "--photos", "photo"], ["photo"]),
    "build_index": ([*INDEX, "--regions", "regions", "--out", "out"], ["fine", "regions", "db/test", "img"]),
    "eval_itm": (EVALUATE, [*TESTED, "uniter"]),
    "train_itm": (TRAIN, TRAINED),
    "pretrain": (["pretrain.py", "--config", "pretrain.yaml", "--output-dir", "out", "--num-steps", "1"], ["db", "regions", "pretrain.yaml"]),
    "score_pairs": (WRITING["score_pairs"].words, WRITING["score_pairs"].inputs),
    "compare": (["scripts/compare.py", "eval", "eval_b", "--bootstrap", "20", "--json", "out.json"], ["eval", "eval_b"]),
    "plot_runs": (["scripts/plot_runs.py", "fine", "other", "--out", "out.png"], ["fine", "other"]),
    "report": (["scripts/report.py", "fine", "--out", "out.html"], ["fine"]),
    "contact_sheet": (["scripts/contact_sheet.py", *SEARCHED, "--photos", "photos", "--captions", "db/test", "--out", "out.png"], ["fine", "img", "photos", "db/test"]),
    "convert_checkpoint": (CONVERT, ["original.pt", "bert.json", "tokenizer", "pre"]),
    "convert_config": (["scripts/convert_config.py", "original.json", "--out", "out.yaml"], ["original.json"]),
    "plan": (["scripts/plan.py", "--config", "pretrain.yaml", "--gpu", "h100", "--json", "out.json"], ["pretrain.yaml", "db"]),
    "average_checkpoints": (["scripts/average_checkpoints.py", "--checkpoints", "fine/best", "other/best", "--out", "out"], ["fine", "other"]),
    "retrieval_table": (["scripts/retrieval_table.py", "--results", "measured.json"], ["measured.json"]),
    "prepare": (WRITING["prepare"].words, ["photos", "captions.jsonl", "tokenizer"]),
    "export_index": (EXPORT, ["img"]),
    "push_to_hub": (PUBLISH, ["fine"]),
    "reproduce": (REPRODUCE, ["recipes"]),
    "bench_data": (["scripts/bench_data.py", "--out", "out", "--records", "6", "--batch", "3", "--rounds", "1", "--seconds", "0.01"], []),
    "bench_train": (["scripts/bench_train.py", *SMALLEST, "--batch", "2", "--rounds", "1", "--seconds", "0.001", "--words", "5", "--regions", "6", "--num-labels", "7", "--device", "cpu", "--out", "out.json"], []),
    "bench_retrieval": (["scripts/bench_retrieval.py", *SMALLEST, "--galleries", "300", "--encoded", "20", "--rerank-top", "5", "--rounds", "1", "--seconds", "0.01", "--regions", "12", "--device", "cpu", "--work", "work", "--out", "out.json"], []),
    "bench_milvus": (["scripts/bench_milvus.py", "--uri", "milvus.db", "--images", "120", "--dim", "8", "--engines", "FLAT", "--queries", "100", "--k", "3", "--timeout", "5", "--work", "work", "--out", "out.json"], []),
    "translate": (WRITING["translate"].words, WRITING["translate"].inputs),
    "download": (["scripts/download.py", "x", "--sources", "sources.yaml", "--out", "out"], ["sources.yaml"]),
}  # fmt: skip

MADE = {  # what those write that only report
    "compare": ["out.json"], "report": ["out.html"], "plot_runs": ["out.png"], "contact_sheet": ["out.png"], "plan": ["out.json"], "convert_config": ["out.yaml"],
    "average_checkpoints": ["out"], "bench_data": [], "bench_train": [], "bench_retrieval": [], "bench_milvus": [],
}  # fmt: skip
WRITING |= {command: Writing(*TYPED[command], outputs, 0.3, again=command == "average_checkpoints") for command, outputs in MADE.items()}
