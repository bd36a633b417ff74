"""What a service is measured on: the demo's index, and one of real size with towers of BERT-base and random weights."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from data.captions.db import CaptionDB
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.storage.processes import ends_with_this, starting_workers
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.retrieval.retriever import Retriever
from model.transformer import EncoderConfig
from scripts.benchmarking.galleries import Synthetic, write_drawn_index

ROOT = Path(__file__).resolve().parents[2]
TEXTS = 200  # different queries
NEAR = 1e-3  # share of a score by which those of batches may differ


@dataclass
class ServedGallery:
    """An index with its model, and what is right.

    Attributes:
        name: for the report
        words: of scripts/serve.py
        index: its folder
        fingerprint: of the model
        texts: queries
        scores: [Q,N] dot products of the queries with the images ``ids``
    """

    name: str
    words: list[str]
    index: Path
    fingerprint: str
    texts: list[str]
    ids: list[str]
    scores: np.ndarray

    @cached_property
    def rows(self) -> dict[str, int]:
        """Id → its row."""
        return {name: row for row, name in enumerate(self.ids)}

    def is_right(self, query: int, k: int, body: bytes, absent: np.ndarray | None = None) -> bool:
        """Whether an answer is the k best images of a text, without the ``absent`` rows, up to the last digits."""
        results = json.loads(body)["results"][0]
        own = self.scores[query].copy()
        if absent is not None:
            own[absent] = -np.inf
        if len(results) != k:
            return False
        found = np.array([own[self.rows[each["id"]]] for each in results])
        said, best = np.array([each["score"] for each in results]), np.sort(own)[::-1][:k]
        near = NEAR * float(np.abs(best).max() or 1)
        close = np.allclose(found, said, rtol=0, atol=near) and np.allclose(best, found, rtol=0, atol=near)
        return close and len({each["id"] for each in results}) == k


def demo_gallery(demo: Path, work: Path, precision: str) -> ServedGallery:
    """The demo's index, copied, since it is changed. Raises BadInput where make demo was not run."""
    if not (demo / "eval/finetune/img/data.mdb").exists():
        raise BadInput(f"{demo}: holds no index of the demo: run make demo first, or leave the demo out of --galleries")
    index = work / "demo_img"
    shutil.copytree(demo / "eval/finetune/img", index)
    captions = CaptionDB(demo / "db/test")
    texts = [captions[name]["raw"] for name in itertools.islice(captions.ids, 0, None, max(1, len(captions) // TEXTS))][:TEXTS]
    words = ["--photos", str(demo / "photos"), "--captions", str(demo / "db/test")]
    return _gallery("demo", demo / "finetune/best", index, texts, words, precision)


@dataclass
class Sizes:
    """Of the towers and the index that are drawn.

    Args:
        images: vectors of the index
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, vocab_size: of both towers
        dim: width of an embedding
        words: of a query
    """

    images: int = 123287
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    vocab_size: int = 28996
    dim: int = 768
    words: int = 12


def drawn_gallery(sizes: Sizes, work: Path, precision: str) -> ServedGallery:
    """Towers of these sizes with random weights, and an index of drawn vectors."""
    names = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size".split()
    encoder = EncoderConfig(**{name: getattr(sizes, name) for name in names})
    torch.manual_seed(0)
    folder, index, rng = work / "model", work / "drawn_img", np.random.default_rng(0)
    LightningDOT(LightningDOTConfig(txt=encoder, img=encoder, project_dim=sizes.dim, feature_dim=64)).save_pretrained(folder)
    letters = itertools.product("abcdefghijklmnopqrstuvwxyz", repeat=4)
    words = ["".join(each) for each in itertools.islice(letters, sizes.vocab_size - 5)]
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    model, shape = LightningDOT.from_pretrained(folder), Synthetic(sizes.dim)
    settings = {"model_settings": model.config.of_vectors}
    write_drawn_index(index, shape, rng, sizes.images, model.fingerprint, settings)
    texts = [" ".join(rng.choice(words, sizes.words)) for _ in range(TEXTS)]
    return _gallery(f"{sizes.images:,} x {sizes.dim}", folder, index, texts, [], precision)


def _gallery(name: str, checkpoint: Path, index: Path, texts: list[str], words: list[str], precision: str) -> ServedGallery:
    retriever, opened = Retriever.from_pretrained(checkpoint, index, precision=precision), EmbeddingIndex(index)
    queries = np.concatenate([retriever.encode_texts([text]) for text in texts])
    scores = np.concatenate([queries @ block.T for _, block in opened.blocks()], axis=1)
    words = ["--checkpoint", str(checkpoint), "--index", str(index), "--precision", precision, *words]
    return ServedGallery(name, words, index, retriever.model.fingerprint, texts, opened.ids(), scores)


@contextlib.contextmanager
def running_service(words: list[str]) -> Iterator[tuple[int, int]]:
    """``scripts/serve.py`` on a free port of this machine: (port, process id)."""
    command = [sys.executable, str(ROOT / "scripts/serve.py"), "--port", "0", *words]
    with starting_workers():
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=ends_with_this())
    try:
        address = process.stdout.readline()
        if not address:
            raise BadInput(f"the service did not start: {' '.join(command)}")
        yield int(address.split("/")[2].split(":")[1]), process.pid
    finally:
        process.terminate()
        process.communicate(timeout=120)
