#!/usr/bin/env python
"""Say on paper what a training run will take: parameters, operations, memory, bytes exchanged, hours. Nothing is run.

python scripts/plan.py --config configs/pretrain/photos_small.yaml --gpu a100-80 --count 16
python scripts/plan.py --config configs/finetune/photos_small.yaml --gpu h100 --captions 145000 --json plan.json
python scripts/plan.py --config configs/pretrain/photos_small.yaml --gpu h200 --set precision=bf16 tokens_per_batch=40960
python scripts/plan.py --config configs/pretrain/paper.yaml --counts coco_train=414000/82783 vg=5060000/101000
"""

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from any folder, without installing

from configs import cli
from configs.idle import refuse_idle
from configs.yaml_file import read_mapping
from data.errors import BadInput
from data.storage.locks import claim_output
from data.storage.text_files import write_json
from optim.data_plan import data_lines
from optim.planning import GPUS, DataSizes, Machine, Recipe, make_plan
from optim.tasks.pretraining import PretrainConfig
from train_itm import CONFIGS

GpuName = Literal[tuple(GPUS)]  # type: ignore[valid-type]


@dataclass
class Options:
    """Say on paper what a training run will take. Nothing is run, and no database is needed.

    Args:
        config: recipe of pretrain.py or train_itm.py
        kind: pretrain or finetune; none: as the recipe looks
        set: settings that override the recipe's, such as precision=bf16
        gpu: type of GPU; a cpu is one core
        count: GPUs, a rank each
        gpus_per_node: of one machine; more are spread over several
        efficiency: share of the stated peak rate that training reaches
        mean_words: of a caption, in word pieces, [CLS] and [SEP] not included
        mean_regions: of an image
        captions: of a fine-tuning's training set; none: as its database says, where that is
        counts: of corpora whose databases are not here, NAME=CAPTIONS/IMAGES, as in coco=566747/113287; a fine-tuning's is train
        vocab_size: of towers that no folder tells of; none: as the databases of the recipe say, where they are, else 28,996
        feature_dim: of the regions; none: as their databases say, else 2,048
        num_labels: classes of the region detector; none: as the databases of regions say, else 1,601
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
    counts: list[str] = field(default_factory=list)
    vocab_size: int | None = None
    feature_dim: int | None = None
    num_labels: int | None = None
    json: str | None = None

    def __post_init__(self):
        for name in ("count", "gpus_per_node", "mean_words", "mean_regions", "captions", "vocab_size", "feature_dim"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise BadInput(f"{name} must be above 0, found {value}")
        if not 0 < self.efficiency <= 1:
            raise BadInput(f"efficiency must be above 0 and at most 1, found {self.efficiency}")


def main(options: Options) -> None:
    if options.json:
        claim_output(options.json)
    plan = plan_of(options)
    print(_format(plan))
    if options.json:
        write_json(options.json, plan)


def plan_of(options: Options) -> dict:
    """All numbers of the plan, as they are written to JSON. Raises BadInput as `make_plan` does."""
    machine = Machine(options.gpu, options.count, options.gpus_per_node, options.efficiency)
    sizes = DataSizes(**{each.name: getattr(options, each.name) for each in fields(DataSizes)})
    return {"recipe": options.config} | make_plan(read_recipe(options), machine, sizes)


def read_recipe(options: Options) -> Recipe:
    """The recipe with the settings that override it. Raises BadInput for one that cannot be read."""
    kind = options.kind
    if kind is None:
        kind = "pretrain" if "data" in [key.value for key, _ in read_mapping(options.config).value] else "finetune"
    refuse_idle(options, (kind == "pretrain", "captions", "with a recipe of pre-training, of whose corpora --counts tells"))
    bare = [word for word in options.set if "=" not in word]
    if bare:
        raise BadInput(f"set: expected name=value, such as precision=bf16, found {bare[0]!r}")
    words = ["--config", options.config, *(f"--{word}" for word in options.set)]
    return cli.parse(PretrainConfig if kind == "pretrain" else CONFIGS, words)


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
        lines.append(f"  more than the {gpu['memory']:g} GB of one {gpu['name']}: smaller batches, or activation checkpointing")
    lines += ["", *data_lines(plan["corpora"])]
    lines += [
        "",
        f"{plan['steps']:,} steps of {plan['seconds_per_step'] * 1e3:.1f} ms: {plan['hours']:.3g} hours, without validation "
        "and saving, compute and exchange one after the other",
        f"{plan['pairs_per_second']:,.0f} pairs a second: {plan['regions_read_per_second'] / 1e9:.2f} GB/s of region features "
        "to be read",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, Options, often="set gpu count gpus_per_node efficiency mean_words mean_regions captions counts json")
