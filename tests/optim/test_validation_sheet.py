"""What TensorBoard gets of a validation besides its numbers: a contact sheet, recall in pre-training, passes over the data."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import pretrain
import train_itm
from configs import cli
from data.batches.pairs import open_pairs
from data.errors import BadInput
from data.regions.db import BoxOptions
from model.bi_encoder import LightningDOT
from model.evaluation.recall import mean_table, recall_table, retrieval_ranks
from model.evaluation.tasks import recall_of_first_images
from model.retrieval.encoding import embed_pairs
from optim.tasks.validation_sheet import SHOWN, ValidationSheet


@pytest.fixture(scope="module")
def val(small_world):
    return open_pairs(small_world / "db/val", small_world / "regions", BoxOptions())


def test_the_sheet_shows_what_captions_find_and_where_the_right_picture_is(val):
    sheet = ValidationSheet.open(val, 4, seed=1)
    assert sheet.queries == ValidationSheet.open(val, 4, seed=1).queries != ValidationSheet.open(val, 4, seed=2).queries
    assert len({int(val.image_of[row]) for row in sheet.queries}) == 4
    assert len(ValidationSheet.open(val, 99, seed=1).queries) == len(val.images)
    torch.manual_seed(0)
    txt, img = torch.randn(len(val), 6), torch.randn(len(val.images), 6)
    found = sheet.found(txt, img)
    for row, hits in zip(sheet.queries, found.hits):
        order = (img @ txt[row]).sort(descending=True).indices.tolist()
        assert [hit.id for hit in hits] == [val.images[n] for n in order]
    assert sheet.draw(found).width > SHOWN * 150


def test_where_the_pictures_are_not_there_is_no_sheet_and_no_word_of_it(val, small_world, tmp_path, capsys):
    assert ValidationSheet.open(val, 0, seed=1) is None
    shutil.copytree(small_world / "regions", tmp_path / "regions")
    (file,) = (tmp_path / "regions").glob("*/pictures.json")
    content = json.loads(file.read_text())
    for text in (json.dumps(content | {"photos": str(tmp_path / "gone")}), json.dumps(content | {"photos": ""}), "no JSON", None):
        file.unlink() if text is None else file.write_text(text)
        assert ValidationSheet.open(open_pairs(small_world / "db/val", tmp_path / "regions", BoxOptions()), 4, 1) is None
    sheet = ValidationSheet.open(val, 4, seed=1)
    sheet.photos.find = lambda key: file  # which is gone: a training goes on without
    assert sheet.draw(sheet.found(torch.zeros(len(val), 2), torch.zeros(len(val.images), 2))) is None
    said = capsys.readouterr()
    assert said.out == "" and said.err == f"{file}: is not what was written with the records, by their checksums.npz: changed, damaged, or another database's? It is taken as it is\n"


def run_here(script, config, *words):
    script.main(cli.parse(config, list(map(str, words))))


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_fine_tuning_gives_tensorboard_a_sheet_of_each_validation(small_world, pretrained, tmp_path):
    words = ["--config", small_world / "finetune.yaml", "--model.init", pretrained / "last", "--device", "cpu", "--epochs", 2]
    run_here(train_itm, train_itm.CONFIGS, *words, "--out", tmp_path / "run", "--validation-sheet", 2)
    events = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    lines = lines_of(tmp_path / "run")
    sheets, validated = events.Images("validation"), [line["step"] for line in lines if "val/all/AR" in line]
    assert [sheet.step for sheet in sheets] == validated and len(validated) == 2
    pictures = [np.asarray(Image.open(io.BytesIO(sheet.encoded_image_string))) for sheet in sheets]
    assert pictures[0].shape == (*pictures[0].shape[:2], 3) and len(np.unique(pictures[0])) > 50
    passes = [line["passes/train"] for line in lines if "passes/train" in line]
    assert passes[-1] == 2 and 1 in passes and passes == sorted(passes)
    assert all(0 <= line["speed/waiting_for_data"] <= 100 for line in lines if "lr" in line) and "loss_scale" not in lines[0]
    for name in ("num_steps", "validation_sheet"):
        with pytest.raises(BadInput, match=f"{name} must be at least 0"):
            cli.parse(train_itm.CONFIGS, [*map(str, words), "--out", "x", f"--{name}", "-1"])


def test_fp16_gives_tensorboard_its_loss_scale(small_world, pretrained, tmp_path):
    words = ["--config", small_world / "finetune.yaml", "--model.init", pretrained / "last", "--device", "cpu", "--precision", "fp16"]
    run_here(train_itm, train_itm.CONFIGS, *words, "--num-steps", 2, "--validation-sheet", 0, "--out", tmp_path / "run")
    shown = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload().Scalars("loss_scale")
    told = [(line["step"], line["loss_scale"]) for line in lines_of(tmp_path / "run") if "loss_scale" in line]
    assert [(each.step, each.value) for each in shown] == told and [step for step, _ in told] == [1, 2]
    assert all(scale in (2.0**n for n in range(17)) for _, scale in told)  # 65536 at first, halved where gradients overflow


def test_pretraining_validates_recall_too(small_world, pretrained, tmp_path):
    settings = yaml.safe_load((small_world / "pretrain.yaml").read_text())
    words = ["--config", small_world / "pretrain.yaml", "--num-steps", 4, "--valid-every", 4, "--device", "cpu"]
    run_here(pretrain, pretrain.PretrainConfig, *words, "--out", tmp_path / "run", "--valid-recall", 5)
    line = lines_of(tmp_path / "run")[-1]
    val = open_pairs(small_world / "db/val", small_world / "regions", BoxOptions(), max_txt_len=62)
    model = LightningDOT.from_pretrained(tmp_path / "run/last")
    rows = [n for n in range(len(val)) if val.image_of[n] < 5]
    txt, img, image_of = embed_pairs(model, val, "cpu", "fp32")
    languages = [str(val.caption_languages()[n]) for n in rows]
    tables = []
    for language in ("en", "de"):
        own = [row for row, name in zip(rows, languages) if name == language]
        tables.append(recall_table(*retrieval_ranks(txt[own], img[:5], image_of[own])))
    expected = mean_table(tables)
    assert {name: line[f"val/scenes/{name}"] for name in expected} == pytest.approx(expected)
    assert "val/german/AR" not in line  # a corpus without validation captions
    whole = recall_of_first_images(model, val, 1000, "cpu")
    assert whole == recall_of_first_images(model, val, len(val.images), "cpu") != pytest.approx(expected)
    passes = [line for line in lines_of(tmp_path / "run") if "passes/scenes" in line]
    assert {name for name in passes[-1] if name.startswith("passes/")} == {f"passes/{corpus['name']}" for corpus in settings["data"]}
    run_here(pretrain, pretrain.PretrainConfig, *words, "--out", tmp_path / "none", "--valid-recall", 0)
    without = lines_of(tmp_path / "none")[-1]
    assert "val/scenes/AR" not in without and without["val/loss"] == line["val/loss"]
