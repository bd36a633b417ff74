"""Every shipped config loads, and the recipes hold the paper's numbers."""

from pathlib import Path

import pytest

import eval_itm
import pretrain
import train_itm
from configs import cli
from scripts import bench_retrieval

ROOT = Path(__file__).resolve().parents[2]
CLASSES = {"pretrain": pretrain.PretrainConfig, "finetune": train_itm.CONFIGS, "eval": eval_itm.EvalConfig, "speed": bench_retrieval.Options}
RECIPES = sorted(path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").glob("*/*.yaml"))


def load(name: str):
    return cli.parse(CLASSES[name.split("/")[0]], ["--config", str(ROOT / "configs" / name)])


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_loads(name):
    load(name)


def test_recipes_are_where_the_readme_and_the_commands_look_for_them():
    expected = {
        "pretrain": {"paper", "original_pretrain", "demo", "photos_small"},
        "finetune": {"flickr30k", "coco", "original_flickr30k", "original_coco", "demo", "photos", "photos_small"},
        "eval": {"flickr30k", "coco", "flickr30k_full", "coco_full", "demo"},
    }
    for folder, names in expected.items():
        assert {f"{folder}/{name}.yaml" for name in names} <= set(RECIPES)


@pytest.mark.parametrize("name", ["paper", "original_pretrain"])
def test_pretraining_has_the_papers_numbers(name):
    config = load(f"pretrain/{name}.yaml")
    optim = config.optim
    assert (config.num_steps, config.tokens_per_batch, config.grad_accumulation) == (300_000, 10_240, 6)
    assert (optim.lr, optim.warmup_steps, optim.weight_decay, optim.grad_clip) == (5e-5, 10_000, 0.01, 5)
    assert tuple(optim.betas) == (0.9, 0.98)
    assert (config.boxes.conf_th, config.boxes.min_bb, config.boxes.max_bb) == (0.2, 10, 100)
    assert config.max_txt_len == 60 + 2
    corpora = {}
    for data in config.data:
        tasks = corpora.setdefault(data.name.split("_")[0], dict.fromkeys(data.tasks, 0))
        for task, ratio in data.tasks.items():
            tasks[task] += ratio
    first, second = [16, 8, 4, 4], [16, 12, 6, 6]
    expected = {"coco": first, "vg": second, "conceptual": second if name.startswith("original") else first, "sbu": first}
    assert list(corpora) == list(expected)
    assert all(list(tasks) == ["cmr", "vmlm", "mrfr", "mrckl"] for tasks in corpora.values())
    for name, ratios in expected.items():
        assert list(corpora[name].values()) == pytest.approx(ratios), name


@pytest.mark.parametrize(("name", "batch", "epochs"), [("flickr30k", 96, 15), ("coco", 64, 20)])
def test_finetuning_has_the_papers_numbers(name, batch, epochs):
    for prefix in ("", "original_"):
        config = load(f"finetune/{prefix}{name}.yaml")
        assert (config.batch_size, config.epochs, config.max_txt_len) == (batch, epochs, 62)
        assert (config.optim.lr, config.optim.warmup_ratio) == (2e-5, 0.1)
        assert (config.boxes.conf_th, config.boxes.min_bb, config.boxes.max_bb) == (0.2, 10, 100)


def test_coco_is_trained_on_with_restval_whose_pictures_are_val2014s():
    for name in ("coco", "original_coco"):
        config = load(f"finetune/{name}.yaml")
        found = dict(zip(config.train_captions, config.train_regions, strict=True))
        assert found == {f"db/itm_coco_{split}_base-cased.db": f"img/coco_{images}"
                         for split, images in (("train", "train2014"), ("restval", "val2014"))}  # fmt: skip
        assert (config.val_captions, config.val_regions) == ("db/itm_coco_val_base-cased.db", "img/coco_val2014")


def test_full_galleries_hold_the_other_splits_with_their_regions():
    for name, splits, images in (
        ("flickr30k", ["train", "val"], ["flickr30k"]),
        ("coco", ["train", "restval", "val"], ["coco_train2014", "coco_val2014", "coco_val2014"]),
    ):
        test, full = load(f"eval/{name}.yaml"), load(f"eval/{name}_full.yaml")
        assert (full.captions, full.regions, full.boxes) == (test.captions, test.regions, test.boxes)
        assert full.gallery == [f"db/itm_{name}_{split}_base-cased.db" for split in splits]
        assert (full.gallery_regions or [full.regions]) == [f"img/{each}" for each in images]


def test_the_papers_recipes_are_bf16_and_the_originals_fp16():
    for name in RECIPES:
        kind, recipe = name.removesuffix(".yaml").split("/")
        if recipe.startswith("original_"):
            assert load(name).precision == "fp16", name
        elif kind in ("pretrain", "finetune") and recipe in ("paper", "flickr30k", "coco"):
            assert load(name).precision == "bf16", name


def test_the_original_differs_from_the_paper_where_its_code_did():
    paper, original = load("pretrain/paper.yaml"), load("pretrain/original_pretrain.yaml")
    assert (paper.fusion, original.fusion) == ("add", "none")
    assert (paper.siblings, original.siblings) == ("mask", "keep")
    assert (original.optim.algorithm, original.optim.schedule) == ("adamw_original", "uniter_linear")
    assert (paper.optim.accumulation, original.optim.accumulation) == ("mean", "sum")
    assert (paper.negatives, original.negatives) == ("all_ranks", "own_rank")
    assert (original.model.img_init, original.model.txt_init) == ("checkpoints/uniter-base", "checkpoints/bert-base-cased")
    assert original.valid_every == 10_000 and all(corpus.val_captions for corpus in original.data)
    assert original.teacher.checkpoint is None
    for name in ("flickr30k", "coco"):
        ours, theirs = load(f"finetune/{name}.yaml"), load(f"finetune/original_{name}.yaml")
        assert (ours.negatives, theirs.negatives) == ("all_ranks", "own_rank")
        assert (ours.third_view, theirs.third_view) == ("everywhere", "loss")
        assert (ours.hard_negatives.window, theirs.hard_negatives.window) == ("top", "original")
        assert (ours.optim.accumulation, theirs.optim.accumulation) == ("mean", "mean")
    finetune = load("finetune/original_flickr30k.yaml").optim
    assert (finetune.algorithm, finetune.schedule, finetune.no_decay) == ("adamw_original", "hf_linear", "original")
    assert (tuple(finetune.betas), finetune.eps, finetune.weight_decay) == ((0.9, 0.999), 1e-8, 0.0)
