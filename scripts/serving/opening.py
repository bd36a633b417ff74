"""What is served, read from disk and checked before anybody asks."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.captions.db import CaptionDB
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.regions.db import RegionDB
from data.regions.pictures import PictureFiles, read_pictures
from data.search.base import SearchOptions
from model.evaluation.failures import Failures
from model.made_from import read_made_from
from model.precision import choose_device
from model.retrieval.retriever import Retriever
from model.serving.followed_index import FollowedIndex
from model.serving.searching import ServedModel
from optim.run import environment
from scripts.serving.asking import LIMITS
from scripts.serving.bodies import PICTURE_BYTES, PIXELS
from scripts.serving.checkpoints import Checkpoint
from scripts.serving.first_index import build_where_absent
from scripts.serving.options import Options


def search_options(options: Options) -> dict[str, SearchOptions]:
    """Backend → how it searches."""
    device, found = str(choose_device(options.device)), {}
    for name in options.backends:
        engine = {"uri": options.milvus_uri, "token": options.milvus_token} if name == "milvus" else {}
        found[name] = SearchOptions(name, options.target_recall, device=device, **engine)
    return found


def open_model(given: Checkpoint, options: Options) -> ServedModel:
    """Read a checkpoint and open its indexes. Raises BadInput as ``Retriever.from_pretrained`` does."""
    build_where_absent(given.index, given.folder, given.regions, options.device, options.precision)
    index = EmbeddingIndex(given.index)
    retriever = Retriever.from_pretrained(
        given.folder, index, given.reranker, given.regions, device=options.device, precision=options.precision,
        rerank=given.rerank, extractor_weights=given.extractor_weights, mix=given.mix,
    )  # fmt: skip
    backends = search_options(options)

    def followed(folder: str, kind: str, collection: str) -> FollowedIndex:
        own = {name: each for name, each in backends.items() if name != "milvus" or collection}
        return FollowedIndex(folder, kind, retriever, own, collection)

    images = followed(given.index, "img", given.collections[0])
    captions = None if given.captions_index is None else followed(given.captions_index, "txt", given.collections[1])
    index.close()
    return ServedModel(given.name, Path(given.folder), retriever, images, captions)


def open_captions(folders: Sequence[str], index: str | None) -> list[CaptionDB]:
    """Text DBs. Raises BadInput where an index of captions was built from none of them as they are."""
    found = [CaptionDB(folder) for folder in folders]
    problems = []
    for database in found if index is not None else []:
        try:
            EmbeddingIndex(index).check_contents(database.folder, database.fingerprint())
        except BadInput as error:
            problems.append(error)
    if found and len(problems) == len(found):
        raise problems[0]
    return found


def open_failures(evaluation: str | None, second: str | None, captions: Sequence[CaptionDB]) -> Failures | None:
    """What an evaluation did not find, or two of the same queries. Raises BadInput where its captions are not the served ones."""
    if evaluation is None:
        return None
    failures = Failures(evaluation, second)
    if captions and failures.a.text_dbs - {database.fingerprint() for database in captions}:
        raise BadInput(
            f"--evaluation {evaluation}: ranked other captions than --captions holds now: give the text DB that it was measured on, "
            "or evaluate again"
        )
    return failures


def open_photos(folder: str | None, index: str, regions: RegionDB | None) -> PictureFiles | None:
    """The pictures, found as index or image DB say them."""
    if folder is None:
        return None
    return PictureFiles(folder, read_pictures(index) or (None if regions is None else read_pictures(regions.img_db)))


def described(models: dict[str, ServedModel], captions: Sequence[CaptionDB], facts: dict[str, Any]) -> dict[str, Any]:
    """What is served, as ``GET /api/info`` says it, but for what changes."""
    languages = sorted({language for database in captions for language in database.languages.values()} - {""})
    about = {name: _described(served) for name, served in models.items()}
    made = environment()
    versions = {"python": made["python"], "git": made["git"]} | made["versions"]
    versions |= {name: importlib.metadata.version(name) for name in ("starlette", "uvicorn")}
    limits = LIMITS | {"pixels": PIXELS, "picture_bytes": PICTURE_BYTES}
    return {"models": about, "languages": languages, "limits": limits, "versions": versions} | facts


def _described(served: ServedModel) -> dict[str, Any]:
    retriever, kept = served.retriever, read_made_from(served.checkpoint)
    extractors = [] if kept is None else [each for each in kept.extractors if each is not None]
    return {
        "checkpoint": str(served.checkpoint),
        "similarity": retriever.model.config.similarity,
        "device": str(retriever.device),
        "precision": retriever.precision,
        "reranker": retriever.reranker is not None,
        "rerank": retriever.rerank if retriever.reranker is not None else 0,
        "mix": retriever.mix,
        "own_pictures": len(extractors) == 1 and len(kept.extractors) == 1,
    }
