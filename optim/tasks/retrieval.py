"""Fine-tuning of both towers for image–text retrieval: contrastive loss, optionally with a third view, hard negatives, and
the ranking of a re-ranker to learn from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from data.batches.identity import digests_of_pairs
from data.batches.samplers import image_order
from data.batches.teacher import read_teacher_scores
from data.errors import BadInput
from data.storage.contents import file_digest
from model.distributed import Meeting, Ranks
from model.evaluation.tasks import tables_of
from model.initial import ModelOptions, build_model, say_of_random_weights
from model.objectives.backward import Backward
from model.objectives.base import ObjectiveOptions
from model.objectives.cmr import CrossModalRetrieval
from model.objectives.contrastive.options import LossOptions
from model.objectives.contrastive.scores import Negatives, Siblings
from model.objectives.heads import heads_of, start_heads_from
from model.regions_as_words import check_knows_words_alone, read_regions_as_words
from model.retrieval.encoding import embed_pairs
from model.retrieval.mining import hard_negatives_of
from model.retrieval.results import Found
from optim.loop import Last, MicroBatch
from optim.run import load_heads
from optim.tasks.finetuning import (
    Finetuning,
    FinetuningSettings,
    Tables,
    ThirdView,
    check_towers,
    fit_lengths,
    open_training_data,
)


@dataclass
class DistillOptions:
    """Learning the ranking of a re-ranker.

    Args:
        scores: file of the re-ranker's scores of training pairs (data/batches/teacher.py)
        weight: of the distillation loss, which is added to the contrastive one
        temperature: of both rankings; more looks further down the list
    """

    scores: str | None = None
    weight: float = 0.0
    temperature: float = 1.0

    def __post_init__(self):
        if (self.scores is None) != (self.weight == 0):
            raise BadInput(f"distill: scores and weight go together, found {self.scores} and {self.weight}")
        if self.weight < 0 or self.temperature <= 0:
            raise BadInput(f"distill: weight {self.weight} and temperature {self.temperature} must be above 0")


@dataclass(kw_only=True)
class RetrievalConfig(FinetuningSettings):
    """Fine-tune LightningDOT for image–text retrieval on one dataset. With ``--model uniter`` a re-ranker is trained instead,
    which has settings of its own.

    Args:
        model: where the weights start
        siblings: other captions of an image in a batch: mask (no negatives) or keep (negatives, as the original)
        negatives: the other pairs of all_ranks, or of the own_rank alone, as the original; the loss is then the mean of the
            ranks' means
        loss: the contrastive loss
        image_captions: text DB with captions of the training images themselves, by a captioning model for instance: the
            third view
        val_image_captions: the same of the validation images; none: the same as image_captions
        caption_score_weight: share of the third view in a score; 0: there is none
        third_view: where it counts: everywhere (in the loss, in validation, and where hard negatives are mined), or in the loss
            alone, as the original
        distill: learning the ranking of a re-ranker
        grad_cache: pairs embedded at a time, so that a batch may be larger than memory; 0: all at once
        regions_as_words: the image tower, started from a text encoder (``model.img_init``), reads regions as words of the captions
            from the first update on (model/regions_as_words.py)
        captions_together: all captions of an image come in the same batch, so that the image is encoded once for them. They are no
            negatives of one another: give a batch_size of more pairs
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    siblings: Siblings = "mask"
    negatives: Negatives = "all_ranks"
    loss: LossOptions = field(default_factory=LossOptions)
    image_captions: str | None = None
    val_image_captions: str | None = None
    caption_score_weight: float = 0.0
    third_view: Literal["everywhere", "loss"] = "everywhere"
    distill: DistillOptions = field(default_factory=DistillOptions)
    grad_cache: int = 0
    regions_as_words: bool = False
    captions_together: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.captions_together and self.language_temperature != 1:
            raise BadInput("captions_together takes all captions of an image, language_temperature some of them: leave one out")
        if self.third_view == "loss" and self.val_image_captions is not None:
            raise BadInput("val_image_captions: third_view loss has no third view in validation; leave them out")
        if self.caption_score_weight and self.hard_negatives.count and self.hard_negatives.window == "original":
            raise BadInput(
                "hard_negatives.window original draws captions and images apart from each other, which a third view "
                "(caption_score_weight) has no place for; take another window, 0-50 for instance, or leave the third view out"
            )
        if self.model.similarity is not None:
            self.loss.check_similarity(self.model.similarity)


class Retrieval(Finetuning):
    """Both towers, trained to find the partner of each pair; an `optim.loop.Task`.

    Raises:
        BadInput: databases or weights that are missing or do not fit each other.
    """

    loss_name = "cmr"
    miner_changes = True

    def __init__(self, config: RetrievalConfig, device: torch.device, ranks: Ranks):
        in_loss_only = config.third_view == "loss"
        view = ThirdView(config.image_captions, config.val_image_captions, config.caption_score_weight, in_loss_only)
        train, val = open_training_data(config, ranks, view)
        regions = train.regions
        if config.regions_as_words:
            check_knows_words_alone(config.model)
        model = build_model(
            config.model, train.captions.meta, regions.feature_dim, regions.num_labels, str(regions.folder)
        )
        train = fit_lengths(train, val, model.config.txt.max_tokens, config.long_captions, ranks)
        inits = {} if config.model.init else {"text tower": config.model.txt_init, "image tower": config.model.img_init}
        random = [name for name, folder in inits.items() if not folder]
        say_of_random_weights(config.model, random, len(train), "configs/finetune/own_small.yaml")
        if config.distill.scores:
            train.teacher = read_teacher_scores(config.distill.scores, train.ids, train.images, digests_of_pairs(train))
        hard_negatives = hard_negatives_of(train, config.hard_negatives)
        check_towers(model, config.model.init or config.model.txt_init, train, val)
        super().__init__(config, train, val, hard_negatives, model, model, device, ranks)
        distill = config.distill
        self.objective = CrossModalRetrieval(
            ObjectiveOptions(
                siblings=config.siblings,
                negatives=config.negatives,
                loss=config.loss,
                distill_weight=distill.weight,
                distill_temperature=distill.temperature,
                images_once=config.captions_together,
            )
        )
        self.prepare = self.objective.prepare
        self.mines_third_view = not in_loss_only
        if distill.scores:
            self.data["training teacher scores"] = file_digest(distill.scores)
        heads = heads_of(self.objective, model.config).to(device)
        if config.model.init:
            start_heads_from(heads, config.model.init)
        if any(True for _ in heads.parameters()):  # a loss that learns something itself
            self.heads = heads
        self.step = Backward(self.model, heads, ranks, config.precision, config.grad_cache)

    def begin(self) -> None:
        if self.config.regions_as_words and self.ranks.is_first:  # the others get what the first one has
            explained = read_regions_as_words(self.model, self.train)
            print(f"regions start as words: their features explain {explained:.0%} of the variance of images' mean words")

    def load(self, checkpoint: Path, training: dict, changed: list[str]) -> None:
        super().load(checkpoint, training, changed)
        if self.heads is not None:
            load_heads(self.heads, checkpoint)

    def backward(
        self, micro_batch: MicroBatch, meeting: Meeting, scaler: torch.amp.GradScaler, accumulation: int, last: Last
    ) -> Tensor:
        batch = micro_batch.batch.to(self.device)
        return self.step.add_gradients(self.objective, batch, meeting, scaler, accumulation, last)

    def order(self, epoch: int) -> np.ndarray | None:
        if self.config.captions_together:
            return image_order(self.train.image_of, self.config.seed, epoch)
        return super().order(epoch)

    def recall(self) -> tuple[Tables, Tables, Found | None]:
        txt, img, _ = embed_pairs(self.model, self.val, self.device, self.config.precision, self.ranks)
        return tables_of(txt, img, self.val), {}, self.sheet and self.sheet.found(txt, img)
