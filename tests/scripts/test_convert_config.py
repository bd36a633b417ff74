"""The original's JSON configs, translated: every setting against what the original takes, what is left out, the shipped recipes.

The tables of defaults and the names of keys here are written by hand and know nothing of the converter's own.
"""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest

import eval_itm
import pretrain
import train_itm
from configs import cli
from configs.settings import inner_dataclass, names_and_types
from data.errors import BadInput
from model.original import settings as lightningdot
from model.original import uniter_retrieval
from model.original.recipe import keys_and_fixed
from scripts import convert_config
from tests.original_configs import (
    BOXES,
    CLASSES,
    EVAL,
    FLICKR,
    ITM,
    PRETRAIN,
    PUBLISHED,
    PUBLISHED_KEYS,
    TOWERS,
    corpus,
    setting,
)

ROOT = Path(__file__).resolve().parents[2]
ABSENT_IN_PRETRAINING = BOXES | {
    "train_batch_size": 4096, "val_batch_size": 4096, "gradient_accumulation_steps": 16, "learning_rate": 3e-5, "grad_norm": 2.0,
    "max_txt_len": 60, "mrm_prob": 0.15, "itm_neg_prob": 0.5, "itm_ot_lambda": 0.0, "cls_concat": "", "valid_steps": 1000,
    "num_train_steps": 100000, "warmup_steps": 10000, "optim": "adamw", "betas": [0.9, 0.98], "decay": "linear",
    "weight_decay": 0.01, "dropout": 0.1, "seed": 42, "n_workers": 4, "project_dim": 0, "fp16": False, "neg_size": 128,
    "nce_temp": 1.0, "ot_pos_only": False, "teacher_checkpoint": None, "T": 1.0, "kd_loss_weight": 0.5, "normalized_logits": False,
}  # fmt: skip
ABSENT_IN_FINETUNING = BOXES | {
    "train_batch_size": 80, "valid_batch_size": 80, "gradient_accumulation_steps": 1, "learning_rate": 1e-5, "max_grad_norm": 2.0,
    "max_txt_len": 64, "valid_steps": 500, "num_train_steps": 5000, "num_train_epochs": 0, "warmup_steps": 500, "seed": 42,
    "n_workers": 2, "project_dim": 0, "num_hard_negatives": 0, "hard_negatives_sampling": "none", "caption_score_weight": 0.0,
    "inf_minibatch_size": 400, "negative_size": 10, "retrieval_mode": "both", "cls_concat": "", "fp16": False,
    "fp16_opt_level": "O1", "teacher_checkpoint": None, "T": 1.0, "kd_loss_weight": 1.0,
}  # fmt: skip
ABSENT_IN_UNITERS_RETRIEVAL = BOXES | {
    "max_txt_len": 60, "margin": 0.2, "learning_rate": 5e-5, "gradient_accumulation_steps": 1, "optim": "adamw", "betas": [0.9, 0.98],
    "decay": "linear", "dropout": 0.1, "weight_decay": 0.01, "grad_norm": 2.0, "seed": 42, "n_workers": 4, "fp16": False,
    "hard_neg_size": 0,
}  # fmt: skip
NAMES_ALONE = """project_name expr_name_prefix log_result_step save_all_epochs pin_mem local_rank rank compressed_db txt_db_mapping
    img_db_mapping pretrain_mapping img_meta checkpoint model_config seperate_caption_encoder sample_init_hard_negatives
    biencoder_checkpoint txt_checkpoint fix_img_encoder fix_txt_encoder fp16_opt_level no_cuda n_gpu config""".split()
WITHOUT_DEFAULTS = {
    "pretrain": ("train_datasets", "val_datasets", "output_dir", "txt_model_config", "img_checkpoint"),
    "finetune": ("train_txt_dbs", "train_img_dbs", "val_txt_db", "val_img_db", "output_dir", "num_train_epochs", "txt_model_config"),
    "eval": ("test_txt_db", "test_img_db", "output_dir", "txt_model_config"),
    "rerank": ("train_txt_dbs", "train_img_dbs", "val_txt_db", "val_img_db", "output_dir", "checkpoint", "train_batch_size",
               "negative_size", "num_train_steps", "warmup_steps"),
}  # fmt: skip
MINIMAL = {kind: {key: PUBLISHED[kind][key] for key in keys} for kind, keys in WITHOUT_DEFAULTS.items()}
HPS = {  # of a run: every key, with its value or its default
    "pretrain": ABSENT_IN_PRETRAINING | dict.fromkeys(NAMES_ALONE) | {"img_db": None} | PRETRAIN | {"txt_checkpoint": "none"},
    "finetune": ABSENT_IN_FINETUNING | dict.fromkeys(NAMES_ALONE) | FLICKR | {"biencoder_checkpoint": "none", "local_rank": -1},
    "eval": ABSENT_IN_FINETUNING | dict.fromkeys(NAMES_ALONE) | EVAL | {"biencoder_checkpoint": "/pretrain/flickr-ft.pt"},
    "rerank": ABSENT_IN_UNITERS_RETRIEVAL | {"rank": 0, "local_rank": -1, "n_gpu": 16, "config": None} | ITM,
}  # fmt: skip


# ---- every setting against what the original takes -------------------------------------------------------------------


def expected_pretraining(old: dict) -> dict:
    old = ABSENT_IN_PRETRAINING | old
    val = {entry["name"]: entry for entry in old["val_datasets"]}
    data = []
    for entry in old["train_datasets"]:
        names = {"itm": "cmr", "mlm": "vmlm"}
        tasks = {names.get(task, task): ratio for task, ratio in zip(entry["tasks"], entry["mix_ratio"])}
        places = [[folder.rstrip("/") for folder in own[key]] for own in (entry, val[entry["name"]]) for key in ("db", "img")]
        single = [place[0] if len(set(place)) == 1 else place for place in places]
        data.append((entry["name"], *single, tasks))
    return {
        "data": data, "out": old["output_dir"], "tokens_per_batch": old["train_batch_size"],
        "grad_accumulation": old["gradient_accumulation_steps"], "optim.accumulation": "sum", "negatives": "own_rank",
        "optim.lr": old["learning_rate"], "optim.grad_clip": old["grad_norm"], "max_txt_len": old["max_txt_len"] + 2,
        "boxes.conf_th": old["conf_th"], "boxes.max_bb": old["max_bb"], "boxes.min_bb": old["min_bb"], "boxes.num_bb": old["num_bb"],
        "region_mask_prob": old["mrm_prob"], "word_mask_prob": 0.15, "fusion": old["cls_concat"] or "none", "siblings": "keep",
        "valid_every": old["valid_steps"], "num_steps": old["num_train_steps"], "optim.warmup_steps": old["warmup_steps"],
        "optim.warmup_ratio": 0.0, "optim.algorithm": "adamw_original", "optim.schedule": "uniter_linear",
        "optim.betas": old["betas"], "optim.eps": 1e-6, "optim.weight_decay": old["weight_decay"], "optim.no_decay": "original",
        "model.dropout": old["dropout"], "model.project_dim": old["project_dim"], "seed": old["seed"],
        "workers": old["n_workers"], "precision": "fp16" if old["fp16"] else "fp32", "loss.name": "softmax",
        "loss.temperature": None, "valid_batches": 0, "data_root": ".", "teacher.checkpoint": None, "teacher.weight": 0.5,
        "teacher.temperature": 1.0, **expected_towers(),
    }  # fmt: skip


def expected_towers() -> dict:
    return {
        "model.kind": "lightningdot", "model.init": None, "model.txt_init": "bert-base-cased",
        "model.img_init": "data/model/uniter-base", "model.cls_token_id": 101, "model.similarity": None,
        "model.freeze_txt": False, "model.freeze_img": False,
    }  # fmt: skip


def expected_finetuning(old: dict) -> dict:
    given, old = old, ABSENT_IN_FINETUNING | old
    towers = expected_towers() if "img_checkpoint" in given else expected_towers() | {"model.img_init": None}
    return {
        "out": old["output_dir"], "train_captions": old["train_txt_dbs"][0].rstrip("/"),
        "train_regions": old["train_img_dbs"][0].rstrip("/"), "val_captions": old["val_txt_db"].rstrip("/"),
        "val_regions": old["val_img_db"].rstrip("/"), "batch_size": old["train_batch_size"],
        "grad_accumulation": old["gradient_accumulation_steps"], "optim.accumulation": "mean", "negatives": "own_rank",
        "optim.lr": old["learning_rate"], "optim.grad_clip": old["max_grad_norm"], "max_txt_len": old["max_txt_len"] + 2,
        "boxes.conf_th": old["conf_th"], "boxes.max_bb": old["max_bb"], "boxes.min_bb": old["min_bb"], "boxes.num_bb": old["num_bb"],
        "epochs": old["num_train_epochs"], "num_steps": 0, "optim.warmup_steps": 0, "optim.warmup_ratio": 0.1,
        "optim.algorithm": "adamw_original", "optim.schedule": "hf_linear", "optim.betas": [0.9, 0.999], "optim.eps": 1e-8,
        "optim.weight_decay": 0.0, "optim.no_decay": "original", "model.dropout": None, "model.project_dim": old["project_dim"],
        "seed": old["seed"], "workers": old["n_workers"], "precision": "fp16" if old["fp16"] else "fp32", "siblings": "keep",
        "hard_negatives.count": old["num_hard_negatives"], "hard_negatives.window": "original", "hard_negatives.from_epoch": 1,
        "hard_negatives.every": 1, "third_view": "loss", "caption_score_weight": 0.0, "image_captions": None,
        "val_image_captions": None, "loss.name": "softmax", "loss.temperature": None, "distill.scores": None,
        "distill.weight": 0.0, "languages": None, "language_temperature": 1.0, "data_root": ".", **towers,
    }  # fmt: skip


def expected_evaluation(old: dict) -> dict:
    old = ABSENT_IN_FINETUNING | old
    given = old.get("biencoder_checkpoint")
    return {
        "checkpoint": given.removesuffix(".pt") if given else "CHECKPOINT", "captions": old["test_txt_db"].rstrip("/"),
        "regions": old["test_img_db"].rstrip("/"), "out": old["output_dir"], "batch_size": old["valid_batch_size"],
        "boxes.conf_th": old["conf_th"], "boxes.max_bb": old["max_bb"], "boxes.min_bb": old["min_bb"], "boxes.num_bb": old["num_bb"],
        "workers": old["n_workers"], "precision": "fp16" if old["fp16"] else "fp32", "search": "exact", "languages": None,
        "image_captions": None, "caption_score_weight": 0.0, "coco_1k": False, "reranker": None, "data_root": ".",
    }  # fmt: skip


def expected_reranking(old: dict) -> dict:
    old = ABSENT_IN_UNITERS_RETRIEVAL | old
    hard = old["hard_neg_size"]
    return {
        "out": old["output_dir"], "train_captions": ["/txt/itm_train.db", "/txt/itm_restval.db"],
        "train_regions": ["/img/train2014", "/img/val2014"], "val_captions": "/txt/itm_val.db", "val_regions": "/img/val2014",
        "batch_size": old["train_batch_size"], "grad_accumulation": old["gradient_accumulation_steps"], "optim.accumulation": "sum",
        "optim.lr": old["learning_rate"], "optim.grad_clip": old["grad_norm"], "max_txt_len": old["max_txt_len"] + 2,
        "boxes.conf_th": old["conf_th"], "boxes.max_bb": old["max_bb"], "boxes.min_bb": old["min_bb"], "boxes.num_bb": old["num_bb"],
        "num_steps": old["num_train_steps"], "optim.warmup_steps": old["warmup_steps"], "optim.warmup_ratio": 0.0,
        "optim.algorithm": "adamw_original", "optim.schedule": "uniter_linear", "optim.betas": old["betas"], "optim.eps": 1e-6,
        "optim.weight_decay": old["weight_decay"], "optim.no_decay": "original", "model.dropout": old["dropout"],
        "model.kind": "uniter", "model.init": "/pretrain/uniter-base", "reranker.margin": old["margin"], "reranker.miner": "MINER",
        "hard_negatives.count": hard or old["negative_size"], "hard_negatives.from_epoch": 1, "hard_negatives.every": 1,
        "hard_negatives.window": f"0-{old['negative_size']}" if hard else "random", "seed": old["seed"],
        "workers": old["n_workers"], "precision": "fp16" if old["fp16"] else "fp32", "languages": None,
        "language_temperature": 1.0, "data_root": ".",
    }  # fmt: skip


EXPECTED = {
    "pretrain": expected_pretraining, "finetune": expected_finetuning, "eval": expected_evaluation, "rerank": expected_reranking,
}  # fmt: skip
def default(config_class: type, name: str):
    """What a setting is here where nothing gives it."""
    head, _, rest = name.partition(".")
    field = next(field for field in dataclasses.fields(config_class) if field.name == head)
    if rest:
        return default(field.default_factory, rest)
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("form", ["published", "minimal", "hps"])
def test_every_setting_is_what_the_original_takes(translate, kind, form):
    old = {"published": PUBLISHED, "minimal": MINIMAL, "hps": HPS}[form][kind]
    config, _ = translate(old, kind)
    expected = EXPECTED[kind](old)
    for name, annotation in names_and_types(CLASSES[kind]):
        if name == "data":
            found = [(c.name, c.captions, c.regions, c.val_captions, c.val_regions, c.tasks) for c in config.data]
            assert found == expected["data"]
        elif not name.startswith("data.") and inner_dataclass(annotation) is None:
            ours = expected[name] if name in expected else default(CLASSES[kind], name)
            assert setting(config, name) == ours, name


@pytest.mark.parametrize("kind", CLASSES)
def test_every_published_key_has_an_answer(kind):
    known = {key.name: key for key in keys_and_fixed(kind)[0]}
    names = {*PUBLISHED_KEYS[kind].split()} | ({*HPS[kind]} if kind != "pretrain" else {*ABSENT_IN_PRETRAINING, *NAMES_ALONE})
    assert names <= set(known)
    defaults = {
        "pretrain": ABSENT_IN_PRETRAINING, "finetune": ABSENT_IN_FINETUNING, "eval": ABSENT_IN_FINETUNING,
        "rerank": ABSENT_IN_UNITERS_RETRIEVAL,
    }[kind]  # fmt: skip
    for name, key in known.items():
        if kind in key.default:
            assert key.default[kind] == defaults[name], name


def test_keys_without_effect_are_listed_in_the_file_and_on_the_screen(translate, capsys):
    _, text = translate(FLICKR | {"betas": [0.9, 0.98], "weight_decay": 0.01, "grad_norm": 5.0, "dropout": 0.5}, "finetune")
    shown, listed = capsys.readouterr().err, text.split("# Without effect on the results:")[1]
    for key in ("pin_mem", "warmup_steps", "betas", "weight_decay", "grad_norm", "dropout", "itm_global_file", "project_name"):
        assert f"#   {key}: " in listed and f"without effect: {key}: " in shown, key
    for key in ("learning_rate", "train_batch_size"):
        assert f"#   {key}: " not in listed, key


def test_half_of_a_surrogate_pair_is_no_path(translate):
    with pytest.raises(BadInput, match="'img_model_config' holds half of a surrogate pair"):
        translate(PUBLISHED["pretrain"] | {"img_model_config": "\ud800/img.json"}, "pretrain")


def test_comments_say_what_a_setting_was_and_which_are_defaults(translate):
    _, text = translate(MINIMAL["finetune"], "finetune")
    assert "grad_clip: 2.0 # the original's default of max_grad_norm" in text
    assert "project_dim: 0 # the original's default of project_dim" in text
    assert "max_txt_len: 66 # the original's default of max_txt_len: 64;" in text
    assert "epochs: 15 # num_train_epochs" in text


def test_commands_that_come_first_are_said(translate, capsys):
    _, text = translate(FLICKR, "finetune")
    said = capsys.readouterr().out
    for command in (
        "hf download google-bert/bert-base-cased --local-dir bert-base-cased",
        "python scripts/convert_checkpoint.py ./data/model/uniter-base.pt data/model/uniter-base --image-config ./config/img_base.json",
        "python train_itm.py --config new.yaml",
    ):
        assert command in said and f"#   {command}\n" in text


def test_commands_hold_for_paths_with_spaces(translate, capsys):
    val = {"val_txt_db": "my db/val", "output_dir": "my runs"}
    translate(EVAL | val, "eval")
    second = capsys.readouterr().out.splitlines()[-1]
    other = cli.parse(eval_itm.EvalConfig, shlex.split(second)[2:])
    assert (other.captions, other.out) == ("my db/val", "my runs/val")


def test_weights_in_half_precision_are_told(translate, capsys):
    told = {}
    for kind, changes in (("pretrain", {}), ("finetune", {}), ("finetune", {"fp16_opt_level": "O2"}), ("pretrain", {"fp16": False})):
        translate(PUBLISHED[kind] | changes, kind)
        told[kind, *changes] = "otherwise than in the original: apex's O2" in capsys.readouterr().err
    assert told == {("pretrain",): True, ("finetune",): False, ("finetune", "fp16_opt_level"): True, ("pretrain", "fp16"): False}


# ---- the shipped recipes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flickr30k", "coco"])
def test_the_originals_recipes_are_its_published_configs(translate, name):
    """But for the pre-trained start, Flickr30k's batch of 96, both as its figures were made, and the number of workers."""
    old = {key: value for key, value in FLICKR.items() if key not in TOWERS} | {"biencoder_checkpoint": "checkpoints/pretrained"}
    old |= {"n_workers": 4, "train_batch_size": 96}
    if name == "coco":
        old = json.loads(json.dumps(old).replace("itm_flickr30k", "itm_coco").replace("flickr30k", "coco"))
        old |= {"train_batch_size": 64, "num_train_epochs": 20, "val_img_db": "img/coco_val2014"}
        old["train_txt_dbs"] = [f"db/itm_coco_{split}_base-cased.db/" for split in ("train", "restval")]
        old["train_img_dbs"] = ["img/coco_train2014/", "img/coco_val2014/"]
    config, _ = translate(old, "finetune")
    assert config == cli.parse(train_itm.CONFIGS, ["--config", str(ROOT / f"configs/finetune/original_{name}.yaml")])


def test_the_originals_pretraining_is_its_published_config(translate):
    """But for the folder of checkpoints, and that val_regions that are the training's are left out."""
    coco, vg, cc, sbu = "pretrain_caption_coco", "pretrain_caption_vg", "conceptual_caption", "sbu_caption"
    name = "{}_{}_base-cased.db".format
    train = {
        "coco": ([(name(coco, "train"), "coco_train2014"), (name(coco, "trainval"), "coco_val2014")], [16, 8, 4, 4]),
        "vg": ([(name(vg, "train"), "vg")], [16, 12, 6, 6]),
        "conceptual_captions": ([(name(cc, "train"), "gcc_train")], [16, 12, 6, 6]),
        "sbu": ([(name(sbu, "train"), "sbu")], [16, 8, 4, 4]),
    }
    val = {"coco": (coco, "coco_val2014"), "vg": (vg, "vg"), "conceptual_captions": (cc, "gcc_val"), "sbu": (sbu, "sbu")}
    old = PRETRAIN | {
        "train_datasets": [corpus(name, *entry) for name, entry in train.items()],
        "val_datasets": [corpus(own, [(name(db, "val"), img)]) for own, (db, img) in val.items()],
        "mrm_prob": 0.15, "betas": [0.9, 0.98], "dropout": 0.1, "weight_decay": 0.01, "warmup_steps": 10000,
        "txt_model_config": "checkpoints/bert-base-cased", "img_checkpoint": "checkpoints/uniter-base.pt",
        "output_dir": "runs/original_pretrain",
    }  # fmt: skip
    config, _ = translate(old, "pretrain")
    shipped = cli.parse(pretrain.PretrainConfig, ["--config", str(ROOT / "configs/pretrain/original_pretrain.yaml")])
    for ours in shipped.data:
        ours.val_regions = ours.val_regions or ours.regions
    assert config == shipped


# ---- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [lightningdot.KEYS, uniter_retrieval.KEYS])
def test_every_target_is_a_setting_and_every_key_has_one_answer(table):
    names = [key.name for key in table]
    assert len(names) == len(set(names))
    for key in table:
        for kind, target in key.ours.items():
            for name in target if isinstance(target, tuple) else (target,):
                assert name in dict(names_and_types(CLASSES[kind])), (key.name, name)
        assert key.ours or key.note, f"{key.name} is without effect, and nothing says why"
        assert set(key.default) <= set(key.ours) or not key.ours
    for kind in CLASSES:
        assert set(keys_and_fixed(kind)[1]) <= set(dict(names_and_types(CLASSES[kind])))


def test_the_document_shows_the_tables(capsys):
    convert_config.main(cli.parse(convert_config.Options, ["--keys"], positional=("old",)))
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    page = (ROOT / "docs/from-original-settings.md").read_text(encoding="utf-8").splitlines()
    assert len(printed) > 80 and set(printed) <= set(page), "python scripts/write_tables.py writes them there"
