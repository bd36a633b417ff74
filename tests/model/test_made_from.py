"""Who made the regions stands in the image DB, in every checkpoint, and in what is made from it; what does not fit is refused."""

import json
import shutil

import pytest
import torch

from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.notices import say_once
from data.regions.db import BoxChoice, BoxOptions, RegionDB
from data.storage.json_digest import with_digest
from data.storage.text_files import write_json
from model.initial import check_same_tokenizer
from model.made_from import boxes_for, check_regions, check_tokenizer, read_made_from
from model.retrieval.reranking import mix_for
from model.retrieval.retriever import Retriever, tokenizer_for

SMALL = ["--feature-dim", 32, "--num-labels", 11, "--size", 64, "--workers", 0]


@pytest.fixture(scope="module")
def other_regions(small_world, command, tmp_path_factory):
    """Of the same photographs, by a network of another seed."""
    out = tmp_path_factory.mktemp("other") / "regions"
    command("scripts/extract_regions.py", "--photos", small_world / "photos", "--out", out, *SMALL, "--seed", 1)
    return out


@pytest.fixture(scope="module")
def foreign_regions(small_world, tmp_path_factory):
    """The same regions in a database that does not say who made them."""
    folder = shutil.copytree(small_world / "regions", tmp_path_factory.mktemp("foreign") / "regions")
    (folder / "feat_th0.2_max100_min10" / "extractor.json").unlink()
    return folder


def test_an_image_db_says_who_made_it(small_world, other_regions, foreign_regions):
    record = RegionDB(small_world / "regions").made_by
    assert (record.name, record.options) == ("random-conv", {"seed": 0, "size": 64, "feature_dim": 32, "num_labels": 11})
    other = RegionDB(other_regions).made_by
    assert record.weights != other.weights and not record.is_same(other)
    assert RegionDB(foreign_regions).made_by is None


def test_shards_carry_it_and_are_refused_when_they_differ(small_world, command, tmp_path):
    words = ["--photos", small_world / "photos", "--out", tmp_path / "db", *SMALL]
    for shard in ("1/2", "2/2"):
        command("scripts/extract_regions.py", *words, "--shard", shard)
    part = tmp_path / "db" / "part-2-of-2" / "feat_th0.2_max100_min10" / "extractor.json"
    right = part.read_text()
    part.write_text(right.replace('"weights": "', '"weights": "x'))
    done = command("scripts/extract_regions.py", *words, "--merge", status=2)
    assert "extract them with one extractor" in done.stderr and "(weights x" in done.stderr
    part.write_text(right)
    command("scripts/extract_regions.py", *words, "--merge")
    assert RegionDB(tmp_path / "db").made_by == RegionDB(small_world / "regions").made_by


def test_a_checkpoint_keeps_extractor_boxes_and_tokenizer(small_world, finetuned, pretrained):
    for run in (finetuned, pretrained):
        kept = read_made_from(run / "last")
        assert kept.boxes == BoxOptions() and kept.tokenizer
        assert kept.extractors == (RegionDB(small_world / "regions").made_by,)


def eval_words(small_world, checkpoint, regions, out):
    words = ["--checkpoint", checkpoint, "--captions", small_world / "db" / "test", "--regions", regions]
    return [*words, "--out", out, "--bootstrap", 0, "--device", "cpu"]


def test_regions_of_another_extractor_are_refused_by_every_command(small_world, finetuned, other_regions, command, tmp_path):
    best, captions = finetuned / "best", small_world / "db" / "test"
    message = "regions were made by random-conv --seed 1, "
    commands = {
        "eval_itm.py": eval_words(small_world, best, other_regions, tmp_path / "eval"),
        "scripts/build_index.py": ["--checkpoint", best, "--regions", other_regions, "--out", tmp_path / "img", "--device", "cpu"],
        "train_itm.py": ["--config", small_world / "finetune.yaml", "--model.init", best, "--train-regions", other_regions,
                         "--out", tmp_path / "run"],
        "pretrain.py": ["--config", small_world / "pretrain.yaml", "--model.init", best, "--out", tmp_path / "pre",
                        "--data", json.dumps([{"name": "x", "captions": "db/train", "regions": str(other_regions),
                                               "tasks": {"cmr": 1}}])],
    }  # fmt: skip
    for script, words in commands.items():
        done = command(script, *words, status=2)
        assert message in done.stderr and "was trained on random-conv --seed 0" in done.stderr
        assert len(done.stderr.strip().splitlines()[-1]) and "Traceback" not in done.stderr
    index = tmp_path / "txt"
    command("scripts/build_index.py", "--checkpoint", best, "--captions", captions, "--out", index, "--device", "cpu")
    key = next(iter(RegionDB(other_regions).keys))
    words = ["--image", key, "--regions", other_regions, "--index", index, "--checkpoint", best]
    assert message in command("scripts/search.py", *words, status=2).stderr
    with pytest.raises(BadInput, match=message):
        Retriever.from_pretrained(best, index, regions=other_regions)


def test_validation_regions_are_those_of_training(small_world, other_regions, command, tmp_path):
    words = ["--config", small_world / "finetune.yaml", "--val-regions", other_regions, "--out", tmp_path / "run",
             "--model.hidden-size", 32, "--model.num-hidden-layers", 1, "--model.num-attention-heads", 2]  # fmt: skip
    done = command("train_itm.py", *words, status=2)
    assert "regions were made by random-conv --seed 1, the model is trained on random-conv --seed 0" in done.stderr


def test_regions_that_do_not_say_it_are_accepted_with_a_line(small_world, finetuned, foreign_regions, command, tmp_path):
    done = command("eval_itm.py", *eval_words(small_world, finetuned / "best", foreign_regions, tmp_path / "a"))
    lines = [line for line in done.stderr.splitlines() if "does not say who made its regions" in line]
    assert len(lines) == 1 and "was trained on those of random-conv --seed 0" in lines[0]
    done = command("eval_itm.py", *eval_words(small_world, finetuned / "best", small_world / "regions", tmp_path / "b"))
    assert "regions" not in done.stderr


def test_a_checkpoint_without_the_file_asks_nothing(small_world, finetuned, other_regions, foreign_regions, tmp_path, capsys):
    old = shutil.copytree(finetuned / "best", tmp_path / "old")
    (old / "data.json").unlink()
    for folder in (other_regions, foreign_regions):
        check_regions(old, RegionDB(folder))
    assert boxes_for(old) == BoxOptions() and capsys.readouterr().err == ""


def test_boxes_come_from_the_checkpoint_unless_they_are_given(small_world, finetuned, tmp_path, capsys):
    copy = shutil.copytree(finetuned / "best", tmp_path / "copy")
    kept = json.loads((copy / "data.json").read_text())
    kept["boxes"] = {"conf_th": 0.3, "max_bb": 12, "min_bb": 2, "num_bb": 36}
    (copy / "data.json").write_text(json.dumps(with_digest(kept)))
    assert boxes_for(copy) == BoxOptions(0.3, 12, 2)
    assert boxes_for(copy, BoxChoice(max_bb=5)) == BoxOptions(0.3, 5, 2)
    say_once.cache_clear()
    check_regions(copy, RegionDB(small_world / "regions"))
    (line,) = capsys.readouterr().err.splitlines()
    assert "read with boxes conf_th 0.2, max_bb 100, min_bb 10; " in line
    assert line.endswith("was trained with conf_th 0.3, max_bb 12, min_bb 2")


def test_commands_take_other_boxes_from_the_checkpoint(small_world, pretrained, command, tmp_path):
    regions = tmp_path / "regions"
    words = ["--photos", small_world / "photos", "--out", regions, *SMALL, "--conf-th", 0.5, "--max-bb", 8, "--min-bb", 4]
    command("scripts/extract_regions.py", *words)
    boxes = ["--boxes.conf-th", 0.5, "--boxes.max-bb", 8, "--boxes.min-bb", 4]
    words = ["--config", small_world / "finetune.yaml", "--model.init", pretrained / "last", "--train-regions", regions]
    done = command("train_itm.py", *words, *boxes, "--epochs", 1, "--out", tmp_path / "run")
    assert "read with boxes conf_th 0.5, max_bb 8, min_bb 4; " in done.stderr
    best = tmp_path / "run" / "best"
    done = command("eval_itm.py", *eval_words(small_world, best, regions, tmp_path / "eval"))
    assert "boxes" not in done.stderr
    done = command("scripts/build_index.py", "--checkpoint", best, "--regions", regions, "--out", tmp_path / "img", "--device", "cpu")
    made_from = EmbeddingIndex(tmp_path / "img").header["created"]["checkpoint_made_from"]
    assert made_from["boxes"]["max_bb"] == 8 and made_from["extractors"][0]["name"] == "random-conv"


@pytest.mark.parametrize("content", ['{"boxes": {"conf": 1}, "extractors": [], "tokenizer": null}', "[]", '{"boxes": {}}'])
def test_a_damaged_record_is_one_line(tmp_path, content):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(BadInput, match=r"data\.json: "):
        read_made_from(tmp_path)


def test_a_digest_of_weights_tells_extractors_apart():
    from model.extractors.random_conv import RandomConv

    one = RandomConv(32, 0, 64, 0)
    one.mean0.add_(torch.ones(()))  # measured, with other last digits elsewhere
    assert one.weights_digest() == RandomConv(32, 0, 64, 0).weights_digest() != RandomConv(32, 0, 64, 1).weights_digest()


def test_a_tokenizer_of_another_vocabulary_is_refused(small_world, finetuned, tmp_path):
    checkpoint = shutil.copytree(finetuned / "best", tmp_path / "copied")
    check_tokenizer(checkpoint)
    words = CaptionTokenizer.from_pretrained(checkpoint / "tokenizer").vocabulary()
    special = [f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")]
    (tmp_path / "vocab.txt").write_text("\n".join([*special, *sorted(set(words) - set(special), reverse=True)]) + "\n")
    shutil.rmtree(checkpoint / "tokenizer")
    CaptionTokenizer.from_pretrained(tmp_path / "vocab.txt").save_pretrained(checkpoint / "tokenizer")
    message = r"copied/tokenizer/tokenizer.json: is not the tokenizer of the captions that \S+copied was trained on"
    with pytest.raises(BadInput, match=message):
        tokenizer_for(checkpoint)
    with pytest.raises(BadInput, match=message):
        check_same_tokenizer(checkpoint, CaptionDB(small_world / "db/test"))


def test_files_of_another_checkpoint_are_noticed(finetuned, tmp_path, capsys):
    checkpoint = shutil.copytree(finetuned / "best", tmp_path / "copied")
    for name in ("data.json", "val.json"):
        values = json.loads((checkpoint / name).read_text()) | {"model": "0" * 16}
        write_json(checkpoint / name, with_digest(values) if name == "data.json" else values)
    say_once.cache_clear()
    assert read_made_from(checkpoint) == read_made_from(finetuned / "best")
    assert "copied/data.json: is about the weights 0000000000000000, and config.json" in capsys.readouterr().err
    with pytest.raises(BadInput, match=r"val\.json: is about the weights 0{16}"):
        mix_for(checkpoint)
