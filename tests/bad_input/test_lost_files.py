"""A link that leads nowhere, or to itself, in the place of a file that need not be there: it was lost, and is not taken for one that
was never made."""

import json
import os
import shutil

import pytest
import torch

from data.captions.tokenizers import CaptionTokenizer
from data.errors import BadInput
from data.notices import say_once
from data.regions.db import BoxOptions, RegionDB
from data.storage.record_sums import FILE as SUMS
from model.bi_encoder import LightningDOT
from model.distributed import SINGLE
from model.made_from import read_made_from
from model.objectives.heads import start_heads_from
from model.retrieval.reranking import mix_for
from optim.run import load_heads
from optim.saving import load_own


def lose(path, target="nowhere"):
    path.unlink(missing_ok=True)
    path.symlink_to(path if target == "itself" else path.parent / target)
    assert os.path.lexists(path) and not path.exists()


@pytest.fixture(scope="module")
def kept(pretrained, tmp_path_factory):
    return shutil.copytree(pretrained / "last", tmp_path_factory.mktemp("lost") / "checkpoint")


READERS = {
    "data.json": read_made_from, "heads.safetensors": lambda folder: start_heads_from(torch.nn.ModuleDict(), folder), "heads.safetensors again": lambda folder: load_heads(torch.nn.ModuleDict(), folder),
    "val.json": lambda folder: mix_for(folder), "rank-00000-of-00001.pt": lambda folder: load_own(folder, SINGLE, {"ranks": 1}),
    "tokenizer/tokenizer_config.json": CaptionTokenizer.from_pretrained, "tokenizer/special_tokens_map.json": CaptionTokenizer.from_pretrained,
    "tokenizer/tokenizer.json": CaptionTokenizer.from_pretrained,
}  # fmt: skip


@pytest.mark.parametrize("target", ["nowhere", "itself"])
@pytest.mark.parametrize("name", READERS)
def test_of_a_checkpoint(kept, tmp_path, name, target):
    folder = shutil.copytree(kept, tmp_path / "checkpoint")
    file = folder / name.split()[0]
    lose(file, target)
    with pytest.raises(BadInput, match=file.name):
        READERS[name](folder)


@pytest.mark.parametrize("target", ["nowhere", "itself"])
def test_checksums_of_a_database(small_world, tmp_path, capsys, target):
    say_once.cache_clear()
    folder = shutil.copytree(small_world / "regions", tmp_path / "regions")
    sums = next(folder.rglob(SUMS))
    lose(sums, target)
    try:
        RegionDB(folder, BoxOptions())
    except BadInput as error:
        assert SUMS in str(error)
    else:
        assert f"{SUMS}: cannot be read" in capsys.readouterr().err


def test_settings_of_a_checkpoint_under_another_name(kept, tmp_path):
    folder = shutil.copytree(kept, tmp_path / "checkpoint")
    values = json.loads((folder / "config.json").read_text())
    values["cls_token_ids"] = values.pop("cls_token_id")
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(BadInput, match=r"config\.json: not what was written"):
        LightningDOT.from_pretrained(folder)


@pytest.mark.parametrize("file, old, new", [("tokenizer_config.json", '"[CLS]"', '"-"'), ("tokenizer.json", '"[SEP]"', '"[SEPP]"')])
def test_words_of_a_checkpoint_that_were_changed(kept, tmp_path, file, old, new):
    folder = shutil.copytree(kept, tmp_path / "checkpoint")
    path = folder / "tokenizer" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(BadInput, match=r"tokenizer_config\.json: not what was written.*this file and tokenizer\.json"):
        CaptionTokenizer.from_pretrained(folder)
