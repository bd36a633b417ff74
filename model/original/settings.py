"""Every key of the original's JSON configs (LightningDOT's, and UNITER's from which they derive), and what it is here.

``KEYS`` is the one table: ``scripts/convert_config.py`` translates by it, and the README shows it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.errors import BadInput
from data.storage.text_files import read_json

Kind = Literal["pretrain", "finetune", "eval"]
TASKS = {"itm": "cmr", "mlm": "vmlm", "mrfr": "mrfr", "mrckl": "mrckl", "mrc-kl": "mrckl", "mrc": "mrc"}

# What the original did without a key that says so; keys that do say so go over it.
ALWAYS: dict[Kind, dict[str, Any]] = {
    "pretrain": {
        "fusion": "none",
        "siblings": "keep",
        "optim.algorithm": "adamw_original",
        "optim.no_decay": "original",
        "optim.schedule": "uniter_linear",
        "optim.betas": [0.9, 0.98],
        "optim.eps": 1e-6,
    },
    "finetune": {
        "siblings": "keep",
        "optim.algorithm": "adamw_original",
        "optim.no_decay": "original",
        "optim.schedule": "hf_linear",
        "optim.warmup_ratio": 0.1,
        "optim.betas": [0.9, 0.999],
        "optim.eps": 1e-8,
        "optim.weight_decay": 0.0,
    },
    "eval": {},
}


class Ignored(ValueError):
    """This value has no counterpart and needs none. The message says why; without one the key's note does."""


class Refused(ValueError):
    """This value asks for something that is not here. The message says what; without one the key's note does."""


@dataclass(frozen=True)
class Key:
    """One key of the original.

    Attributes:
        name: the key
        ours: what it is here, by kind of config; the kinds that are absent ignore it
        note: what changes, or why it is ignored or refused
        value: (the original's value, the whole old config) → ours; may raise Ignored or Refused
    """

    name: str
    ours: dict[Kind, str]
    note: str = ""
    value: Callable[[Any, dict], Any] = lambda value, old: value


def row(key: Key) -> str:
    """The key's line in the README: key, ours, note."""
    ours = dict.fromkeys(key.ours.values())
    names = ", ".join(f"`{name}`" for name in ours) or ("refused" if key.value is _only_off else "ignored")
    return f"| `{key.name}` | {names} | {key.note} |"


# ---- values ----------------------------------------------------------------------------------------------------------


def _ignore(value: Any, old: dict) -> Any:
    raise Ignored


def _only_off(value: Any, old: dict) -> Any:
    raise Refused if value else Ignored


def _off_by_default(value: Any, old: dict) -> Any:
    if not value:
        raise Ignored(f"{json.dumps(value)} is the default")
    return value


def _folder(value: str | None, old: dict) -> str:
    if not value:
        raise Ignored("none is given")
    return value.rstrip("/") or value


def _one_folder(value: list[str] | str, old: dict) -> str:
    values = [value] if isinstance(value, str) else value
    if len(values) != 1:
        raise Refused(f"validation takes one database a corpus, found {values}")
    return _folder(values[0], old)


def _folders(value: list[str] | str, old: dict) -> list[str] | str:
    values = [value] if isinstance(value, str) else value
    if not values:
        raise Ignored("none is given")
    folders = [_folder(each, old) for each in values]
    return folders if len(folders) > 1 else folders[0]


def _img_folders(value: list[str] | str, old: dict) -> list[str] | str:
    texts = old.get("train_txt_dbs")
    if isinstance(value, list) and isinstance(texts, list) and len(value) not in (1, len(texts)):
        raise Refused(f"train_txt_dbs are {len(texts)}; each has its own image database, or all have one")
    return _folders(value, old)


def _unless_given(other: str) -> Callable[[Any, dict], str]:
    def value(value: str | None, old: dict) -> str:
        if old.get(other):
            raise Ignored(f"{other} is given")
        return _folder(value, old)

    return value


def _tower_weights(value: str | None, old: dict) -> str:
    if old.get("biencoder_checkpoint"):
        raise Ignored("biencoder_checkpoint gives both towers")
    return _folder(value, old)


def _tower_name(checkpoint: str) -> Callable[[Any, dict], str]:
    def value(value: str | None, old: dict) -> str:
        if old.get(checkpoint):
            raise Ignored(f"{checkpoint} gives weights and sizes")
        if str(value).endswith(".json"):
            raise Ignored("sizes without weights: model.hidden_size and its neighbours")
        return _tower_weights(value, old)

    return value


def _tower_type(value: str, old: dict) -> str:
    raise Ignored if str(value).startswith(("bert-", "uniter-")) else Refused


def _warmup(value: int, old: dict) -> int:
    if old.get("decay") == "constant":
        raise Ignored("the rate is constant")
    return value


def _decay(value: str, old: dict) -> str:
    if value not in ("linear", "invsqrt", "constant"):
        raise Refused
    return value if value == "constant" else f"uniter_{value}"


def _algorithm(value: str, old: dict) -> str:
    if value != "adamw":
        raise Refused
    return "adamw_original"


def _window(value: str, old: dict) -> str:
    if value == "none":
        raise Ignored("there are no hard negatives")
    if value not in ("top", "random") and not all(part.isdigit() for part in value.split("-", 1)):
        raise Refused
    return value


def _count(value: int, old: dict) -> int:
    if old.get("hard_negatives_sampling", "none") == "none":
        raise Ignored("hard_negatives_sampling is none")
    return value


def _from_epoch(value: bool, old: dict) -> int:
    _count(0, old)
    return 1 if value else 2


def _cpu(value: bool, old: dict) -> str:
    if not value:
        raise Ignored("device auto takes the GPU where there is one")
    return "cpu"


def _with_corpus(value: list[dict], old: dict) -> Any:
    strangers = {entry["name"] for entry in value} - {entry["name"] for entry in old.get("train_datasets", [])}
    if strangers:
        raise Refused(f"{', '.join(sorted(strangers))} is not in train_datasets; add val_captions to a corpus by hand")
    raise Ignored("beside the corpus of the same name")


def _corpora(value: list[dict], old: dict) -> list[dict]:
    """One corpus a (db, img) pair.

    The pairs of one name share its mix ratio by their numbers of captions, so that each caption is drawn as often as in
    the original; in equal parts where a database is not there to be counted.
    """
    val = {entry["name"]: entry for entry in old.get("val_datasets", [])}
    result = []
    for entry in value:
        name, (dbs, imgs, tasks, ratios) = entry["name"], _lists(entry)
        sizes = [_number_of_captions(db) for db in dbs]
        for n, (db, img) in enumerate(zip(dbs, imgs)):
            share = sizes[n] / sum(sizes) if all(sizes) else 1 / len(sizes)
            corpus = {
                "name": name if len(dbs) == 1 else f"{name}_{n + 1}",
                "captions": _folder(db, old),
                "regions": _folder(img, old),
                "tasks": {TASKS[task]: round(ratio * share, 4) for task, ratio in zip(tasks, ratios)},
            }
            if n == 0 and name in val:
                corpus["val_captions"] = _one_folder(val[name]["db"], old)
                corpus["val_regions"] = _one_folder(val[name]["img"], old)
            result.append(corpus)
    return result


def _lists(entry: dict) -> tuple[list, list, list, list]:
    known = {"name", "db", "img", "tasks", "mix_ratio"}
    if set(entry) != known:
        raise Refused(f"corpus {entry.get('name')} has keys {sorted(entry)}, expected {sorted(known)}")
    strangers = [task for task in entry["tasks"] if task not in TASKS]
    if strangers:
        raise Refused(f"corpus {entry['name']} has tasks {strangers}; known are {', '.join(TASKS)}")
    if len(entry["tasks"]) != len(entry["mix_ratio"]) or len(entry["db"]) != len(entry["img"]):
        raise Refused(f"corpus {entry['name']}: tasks and mix_ratio, and db and img, must be equally long")
    return entry["db"], entry["img"], entry["tasks"], entry["mix_ratio"]


def _number_of_captions(db: str) -> int:
    try:
        return len(read_json(Path(db, "id2len.json")))
    except BadInput:
        return 0


# ---- the table -------------------------------------------------------------------------------------------------------


def _all(name: str) -> dict[Kind, str]:
    return {"pretrain": name, "finetune": name, "eval": name}


def _training(name: str) -> dict[Kind, str]:
    return {"pretrain": name, "finetune": name}


_ITM = "UNITER's cross-attention matching; here the other pairs of the batch are the negatives"
_CONVERTED = "the original's weights file goes through `scripts/convert_checkpoint.py` first; name the folder it makes"
_LAUNCHER = "the launcher says it"

# fmt: off
KEYS = (
    # data
    Key("train_datasets", {"pretrain": "data"}, "one entry a (db, img) pair; the pairs of one corpus share its `mix_ratio` by captions; `itm` is `cmr`, `mlm` is `vmlm`", _corpora),
    Key("val_datasets", {"pretrain": "data.val_captions"}, "with `data.val_regions` in the corpus of the same name; its tasks are those of training", _with_corpus),
    Key("train_txt_dbs", {"finetune": "train_captions"}, "several are joined", _folders),
    Key("train_img_dbs", {"finetune": "train_regions"}, "one for each text database, or one for all", _img_folders),
    Key("train_txt_db", {"finetune": "train_captions"}, "", _folder),
    Key("train_img_db", {"finetune": "train_regions"}, "", _folder),
    Key("val_txt_db", {"finetune": "val_captions", "eval": "captions"}, "`test_txt_db` goes over it in evaluation", _folder),
    Key("val_img_db", {"finetune": "val_regions", "eval": "regions"}, "`test_img_db` goes over it in evaluation", _folder),
    Key("test_txt_db", {"eval": "captions"}, "fine-tuning never sees the test split: `eval_itm.py`", _folder),
    Key("test_img_db", {"eval": "regions"}, "fine-tuning never sees the test split: `eval_itm.py`", _folder),
    Key("txt_db", {"eval": "captions"}, "", _unless_given("test_txt_db")),
    Key("img_db", {"eval": "regions"}, "", _unless_given("test_img_db")),
    Key("compressed_db", {}, "the layout that exists is found", _ignore),
    Key("conf_th", _all("boxes.conf_th")),
    Key("max_bb", _all("boxes.max_bb")),
    Key("min_bb", _all("boxes.min_bb")),
    Key("num_bb", _all("boxes.num_bb")),
    Key("max_txt_len", _training("max_txt_len"), "ours counts [CLS] and [SEP]: 60 becomes 62, -1 stays; evaluation drops no caption", lambda value, old: value + 2 if value >= 0 else -1),
    Key("img_meta", {}, "an index holds its ids, and `scripts/search.py --photos` finds the pictures", _ignore),
    Key("n_workers", _all("num_workers")),
    Key("pin_mem", {}, "pinned wherever there is a GPU", _ignore),
    # model
    Key("txt_model_type", {}, "the weights' `config.json` says it; refused beyond BERT's family", _tower_type),
    Key("img_model_type", {}, "the weights' `config.json` says it; refused beyond BERT's family", _tower_type),
    Key("txt_model_config", _training("model.txt_init"), "a Hugging Face name: name a folder of it", _tower_name("txt_checkpoint")),
    Key("img_model_config", _training("model.img_init"), "ignored where it is a file of sizes, which come with the weights", _tower_name("img_checkpoint")),
    Key("txt_checkpoint", _training("model.txt_init"), _CONVERTED, _tower_weights),
    Key("img_checkpoint", _training("model.img_init"), _CONVERTED, _tower_weights),
    Key("checkpoint", {"pretrain": "model.img_init", "eval": "checkpoint"}, "UNITER's weights in pre-training; in evaluation `biencoder_checkpoint` goes first", _tower_name("img_checkpoint")),
    Key("biencoder_checkpoint", {"pretrain": "model.init", "finetune": "model.init", "eval": "checkpoint"}, f"{_CONVERTED}; it gives both towers", _folder),
    Key("model_config", {}, "sizes come with the weights; random ones take `model.hidden_size` and its neighbours", _ignore),
    Key("project_dim", _training("model.project_dim"), "evaluation takes the checkpoint's"),
    Key("cls_concat", {}, "a head on concatenated [CLS] vectors is not here; refused unless empty", _only_off),
    Key("seperate_caption_encoder", {}, "machine-written captions go through the text tower; refused if true", _only_off),
    Key("dropout", _training("model.dropout"), "the original read it, and kept that of the towers' own configs (0.1)"),
    Key("fix_txt_encoder", _training("model.freeze_img"), "by mistake it froze the **image** tower; for what its name says set `model.freeze_txt`", _off_by_default),
    Key("fix_img_encoder", _training("model.freeze_img"), "", _off_by_default),
    # optimisation
    Key("learning_rate", _training("optim.lr")),
    Key("optim", _training("optim.algorithm"), "`adamw` is `adamw_original`; adam and adamax are refused", _algorithm),
    Key("betas", {"pretrain": "optim.betas"}, "fine-tuning did not hand it on: 0.9, 0.999"),
    Key("adam_betas", {"pretrain": "optim.betas"}, "fine-tuning did not hand it on: 0.9, 0.999"),
    Key("adam_eps", _training("optim.eps")),
    Key("weight_decay", _training("optim.weight_decay"), "0 in fine-tuning where it is absent"),
    Key("grad_norm", _training("optim.grad_clip"), "-1 is 0", lambda value, old: max(value, 0.0)),
    Key("max_grad_norm", _training("optim.grad_clip"), "-1 is 0; it goes over `grad_norm`", lambda value, old: max(value, 0.0)),
    Key("decay", {"pretrain": "optim.schedule"}, "`linear` is `uniter_linear`, `invsqrt` is `uniter_invsqrt`; fine-tuning's is `hf_linear`", _decay),
    Key("warmup_steps", {"pretrain": "optim.warmup_steps"}, "fine-tuning ignored it and took a tenth of all steps: `optim.warmup_ratio: 0.1`", _warmup),
    Key("lr_mul", {}, "a question-answering head's rate; there is no such head", _ignore),
    Key("num_train_steps", {"pretrain": "num_steps"}, "fine-tuning counts epochs"),
    Key("num_train_epochs", {"finetune": "epochs"}),
    Key("train_batch_size", {"pretrain": "tokens_per_batch", "finetune": "batch_size"}, "tokens in pre-training, pairs in fine-tuning; both per GPU"),
    Key("val_batch_size", {"eval": "batch_size"}, "training validates in its own batches"),
    Key("inf_minibatch_size", {}, "images of one query in UNITER's matching", _ignore),
    Key("gradient_accumulation_steps", _training("grad_accumulation")),
    Key("valid_steps", {"pretrain": "valid_every"}, "fine-tuning validates after every epoch"),
    Key("log_steps", _training("log_every")),
    Key("seed", _training("seed"), "the original's fine-tuning read it and did not set it"),
    Key("fp16", _all("precision"), "true, apex's O2, is `fp16` (on a CPU rather `bf16`); false is `fp32`", lambda value, old: "fp16" if value else "fp32"),
    Key("fp16_opt_level", {}, "apex's; `precision` says it", _ignore),
    Key("loss_scale", {}, "the scale of `fp16` follows the gradients; the others need none", _ignore),
    # objectives
    Key("mrm_prob", {"pretrain": "region_mask_prob"}),
    Key("itm_neg_prob", {}, _ITM, _ignore),
    Key("itm_ot_lambda", {}, "UNITER's optimal transport loss, which two towers without cross-attention have not", _ignore),
    Key("margin", {}, _ITM, _ignore),
    Key("negative_size", {}, _ITM, _ignore),
    Key("hard_neg_size", {}, _ITM, _ignore),
    Key("steps_per_hard_neg", {}, f"{_ITM}; `hard_negatives.every` counts epochs", _ignore),
    Key("hard_negatives_sampling", {"finetune": "hard_negatives.window"}, "`top`, `random`, `10-20`; `none` is `hard_negatives.count: 0`", _window),
    Key("num_hard_negatives", {"finetune": "hard_negatives.count"}, "0 where the sampling is `none`", _count),
    Key("sample_init_hard_negatives", {"finetune": "hard_negatives.from_epoch"}, "true is 1, mined with the weights it starts from; false is 2", _from_epoch),
    Key("caption_score_weight", {"finetune": "caption_score_weight", "eval": "caption_score_weight"}, "needs `image_captions`, the machine-written captions", _off_by_default),
    Key("itm_global_file", {}, "the teacher's scores are not read from the original's pickles: compute them again and name them in `distill.scores`; refused if given", _only_off),
    Key("teacher_checkpoint", {}, "the teacher's scores are computed beforehand: `distill.scores`; refused if given", _only_off),
    Key("T", {"finetune": "distill.temperature"}, "of the teacher's scores"),
    Key("temperature", {"finetune": "distill.temperature"}, "of the teacher's scores"),
    # evaluation
    Key("hnsw_index", {"eval": "search"}, "true is `hnsw`, false `exact`; fine-tuning validates exactly", lambda value, old: "hnsw" if value else "exact"),
    Key("retrieval_mode", {}, "both directions are always computed", _ignore),
    Key("full_val", {}, "validation always ranks the whole split", _ignore),
    # the run
    Key("output_dir", _all("output_dir"), "", _folder),
    Key("no_cuda", _all("device"), "true is `cpu`", _cpu),
    Key("n_gpu", {}, _LAUNCHER, _ignore),
    Key("local_rank", {}, _LAUNCHER, _ignore),
    Key("rank", {}, _LAUNCHER, _ignore),
    Key("config", {}, "the file's own name, in the copy that a run kept", _ignore),
)
# fmt: on
