#!/usr/bin/env python
"""Pre-train both towers with VMLM, SMRM and CMR (Sun et al., NAACL 2021, section 3).

python pretrain.py --config configs/pretrain/demo.yaml                 # on a GPU where there is one, else on the CPU
python pretrain.py --config configs/pretrain/demo.yaml --optim.lr 1e-4 --output-dir runs/other
torchrun --nproc-per-node 8 pretrain.py --config ...                   # eight GPUs of one machine
horovodrun -np 8 python pretrain.py --config ...                       # the same with Horovod

The same command again goes on after a stop, whatever stopped it.
"""

import functools
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from configs import cli
from data.batches.batch import Batch, load
from data.batches.pairs import PairDataset, open_pairs
from data.batches.samplers import Draw, DrawStream, Source, token_buckets
from data.errors import BadInput
from data.regions.db import BoxOptions
from model.bi_encoder import LightningDOT
from model.distributed import Backend, Meeting, Ranks, start
from model.initial import ModelOptions, build_model, check_fits, check_longest, check_tokenizer
from model.objectives.contrastive import Siblings
from model.objectives.gradient_cache import cached_backward
from model.objectives.pretraining import TASKS, CmrOptions, Fusion, PretrainingHeads, forward_task
from model.precision import Precision, autocast, choose_device, loss_scaler
from optim.optimizer import OptimOptions, apply_update, build_optimizer
from optim.run import (
    RecentLosses,
    Run,
    StopSignal,
    blame,
    finish,
    load_heads,
    progress_bar,
    random_state,
    restore_random_state,
    say,
    seed_dropout,
)
from optim.saving import Saver, load_optimizer
from optim.schedule import build_schedule


@dataclass
class PretrainingData:
    """One corpus, and what is learnt from it.

    Args:
        name: what it is called in the logs
        captions: text DB to train on
        regions: image DB
        tasks: mix ratio of each task (cmr, vmlm, mrfr, mrckl, mrc); a step draws one (corpus, task) pair
        val_captions: text DB to validate on; none: this corpus is not validated
        val_regions: its image DB; none: the same as regions
    """

    name: str
    captions: str
    regions: str
    tasks: dict[str, float]
    val_captions: str | None = None
    val_regions: str | None = None

    def __post_init__(self):
        for task, ratio in self.tasks.items():
            if task not in TASKS:
                raise BadInput(f"data {self.name}: unknown task {task!r}; tasks are {', '.join(TASKS)}")
            if not ratio > 0:
                raise BadInput(
                    f"data {self.name}: mix ratio of {task} must be above 0, found {ratio}; leave the task out"
                )


@dataclass
class PretrainConfig:
    """Pre-train LightningDOT on one or several corpora.

    Args:
        output_dir: folder of this run
        data: the corpora
        data_root: relative folders of databases start here
        boxes: which boxes of the image DBs are used
        model: where the weights start
        optim: the optimizer
        fusion: how the other modality's position 0 enters VMLM and SMRM: add (the paper), none, multiply
        siblings: other captions of an image in a CMR batch: mask (no negatives) or keep (negatives, as the original)
        grad_cache: pairs that CMR embeds at a time, so that a batch may be larger than memory; 0: all at once
        activation_checkpointing: keep no activations inside blocks, compute them again in backward
        tokens_per_batch: padded tokens, text and regions, of one batch on one GPU
        grad_accumulation: batches per update
        num_steps: updates
        max_txt_len: captions with more tokens are dropped, [CLS] and [SEP] included; -1 keeps all
        word_mask_prob: share of words that VMLM predicts
        region_mask_prob: share of regions that SMRM predicts
        valid_every: updates between validations, each followed by a checkpoint
        save_every: updates between checkpoints that a stopped run goes on from; 0: only those
        valid_batches: most batches of a task in a validation; 0 takes all
        log_every: updates between lines of metrics
        keep_checkpoints: newest checkpoints kept, besides the best
        precision: of matrix products: fp32, bf16, or fp16 with loss scaling
        device: auto, cpu, cuda or cuda:N
        distributed: auto (the launcher that started this process), torch (torchrun), horovod (horovodrun), none
        distributed_timeout: seconds to wait for another rank before giving up
        num_workers: processes that make batches
        seed: of weights, data order, masking and dropout
        resume: go on from this folder's last checkpoint when there is one; false refuses a folder that holds a run
    """

    output_dir: str
    data: list[PretrainingData]
    data_root: str = "."
    boxes: BoxOptions = field(default_factory=BoxOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    fusion: Fusion = "add"
    siblings: Siblings = "mask"
    grad_cache: int = 0
    activation_checkpointing: bool = False
    tokens_per_batch: int = 10240
    grad_accumulation: int = 1
    num_steps: int = 300_000
    max_txt_len: int = 62  # 60 words, as the paper
    word_mask_prob: float = 0.15
    region_mask_prob: float = 0.15
    valid_every: int = 2500
    save_every: int = 1000
    valid_batches: int = 0
    log_every: int = 50
    keep_checkpoints: int = 1
    precision: Precision = "fp32"
    device: str = "auto"
    distributed: Backend = "auto"
    distributed_timeout: float = 1800
    num_workers: int = 0
    seed: int = 42
    resume: bool = True

    def __post_init__(self):
        if self.model.kind != "lightningdot":
            raise BadInput(f"model.kind {self.model.kind}: pretrain.py trains LightningDOT; train_itm.py trains re-rankers")
        if not self.data:
            raise BadInput("data: no corpus is given, at least one is needed")
        if len({d.name for d in self.data}) < len(self.data):
            raise BadInput("data: corpora must have different names, their metrics are logged by name")
        counts = "tokens_per_batch grad_accumulation num_steps valid_every log_every keep_checkpoints"
        for name in counts.split():
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1, found {getattr(self, name)}")


def main(config: PretrainConfig) -> None:
    stop = StopSignal()
    device = choose_device(config.device)
    ranks = start(config.distributed, device.type == "cuda", config.distributed_timeout)
    torch.manual_seed(config.seed)
    with ranks.first_alone():  # a database's tables are made fit for memory-mapping once
        train = [_open(config, d.captions, d.regions) for d in config.data]
        val = [
            _open(config, d.val_captions, d.val_regions or d.regions) if d.val_captions else None for d in config.data
        ]
    pairs = [(n, task) for n, d in enumerate(config.data) for task in d.tasks]  # a source of draws each
    model, heads = _build(config, train, val, device)

    sources = [Source(config.data[n].tasks[t], train[n].txt_lengths, train[n].img_lengths) for n, t in pairs]
    accumulation = config.grad_accumulation
    draws = DrawStream(sources, config.tokens_per_batch, config.seed, accumulation, ranks.rank, ranks.size)
    optimizer = build_optimizer([model, heads], config.optim)
    scaler = loss_scaler(device, config.precision)
    lr_at = build_schedule(config.optim, config.num_steps)

    run = Run(config.output_dir, config, config.resume, ranks, _facts(config, model, train, ranks))
    saver = Saver(
        run.folder, ranks, config.keep_checkpoints, train[0].captions.tokenizer_folder, config.distributed_timeout
    )
    recent = RecentLosses(ranks)
    step, best = 0, float("inf")
    seed_dropout(config.seed, ranks)
    saved = run.load()
    if saved is not None:
        training, own = saved
        step, best = training["step"], training["best"]
        model.load_state_dict(LightningDOT.from_pretrained(run.folder / "last").state_dict())
        load_heads(heads, run.folder / "last")
        load_optimizer(optimizer, run.folder / "last", training)
        scaler.load_state_dict(training["scaler"])
        draws.load_state_dict(training["draws"])
        if own is not None:
            restore_random_state(own["random"])
            recent.load_state_dict(own["recent"])
    ranks.broadcast([*model.state_dict().values(), *heads.state_dict().values()])

    make = functools.partial(_make_batch, config, train, pairs)
    batches = iter(load(make, draws, config.num_workers, pin=device.type == "cuda"))
    with progress_bar(ranks, total=config.num_steps, initial=step, unit="step", desc="pretrain") as bar:
        while step < config.num_steps:
            for _ in range(accumulation):
                draw, batch = next(batches)
                n, task = pairs[draw.source]
                met = ranks.meet(
                    [step, draw.position, draw.source], len(batch), batch.num_predictions(task), stop.received
                )
                share = _backward(config, model, heads, task, batch.to(device), ranks, met, scaler)
                recent.add(f"{config.data[n].name}/{task}", share, train[n], draw.indices, sum(met.sizes))
            norm = apply_update(optimizer, scaler, ranks, lr_at(step), config.optim.grad_clip)
            step += 1
            bar.update()

            validating = step % config.valid_every == 0 or step == config.num_steps
            if step % config.log_every == 0 or validating:
                losses, speed = recent.flush(step)
                run.log(step, losses | speed | {"lr": lr_at(step - 1), "grad_norm": float(norm)})
                bar.set_postfix_str(" ".join(f"{k.split('/', 1)[1]} {v:.3g}" for k, v in (losses | speed).items()))
            is_best = False
            if validating:
                metrics = validate(config, model, heads, val, device, ranks)
                run.log(step, metrics)
                say(ranks, f"step {step}: " + "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
                score = metrics.get("val/loss", best)
                is_best = score < best or "val/loss" not in metrics  # without validation the last is the best
                best = min(best, score)
            saver.check()
            if validating or met.stop or (config.save_every and step % config.save_every == 0):
                training = {"best": best, "draws": draw.resume, "scaler": scaler.state_dict()}
                own = {"random": random_state(), "recent": recent.state_dict()}
                saver.save(step, model, optimizer, training, own, is_best, heads)
            if met.stop and step < config.num_steps:
                finish(saver, run, ranks)
                raise cli.Stopped(f"stopped by a signal after step {step}, saved; the same command goes on from here")
    finish(saver, run, ranks)
    if ranks.is_first:
        print(f"last checkpoint {run.folder / 'last'}, best {run.folder / 'best'} (lowest val/loss {best:.4g})")


def _backward(
    config: PretrainConfig,
    model: LightningDOT,
    heads: PretrainingHeads,
    task: str,
    batch: Batch,
    ranks: Ranks,
    met: Meeting,
    scaler: torch.amp.GradScaler,
) -> Tensor:
    """Add the gradients of one batch → this rank's share of its loss."""
    options = CmrOptions(config.siblings)
    precision = functools.partial(autocast, batch.input_ids.device, config.precision)
    if task == "cmr" and config.grad_cache:
        return cached_backward(
            model, batch, config.grad_cache, precision, options, ranks, met, scaler, config.grad_accumulation
        )
    with precision():
        share = forward_task(task, model, heads, batch, options, ranks, met.sizes).share(met.predictions)
    scaler.scale(share / config.grad_accumulation).backward()
    return share


def _open(config: PretrainConfig, captions: str, regions: str) -> PairDataset:
    return open_pairs(captions, regions, config.boxes, config.max_txt_len, root=config.data_root)


def _build(
    config: PretrainConfig, train: list[PairDataset], val: list[PairDataset | None], device: torch.device
) -> tuple[LightningDOT, PretrainingHeads]:
    first = train[0]
    model = build_model(
        config.model,
        first.captions.meta,
        first.regions.feature_dim,
        first.regions.num_labels,
        str(first.regions.folder),
    )
    for data, *datasets in zip(config.data, train, val, strict=True):
        for dataset in filter(None, datasets):
            regions = dataset.regions
            check_fits(model.config, dataset.captions.meta, regions.feature_dim, "model", str(regions.folder))
            check_longest(model.config, dataset)
            if config.model.init:
                check_tokenizer(config.model.init, dataset.captions)
            if {"mrckl", "mrc"} & set(data.tasks) and regions.num_labels != (model.config.num_labels or None):
                raise BadInput(
                    f"{regions.folder}: regions have {regions.num_labels} soft labels, the model "
                    f"{model.config.num_labels}; tasks mrckl and mrc need the same number, and at least one"
                )
    heads = PretrainingHeads(model.config, config.fusion)
    if config.model.init:
        load_heads(heads, config.model.init)
    for tower in (model.txt_model, model.img_model):
        tower.bert.encoder.checkpointing = config.activation_checkpointing
    return model.to(device), heads.to(device)


def _make_batch(config: PretrainConfig, datasets: list[PairDataset], pairs: list[tuple[int, str]], draw: Draw) -> Batch:
    dataset, task = pairs[draw.source]
    rng = np.random.default_rng([config.seed, 3, draw.bucket])  # masking
    return datasets[dataset].batch(draw.indices, task, rng, config.word_mask_prob, config.region_mask_prob)


@torch.no_grad()
def validate(
    config: PretrainConfig,
    model: LightningDOT,
    heads: PretrainingHeads,
    datasets: list[PairDataset | None],
    device: torch.device,
    ranks: Ranks,
) -> dict[str, float]:
    """Loss and accuracy of every task on every corpus, on the same masked batches each time; and their mean by ratio.
    Ranks share the batches.

    Accuracy: vmlm and mrc, right predictions; mrckl, agreement with the likeliest soft label; cmr, captions that find
    their image in the batch.
    """
    model.eval(), heads.eval()
    metrics, weights, losses = {}, [], []
    for data, dataset in zip(config.data, datasets, strict=True):
        for task, ratio in data.tasks.items() if dataset is not None else ():
            rng = np.random.default_rng([config.seed, 4])
            sums = np.zeros(4)  # loss and its elements, right predictions and all
            for n, indices in enumerate(
                token_buckets(dataset.txt_lengths, dataset.img_lengths, config.tokens_per_batch, rng)
            ):
                if n == config.valid_batches > 0:
                    break
                if n % ranks.size != ranks.rank:
                    continue
                masking = np.random.default_rng([config.seed, 4, n])
                batch = dataset.batch(indices, task, masking, config.word_mask_prob, config.region_mask_prob).to(device)
                with autocast(device, config.precision):
                    outcome = forward_task(task, model, heads, batch, CmrOptions(config.siblings))
                loss = float(outcome.loss.sum())
                if not np.isfinite(loss):
                    raise BadInput(f"validation loss of {data.name}/{task} is {loss}: {blame(dataset, indices)}")
                right = int(_right(task, outcome.logits, outcome.target).sum())
                sums += [loss, outcome.loss.numel(), right, len(outcome.logits)]
            total, count, right, predictions = ranks.sum_array(sums).tolist()
            metrics[f"val/{data.name}/{task}/loss"] = total / count
            if task != "mrfr":
                metrics[f"val/{data.name}/{task}/acc"] = right / predictions
            losses.append(total / count)
            weights.append(ratio)
    if losses:
        metrics["val/loss"] = float(np.average(losses, weights=weights))
    model.train(), heads.train()
    return metrics


def _right(task: str, logits: Tensor, target: Tensor) -> Tensor:
    guess = logits.argmax(dim=-1)
    if task == "cmr":  # target: image of each row; any caption–image pair of one image is right
        return target[guess] == target
    if task == "mrckl":
        return guess == target.argmax(dim=-1)
    return guess == target if task != "mrfr" else guess.new_zeros(())


def _facts(config: PretrainConfig, model: LightningDOT, train: list[PairDataset], ranks: Ranks) -> dict:
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "captions": {d.name: len(t) for d, t in zip(config.data, train, strict=True)},
        "images": {d.name: len(t.images) for d, t in zip(config.data, train, strict=True)},
        "effective_batch_tokens": config.tokens_per_batch * config.grad_accumulation * ranks.size,
        "peak_lr": config.optim.lr,
    }
    return facts


if __name__ == "__main__":
    cli.run(main, PretrainConfig)
