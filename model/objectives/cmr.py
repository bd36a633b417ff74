"""Cross-modal retrieval (CMR; Sun et al., NAACL 2021, section 3.3, equations 4–6)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from data.batches.batch import Batch, Examples, collate_pairs, collate_texts
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.costs import Load, Work
from model.distributed import SINGLE, Ranks
from model.objectives.base import Objective, Outcome
from model.objectives.contrastive import LOSSES
from model.objectives.contrastive.scores import pair_scores
from model.objectives.distillation import distillation_loss, teacher_matrix


class Embedded(NamedTuple):
    """A batch's embeddings, [B,D] float32 each: texts x, images z, and where there is a third view captions c."""

    txt: Tensor
    img: Tensor
    captions: Tensor | None


class CrossModalRetrieval(Objective):
    """Find each text's image and each image's text among the pairs, and hard negatives, of all ranks, or of the own alone.

    Right is a caption that finds an image of its own in the batch, whichever row it stands in.
    """

    name = "cmr"
    head = "contrast"  # the loss, which may have weights of its own

    def misfit(self, config: LightningDOTConfig) -> str | None:
        return LOSSES[self.options.loss.name].misfit(self.options.loss.temperature, config.similarity)

    def build_head(self, config: LightningDOTConfig) -> nn.Module:
        return self.options.loss.build()

    def prepare(self, examples: Examples, rng: np.random.Generator | None = None) -> Batch:
        batch = collate_pairs(examples, self.options.images_once)
        if examples.captions is not None:
            batch.captions = collate_texts(examples.captions)
            batch.caption_weight = examples.caption_weight
        if examples.teacher_images is not None:
            batch.teacher_images = torch.from_numpy(examples.teacher_images)
            batch.teacher_scores = torch.from_numpy(examples.teacher_scores)
        return batch

    def num_predictions(self, batch: Batch) -> int:
        return batch.num_queries

    def forward(
        self,
        model: LightningDOT,
        heads: nn.ModuleDict,
        batch: Batch,
        ranks: Ranks = SINGLE,
        sizes: Sequence[int] | None = None,
    ) -> Outcome:
        return self.contrast(self.embed(model, batch), heads, batch, ranks, sizes)

    def embed(self, model: LightningDOT, batch: Batch) -> Embedded:
        """Both towers on a batch, and the text tower on the third view where there is one."""
        txt, img = model.embed_texts(batch.texts).float(), model.embed_images(batch.images).float()
        if batch.image_rows is not None:
            img = img[batch.image_rows]
        third = None if batch.captions is None else model.embed_texts(batch.captions).float()
        return Embedded(txt, img, third)

    def contrast(
        self,
        embedded: Embedded,
        heads: nn.ModuleDict,
        batch: Batch,
        ranks: Ranks = SINGLE,
        sizes: Sequence[int] | None = None,
    ) -> Outcome:
        """The loss of this rank's pairs among the rows of all ranks, from the embeddings of this rank's batch."""
        if self.options.negatives == "own_rank":
            ranks, sizes = SINGLE, None
        rows = slice(batch.num_rows)
        sizes = sizes or [batch.num_rows]

        def everyones(x: Tensor | None) -> Tensor | None:
            return None if x is None else ranks.gather(x[rows], sizes)

        txt, img, third = map(everyones, embedded)  # [M,D]
        image_ids, text_image_ids = everyones(batch.image_ids), everyones(batch.text_image_ids)  # [M]
        first = sum(sizes[: ranks.rank])
        queries = slice(first, first + batch.num_queries)  # N of M
        loss_of, options = heads["contrast"], self.options
        found = pair_scores(
            txt, img, image_ids, options.siblings, queries, third, batch.caption_weight, text_image_ids
        )
        found = found._replace(t2i=loss_of.logits(found.t2i), i2t=loss_of.logits(found.i2t))
        loss = loss_of(found)  # [N]
        if batch.teacher_scores is not None:
            images, scores = everyones(batch.teacher_images), everyones(batch.teacher_scores)  # [M,K]
            t2i = teacher_matrix(images[queries], scores[queries], image_ids)  # [N,M]
            i2t = teacher_matrix(images, scores, image_ids[queries]).T  # [N,M]
            losses = (distillation_loss(*each, options.distill_temperature) for each in ((found.t2i, t2i), (found.i2t, i2t)))
            loss = loss + options.distill_weight * sum(losses) / 2
        return Outcome(loss, found.t2i, image_ids)

    def work(self, model: LightningDOT, heads: nn.ModuleDict, load: Load) -> list[Work]:
        texts = load.rows * (2 if load.third_view else 1)
        towers = [
            *model.text_work(texts, load),
            *model.image_work(load.images, load),
            *model.txt_model.projection_work("text", texts),
            *model.img_model.projection_work("image", load.images),
        ]
        if load.grad_cache:  # forward twice, and activations of so many rows at a time
            share = min(load.rows, load.grad_cache) / load.rows
            towers = [dataclasses.replace(each, passes=each.passes + 1, kept=each.kept * share) for each in towers]
        own_rank, width = self.options.negatives == "own_rank", model.config.embedding_dim
        candidates = load.rows * (1 if own_rank else load.ranks)
        gathered = 0 if own_rank else 4 * candidates * width * (3 if load.third_view else 2)
        # two score matrices, masked, their logarithms of softmax
        kept = 4 * load.pairs * candidates * 6
        return [
            *towers,
            Work("scores", 2 * 2 * load.pairs * candidates * width, 3, 0, kept, "scores", gathered),
            Work("embeddings", kept=4 * 2 * candidates * width, kept_as="embeddings"),
        ]

    def right(self, outcome: Outcome) -> Tensor:
        guess, images = outcome.logits.argmax(dim=-1), outcome.target
        return images[guess] == images  # any caption–image pair of one image is right
