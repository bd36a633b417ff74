"""A run that goes on says when its data are not what they were, and compares no best across two validation sets."""

import json
import shutil
import time

import pytest
import torch

import pretrain
import train_itm
from configs import cli
from data.annotations.records import Caption
from data.batches.identity import digests_of_pairs, pairs_changed
from data.batches.pairs import open_pairs
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.regions.db import BoxOptions
from optim import loop
from optim.loop import changed_data
from optim.saving import Saver


@pytest.fixture
def world(small_world, tmp_path):
    """A copy of the databases that a test may change."""
    for name in ("db", "regions"):
        shutil.copytree(small_world / name, tmp_path / name)
    return tmp_path


def with_other_texts(folder, small_world, split):
    """The same captions, each about the picture of the next one."""
    db = CaptionDB(folder)
    texts = [db[caption_id]["raw"] for caption_id in db.ids]
    return rebuilt(folder, small_world, texts[1:] + texts[:1], split)


def rebuilt(folder, small_world, texts, split):
    db = CaptionDB(folder)
    captions = [
        Caption(db.txt2img[name].replace(".npz", ".png"), text, name, split, db.languages[name])
        for name, text in zip(db.ids, texts, strict=True)
    ]
    tokenizer = CaptionTokenizer.from_pretrained(small_world / "tokenizer")
    shutil.rmtree(folder)
    write_caption_db(folder, captions, tokenizer, ["test"])


def stop_after(monkeypatch, updates):
    update, done = loop.apply_update, []

    def stopping(*arguments):
        done.append(1)
        if len(done) > updates:
            raise KeyboardInterrupt
        return update(*arguments)

    monkeypatch.setattr(loop, "apply_update", stopping)


@pytest.fixture
def train(world, small_world, pretrained, monkeypatch, capsys):
    """Fine-tune in this process, stopped after so many updates → what it printed."""

    def run(updates=None, *words):
        with monkeypatch.context() as patch:
            fixed = ["--config", small_world / "finetune.yaml", "--model.init", pretrained / "last", "--data-root", world]
            words = [str(word) for word in (*fixed, "--out", world / "run", "--save-every", 4, *words)]
            if updates is None:
                train_itm.main(cli.parse(train_itm.CONFIGS, words))
            else:
                stop_after(patch, updates)
                with pytest.raises(KeyboardInterrupt):
                    train_itm.main(cli.parse(train_itm.CONFIGS, words))
        return capsys.readouterr().out

    return run


def lines(world):
    return [json.loads(line) for line in (world / "run/metrics.jsonl").read_text().splitlines()]


def updates_of_an_epoch(world):
    pairs = len(open_pairs(str(world / "db/train"), str(world / "regions"), BoxOptions(), 62))
    return -(-pairs // 16)


def test_the_best_is_not_compared_across_two_validation_sets(train, world, small_world):
    train(updates_of_an_epoch(world) + 1)
    path = (world / "run/last").resolve() / "training.pt"
    saved = torch.load(path, weights_only=True)
    saved["best"] = 100.0  # which no validation reaches
    torch.save(saved, path)
    with_other_texts(world / "db/val", small_world, "val")
    shown = train()
    assert "not what they were when the checkpoint was saved: validation captions;" in shown
    assert "the best so far was chosen on other validation data and no longer counts" in shown
    second = [line["val/all/AR"] for line in lines(world) if "val/all/AR" in line][-1]
    assert second < 100
    assert (world / "run/best").resolve() == (world / "run/last").resolve()
    assert torch.load(world / "run/last/training.pt", weights_only=True)["best"] == second


def test_other_training_captions_begin_the_epoch_anew(train, world, small_world):
    train(5)
    db = CaptionDB(world / "db/train")
    rebuilt(world / "db/train", small_world, [db[name]["raw"] + " again" for name in db.ids], "train")
    shown = train()
    assert "not what they were when the checkpoint was saved: training captions; training goes on" in shown
    assert "no longer counts" not in shown
    last = torch.load(world / "run/last/training.pt", weights_only=True)
    assert last["step"] == 4 + 2 * updates_of_an_epoch(world)


def test_what_is_being_written_is_whole_when_training_fails(train, world, monkeypatch):
    publish = Saver._publish
    monkeypatch.setattr(Saver, "_publish", lambda *arguments: (time.sleep(1), publish(*arguments)))
    train(5)
    assert torch.load(world / "run/last/training.pt", weights_only=True)["step"] == 4


def test_the_same_data_elsewhere_are_the_same(train, world):
    train(5)
    for name in ("db", "regions"):
        shutil.copytree(world / name, world / f"copy_of_{name}")
        shutil.rmtree(world / name)
        (world / f"copy_of_{name}").rename(world / name)
    assert "the data are those of the checkpoint" in train()


def test_regions_of_pretraining(world, small_world, capsys, monkeypatch):
    words = ["--config", small_world / "pretrain.yaml", "--data-root", world, "--out", world / "run"]
    shutil.copytree(small_world / "db_de", world / "db_de")
    words = [str(word) for word in (*words, "--num-steps", 6, "--valid-every", 3)]
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            pretrain.main(cli.parse(pretrain.PretrainConfig, words))
    db = CaptionDB(world / "db_de/train")
    rebuilt(world / "db_de/train", small_world, [f"{db[name]['raw']} {db[name]['raw']}" for name in db.ids], "train")
    path = (world / "run/last").resolve() / "training.pt"  # as a version whose batches held pairs of like length saved it
    saved = torch.load(path, weights_only=True)
    saved["draws"]["bucket"] = saved["draws"].pop("number")
    for name in ("training order", "validation order"):
        del saved["data"][name]
    torch.save(saved, path)
    capsys.readouterr()
    pretrain.main(cli.parse(pretrain.PretrainConfig, words))
    shown, changed = capsys.readouterr().out, "training german captions, training order, validation order"
    assert f"not what they were when the checkpoint was saved: {changed}; training goes on" in shown
    assert "the best so far was chosen on other validation data and no longer counts" in shown


def test_what_a_checkpoint_does_not_say_is_no_change(world):
    pairs = open_pairs(str(world / "db/val"), str(world / "regions"), BoxOptions(), 62)
    now = digests_of_pairs(pairs, "training")
    assert changed_data(None, now) == [] and changed_data(dict(now), now) == []
    assert changed_data({}, now) == list(now) == ["training captions", "training regions"]


def test_a_corpus_is_not_one_whose_name_begins_alike():
    changed = ["training coco extra captions", "training teacher scores"]
    assert pairs_changed(changed, "training coco extra")
    assert not pairs_changed(changed, "training coco") and not pairs_changed(changed, "training")
