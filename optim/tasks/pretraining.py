"""Pre-training of both towers on a mix of objectives and corpora (Sun et al., NAACL 2021, section 3)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.batches.batch import Batch
from data.batches.identity import digests_of_pairs, pairs_changed
from data.batches.loader import batch_loader
from data.batches.pairs import PairDataset, check_databases_exist, open_pairs
from data.batches.samplers import Draw, DrawStream, Source, token_batches
from data.errors import BadInput
from data.progress import ProgressBar
from model.bi_encoder import LightningDOT
from model.distributed import Meeting, Ranks
from model.evaluation.tasks import recall_of_first_images
from model.initial import (
    ModelOptions,
    build_model,
    check_caption_lengths,
    check_model_fits,
    check_one_tokenizer,
    check_same_tokenizer,
)
from model.made_from import check_made_from, check_regions, made_from_pairs
from model.objectives import OBJECTIVES
from model.objectives.backward import Backward
from model.objectives.base import Fusion, Objective, ObjectiveOptions
from model.objectives.contrastive.options import LossOptions
from model.objectives.contrastive.scores import Negatives, Siblings
from model.objectives.heads import PretrainingHeads, start_heads_from
from model.objectives.uniter_teacher import TEACHES, TeacherOptions, UniterTeacher, taught_by
from model.precision import autocast
from model.transformer import compile_blocks
from optim.loop import Last, MicroBatch, Paused, Update, Validation
from optim.losses import reason_of_nan
from optim.run import load_heads
from optim.settings import TrainingSettings

ORDER = "random, batches of real tokens"  # of the pairs; older runs had pairs of like length together, and say nothing


@dataclass
class CorpusOptions:
    """One corpus, and what is learnt from it.

    Args:
        name: what it is called in the logs
        captions: text DB to train on, or several (COCO's train and restval)
        regions: its image DB, or one for each text DB
        tasks: mix ratio of each objective (model/objectives has them); a step draws one (corpus, objective) pair
        val_captions: text DB to validate on, or several; none: this corpus is not validated
        val_regions: its image DB, or one for each; none: the same as regions
    """

    name: str
    captions: str | list[str]
    regions: str | list[str]
    tasks: dict[str, float]
    val_captions: str | list[str] | None = None
    val_regions: str | list[str] | None = None

    def __post_init__(self):
        if self.val_captions and not self.val_regions and not isinstance(self.regions, str) and len(self.regions) > 1:
            raise BadInput(
                f"data {self.name}: val_regions: say which image DB the validation captions go with, regions are several"
            )
        for task, ratio in self.tasks.items():
            if task not in OBJECTIVES:
                raise BadInput(f"data {self.name}: unknown task {task!r}; tasks are {', '.join(OBJECTIVES)}")
            if not ratio > 0:
                raise BadInput(f"data {self.name}: mix ratio of {task} must be above 0, found {ratio}; leave the task out")


@dataclass(kw_only=True)
class PretrainConfig(TrainingSettings):
    """Pre-train LightningDOT on one or several corpora.

    Args:
        data: the corpora
        corpora: train on these alone of the corpora, by their names; none: on all
        objectives: learn these alone of the corpora's tasks, as an ablation does; none: all
        model: where the weights start
        fusion: how the other modality's pooled state enters VMLM and SMRM: add (the paper), none, multiply
        siblings: other captions of an image in a CMR batch: mask (no negatives) or keep (negatives, as the original)
        negatives: of CMR: the other pairs of all_ranks, or of the own_rank alone, as the original; the loss of all tasks is then
            the mean of the ranks' means
        loss: the contrastive loss of CMR
        teacher: a UNITER that masked words and regions are learnt from too
        grad_cache: pairs that CMR embeds at a time, so that a batch may be larger than memory; 0: all at once
        tokens_per_batch: tokens, text and regions, of one batch on one GPU
        num_steps: updates
        word_mask_prob: share of words that VMLM predicts
        region_mask_prob: share of regions that SMRM predicts
        valid_every: updates between validations, each followed by a checkpoint
        valid_batches: most batches of an objective in a validation; 0 takes all
        valid_recall: images of a corpus among which a validation measures recall, the first ones, or all where there are fewer; of
            corpora that learn cmr. 0: it measures none
    """

    data: list[CorpusOptions]
    corpora: list[str] | None = None
    objectives: list[str] | None = None
    model: ModelOptions = field(default_factory=ModelOptions)
    fusion: Fusion = "add"
    siblings: Siblings = "mask"
    negatives: Negatives = "all_ranks"
    loss: LossOptions = field(default_factory=LossOptions)
    teacher: TeacherOptions = field(default_factory=TeacherOptions)
    grad_cache: int = 0
    tokens_per_batch: int = 10240
    num_steps: int = 300_000
    word_mask_prob: float = 0.15
    region_mask_prob: float = 0.15
    valid_every: int = 2500
    valid_batches: int = 0
    valid_recall: int = 1000

    def __post_init__(self):
        super().__post_init__()
        if not self.data:
            raise BadInput("data: no corpus is given, at least one is needed")
        self.data = chosen_corpora(self.data, self.corpora, self.objectives)
        if len({corpus.name for corpus in self.data}) < len(self.data):
            raise BadInput("data: corpora must have different names, their metrics are logged by name")
        tasks = [OBJECTIVES[task] for corpus in self.data for task in corpus.tasks]
        if self.teacher.checkpoint and not any(task.head in TEACHES for task in tasks):
            names = ", ".join(name for name, task in OBJECTIVES.items() if task.head in TEACHES)
            raise BadInput(f"teacher.checkpoint: a UNITER teaches {names}, and no corpus has any of these tasks")
        if self.model.similarity is not None:
            self.loss.check_similarity(self.model.similarity)
        self.check_at_least_one("tokens_per_batch", "num_steps", "valid_every")


def chosen_corpora(data: list[CorpusOptions], corpora: list[str] | None, objectives: list[str] | None) -> list[CorpusOptions]:
    """The corpora of some names, with some of their objectives; one that has none of these is left out.

    Raises:
        BadInput: a name that no corpus has, or an objective that none of them learns.
    """
    for setting, chosen, names in (
        ("corpora", corpora, [corpus.name for corpus in data]),
        ("objectives", objectives, list(dict.fromkeys(task for corpus in data for task in corpus.tasks))),
    ):
        if unknown := [name for name in chosen or [] if name not in names]:
            raise BadInput(f"{setting}: found {', '.join(unknown)}, data has {', '.join(names)}")
        if chosen == []:
            raise BadInput(f"{setting}: none is given; leave it out for all of {', '.join(names)}")
    kept = []
    for corpus in data:
        tasks = {task: ratio for task, ratio in corpus.tasks.items() if objectives is None or task in objectives}
        if tasks and (corpora is None or corpus.name in corpora):
            kept.append(dataclasses.replace(corpus, tasks=tasks))
    if not kept:
        raise BadInput(f"objectives: none of {', '.join(objectives or [])} is learnt from {', '.join(corpora or [])}")
    return kept


class Pretraining:
    """The objectives of all corpora, drawn by their mix ratios; an `optim.loop.Task`.

    Args:
        device: where the model goes
        ranks: the processes that train together

    Raises:
        BadInput: databases that are missing or do not fit the model or each other.
    """

    worst_score = float("inf")

    def __init__(self, config: PretrainConfig, device: torch.device, ranks: Ranks):
        self.config, self.device, self.ranks = config, device, ranks
        named = [(each.captions, each.regions, each.val_captions, each.val_regions) for each in config.data]
        check_databases_exist(itertools.chain(*named), config.data_root)
        with ranks.first_alone():  # a database's tables are made fit for memory-mapping once
            self.train = [self._pairs(corpus.captions, corpus.regions) for corpus in config.data]
            self.val = [
                self._pairs(corpus.val_captions, corpus.val_regions or corpus.regions) if corpus.val_captions else None
                for corpus in config.data
            ]
        with ranks.first_alone():  # what the first one has computed, the others find
            self.data = self._digests() | dict.fromkeys(("training order", "validation order"), ORDER)
        self.made_from = made_from_pairs(self.train)
        self.sources = [(number, task) for number, corpus in enumerate(config.data) for task in corpus.tasks]
        options = ObjectiveOptions(
            config.fusion, config.word_mask_prob, config.region_mask_prob, config.siblings, config.loss,
            negatives=config.negatives,
        )
        self.objectives = {task: OBJECTIVES[task](options) for _, task in self.sources}
        self.model, self.heads = self._built(options)
        self.teacher = self._read_teacher()
        self.trained = taught_by(self.teacher, config.teacher, self.objectives)
        self.step = Backward(self.model, self.heads, ranks, config.precision, config.grad_cache)
        self.tokenizer = self.train[0].captions.tokenizer_files()
        self.draws = DrawStream(
            [
                Source(config.data[n].tasks[task], self.train[n].txt_lengths, self.train[n].img_lengths)
                for n, task in self.sources
            ],
            config.tokens_per_batch,
            config.seed,
            config.grad_accumulation,
            ranks.rank,
            ranks.size,
        )
        self.facts = {
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "captions": {corpus.name: len(pairs) for corpus, pairs in zip(config.data, self.train, strict=True)},
            "images": {corpus.name: len(pairs.images) for corpus, pairs in zip(config.data, self.train, strict=True)},
            "effective_batch_tokens": config.tokens_per_batch * config.grad_accumulation * ranks.size,
            "peak_lr": config.optim.lr,
        } | ({} if self.teacher is None else {"teacher": f"{config.teacher.checkpoint}, weights {self.teacher.fingerprint}"})
        for number, corpus in enumerate(config.data):
            for name, pairs in ((corpus.name, self.train[number]), (f"{corpus.name}, validation", self.val[number])):
                if pairs is not None and pairs.dropped:
                    self.facts.setdefault("dropped_captions", {})[name] = pairs.dropped

    def _digests(self) -> dict[str, str]:
        digests = {}
        for corpus, train, val in zip(self.config.data, self.train, self.val, strict=True):
            digests |= digests_of_pairs(train, f"training {corpus.name}")
            digests |= digests_of_pairs(val, f"validation {corpus.name}") if val is not None else {}
        return digests

    def _pairs(self, captions: str | list[str], regions: str | list[str]) -> PairDataset:
        config = self.config
        return open_pairs(captions, regions, config.boxes, config.max_txt_len, root=config.data_root)

    def _built(self, options: ObjectiveOptions) -> tuple[LightningDOT, PretrainingHeads]:
        config, captions, regions = self.config, self.train[0].captions, self.train[0].regions
        model = build_model(config.model, captions.meta, regions.feature_dim, regions.num_labels, str(regions.folder))
        tokens = model.config.txt.max_tokens
        self.train = [pairs.at_most(tokens) for pairs in self.train]
        self.val = [pairs and pairs.at_most(tokens) for pairs in self.val]
        for corpus, *datasets in zip(config.data, self.train, self.val, strict=True):
            for part, _ in (part for dataset in filter(None, datasets) for part in dataset.parts):
                self._check(model, corpus, part)
        check_one_tokenizer([*self.train, *filter(None, self.val)])
        heads = PretrainingHeads(model.config, options, self.objectives)
        if config.model.init:
            start_heads_from(heads, config.model.init)
        model.set_checkpointing(config.activation_checkpointing)
        if config.compile:
            compile_blocks(model)
        return model.to(self.device), heads.to(self.device)

    def _read_teacher(self) -> UniterTeacher | None:
        folder = self.config.teacher.checkpoint
        if not folder:
            return None
        teacher = UniterTeacher.from_pretrained(folder)
        teacher.check(folder, self.model.config, self.objectives, self.train)
        self.data["training teacher"] = teacher.fingerprint
        return teacher.to(self.device)

    def _check(self, model: LightningDOT, corpus: CorpusOptions, dataset: PairDataset) -> None:
        regions = dataset.regions
        check_model_fits(model.config, dataset.captions.meta, regions.feature_dim, "model", str(regions.folder))
        check_caption_lengths(model.config, dataset)
        check_made_from(self.made_from, "the model is trained", regions)
        if self.config.model.init:
            check_regions(self.config.model.init, regions)
        for folder in filter(None, (self.config.model.init, self.config.model.txt_init)):
            check_same_tokenizer(folder, dataset.captions)
        labelled = [task for task in corpus.tasks if self.objectives[task].reads_soft_labels]
        if labelled and not regions.num_labels:
            raise BadInput(
                f"{regions.folder}: has no soft labels, which {' and '.join(labelled)} read; extract the regions with an extractor that "
                "gives them and --soft-labels keep, or leave these tasks out (--objectives)"
            )
        if labelled and regions.num_labels != (model.config.num_labels or None):
            raise BadInput(
                f"{regions.folder}: regions have {regions.num_labels} soft labels, the model "
                f"{model.config.num_labels}; tasks {' and '.join(labelled)} need the same number, and at least one"
            )

    def is_better(self, score: float, best: float) -> bool:
        return score < best  # mean loss

    def begin(self) -> None:
        """As `optim.loop.Task.begin`."""

    def load(self, checkpoint: Path, training: dict, changed: list[str]) -> None:
        self.model.load_state_dict(LightningDOT.from_pretrained(checkpoint).state_dict())
        load_heads(self.heads, checkpoint)
        self.draws.load_state_dict(training["draws"])
        for (number, _), source in zip(self.sources, self.draws.sources, strict=True):
            if pairs_changed(changed, f"training {self.config.data[number].name}"):
                source.cursor = [source.cursor[0] + 1, 0]  # of other pairs none are done: its next pass begins

    def state(self) -> dict:
        return {}

    def total_updates(self, step: int) -> int:
        return self.config.num_steps

    def updates(self, step: int, paused: Paused) -> Iterator[Update]:
        config = self.config
        sources = [(self.train[corpus], self.objectives[task]) for corpus, task in self.sources]
        make = functools.partial(_make_batch, config.seed, sources)
        tokens = [int(each.txt_lengths.sum(dtype=np.int64) + each.img_lengths.sum(dtype=np.int64)) for each in self.draws.sources]
        batches = iter(batch_loader(make, self.draws, config.workers, pin=self.device.type == "cuda"))
        for number in range(step + 1, config.num_steps + 1):
            drawn = [next(batches) for _ in range(config.grad_accumulation)]
            is_last = number == config.num_steps
            validates = is_last or number % config.valid_every == 0
            micro_batches = [self._micro_batch(draw, batch) for draw, batch in drawn]
            resume = drawn[-1][0].resume
            yield Update(micro_batches, {"draws": resume}, "pretrain", validates, is_last, self._passes(resume["cursors"], tokens))

    def _passes(self, cursors: list[list[int]], tokens: list[int]) -> dict[str, float]:
        """How often each corpus was gone through, all its objectives together; a started pass counts by its batches' share of the
        ``tokens`` of each source."""
        passes = dict.fromkeys((corpus.name for corpus in self.config.data), 0.0)
        for (number, _), (whole, batches), of_source in zip(self.sources, cursors, tokens, strict=True):
            passes[self.config.data[number].name] += whole + min(1.0, batches * self.config.tokens_per_batch / of_source)
        return passes

    def _micro_batch(self, draw: Draw, batch: Batch) -> MicroBatch:
        corpus, task = self.sources[draw.source]
        name = f"{self.config.data[corpus].name}/{task}"
        position, predictions = (draw.position, draw.source), self.objectives[task].num_predictions(batch)
        return MicroBatch(name, batch, position, self.train[corpus], draw.indices, predictions)

    def pairs(self, meeting: Meeting) -> int:
        return sum(meeting.sizes)

    def backward(
        self, micro_batch: MicroBatch, meeting: Meeting, scaler: torch.amp.GradScaler, accumulation: int, last: Last
    ) -> Tensor:
        task = micro_batch.loss_name.rpartition("/")[2]
        batch = micro_batch.batch.to(self.device)
        return self.step.add_gradients(self.trained[task], batch, meeting, scaler, accumulation, last)

    @torch.no_grad()
    def validate(self, step: int) -> Validation:
        """Loss and accuracy of every objective on every corpus, on the same masked batches each time, and the mean loss by
        mix ratio. Ranks share the batches. Accuracy is the share of predictions that the objective says are right.
        """
        self.model.eval(), self.heads.eval()
        metrics, ratios, losses = {}, [], []
        for corpus, dataset in zip(self.config.data, self.val, strict=True):
            for task, ratio in corpus.tasks.items() if dataset is not None else ():
                loss, accuracy = self._measured(corpus.name, task, dataset)
                metrics[f"val/{corpus.name}/{task}/loss"] = loss
                if accuracy is not None:
                    metrics[f"val/{corpus.name}/{task}/acc"] = accuracy
                losses.append(loss)
                ratios.append(ratio)
        if losses:
            metrics["val/loss"] = float(np.average(losses, weights=ratios))
        shown = dict(metrics)
        for corpus, dataset in zip(self.config.data, self.val, strict=True):
            if dataset is not None and "cmr" in corpus.tasks and self.config.valid_recall:
                where = self.device, self.config.precision, self.ranks
                found = recall_of_first_images(self.model, dataset, self.config.valid_recall, *where)
                metrics |= {f"val/{corpus.name}/{name}": value for name, value in found.items()}
                shown[f"val/{corpus.name}/AR"] = found["AR"]
        self.model.train(), self.heads.train()
        text = f"step {step}: " + "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        return Validation(metrics, text, metrics.get("val/loss"))

    def _measured(self, corpus: str, task: str, dataset: PairDataset) -> tuple[float, float | None]:
        """Mean loss, and share of right predictions, of one objective on one corpus."""
        config, ranks = self.config, self.ranks
        objective, shuffling = self.objectives[task], np.random.default_rng([config.seed, 4])
        sums = np.zeros(4)  # loss and its elements, right predictions and all
        batches = token_batches(dataset.txt_lengths, dataset.img_lengths, config.tokens_per_batch, shuffling)
        batches = list(itertools.islice(batches, max(config.valid_batches, 0) or None))
        for number, indices in enumerate(ProgressBar(batches, f"validating {corpus}/{task}", unit="batches")):
            if number % ranks.size != ranks.rank:
                continue
            masking = np.random.default_rng([config.seed, 4, number])
            examples = dataset.examples(indices)
            batch = objective.prepare(examples, masking).to(self.device)
            with autocast(self.device, config.precision):
                outcome = objective.forward(self.model, self.heads, batch)
            loss = float(outcome.loss.sum())
            if not np.isfinite(loss):
                raise BadInput(f"validation loss of {corpus}/{task} is {loss}: {reason_of_nan(dataset, indices)}")
            right = objective.right(outcome)
            sums += [loss, outcome.loss.numel(), *((0, 0) if right is None else (int(right.sum()), len(right)))]
        total, count, right, judged = ranks.sum_array(sums).tolist()
        return total / count, right / judged if judged else None


def _make_batch(seed: int, sources: list[tuple[PairDataset, Objective]], draw: Draw) -> Batch:
    dataset, objective = sources[draw.source]
    examples = dataset.examples(draw.indices)
    return objective.prepare(examples, np.random.default_rng([seed, 3, draw.number]))
