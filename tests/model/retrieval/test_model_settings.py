"""What changes an embedding of the same weights stands in the index: made before such a change, it is refused or built anew."""

import json
import shutil

import lmdb
import numpy as np
import pytest

from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.notices import say_once
from data.search.base import SearchOptions
from data.storage.json_digest import with_digest
from data.storage.text_files import write_json
from model.bi_encoder import LightningDOT
from model.retrieval.encoding import Encoding
from model.retrieval.indexing import build_index, update_index
from model.retrieval.retriever import Retriever
from model.retrieval.sources import image_source
from scripts import export_index
from tests.gallery import KEYS, command

CHANGES = {
    "similarity": {"similarity": "cosine"}, "cls_token_id": {"cls_token_id": 7}, "txt.num_attention_heads": {"txt": {"num_attention_heads": 4}},
    "pooling": {"pooling": "mean"}, "img.layer_norm_eps": {"img": {"layer_norm_eps": 1e-3}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_said():
    say_once.cache_clear()


def changed(world, out, **changes):
    """A copy of the checkpoint with other settings in its config.json."""
    copy = shutil.copytree(world / "model", out)
    values = json.loads((copy / "config.json").read_text())
    for name, value in changes.items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    write_json(copy / "config.json", with_digest(values, without=["fingerprint"]))
    return copy


def without_settings(index):
    """As versions before wrote it."""
    with lmdb.open(str(index)) as env, env.begin(write=True) as txn:
        header = json.loads(txn.get(b"header"))
        del header["created"]["model_settings"], header["checksums"]
        txn.put(b"header", json.dumps(header).encode())
        txn.delete(b"crc/header")
    return index


@pytest.mark.parametrize("name", CHANGES)
def test_an_index_of_other_settings_is_refused_and_built_anew(world, indexes, regions, tmp_path, name):
    other = changed(world, tmp_path / "other", **CHANGES[name])
    with pytest.raises(BadInput, match=rf"same weights with other settings in the checkpoint's config\.json \({name} was .*, now "):
        Retriever.from_pretrained(other, indexes[0])
    out = shutil.copytree(indexes[0], tmp_path / "index")
    source = image_source(LightningDOT.from_pretrained(other), regions, KEYS)
    with pytest.raises(BadInput, match=f"other settings.*{name} was"):
        update_index(source, out, Encoding(progress=False), replace=True)
    commits = EmbeddingIndex(out).header["commits"]
    assert build_index(source, out, Encoding(progress=False)).header["commits"] == commits + 1
    assert build_index(source, out, Encoding(progress=False)).header["commits"] == commits + 1  # now it is that model's
    assert Retriever.from_pretrained(other, out).search_images("a dog", 3)


def test_settings_of_training_change_nothing(world, indexes, tmp_path, capsys):
    other = changed(world, tmp_path / "other", txt={"hidden_dropout_prob": 0.3, "initializer_range": 1.0}, num_labels=7)
    Retriever.from_pretrained(other, indexes[0])
    assert capsys.readouterr().err == ""
    kept = EmbeddingIndex(indexes[0]).header["created"]["model_settings"]
    assert kept == LightningDOT.from_pretrained(other).config.of_vectors and not [n for n in kept if "dropout" in n]


def test_an_index_that_does_not_say_is_taken_with_a_line(world, indexes, model, regions, tmp_path, capsys):
    old = without_settings(shutil.copytree(indexes[0], tmp_path / "index"))
    source = image_source(model, regions, regions.keys)
    expected = Retriever.from_pretrained(world / "model", indexes[0]).search_images("a dog", 3)
    found = Retriever.from_pretrained(world / "model", old).search_images("a dog", 3)
    assert [hit.id for hit in found] == [hit.id for hit in expected]
    assert capsys.readouterr().err.count("does not say with which settings of the model") == 1
    stamp = EmbeddingIndex(old).stamp
    assert build_index(source, old, Encoding(progress=False)).stamp == stamp  # not built again
    vectors = EmbeddingIndex(old).vectors(np.arange(3))
    assert update_index(source, old, Encoding(progress=False)).vectors(np.arange(3)).tolist() == vectors.tolist()


@pytest.mark.milvus
def test_an_export_carries_them(world, indexes, tmp_path):
    command(export_index, "--index", indexes[0], "--uri", tmp_path / "m.db", "--collection", "img")
    other = changed(world, tmp_path / "other", similarity="cosine")
    with pytest.raises(BadInput, match=r"collection 'img': .*similarity was the default, now cosine"):
        Retriever.from_pretrained(other, "img", search=SearchOptions("milvus", uri=str(tmp_path / "m.db")))
