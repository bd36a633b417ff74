"""The settings of ``scripts/serve.py``."""

from dataclasses import dataclass, field
from typing import Literal

from configs.idle import refuse_idle
from data.errors import BadInput
from data.regions.db import BoxChoice
from model.serving.searching import ServiceOptions
from scripts.serving.guard import is_loopback

SHORTEST_TOKEN = 16  # characters


@dataclass
class Options:
    """Search in a browser: a page and a JSON API on this machine.

    Args:
        checkpoint: the checkpoint folder that made the index, or its name on the Hugging Face hub
        index: feature index of the images, built of --regions where it is not there; what is published there later is taken up
        captions_index: feature index of captions, to find captions of an image, built of --captions where it is not there
        captions: caption databases, to show what was said of the images
        regions: region database of the images, to show boxes; a re-ranker needs it
        photos: folder of the pictures, as the index (or --regions) says them
        reranker: folder of a re-ranker, which sorts the first results of a text anew
        rerank: how many of them it sees where a search does not say it
        mix: weight of the bi-encoder's score, which is added to the re-ranker's; none: what its validation chose
        extractor_weights: for pictures of one's own: weights of the extractor of the training regions; none: where they were then
        second_checkpoint: another checkpoint, to be shown beside the first
        second_index: its feature index of images
        second_captions_index: its feature index of captions
        second_regions: region database of another extractor, where it was trained on that; none: --regions
        second_reranker: folder of its re-ranker, which may be the first one's
        second_rerank: how many results that one sees; none: as many as the first
        second_mix: weight of its score beside that one's; none: what its validation chose
        second_extractor_weights: of its extractor; none: --extractor-weights
        evaluation: what eval_itm.py wrote, whose failures are listed
        second_evaluation: that of the second checkpoint, of the same queries
        backends: what a search may choose from: exact, hnsw, ivfpq (built beside the index where absent or stale), milvus
        target_recall: share of the exact top 10 that hnsw and ivfpq are tuned to; none: what they are tuned to, 0.99 at first
        milvus_uri: a file ending in .db or a server's address
        milvus_token: of a Milvus server that asks for one, "user:password"
        milvus_collection: its collection of the images
        milvus_captions_collection: its collection of the captions
        second_milvus_collection: the second checkpoint's collection of the images; none: it is searched without Milvus
        second_milvus_captions_collection: its collection of the captions
        host: address to listen at; others than this machine reach one that is not 127.0.0.1
        port: 0 is any that is free
        token: what who asks must know, at least 16 characters; needed where others reach the service
        device: auto, cpu, cuda or cuda:N
        precision: how the models compute
        service: how queries that come together are answered together
        boxes: which boxes of the region database are used; those that are not given are the checkpoint's
    """

    checkpoint: str
    index: str
    captions_index: str | None = None
    captions: list[str] = field(default_factory=list)
    regions: str | None = None
    photos: str | None = None
    reranker: str | None = None
    rerank: int = 50
    mix: float | None = None
    extractor_weights: str | None = None
    second_checkpoint: str | None = None
    second_index: str | None = None
    second_captions_index: str | None = None
    second_regions: str | None = None
    second_reranker: str | None = None
    second_rerank: int | None = None
    second_mix: float | None = None
    second_extractor_weights: str | None = None
    evaluation: str | None = None
    second_evaluation: str | None = None
    backends: list[Literal["exact", "hnsw", "ivfpq", "milvus"]] = field(default_factory=lambda: ["exact"])
    target_recall: float | None = None
    milvus_uri: str | None = None
    milvus_token: str = ""
    milvus_collection: str = "img"
    milvus_captions_collection: str = ""
    second_milvus_collection: str = ""
    second_milvus_captions_collection: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    service: ServiceOptions = field(default_factory=ServiceOptions)
    boxes: BoxChoice = field(default_factory=BoxChoice)

    def __post_init__(self):
        if (self.second_checkpoint is None) != (self.second_index is None):
            raise BadInput("--second-checkpoint and --second-index go together")
        of_second = {name: value for name, value in vars(self).items() if name.startswith("second_") and name != "second_evaluation"}
        if self.second_checkpoint is None and (alone := [name for name, value in of_second.items() if value not in (None, "")]):
            raise BadInput(f"--{alone[0].replace('_', '-')} says something of a second checkpoint: give --second-checkpoint, too")
        if self.second_reranker is None and (self.second_rerank, self.second_mix) != (None, None):
            raise BadInput("--second-rerank and --second-mix belong to --second-reranker: give it, too")
        if self.mix is not None and self.reranker is None:
            raise BadInput("--mix adds the bi-encoder's score to a re-ranker's: it needs --reranker")
        if ("milvus" in self.backends) != (self.milvus_uri is not None):
            raise BadInput("--backends milvus and --milvus-uri go together: give both, or neither")
        engine, collection = "without milvus among --backends", "milvus_collection milvus_captions_collection"
        refuse_idle(
            self, ("milvus" not in self.backends, f"milvus_token {collection} second_{collection.replace(' ', ' second_')}", engine),
            (self.captions_index is None, "milvus_captions_collection", "without --captions-index"),
            (self.second_captions_index is None, "second_milvus_captions_collection", "without --second-captions-index"),
            (not {"hnsw", "ivfpq"} & {*self.backends}, "target_recall", "without hnsw or ivfpq among --backends"),
            (self.reranker is None and self.second_reranker is None, "rerank", "without --reranker"),
            (self.regions is None and self.second_regions is None, "boxes", "without --regions"),
        )  # fmt: skip
        if "exact" not in self.backends:
            raise BadInput(f"--backends {' '.join(self.backends)}: expected exact among them")
        if self.second_evaluation is not None and self.evaluation is None:
            raise BadInput("--second-evaluation is compared with --evaluation: give both")
        if 0 < len(self.token) < SHORTEST_TOKEN or (not is_loopback(self.host) and not self.token):
            raise BadInput(f"--token: others reach --host {self.host}; give a secret of at least {SHORTEST_TOKEN} characters that they must know")
