"""Every key of LightningDOT's JSON configs, and what it is here: the one table by which ``scripts/convert_config.py`` translates,
and which docs/from-original.md shows. UNITER's retrieval has a table of its own, `model.original.uniter_retrieval`."""

from __future__ import annotations

from typing import Any

from model.original.keys import Key, everywhere, in_training, no_effect, taken_in
from model.original.kinds import Kind
from model.original.values import (
    algorithm,
    both_towers,
    clip,
    corpora,
    cpu,
    epochs,
    folder,
    folders,
    fusion,
    hard_negatives,
    ignored,
    img_folders,
    normalized_logits,
    of_teacher,
    off_by_default,
    one_tower,
    only_in_training,
    precision,
    sampling,
    schedule,
    teacher,
    text_length,
    third_view,
    third_view_weight,
    tower_name,
    tower_type,
    unless_given,
    val_corpora,
    val_folder,
    warmup,
    with_count,
)  # fmt: skip

# What the original did without a key that says so; keys that do say so go over it.
ALWAYS: dict[Kind, dict[str, Any]] = {
    "pretrain": {
        "siblings": "keep",
        "negatives": "own_rank",
        "word_mask_prob": 0.15,
        "optim.no_decay": "original",
        "optim.eps": 1e-6,
        "optim.accumulation": "sum",
    },
    "finetune": {
        "siblings": "keep",
        "negatives": "own_rank",
        "third_view": "loss",
        "hard_negatives.window": "original",
        "hard_negatives.from_epoch": 1,
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

_CONVERTED = "the folder that `scripts/convert_checkpoint.py` makes of the file; \"none\" is none"
_LAUNCHER = "the launcher says it"
_NAME = "a name, without effect on results"
_FIXED = "fine-tuning does not read it"
_TEST = "fine-tuning never sees the test split: `eval_itm.py`"
_TEACHER = "in fine-tuning and evaluation there is no teacher"


def _each(pretrain: Any, finetune: Any, evaluation: bool = False) -> dict[Kind, Any]:
    """Defaults of pre-training and of fine-tuning, the latter's also those of evaluation where that reads the key."""
    return {"pretrain": pretrain, "finetune": finetune} | ({"eval": finetune} if evaluation else {})


# fmt: off
KEYS = (
    # data
    Key("train_datasets", {"pretrain": "data"}, "a corpus each; several databases of one are joined; `itm` is `cmr`, `mlm` is `vmlm`", corpora),
    Key("val_datasets", {"pretrain": ("data.val_captions", "data.val_regions")}, "in the corpus of the same name; its tasks are those of training", val_corpora),
    Key("train_txt_dbs", {"finetune": "train_captions"}, "several are joined", folders),
    Key("train_img_dbs", {"finetune": "train_regions"}, "one for each text database, or one for all", img_folders),
    Key("train_txt_db", {"finetune": "train_captions"}, "", unless_given("train_txt_dbs")),
    Key("train_img_db", {"finetune": "train_regions"}, "", unless_given("train_img_dbs")),
    Key("val_txt_db", {"finetune": "val_captions", "eval": "captions"}, "in evaluation beside a test split: by a second command, which is printed", val_folder("test_txt_db")),
    Key("val_img_db", {"finetune": "val_regions", "eval": "regions"}, "as `val_txt_db`", val_folder("test_img_db")),
    Key("test_txt_db", {"eval": "captions"}, "", folder, idle=_TEST),
    Key("test_img_db", {"eval": "regions"}, "", folder, idle=_TEST),
    Key("txt_db", {"eval": "captions"}, "", unless_given("test_txt_db", "val_txt_db")),
    Key("img_db", {"eval": "regions"}, "", unless_given("test_img_db", "val_img_db")),
    taken_in("txt_db_mapping", "stands for `/db` at the start of a path: written out"),
    taken_in("img_db_mapping", "stands for `/img` at the start of a path: written out"),
    taken_in("pretrain_mapping", "stands for `/pretrain` at the start of a path: written out"),
    no_effect("compressed_db", "the layout that exists is found"),
    Key("conf_th", everywhere("boxes.conf_th"), default=_each(0.2, 0.2, True)),
    Key("max_bb", everywhere("boxes.max_bb"), default=_each(100, 100, True)),
    Key("min_bb", everywhere("boxes.min_bb"), default=_each(10, 10, True)),
    Key("num_bb", everywhere("boxes.num_bb"), default=_each(36, 36, True)),
    Key("max_txt_len", in_training("max_txt_len"), "ours counts [CLS] and [SEP]: 60 becomes 62, -1 stays", text_length, _each(60, 64), "evaluation drops no caption"),
    no_effect("img_meta", "says where the pictures of a search are: `scripts/search.py --photos`"),
    Key("n_workers", everywhere("workers"), default=_each(4, 2, True)),
    no_effect("pin_mem", "pinned wherever there is a GPU"),
    # model
    Key("txt_model_type", {}, "the weights' `config.json` says it; refused beyond BERT's family", tower_type),
    Key("img_model_type", {}, "the weights' `config.json` says it; refused beyond BERT's family", tower_type),
    Key("txt_model_config", in_training("model.txt_init"), "a name of Hugging Face: a folder of it; a JSON file: its sizes come with the weights", tower_name("txt_checkpoint"), idle="in evaluation the checkpoint's `config.json` says it"),
    Key("img_model_config", in_training("model.img_init"), "a name of Hugging Face: a folder of it; a JSON file: its sizes come with the weights", tower_name("img_checkpoint"), idle="in evaluation the checkpoint's `config.json` says it"),
    Key("txt_checkpoint", in_training("model.txt_init"), _CONVERTED, one_tower("txt_model_config")),
    Key("img_checkpoint", in_training("model.img_init"), _CONVERTED, one_tower("img_model_config")),
    Key("biencoder_checkpoint", in_training("model.init") | {"eval": "checkpoint"}, f"{_CONVERTED}; both towers. Evaluation takes it as the second word of its command", both_towers),
    no_effect("checkpoint", "LightningDOT's commands do not use it: `img_checkpoint`, `txt_checkpoint`, `biencoder_checkpoint`"),
    no_effect("model_config", "sizes come with the weights; random ones take `model.hidden_size` and its neighbours"),
    Key("project_dim", in_training("model.project_dim"), "0 is no projection", default=_each(0, 0), idle="in evaluation the checkpoint's `config.json` says it"),
    Key("cls_concat", {"pretrain": "fusion"}, "`\"\"` is `none`", fusion, {"pretrain": ""}, "fine-tuning does not use it"),
    no_effect("seperate_caption_encoder", "never read: machine-written captions go through the text tower"),
    Key("dropout", {"pretrain": "model.dropout"}, default={"pretrain": 0.1}, idle=f"{_FIXED}, even when given: the rate is that of the weights' `config.json`"),
    Key("fix_txt_encoder", in_training("model.freeze_txt"), "what its name says; by a slip both towers ran without gradients there, and nothing was trained: a faithful copy is useless", off_by_default),
    Key("fix_img_encoder", in_training("model.freeze_img"), "", off_by_default),
    # optimisation
    Key("learning_rate", in_training("optim.lr"), default=_each(3e-5, 1e-5)),
    Key("optim", {"pretrain": "optim.algorithm"}, "adam and adamax are refused", algorithm, {"pretrain": "adamw"}, f"{_FIXED}: AdamW"),
    Key("betas", {"pretrain": "optim.betas"}, "", default={"pretrain": [0.9, 0.98]}, idle=f"{_FIXED}, even when given: 0.9, 0.999"),
    Key("adam_betas", {}, "`betas` is what pre-training reads; fine-tuning has 0.9, 0.999", ignored),
    Key("adam_eps", {}, "1e-6 in pre-training, 1e-8 in fine-tuning, whatever it says", ignored),
    Key("weight_decay", {"pretrain": "optim.weight_decay"}, default={"pretrain": 0.01}, idle=f"{_FIXED}, even when given: 0"),
    Key("grad_norm", {"pretrain": "optim.grad_clip"}, "-1 is 0; of the summed gradients of all accumulated batches (`optim.accumulation: sum`)", clip, {"pretrain": 2.0}, f"{_FIXED}: `max_grad_norm`"),
    Key("max_grad_norm", {"finetune": "optim.grad_clip"}, "-1 is 0", clip, {"finetune": 2.0}, "pre-training reads `grad_norm`"),
    Key("decay", {"pretrain": "optim.schedule"}, "`linear` is `uniter_linear`, `invsqrt` is `uniter_invsqrt`", schedule, {"pretrain": "linear"}, f"{_FIXED}: `hf_linear`"),
    Key("warmup_steps", {"pretrain": "optim.warmup_steps"}, "", warmup, {"pretrain": 10000}, f"{_FIXED}: a tenth of all steps, `optim.warmup_ratio: 0.1`"),
    no_effect("lr_mul", "a question-answering head's rate; there is no such head"),
    Key("num_train_steps", {"pretrain": "num_steps"}, default={"pretrain": 100000}, idle="fine-tuning counts epochs"),
    Key("num_train_epochs", {"finetune": "epochs"}, "0 is no epoch at all, and is refused", epochs, {"finetune": 0}),
    Key("train_batch_size", {"pretrain": "tokens_per_batch", "finetune": "batch_size"}, "tokens in pre-training, pairs in fine-tuning; both per GPU", default=_each(4096, 80)),
    no_effect("val_batch_size", "training validates in its own batches; evaluation reads `valid_batch_size`"),
    Key("valid_batch_size", {"eval": "batch_size"}, "changes no result", default={"eval": 80}, idle="training validates in its own batches"),
    Key("gradient_accumulation_steps", in_training("grad_accumulation"), "pre-training sums the batches' gradients, fine-tuning takes their mean", default=_each(16, 1)),
    Key("valid_steps", {"pretrain": "valid_every"}, default={"pretrain": 1000}, idle="fine-tuning validates after every epoch"),
    Key("log_steps", in_training("log_every"), "how often it logs"),
    no_effect("log_result_step", _NAME),
    no_effect("save_all_epochs", "`keep_checkpoints` says how many are kept"),
    Key("seed", in_training("seed"), "fine-tuning read it and did not set it", default=_each(42, 42), idle="evaluation draws nothing"),
    Key("fp16", everywhere("precision"), "true is `fp16` (on a CPU rather `bf16`), false is `fp32`", precision, _each(False, False, True)),
    taken_in("fp16_opt_level", "`precision` says it: O0 is `fp32`; O3 is refused"),
    no_effect("loss_scale", "the scale of `fp16` follows the gradients; the others need none"),
    # objectives
    Key("mrm_prob", {"pretrain": "region_mask_prob"}, default={"pretrain": 0.15}),
    no_effect("itm_neg_prob", "UNITER's matching; of `cmr` every caption keeps its own image, and the other pairs of the batch are the negatives"),
    Key("itm_ot_lambda", {}, "UNITER's optimal transport loss; refused unless 0", only_in_training(None, 0)),
    no_effect("neg_size", "never read"),
    no_effect("nce_temp", "never read: scores have no temperature"),
    no_effect("ot_pos_only", "never read"),
    Key("num_hard_negatives", {"finetune": ("hard_negatives.count", "hard_negatives.window", "hard_negatives.from_epoch")}, "n are drawn of the best max(50, 2n + 10), at most 1,000, mined before every epoch", hard_negatives, {"finetune": 0}),
    Key("hard_negatives_sampling", {}, "logged, chooses nothing; with `num_hard_negatives` 0 anything but `none` stops the original: refused", sampling, {"finetune": "none"}),
    Key("sample_init_hard_negatives", {}, "must be true where there are hard negatives: they are mined before the first epoch", with_count),
    Key("caption_score_weight", {"finetune": "caption_score_weight"}, "share of the third view", third_view_weight, {"finetune": 0.0}, "in evaluation it changes nothing: it is of the loss only"),
    Key("itm_global_file", {"finetune": "image_captions"}, "its `caption_multiple` are the third view; the text database that `scripts/build_captions.py --format image-meta` makes of it", third_view, idle="in evaluation it changes nothing: it is of the loss only"),
    Key("teacher_checkpoint", {"pretrain": "teacher.checkpoint", "finetune": "distill.scores"}, "a UNITER teaches masked words and regions; in fine-tuning it cannot run there, and is refused: `distill.scores` is our way", teacher),
    Key("T", {"pretrain": "teacher.temperature"}, "where there is a `teacher_checkpoint`", of_teacher, {"pretrain": 1.0}, _TEACHER),
    Key("kd_loss_weight", {"pretrain": "teacher.weight"}, "where there is a `teacher_checkpoint`", of_teacher, {"pretrain": 0.5}, _TEACHER),
    Key("normalized_logits", {}, "refused where there is a `teacher_checkpoint`: what it does is not known here", normalized_logits),
    no_effect("inf_minibatch_size", "how many pairs UNITER scores at a time"),
    no_effect("negative_size", "of UNITER's matching; here the other pairs of the batch are the negatives"),
    # evaluation
    Key("hnsw_index", {"eval": "search"}, "true is `hnsw`, false `exact`", lambda value, old: "hnsw" if value else "exact", idle="validation is exact"),
    Key("retrieval_mode", {}, "both directions are trained and measured; one alone is refused", only_in_training(None, "both")),
    no_effect("full_val", "validation always ranks the whole split"),
    # the run
    Key("output_dir", everywhere("out"), "", folder),
    Key("no_cuda", everywhere("device"), "true is `cpu`", cpu),
    no_effect("project_name", _NAME),
    no_effect("expr_name_prefix", _NAME),
    no_effect("n_gpu", _LAUNCHER),
    no_effect("local_rank", _LAUNCHER),
    no_effect("rank", _LAUNCHER),
    no_effect("config", "the file's own name, in the copy that a run kept"),
)
# fmt: on
