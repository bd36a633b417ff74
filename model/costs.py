"""What training costs on paper: parameters, floating-point operations, memory, bytes exchanged.

Everything follows from sizes; nothing is built or run. One multiplication with its addition counts as two operations, so
[m,k] times [k,n] is 2·m·k·n. Only matrix products and attention count. A batch is B pairs of one size, without padding.
"""

from __future__ import annotations

from dataclasses import dataclass

from data.errors import BadInput
from model.bi_encoder import LightningDOTConfig
from model.transformer import EncoderConfig

Parts = dict[str, float]  # name of a part of the model, which starts with its tower → how much of something


@dataclass(frozen=True)
class Load:
    """The batch of one rank.

    Args:
        pairs: B, hard negatives not included
        words: of a text, [CLS] and [SEP] not included
        regions: of an image
        hard_negatives: of a pair
        third_view: whether the text tower also reads captions of the images themselves, as long as the texts
        ranks: processes whose embeddings are each other's negatives
        word_mask_prob, region_mask_prob: shares that VMLM and SMRM predict
    """

    pairs: float
    words: float
    regions: float
    hard_negatives: int = 0
    third_view: bool = False
    ranks: int = 1
    word_mask_prob: float = 0.15
    region_mask_prob: float = 0.15

    @property
    def rows(self) -> float:
        """Texts, and images, that are embedded."""
        return self.pairs * (1 + self.hard_negatives)

    @property
    def txt_length(self) -> float:
        return self.words + 2

    @property
    def img_length(self) -> float:
        return self.regions + 1

    def predictions(self, task: str) -> float:
        """What the loss of ``task`` is a mean over."""
        if task == "cmr":
            return self.pairs
        share, of = (self.word_mask_prob, self.words) if task == "vmlm" else (self.region_mask_prob, self.regions)
        return self.pairs * max(1.0, share * of)  # at least one is masked


@dataclass(frozen=True)
class Training:
    """What about training changes its cost, beside the model and the batch.

    Args:
        fusion: of pre-training; "none" leaves the other tower out of VMLM and SMRM
        freeze_txt, freeze_img: a tower without gradients
        activation_checkpointing: blocks run forward twice
        grad_cache: rows that CMR embeds at a time, and all of it forward twice; 0: all at once, and once
        low_precision: matrix products in bf16 or fp16; weights stay in fp32
        dropout: whether there is any
    """

    fusion: str = "add"
    freeze_txt: bool = False
    freeze_img: bool = False
    activation_checkpointing: bool = False
    grad_cache: int = 0
    low_precision: bool = False
    dropout: bool = True

    def trains(self, part: str) -> bool:
        return not ((self.freeze_txt and part.startswith("text ")) or (self.freeze_img and part.startswith("image ")))


# ---- parameters ------------------------------------------------------------------------------------------------------


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def parameters(config: LightningDOTConfig, heads: bool = True) -> dict[str, int]:
    """Parameters of each part; ``heads``: those of pre-training too."""
    h, width, features = config.img.hidden_size, config.project_dim, config.feature_dim
    parts = {}
    for side, sizes in (("text", config.txt), ("image", config.img)):
        s, i = sizes.hidden_size, sizes.intermediate_size
        rows = sizes.vocab_size + sizes.max_position_embeddings + sizes.type_vocab_size
        parts[f"{side} embeddings"] = rows * s + 2 * s
        if side == "image":
            parts["image regions"] = _linear(features, h) + _linear(7, h) + 2 * features + 3 * 2 * h
        block = 4 * _linear(s, s) + _linear(s, i) + _linear(i, s) + 2 * 2 * s
        parts[f"{side} blocks"] = sizes.num_hidden_layers * block
        parts[f"{side} pooler"] = _linear(s, s)
        parts[f"{side} projection"] = _linear(s, 2 * s) + 2 * 2 * s + _linear(2 * s, width) if width else 0
    if heads:
        net = _linear(h, h) + 2 * h
        parts["word head"] = net + config.txt.vocab_size
        parts["feature head"] = net + features
        parts["class head"] = net + _linear(h, config.num_labels) if config.num_labels else 0
    return parts


def _heads_of(task: str) -> str:
    return {"vmlm": "word head", "mrfr": "feature head", "mrckl": "class head", "mrc": "class head"}.get(task, "")


def exchanged_parameters(config: LightningDOTConfig, task: str, training: Training) -> int:
    """Parameters that a step of ``task`` has gradients for, which the ranks sum. The poolers never have any."""
    used = {_heads_of(task)}
    for side, own in (("text", task == "vmlm"), ("image", task not in ("vmlm", "cmr"))):
        if own or task == "cmr" or training.fusion != "none":
            used |= {f"{side} embeddings", f"{side} blocks", f"{side} regions"}
        if task == "cmr":
            used.add(f"{side} projection")
    counts = parameters(config)
    if task == "vmlm" and "image embeddings" not in used:  # the decoder's weight is tied to the words among them
        used.add("image embeddings")
        counts["image embeddings"] = config.img.vocab_size * config.img.hidden_size
    return sum(count for part, count in counts.items() if part in used and training.trains(part))


# ---- floating-point operations ---------------------------------------------------------------------------------------


def block_flops(config: EncoderConfig, length: float, queries: float) -> float:
    """Forward operations of one block on one sequence, of which ``queries`` positions are computed."""
    h, i = config.hidden_size, config.intermediate_size
    keys_and_values, rest = 2 * 2 * length * h * h, 2 * 2 * queries * h * h
    attention = 2 * 2 * queries * length * h
    return keys_and_values + rest + attention + 2 * 2 * queries * h * i


def tower_flops(config: EncoderConfig, length: float, first_only: bool) -> float:
    """Forward operations of all blocks on one sequence; the last computes position 0 alone with ``first_only``."""
    last = block_flops(config, length, 1 if first_only else length)
    return (config.num_hidden_layers - 1) * block_flops(config, length, length) + last


def forward_flops(config: LightningDOTConfig, task: str, load: Load, fusion: str = "add") -> Parts:
    """Forward operations of one batch of ``task`` on one rank, by part."""
    h, features = config.img.hidden_size, config.feature_dim
    txt = load.rows * tower_flops(config.txt, load.txt_length, first_only=task != "vmlm")
    img = load.rows * tower_flops(config.img, load.img_length, first_only=task in ("cmr", "vmlm"))
    parts = {
        "text blocks": txt * (2 if load.third_view and task == "cmr" else 1),
        "image blocks": img,
        "image regions": load.rows * load.regions * 2 * (features + 7) * h,
    }
    n = load.predictions(task)
    if task == "cmr":
        for side, sizes in (("text", config.txt), ("image", config.img)):
            if config.project_dim:
                rows = load.rows * (2 if side == "text" and load.third_view else 1)
                s = sizes.hidden_size
                parts[f"{side} projection"] = rows * 2 * 2 * s * (s + config.project_dim)
        parts["scores"] = 2 * 2 * n * load.rows * load.ranks * config.embedding_dim  # both ways
        return parts
    if fusion == "none":
        parts = {name: value for name, value in parts.items() if name.startswith("text") == (task == "vmlm")}
    outputs = {"vmlm": config.txt.vocab_size, "mrfr": features}.get(task, config.num_labels)
    return parts | {_heads_of(task): n * 2 * h * (h + outputs)}


def step_flops(config: LightningDOTConfig, task: str, load: Load, training: Training) -> Parts:
    """Operations of one batch of ``task`` on one rank, forward and backward, by part.

    Backward is twice forward, once for the inputs' gradients and once for the weights'; the region features themselves need
    none, unless some are masked (a mask embedding is learnt then).
    """
    parts = {}
    for part, forward in forward_flops(config, task, load, training.fusion).items():
        passes = 3.0 if training.trains(part) else 1.0
        if part == "image regions" and passes == 3 and task in ("cmr", "vmlm"):
            passes = 2.0
        if training.activation_checkpointing and passes == 3 and part.endswith("blocks"):
            passes += 1
        if training.grad_cache and task == "cmr" and part != "scores":
            passes += 1
        parts[part] = forward * passes
    return parts


# ---- memory ----------------------------------------------------------------------------------------------------------


def _block_bytes(config: EncoderConfig, length: float, queries: float, training: Training) -> float:
    """What one block keeps for backward of one sequence. Attention is one fused kernel: its weights are not kept."""
    h, i = config.hidden_size, config.intermediate_size
    low = 2 if training.low_precision else 4
    norms = 4 * 4 * queries * h  # what goes into and out of both layer norms, always fp32
    copies = low * (2 * length + 2 * queries) * h if training.low_precision else 0  # of the linear layers' inputs
    # keys and values; queries and what attention gives; what goes into and out of GELU
    products = low * (2 * length * h + 2 * queries * h + 2 * queries * i)
    masks = 2 * queries * h if training.dropout else 0
    return norms + copies + products + masks


def _tower_bytes(config: EncoderConfig, length: float, first_only: bool, training: Training) -> float:
    """Of one sequence, from its embeddings on."""
    embeddings = length * config.hidden_size * (2 * 4 + (1 if training.dropout else 0))
    last = _block_bytes(config, length, 1 if first_only else length, training)
    whole = _block_bytes(config, length, length, training)
    if training.activation_checkpointing:  # the input of every block, and one block's while it is computed again
        kept = (config.num_hidden_layers - 1) * 4 * length * config.hidden_size
        return embeddings + kept + max(whole if config.num_hidden_layers > 1 else 0, last)
    return embeddings + (config.num_hidden_layers - 1) * whole + last


def activation_bytes(config: LightningDOTConfig, task: str, load: Load, training: Training) -> Parts:
    """What the forward pass of one batch of ``task`` keeps for backward on one rank, by part."""
    low = 2 if training.low_precision else 4
    h, n = config.img.hidden_size, load.predictions(task)
    rows = min(load.rows, training.grad_cache or load.rows) if task == "cmr" else load.rows
    txt = _tower_bytes(config.txt, load.txt_length, task != "vmlm", training)
    parts = {
        "text activations": rows * txt * (2 if load.third_view and task == "cmr" else 1),
        "image activations": rows * _tower_bytes(config.img, load.img_length, task in ("cmr", "vmlm"), training),
        "region activations": rows * load.regions * (low * config.feature_dim + (2 * low + 4) * h),
    }
    if training.fusion == "none" and task != "cmr":
        parts = {name: value for name, value in parts.items() if name.startswith("text") == (task == "vmlm")}
    for side, name in (("text", "text activations"), ("image", "image activations"), ("image", "region activations")):
        if not training.trains(f"{side} blocks") and name in parts:
            parts[name] = 0
    if task == "cmr":  # two score matrices, masked, their logarithms of softmax; embeddings of all ranks
        candidates = load.rows * load.ranks
        return parts | {"scores": 4 * n * candidates * 6, "embeddings": 4 * 2 * candidates * config.embedding_dim}
    outputs = {"vmlm": config.txt.vocab_size, "mrfr": config.feature_dim}.get(task, config.num_labels)
    return parts | {"predictions": n * outputs * (low + 4 + 4) + n * h * 4 * 4}  # logits, in fp32, their softmax


def memory(config: LightningDOTConfig, tasks: list[str], load: Load, training: Training) -> Parts:
    """Bytes of one rank when it is fullest, by what they hold. The allocator's own waste is not in it."""
    counts = parameters(config, heads=tasks != ["cmr"])
    total, trained = sum(counts.values()), sum(n for part, n in counts.items() if training.trains(part))
    products = sum(n for part, n in counts.items() if part.endswith(("blocks", "projection", "regions", "head")))
    fullest = max((activation_bytes(config, task, load, training) for task in tasks), key=lambda a: sum(a.values()))
    exchanged = max(exchanged_parameters(config, task, training) for task in tasks)
    pair = load.regions * (2 * config.feature_dim + 4 * 7 + 1) + load.txt_length * 9
    return {
        "weights": 4 * total,
        "weights in low precision": 2 * products if training.low_precision else 0,  # autocast's copies
        "gradients": 4 * trained,
        "optimizer": 2 * 4 * trained,  # AdamW's two moments
        "exchange buffers": 4 * exchanged if load.ranks > 1 else 0,
        "batch": load.rows * pair,
        **fullest,
    }


# ---- bytes exchanged -------------------------------------------------------------------------------------------------


def exchanged_bytes(config: LightningDOTConfig, task: str, load: Load, training: Training) -> dict[str, float]:
    """What each rank sends (and receives as much) for one batch of ``task``, by ring algorithms.

    Returns: gradients (summed once an update), embeddings (gathered with every batch, their gradients summed)
    """
    if load.ranks < 1:
        raise BadInput(f"ranks must be at least 1, found {load.ranks}")
    others = (load.ranks - 1) / load.ranks
    found = {"gradients": 2 * others * 4 * exchanged_parameters(config, task, training), "embeddings": 0.0}
    if task == "cmr":
        everyones = 4 * load.rows * load.ranks * config.embedding_dim * (3 if load.third_view else 2)
        found["embeddings"] = others * everyones * (1 + 2)  # gathered forward, summed backward
    return found
