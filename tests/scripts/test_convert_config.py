"""The original's JSON configs, translated: values, what is left out, and that the shipped recipes say the same."""

import dataclasses
import json
from pathlib import Path

import pytest

import eval_itm
import pretrain
from configs import cli
from configs.settings import names_and_types
from data.errors import BadInput
from model.original import settings as original
from model.original.recipe import guess_kind
from optim.tasks.retrieval import RetrievalConfig
from scripts import convert_config

ROOT = Path(__file__).resolve().parents[2]
CLASSES = {"pretrain": pretrain.PretrainConfig, "finetune": RetrievalConfig, "eval": eval_itm.EvalConfig}
BOXES = {"conf_th": 0.2, "max_bb": 100, "min_bb": 10, "num_bb": 36}
RUN = {"max_txt_len": 60, "fp16": True, "n_workers": 4, "pin_mem": True, "compressed_db": False, "seed": 42, **BOXES}
TOWERS = {
    "txt_model_type": "bert-base", "txt_model_config": "checkpoints/bert-base-cased", "txt_checkpoint": None,
    "img_model_type": "uniter-base", "img_model_config": "config/img_base.json", "project_dim": 768, "cls_concat": "",
    "seperate_caption_encoder": False, "fix_txt_encoder": False, "fix_img_encoder": False,
}  # fmt: skip


def corpus(name, pairs, ratios, tasks=("itm", "mlm", "mrfr", "mrckl")):
    dbs, imgs = zip(*pairs)
    dbs = [f"db/pretrain_{db}_base-cased.db/" for db in dbs]
    return {"name": name, "db": dbs, "img": [f"img/{i}/" for i in imgs], "tasks": list(tasks), "mix_ratio": ratios}


PRETRAIN = {
    "train_datasets": [
        corpus("coco", [("coco_train", "coco_train2014"), ("coco_restval", "coco_val2014")], [16, 8, 4, 4]),
        corpus("vg", [("vg_train", "vg")], [16, 12, 6, 6]),
        corpus("conceptual_captions", [("cc_train", "cc")], [16, 8, 4, 4]),
        corpus("sbu", [("sbu_train", "sbu")], [16, 8, 4, 4]),
    ],
    "val_datasets": [
        {k: v for k, v in corpus(name, [pair], []).items() if k != "mix_ratio"}
        for name, pair in (("coco", ("coco_dev", "coco_val2014")), ("vg", ("vg_dev", "vg")))
    ],
    "output_dir": "runs/original_pretrain", "checkpoint": None, "img_checkpoint": "checkpoints/bert-base-cased", "mrm_prob": 0.15,
    "itm_neg_prob": 0.5, "itm_ot_lambda": 0.1, "train_batch_size": 10240, "val_batch_size": 10240, "optim": "adamw",
    "gradient_accumulation_steps": 6, "learning_rate": 5e-5, "valid_steps": 5000, "num_train_steps": 300000,
    "betas": [0.9, 0.98], "decay": "linear", "weight_decay": 0.01, "grad_norm": 5.0, "warmup_steps": 10000,
    **RUN, **TOWERS,
}  # fmt: skip
FLICKR = {
    "train_txt_dbs": ["db/itm_flickr30k_train_base-cased.db/"], "train_img_dbs": ["img/flickr30k/"],
    "val_txt_db": "db/itm_flickr30k_val_base-cased.db/", "val_img_db": "img/flickr30k/",
    "test_txt_db": "db/itm_flickr30k_test_base-cased.db/", "test_img_db": "img/flickr30k/",
    "output_dir": "runs/original_flickr30k", "biencoder_checkpoint": "checkpoints/pretrained", "img_checkpoint": None,
    "train_batch_size": 96, "val_batch_size": 256, "gradient_accumulation_steps": 1, "learning_rate": 2e-5,
    "betas": [0.9, 0.98], "max_grad_norm": 2.0, "warmup_steps": 500, "num_train_epochs": 15, "caption_score_weight": 0.0,
    "hard_negatives_sampling": "none", "num_hard_negatives": 1, "sample_init_hard_negatives": False, "hnsw_index": False,
    "itm_global_file": None, "retrieval_mode": "both", "img_meta": None, **RUN, **TOWERS,
}  # fmt: skip
COCO = ["db/itm_coco_train_base-cased.db/", "db/itm_coco_restval_base-cased.db/"]
EVAL = {k: v for k, v in FLICKR.items() if not k.startswith(("train_", "num_", "learning"))} | {
    "hnsw_index": True, "biencoder_checkpoint": "checkpoints/flickr30k", "caption_score_weight": 0.1,
}  # fmt: skip


@pytest.fixture
def translate(tmp_path, monkeypatch):
    """Write the JSON config, run the command, load what it wrote → (config, text)."""
    monkeypatch.chdir(tmp_path)

    def run(old: dict, kind: str, *words: str):
        Path("old.json").write_text(json.dumps(old))
        convert_config.main(
            cli.parse(convert_config.Options, ["old.json", "--out", "new.yaml", *words], positional=("old",))
        )
        return cli.parse(CLASSES[kind], ["--config", "new.yaml"]), Path("new.yaml").read_text()

    return run


def test_pretraining_translates_to_the_shipped_recipe(translate, tmp_path):
    for split, count in (("train", 73), ("restval", 27)):  # the mix ratio is shared by numbers of captions
        folder = tmp_path / f"db/pretrain_coco_{split}_base-cased.db"
        folder.mkdir(parents=True)
        (folder / "id2len.json").write_text(json.dumps(dict.fromkeys(map(str, range(count)), 9)))
    config, _ = translate(PRETRAIN, "pretrain")
    shipped = cli.parse(CLASSES["pretrain"], ["--config", str(ROOT / "configs/pretrain/original_pretrain.yaml")])
    assert [corpus.name for corpus in config.data] == ["coco_1", "coco_2", "vg", "conceptual_captions", "sbu"]
    for ours, theirs in zip(config.data, shipped.data, strict=True):
        assert ours.tasks == pytest.approx(theirs.tasks)
        same = dataclasses.replace(theirs, tasks=ours.tasks, name=ours.name)
        assert ours == dataclasses.replace(same, val_regions=ours.val_regions)
        assert ours.val_regions in (None, theirs.val_regions or theirs.regions)
    assert dataclasses.replace(config, data=shipped.data) == shipped


def test_corpora_that_cannot_be_counted_share_the_ratio_equally(translate):
    config, _ = translate(PRETRAIN, "pretrain")
    assert [c.tasks["vmlm"] for c in config.data] == [4, 4, 12, 8, 8]


@pytest.mark.parametrize("name", ["flickr30k", "coco"])
def test_finetuning_translates_to_the_shipped_recipe(translate, name):
    old = FLICKR
    if name == "coco":
        renamed = json.dumps(FLICKR).replace("itm_flickr30k", "itm_coco")
        old = json.loads(renamed.replace("original_flickr30k", "original_coco"))
        old |= {"train_batch_size": 64, "num_train_epochs": 20, "val_img_db": "img/coco_val2014"}
        old |= {"train_txt_dbs": COCO, "train_img_dbs": ["img/coco_train2014/", "img/coco_val2014/"]}
    config, text = translate(old, "finetune")
    shipped = cli.parse(CLASSES["finetune"], ["--config", str(ROOT / f"configs/finetune/original_{name}.yaml")])
    assert config == shipped
    ignored = text.split("# Without a counterpart:")[1]
    for key in ("warmup_steps", "betas", "test_txt_db", "txt_model_config", "retrieval_mode", "num_hard_negatives"):
        assert f"#   {key}: " in ignored, key


def test_evaluation(translate):
    config, text = translate(EVAL, "eval")
    assert (config.checkpoint, config.captions) == ("checkpoints/flickr30k", "db/itm_flickr30k_test_base-cased.db")
    assert (config.search, config.regions, config.batch_size) == ("hnsw", "img/flickr30k", 256)
    assert config.caption_score_weight == 0.1
    assert "captions: db/itm_flickr30k_test_base-cased.db # test_txt_db" in text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_txt_len": -1}, {"max_txt_len": -1}),
        ({"fp16": False, "gradient_accumulation_steps": 3}, {"precision": "fp32", "grad_accumulation": 3}),
        ({"train_txt_dbs": "t/"}, {"train_captions": "t", "train_regions": "img/flickr30k"}),
        ({"train_txt_dbs": COCO, "fp16": True}, {"train_captions": [db[:-1] for db in COCO], "precision": "fp16"}),
        ({"max_grad_norm": -1}, {"optim.grad_clip": 0.0}),
        ({"grad_norm": 7.0}, {"optim.grad_clip": 2.0}),
        ({"weight_decay": 0.01}, {"optim.weight_decay": 0.01}),
        ({"biencoder_checkpoint": None}, {"model.init": None, "model.txt_init": "checkpoints/bert-base-cased", "model.img_init": None}),
        ({"biencoder_checkpoint": None, "img_checkpoint": "u/"}, {"model.img_init": "u"}),
        ({"no_cuda": True, "n_workers": 0}, {"device": "cpu", "num_workers": 0}),
        (
            {"hard_negatives_sampling": "10-20", "num_hard_negatives": 2, "sample_init_hard_negatives": True},
            {"hard_negatives.window": "10-20", "hard_negatives.count": 2, "hard_negatives.from_epoch": 1},
        ),
        ({"conf_th": -1, "num_bb": 20}, {"boxes.conf_th": -1.0, "boxes.num_bb": 20}),
        ({"T": 2.0}, {"distill.temperature": 2.0}),
    ],
)  # fmt: skip
def test_values(translate, changes, expected):
    config, _ = translate(FLICKR | changes, "finetune")
    for name, value in expected.items():
        found = config
        for part in name.split("."):
            found = getattr(found, part)
        assert found == value, name


def test_freezing_the_text_tower_froze_the_image_tower(translate):
    config, text = translate(FLICKR | {"fix_txt_encoder": True}, "finetune")
    assert config.model.freeze_img and not config.model.freeze_txt
    line = next(line for line in text.splitlines() if "fix_txt_encoder" in line)
    assert "by mistake" in line and "model.freeze_txt" in line


@pytest.mark.parametrize(("decay", "schedule"), [("invsqrt", "uniter_invsqrt"), ("constant", "constant")])
def test_schedules_of_pretraining(translate, decay, schedule):
    config, _ = translate(PRETRAIN | {"decay": decay}, "pretrain")
    assert (config.optim.schedule, config.optim.warmup_steps) == (schedule, 0 if decay == "constant" else 10000)


def test_everything_without_an_answer_is_named_at_once(translate, capsys):
    old = FLICKR | {
        "lerning_rate": 1,
        "zzz": 2,
        "cls_concat": "multiply",
        "itm_global_file": "scores.pkl",
        "fp16": None,
    }
    old |= {"optim": "adamax", "train_img_dbs": ["img/a", "img/b"], "conf_th": [1]}
    with pytest.raises(BadInput) as error:
        translate(old, "finetune")
    message = str(error.value)
    assert "unknown key lerning_rate (did you mean learning_rate?)" in message and "unknown key zzz;" in message
    for key in ("cls_concat", "itm_global_file", "optim", "train_img_dbs"):
        assert f"{key}: {json.dumps(old[key])} is refused: " in message, key
    assert not Path("new.yaml").exists()

    old |= {"train_img_dbs": ["img/a"], "conf_th": 0.2}
    config, text = translate(old, "finetune", "--keep-going")
    assert config.epochs == 15 and config.optim.algorithm == "adamw_original"
    left_out = text.split("# Left out:")[1]
    for key in ("unknown key lerning_rate", "unknown key zzz", "cls_concat", "itm_global_file", "optim"):
        assert key in left_out and key in capsys.readouterr().err + left_out


def test_corpora_with_unknown_tasks_or_without_a_counterpart_are_refused(translate):
    strange = corpus("coco", [("coco_train", "coco_train2014")], [16], tasks=["tlm"])
    with pytest.raises(BadInput, match=r"tasks \['tlm'\].*val_datasets.*vg is not in train_datasets"):
        translate(PRETRAIN | {"train_datasets": [strange]}, "pretrain")


def test_a_config_that_cannot_work_is_refused_with_its_reason(translate, tmp_path):
    with pytest.raises(BadInput, match=r"old\.json: as a config of train_itm\.py it does not load: .*val_captions"):
        translate({k: v for k, v in FLICKR.items() if k != "val_txt_db"}, "finetune")
    with pytest.raises(BadInput, match=r"old\.json: as a config of train_itm\.py it does not load: .*lr"):
        translate(FLICKR | {"learning_rate": -1.0}, "finetune")
    assert not (tmp_path / "new.yaml").exists()


def test_kind_is_guessed_or_given(translate):
    kinds = [guess_kind(old) for old in (PRETRAIN, FLICKR, EVAL)]
    assert kinds == ["pretrain", "finetune", "eval"]
    config, _ = translate(FLICKR, "eval", "--kind", "eval")
    assert config.captions == "db/itm_flickr30k_test_base-cased.db"


def test_every_target_is_a_setting_and_every_key_has_one_answer():
    names = [key.name for key in original.KEYS]
    assert len(names) == len(set(names))
    for key in original.KEYS:
        for kind, target in key.ours.items():
            assert target in dict(names_and_types(CLASSES[kind])), (key.name, target)
        assert key.ours or key.note, f"{key.name} is ignored without a reason"
    for kind, always in original.ALWAYS.items():
        assert set(always) <= set(dict(names_and_types(CLASSES[kind])))


def test_the_readme_shows_the_table():
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    expected = [original.row(key) for key in original.KEYS]
    start = readme.index(expected[0]) if expected[0] in readme else -1
    assert readme[start : start + len(expected)] == expected, "paste: " + "\n".join(expected)
    assert not readme[start + len(expected)].startswith("|")
