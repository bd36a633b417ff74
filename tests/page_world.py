"""Everything that the page can show, served: two checkpoints with indexes and evaluations, a re-ranker, captions, regions, photos."""

import json
from pathlib import Path

from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from model.transformer import EncoderConfig
from model.uniter import Reranker, UniterConfig


class PageWorld:
    """What is served: two checkpoints with evaluations, a re-ranker of random weights; the caption DB."""

    def __init__(self, root: Path, small_world: Path, finetuned: Path, command):
        self.data, self.first, self.second = small_world, finetuned / "last", small_world / "pretrained/last"
        shared = ["--captions", small_world / "db/train", "--regions", small_world / "regions", "--bootstrap", 20]
        for name, checkpoint in (("a", self.first), ("b", self.second)):
            command("eval_itm.py", "--checkpoint", checkpoint, *shared, "--out", root / name)
        vocabulary = len(CaptionTokenizer.from_pretrained(self.first / "tokenizer").vocabulary())
        sizes = EncoderConfig(vocabulary, 32, 1, 2, 64, max_position_embeddings=80, initializer_range=0.3)
        Reranker(UniterConfig(sizes, 32, 11)).save_pretrained(root / "uniter")
        self.captions = CaptionDB(small_world / "db/train")
        self.results = [json.loads((root / name / "results.json").read_text()) for name in "ab"]
        self.bare = ["--checkpoint", self.first, "--index", root / "a/img"]
        self.other = [
            "--second-checkpoint", self.second, "--second-index", root / "b/img", "--second-reranker", root / "uniter",
            "--regions", small_world / "regions",
        ]  # fmt: skip
        self.words = [
            *self.bare, "--captions-index", root / "a/txt", "--captions", small_world / "db/train",
            "--regions", small_world / "regions", "--photos", small_world / "photos", "--reranker", root / "uniter", "--rerank", 20,
            "--second-checkpoint", self.second, "--second-index", root / "b/img", "--second-captions-index", root / "b/txt",
            "--second-reranker", root / "uniter", "--second-rerank", 15, "--second-mix", 0.25,
            "--evaluation", root / "a", "--second-evaluation", root / "b", "--backends", "exact", "hnsw",
        ]  # fmt: skip
