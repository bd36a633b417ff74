#!/usr/bin/env python
"""Pre-train both towers with VMLM, SMRM and CMR (Sun et al., NAACL 2021, section 3).

python pretrain.py --config configs/pretrain/demo.yaml                 # on a GPU where there is one, else on the CPU
python pretrain.py --config configs/pretrain/demo.yaml --optim.lr 1e-4 --output-dir runs/other
python pretrain.py --config configs/pretrain/demo.yaml --resume        # go on after a stop
"""

import functools
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from configs import cli
from data.batches import Batch, PairDataset, load, open_pairs
from data.errors import BadInput
from data.regions import BoxOptions
from data.samplers import Draw, DrawStream, Source, token_buckets
from model.bi_encoder import LightningDOT
from model.contrastive import Siblings
from model.initial import ModelOptions, build_model, check_fits, check_longest, check_tokenizer
from model.objectives import TASKS, Fusion, PretrainingHeads, forward_task
from optim.optimizer import OptimOptions, build_optimizer, clip_gradients
from optim.precision import Precision, autocast, choose_device
from optim.run_state import RecentLosses, Run, blame, load_heads, random_state, restore_random_state
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
        tokens_per_batch: padded tokens, text and regions, of one batch on one GPU
        grad_accumulation: batches per update
        num_steps: updates
        max_txt_len: captions with more tokens are dropped, [CLS] and [SEP] included; -1 keeps all
        word_mask_prob: share of words that VMLM predicts
        region_mask_prob: share of regions that SMRM predicts
        valid_every: updates between validations, each followed by a checkpoint
        valid_batches: most batches of a task in a validation; 0 takes all
        log_every: updates between lines of metrics
        keep_checkpoints: newest checkpoints kept, besides the best
        precision: of matrix products: fp32 or bf16
        device: auto, cpu, cuda or cuda:N
        num_workers: processes that make batches
        seed: of weights, data order, masking and dropout
        resume: go on from this folder's last checkpoint when there is one
    """

    output_dir: str
    data: list[PretrainingData]
    data_root: str = "."
    boxes: BoxOptions = field(default_factory=BoxOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    fusion: Fusion = "add"
    siblings: Siblings = "mask"
    tokens_per_batch: int = 10240
    grad_accumulation: int = 1
    num_steps: int = 300_000
    max_txt_len: int = 62  # 60 words, as the paper
    word_mask_prob: float = 0.15
    region_mask_prob: float = 0.15
    valid_every: int = 2500
    valid_batches: int = 0
    log_every: int = 50
    keep_checkpoints: int = 1
    precision: Precision = "fp32"
    device: str = "auto"
    num_workers: int = 0
    seed: int = 42
    resume: bool = False

    def __post_init__(self):
        if not self.data:
            raise BadInput("data: no corpus is given, at least one is needed")
        if len({d.name for d in self.data}) < len(self.data):
            raise BadInput("data: corpora must have different names, their metrics are logged by name")
        counts = "tokens_per_batch grad_accumulation num_steps valid_every log_every keep_checkpoints"
        for name in counts.split():
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1, found {getattr(self, name)}")


def main(config: PretrainConfig) -> None:
    device = choose_device(config.device)
    torch.manual_seed(config.seed)
    train = [_open(config, d.captions, d.regions) for d in config.data]
    val = [_open(config, d.val_captions, d.val_regions or d.regions) if d.val_captions else None for d in config.data]
    pairs = [(n, task) for n, d in enumerate(config.data) for task in d.tasks]  # a source of draws each
    model, heads = _build(config, train, val, device)

    sources = [Source(config.data[n].tasks[t], train[n].txt_lengths, train[n].img_lengths) for n, t in pairs]
    draws = DrawStream(sources, config.tokens_per_batch, config.seed, config.grad_accumulation)
    optimizer = build_optimizer([model, heads], config.optim)
    lr_at = build_schedule(config.optim, config.num_steps)

    run = Run(config.output_dir, config, config.resume, _facts(config, model, train))
    step, best = 0, float("inf")
    state = run.load_training_state()
    if state is not None:
        step, best = state["step"], state["best"]
        model.load_state_dict(LightningDOT.from_pretrained(run.folder / "last").state_dict())
        load_heads(heads, run.folder / "last")
        optimizer.load_state_dict(state["optimizer"])
        draws.load_state_dict(state["draws"])
        restore_random_state(state["random"])
        print(f"resumed at step {step} from {(run.folder / 'last').resolve()}")

    make = functools.partial(_make_batch, config, train, pairs)
    batches = iter(load(make, draws, config.num_workers, pin=device.type == "cuda"))
    recent = RecentLosses()
    bar = tqdm(total=config.num_steps, initial=step, unit="step", desc="pretrain", dynamic_ncols=True)
    while step < config.num_steps:
        for group in optimizer.param_groups:
            group["lr"] = lr_at(step)
        for _ in range(config.grad_accumulation):
            draw, batch = next(batches)
            dataset, task = pairs[draw.source]
            with autocast(device, config.precision):
                outcome = forward_task(task, model, heads, batch.to(device), config.siblings)
            (outcome.mean / config.grad_accumulation).backward()
            recent.add(f"{config.data[dataset].name}/{task}", outcome.mean, train[dataset], draw.indices)
        norm = clip_gradients(optimizer, config.optim.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        bar.update()

        validating = step % config.valid_every == 0 or step == config.num_steps
        if step % config.log_every == 0 or validating:
            losses, speed = recent.flush(step)
            run.log(step, losses | speed | {"lr": lr_at(step - 1), "grad_norm": float(norm)})
            bar.set_postfix_str(" ".join(f"{k.split('/', 1)[1]} {v:.3g}" for k, v in (losses | speed).items()))
        if validating:
            metrics = validate(config, model, heads, val, device)
            run.log(step, metrics)
            bar.write(f"step {step}: " + "  ".join(f"{name} {value:.4g}" for name, value in metrics.items()))
            score = metrics.get("val/loss", best)
            is_best = score < best or "val/loss" not in metrics  # without validation the last is the best
            best = min(best, score)
            training = {
                "best": best,
                "optimizer": optimizer.state_dict(),
                "draws": draw.resume,
                "random": random_state(),
            }
            run.save(step, model, training, train[0].captions.tokenizer_folder, is_best, config.keep_checkpoints, heads)
            recent = RecentLosses()
    bar.close()
    run.close()
    print(f"last checkpoint {run.folder / 'last'}, best {run.folder / 'best'} (lowest val/loss {best:.4g})")


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
    return model.to(device), heads.to(device)


def _make_batch(config: PretrainConfig, datasets: list[PairDataset], pairs: list[tuple[int, str]], draw: Draw) -> Batch:
    dataset, task = pairs[draw.source]
    rng = np.random.default_rng([config.seed, 3, draw.position])  # masking
    return datasets[dataset].batch(draw.indices, task, rng, config.word_mask_prob, config.region_mask_prob)


@torch.no_grad()
def validate(
    config: PretrainConfig,
    model: LightningDOT,
    heads: PretrainingHeads,
    datasets: list[PairDataset | None],
    device: torch.device,
) -> dict[str, float]:
    """Loss and accuracy of every task on every corpus, on the same masked batches each time; and their mean by ratio.

    Accuracy: vmlm and mrc, right predictions; mrckl, agreement with the likeliest soft label; cmr, captions that find
    their image in the batch.
    """
    model.eval(), heads.eval()
    metrics, weights, losses = {}, [], []
    for data, dataset in zip(config.data, datasets, strict=True):
        for task, ratio in data.tasks.items() if dataset is not None else ():
            rng = np.random.default_rng([config.seed, 4])
            total, count, right, predictions = 0.0, 0, 0, 0
            for n, indices in enumerate(
                token_buckets(dataset.txt_lengths, dataset.img_lengths, config.tokens_per_batch, rng)
            ):
                if n == config.valid_batches > 0:
                    break
                batch = dataset.batch(indices, task, rng, config.word_mask_prob, config.region_mask_prob).to(device)
                with autocast(device, config.precision):
                    outcome = forward_task(task, model, heads, batch, config.siblings)
                loss = float(outcome.loss.sum())
                if not np.isfinite(loss):
                    raise BadInput(f"validation loss of {data.name}/{task} is {loss}: {blame(dataset, indices)}")
                total += loss
                count += outcome.loss.numel()
                right += int(_right(task, outcome.logits, outcome.target).sum())
                predictions += len(outcome.logits)
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


def _facts(config: PretrainConfig, model: LightningDOT, train: list[PairDataset]) -> dict:
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "captions": {d.name: len(t) for d, t in zip(config.data, train, strict=True)},
        "images": {d.name: len(t.images) for d, t in zip(config.data, train, strict=True)},
        "effective_batch_tokens": config.tokens_per_batch * config.grad_accumulation,
        "peak_lr": config.optim.lr,
    }
    return facts


if __name__ == "__main__":
    cli.run(main, PretrainConfig)
