#!/usr/bin/env python
"""Say on paper what a training run will take: parameters, operations, memory, bytes exchanged, hours. Nothing is run.

python scripts/plan.py --config configs/pretrain/photos_small.yaml --gpu a100-80 --count 16
python scripts/plan.py --config configs/finetune/photos_small.yaml --gpu h100 --captions 145000 --json plan.json
python scripts/plan.py --config configs/pretrain/photos_small.yaml --gpu h200 --set precision=bf16 tokens_per_batch=40960
"""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

import yaml

from configs import cli
from data.errors import BadInput
from data.storage.text_files import read_json, write_json
from model import checkpoints, costs
from model.bi_encoder import LightningDOTConfig
from model.initial import ModelOptions
from model.objectives import OBJECTIVES
from model.objectives.base import ObjectiveOptions
from model.transformer import EncoderConfig
from optim.tasks.pretraining import PretrainConfig
from optim.tasks.retrieval import RetrievalConfig


@dataclass(frozen=True)
class Gpu:
    """Stated peaks, without sparsity; bandwidths one way.

    Args:
        tflops: precision → 10¹² operations a second
        memory: GB
        inside: GB/s of one GPU to the others of its node
        outside: GB/s of its share of the node's network
    """

    tflops: dict[str, float]
    memory: float
    inside: float
    outside: float


def _gpu(fp32: float, fp16: float, bf16: float, memory: float, inside: float, outside: float) -> Gpu:
    rates = {"fp32": fp32, "fp16": fp16, "bf16": bf16}
    return Gpu({name: rate for name, rate in rates.items() if rate}, memory, inside, outside)


# Rates, memory and links: NVIDIA's data sheet of each; where it gives a rate with sparsity, half of that; where it gives a
# link's bandwidth in both directions, half of that. fp32 is without TF32, as PyTorch multiplies unless told otherwise.
# Network: of the DGX system with that GPU, per GPU; for cards that come without one, 25 Gb/s a card is assumed.
GPUS = {
    "v100-16": _gpu(15.7, 125, 0, 16, 150, 6.25),  # V100 data sheet, SXM2; DGX-1: 4 x 100 Gb/s for 8
    "v100-32": _gpu(15.7, 125, 0, 32, 150, 6.25),  # the same
    "t4": _gpu(8.1, 65, 0, 16, 16, 3.1),  # T4 data sheet; PCIe 3 x16
    "a10": _gpu(31.2, 125, 125, 24, 32, 3.1),  # A10 data sheet; PCIe 4 x16
    "l4": _gpu(30.3, 121, 121, 24, 32, 3.1),  # L4 data sheet (242 with sparsity); PCIe 4 x16
    "l40s": _gpu(91.6, 362, 362, 48, 32, 3.1),  # L40S data sheet; PCIe 4 x16
    "rtx4090": _gpu(82.6, 165.2, 165.2, 24, 32, 3.1),  # Ada GPU architecture whitepaper, table 2; PCIe 4 x16
    "a100-40": _gpu(19.5, 312, 312, 40, 300, 25),  # A100 data sheet, SXM4; DGX A100: 8 x 200 Gb/s
    "a100-80": _gpu(19.5, 312, 312, 80, 300, 25),  # the same
    "h100": _gpu(67, 989, 989, 80, 450, 50),  # H100 data sheet, SXM5 (1,979 with sparsity); DGX H100: 8 x 400 Gb/s
    "h200": _gpu(67, 989, 989, 141, 450, 50),  # H200 data sheet, SXM; DGX H200: 8 x 400 Gb/s
    "b200": _gpu(75, 2250, 2250, 180, 900, 50),  # HGX B200 data sheet, an eighth; DGX B200: 8 x 400 Gb/s
    # One core with AVX-512 and AMX at 2.5 GHz: 64 fp32 and 1,024 bf16 operations a cycle (Intel's optimization manual)
    "cpu": _gpu(0.16, 0, 2.56, 4, 10, 1),  # memory and links are assumed
}
GpuName = Literal[tuple(GPUS)]  # type: ignore[valid-type]


@dataclass
class Options:
    """Say on paper what a training run will take. Nothing is run, and no database is needed.

    Args:
        config: recipe of pretrain.py or train_itm.py
        kind: pretrain or finetune; null: as the recipe looks
        set: settings that override the recipe's, such as precision=bf16
        gpu: type of GPU; a cpu is one core
        count: GPUs, a rank each
        gpus_per_node: of one machine; more are spread over several
        efficiency: share of the stated peak rate that training reaches
        mean_words: of a caption, in word pieces, [CLS] and [SEP] not included
        mean_regions: of an image
        captions: of a fine-tuning's training set; null: as its database says, where that is
        vocab_size: of towers that no folder tells of
        feature_dim: of the regions
        num_labels: classes of the region detector
        json: file to write the plan to
    """

    config: str
    kind: Literal["pretrain", "finetune"] | None = None
    set: list[str] = field(default_factory=list)
    gpu: GpuName = "a100-80"
    count: int = 8
    gpus_per_node: int = 8
    efficiency: float = 0.35
    mean_words: float = 16
    mean_regions: float = 36
    captions: int | None = None
    vocab_size: int = 28996
    feature_dim: int = 2048
    num_labels: int = 1601
    json: str | None = None

    def __post_init__(self):
        for name in ("count", "gpus_per_node", "mean_words", "mean_regions", "vocab_size", "feature_dim"):
            if getattr(self, name) <= 0:
                raise BadInput(f"{name} must be above 0, found {getattr(self, name)}")
        if not 0 < self.efficiency <= 1:
            raise BadInput(f"efficiency must be above 0 and at most 1, found {self.efficiency}")


def main(options: Options) -> None:
    plan = make_plan(options)
    print(_format(plan))
    if options.json:
        write_json(options.json, plan)


def make_plan(options: Options) -> dict:
    """All numbers of the plan, as they are written to JSON.

    Raises:
        BadInput: a recipe that cannot be read, or a precision that the GPU does not have.
    """
    recipe, notes = read_recipe(options), []
    config = model_config(recipe.model, options, notes)
    gpu, precision = GPUS[options.gpu], recipe.precision
    if precision not in gpu.tflops:
        raise BadInput(
            f"{options.gpu} has no stated rate in {precision}; it has {', '.join(gpu.tflops)} (--set precision=...)"
        )
    load, ratios, steps = workload(recipe, options)
    training = costs.Training(
        fusion=getattr(recipe, "fusion", "add"),
        freeze_txt=recipe.model.freeze_txt,
        freeze_img=recipe.model.freeze_img,
        activation_checkpointing=recipe.activation_checkpointing,
        grad_cache=recipe.grad_cache,
        low_precision=precision != "fp32",
        dropout=recipe.model.dropout != 0,
    )
    if isinstance(recipe, PretrainConfig):
        for task in ratios:
            OBJECTIVES[task](ObjectiveOptions(fusion=recipe.fusion)).check(config)

    rate = gpu.tflops[precision] * 1e12 * options.efficiency
    bandwidth = (gpu.outside if options.count > options.gpus_per_node else gpu.inside) * 1e9
    tasks = {}
    for task, share in ratios.items():
        flops = sum(costs.step_flops(config, task, load, training).values()) * recipe.grad_accumulation
        sent = costs.exchanged_bytes(config, task, load, training)
        sent["embeddings"] *= recipe.grad_accumulation
        seconds = {"compute": flops / rate, "exchange": sum(sent.values()) / bandwidth}
        tasks[task] = {"share": share, "flops_per_rank": flops, "sent_per_rank": sent, "seconds": seconds}
    step = sum(t["share"] * sum(t["seconds"].values()) for t in tasks.values())
    pairs = load.pairs * options.count * recipe.grad_accumulation
    memory = {
        name: costs.memory(config, list(ratios), load, dataclasses.replace(training, activation_checkpointing=saving))
        for name, saving in (("without", False), ("with", True))
    }
    return {
        "on_paper": f"from the stated peak rates at efficiency {options.efficiency:g}; nothing was run",
        "recipe": options.config,
        "gpu": {"name": options.gpu, "count": options.count, "per_node": options.gpus_per_node} | dataclasses.asdict(gpu),
        "settings": {
            "precision": precision, "activation_checkpointing": recipe.activation_checkpointing,
            "grad_cache": recipe.grad_cache, "grad_accumulation": recipe.grad_accumulation,
            "mean_words": options.mean_words, "mean_regions": options.mean_regions,
        },
        "notes": notes,
        "parameters": costs.parameters(config, heads=isinstance(recipe, PretrainConfig)),
        "pairs": {"per_rank": load.pairs, "per_step": pairs},
        "tasks": tasks,
        "memory_per_rank": {f"{name}_checkpointing": parts for name, parts in memory.items()},
        "steps": steps,
        "seconds_per_step": step,
        "hours": steps * step / 3600,
        "pairs_per_second": pairs / step,
        "regions_read_per_second": pairs / step * options.mean_regions * 2 * config.feature_dim,
    }  # fmt: skip


def read_recipe(options: Options) -> PretrainConfig | RetrievalConfig:
    kind = options.kind
    if kind is None:
        try:
            values = yaml.safe_load(Path(options.config).read_text(encoding="utf-8"))
        except OSError as error:
            raise BadInput(f"{options.config}: cannot read the config: {error.strerror}") from error
        except yaml.YAMLError as error:
            raise BadInput(f"{options.config}: not valid YAML: {error}") from error
        kind = "pretrain" if isinstance(values, dict) and "data" in values else "finetune"
    bare = [word for word in options.set if "=" not in word]
    if bare:
        raise BadInput(f"set: expected name=value, such as precision=bf16, found {bare[0]!r}")
    words = ["--config", options.config, *(f"--{word}" for word in options.set)]
    return cli.parse(PretrainConfig if kind == "pretrain" else RetrievalConfig, words)


def model_config(model: ModelOptions, options: Options, notes: list[str]) -> LightningDOTConfig:
    """The sizes that training would start with, as far as the folders named are there."""
    base = EncoderConfig(vocab_size=options.vocab_size)
    if model.init and (Path(model.init) / "config.json").is_file():
        return LightningDOTConfig.from_dict(checkpoints.read_config(model.init))
    sizes = {}
    for side, folder in (("txt", model.init or model.txt_init), ("img", model.init or model.img_init)):
        if folder is None:
            shape = {f.name: getattr(model, f.name) for f in dataclasses.fields(base) if hasattr(model, f.name)}
            sizes[side] = dataclasses.replace(base, **shape)
        elif (Path(folder) / "config.json").is_file():
            sizes[side] = EncoderConfig.from_dict(checkpoints.read_settings(Path(folder) / "config.json"))
        else:
            sizes[side] = base
            notes.append(f"model.{side}: {folder} is not here; taken as BERT-base with {options.vocab_size:,} words")
    return LightningDOTConfig(
        **sizes, project_dim=model.project_dim, feature_dim=options.feature_dim, num_labels=options.num_labels
    )


def workload(recipe: PretrainConfig | RetrievalConfig, options: Options) -> tuple[costs.Load, dict[str, float], int]:
    """A rank's batch, the share of the steps that each task takes, and how many steps there are."""
    shape = costs.Load(1, options.mean_words, options.mean_regions, ranks=options.count)
    if isinstance(recipe, PretrainConfig):
        ratios = {}
        for data in recipe.data:
            for task, ratio in data.tasks.items():
                ratios[task] = ratios.get(task, 0) + ratio
        load = dataclasses.replace(
            shape,
            pairs=max(1, int(recipe.tokens_per_batch // (shape.txt_length + shape.img_length))),
            word_mask_prob=recipe.word_mask_prob,
            region_mask_prob=recipe.region_mask_prob,
        )
        return load, {task: ratio / sum(ratios.values()) for task, ratio in ratios.items()}, recipe.num_steps
    load = dataclasses.replace(
        shape,
        pairs=recipe.batch_size,
        hard_negatives=recipe.hard_negatives.count,
        third_view=recipe.caption_score_weight > 0,
    )
    captions = options.captions
    if captions is None:
        captions, names = 0, recipe.train_captions
        for name in [names] if isinstance(names, str) else names:
            path = Path(recipe.data_root, name, "id2len.json")
            if not path.is_file():
                raise BadInput(
                    f"{path}: not here, so the length of an epoch is unknown; give --captions (Flickr30k: 145000)"
                )
            captions += len(read_json(path))
    update = recipe.batch_size * recipe.grad_accumulation * options.count
    return load, {"cmr": 1.0}, recipe.epochs * -(-captions // update)


def _format(plan: dict) -> str:
    gpu, settings, counts = plan["gpu"], plan["settings"], plan["parameters"]
    lines = [
        f"{plan['recipe']} on {gpu['count']} x {gpu['name']} ({gpu['per_node']} a node), {settings['precision']}",
        f"on paper, {plan['on_paper']}",
        *plan["notes"],
        "",
        "parameters",
        *(f"  {name:<28}{count:>15,}" for name, count in counts.items()),
        f"  {'all':<28}{sum(counts.values()):>15,}",
        "",
        f"a step: {plan['pairs']['per_step']:,.0f} pairs of {settings['mean_words']:g} words and {settings['mean_regions']:g} "
        f"regions, {plan['pairs']['per_rank']:,.0f} in a batch of a rank, no padding",
        f"  {'task':<8}{'share':>7}{'TFLOP/rank':>12}{'MB sent: gradients':>20}{'embeddings':>12}{'ms compute':>12}{'exchange':>10}",
    ]
    for name, task in plan["tasks"].items():
        sent, seconds = task["sent_per_rank"], task["seconds"]
        lines.append(
            f"  {name:<8}{task['share']:>7.2f}{task['flops_per_rank'] / 1e12:>12.3g}{sent['gradients'] / 1e6:>20.1f}"
            f"{sent['embeddings'] / 1e6:>12.1f}{seconds['compute'] * 1e3:>12.1f}{seconds['exchange'] * 1e3:>10.1f}"
        )
    without, saving = plan["memory_per_rank"].values()
    own = saving if settings["activation_checkpointing"] else without
    lines += ["", f"memory of a rank, GB{'without':>18}{'with activation checkpointing':>32}"]
    lines += [
        f"  {name:<28}{without.get(name, 0) / 1e9:>8.2f}{saving.get(name, 0) / 1e9:>32.2f}"
        for name in dict.fromkeys([*without, *saving])
        if without.get(name) or saving.get(name)
    ]
    lines.append(f"  {'all':<28}{sum(without.values()) / 1e9:>8.2f}{sum(saving.values()) / 1e9:>32.2f}")
    if sum(own.values()) > gpu["memory"] * 1e9:
        lines.append(
            f"  more than the {gpu['memory']:g} GB of one {gpu['name']}: smaller batches, or activation checkpointing"
        )
    lines += [
        "",
        f"{plan['steps']:,} steps of {plan['seconds_per_step'] * 1e3:.1f} ms: {plan['hours']:.3g} hours, without validation "
        "and saving, compute and exchange one after the other",
        f"{plan['pairs_per_second']:,.0f} pairs a second: {plan['regions_read_per_second'] / 1e9:.2f} GB/s of region features "
        "to be read",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, Options)
