"""Configs of the original as they are published, what its commands read, and settings of ours by name. Written by hand: nothing here is
the converter's own."""

import eval_itm
import pretrain
import train_itm
from optim.tasks.reranking import RerankingConfig
from optim.tasks.retrieval import RetrievalConfig

CLASSES = {
    "pretrain": pretrain.PretrainConfig, "finetune": RetrievalConfig, "eval": eval_itm.EvalConfig, "rerank": RerankingConfig,
}  # fmt: skip
COMMANDS = CLASSES | {"finetune": train_itm.CONFIGS, "rerank": train_itm.CONFIGS}

# What a key means there when it is absent.
BOXES = {"conf_th": 0.2, "max_bb": 100, "min_bb": 10, "num_bb": 36}


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
PUBLISHED = {"pretrain": PRETRAIN, "finetune": FLICKR, "eval": EVAL, "rerank": ITM}


def setting(config, name: str):
    for part in name.split("."):
        config = getattr(config, part)
    return list(config) if isinstance(config, tuple) else config
