"""A UNITER that teaches masked words and masked regions: knowledge distillation in pre-training.

It reads caption and regions together, masked as the model meets them, which two towers that meet in one vector cannot; what it
predicts of each masked word or region is learnt beside what stood there. It runs beside training. Written down beforehand
it would be terabytes: a word's logits are 58 kB in half precision, and every pass over the captions masks other words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.batches.batch import Batch, Examples
from data.batches.pairs import PairDataset
from data.batches.ragged import Joined
from data.downloads.hub import local_folder
from data.errors import BadInput
from data.storage.regular_files import is_there
from model import checkpoints
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.costs import Load, Work
from model.distributed import SINGLE, Ranks
from model.objectives.base import Objective, Outcome
from model.objectives.smrm import RegionDivergence, RegionFeatures
from model.objectives.vmlm import MaskedWords
from model.transformer import empty_weights
from model.uniter import HEADS, Uniter, UniterConfig, check_reranker

TEACHES = ("cls", "feat_regress", "region_classifier")  # heads of a pre-trained UNITER, by the objectives' names


@dataclass
class TeacherOptions:
    """A pre-trained UNITER beside pre-training.

    Args:
        checkpoint: folder that scripts/convert_checkpoint.py made of it; none: nobody teaches
        weight: so many times the divergence from the teacher is added to the loss of masked words and regions
        temperature: T: logits of words and classes are divided by it on both sides. The divergence is not multiplied by T²
    """

    checkpoint: str | None = None
    weight: float = 0.5
    temperature: float = 1.0

    def __post_init__(self):
        if self.weight <= 0 or self.temperature <= 0:
            raise BadInput(
                f"teacher: weight {self.weight} and temperature {self.temperature} must be above 0; without a teacher leave "
                "teacher.checkpoint out"
            )


class UniterTeacher(nn.Module):
    """A pre-trained UNITER with the heads of its masked words and regions; frozen, and always without dropout."""

    def __init__(self, config: UniterConfig):
        super().__init__()
        self.config = config
        self.fingerprint: str | None = None  # of encoder and heads, as read
        self.bert = Uniter(config)
        sizes = LightningDOTConfig(config.encoder, config.encoder, 0, config.feature_dim, config.num_labels)
        heads = (objective().build_head(sizes) for objective in (MaskedWords, RegionFeatures, RegionDivergence))
        self.heads = nn.ModuleDict(dict(zip(TEACHES, heads, strict=True)))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> UniterTeacher:
        return super().train(False)

    @torch.no_grad()
    def forward(self, head: str, batch: Batch) -> Tensor:
        """What it predicts of a batch's masked words (``cls``, [N,V] logits) or masked regions (``feat_regress``, [N,F]
        features; ``region_classifier``, [N,C] logits), in the order of the objectives' own predictions."""
        rows = np.arange(len(batch))  # each text with its own image; the data workers know of no teacher
        pairs = Joined.of(batch.texts, batch.images, rows, rows).to(batch.device)
        hidden = self.bert(batch.texts, batch.images, pairs, batch.masked_regions)  # [T+R,h]
        predicted = batch.predicted
        if head == "cls":
            return self.heads[head]["predictions"](hidden[predicted.rows], self.bert.embeddings.word_embeddings.weight)
        masked = hidden[len(batch.texts.ids) + predicted.rows - predicted.pairs - 1]  # regions, without a [CLS] in front
        tied = [self.bert.img_embeddings.img_linear.weight] if head == "feat_regress" else []
        return self.heads[head](masked, *tied)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> UniterTeacher:
        """Read a UNITER that ``scripts/convert_checkpoint.py`` converted.

        Raises:
            BadInput: no such folder, no UNITER, or one without the heads of its pre-training.
        """
        folder = local_folder(folder)
        path = folder / "config.json"
        values = checkpoints.read_settings(path)
        if values.get("model_type") != "uniter":
            raise BadInput(
                f"{path}: not a UNITER (model_type {values.get('model_type')!r}); scripts/convert_checkpoint.py makes a folder "
                "of its file"
            )
        encoder, tensors = checkpoints.read_bert(folder)
        tensors = {f"bert.{name}": tensor for name, tensor in tensors.items()}
        heads = checkpoints.read_tensors(folder / HEADS) if is_there(folder / HEADS) else {}
        absent = [name for name in TEACHES if not any(each.startswith(f"{name}.") for each in heads)]
        if absent:
            raise BadInput(
                f"{folder}/{HEADS}: no {', '.join(absent)}: only a pre-trained UNITER with these heads can teach; one that was "
                "fine-tuned has lost them"
            )
        tensors |= {f"heads.{name}": tensor for name, tensor in heads.items() if name.startswith(TEACHES)}
        with empty_weights():
            teacher = cls(UniterConfig(encoder, values.get("feature_dim", 2048), values.get("num_labels", 1601)))
        checkpoints.load_strict(teacher, tensors, str(folder), assign=True)
        teacher.fingerprint = checkpoints.fingerprint(tensors)
        return teacher.float().requires_grad_(False).eval()

    def check(self, folder: str, model: LightningDOTConfig, tasks: Iterable[str], datasets: Iterable[PairDataset]) -> None:
        """Raise BadInput unless it reads these captions and regions, and speaks of the model's words and classes."""
        encoder, words = self.config.encoder, model.txt.vocab_size
        if encoder.vocab_size != words:
            raise BadInput(
                f"teacher.checkpoint {folder}: knows {encoder.vocab_size:,} words, the model {words:,}; a teacher must have "
                "been trained with the model's vocabulary"
            )
        if {"mrckl", "mrc"}.intersection(tasks) and self.config.num_labels != model.num_labels:
            raise BadInput(
                f"teacher.checkpoint {folder}: tells {self.config.num_labels} classes of regions apart, the model "
                f"{model.num_labels}; mrckl and mrc need the same detector's"
            )
        for dataset in datasets:
            check_reranker(self.config, folder, dataset)
            longest = int(dataset.txt_lengths.max())
            if longest > encoder.max_tokens:
                raise BadInput(
                    f"{dataset.captions.folder}: a caption has {longest} tokens, teacher.checkpoint {folder} "
                    f"{encoder.max_tokens} positions; leave long captions out with max_txt_len"
                )


class Taught(Objective):
    """An objective of masked words or regions whose loss also has the divergence from a teacher's predictions.

    KL(teacher ‖ model) of words and classes at temperature T, squared error of features; in the same mean as the
    objective's own loss, ``weight`` times.
    """

    def __init__(self, objective: Objective, teacher: UniterTeacher, options: TeacherOptions):
        super().__init__(objective.options)
        self.name, self.head, self.reads_soft_labels = objective.name, objective.head, objective.reads_soft_labels
        self.objective, self.teacher = objective, teacher
        self.weight, self.temperature = options.weight, options.temperature

    def prepare(self, examples: Examples, rng: np.random.Generator) -> Batch:
        return self.objective.prepare(examples, rng)

    def num_predictions(self, batch: Batch) -> int:
        return self.objective.num_predictions(batch)

    def forward(
        self,
        model: LightningDOT,
        heads: nn.ModuleDict,
        batch: Batch,
        ranks: Ranks = SINGLE,
        sizes: Sequence[int] | None = None,
    ) -> Outcome:
        outcome = self.objective.forward(model, heads, batch, ranks, sizes)
        found, taught = outcome.logits.float(), self.teacher(self.head, batch).float()  # [N,V], [N,F] or [N,C]
        if self.head == "feat_regress":
            apart = F.mse_loss(found, taught, reduction="none")
        else:
            target = F.softmax(taught / self.temperature, dim=-1)
            apart = F.kl_div(F.log_softmax(found / self.temperature, dim=-1), target, reduction="none")
        apart = apart.sum(dim=-1) if outcome.loss.ndim == 1 else apart
        return dataclasses.replace(outcome, loss=outcome.loss + self.weight * apart)

    def right(self, outcome: Outcome) -> Tensor | None:
        return self.objective.right(outcome)

    def work(self, model: LightningDOT, heads: nn.ModuleDict, load: Load) -> list[Work]:
        bert = self.teacher.bert
        return [
            *self.objective.work(model, heads, load),
            *bert.work("teacher", load.rows, load.txt_length + load.regions, False, load),
            dataclasses.replace(bert.img_embeddings.work(load.rows, True, load), name="teacher regions"),
        ]


def taught_by(
    teacher: UniterTeacher | None, options: TeacherOptions, objectives: dict[str, Objective]
) -> dict[str, Objective]:
    """The objectives as they are trained: those of masked words and regions with a teacher, where there is one."""
    if teacher is None:
        return objectives
    return {
        task: Taught(objective, teacher, options) if objective.head in TEACHES else objective
        for task, objective in objectives.items()
    }
