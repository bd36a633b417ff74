"""What a training run will take, on paper: from its recipe, the costs that modules and objectives name, and a GPU's data sheet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from data.downloads.hub import SIZES, local_folder
from data.errors import BadInput
from data.storage.regular_files import is_there
from model import checkpoints, costs
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.costs import Load, Work
from model.initial import EncoderOptions, ModelOptions
from model.objectives import OBJECTIVES
from model.objectives.base import ObjectiveOptions
from model.objectives.cmr import CrossModalRetrieval
from model.objectives.heads import PretrainingHeads
from model.objectives.uniter_teacher import UniterTeacher, taught_by
from model.text_encoders import choose_text_encoder
from model.transformer import EncoderConfig, empty_weights
from model.uniter import Reranker, RerankerModelOptions, UniterConfig
from optim.data_plan import Recipe, Widths, num_captions_and_images, parse_counts, plan_data, stored_sizes
from optim.tasks.pretraining import PretrainConfig
from optim.tasks.reranking import RerankingConfig
from optim.tasks.retrieval import RetrievalConfig

_HEADS = {"cls": "word head", "feat_regress": "feature head", "region_classifier": "class head"}


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
MOST_GPUS = 1_000_000
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


@dataclass(frozen=True)
class Machine:
    """What a plan is made for.

    Args:
        gpu: type of GPU, a name in ``GPUS``
        count: GPUs, a rank each
        per_node: of one machine; more are spread over several
        efficiency: share of the stated peak rate that training reaches
    """

    gpu: str
    count: int
    per_node: int
    efficiency: float

    def __post_init__(self):
        if max(self.count, self.per_node) > MOST_GPUS:
            raise BadInput(f"expected at most {MOST_GPUS:,} GPUs, found {str(max(self.count, self.per_node))[:20]}")


@dataclass(frozen=True)
class DataSizes:
    """What no recipe says of its data.

    Args:
        mean_words: of a caption, in word pieces, [CLS] and [SEP] not included
        mean_regions: of an image
        captions: of a fine-tuning's training set; None: as its database says, where that is
        vocab_size: of encoders that no folder tells of; None: as the recipe's databases say, or `ASSUMED` where they are not here
        feature_dim: of the regions; None: the same
        num_labels: classes of the region detector; None: the same
        counts: captions and images of corpora, NAME=CAPTIONS/IMAGES, whose databases are not here
    """

    mean_words: float
    mean_regions: float
    captions: int | None
    vocab_size: int | None = None
    feature_dim: int | None = None
    num_labels: int | None = None
    counts: Sequence[str] = ()


@dataclass(frozen=True)
class Sizes(DataSizes):
    """`DataSizes` of which none is None but the captions."""

    vocab_size: int
    feature_dim: int
    num_labels: int


ASSUMED = {"vocab_size": (28996, "words"), "feature_dim": (2048, "numbers of a region's feature"), "num_labels": (1601, "classes of regions")}


def _settled(recipe: Recipe, given: DataSizes) -> tuple[Sizes, list[str]]:
    """The sizes that are given, else those of the recipe's databases, else what is assumed; and a line about what is, and counts."""
    values = {each.name: getattr(given, each.name) for each in dataclasses.fields(given)}
    stored = stored_sizes(recipe) if None in (given.vocab_size, given.feature_dim, given.num_labels) else {}
    told = _settings_of(recipe.model.init) or {}
    starts = [recipe.model.init or getattr(recipe.model, side, None) for side in ("txt_init", "img_init")]
    counts = {"vocab_size": not all(map(_settings_of, starts)), "feature_dim": "feature_dim" not in told, "num_labels": "num_labels" not in told}
    absent = [name for name in ASSUMED if values[name] is None and name not in stored]
    assumed = [f"{ASSUMED[name][0]:,} {ASSUMED[name][1]}" for name in absent if counts[name]]
    values |= {name: stored.get(name, assumption) for name, (assumption, _) in ASSUMED.items() if values[name] is None}
    return Sizes(**values), [f"assumed, since the databases that say it are not here: {', '.join(assumed)}"] if assumed else []


@dataclass
class _Planned:
    """A model without memory or numbers, and what its batches cost.

    Attributes:
        modules: all that is trained; the first is the model
        parts: name of a part → module, for counts of parameters
        work: task → function from the load to the work of a batch
        feature_dim: of the regions
    """

    modules: list[nn.Module]
    parts: dict[str, nn.Module]
    work: dict[str, Callable[[Load], list[Work]]]
    feature_dim: int


def make_plan(recipe: Recipe, machine: Machine, given: DataSizes) -> dict:
    """All numbers of the plan, as they are written to JSON.

    Raises:
        BadInput: a precision that the GPU does not have, towers that an objective cannot train, or an unknown epoch.
    """
    gpu, precision, notes = GPUS[machine.gpu], recipe.precision, list[str]()
    if precision not in gpu.tflops:
        raise BadInput(
            f"{machine.gpu} has no stated rate in {precision}; it has {', '.join(gpu.tflops)} (--set precision=...)"
        )
    sizes, assumed = _settled(recipe, given)
    planned = _planned(recipe, sizes, notes)
    notes += assumed
    load, ratios, steps = _workload(recipe, machine, sizes)
    memory = {}
    for name, saving in (("without", False), ("with", True)):
        planned.modules[0].set_checkpointing(saving)
        batches = [planned.work[task](load) for task in ratios]
        memory[f"{name}_checkpointing"] = costs.memory(planned.modules, batches, load, planned.feature_dim)
    planned.modules[0].set_checkpointing(recipe.activation_checkpointing)
    tasks = {
        task: {"share": share} | _time_of(planned.work[task](load), load, recipe.grad_accumulation, precision, machine)
        for task, share in ratios.items()
    }
    step = sum(task["share"] * sum(task["seconds"].values()) for task in tasks.values())
    pairs = load.pairs * machine.count * recipe.grad_accumulation
    return {
        "on_paper": f"from the stated peak rates at efficiency {machine.efficiency:g}; nothing was run",
        "gpu": {"name": machine.gpu, "count": machine.count, "per_node": machine.per_node} | dataclasses.asdict(gpu),
        "settings": {
            "precision": precision, "activation_checkpointing": recipe.activation_checkpointing,
            "grad_cache": load.grad_cache, "grad_accumulation": recipe.grad_accumulation,
            "mean_words": sizes.mean_words, "mean_regions": sizes.mean_regions,
        },
        "notes": notes,
        "parameters": {name: costs.count(part) for name, part in planned.parts.items()},
        "pairs": {"per_rank": load.pairs, "per_step": pairs},
        "tasks": tasks,
        "memory_per_rank": memory,
        "corpora": plan_data(
            recipe, sizes.counts, steps * pairs, Widths(sizes.mean_regions, planned.feature_dim, sizes.num_labels), sizes.captions
        ),
        "steps": steps,
        "seconds_per_step": step,
        "hours": steps * step / 3600,
        "pairs_per_second": pairs / step,
        "regions_read_per_second": pairs / step * sizes.mean_regions * 2 * planned.feature_dim,
    }  # fmt: skip


def _time_of(works: list[Work], load: Load, accumulation: int, precision: str, machine: Machine) -> dict:
    """An update of one task: operations, bytes and seconds of each rank."""
    gpu = GPUS[machine.gpu]
    bandwidth = (gpu.outside if machine.count > machine.per_node else gpu.inside) * 1e9
    flops = sum(costs.step_flops(works).values()) * accumulation
    sent = costs.exchanged_bytes(works, load)
    sent["embeddings"] *= accumulation
    seconds = {
        "compute": flops / (gpu.tflops[precision] * 1e12 * machine.efficiency),
        "exchange": sum(sent.values()) / bandwidth,
    }
    return {"flops_per_rank": flops, "sent_per_rank": sent, "seconds": seconds}


# ---- what is trained -------------------------------------------------------------------------------------------------


def _planned(recipe: Recipe, sizes: Sizes, notes: list[str]) -> _Planned:
    if isinstance(recipe, RerankingConfig):
        config = reranker_config(recipe.model, sizes, notes)
        with empty_weights():
            reranker = Reranker(config)
        return _Planned([reranker], reranker.parts(), {"ranking": reranker.work}, config.feature_dim)
    config = towers_config(recipe.model, sizes, notes)
    with empty_weights():
        model = LightningDOT(config)
    model.freeze(recipe.model.freeze_txt, recipe.model.freeze_img)
    teacher = None
    if isinstance(recipe, RetrievalConfig):
        options = ObjectiveOptions(negatives=recipe.negatives)
        objectives, heads = {"cmr": CrossModalRetrieval(options)}, nn.ModuleDict()
    else:
        options = ObjectiveOptions(
            recipe.fusion, recipe.word_mask_prob, recipe.region_mask_prob, recipe.siblings, negatives=recipe.negatives
        )
        objectives = {task: OBJECTIVES[task](options) for corpus in recipe.data for task in corpus.tasks}
        with empty_weights():
            heads = PretrainingHeads(config, options, objectives)
        if recipe.teacher.checkpoint:
            start = RerankerModelOptions(init=recipe.teacher.checkpoint)
            with empty_weights():
                teacher = UniterTeacher(reranker_config(start, sizes, notes, "teacher.checkpoint"))
            objectives = taught_by(teacher, recipe.teacher, objectives)

    def work_of(task: str) -> Callable[[Load], list[Work]]:
        return lambda load: objectives[task].work(model, heads, load)

    parts = model.parts() | {_HEADS.get(name, f"{name} head"): head for name, head in heads.items()}
    modules = [model, heads]
    if teacher is not None:
        parts, modules = parts | {"teacher": teacher}, [*modules, teacher]
    return _Planned(modules, parts, {task: work_of(task) for task in objectives}, config.feature_dim)


def _settings_of(folder: str | None) -> dict | None:
    """``config.json`` of a folder, or of a name on the Hugging Face hub; None where it is not to be had."""
    if not folder:
        return None
    try:
        path = local_folder(folder, SIZES) / "config.json"
    except BadInput:
        return None
    return checkpoints.read_settings(path) if is_there(path) else None


def _from_random(model: EncoderOptions, sizes: Sizes) -> EncoderConfig:
    base = EncoderConfig(vocab_size=sizes.vocab_size)
    shape = {f.name: getattr(model, f.name) for f in dataclasses.fields(base) if hasattr(model, f.name)}
    return dataclasses.replace(base, **shape)


def _absent(what: str, folder: str, sizes: Sizes, notes: list[str]) -> EncoderConfig:
    notes.append(f"{what}: {folder} is not here; taken as BERT-base with {sizes.vocab_size:,} words")
    return EncoderConfig(vocab_size=sizes.vocab_size)


def towers_config(model: ModelOptions, sizes: Sizes, notes: list[str]) -> LightningDOTConfig:
    """The sizes that training would start with, as far as the folders named are there; ``notes`` gets what is assumed."""
    if _settings_of(model.init):
        folder = local_folder(model.init, SIZES)
        config = LightningDOTConfig.from_dict(checkpoints.read_config(folder), folder / "config.json")
    else:
        found = {}
        for side, folder in (("txt", model.init or model.txt_init), ("img", model.init or model.img_init)):
            values = _settings_of(folder)
            if folder is None:
                found[side] = _from_random(model, sizes)
            elif values is None:
                found[side] = _absent(f"model.{side}", folder, sizes, notes)
            elif side == "txt":
                found[side] = choose_text_encoder(folder, model.txt_encoder).read_config(folder)
            else:
                found[side] = EncoderConfig.from_dict(values)
        config = LightningDOTConfig(
            **found, project_dim=model.project_dim, feature_dim=sizes.feature_dim, num_labels=sizes.num_labels
        )
    if model.pooling is not None:
        config.pooling = model.pooling
    if model.dropout is not None:
        config.txt.set_dropout(model.dropout)
        config.img.set_dropout(model.dropout)
    return config


def reranker_config(
    model: RerankerModelOptions, sizes: Sizes, notes: list[str], name: str = "model.init"
) -> UniterConfig:
    """The same of a re-ranker, which may start from the text tower of a LightningDOT; ``name`` is the setting's."""
    values = _settings_of(model.init)
    if model.init is None:
        encoder = _from_random(model, sizes)
    elif values is None:
        encoder = _absent(name, model.init, sizes, notes)
    else:
        encoder = EncoderConfig.from_dict(values.get("txt", values))
    if model.dropout is not None:
        encoder.set_dropout(model.dropout)
    values = values or {}
    return UniterConfig(encoder, values.get("feature_dim", sizes.feature_dim), values.get("num_labels", sizes.num_labels))


# ---- how much of it --------------------------------------------------------------------------------------------------


def _workload(recipe: Recipe, machine: Machine, sizes: Sizes) -> tuple[Load, dict[str, float], int]:
    """A rank's batch, the share of the steps that each task takes, and how many steps there are."""
    load = Load(
        1, sizes.mean_words, sizes.mean_regions, ranks=machine.count, low_precision=recipe.precision != "fp32",
        grad_cache=getattr(recipe, "grad_cache", 0),  # a re-ranker has none
    )  # fmt: skip
    if isinstance(recipe, PretrainConfig):
        ratios: dict[str, float] = {}
        for corpus in recipe.data:
            for task, ratio in corpus.tasks.items():
                ratios[task] = ratios.get(task, 0) + ratio
        pairs = max(1, int(recipe.tokens_per_batch // (load.txt_length + load.img_length)))
        shares = {task: ratio / sum(ratios.values()) for task, ratio in ratios.items()}
        return dataclasses.replace(load, pairs=pairs), shares, recipe.num_steps
    reranks = isinstance(recipe, RerankingConfig)
    load = dataclasses.replace(
        load,
        pairs=recipe.batch_size,
        hard_negatives=recipe.hard_negatives.count,
        third_view=not reranks and recipe.caption_score_weight > 0,
        captions_per_image=_captions_per_image(recipe) if not reranks and recipe.captions_together else 1,
    )
    task = {"ranking" if reranks else "cmr": 1.0}
    if recipe.num_steps:
        return load, task, recipe.num_steps
    told, _ = parse_counts(sizes.counts, ["train"]).get("train", (None, None))
    captions = told or sizes.captions or _captions_of(recipe)
    update = recipe.batch_size * recipe.grad_accumulation * machine.count
    return load, task, recipe.epochs * -(-captions // update)


def _captions_of(recipe: RetrievalConfig | RerankingConfig) -> int:
    captions = num_captions_and_images(recipe.data_root, recipe.train_captions)[0]
    if captions is None:
        names = [recipe.train_captions] if isinstance(recipe.train_captions, str) else recipe.train_captions
        files = [Path(recipe.data_root, name, "id2len.json") for name in names]
        absent = next(path for path in files if not path.is_file())
        raise BadInput(f"{absent}: not here, so the length of an epoch is unknown; give --captions or --counts (Flickr30k: train=145000/29000)")
    return captions


def _captions_per_image(recipe: RetrievalConfig) -> float:
    """Five, as Flickr30k and COCO have, where the databases are not here."""
    captions, images = num_captions_and_images(recipe.data_root, recipe.train_captions)
    return captions / images if captions and images else 5
