"""Ask an index in one call: a text finds images, an image finds captions.

    retriever = Retriever.from_pretrained("runs/x/best", "index/img")
    retriever.search_images("a dog on the beach", k=5)        # [Hit("beach.npz", 13.2), ...], best first
    retriever.search_images(["a dog", "two cats"], k=5)       # a list for each text

    retriever = Retriever.from_pretrained("runs/x/best", "index/txt", regions="db/regions")
    retriever.search_captions("beach.npz", k=5)
    retriever.search_captions("my/photo.jpg", k=5)            # a picture of one's own
    retriever.search_captions(Regions(features, norm_bb, conf), k=5)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch

from data.captions.tokenizers import CaptionTokenizer
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.regions.db import RegionDB, Regions
from data.search import open_backend
from data.search.base import SearchBackend, SearchOptions
from data.storage.text_files import read_lines
from model.bi_encoder import LightningDOT
from model.made_from import boxes_for, check_regions
from model.precision import Precision, for_inference
from model.retrieval.encoding import encode_image, encode_queries
from model.retrieval.own_pictures import OwnPictures, is_picture_file
from model.retrieval.pair_scoring import PairScorer
from model.retrieval.sources import check_width
from model.uniter import Reranker

PAIRS_AT_ONCE = 128  # that a re-ranker looks at
PAIRS_ON_CPU = 32  # so that a batch fits the cache


def read_queries(path: str | Path) -> list[str]:
    """The texts of a file of queries, one a line. Raises BadInput for a file that holds none or cannot be read."""
    queries = [line.strip() for line in read_lines(path, "give UTF-8 text, one query a line") if line.strip()]
    if not queries:
        raise BadInput(f"{path}: holds no query, expected one a line")
    return queries


def check_kind(backend: SearchBackend, kind: str) -> None:
    """Raise BadInput unless the index holds what a query looks for: "img" or "txt"."""
    if backend.kind != kind:
        found, expected = ("images", "captions") if kind == "txt" else ("captions", "images")
        raise BadInput(f"{backend.place}: is an index of {found}, this query needs one of {expected}")


def tokenizer_for(checkpoint: str | Path, given: str | Path | None = None) -> CaptionTokenizer:
    """The tokenizer of a checkpoint; or the one that is given, which must have the same vocabulary."""
    own = Path(checkpoint) / "tokenizer"
    if given is None:
        return CaptionTokenizer.from_pretrained(own)
    words = CaptionTokenizer.from_pretrained(given)
    if own.is_dir() and words.vocabulary() != CaptionTokenizer.from_pretrained(own).vocabulary():
        raise BadInput(f"{given}: is not the tokenizer of {checkpoint}: their vocabularies differ; leave the tokenizer out, {own} is taken")
    return words


class Hit(NamedTuple):
    """A result: the id in the index, and its score: the dot product, or the re-ranker's where one was asked."""

    id: str
    score: float


class ImageReranker(Protocol):
    """What looks at a text and an image together."""

    def rerank_images(self, text_ids: list[int], keys: list[str]) -> Sequence[float]:
        """Scores of images ``keys`` for a text, higher is better. text_ids: [CLS] words [SEP]"""


class RegionReranker:
    """A cross-attention re-ranker (``model.uniter``) with the database of the images' regions."""

    def __init__(self, model, regions: RegionDB, device: torch.device | str = "cpu", precision: str = "fp32"):
        if regions.feature_dim != model.config.feature_dim:
            raise BadInput(
                f"{regions.folder}: features are {regions.feature_dim} wide, the re-ranker expects {model.config.feature_dim}"
            )
        at_once = PAIRS_ON_CPU if torch.device(device).type == "cpu" else PAIRS_AT_ONCE
        self.scorer, self.regions = PairScorer(model.to(device).eval(), device, precision, at_once), regions

    def rerank_images(self, text_ids: list[int], keys: list[str]) -> list[float]:
        """[CLS] words [SEP] and n image keys → n scores."""
        images = [self.regions.get(key, soft_labels=False) for key in keys]
        return self.scorer.score([np.array(text_ids)], images, np.zeros(len(keys), np.int64), np.arange(len(keys))).tolist()


class Retriever:
    """Encodes queries and searches an index that the same model made.

    Args:
        model: the two towers, with the fingerprint of their checkpoint
        backend: what searches the index
        tokenizer: of the checkpoint; needed for texts
        regions: database that image ids are looked up in; needed for ids of images, and by a re-ranker
        reranker: sorts the first results of a text anew
        candidates: how many of them it sees (at least k)
        device, precision: where and how the model computes
        pictures: what extracts the regions of picture files

    Raises:
        BadInput: another model made the index.
    """

    def __init__(
        self, model: LightningDOT, backend: SearchBackend, tokenizer=None, regions: RegionDB | None = None,
        reranker: ImageReranker | None = None, candidates: int = 50, device="cpu", precision: str = "fp32",
        pictures: OwnPictures | None = None,
    ):  # fmt: skip
        backend.check_model(model.fingerprint)
        if regions is not None:
            check_width(regions, model)
        self.model, self.backend, self.tokenizer, self.regions = model.to(device).eval(), backend, tokenizer, regions
        self.reranker, self.candidates = reranker, candidates
        self.device, self.precision, self.pictures = device, precision, pictures

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        index: str | Path | EmbeddingIndex | SearchBackend,
        reranker=None,
        regions: str | Path | RegionDB | None = None,
        search: SearchOptions | None = None,
        tokenizer: str | Path | None = None,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        candidates: int = 50,
        extractor_weights: str | None = None,
    ) -> Retriever:
        """Read everything from disk.

        Args:
            checkpoint: folder of the towers
            index: folder of a feature index, or an opened one, or what searches it already
            reranker: folder of a re-ranker (needs ``regions``), or an object with ``rerank_images``; none: dot products
            regions: region database; of a path the boxes that the checkpoint was trained on are read
            search: what searches the index; none: the exact search, on ``device``
            tokenizer: folder or vocab.txt; none: the one that the checkpoint carries
            device: "cpu" or "cuda"
            precision: of matrix products; with "bf16" a query takes half as long
            candidates: how many first results a re-ranker sees (at least k)
            extractor_weights: where the weights of the extractor of the training regions are now, for picture files; none: where
                they were when those regions were extracted

        Raises:
            BadInput: anything missing, damaged or of another model.
        """
        model = LightningDOT.from_pretrained(checkpoint)
        backend = index if isinstance(index, SearchBackend) else open_backend(index, search or SearchOptions(device=str(device)))
        backend.check_model(model.fingerprint)
        backend.prepare()
        for_inference(model, device, precision)
        if isinstance(regions, (str, Path)):
            regions = RegionDB(regions, boxes_for(checkpoint))
        if regions is not None:
            check_regions(checkpoint, regions)
        if isinstance(reranker, (str, Path)):
            if regions is None:
                raise BadInput(f"{reranker}: a re-ranker looks at regions: give the region database of the images")
            backend.check_contents(regions.folder, regions.fingerprint())
            check_regions(reranker, regions)
            scoring = Reranker.from_pretrained(reranker)
            if scoring.config.encoder.vocab_size != model.config.txt.vocab_size:
                raise BadInput(
                    f"{reranker}: knows {scoring.config.encoder.vocab_size} word pieces, {checkpoint} {model.config.txt.vocab_size}: "
                    "a re-ranker reads the ids of the towers' tokenizer"
                )
            for_inference(scoring, device, precision)
            reranker = RegionReranker(scoring, regions, device, precision)
        words = tokenizer_for(checkpoint, tokenizer) if backend.kind == "img" else None
        pictures = OwnPictures(checkpoint, extractor_weights, device)
        return cls(model, backend, words, regions, reranker, candidates, device, precision, pictures)

    def search_images(self, text: str | Sequence[str], k: int = 10):
        """The best images for a text: a list of at most k ``Hit``; for several texts a list of such lists.

        Raises:
            BadInput: no text, an empty one, k < 1, or an index of captions.
        """
        check_kind(self.backend, "img")
        texts = [text] if isinstance(text, str) else list(text or ())
        if not texts or not all(isinstance(each, str) and each.strip() for each in texts):
            raise BadInput("a query is empty: give the words to find images for")
        wanted = max(k, self.candidates) if self.reranker and k > 0 else k
        found = self._hits(self.encode_texts(texts), wanted)
        if self.reranker:
            found = [self._reranked(each, hits)[:k] for each, hits in zip(texts, found, strict=True)]
        return found[0] if isinstance(text, str) else found

    def search_captions(self, image, k: int = 10) -> list[Hit]:
        """The best captions for an image: at most k ``Hit``.

        Args:
            image: an id of the region database, a picture file, ``Regions``, or an embedding [D]

        Raises:
            BadInput: an unknown id, no region database, features or a vector of another width, k < 1, an index of images.
        """
        check_kind(self.backend, "txt")
        return self._hits(self.encode_image(image), k)[0]

    def search_timed(self, query: str | Sequence[str], k: int = 10) -> tuple[list, dict[str, float]]:
        """What ``search_captions`` of an image id finds in an index of captions, or ``search_images`` of texts in one of images;
        and the milliseconds of encoding, of the search, and of the whole answer. The first call also pages in weights and
        vectors and sets up the libraries; the second shows the standing cost.
        """
        of_images = self.backend.kind == "img"
        encode, search = (self.encode_texts, self.search_images) if of_images else (self.encode_image, self.search_captions)
        whole = "encoding_search_and_ids" + "_and_reranking" * (self.reranker is not None)
        vectors, first_encoding = _timed(encode, query)
        times = {"encoding": _timed(encode, query)[1], "search": 0.0, "first_encoding": first_encoding}
        times["first_search"] = _timed(self.backend.search, vectors, k)[1]
        times["search"] = _timed(self.backend.search, vectors, k)[1]
        found, times[whole] = _timed(search, query, k)
        return found, times

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """→ [Q,D] float32"""
        if self.tokenizer is None:
            raise BadInput(f"{self.backend.place}: no tokenizer to read a text with: give one")
        return encode_queries(self.model, self.tokenizer, texts, self.device, self.precision)

    def encode_image(self, image) -> np.ndarray:
        """An id, a picture file, ``Regions`` or an embedding [D] → [1,D] float32"""
        if isinstance(image, str | Path) and self.pictures is not None and not (self.regions and str(image) in self.regions):
            if isinstance(image, Path) or is_picture_file(image):
                image = self.pictures.regions(image)
        if isinstance(image, str):
            if self.regions is None:
                raise BadInput(f"{self.backend.place}: image {image!r} is no picture file that is there, and a key is looked up in a region database: give --regions IMG_DB")
            image = self.regions.get(image, soft_labels=False)
        if isinstance(image, Regions):
            return encode_image(self.model, image, self.device, self.precision)
        vector = np.asarray(image, np.float32)
        if vector.ndim != 1:
            raise BadInput(
                f"{self.backend.place}: an array of shape {vector.shape}: give an image id, Regions(features, norm_bb, conf, None) or an "
                "embedding [D]"
            )
        return vector[None]

    def _hits(self, vectors, k) -> list[list[Hit]]:
        scores, rows = self.backend.search(vectors, k)
        names = iter(self.backend.ids(rows.ravel()))
        return [[Hit(next(names), score) for score in own] for own in scores.tolist()]

    def _reranked(self, text: str, hits: list[Hit]) -> list[Hit]:
        ids = [self.tokenizer.cls_id, *self.tokenizer.input_ids(text), self.tokenizer.sep_id]
        scores = np.asarray(self.reranker.rerank_images(ids, [hit.id for hit in hits]), np.float32)
        if scores.shape != (len(hits),) or not np.isfinite(scores).all():
            raise BadInput(f"{self.backend.place}: the re-ranker gave no finite score for each of {len(hits)} images")
        return [Hit(hits[n].id, float(scores[n])) for n in np.argsort(-scores, kind="stable")]


def _timed(function, *arguments):
    """Its result, and the milliseconds that it took."""
    started = time.perf_counter()
    result = function(*arguments)
    return result, 1000 * (time.perf_counter() - started)
