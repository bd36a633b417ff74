"""Every key of UNITER's configs for image–text retrieval (``train-itm-*.json``): the recipe of a re-ranker here.

UNITER trains against random images and captions (``negative_size`` of each for a caption), or, where ``hard_neg_size`` is given,
against those of them that it scores highest itself. Ours learns from what a bi-encoder ranks highly, `reranker.miner`.
"""

from __future__ import annotations

from typing import Any

from model.original.keys import Key, no_effect, taken_in
from model.original.kinds import Kind
from model.original.values import (
    Elsewhere,
    Ignored,
    Old,
    Refused,
    algorithm,
    clip,
    cpu,
    folder,
    folders,
    img_folders,
    one_tower,
    precision,
    schedule,
    text_length,
    unless_given,
    warmup,
)  # fmt: skip

ALWAYS: dict[str, Any] = {
    "model.kind": "uniter",
    "optim.no_decay": "original",
    "optim.eps": 1e-6,
    "optim.accumulation": "sum",
}


def negatives(value: int, old: Old) -> dict[str, Any]:
    """So many random ones of each kind, unless the hardest of them are taken."""
    if not value:
        raise Refused("a re-ranker learns from negatives: at least 1")
    if old.get("hard_neg_size"):
        raise Elsewhere("hard_neg_size is taken of them")
    return {"hard_negatives.count": value, "hard_negatives.window": "random", "hard_negatives.from_epoch": 1}


def hardest(value: int, old: Old) -> dict[str, Any]:
    """So many of the miner's best ``negative_size``."""
    if not value:
        raise Ignored("0: all of negative_size")
    if value > old.values["negative_size"]:
        raise Refused(f"negative_size is {old.values['negative_size']}, of which these are to be the hardest")
    old.remarks.append("negatives are of a bi-encoder's ranking; UNITER took those that it scored highest itself, of random ones")
    return {"hard_negatives.count": value, "hard_negatives.window": f"0-{old.values['negative_size']}", "hard_negatives.from_epoch": 1}


def _reads(name: str | tuple[str, ...]) -> dict[Kind, str | tuple[str, ...]]:
    return {"rerank": name}


def _absent(value: Any) -> dict[Kind, Any]:
    return {"rerank": value}


_NEGATIVES = ("hard_negatives.count", "hard_negatives.window", "hard_negatives.from_epoch")
_TEST = "training never sees the test split: `eval_itm.py --reranker`"

# fmt: off
KEYS = (
    Key("train_txt_dbs", _reads("train_captions"), "several are joined", folders),
    Key("train_img_dbs", _reads("train_regions"), "one for each text database, or one for all", img_folders),
    Key("train_txt_db", _reads("train_captions"), "", unless_given("train_txt_dbs")),
    Key("train_img_db", _reads("train_regions"), "", unless_given("train_img_dbs")),
    Key("val_txt_db", _reads("val_captions"), "", folder),
    Key("val_img_db", _reads("val_regions"), "", folder),
    no_effect("test_txt_db", _TEST),
    no_effect("test_img_db", _TEST),
    taken_in("txt_db_mapping", "stands for `/db` at the start of a path: written out"),
    taken_in("img_db_mapping", "stands for `/img` at the start of a path: written out"),
    taken_in("pretrain_mapping", "stands for `/pretrain` at the start of a path: written out"),
    no_effect("compressed_db", "the layout that exists is found"),
    Key("conf_th", _reads("boxes.conf_th"), default=_absent(0.2)),
    Key("max_bb", _reads("boxes.max_bb"), default=_absent(100)),
    Key("min_bb", _reads("boxes.min_bb"), default=_absent(10)),
    Key("num_bb", _reads("boxes.num_bb"), default=_absent(36)),
    Key("max_txt_len", _reads("max_txt_len"), "ours counts [CLS] and [SEP]: 60 becomes 62, -1 stays", text_length, _absent(60)),
    Key("checkpoint", _reads("model.init"), "the folder that `scripts/convert_checkpoint.py` makes of the file", one_tower("model_config")),
    taken_in("model_config", "goes to `scripts/convert_checkpoint.py --image-config`"),
    Key("train_batch_size", _reads("batch_size"), "captions of one batch on one GPU"),
    Key("negative_size", _reads(_NEGATIVES), "random images and captions, so many of each for a caption (`window: random`)", negatives),
    Key("hard_neg_size", _reads(_NEGATIVES), "the original trains on those so many of `negative_size` random ones that it scores highest itself; here so many are drawn from the first `negative_size` of the miner's ranking", hardest),
    no_effect("steps_per_hard_neg", "how often UNITER looks for them; here `hard_negatives.every` counts epochs"),
    no_effect("inf_minibatch_size", "how many pairs are scored at a time"),
    Key("margin", _reads("reranker.margin"), default=_absent(0.2)),
    Key("gradient_accumulation_steps", _reads("grad_accumulation"), "the batches' gradients are summed (`optim.accumulation: sum`)", default=_absent(1)),
    Key("learning_rate", _reads("optim.lr"), default=_absent(5e-5)),
    Key("optim", _reads("optim.algorithm"), "adam and adamax are refused", algorithm, _absent("adamw")),
    Key("betas", _reads("optim.betas"), default=_absent([0.9, 0.98])),
    Key("decay", _reads("optim.schedule"), "`linear` is `uniter_linear`, `invsqrt` is `uniter_invsqrt`", schedule, _absent("linear")),
    Key("dropout", _reads("model.dropout"), default=_absent(0.1)),
    Key("weight_decay", _reads("optim.weight_decay"), default=_absent(0.01)),
    Key("grad_norm", _reads("optim.grad_clip"), "-1 is 0; of the summed gradients", clip, _absent(2.0)),
    Key("warmup_steps", _reads("optim.warmup_steps"), "", warmup),
    Key("num_train_steps", _reads("num_steps")),
    no_effect("valid_steps", "validation follows every epoch, and the last update"),
    no_effect("full_val", "validation ranks the first `reranker.top` of the miner again, not all pairs of the split"),
    no_effect("val_batch_size", "changes no result"),
    Key("seed", _reads("seed"), default=_absent(42)),
    Key("fp16", _reads("precision"), "true is `fp16` (on a CPU rather `bf16`), false is `fp32`", precision, _absent(False)),
    Key("n_workers", _reads("workers"), default=_absent(4)),
    no_effect("pin_mem", "pinned wherever there is a GPU"),
    Key("output_dir", _reads("out"), "", folder),
    Key("no_cuda", _reads("device"), "true is `cpu`", cpu),
    no_effect("n_gpu", "the launcher says it"),
    no_effect("local_rank", "the launcher says it"),
    no_effect("rank", "the launcher says it"),
    no_effect("config", "the file's own name, in the copy that a run kept"),
)
# fmt: on
