"""Ask an index in one call: a text finds images, an image finds captions.

    retriever = Retriever.from_pretrained("runs/x/best", "index/img")
    retriever.search_images("a dog on the beach", k=5)        # [Hit("beach.npz", 13.2), ...], best first
    retriever.search_images(["a dog", "two cats"], k=5)       # a list for each text
    retriever.search("a dog", k=5).milliseconds               # {"encode": 9.1, "search": 0.3, "rerank": 0.0}

    retriever = Retriever.from_pretrained("runs/x/best", "index/txt", regions="db/regions")
    retriever.search_captions("beach.npz", k=5)
    retriever.search_captions("my/photo.jpg", k=5)            # a picture of one's own
    retriever.search_captions(Regions(features, norm_bb, conf), k=5)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch

from data.captions.tokenizers import CaptionTokenizer
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.notices import lowered, say
from data.regions.db import RegionDB, Regions
from data.regions.keys import normal_name
from data.search import open_backend
from data.search.base import SearchBackend, SearchOptions
from model.bi_encoder import LightningDOT
from model.made_from import boxes_for, check_regions
from model.precision import Precision, check_precision, choose_device, for_inference
from model.retrieval.encoding import encode_ids, encode_image
from model.retrieval.own_pictures import OwnPictures, is_picture_file
from model.retrieval.pair_scoring import PairScorer
from model.retrieval.queries import (
    TextQuery,
    check_argument,
    checked_count,
    checked_mix,
    checked_texts,
    described,
    read_texts,
)
from model.retrieval.reranking import mix_for, mixed_scores
from model.retrieval.results import Found, Hit
from model.retrieval.sources import check_width
from model.uniter import Reranker, UniterConfig

PAIRS_AT_ONCE = 128  # that a re-ranker looks at
PAIRS_ON_CPU = 32  # so that a batch fits the cache


def check_kind(backend: SearchBackend, kind: str, subject: str = "this query") -> None:
    """Raise BadInput unless the index holds what a query looks for: "img" or "txt"."""
    if backend.kind != kind:
        found, expected = ("images", "captions") if kind == "txt" else ("captions", "images")
        raise BadInput(f"{backend.place}: is an index of {found}, {subject} needs one of {expected}")


def tokenizer_for(checkpoint: str | Path, given: str | Path | None = None) -> CaptionTokenizer:
    """The tokenizer of a checkpoint; or the one that is given, which must have the same vocabulary."""
    own = Path(checkpoint) / "tokenizer"
    if given is None:
        return CaptionTokenizer.from_pretrained(own)
    words = CaptionTokenizer.from_pretrained(given)
    if own.is_dir() and words.vocabulary() != CaptionTokenizer.from_pretrained(own).vocabulary():
        raise BadInput(f"{given}: is not the tokenizer of {checkpoint}: their vocabularies differ; leave the tokenizer out, {own} is taken")
    return words


@runtime_checkable
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


def check_same_words(reranker: str | Path, config: UniterConfig, checkpoint: str | Path, model: LightningDOT) -> None:
    """Raise BadInput unless a re-ranker reads the word ids that the towers' tokenizer gives."""
    ours, theirs = model.config.txt.vocab_size, config.encoder.vocab_size
    if ours != theirs:
        raise BadInput(
            f"{reranker}: knows {theirs} word pieces, {checkpoint} {ours}: a re-ranker reads the ids of the towers' tokenizer"
        )
    folders = [Path(each) / "tokenizer" for each in (checkpoint, reranker)]
    if all(folder.is_dir() for folder in folders):
        own, other = (CaptionTokenizer.from_pretrained(folder).vocabulary() for folder in folders)
        if own != other:
            raise BadInput(f"{reranker}: its vocabulary is another than that of {checkpoint}; train a re-ranker on captions of this tokenizer")


def check_places(checkpoint, index, reranker, regions, search, tokenizer) -> None:
    """Raise BadInput unless each argument of ``Retriever.from_pretrained`` is of a type that it may have."""
    check_argument("checkpoint", checkpoint, "a folder", str, Path)
    check_argument("index", index, "a folder, or an index", str, Path, EmbeddingIndex, SearchBackend)
    check_argument("reranker", reranker, "a folder, or an object with a method rerank_images", str, Path, ImageReranker, type(None))
    check_argument("regions", regions, "a folder, or a RegionDB", str, Path, RegionDB, type(None))
    check_argument("search", search, "SearchOptions", SearchOptions, type(None))
    check_argument("tokenizer", tokenizer, "a folder or a vocab.txt", str, Path, type(None))


class Retriever:
    """Encodes queries and searches an index that the same model made.

    Args:
        model: the two towers, with the fingerprint of their checkpoint
        backend: what searches the index
        tokenizer: of the checkpoint; needed for texts
        regions: database that image ids are looked up in; needed for ids of images, and by a re-ranker
        reranker: sorts the first results of a text anew
        rerank: how many of them it sees (at least k), where a search does not say it
        device, precision: where and how the model computes
        pictures: what extracts the regions of picture files
        mix: weight of the dot product, which is added to the re-ranker's score, where a search does not say it

    Raises:
        BadInput: another model made the index, or a wrong argument.
    """

    def __init__(
        self, model: LightningDOT, backend: SearchBackend, tokenizer=None, regions: RegionDB | None = None,
        reranker: ImageReranker | None = None, rerank: int = 50, device="cpu", precision: Precision = "fp32",
        pictures: OwnPictures | None = None, mix: float = 0.0,
    ):  # fmt: skip
        self.device, self.precision = choose_device(device), check_precision(precision)
        self.rerank, self.mix = checked_count(rerank, "rerank"), checked_mix(mix)
        backend.check_model(model.fingerprint, model.config.of_vectors)
        if regions is not None:
            check_width(regions, model)
        if reranker is not None:
            check_kind(backend, "img", "a re-ranker")
            check_argument("reranker", reranker, "an object with a method rerank_images", ImageReranker)
        self.model, self.backend, self.tokenizer, self.regions = model.to(self.device).eval(), backend, tokenizer, regions
        self.reranker, self.pictures = reranker, pictures

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        index: str | Path | EmbeddingIndex | SearchBackend,
        reranker: str | Path | ImageReranker | None = None,
        regions: str | Path | RegionDB | None = None,
        search: SearchOptions | None = None,
        tokenizer: str | Path | None = None,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        rerank: int = 50,
        extractor_weights: str | None = None,
        mix: float | None = None,
    ) -> Retriever:
        """Read everything from disk.

        Args:
            checkpoint: folder of the towers
            index: folder of a feature index, or an opened one, or what searches it already
            reranker: folder of a re-ranker (needs ``regions``), or an object with ``rerank_images``; none: dot products
            regions: region database; of a path the boxes that the checkpoint was trained on are read
            search: what searches the index; none: the exact search, on ``device``
            tokenizer: folder or vocab.txt; none: the one that the checkpoint carries
            device: "cpu", "cuda", "cuda:N", or "auto" for a GPU when there is one
            precision: of matrix products: "fp32", "bf16" or "fp16"; with "bf16" a query takes half as long
            rerank: how many first results a re-ranker sees (at least k)
            extractor_weights: where the weights of the extractor of the training regions are now, for picture files; none: where
                they were when those regions were extracted
            mix: weight of the dot product, which is added to the re-ranker's score; none: what the re-ranker's validation chose

        Raises:
            BadInput: anything missing, damaged or of another model; a wrong argument.
        """
        device, precision = choose_device(device), check_precision(precision)
        check_places(checkpoint, index, reranker, regions, search, tokenizer)
        rerank, mix = checked_count(rerank, "rerank"), None if mix is None else checked_mix(mix)
        model = LightningDOT.from_pretrained(checkpoint)
        backend = index if isinstance(index, SearchBackend) else open_backend(index, search or SearchOptions(device=str(device)))
        backend.check_model(model.fingerprint, model.config.of_vectors)
        if reranker is not None:
            check_kind(backend, "img", f"the re-ranker {reranker}")
        backend.prepare()
        for_inference(model, device, precision)
        if isinstance(regions, (str, Path)):
            regions = RegionDB(regions, boxes_for(checkpoint))
        if regions is not None:
            check_regions(checkpoint, regions)
        words = tokenizer_for(checkpoint, tokenizer) if backend.kind == "img" else None
        if isinstance(reranker, (str, Path)):
            if regions is None:
                raise BadInput(f"{reranker}: a re-ranker looks at regions: give the region database of the images")
            backend.check_contents(regions.folder, regions.fingerprint())
            check_regions(reranker, regions)
            scoring = Reranker.from_pretrained(reranker)
            check_same_words(reranker, scoring.config, checkpoint, model)
            mix = mix_for(reranker, mix)
            for_inference(scoring, device, precision)
            reranker = RegionReranker(scoring, regions, device, precision)
        pictures = OwnPictures(checkpoint, extractor_weights, device)
        return cls(model, backend, words, regions, reranker, rerank, device, precision, pictures, mix or 0.0)

    def over(self, backend: SearchBackend) -> Retriever:
        """The same model over another index, with the re-ranker where that is one of images. Raises BadInput as the class does."""
        kept = {name: getattr(self, name) for name in ("tokenizer", "regions", "rerank", "device", "precision", "pictures", "mix")}
        return Retriever(self.model, backend, reranker=self.reranker if backend.kind == "img" else None, **kept)

    def search_images(self, text: str | Sequence[str], k: int = 10, rerank: int | None = None, mix: float | None = None):
        """The best images for a text: a list of at most k ``Hit``; for several texts a list of such lists. Words that the model
        does not know are said.

        Args:
            rerank: how many of the best images the re-ranker sorts anew (at least k); 0: none; None: as the retriever was made
            mix: weight of the dot product, which is added to the re-ranker's score; None: as the retriever was made

        Raises:
            BadInput: no text, an empty one, k < 1, an index of captions, a number to re-rank without a re-ranker.
        """
        check_kind(self.backend, "img")
        found = self.search(text, k, rerank, mix)
        for remark in found.remarks():
            say(remark)
        return found.hits[0] if isinstance(text, str) else found.hits

    def search_captions(self, image, k: int = 10) -> list[Hit]:
        """The best captions for an image: at most k ``Hit``.

        Args:
            image: an id of the region database, a picture file, ``Regions``, or an embedding [D]

        Raises:
            BadInput: an unknown id, no region database, features or a vector of another width, k < 1, an index of images.
        """
        check_kind(self.backend, "txt")
        return self.search(image, k).hits[0]

    def search(self, query, k: int = 10, rerank: int | None = None, mix: float | None = None) -> Found:
        """As ``search_images`` of a text or several in an index of images, or ``search_captions`` of an image in one of captions:
        with what it took, the order before the re-ranker, and the words that the model does not know, which it leaves to the
        caller to say. The first search of a process also pages in weights and vectors and sets up the libraries.
        """
        k = checked_count(k, "k")
        rerank, mix = self.checked_reranking(rerank, mix)
        of_images, started = self.backend.kind == "img", time.perf_counter()
        queries = self.read_texts(checked_texts(query)) if of_images else []
        vectors = self.encode_queries(queries) if of_images else self.encode_image(query)
        encoded = time.perf_counter()
        there = max(1, self.backend.count)  # of an empty index the search itself says so
        k = lowered(k, there, f"{self.backend.place}: k", "images" if of_images else "captions")
        rerank = lowered(rerank, there, f"{self.backend.place}: rerank", "images")
        first = self.nearest(vectors, max(k, rerank))
        searched = time.perf_counter()
        hits = [self.reranked(*each, mix) for each in zip(queries, first, strict=True)] if rerank else first
        ended = time.perf_counter()
        milliseconds = {"encode": encoded - started, "search": searched - encoded, "rerank": (ended - searched) * bool(rerank)}
        return Found([each[:k] for each in hits], first if rerank else [], queries, {n: 1000 * t for n, t in milliseconds.items()}, mix)

    def read_texts(self, texts: Sequence[str]) -> list[TextQuery]:
        """Texts as the models read them."""
        if self.tokenizer is None:
            raise BadInput(f"{self.backend.place}: no tokenizer to read a text with: give one")
        return read_texts(texts, self.tokenizer, self.model.config.txt.max_tokens)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """→ [Q,D] float32"""
        return self.encode_queries(self.read_texts(texts))

    def encode_queries(self, queries: Sequence[TextQuery]) -> np.ndarray:
        """As `encode_texts`, of texts that were read."""
        return encode_ids(self.model, [query.input_ids for query in queries], self.device, self.precision)

    def encode_image(self, image) -> np.ndarray:
        """An id, a picture file, ``Regions`` or an embedding [D] → [1,D] float32"""
        if isinstance(image, str | Path) and self.pictures is not None and not (self.regions and str(image) in self.regions):
            if Path(image).is_file() if isinstance(image, Path) else is_picture_file(image):
                image = self.pictures.regions(image)
        if isinstance(image, str | Path):
            if self.regions is None:
                raise BadInput(f"{self.backend.place}: image {str(image)!r} is no picture file that is there, and a key is looked up in a region database: give --regions IMG_DB")
            key = str(image)
            image = self.regions.get(key if key in self.regions else normal_name(key), soft_labels=False)
        if isinstance(image, Regions):
            return encode_image(self.model, image, self.device, self.precision)
        expected = "give an image id, Regions(features, norm_bb, conf, None) or an embedding [D]"
        try:
            vector = None if image is None or isinstance(image, bytes | bytearray) else np.asarray(image, np.float32)
        except (TypeError, ValueError):
            vector = None
        if vector is None:
            raise BadInput(f"{self.backend.place}: an image cannot be {described(image)}: {expected}")
        if vector.ndim != 1:
            raise BadInput(f"{self.backend.place}: an array of shape {vector.shape}: {expected}")
        return vector[None]

    def checked_reranking(self, rerank: int | None, mix: float | None) -> tuple[int, float]:
        """How many results are ranked again, and with which mix, from what a search says of it. Raises BadInput for a wrong
        number, and for any without a re-ranker."""
        if self.reranker is None:
            for name, value in (("rerank", rerank), ("mix", mix)):
                if value is not None and not (name == "rerank" and value == 0):
                    raise BadInput(f"{name} is {described(value)}, and there is no re-ranker: give one when the retriever is made")
            return 0, 0.0
        rerank = self.rerank if rerank is None else checked_count(rerank, "rerank", 0)
        return rerank, self.mix if mix is None else checked_mix(mix)

    def nearest(self, vectors, k: int) -> list[list[Hit]]:
        """Of each of Q vectors [Q,D] the k best of the index by the dot product, best first."""
        scores, rows = self.backend.search(vectors, k)
        names = iter(self.backend.ids(rows.ravel()))
        return [[Hit(next(names), score) for score in own] for own in scores.tolist()]

    def reranked(self, query: TextQuery, hits: list[Hit], mix: float) -> list[Hit]:
        """The hits in the order of the re-ranker's scores + mix · theirs."""
        scores = np.asarray(self.reranker.rerank_images(query.input_ids.tolist(), [hit.id for hit in hits]), np.float32)
        if scores.shape != (len(hits),) or not np.isfinite(scores).all():
            raise BadInput(f"{self.backend.place}: the re-ranker gave no finite score for each of {len(hits)} images")
        scores = mixed_scores(scores, np.array([hit.score for hit in hits], np.float32), mix)
        return [Hit(hits[n].id, float(scores[n])) for n in np.argsort(-scores, kind="stable")]
