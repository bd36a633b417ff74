#!/usr/bin/env python
"""Fine-tune both towers for image–text retrieval: contrastive loss, validation recall after every epoch.

python train_itm.py --config configs/finetune/demo.yaml                          # on a GPU where there is one
python train_itm.py --config configs/finetune/demo.yaml --model.init runs/demo/pretrain/last --epochs 3
python train_itm.py --config configs/finetune/demo.yaml --resume                 # go on after a stop
"""

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from configs import cli
from data.atomic import atomic_file
from data.batches import Batch, PairDataset, load, open_pairs
from data.errors import BadInput
from data.regions import BoxOptions
from data.samplers import shuffled_batches
from data.teacher import read_teacher_scores
from model.bi_encoder import LightningDOT
from model.contrastive import Siblings
from model.evaluation import embed_pairs, evaluate
from model.initial import ModelOptions, build_model, check_fits, check_longest, check_tokenizer
from model.metrics import format_table
from model.mining import HardNegativeOptions, HardNegatives
from model.objectives import forward_cmr
from optim.optimizer import OptimOptions, build_optimizer, clip_gradients
from optim.precision import Precision, autocast, choose_device
from optim.run_state import RecentLosses, Run, random_state, restore_random_state
from optim.schedule import build_schedule


@dataclass
class DistillOptions:
    """Learning the ranking of a re-ranker.

    Args:
        scores: file of the re-ranker's scores of training pairs (data/teacher.py)
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
    """Fine-tune LightningDOT for image–text retrieval on one dataset.

    Args:
        output_dir: folder of this run
        train_captions: text DB to train on
        train_regions: its image DB
        val_captions: text DB that the best epoch is chosen on
        val_regions: its image DB; none: the same as train_regions
        data_root: relative folders of databases start here
        languages: train and validate on captions in these; none: all
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
        batch_size: caption–image pairs of one batch on one GPU
        grad_accumulation: batches per update; a pair's negatives are those of its batch
        epochs: passes over all captions
        max_txt_len: captions with more tokens are not trained on, [CLS] and [SEP] included; -1 keeps all
        log_every: updates between lines of metrics
        keep_checkpoints: newest checkpoints kept, besides the best
        precision: of matrix products: fp32 or bf16
        device: auto, cpu, cuda or cuda:N
        num_workers: processes that make batches
        seed: of weights, data order and dropout
        resume: go on from this folder's last checkpoint when there is one
    """

    output_dir: str
    train_captions: str
    train_regions: str
    val_captions: str
    val_regions: str | None = None
    data_root: str = "."
    languages: list[str] | None = None
    boxes: BoxOptions = field(default_factory=BoxOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    optim: OptimOptions = field(default_factory=OptimOptions)
    siblings: Siblings = "mask"
    image_captions: str | None = None
    val_image_captions: str | None = None
    caption_score_weight: float = 0.0
    hard_negatives: HardNegativeOptions = field(default_factory=HardNegativeOptions)
    distill: DistillOptions = field(default_factory=DistillOptions)
    batch_size: int = 96
    grad_accumulation: int = 1
    epochs: int = 15
    max_txt_len: int = 62  # 60 words, as the paper
    log_every: int = 50
    keep_checkpoints: int = 1
    precision: Precision = "fp32"
    device: str = "auto"
    num_workers: int = 0
    seed: int = 42
    resume: bool = False

    def __post_init__(self):
        if self.batch_size < 2:
            raise BadInput(
                f"batch_size must be at least 2 (the other pairs are the negatives), found {self.batch_size}"
            )
        for name in ("grad_accumulation", "epochs", "log_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1, found {getattr(self, name)}")


def main(config: FinetuneConfig) -> None:
    device = choose_device(config.device)
    torch.manual_seed(config.seed)
    open_ = functools.partial(
        open_pairs,
        options=config.boxes,
        languages=config.languages,
        root=config.data_root,
        caption_weight=config.caption_score_weight,
    )
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
    hard_negatives = HardNegatives(train, config.hard_negatives)
    meta, regions = train.captions.meta, train.regions
    model = build_model(config.model, meta, regions.feature_dim, regions.num_labels, str(regions.folder)).to(device)
    check_fits(model.config, val.captions.meta, val.regions.feature_dim, "model", str(val.regions.folder))

    for dataset in (train, val):
        check_longest(model.config, dataset)
        if config.model.init:
            check_tokenizer(config.model.init, dataset.captions)

    batches_per_epoch = -(-len(train) // config.batch_size)
    steps_per_epoch = -(-batches_per_epoch // config.grad_accumulation)
    optimizer = build_optimizer([model], config.optim)
    lr_at = build_schedule(config.optim, config.epochs * steps_per_epoch)

    run = Run(config.output_dir, config, config.resume, _facts(config, model, train, val, steps_per_epoch))
    step, epoch, best = 0, 0, -1.0
    state = run.load_training_state()
    if state is not None:
        step, epoch, best = state["step"], state["epoch"], state["best"]
        model.load_state_dict(LightningDOT.from_pretrained(run.folder / "last").state_dict())
        optimizer.load_state_dict(state["optimizer"])
        restore_random_state(state["random"])
        if "ranking" in state:
            hard_negatives.ranking = state["ranking"].numpy()
        print(f"resumed after epoch {epoch} from {(run.folder / 'last').resolve()}")

    while epoch < config.epochs:
        if config.hard_negatives.mines_before(epoch):
            txt, img, _ = embed_pairs(model, train, device, config.precision)
            hard_negatives.mine(txt, img)
        rng = np.random.default_rng([config.seed, epoch])
        draws = _draws(shuffled_batches(len(train), config.batch_size, rng), hard_negatives, rng)
        batches = load(functools.partial(_make_batch, train), draws, config.num_workers, device.type == "cuda")
        recent = RecentLosses()
        with tqdm(
            total=steps_per_epoch, unit="step", desc=f"epoch {epoch + 1}/{config.epochs}", dynamic_ncols=True
        ) as bar:
            for n, ((indices, _), batch) in enumerate(batches):
                # the last update of an epoch may have fewer batches
                group = min(
                    config.grad_accumulation,
                    batches_per_epoch - n // config.grad_accumulation * config.grad_accumulation,
                )
                with autocast(device, config.precision):
                    outcome = forward_cmr(
                        model, batch.to(device), config.siblings, config.distill.weight, config.distill.temperature
                    )
                (outcome.mean / group).backward()
                recent.add("cmr", outcome.mean, train, indices)
                if (n + 1) % config.grad_accumulation and n + 1 < batches_per_epoch:
                    continue
                for parameters in optimizer.param_groups:
                    parameters["lr"] = lr_at(step)
                norm = clip_gradients(optimizer, config.optim.grad_clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                step += 1
                bar.update()
                if step % config.log_every == 0 or step % steps_per_epoch == 0:
                    losses, speed = recent.flush(step)
                    run.log(step, losses | speed | {"lr": lr_at(step - 1), "grad_norm": float(norm)})
                    bar.set_postfix_str(" ".join(f"{k.split('/', 1)[1]} {v:.3g}" for k, v in (losses | speed).items()))
        epoch += 1

        tables = evaluate(model, val, device, config.precision)
        print(
            f"epoch {epoch}: validation recall on {len(val.images)} images, {len(val)} captions\n{format_table(tables)}"
        )
        run.log(
            step, {"epoch": epoch} | {f"val/{name}/{k}": v for name, table in tables.items() for k, v in table.items()}
        )
        is_best = tables["all"]["AR"] > best
        best = max(best, tables["all"]["AR"])
        training = {"epoch": epoch, "best": best, "optimizer": optimizer.state_dict(), "random": random_state()}
        if hard_negatives.ranking is not None:
            training["ranking"] = torch.from_numpy(hard_negatives.ranking)
        saved = run.save(step, model, training, train.captions.tokenizer_folder, is_best, config.keep_checkpoints)
        if is_best:
            with atomic_file(run.folder / "best.json") as path:
                path.write_text(json.dumps({"epoch": epoch, "checkpoint": saved.name, "val": tables}, indent=2) + "\n")
    run.close()
    print(f"best validation AR {best:.2f}: {run.folder / 'best'}")


def _draws(
    batches: Iterator[np.ndarray], hard_negatives: HardNegatives, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, int]]:
    """(pairs of the batch, hard negatives included; how many are not)."""
    for indices in batches:
        yield np.concatenate([indices, hard_negatives.draw(indices, rng)]), len(indices)


def _make_batch(dataset: PairDataset, draw: tuple[np.ndarray, int]) -> Batch:
    return dataset.batch(draw[0], num_pairs=draw[1])


def _facts(
    config: FinetuneConfig, model: LightningDOT, train: PairDataset, val: PairDataset, steps_per_epoch: int
) -> dict:
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "train": {"captions": len(train), "images": len(train.images)},
        "val": {"captions": len(val), "images": len(val.images)},
        "effective_batch_pairs": config.batch_size * config.grad_accumulation,
        "steps": f"{config.epochs} epochs of {steps_per_epoch}",
        "peak_lr": config.optim.lr,
    }
    return facts


if __name__ == "__main__":
    cli.run(main, FinetuneConfig)
