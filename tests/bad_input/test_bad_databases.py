"""Bad databases and weights through the real commands: one line that names file and key, exit status 2, nothing saved is lost."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

import eval_itm
import pretrain
import train_itm
from configs import cli
from data.annotations import read_captions
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.regions.db import RegionDB, Regions
from data.storage.lmdb_writer import LmdbWriter
from scripts import build_captions, build_index, search
from tests.refusals import changed_regions, evaluation, says, the_error


def truncated(folder: Path) -> Path:
    """The LMDB folder with the last page of its file cut off."""
    file = folder / "data.mdb"
    with open(file, "rb+") as stream:
        stream.truncate(file.stat().st_size - 4096)
    return folder


# ---- databases -------------------------------------------------------------------------------------------------------


def test_missing_databases(small_world, finetuned, recipes, refused, tmp_path, command):
    words = [*recipes[train_itm], "--out", tmp_path / "run"]
    done = command("train_itm.py", *words, "--train-captions", "nowhere", status=2)
    assert says(the_error(done.stderr), small_world / "nowhere", "data.mdb")
    assert says(refused(train_itm, *words, "--val-captions", "nowhere"), small_world / "nowhere")
    assert says(refused(train_itm, *words, "--train-regions", "nowhere"), small_world / "nowhere", "no such folder")
    error = refused(train_itm, *words, "--boxes.min-bb", 11)
    assert says(error, "regions", "feat_th0.2_max100_min11", "found", "min_bb")
    assert not (tmp_path / "run").exists()
    other = evaluation(small_world, finetuned, tmp_path / "eval")
    assert says(refused(eval_itm, *other, "--captions", "nowhere"), "nowhere", "no such folder")
    assert says(refused(eval_itm, *other, "--regions", "nowhere"), "nowhere", "no such folder")
    assert not (tmp_path / "eval").exists()
    error = refused(search, "a red circle", "--index", "nowhere", "--checkpoint", finetuned / "best")
    assert says(error, "nowhere", "data.mdb")


def test_truncated_databases(small_world, finetuned, recipes, refused, tmp_path, command):
    shutil.copytree(small_world / "db/train", tmp_path / "captions")
    shutil.copytree(small_world / "regions", tmp_path / "regions")
    truncated(tmp_path / "captions")
    truncated(tmp_path / "regions/feat_th0.2_max100_min10")
    words = [*recipes[train_itm], "--out", tmp_path / "run"]
    done = command("train_itm.py", *words, "--train-captions", tmp_path / "captions", status=2)
    assert says(the_error(done.stderr), tmp_path / "captions" / "data.mdb", "truncated")
    error = refused(train_itm, *words, "--train-regions", tmp_path / "regions")
    assert says(error, tmp_path / "regions/feat_th0.2_max100_min10/data.mdb", "truncated")
    (tmp_path / "captions" / "id2len.json").write_text('{"1": ')
    shutil.copy(small_world / "db/train/data.mdb", tmp_path / "captions/data.mdb")
    error = refused(train_itm, *words, "--train-captions", tmp_path / "captions")
    assert says(error, tmp_path / "captions/id2len.json", "not JSON")


def test_index_missing_a_page_or_of_another_model(small_world, finetuned, pretrained, refused, tmp_path, command):
    model = ["--checkpoint", finetuned / "best"]
    build_index.main(
        build_index.Options(str(finetuned / "best"), str(tmp_path / "img"), regions=str(small_world / "regions"))
    )
    query = ["a red circle", "--index", tmp_path / "img"]
    done = command("scripts/search.py", *query, "--checkpoint", pretrained / "best", status=2)
    assert says(the_error(done.stderr), tmp_path / "img", "made by model", "build it again") and done.stdout == ""
    truncated(tmp_path / "img")
    assert says(refused(search, *query, *model), tmp_path / "img" / "data.mdb", "truncated")
    error = refused(build_index, *model, "--regions", small_world / "regions", "--out", tmp_path / "img")
    assert says(error, tmp_path / "img" / "data.mdb", "truncated")
    assert says(refused(search, "a", "--index", small_world / "db/val", *model), "db/val", "not a feature index")


def test_caption_about_an_absent_image(small_world, finetuned, recipes, refused, tmp_path):
    captions = CaptionDB(small_world / "db/train")
    key = captions.txt2img[captions.ids[30]]
    lacking = changed_regions(small_world / "regions", tmp_path / "regions", lambda k, r: None if k == key else r)
    caption = captions.img2txts[key][0]
    words = ["--out", tmp_path / "run"]
    error = refused(train_itm, *recipes[train_itm], *words, "--train-regions", lacking)
    assert says(error, captions.folder, f"caption {caption}", key, lacking)
    annotations = ["--annotations", small_world / "captions.jsonl", "--tokenizer", small_world / "tokenizer"]
    error = refused(build_captions, *annotations, "--regions", lacking, "--out", tmp_path / "db")
    assert says(error, "captions.jsonl", key, lacking, "--skip-missing") and not (tmp_path / "db").exists()
    error = refused(
        build_index, "--checkpoint", finetuned / "best", "--regions", lacking, "--images-of", captions.folder,
        "--out", tmp_path / "index",
    )  # fmt: skip
    assert says(error, captions.folder, key, lacking) and not (tmp_path / "index").exists()


def test_empty_split(small_world, recipes, refused, tmp_path):
    annotations = ["--annotations", small_world / "captions.jsonl", "--tokenizer", small_world / "tokenizer"]
    error = refused(build_captions, *annotations, "--splits", "restval", "--out", tmp_path / "db")
    assert says(error, "captions.jsonl", "no caption of split restval", "'train'")
    (tmp_path / "empty.jsonl").write_text("")
    error = refused(
        build_captions, "--annotations", tmp_path / "empty.jsonl", *annotations[2:], "--out", tmp_path / "db"
    )
    assert says(error, "empty.jsonl", "no captions")
    words = [*recipes[train_itm], "--out", tmp_path / "run"]
    error = refused(train_itm, *words, "--languages", "cs")
    assert says(error, small_world / "db/train", "no caption of", "languages ['cs']")
    assert says(refused(train_itm, *words, "--max-txt-len", "3"), small_world / "db/train", "max_txt_len 3")
    shutil.copytree(small_world / "db/val", tmp_path / "captions")
    (tmp_path / "captions/id2len.json").write_text("{}")
    assert says(refused(train_itm, *words, "--val-captions", tmp_path / "captions"), tmp_path / "captions", "empty")


def test_captions_of_a_larger_vocabulary(small_world, finetuned, recipes, refused, tmp_path):
    vocabulary = (small_world / "tokenizer/vocab.txt").read_text() + "\n".join(f"extra{i}" for i in "abcdefghij") + "\n"
    (tmp_path / "vocab.txt").write_text(vocabulary)
    records = [c for c in read_captions(small_world / "captions.jsonl", "jsonl") if c.split == "test"]
    write_caption_db(tmp_path / "db", records, CaptionTokenizer.from_pretrained(tmp_path / "vocab.txt"), annotations=["captions.jsonl"])
    words = [*recipes[train_itm], "--out", tmp_path / "run", "--train-captions", tmp_path / "db"]
    assert says(refused(train_itm, *words), "vocab_size 500", "510")
    error = refused(eval_itm, *evaluation(small_world, finetuned, tmp_path / "eval"), "--captions", tmp_path / "db")
    assert says(error, (finetuned / "best").resolve(), "vocab_size 500", "510")


def test_captions_longer_than_the_model_can_read(small_world, recipes, refused, tmp_path):
    """Training drops them; validation refuses them and names the setting that cuts them."""
    words = [*recipes[pretrain], "--out", tmp_path / "run", "--model.max-position-embeddings", 3]
    assert says(refused(pretrain, *words), "no caption of", "max_txt_len 3")
    limit = int(np.median(CaptionDB(small_world / "db/val").lengths.column.array)) + 2
    words = ["--config", small_world / "finetune.yaml", "--out", tmp_path / "run", "--model.max-position-embeddings", limit]
    error = refused(train_itm, *words)
    assert says(error, small_world / "db/val", f"longer than the model's {limit} positions", "long_captions truncate")


def test_features_of_another_width(small_world, finetuned, recipes, refused, tmp_path):
    def narrower(key, regions):
        return Regions(regions.features[:, :20], regions.norm_bb, regions.conf, regions.soft_labels)

    def fewer_labels(key, regions):
        return Regions(regions.features, regions.norm_bb, regions.conf, regions.soft_labels[:, :7])

    narrow = changed_regions(small_world / "regions", tmp_path / "narrow", narrower)
    out = ["--out", tmp_path / "run"]
    for words in (["--train-regions", narrow], ["--val-regions", narrow]):
        assert says(refused(train_itm, *recipes[train_itm], *out, *words), narrow, "20 wide", "feature_dim 32")
    evaluated = evaluation(small_world, finetuned, tmp_path / "eval")
    assert says(refused(eval_itm, *evaluated, "--regions", narrow), narrow, "20 wide", (finetuned / "best").resolve(), "32")
    model = ["--checkpoint", finetuned / "best"]
    error = refused(build_index, *model, "--regions", narrow, "--out", tmp_path / "index")
    assert says(error, narrow, "20 wide", finetuned / "best", "32") and not (tmp_path / "index").exists()

    few = changed_regions(small_world / "regions", tmp_path / "few", fewer_labels)
    corpora = json.dumps(
        [{"name": name, "captions": "db/train", "regions": str(folder), "tasks": {"mrc": 1}}
         for name, folder in (("a", small_world / "regions"), ("b", few))]
    )  # fmt: skip
    assert says(refused(pretrain, *recipes[pretrain], *out, "--data", corpora), few, "7 soft labels", "11")
    bare = changed_regions(small_world / "regions", tmp_path / "bare", lambda key, regions: dataclasses.replace(regions, soft_labels=None))
    tasks = {"name": "a", "captions": "db/train", "regions": str(bare), "tasks": {"mrckl": 1, "cmr": 1, "mrc": 1}}
    error = refused(pretrain, *recipes[pretrain], *out, "--data", json.dumps([tasks]))
    assert says(error, bare, "has no soft labels, which mrckl and mrc read", "--soft-labels keep", "--objectives")
    assert not (tmp_path / "run").exists()


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_pretrained_folders_that_are_none(small_world, recipes, refused, tmp_path):
    words = ["--config", small_world / "finetune.yaml", "--out", tmp_path / "run"]
    for side in ("txt", "img"):
        assert says(refused(train_itm, *words, f"--model.{side}-init", tmp_path / "no"), tmp_path / "no/config.json")
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 500}))
    assert says(
        refused(train_itm, *words, "--model.txt-init", folder), folder, "model.safetensors", "pytorch_model.bin"
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert says(refused(train_itm, *words, "--model.txt-init", folder), folder / "config.json", "gpt2")
    error = refused(train_itm, *recipes[train_itm], "--out", tmp_path / "run", "--model.txt-init", folder)
    assert says(error, "model.init", "model.txt_init")
    assert says(refused(train_itm, *words, "--model.init", tmp_path / "no"), tmp_path / "no/config.json")
    assert says(refused(train_itm, *words, "--model.init", folder), folder / "config.json", "not a LightningDOT")


def test_checkpoints_that_do_not_fit(small_world, finetuned, pretrained, recipes, refused, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(finetuned / "last", folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(n for n in tensors if n.startswith("txt_model.") and n.endswith("query.weight"))
    bent = tensors | {name: tensors[name][:5].clone()}
    lacking = {n: t for n, t in tensors.items() if n != name}
    words = evaluation(small_world, finetuned, tmp_path / "eval")
    for weights, expected in ((lacking, [f"missing {name}"]), (bent, [name, "[5, 32]", "[32, 32]"])):
        save_file(weights, folder / "model.safetensors")
        assert says(refused(eval_itm, *words, "--checkpoint", folder), folder, *expected)
        started = ["--out", tmp_path / "run", "--model.init", folder]
        assert says(refused(train_itm, *recipes[train_itm], *started), folder, *expected)
    (folder / "model.safetensors").unlink()
    assert says(refused(eval_itm, *words, "--checkpoint", folder), folder / "model.safetensors", "no such file")
    (folder / "config.json").write_text("{")
    assert says(refused(eval_itm, *words, "--checkpoint", folder), folder / "config.json", "JSON")

    shutil.copytree(pretrained / "last", tmp_path / "heads")
    heads = load_file(tmp_path / "heads/heads.safetensors")
    save_file(
        {n: t for n, t in heads.items() if not n.endswith("feat_regress.bias")}, tmp_path / "heads/heads.safetensors"
    )
    words = [*recipes[pretrain], "--out", tmp_path / "run", "--model.init", tmp_path / "heads"]
    assert says(refused(pretrain, *words), tmp_path / "heads/heads.safetensors", "missing feat_regress.bias")


def test_checkpoint_without_its_tokenizer(small_world, finetuned, refused, tmp_path):
    shutil.copytree(finetuned / "best", tmp_path / "checkpoint")
    words = ["--checkpoint", str(tmp_path / "checkpoint"), "--out", str(tmp_path / "img")]
    build_index.main(cli.parse(build_index.Options, [*words, "--regions", str(small_world / "regions")]))
    shutil.rmtree(tmp_path / "checkpoint/tokenizer")
    error = refused(search, "a red circle", "--index", tmp_path / "img", "--checkpoint", tmp_path / "checkpoint")
    assert says(error, tmp_path / "checkpoint/tokenizer", "no tokenizer")


def test_damaged_records_found_while_training(small_world, recipes, refused, tmp_path, command):
    """The database opens well; a record in the middle is damaged, and a worker process meets it."""
    db = RegionDB(small_world / "regions")
    key = CaptionDB(small_world / "db/train").txt2img[CaptionDB(small_world / "db/train").ids[9]]
    with LmdbWriter(tmp_path / "regions/feat_th0.2_max100_min10") as writer:
        for name in db.keys:
            value = bytes(db._records.txn.get(name.encode()))
            writer.put(name.encode(), value[: len(value) // 2] if name == key else value)
        writer.put(b"__keys__", json.dumps(list(db.keys)).encode())
    shutil.copy(small_world / "regions/nbb_th0.2_max100_min10.json", tmp_path / "regions")
    words = [*recipes[train_itm], "--out", tmp_path / "run", "--train-regions", tmp_path / "regions"]
    done = command("train_itm.py", *words, "--workers", 1, status=2)
    for error in (refused(train_itm, *words), the_error(done.stderr)):
        assert says(error, tmp_path / "regions", repr(key), "damaged", "extract this picture again")
        assert "Original" not in error
