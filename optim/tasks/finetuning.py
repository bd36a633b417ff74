"""What the two trainings on one retrieval data set share: epochs over its pairs, hard negatives, recall after each epoch."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data.batches.batch import Batch, Examples
from data.batches.identity import digests_of_pairs, pairs_changed
from data.batches.loader import batch_loader
from data.batches.pairs import PairDataset, check_databases_exist, check_languages, open_pairs
from data.batches.samplers import PairDraw, epoch_draws, tempered_order
from data.errors import BadInput
from data.storage.shapes import check_shape
from model.bi_encoder import LightningDOT
from model.distributed import Meeting, Ranks
from model.evaluation.recall import format_table
from model.evaluation.tasks import captions_by_language, chance_of_tasks, retrieval_tasks, total_counts
from model.initial import (
    LongCaptions,
    check_caption_lengths,
    check_model_fits,
    check_one_tokenizer,
    check_same_tokenizer,
    settle_long_captions,
)
from model.made_from import check_made_from, check_regions, made_from_pairs
from model.retrieval.encoding import embed_pairs
from model.retrieval.mining import HardNegativeOptions, HardNegatives
from model.retrieval.results import Found
from model.transformer import compile_blocks
from model.uniter import Reranker
from optim.loop import Last, MicroBatch, Paused, Update, Validation
from optim.run import print_first
from optim.settings import TrainingSettings
from optim.tasks.validation_sheet import ValidationSheet

Tables = dict[str, dict[str, float]]


@dataclass(kw_only=True)
class FinetuningSettings(TrainingSettings):
    """What the training on a retrieval data set reads.

    Args:
        train_captions: text DB to train on, or several (COCO's train and restval)
        train_regions: its image DB, or one for each text DB
        val_captions: text DB that the best epoch is chosen on
        val_regions: its image DB; none: the same as train_regions, when that is one
        long_captions: of the validation captions: refuse those that are longer than the model, or truncate them and say how many
        languages: train and validate on captions in these; none: all
        language_temperature: a language's share of an epoch goes by its captions^(1/this): 1 takes every caption once,
            more takes those of small languages more often; the epoch stays as long
        hard_negatives: negatives mined from the index of the training images
        batch_size: caption–image pairs of one batch on one GPU
        epochs: passes over all captions
        num_steps: updates, instead of epochs; the last one is followed by a validation too. 0: as many as the epochs take
        validation_sheet: captions on the contact sheet that TensorBoard gets of each validation, where the image DB says its pictures
            and they are there; 0: there is none
    """

    train_captions: str | list[str]
    train_regions: str | list[str]
    val_captions: str
    val_regions: str | None = None
    languages: list[str] | None = None
    long_captions: LongCaptions = "refuse"
    language_temperature: float = 1.0
    hard_negatives: HardNegativeOptions = field(default_factory=HardNegativeOptions)
    batch_size: int = 96
    epochs: int = 15
    num_steps: int = 0
    validation_sheet: int = 6

    def __post_init__(self):
        super().__post_init__()
        if self.val_regions is None and not isinstance(self.train_regions, str) and len(self.train_regions) > 1:
            raise BadInput("val_regions: say which image DB the validation captions go with, train_regions are several")
        if self.batch_size < 2:
            raise BadInput(f"batch_size must be at least 2 (the other pairs are the negatives), found {self.batch_size}")
        self.check_at_least_one("epochs")
        for name in ("num_steps", "validation_sheet"):
            if getattr(self, name) < 0:
                raise BadInput(f"{name} must be at least 0, found {getattr(self, name)}")
        if self.language_temperature < 1:
            raise BadInput(f"language_temperature must be at least 1, found {self.language_temperature}")


@dataclass
class ThirdView:
    """Text DBs with captions of the images themselves.

    Attributes:
        train, val: of the training and of the validation images
        weight: their share in a score; 0: there is no third view
        in_loss_only: whether validation and mining rank without it
    """

    train: str | None = None
    val: str | None = None
    weight: float = 0.0
    in_loss_only: bool = False


def open_training_data(
    config: FinetuningSettings, ranks: Ranks, view: ThirdView | None = None
) -> tuple[PairDataset, PairDataset]:
    """The training pairs and the validation pairs that ``config`` names. Raises BadInput as `open_pairs` does."""
    view = view or ThirdView()
    named = config.train_captions, config.train_regions, config.val_captions, config.val_regions, view.train, view.val
    check_databases_exist(named, config.data_root)
    val_view = None if view.in_loss_only else view.val or view.train
    opened = functools.partial(open_pairs, options=config.boxes, languages=config.languages, root=config.data_root)
    with ranks.first_alone():  # a database's tables are made fit for memory-mapping once
        train = opened(
            config.train_captions, config.train_regions, max_txt_len=config.max_txt_len, image_captions=view.train,
            caption_weight=view.weight,
        )  # fmt: skip
        check_languages(train, config.languages)
        val = opened(
            config.val_captions, config.val_regions or config.train_regions, image_captions=val_view,
            caption_weight=0.0 if view.in_loss_only else view.weight,
        )  # fmt: skip
    return train, val


def fit_lengths(
    train: PairDataset, val: PairDataset, tokens: int, long_captions: LongCaptions, ranks: Ranks
) -> PairDataset:
    """Make captions fit a model of so many tokens → the training pairs without those that are longer.

    Longer validation captions are cut or refused. How many captions training goes without is said.
    """
    train = train.at_most(tokens)
    settle_long_captions(val, tokens, long_captions)
    if train.dropped:
        print_first(ranks, f"left out of training: {train.dropped:,} captions longer than max_txt_len or the model")
    if val.cut:
        print_first(ranks, f"validation: {val.cut:,} captions are longer than the model and are cut to {tokens} tokens")
    return train


def length_facts(train: PairDataset, val: PairDataset | None) -> dict[str, int]:
    """How many captions are dropped and cut, where there are any."""
    found = {"dropped_train_captions": train.dropped, "cut_val_captions": val.cut if val is not None else 0}
    return {name: count for name, count in found.items() if count}


def check_towers(model: LightningDOT, source: str | None, *datasets: PairDataset) -> None:
    """Raise BadInput unless a model fits the words, regions and lengths of the datasets; ``source`` is its folder."""
    for part, _ in (part for dataset in datasets for part in dataset.parts):
        regions = part.regions
        check_model_fits(model.config, part.captions.meta, regions.feature_dim, source or "model", str(regions.folder))
        check_caption_lengths(model.config, part)
        if source:
            check_regions(source, regions)
            check_same_tokenizer(source, part.captions)
    check_one_tokenizer(datasets)


class Finetuning(ABC):
    """Epochs over the pairs of a data set, each followed by recall on the validation pairs; an `optim.loop.Task`.

    Args:
        train, val: the pairs
        hard_negatives: draws the mismatches of every batch
        model: what is trained
        miner: the model whose ranking hard negatives come from; may be ``model`` itself
    """

    worst_score = -1.0
    heads = None
    loss_name: str
    prepare: Callable[[Examples], Batch]  # runs in the data workers
    miner_changes: bool  # with training, so that its ranking has to be made anew
    mines_third_view = True  # where there is one

    def __init__(
        self,
        config: FinetuningSettings,
        train: PairDataset,
        val: PairDataset,
        hard_negatives: HardNegatives,
        model: LightningDOT | Reranker,
        miner: LightningDOT,
        device: torch.device,
        ranks: Ranks,
    ):
        self.config, self.device, self.ranks = config, device, ranks
        self.train, self.val, self.hard_negatives = train, val, hard_negatives
        self.model: nn.Module = model.to(device)
        self.miner = miner.to(device)
        model.set_checkpointing(config.activation_checkpointing)
        if config.compile:
            compile_blocks(model)
        self.tokenizer = train.captions.tokenizer_files()
        self.made_from = made_from_pairs([train])
        for part, _ in val.parts:
            check_made_from(self.made_from, "the model is trained", part.regions)
        self.groups = list(captions_by_language(train).values()) if config.language_temperature != 1 else []
        with ranks.first_alone():  # what the first one has computed, the others find
            self.data = digests_of_pairs(train, "training") | digests_of_pairs(val, "validation")
        self.sheet = ValidationSheet.open(val, config.validation_sheet, config.seed) if ranks.is_first else None
        self.epoch = self.done = 0  # where training is: whole epochs, and pairs of the one that has begun
        self.facts = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "train": {"captions": len(train), "images": len(train.images)},
            "val": {"captions": len(val), "images": len(val.images)},
            "effective_batch_pairs": config.batch_size * config.grad_accumulation * ranks.size,
            "steps": f"{config.num_steps or f'{config.epochs} epochs'} of {self._updates_for(len(train))}"
            + " an epoch" * bool(config.num_steps),
            "peak_lr": config.optim.lr,
        } | length_facts(train, val)

    @abstractmethod
    def backward(
        self, micro_batch: MicroBatch, meeting: Meeting, scaler: torch.amp.GradScaler, accumulation: int, last: Last
    ) -> Tensor:
        """As `optim.loop.Task.backward`."""

    @abstractmethod
    def recall(self) -> tuple[Tables, Tables, Found | None]:
        """Recall on the validation pairs: tables of the model by language, with ``all``; tables to show above them; and what the
        captions of the contact sheet find."""

    def is_better(self, score: float, best: float) -> bool:
        return score > best  # AR, the mean of the six recalls

    def begin(self) -> None:
        """As `optim.loop.Task.begin`."""
        return  # the weights are ready, unless a task says otherwise

    def load(self, checkpoint: Path, training: dict, changed: list[str]) -> None:
        self.model.load_state_dict(type(self.model).from_pretrained(checkpoint).state_dict())
        check_shape(training, {"epoch": int, "done": int}, str(checkpoint / "training.pt"))
        has_same_pairs = not pairs_changed(changed, "training")
        if training["epoch"] < 0 or not 0 <= training["done"] < (len(self.train) if has_same_pairs else math.inf):
            raise ValueError(f"epoch {training['epoch']}, {training['done']} of {len(self.train)} pairs are done")
        self.epoch, self.done = training["epoch"], training["done"] if has_same_pairs else 0  # of other pairs none are done
        if has_same_pairs and "training miner" not in changed:
            self.hard_negatives.load_state_dict(training)

    def state(self) -> dict:
        return self.hard_negatives.state_dict()

    def total_updates(self, step: int) -> int:
        if self.config.num_steps:
            return self.config.num_steps
        epochs_behind = self.config.epochs - self.epoch - 1
        whole = self._updates_for(len(self.train))
        return step + self._updates_for(len(self.train) - self.done) + epochs_behind * whole

    def _updates_for(self, pairs: int) -> int:
        """Updates that an epoch's last ``pairs`` pairs take."""
        return -(-pairs // (self.config.batch_size * self.ranks.size) // self.config.grad_accumulation)

    def updates(self, step: int, paused: Paused) -> Iterator[Update]:
        epochs, num_steps = self.config.epochs, self.config.num_steps
        while step < num_steps if num_steps else self.epoch < epochs:
            epoch = self.epoch
            if self.done == 0:
                with paused():
                    self._mine_before(epoch)
            for group in self._groups(epoch):
                done = group[-1][0].done
                is_whole = done == len(self.train)
                self.epoch, self.done = (epoch + 1, 0) if is_whole else (epoch, done)
                step += 1
                is_last = step == num_steps if num_steps else self.epoch == epochs
                resume = {"epoch": self.epoch, "done": self.done}
                micro_batches = [self._micro_batch(draw, batch) for draw, batch in group]
                stage = f"epoch {epoch + 1}" + f"/{epochs}" * (not num_steps)
                passes = {"train": self.epoch + self.done / len(self.train)}
                yield Update(micro_batches, resume, stage, is_whole or is_last, is_last, passes)
                if is_last:
                    return

    def _mine_before(self, epoch: int) -> None:
        is_stale = self.miner_changes or self.hard_negatives.ranking is None
        if self.config.hard_negatives.mines_before(epoch) and is_stale:
            where = self.device, self.config.precision, self.ranks
            txt, img, _ = embed_pairs(self.miner, self.train, *where, third_view=self.mines_third_view)
            self.hard_negatives.mine(txt, img)

    def order(self, epoch: int) -> np.ndarray | None:
        """[N] the pairs in the order of an epoch; None: at random."""
        if self.groups:
            return tempered_order(self.groups, self.config.language_temperature, self.config.seed, epoch)
        return None

    def _groups(self, epoch: int) -> Iterator[list[tuple[PairDraw, Batch]]]:
        """The batches of each update that is left of an epoch; the epoch's last update may have fewer than the others."""
        config, ranks = self.config, self.ranks
        draws = epoch_draws(
            len(self.train), config.batch_size, config.seed, epoch, self.done, ranks.rank, ranks.size,
            self.hard_negatives.draw, self.order(epoch),
        )  # fmt: skip
        make = functools.partial(_make_batch, self.prepare, self.train)
        group = []
        for drawn in batch_loader(make, draws, config.workers, self.device.type == "cuda"):
            group.append(drawn)
            if len(group) == config.grad_accumulation:
                yield group
                group = []
        if group:
            yield group

    def _micro_batch(self, draw: PairDraw, batch: Batch) -> MicroBatch:
        read = draw.indices if draw.image_indices is None else np.concatenate([draw.indices, draw.image_indices])
        return MicroBatch(self.loss_name, batch, (draw.done,), self.train, read, draw.num_pairs)

    def pairs(self, meeting: Meeting) -> int:
        return meeting.predictions

    def validate(self, step: int) -> Validation:
        """Recall of all validation pairs; ranks share the encoding."""
        tables, before, found = self.recall()
        tasks = retrieval_tasks(self.val)
        counts, rows = total_counts(tasks), chance_of_tasks(tasks) | before | tables
        rows = {name: row | counts.get(name.removeprefix("chance "), counts["all"]) for name, row in rows.items()}
        title = f"epoch {self.epoch}: validation recall on {len(self.val.images)} images, {len(self.val)} captions"
        metrics = {f"val/{name}/{metric}": value for name, table in tables.items() for metric, value in table.items()}
        return Validation(
            {"epoch": self.epoch} | metrics,
            f"{title}\n{format_table(rows)}",
            tables["all"]["AR"],
            {"epoch": self.epoch, "recall": tables},
            self.sheet.draw(found) if self.sheet is not None and found is not None else None,
        )


def _make_batch(prepare: Callable[[Examples], Batch], dataset: PairDataset, draw: PairDraw) -> Batch:
    return prepare(dataset.examples(draw.indices, num_pairs=draw.num_pairs, image_indices=draw.image_indices))
