"""Values of the original's JSON configs: what becomes of each that is not the default, and which are refused."""

import dataclasses
import json
from pathlib import Path

import pytest

import eval_itm
from configs import cli
from data.errors import BadInput
from scripts import convert_config
from tests.original_configs import EVAL, FLICKR, ITM, PRETRAIN, PUBLISHED, corpus, setting

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
