"""What one of the original's JSON files configures, seen from its keys; and which of them have no place here."""

from __future__ import annotations

import re
from typing import Literal

from data.errors import BadInput

Kind = Literal["pretrain", "finetune", "eval", "rerank"]

# Only LightningDOT's commands have these: two towers, its way of counting epochs, its meta data.
LIGHTNINGDOT = frozenset(
    "txt_model_type txt_model_config txt_checkpoint img_model_type img_model_config img_checkpoint biencoder_checkpoint project_dim "
    "cls_concat num_train_epochs itm_global_file num_hard_negatives caption_score_weight max_grad_norm fix_txt_encoder "
    "fix_img_encoder neg_size nce_temp retrieval_mode valid_batch_size".split()
)
RETRIEVAL = frozenset({"negative_size", "hard_neg_size", "margin"})  # of UNITER's image–text retrieval
OTHER_KEYS = frozenset({"checkpoint_from", "lr_mul", "mask_dir", "mlp", "model", "use_img_type"})  # of UNITER's other tasks
OTHER_TASKS = {
    r"^vqa": "visual question answering (VQA)",
    r"^ve_": "visual entailment (VE)",
    r"^nlvr2": "reasoning over two pictures (NLVR2)",
    r"^vcr": "visual commonsense reasoning (VCR)",
    r"^refcoco": "referring expressions (RE)",
}


def kind_of_config(old: dict, source: str) -> Kind:
    """What a config of the original configures.

    Raises:
        BadInput: it is no run of LightningDOT and no image–text retrieval of UNITER; the message begins with ``source``.
    """
    if "num_hidden_layers" in old and not {"output_dir", "train_datasets", "val_txt_db"} & set(old):
        raise BadInput(
            f"{source}: the sizes of an encoder, not the settings of a run: give it to scripts/convert_checkpoint.py, with the "
            "weights that it belongs to: --text-config for the text tower's, --image-config for the image tower's or a UNITER's"
        )
    trains = bool(old.get("train_txt_dbs") or old.get("train_txt_db"))
    if LIGHTNINGDOT & set(old):
        return "pretrain" if old.get("train_datasets") else "finetune" if trains else "eval"
    if old.get("train_datasets"):
        raise BadInput(f"{source}: {_pretraining_of_uniter(old)}")
    task = _other_task(old)
    if task is None and RETRIEVAL & set(old):
        return "rerank"
    if task is None and {"checkpoint", "model_config"} <= set(old) and trains:
        task = "a task with a head of its own"
    if task is not None:
        raise BadInput(f"{source}: UNITER's {task}, no image–text retrieval, which is all that there is here")
    return "finetune" if trains else "eval"


def _pretraining_of_uniter(old: dict) -> str:
    if any("vcr" in str(entry.get("name")) for entry in old["train_datasets"]):
        return "UNITER's pre-training for visual commonsense reasoning (VCR), no image–text retrieval, which is all that there is here"
    return (
        "UNITER's own pre-training, in which one encoder reads caption and regions together: its matching of pairs (itm_neg_prob, "
        "itm_ot_lambda) is no objective of two towers. Its weights convert: scripts/convert_checkpoint.py"
    )


def _other_task(old: dict) -> str | None:
    """The task of UNITER that is no retrieval, by the names of its text databases or by its keys."""
    found = old.get("train_txt_dbs") or old.get("train_txt_db") or []
    names = [str(each).rstrip("/").rpartition("/")[2] for each in ([found] if isinstance(found, str) else found)]
    for pattern, task in OTHER_TASKS.items():
        if any(re.search(pattern, name) for name in names):
            return task
    return "a task with a head of its own" if OTHER_KEYS & set(old) else None
