"""The original's JSON configs, translated: every setting against what the original takes, what is left out, what is refused.

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
from optim.tasks.reranking import RerankingConfig
from optim.tasks.retrieval import RetrievalConfig
from scripts import convert_config

ROOT = Path(__file__).resolve().parents[2]
CLASSES = {
    "pretrain": pretrain.PretrainConfig, "finetune": RetrievalConfig, "eval": eval_itm.EvalConfig, "rerank": RerankingConfig,
}  # fmt: skip
COMMANDS = CLASSES | {"finetune": train_itm.CONFIGS, "rerank": train_itm.CONFIGS}

# What a key means there when it is absent.
BOXES = {"conf_th": 0.2, "max_bb": 100, "min_bb": 10, "num_bb": 36}
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

# The keys of the published configs, by family.
PUBLISHED_KEYS = {
    "pretrain": """betas compressed_db conf_th decay dropout fp16 grad_norm gradient_accumulation_steps img_checkpoint img_model_config
        img_model_type itm_neg_prob itm_ot_lambda learning_rate max_bb max_txt_len min_bb model_config mrm_prob n_workers nce_temp
        neg_size num_bb num_train_steps optim output_dir pin_mem project_dim rank seed train_batch_size train_datasets
        txt_model_config txt_model_type val_batch_size val_datasets valid_steps warmup_steps weight_decay""",
    "finetune": """compressed_db conf_th fp16 gradient_accumulation_steps hard_negatives_sampling img_checkpoint img_model_config
        img_model_type inf_minibatch_size itm_global_file learning_rate max_bb max_txt_len min_bb n_workers num_bb num_hard_negatives
        num_train_epochs output_dir pin_mem project_dim project_name seed test_img_db test_txt_db train_batch_size train_img_dbs
        train_txt_dbs txt_model_config txt_model_type val_batch_size val_img_db val_txt_db valid_steps warmup_steps""",
    "eval": """conf_th fp16 img_model_config itm_global_file max_bb max_txt_len min_bb n_workers num_bb output_dir project_dim
        project_name seed test_img_db test_txt_db txt_model_config val_img_db val_txt_db""",
    "rerank": """betas checkpoint compressed_db conf_th dropout fp16 full_val grad_norm gradient_accumulation_steps hard_neg_size
        inf_minibatch_size learning_rate margin max_bb max_txt_len min_bb model_config n_workers negative_size num_bb num_train_steps
        optim output_dir pin_mem seed test_img_db test_txt_db train_batch_size train_img_dbs train_txt_dbs val_img_db val_txt_db
        valid_steps warmup_steps weight_decay""",
}  # fmt: skip
NAMES_ALONE = """project_name expr_name_prefix log_result_step save_all_epochs pin_mem local_rank rank compressed_db txt_db_mapping
    img_db_mapping pretrain_mapping img_meta checkpoint model_config seperate_caption_encoder sample_init_hard_negatives
    biencoder_checkpoint txt_checkpoint fix_img_encoder fix_txt_encoder fp16_opt_level no_cuda n_gpu config""".split()


def corpus(name, pairs, ratios=None, tasks=("itm", "mlm", "mrfr", "mrckl")):
    entry = {"name": name, "db": [f"db/{db}/" for db, _ in pairs], "img": [f"img/{img}/" for _, img in pairs], "tasks": list(tasks)}
    return entry if ratios is None else entry | {"mix_ratio": ratios}


COMMON = BOXES | {"max_txt_len": 60, "fp16": True, "pin_mem": True, "compressed_db": False, "seed": 42, "project_dim": 768}
TOWERS = {
    "txt_model_type": "bert-base", "txt_model_config": "bert-base-cased", "img_model_type": "uniter-base",
    "img_model_config": "./config/img_base.json", "img_checkpoint": "./data/model/uniter-base.pt",
}  # fmt: skip
PRETRAIN = COMMON | TOWERS | {
    "train_datasets": [
        corpus("coco", [("coco_train", "train2014"), ("coco_trainval", "val2014")], [16, 8, 4, 4]),
        corpus("vg", [("vg_train", "vg")], [16, 12, 6, 6]),
    ],
    "val_datasets": [corpus("coco", [("coco_val", "val2014"), ("coco_more", "val2014")]), corpus("vg", [("vg_val", "vg")])],
    "model_config": "./config/img_base.json", "output_dir": "runs/pretrain", "mrm_prob": 0.2, "neg_size": 128, "nce_temp": 1.0,
    "itm_neg_prob": 0.0, "itm_ot_lambda": 0.0, "train_batch_size": 10240, "val_batch_size": 10240, "gradient_accumulation_steps": 6,
    "learning_rate": 5e-5, "valid_steps": 10000, "num_train_steps": 300000, "optim": "adamw", "betas": [0.9, 0.95],
    "decay": "linear", "dropout": 0.2, "weight_decay": 0.02, "grad_norm": 5.0, "warmup_steps": 9000, "n_workers": 3, "rank": 0,
}  # fmt: skip
FLICKR = COMMON | TOWERS | {
    "train_txt_dbs": ["db/itm_flickr30k_train_base-cased.db/"], "train_img_dbs": ["img/flickr30k/"],
    "val_txt_db": "db/itm_flickr30k_val_base-cased.db/", "val_img_db": "img/flickr30k/",
    "test_txt_db": "db/itm_flickr30k_test_base-cased.db/", "test_img_db": "img/flickr30k/",
    "itm_global_file": "./data/meta/flickr_meta.json", "train_batch_size": 64, "val_batch_size": 256,
    "gradient_accumulation_steps": 1, "learning_rate": 2e-5, "warmup_steps": 100, "valid_steps": 500, "num_train_epochs": 15,
    "output_dir": "runs/original_flickr30k", "project_name": "itm-debug", "num_hard_negatives": 0,
    "hard_negatives_sampling": "none", "inf_minibatch_size": 0, "n_workers": 0,
}  # fmt: skip
EVAL = {key: FLICKR[key] for key in PUBLISHED_KEYS["eval"].split()}
ITM = COMMON | {
    "checkpoint": "/pretrain/uniter-base.pt", "model_config": "/src/config/uniter-base.json", "output_dir": "runs/itm",
    "train_batch_size": 8, "negative_size": 399, "hard_neg_size": 31, "inf_minibatch_size": 400, "margin": 0.3,
    "learning_rate": 4e-5, "valid_steps": 500, "num_train_steps": 5000, "optim": "adamw", "betas": [0.9, 0.97], "dropout": 0.2,
    "weight_decay": 0.03, "grad_norm": 3.0, "warmup_steps": 500, "full_val": True, "n_workers": 4,
    "train_txt_dbs": ["/txt/itm_train.db", "/txt/itm_restval.db"], "train_img_dbs": ["/img/train2014/", "/img/val2014"],
    "val_txt_db": "/txt/itm_val.db", "val_img_db": "/img/val2014/", "test_txt_db": "/txt/t.db", "test_img_db": "/img/val2014/",
}  # fmt: skip
del ITM["project_dim"]
WITHOUT_DEFAULTS = {
    "pretrain": ("train_datasets", "val_datasets", "output_dir", "txt_model_config", "img_checkpoint"),
    "finetune": ("train_txt_dbs", "train_img_dbs", "val_txt_db", "val_img_db", "output_dir", "num_train_epochs", "txt_model_config"),
    "eval": ("test_txt_db", "test_img_db", "output_dir", "txt_model_config"),
    "rerank": ("train_txt_dbs", "train_img_dbs", "val_txt_db", "val_img_db", "output_dir", "checkpoint", "train_batch_size",
               "negative_size", "num_train_steps", "warmup_steps"),
}  # fmt: skip
PUBLISHED = {"pretrain": PRETRAIN, "finetune": FLICKR, "eval": EVAL, "rerank": ITM}
MINIMAL = {kind: {key: PUBLISHED[kind][key] for key in keys} for kind, keys in WITHOUT_DEFAULTS.items()}
HPS = {  # of a run: every key, with its value or its default
    "pretrain": ABSENT_IN_PRETRAINING | dict.fromkeys(NAMES_ALONE) | {"img_db": None} | PRETRAIN | {"txt_checkpoint": "none"},
    "finetune": ABSENT_IN_FINETUNING | dict.fromkeys(NAMES_ALONE) | FLICKR | {"biencoder_checkpoint": "none", "local_rank": -1},
    "eval": ABSENT_IN_FINETUNING | dict.fromkeys(NAMES_ALONE) | EVAL | {"biencoder_checkpoint": "/pretrain/flickr-ft.pt"},
    "rerank": ABSENT_IN_UNITERS_RETRIEVAL | {"rank": 0, "local_rank": -1, "n_gpu": 16, "config": None} | ITM,
}  # fmt: skip


@pytest.fixture
def translate(tmp_path, monkeypatch):
    """Write the JSON config, run the command, load what it wrote with the kind's command → (config, text)."""
    monkeypatch.chdir(tmp_path)

    def run(old: dict, kind: str, *words: str):
        Path("old.json").write_text(json.dumps(old))
        words = ["old.json", "--out", "new.yaml", *words]
        convert_config.main(cli.parse(convert_config.Options, words, positional=("old",)))
        return cli.parse(COMMANDS[kind], ["--config", "new.yaml"]), Path("new.yaml").read_text()

    return run


def setting(config, name: str):
    for part in name.split("."):
        config = getattr(config, part)
    return list(config) if isinstance(config, tuple) else config


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


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_txt_len": -1}, {"max_txt_len": -1}),
        ({"fp16": False, "gradient_accumulation_steps": 3}, {"precision": "fp32", "grad_accumulation": 3}),
        ({"fp16_opt_level": "O0"}, {"precision": "fp32"}),
        ({"fp16_opt_level": "O2"}, {"precision": "fp16"}),
        ({"train_txt_dbs": "t/"}, {"train_captions": "t", "train_regions": "img/flickr30k"}),
        ({"train_txt_dbs": ["a/", "b"]}, {"train_captions": ["a", "b"], "train_regions": "img/flickr30k"}),
        ({"max_grad_norm": -1}, {"optim.grad_clip": 0.0}),
        ({"grad_norm": 7.0}, {"optim.grad_clip": 2.0}),
        ({"optim": "adamax", "decay": "constant"}, {"optim.algorithm": "adamw_original", "optim.schedule": "hf_linear"}),
        ({"img_checkpoint": "none"}, {"model.img_init": None}),
        ({"img_checkpoint": "u/"}, {"model.img_init": "u"}),
        ({"txt_checkpoint": "data/bert.pt"}, {"model.txt_init": "data/bert"}),
        ({"biencoder_checkpoint": "/pretrain/LightningDot.pt"}, {"model.init": "/pretrain/LightningDot", "model.txt_init": None}),
        (
            {"biencoder_checkpoint": "/pretrain/a.pt", "pretrain_mapping": "/my/models/", "txt_db_mapping": "/my/db",
             "train_txt_dbs": ["/db/a.db", "/dbs/b"], "img_db_mapping": "/my/img", "val_img_db": "/img/x/"},
            {"model.init": "/my/models/a", "train_captions": ["/my/db/a.db", "/dbs/b"], "val_regions": "/my/img/x"},
        ),
        ({"checkpoint": "/pretrain/uniter.pt"}, {"model.init": None}),
        ({"no_cuda": True, "n_workers": 0}, {"device": "cpu", "workers": 0}),
        ({"conf_th": -1, "num_bb": 20}, {"boxes.conf_th": -1.0, "boxes.num_bb": 20}),
        ({"cls_concat": "multiply", "seperate_caption_encoder": True}, {"siblings": "keep"}),
        ({"fix_img_encoder": True}, {"model.freeze_img": True, "model.freeze_txt": False}),
        (
            {"caption_score_weight": 0.1},
            {"caption_score_weight": 0.1, "image_captions": "data/meta/flickr_meta/train", "third_view": "loss"},
        ),
    ],
)  # fmt: skip
def test_values(translate, changes, expected):
    config, _ = translate(FLICKR | changes, "finetune")
    for name, value in expected.items():
        assert setting(config, name) == value, name


@pytest.mark.parametrize(("count", "best"), [(1, 50), (20, 50), (30, 70), (600, 1000)])
def test_hard_negatives_are_the_originals(translate, count, best):
    changes = {"num_hard_negatives": count, "hard_negatives_sampling": "top", "sample_init_hard_negatives": True}
    config, _ = translate(FLICKR | changes, "finetune")
    found = config.hard_negatives
    assert (found.count, found.window, found.every, found.from_epoch) == (count, "original", 1, 1)
    assert found.ranks == (0, best)


def test_hard_negatives_beside_a_third_view_say_what_is_otherwise(translate, capsys):
    changes = {"num_hard_negatives": 30, "sample_init_hard_negatives": True, "caption_score_weight": 0.1}
    config, text = translate(FLICKR | changes, "finetune")
    assert (config.hard_negatives.window, config.third_view) == ("0-70", "loss")
    assert "# Otherwise than in the original:\n#   hard negatives beside a third view" in text
    assert "otherwise than in the original: hard negatives" in capsys.readouterr().err


def test_weights_and_sizes_that_cannot_belong_together_are_told(translate, capsys):
    translate(ITM | {"model_config": "/src/config/uniter-large.json"}, "rerank")  # as one of UNITER's published configs
    assert "/pretrain/uniter-base.pt and /src/config/uniter-large.json name different sizes" in capsys.readouterr().err
    translate(ITM, "rerank")
    assert "different sizes" not in capsys.readouterr().err


def test_a_teacher_of_pretraining(translate):
    changes = {"teacher_checkpoint": "/pretrain/uniter-base.pt", "T": 2.0, "kd_loss_weight": 0.25, "normalized_logits": False}
    config, _ = translate(PRETRAIN | changes, "pretrain")
    assert dataclasses.astuple(config.teacher) == ("/pretrain/uniter-base", 0.25, 2.0)
    absent = {"teacher_checkpoint": "none", "T": 2.0}
    assert dataclasses.astuple(translate(PRETRAIN | absent, "pretrain")[0].teacher) == (None, 0.5, 1.0)
    with pytest.raises(BadInput, match="normalized_logits: true is refused"):
        translate(PRETRAIN | changes | {"normalized_logits": True}, "pretrain")


def test_freezing_the_text_tower_is_what_the_name_says(translate):
    config, text = translate(FLICKR | {"fix_txt_encoder": True}, "finetune")
    assert config.model.freeze_txt and not config.model.freeze_img
    line = next(line for line in text.splitlines() if "freeze_txt" in line)
    assert "a faithful copy is useless" in line


@pytest.mark.parametrize(("decay", "schedule"), [("invsqrt", "uniter_invsqrt"), ("constant", "constant")])
def test_schedules_of_pretraining(translate, decay, schedule):
    config, _ = translate(PRETRAIN | {"decay": decay}, "pretrain")
    assert (config.optim.schedule, config.optim.warmup_steps) == (schedule, 0 if decay == "constant" else 9000)


@pytest.mark.parametrize("fusion", ["add", "multiply"])
def test_cls_concat_is_the_fusion(translate, fusion):
    assert translate(PRETRAIN | {"cls_concat": fusion}, "pretrain")[0].fusion == fusion


def test_an_evaluation_of_two_splits_is_two_commands(translate, capsys):
    config, text = translate(EVAL, "eval")
    assert config.captions == "db/itm_flickr30k_test_base-cased.db"
    first, second = (line for line in capsys.readouterr().out.splitlines() if "eval_itm.py" in line)
    assert first == "  python eval_itm.py --config new.yaml --checkpoint FOLDER"
    words = second.split()[2:]
    other = cli.parse(eval_itm.EvalConfig, words)
    expected = {"captions": "db/itm_flickr30k_val_base-cased.db", "regions": "img/flickr30k"}
    expected |= {"out": "runs/original_flickr30k/val", "checkpoint": "FOLDER"}
    assert other == dataclasses.replace(config, **expected)
    assert f"#   {second.strip()}" in text
    only_val = {key: value for key, value in EVAL.items() if not key.startswith("test_")}
    assert translate(only_val, "eval")[0].captions == "db/itm_flickr30k_val_base-cased.db"


def test_retrieval_of_uniter_with_random_negatives(translate):
    old = {key: value for key, value in ITM.items() if key != "hard_neg_size"}
    config, text = translate(old | {"negative_size": 1, "gradient_accumulation_steps": 4}, "rerank")
    assert (config.hard_negatives.count, config.hard_negatives.window, config.grad_accumulation) == (1, "random", 4)
    assert "train_itm.py --model uniter --config new.yaml --reranker.miner FOLDER" in text


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


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_everything_without_an_answer_is_named_at_once(translate, capsys):
    old = FLICKR | {"lerning_rate": 1, "zzz": 2, "retrieval_mode": "img", "teacher_checkpoint": "u.pt"}
    old |= {"hard_negatives_sampling": "top", "train_img_dbs": ["img/a", "img/b"], "conf_th": [1]}
    with pytest.raises(BadInput) as error:
        translate(old, "finetune")
    message = str(error.value)
    assert "unknown key lerning_rate (did you mean learning_rate?)" in message and "unknown key zzz;" in message
    refused = ("retrieval_mode", "teacher_checkpoint", "hard_negatives_sampling", "train_img_dbs")
    for key in refused:
        assert f"{key}: {json.dumps(old[key])} is refused: " in message, key
    assert not Path("new.yaml").exists()

    old |= {"train_img_dbs": ["img/a"], "conf_th": 0.2}
    config, text = translate(old, "finetune", "--keep-going")
    assert config.epochs == 15 and config.optim.algorithm == "adamw_original"
    left_out, shown = text.split("# Left out:")[1], capsys.readouterr().err
    for key in ("unknown key lerning_rate", "unknown key zzz", "retrieval_mode", "teacher_checkpoint"):
        assert key in left_out and f"left out: {key}" in shown


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("finetune", {"num_hard_negatives": 2}, r"num_hard_negatives: 2 is refused: without sample_init_hard_negatives the original stops"),
        ("finetune", {"num_train_epochs": 0}, "num_train_epochs: 0 is refused: .*no epoch at all"),
        ("finetune", {"caption_score_weight": 0.1, "itm_global_file": None}, "caption_score_weight: 0.1 is refused: without itm_global_file"),
        ("finetune", {"fp16_opt_level": "O3"}, "fp16: true is refused"),
        ("finetune", {"val_txt_db": ["a", "b"]}, "val_txt_db: .* is refused: one folder is expected"),
        ("pretrain", {"itm_ot_lambda": 0.1}, "itm_ot_lambda: 0.1 is refused: UNITER's optimal transport"),
        ("pretrain", {"optim": "adam"}, 'optim: "adam" is refused'),
        ("pretrain", {"cls_concat": "cat"}, 'cls_concat: "cat" is refused'),
        ("pretrain", {"train_datasets": [corpus("coco", [("a", "b")], [1], ["tlm"])]}, r"tasks \['tlm'\].*val_datasets.*vg is not in"),
        ("rerank", {"hard_neg_size": 400}, "hard_neg_size: 400 is refused: negative_size is 399"),
    ],
)  # fmt: skip
def test_values_that_are_refused(translate, kind, changes, message):
    with pytest.raises(BadInput, match=message):
        translate(PUBLISHED[kind] | changes, kind)


def test_absent_epochs_are_the_originals_none(translate):
    old = {key: value for key, value in FLICKR.items() if key != "num_train_epochs"}
    with pytest.raises(BadInput, match="num_train_epochs: absent, so 0, is refused"):
        translate(old, "finetune")


UNITERS = {"checkpoint": "/pretrain/uniter-base.pt", "model_config": "/src/uniter-base.json", "output_dir": "o", "optim": "adamw"}


@pytest.mark.parametrize(
    ("old", "reason"),
    [
        (UNITERS | {"train_txt_dbs": ["/txt/vqa_train.db", "/txt/vqa_vg.db"], "lr_mul": 10.0}, r"\(VQA\), no image–text retrieval"),
        (UNITERS | {"train_txt_db": "/txt/ve_train.db/"}, r"\(VE\), no image–text retrieval"),
        (UNITERS | {"train_txt_db": "/txt/nlvr2_train.db", "model": "paired-attn"}, r"\(NLVR2\), no image–text retrieval"),
        (UNITERS | {"train_txt_dbs": ["/txt/vcr_train.db/"], "checkpoint_from": "vcr"}, r"\(VCR\), no image–text retrieval"),
        (UNITERS | {"train_txt_db": "/txt/re/refcoco+_train.db"}, r"\(RE\), no image–text retrieval"),
        (UNITERS | {"train_txt_db": "/txt/mine.db", "mlp": 2}, "a head of its own, no image–text retrieval"),
        (UNITERS | {"train_txt_db": "/txt/mine.db"}, "a head of its own, no image–text retrieval"),
        (UNITERS | {"train_datasets": [corpus("vcr_train", [("vcr", "vcr")], [1])]}, r"\(VCR\), no image–text retrieval"),
        (UNITERS | {"train_datasets": [corpus("coco", [("a", "b")], [1])], "itm_ot_lambda": 0.1}, "UNITER's own pre-training"),
        ({"hidden_size": 768, "num_hidden_layers": 12, "vocab_size": 28996}, "--text-config .*--image-config"),
        ([1], "a mapping of settings was expected"),
    ],
)  # fmt: skip
def test_what_is_no_retrieval_is_refused_with_that_reason(translate, old, reason):
    with pytest.raises(BadInput, match=rf"old\.json: .*{reason}"):
        translate(old, "pretrain")
    assert not Path("new.yaml").exists()


def test_a_config_that_cannot_work_is_refused_with_its_reason(translate, tmp_path):
    with pytest.raises(BadInput, match=r"old\.json: as a config of train_itm\.py it does not load: .*--val-captions"):
        translate({k: v for k, v in FLICKR.items() if k != "val_txt_db"}, "finetune")
    with pytest.raises(BadInput, match=r"old\.json: as a config of train_itm\.py it does not load: .*lr"):
        translate(FLICKR | {"learning_rate": -1.0}, "finetune")
    assert not (tmp_path / "new.yaml").exists()


def test_the_kind_may_be_given(translate):
    config, _ = translate(FLICKR, "eval", "--kind", "eval")
    assert config.captions == "db/itm_flickr30k_test_base-cased.db"
    with pytest.raises(BadInput, match="--keys by itself"):
        cli.parse(convert_config.Options, [], positional=("old",))


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
