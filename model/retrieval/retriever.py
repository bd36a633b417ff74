"""Ask an index in one call: a text finds images, an image finds captions.

    retriever = Retriever.from_photos("photos", "runs/x/best")              # a folder of photographs
    retriever.search_images("a dog on the beach", k=5)[0].path              # photos/beach.jpg

    retriever = Retriever.from_pretrained("runs/x/best", "index/img")
    retriever.search_images("a dog on the beach", k=5)        # [Hit("beach.npz", 13.2), ...], best first
    retriever.search_images(["a dog", "two cats"], k=5)       # a list for each text
    retriever.search("a dog", k=5).milliseconds               # {"encode": 9.1, "search": 0.3, "rerank": 0.0}

    retriever = Retriever.from_pretrained("runs/x/best", "index/txt", regions="db/regions")
    retriever.search_captions("beach.npz", k=5)
    retriever.search_captions("my/photo.jpg", k=5)            # a picture of one's own
    retriever.search_captions(["1.jpg", "2.jpg"], k=5)        # a list for each picture
    retriever.search_captions(Regions(features, norm_bb, conf), k=5)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch

from data.captions.tokenizers import CaptionTokenizer
from data.downloads.hub import local_folder
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.notices import lowered, say
from data.regions.db import RegionDB, Regions
from data.search import open_backend
from data.search.base import SearchBackend, SearchOptions
from model.bi_encoder import LightningDOT
from model.made_from import boxes_for, check_regions, check_tokenizer
from model.precision import Precision, check_precision, choose_device, for_inference
from model.retrieval.contents import CaptionsGiven, Contents, open_contents
from model.retrieval.encoding import encode_ids, encode_images
from model.retrieval.image_queries import ImageQuery, is_several, read_image
from model.retrieval.own_pictures import OwnPictures
from model.retrieval.photo_index import PhotoOptions, index_captions, index_photos
from model.retrieval.queries import (
    TextQuery,
    check_argument,
    checked_count,
    checked_mix,
    checked_texts,
    described,
    read_texts,
)
from model.retrieval.region_reranker import ImageReranker, open_reranker
from model.retrieval.reranking import mix_for, mixed_scores
from model.retrieval.results import Found, Hit
from model.retrieval.sources import check_width

IndexGiven = str | Path | EmbeddingIndex | SearchBackend
"""The folder of a feature index, or an opened one, or what searches it already."""
IMAGES_AT_ONCE = 64  # that are embedded together


def check_kind(backend: SearchBackend, kind: str, subject: str = "this query") -> None:
    """Raise BadInput unless the index holds what a query looks for: "img" or "txt"."""
    if backend.kind != kind:
        found, expected = ("images", "captions") if kind == "txt" else ("captions", "images")
        raise BadInput(f"{backend.place}: is an index of {found}, {subject} needs one of {expected}")


def tokenizer_for(checkpoint: str | Path, given: str | Path | None = None) -> CaptionTokenizer:
    """The tokenizer of a checkpoint; or the one that is given, which must have the same vocabulary."""
    check_tokenizer(checkpoint)
    own = local_folder(checkpoint) / "tokenizer"
    if given is None:
        return CaptionTokenizer.from_pretrained(own)
    words = CaptionTokenizer.from_pretrained(given)
    if own.is_dir() and words.vocabulary() != CaptionTokenizer.from_pretrained(own).vocabulary():
        raise BadInput(f"{given}: is not the tokenizer of {checkpoint}: their vocabularies differ; leave the tokenizer out, {own} is taken")
    return words


def opened_backend(
    index: IndexGiven, search: SearchOptions, model: LightningDOT, reranked_by: str | None = None, kind: str | None = None
) -> SearchBackend:
    """What searches an index of a model, ready for it; with ``kind`` or a re-ranker, refused where it is one of other things."""
    backend = index if isinstance(index, SearchBackend) else open_backend(index, search)
    backend.check_model(model.fingerprint, model.config.of_vectors)
    if reranked_by is not None or kind is not None:
        check_kind(backend, kind or "img", reranked_by or "search_captions")
    backend.prepare()
    return backend


def check_places(checkpoint: object, index: object, reranker: object, regions: object, search: object, tokenizer: object) -> None:
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
        contents: what hits show besides ids

    Attributes:
        of_captions: where the index is one of images, what finds captions; None: nothing does

    Raises:
        BadInput: another model made the index, or a wrong argument.
    """

    def __init__(
        self, model: LightningDOT, backend: SearchBackend, tokenizer: CaptionTokenizer | None = None, regions: RegionDB | None = None,
        reranker: ImageReranker | None = None, rerank: int = 50, device: torch.device | str = "cpu", precision: Precision = "fp32",
        pictures: OwnPictures | None = None, mix: float = 0.0, contents: Contents | None = None,
    ) -> None:  # fmt: skip
        self.device, self.precision = choose_device(device), check_precision(precision)
        self.rerank, self.mix = checked_count(rerank, "rerank"), checked_mix(mix)
        backend.check_model(model.fingerprint, model.config.of_vectors)
        if regions is not None:
            check_width(regions, model)
        if reranker is not None:
            check_kind(backend, "img", "a re-ranker")
            check_argument("reranker", reranker, "an object with a method rerank_images", ImageReranker)
        self.model, self.backend, self.tokenizer, self.regions = model.to(self.device).eval(), backend, tokenizer, regions
        self.reranker, self.pictures, self.contents = reranker, pictures, contents or Contents()
        self.of_captions: Retriever | None = None

    @classmethod
    def from_pretrained(
        cls, checkpoint: str | Path, index: IndexGiven, reranker: str | Path | ImageReranker | None = None,
        regions: str | Path | RegionDB | None = None, search: SearchOptions | None = None, tokenizer: str | Path | None = None,
        device: torch.device | str = "cpu", precision: Precision = "fp32", rerank: int = 50, extractor_weights: str | None = None,
        mix: float | None = None, photos: str | Path | None = None, captions: CaptionsGiven = None,
        captions_index: IndexGiven | None = None,
    ) -> Retriever:  # fmt: skip
        """Read everything from disk.

        >>> retriever = Retriever.from_pretrained("checkpoint", "index/img", photos="photos", captions_index="index/txt", captions="db/test")
        >>> retriever.search_images("a red circle", k=3)[0].path.exists()
        True

        Args:
            checkpoint: folder of the towers, or a name on the Hugging Face hub
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
            photos: folder of the pictures, for the ``path`` of hits
            captions: text database with the captions, several, or texts by ids, for the ``text`` of hits
            captions_index: feature index of captions, so that the same retriever finds captions where ``index`` is one of images

        Raises:
            BadInput: anything missing, damaged or of another model; a wrong argument.
        """
        device, precision = choose_device(device), check_precision(precision)
        check_places(checkpoint, index, reranker, regions, search, tokenizer)
        rerank, mix = checked_count(rerank, "rerank"), None if mix is None else checked_mix(mix)
        model = LightningDOT.from_pretrained(checkpoint)
        search = search or SearchOptions(device=str(device))
        backend = opened_backend(index, search, model, f"the re-ranker {reranker}" if reranker is not None else None)
        for_inference(model, device, precision)
        if isinstance(regions, str | Path):
            regions = RegionDB(regions, boxes_for(checkpoint))
        if regions is not None:
            check_regions(checkpoint, regions)
        words = tokenizer_for(checkpoint, tokenizer) if backend.kind == "img" else None
        if isinstance(reranker, str | Path):
            chosen, reranker = reranker, open_reranker(reranker, checkpoint, model, backend, regions, device, precision)
            mix = mix_for(chosen, mix)
        of_captions = None if captions_index is None else opened_backend(captions_index, search, model, kind="txt")
        contents = open_contents(photos, captions, [backend.place, *([regions.img_db] if regions is not None else [])], words)
        contents.check_captions(of_captions or backend)
        pictures = OwnPictures(checkpoint, extractor_weights, device)
        retriever = cls(model, backend, words, regions, reranker, rerank, device, precision, pictures, mix or 0.0, contents)
        retriever.of_captions = None if of_captions is None else retriever.over(of_captions)
        return retriever

    @classmethod
    def from_photos(
        cls,
        photos: str | Path,
        checkpoint: str | Path,
        captions: str | Path | Sequence[str] | None = None,
        out: str | Path | None = None,
        options: PhotoOptions | None = None,
        reranker: str | Path | ImageReranker | None = None,
        rerank: int = 50,
        mix: float | None = None,
    ) -> Retriever:
        """Make a folder of photographs searchable, and search it. What was made of them before is used again: a second call with the
        same photographs takes a second.

        >>> retriever = Retriever.from_photos("photos", "checkpoint", captions=["a red circle", "two blue squares"])
        >>> [hit] = retriever.search_images("a red circle", k=1)
        >>> hit.path.parent.name
        'photos'
        >>> [caption.text for caption in retriever.search_captions(hit.path, k=2)] in (
        ...     ["a red circle", "two blue squares"], ["two blue squares", "a red circle"])
        True

        Args:
            photos: folder, searched with its subfolders, or an uncompressed tar file
            checkpoint: folder, or a name on the Hugging Face hub; it says the extractor, whose weights must be here or in reach
            captions: what `search_captions` finds: texts, or a text database; None: nothing
            out: folder that gets image DB and indexes; None: one below ``~/.cache/lightningdot`` (`photo_index.cache_folder`)
            options: where and how extractor and model compute
            reranker, rerank, mix: as of `from_pretrained`

        Raises:
            BadInput: as `photo_index.index_photos` and `from_pretrained` do.
        """
        options = options or PhotoOptions()
        made = index_photos(photos, checkpoint, out, options)
        texts, of_captions = index_captions(captions, checkpoint, made, options) if captions is not None else (None, None)
        return cls.from_pretrained(
            checkpoint, made.index, reranker, made.regions, device=options.device, precision=options.precision, rerank=rerank,
            extractor_weights=options.weights, mix=mix, photos=made.photos if made.photos.is_dir() else None, captions=texts,
            captions_index=of_captions,
        )  # fmt: skip

    def over(self, backend: SearchBackend) -> Retriever:
        """The same model over another index, with the re-ranker where that is one of images. Raises BadInput as the class does."""
        reranker = self.reranker if backend.kind == "img" else None
        return Retriever(
            self.model, backend, self.tokenizer, self.regions, reranker, self.rerank, self.device, self.precision, self.pictures,
            self.mix, self.contents,
        )  # fmt: skip

    @overload
    def search_images(  # type: ignore[overload-overlap]  # a text is a sequence of texts, too
        self, text: str, k: int = 10, rerank: int | None = None, mix: float | None = None
    ) -> list[Hit]: ...

    @overload
    def search_images(self, text: Sequence[str], k: int = 10, rerank: int | None = None, mix: float | None = None) -> list[list[Hit]]: ...

    def search_images(
        self, text: str | Sequence[str], k: int = 10, rerank: int | None = None, mix: float | None = None
    ) -> list[Hit] | list[list[Hit]]:
        """The best images for a text: a list of at most k ``Hit``; for several texts a list of such lists. Words that the model
        does not know are said.

        >>> retriever = Retriever.from_pretrained("checkpoint", "index/img")
        >>> len(retriever.search_images("a red circle", k=5)), len(retriever.search_images(["a circle", "a square"], k=5))
        (5, 2)

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

    @overload
    def search_captions(self, image: ImageQuery, k: int = 10) -> list[Hit]: ...

    @overload
    def search_captions(self, image: list[ImageQuery] | list[str] | list[Path], k: int = 10) -> list[list[Hit]]: ...

    def search_captions(self, image: ImageQuery | Sequence[ImageQuery], k: int = 10) -> list[Hit] | list[list[Hit]]:
        """The best captions for an image: at most k ``Hit``; for a list of images a list of such lists.

        >>> retriever = Retriever.from_pretrained("checkpoint", "index/txt", regions="regions", captions="db/test")
        >>> hit = retriever.search_captions("photos/new.jpg", k=3)[0]
        >>> isinstance(hit.text, str)
        True
        >>> len(retriever.search_captions([Path("photos/new.jpg"), Path("photos/new.jpg")], k=3))
        2

        Args:
            image: an id of the region database, a picture file, ``Regions``, or an embedding [D]; or a list of them

        Raises:
            BadInput: an unknown id, no region database, features or a vector of another width, k < 1, an index of images alone.
        """
        retriever = self.of_captions if self.backend.kind == "img" and self.of_captions is not None else self
        check_kind(retriever.backend, "txt")
        found = retriever.search(image, k)
        return found.hits if is_several(image) else found.hits[0]

    def search(self, query: Any, k: int = 10, rerank: int | None = None, mix: float | None = None) -> Found:
        """As ``search_images`` of a text or several in an index of images, or ``search_captions`` of an image in one of captions:
        with what it took, the order before the re-ranker, and the words that the model does not know, which it leaves to the
        caller to say. The first search of a process also pages in weights and vectors and sets up the libraries.
        """
        k = checked_count(k, "k")
        rerank, mix = self.checked_reranking(rerank, mix)
        of_images, started = self.backend.kind == "img", time.perf_counter()
        queries = self.read_texts(checked_texts(query)) if of_images else []
        vectors = self.encode_queries(queries) if of_images else self.encode_images(query if is_several(query) else [query])
        encoded = time.perf_counter()
        there = max(1, self.backend.count)  # of an empty index the search itself says so
        k = lowered(k, there, f"{self.backend.place}: k", "images" if of_images else "captions")
        rerank = lowered(rerank, there, f"{self.backend.place}: rerank", "images")
        first = self.nearest(vectors, max(k, rerank))
        searched = time.perf_counter()
        hits = [self.reranked(*each, mix) for each in zip(queries, first, strict=True)] if rerank else first
        ended = time.perf_counter()
        milliseconds = {"encode": encoded - started, "search": searched - encoded, "rerank": (ended - searched) * bool(rerank)}
        shown = [self.contents.shown(each[:k], self.backend.kind) for each in hits]
        return Found(shown, first if rerank else [], queries, {n: 1000 * t for n, t in milliseconds.items()}, mix)

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

    def encode_image(self, image: ImageQuery) -> np.ndarray:
        """An id, a picture file, ``Regions`` or an embedding [D] → [1,D] float32"""
        return self.encode_images([image])

    def encode_images(self, images: Sequence[ImageQuery]) -> np.ndarray:
        """As `encode_image`, of several together → [Q,D] float32"""
        if not images:
            raise BadInput(f"{self.backend.place}: the list of images is empty: give at least one")
        read = [read_image(image, self.pictures, self.regions, self.backend.place) for image in images]
        regions = [each for each in read if isinstance(each, Regions)]
        vectors: list[np.ndarray] = []
        for start in range(0, len(regions), IMAGES_AT_ONCE):
            vectors.extend(encode_images(self.model, regions[start : start + IMAGES_AT_ONCE], self.device, self.precision))
        embedded = iter(vectors)
        found = [next(embedded) if isinstance(each, Regions) else each for each in read]
        if len({len(each) for each in found}) > 1:
            raise BadInput(f"{self.backend.place}: embeddings of {sorted({len(each) for each in found})} numbers in one list, expected {self.backend.dim}")
        return np.stack(found)

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

    def nearest(self, vectors: np.ndarray, k: int) -> list[list[Hit]]:
        """Of each of Q vectors [Q,D] the k best of the index by the dot product, best first."""
        scores, rows = self.backend.search(vectors, k)
        names = iter(self.backend.ids(rows.ravel()))
        return [[Hit(next(names), score) for score in own] for own in scores.tolist()]

    def reranked(self, query: TextQuery, hits: list[Hit], mix: float) -> list[Hit]:
        """The hits in the order of the re-ranker's scores + mix · theirs."""
        assert self.reranker is not None  # else none is asked for: `checked_reranking`
        scores = np.asarray(self.reranker.rerank_images(query.input_ids.tolist(), [hit.id for hit in hits]), np.float32)
        if scores.shape != (len(hits),) or not np.isfinite(scores).all():
            raise BadInput(f"{self.backend.place}: the re-ranker gave no finite score for each of {len(hits)} images")
        scores = mixed_scores(scores, np.array([hit.score for hit in hits], np.float32), mix)
        return [Hit(hits[n].id, float(scores[n])) for n in np.argsort(-scores, kind="stable")]
