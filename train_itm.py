#!/usr/bin/env python
"""Fine-tune both towers for image–text retrieval: contrastive loss, validation recall after every epoch. Or train a
re-ranker for what they find: pairwise ranking loss.

python train_itm.py --config configs/finetune/demo.yaml                          # on a GPU where there is one
python train_itm.py --config configs/finetune/demo.yaml --model.init runs/demo/pretrain/last --epochs 3
python train_itm.py --model uniter --config configs/finetune/uniter_demo.yaml    # a re-ranker
torchrun --nproc-per-node 8 train_itm.py --config ...                            # eight GPUs of one machine
horovodrun -np 8 python train_itm.py --config ...                                # the same with Horovod

The same command again goes on after a stop, whatever stopped it.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from configs import cli
from data.batches.batch import Batch, load
from data.batches.pairs import PairDataset, open_pairs
from data.batches.samplers import PairDraw, epoch_draws, tempered_order
from data.batches.teacher import read_teacher_scores
from data.errors import BadInput
from data.regions.db import BoxOptions
from model.bi_encoder import LightningDOT
from model.distributed import Backend, Meeting, Ranks, start
from model.evaluation.outcomes import captions_by_language, evaluate
from model.evaluation.recall import format_table
from model.initial import ModelOptions, build_model, check_fits, check_longest, check_tokenizer
from model.objectives.contrastive import Siblings
from model.objectives.gradient_cache import cached_backward
from model.objectives.pretraining import CmrOptions, contrast, embed
from model.precision import Precision, autocast, choose_device, loss_scaler
from model.retrieval.encoding import embed_pairs
from model.retrieval.mining import HardNegativeOptions, HardNegatives
from model.retrieval.reranking import evaluate_reranker, first_rankings, recall_before
from model.transformer import Encoder
from model.uniter import Reranker, RerankerOptions, build_reranker, check_reranker, forward_ranking
from optim.optimizer import OptimOptions, apply_update, build_optimizer
from optim.run import (
    RecentLosses,
    Run,
    StopSignal,
    finish,
    progress_bar,
    random_state,
    restore_random_state,
    say,
    seed_dropout,
)
from optim.saving import Saver, load_optimizer
from optim.schedule import build_schedule


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


@dataclass
class FinetuneConfig:
    """Fine-tune LightningDOT for image–text retrieval on one dataset, or train a UNITER to rank again what it finds.

    Args:
        output_dir: folder of this run
        train_captions: text DB to train on, or several (COCO's train and restval)
        train_regions: its image DB, or one for each text DB
        val_captions: text DB that the best epoch is chosen on
        val_regions: its image DB; none: the same as train_regions, when that is one
        data_root: relative folders of databases start here
        languages: train and validate on captions in these; none: all
        language_temperature: a language's share of an epoch goes by its captions^(1/this): 1 takes every caption once,
            more takes those of small languages more often; the epoch stays as long
        boxes: which boxes of the image DBs are used
        model: where the weights start
        optim: the optimizer
        siblings: other captions of an image in a batch: mask (no negatives) or keep (negatives, as the original)
        image_captions: text DB with captions of the training images themselves, by a captioning model for instance: the
            third view
        val_image_captions: the same of the validation images; none: the same as image_captions
        caption_score_weight: share of the third view in a score; 0: there is none
        hard_negatives: negatives mined from the index of the training images
        distill: learning the ranking of a re-ranker
        reranker: training one
        batch_size: caption–image pairs of one batch on one GPU
        grad_accumulation: batches per update; a pair's negatives are those of its batch
        grad_cache: pairs embedded at a time, so that a batch may be larger than memory; 0: all at once
        activation_checkpointing: keep no activations inside blocks, compute them again in backward
        epochs: passes over all captions
        max_txt_len: captions with more tokens are not trained on, [CLS] and [SEP] included; -1 keeps all
        log_every: updates between lines of metrics
        save_every: updates between checkpoints that a stopped run goes on from, besides that of each epoch; 0: none
        keep_checkpoints: newest checkpoints kept, besides the best
        precision: of matrix products: fp32, bf16, or fp16 with loss scaling
        device: auto, cpu, cuda or cuda:N
        distributed: auto (the launcher that started this process), torch (torchrun), horovod (horovodrun), none
        distributed_timeout: seconds to wait for another rank before giving up
        num_workers: processes that make batches
        seed: of weights, data order and dropout
        resume: go on from this folder's last checkpoint when there is one; false refuses a folder that holds a run
    """

    output_dir: str
    train_captions: str | list[str]
    train_regions: str | list[str]
    val_captions: str
    val_regions: str | None = None
    data_root: str = "."
    languages: list[str] | None = None
    language_temperature: float = 1.0
    boxes: BoxOptions = field(default_factory=BoxOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    siblings: Siblings = "mask"
    image_captions: str | None = None
    val_image_captions: str | None = None
    caption_score_weight: float = 0.0
    hard_negatives: HardNegativeOptions = field(default_factory=HardNegativeOptions)
    distill: DistillOptions = field(default_factory=DistillOptions)
    reranker: RerankerOptions = field(default_factory=RerankerOptions)
    batch_size: int = 96
    grad_accumulation: int = 1
    grad_cache: int = 0
    activation_checkpointing: bool = False
    epochs: int = 15
    max_txt_len: int = 62  # 60 words, as the paper
    log_every: int = 50
    save_every: int = 1000
    keep_checkpoints: int = 1
    precision: Precision = "fp32"
    device: str = "auto"
    distributed: Backend = "auto"
    distributed_timeout: float = 1800
    num_workers: int = 0
    seed: int = 42
    resume: bool = True

    def __post_init__(self):
        if self.val_regions is None and not isinstance(self.train_regions, str) and len(self.train_regions) > 1:
            raise BadInput("val_regions: say which image DB the validation captions go with, train_regions are several")
        if self.batch_size < 2:
            raise BadInput(
                f"batch_size must be at least 2 (the other pairs are the negatives), found {self.batch_size}"
            )
        for name in ("grad_accumulation", "epochs", "log_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.language_temperature < 1:
            raise BadInput(f"language_temperature must be at least 1, found {self.language_temperature}")
        if (self.model.kind == "uniter") != (self.reranker.miner is not None):
            raise BadInput(
                f"model.kind uniter and reranker.miner go together, found {self.model.kind} and {self.reranker.miner}"
            )
        if self.model.kind == "uniter":
            if not self.hard_negatives.count:
                raise BadInput("model.kind uniter learns from hard negatives: give hard_negatives.count")
            if self.image_captions or self.distill.scores or self.grad_cache:
                raise BadInput("model.kind uniter has no place for image_captions, distill and grad_cache")


def main(config: FinetuneConfig) -> None:
    stop = StopSignal()
    device = choose_device(config.device)
    ranks = start(config.distributed, device.type == "cuda", config.distributed_timeout)
    torch.manual_seed(config.seed)
    open_ = functools.partial(
        open_pairs,
        options=config.boxes,
        languages=config.languages,
        root=config.data_root,
        caption_weight=config.caption_score_weight,
    )
    with ranks.first_alone():  # a database's tables are made fit for memory-mapping once
        train = open_(
            config.train_captions,
            config.train_regions,
            max_txt_len=config.max_txt_len,
            image_captions=config.image_captions,
        )
        val = open_(
            config.val_captions,
            config.val_regions or config.train_regions,
            image_captions=config.val_image_captions or config.image_captions,
        )
    if config.distill.scores:
        train.teacher = read_teacher_scores(config.distill.scores, train.ids, train.images)
    reranks = config.model.kind == "uniter"
    hard_negatives = HardNegatives(train, config.hard_negatives, random_first=reranks)
    spoken = list(captions_by_language(train).values()) if config.language_temperature != 1 else []
    model = _reranker(config, train, val, ranks) if reranks else _towers(config, train, val)
    model.to(device)
    for module in model.modules():
        if isinstance(module, Encoder):
            module.checkpointing = config.activation_checkpointing
    optimizer = build_optimizer([model], config.optim)
    scaler = loss_scaler(device, config.precision)

    miner = _miner(config, train, val).to(device) if reranks else model
    first = first_rankings(miner, val, config.reranker.top, device, config.precision, ranks) if reranks else {}
    run = Run(config.output_dir, config, config.resume, ranks, _facts(config, model, train, val, ranks))
    saver = Saver(
        run.folder, ranks, config.keep_checkpoints, train.captions.tokenizer_folder, config.distributed_timeout
    )
    recent = RecentLosses(ranks)
    step, epoch, done, best = 0, 0, 0, -1.0  # done: pairs of this epoch
    seed_dropout(config.seed, ranks)
    saved = run.load()
    if saved is not None:
        training, own = saved
        step, epoch, done, best = (training[name] for name in ("step", "epoch", "done", "best"))
        model.load_state_dict(type(model).from_pretrained(run.folder / "last").state_dict())
        load_optimizer(optimizer, run.folder / "last", training)
        scaler.load_state_dict(training["scaler"])
        if "ranking" in training:
            hard_negatives.ranking = training["ranking"].numpy()
        if own is not None:
            restore_random_state(own["random"])
            recent.load_state_dict(own["recent"])
    ranks.broadcast(model.state_dict().values())
    total_steps = (
        step
        + _steps(config, len(train) - done, ranks)
        + (config.epochs - epoch - 1) * _steps(config, len(train), ranks)
    )
    lr_at = build_schedule(config.optim, total_steps)

    def save(is_best: bool = False, val: dict | None = None) -> None:
        training = {"epoch": epoch, "done": done, "best": best, "scaler": scaler.state_dict()}
        if hard_negatives.ranking is not None:
            training["ranking"] = torch.from_numpy(hard_negatives.ranking)
        own = {"random": random_state(), "recent": recent.state_dict()}
        saver.save(step, model, optimizer, training, own, is_best, val=val)

    options = CmrOptions(config.siblings, config.distill.weight, config.distill.temperature)
    while epoch < config.epochs:
        mined = reranks and hard_negatives.ranking is not None  # the miner stays as it is
        if config.hard_negatives.mines_before(epoch) and done == 0 and not mined:
            txt, img, _ = embed_pairs(miner, train, device, config.precision, ranks)
            hard_negatives.mine(txt, img)
        order = tempered_order(spoken, config.language_temperature, config.seed, epoch) if spoken else None
        draws = epoch_draws(
            len(train), config.batch_size, config.seed, epoch, done, ranks.rank, ranks.size, hard_negatives.draw, order
        )
        batches = load(functools.partial(_make_batch, train), draws, config.num_workers, device.type == "cuda")
        steps = _steps(config, len(train), ranks)
        left = _steps(config, len(train) - done, ranks)
        name = f"epoch {epoch + 1}/{config.epochs}"
        with progress_bar(ranks, total=steps, initial=steps - left, unit="step", desc=name) as bar:
            for group in _groups(batches, config.grad_accumulation):
                for draw, batch in group:
                    met = ranks.meet([step, draw.done], batch.num_rows, draw.num_pairs, stop.received)
                    share = _backward(config, model, batch.to(device), options, ranks, met, scaler, len(group))
                    recent.add("ranking" if reranks else "cmr", share, train, draw.indices, met.predictions)
                norm = apply_update(optimizer, scaler, ranks, lr_at(step), config.optim.grad_clip)
                step, done = step + 1, draw.done
                bar.update()
                if step % config.log_every == 0 or done == len(train):
                    losses, speed = recent.flush(step)
                    run.log(step, losses | speed | {"lr": lr_at(step - 1), "grad_norm": float(norm)})
                    bar.set_postfix_str(" ".join(f"{k.split('/', 1)[1]} {v:.3g}" for k, v in (losses | speed).items()))
                saver.check()
                if done < len(train) and (met.stop or (config.save_every and step % config.save_every == 0)):
                    save()
                if done < len(train) and met.stop:
                    finish(saver, run, ranks)
                    raise cli.Stopped(
                        f"stopped by a signal after step {step}, saved; the same command goes on from here"
                    )
        epoch, done = epoch + 1, 0

        options_ = {"device": device, "precision": config.precision, "ranks": ranks}
        tables = (
            evaluate_reranker(model, val, first, config.reranker.mix, **options_)
            if reranks
            else evaluate(model, val, **options_)
        )
        facts = f"validation recall on {len(val.images)} images, {len(val)} captions"
        before = {"bi-encoder": recall_before(first)} if reranks else {}
        say(ranks, f"epoch {epoch}: {facts}\n{format_table(before | tables)}")
        run.log(
            step, {"epoch": epoch} | {f"val/{name}/{k}": v for name, table in tables.items() for k, v in table.items()}
        )
        is_best = tables["all"]["AR"] > best
        best = max(best, tables["all"]["AR"])
        save(is_best, {"epoch": epoch, "recall": tables})
        if met.stop and epoch < config.epochs:
            finish(saver, run, ranks)
            raise cli.Stopped(f"stopped by a signal after epoch {epoch}, saved; the same command goes on from here")
    finish(saver, run, ranks)
    if ranks.is_first:
        print(f"best validation AR {best:.2f}: {run.folder / 'best'}")


def _towers(config: FinetuneConfig, train: PairDataset, val: PairDataset) -> LightningDOT:
    meta, regions = train.captions.meta, train.regions
    model = build_model(config.model, meta, regions.feature_dim, regions.num_labels, str(regions.folder))
    _check_towers(model, config.model.init, train, val)
    return model


def _check_towers(model: LightningDOT, source: str | None, *datasets: PairDataset) -> None:
    for part, _ in (part for dataset in datasets for part in dataset.parts):
        regions = part.regions
        check_fits(model.config, part.captions.meta, regions.feature_dim, source or "model", str(regions.folder))
        check_longest(model.config, part)
        if source:
            check_tokenizer(source, part.captions)


def _reranker(config: FinetuneConfig, train: PairDataset, val: PairDataset, ranks: Ranks) -> Reranker:
    model, origin = build_reranker(config.model, train)
    check_reranker(model.config, config.model.init or "model", val)
    say(ranks, f"re-ranker from {origin}")
    return model


def _miner(config: FinetuneConfig, train: PairDataset, val: PairDataset) -> LightningDOT:
    miner = LightningDOT.from_pretrained(config.reranker.miner)
    _check_towers(miner, config.reranker.miner, train, val)
    return miner


def _steps(config: FinetuneConfig, pairs: int, ranks: Ranks) -> int:
    """Updates that an epoch's last ``pairs`` pairs take."""
    return -(-pairs // (config.batch_size * ranks.size) // config.grad_accumulation)


def _groups(batches: Iterable, size: int) -> Iterator[list]:
    """The batches of each update; an epoch's last update may have fewer."""
    group = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _backward(
    config: FinetuneConfig,
    model: LightningDOT | Reranker,
    batch: Batch,
    options: CmrOptions,
    ranks: Ranks,
    met: Meeting,
    scaler: torch.amp.GradScaler,
    accumulation: int,
) -> Tensor:
    """Add the gradients of one batch → this rank's share of its loss."""
    precision = functools.partial(autocast, batch.input_ids.device, config.precision)
    if config.model.kind == "uniter":
        with precision():
            share = forward_ranking(model, batch, config.reranker.margin).sum() / met.predictions
        scaler.scale(share / accumulation).backward()
        return share
    if config.grad_cache:
        return cached_backward(model, batch, config.grad_cache, precision, options, ranks, met, scaler, accumulation)
    with precision():
        embedded = embed(model, batch)
    share = contrast(embedded, batch, options, ranks, met.sizes).share(met.predictions)
    scaler.scale(share / accumulation).backward()
    return share


def _make_batch(dataset: PairDataset, draw: PairDraw) -> Batch:
    return dataset.batch(draw.indices, num_pairs=draw.num_pairs)


def _facts(
    config: FinetuneConfig, model: LightningDOT | Reranker, train: PairDataset, val: PairDataset, ranks: Ranks
) -> dict:
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "train": {"captions": len(train), "images": len(train.images)},
        "val": {"captions": len(val), "images": len(val.images)},
        "effective_batch_pairs": config.batch_size * config.grad_accumulation * ranks.size,
        "steps": f"{config.epochs} epochs of {_steps(config, len(train), ranks)}",
        "peak_lr": config.optim.lr,
    }
    return facts


if __name__ == "__main__":
    cli.run(main, FinetuneConfig)
