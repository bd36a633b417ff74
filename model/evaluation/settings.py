"""Settings of ``eval_itm.py``."""

import math
from dataclasses import dataclass, field
from typing import Literal

from data.errors import BadInput
from data.regions.db import BoxChoice
from data.scores.files import Side
from data.search.faiss import HnswOptions
from model.evaluation.statistics import Units
from model.initial import LongCaptions
from model.precision import Precision
from model.retrieval.stored_scores import IfMissing


@dataclass
class EvalConfig:
    """Image–text retrieval recall, both directions.

    Args:
        checkpoint: checkpoint folder, or its name on the Hugging Face hub
        captions: text DB of the split
        regions: image DB
        data_root: relative folders of databases start here
        out: where the feature indexes (img, txt), results.json and ranks.npz go; indexes there that were made by
            this checkpoint from this data are used again. None: RUN/eval/STEP/NAME_OF_CAPTIONS for a
            checkpoint of a run (RUN/best), else CHECKPOINT/eval/NAME_OF_CAPTIONS
        gallery: text DBs whose images and captions are candidates too, but no queries: for the full gallery of Flickr30k train and
            val. Of an image DB among them all images are candidates, and there are no captions
        gallery_regions: image DB of those text DBs, or one for each; none: regions
        languages: only captions in these; none: all
        long_captions: refuse captions that are longer than the model, or truncate them and say how many
        boxes: which boxes of the image DB are used; those that are not given are the checkpoint's
        image_captions: text DB with captions of the images themselves, for a model that was trained with a third view
        caption_score_weight: its share in an image's score; 0: there is none
        coco_1k: also the mean over consecutive folds of 1,000 images (COCO's 1K protocol: five folds of the 5K split)
        bootstrap: resamples for the 95% intervals; 0: no intervals
        resample: what is drawn with replacement: queries, or images with the queries of their captions
        search: exact, or hnsw: through approximate indexes of both sides; what they do not find counts as a miss
        hnsw: the graph of those indexes
        reranker: checkpoint folder of a re-ranker (train_itm.py --model uniter), or a converted UNITER: also the recall when it
            ranks the best candidates of each query again
        rerank_scores: files of scores of pairs (docs/reranking.md), which rank the best candidates again in place of a re-ranker: FILE
            for both directions, or t2i=FILE and i2t=FILE, the images of captions and the captions of images
        rerank_ids: of a matrix of scores without ids: database, the order of the text DB's captions and pictures; or two files of ids,
            of the captions and of the images
        rerank_rows: of such a matrix: whether a row is a caption or an image; none: as the numbers of both tell
        rerank_missing: pairs without a score: refuse them, or rank them below the others
        rerank_top: how many candidates, both directions, or all where there are fewer; one table for each number
        rerank_mix: weight of the bi-encoder's score, which is added to the re-ranker's: a second table for each number; none:
            what the validation of the re-ranker's training chose, where its checkpoint says so; 0: no second table. A
            re-ranker that was trained on the bi-encoder's hard negatives knows what that one does not, and less of the rest
        batch_size: images or captions encoded at a time, or pairs ranked again
        precision: of matrix products: fp32, bf16 or fp16
        device: auto, cpu, cuda or cuda:N
        workers: processes that read the databases
    """

    checkpoint: str
    captions: str
    regions: str
    data_root: str = "."
    out: str | None = None
    gallery: list[str] = field(default_factory=list)
    gallery_regions: list[str] = field(default_factory=list)
    languages: list[str] | None = None
    long_captions: LongCaptions = "refuse"
    boxes: BoxChoice = field(default_factory=BoxChoice)
    image_captions: str | None = None
    caption_score_weight: float = 0.0
    coco_1k: bool = False
    bootstrap: int = 1000
    resample: Units = "queries"
    search: Literal["exact", "hnsw"] = "exact"
    hnsw: HnswOptions = field(default_factory=HnswOptions)
    reranker: str | None = None
    rerank_scores: list[str] | None = None
    rerank_ids: list[str] | None = None
    rerank_rows: Side | None = None
    rerank_missing: IfMissing = "refuse"
    rerank_top: list[int] = field(default_factory=lambda: [20, 50, 100])
    rerank_mix: float | None = None
    batch_size: int = 256
    precision: Precision = "fp32"
    device: str = "auto"
    workers: int = 0

    def __post_init__(self):
        if self.bootstrap < 0:
            raise BadInput(f"bootstrap is the number of resamples, at least 0, found {self.bootstrap}")
        if self.gallery_regions and not self.gallery:
            raise BadInput(f"gallery_regions {self.gallery_regions}: there is no gallery; give its text DBs with gallery")
        if self.gallery and self.coco_1k:
            raise BadInput("coco_1k: folds of 1,000 images are of the split alone; leave gallery out, or coco_1k")
        if self.reranker and self.rerank_scores:
            raise BadInput("reranker and rerank_scores both rank the best candidates again; give one of them")
        if not self.rerank_scores and (self.rerank_ids or self.rerank_rows or self.rerank_missing != "refuse"):
            raise BadInput("rerank_ids, rerank_rows and rerank_missing are about the files of rerank_scores; give these, too")
        if self.rerank_ids is not None and self.rerank_ids != ["database"] and len(self.rerank_ids) != 2:
            raise BadInput(f"rerank_ids is database, or two files, of the captions' ids and of the images'; found {self.rerank_ids}")
        if (self.reranker or self.rerank_scores) and self.search != "exact":
            raise BadInput(f"{'reranker' if self.reranker else 'rerank_scores'}: its candidates come from the exact search; leave search exact")
        if not self.rerank_top or min(self.rerank_top) < 1 or not 0 <= (self.rerank_mix or 0) < math.inf:
            raise BadInput(
                f"rerank_top needs numbers of candidates, each at least 1, found {self.rerank_top}; and rerank_mix a weight of at "
                f"least 0, found {self.rerank_mix}"
            )
