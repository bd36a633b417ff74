"""Encoding into memory and into an index, on a small random model and real databases."""

import shutil
from functools import partial

import numpy as np
import pytest
import torch

from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.regions.db import BoxOptions, RegionDB, Regions
from data.regions.writer import RegionWriter
from data.storage.lmdb_env import Records
from model.bi_encoder import LightningDOT
from model.retrieval.encoding import Encoding, encode_batches, encode_queries
from model.retrieval.indexing import build_index
from model.retrieval.sources import caption_source, image_source
from scripts import build_index as build_index_command
from tests.gallery import KEYS, command, small_model

QUIET = Encoding(progress=False)


def gathered(encoded, n, dim=24):
    """The matrix, and how often each position was given."""
    matrix, times = np.zeros((n, dim), np.float32), np.zeros(n, int)
    for positions, vectors in encoded:
        assert vectors.dtype == torch.float32 and not vectors.requires_grad
        matrix[positions] = vectors.numpy()
        times[positions] += 1
    assert (times == 1).all()
    return matrix


@pytest.mark.parametrize("batch_size,workers", [(1, 0), (5, 0), (5, 2), (256, 0)])
def test_encoding_is_one_at_a_time(model, regions, captions, matrices, batch_size, workers):
    encoding = Encoding(batch_size=batch_size, workers=workers, progress=False)
    images = gathered(encode_batches(image_source(model, regions, KEYS), encoding), len(KEYS))
    np.testing.assert_allclose(images, matrices[0], atol=1e-5)
    texts = gathered(encode_batches(caption_source(model, captions, captions.ids), encoding), len(captions))
    np.testing.assert_allclose(texts, matrices[1], atol=1e-5)


def test_encoding_is_longest_first_and_bf16_is_near(model, regions, matrices):
    source = image_source(model, regions, KEYS)
    positions = [p for batch, _ in encode_batches(source, Encoding(batch_size=5, progress=False)) for p in batch]
    lengths = [regions.num_regions[KEYS[p]] for p in positions]
    assert lengths == sorted(lengths, reverse=True)
    half = gathered(encode_batches(source, Encoding(precision="bf16", progress=False)), len(KEYS))
    error = np.abs(half - matrices[0]).max() / np.abs(matrices[0]).max()
    assert 0 < error < 0.05


def test_encoding_leaves_training_as_it_was(world, regions, matrices):
    """Dropout is off for the encoding only, a frozen tower stays frozen, and no random number is drawn."""
    model = LightningDOT.from_pretrained(world / "model").train()
    model.txt_model.eval()
    before = torch.get_rng_state()
    source = image_source(model, regions, KEYS)
    for positions, vectors in encode_batches(source, Encoding(batch_size=5, progress=False)):
        np.testing.assert_allclose(vectors, matrices[0][positions], atol=1e-5)
        assert model.img_model.training and not model.txt_model.training and torch.is_grad_enabled()
    assert torch.equal(before, torch.get_rng_state())


def test_queries_are_encoded_as_captions_are(world, model, captions, matrices):
    tokenizer = CaptionTokenizer.from_pretrained(world / "model" / "tokenizer")
    texts = [captions[i]["raw"] for i in captions.ids]
    np.testing.assert_allclose(encode_queries(model, tokenizer, texts), matrices[1], atol=1e-5)


def test_index_is_reused_while_nothing_changes(tmp_path, world, model, regions, captions):
    out = tmp_path / "index"

    def built(source, dtype="fp32", encoding=QUIET):
        """Whether the call wrote the index anew."""
        before = (out / "data.mdb").stat().st_ino if out.exists() else None
        build_index(source, out, encoding, dtype=dtype)
        return (out / "data.mdb").stat().st_ino != before

    images, few = image_source(model, regions, KEYS), image_source(model, regions, KEYS[:5])
    assert built(images)
    assert not built(images)
    assert not built(images, encoding=Encoding(batch_size=3, workers=1, progress=False))  # neither changes what is stored
    assert built(few) and EmbeddingIndex(out).count == 5
    assert built(few, dtype="fp16")
    assert built(few, dtype="fp16", encoding=Encoding(precision="bf16", progress=False))
    assert built(few)
    with RegionWriter(tmp_path / "changed", BoxOptions(min_bb=2)) as writer:
        for key in KEYS:
            image = regions[key]
            writer.add(key, Regions(image.features * 2, image.norm_bb, image.conf, None))
    assert built(image_source(model, RegionDB(tmp_path / "changed", BoxOptions(min_bb=2)), KEYS[:5]))
    assert built(few)
    assert built(image_source(LightningDOT.from_pretrained(world / "other"), regions, KEYS[:5]))
    out, texts = tmp_path / "texts", caption_source(model, captions, captions.ids)
    assert built(texts) and EmbeddingIndex(out).kind == "txt"
    assert not built(texts)


def test_encoding_refuses(tmp_path, world, model, regions, captions):
    with pytest.raises(BadInput, match=r"regions.*16 wide.*expects 20"):
        image_source(LightningDOT.from_pretrained(world / "wide"), regions, KEYS)
    with pytest.raises(BadInput, match="nobody"):
        image_source(model, regions, [*KEYS, "nobody.npz"])
    with pytest.raises(BadInput, match="nobody"):
        caption_source(model, captions, ["nobody"])
    with pytest.raises(BadInput, match="nothing to encode"):
        build_index(image_source(model, regions, []), tmp_path / "index", QUIET)
    with pytest.raises(BadInput, match="no fingerprint"):
        build_index(image_source(small_model(0), regions, KEYS), tmp_path / "index", QUIET)
    with pytest.raises(BadInput, match="precision"):
        Encoding(precision="fp8")
    few = small_model(0)
    few.config.txt.vocab_size = 10
    with pytest.raises(BadInput, match=r"captions: holds word id \d+, the model's vocabulary has 10"):
        list(encode_batches(caption_source(few, captions, captions.ids), QUIET))
    assert not list(tmp_path.iterdir())


def test_an_index_of_captions_is_not_replaced_by_one_of_images(tmp_path, model, regions, captions):
    build_index(caption_source(model, captions, captions.ids), tmp_path / "index", QUIET)
    with pytest.raises(BadInput, match="index: is an index of captions, which one of images does not replace"):
        build_index(image_source(model, regions, KEYS), tmp_path / "index", QUIET)


def test_a_database_that_was_replaced_is_not_indexed_under_the_name_of_the_new_one(tmp_path, world, model):
    """Its records are those that were opened; a digest, and what stands beside, would be of the other."""
    for name in ("captions", "regions"):
        shutil.copytree(world / name, tmp_path / name)
    captions, regions = CaptionDB(tmp_path / "captions"), RegionDB(tmp_path / "regions", BoxOptions(min_bb=2))
    for name in ("captions", "regions"):
        shutil.copytree(world / name, tmp_path / "new" / name)
        (tmp_path / name).rename(tmp_path / "new" / f"old {name}")
        (tmp_path / "new" / name).rename(tmp_path / name)
    for source in (caption_source(model, captions, captions.ids), image_source(model, regions, KEYS)):
        with pytest.raises(BadInput, match="the database was replaced while it was being read; start again"):
            build_index(source, tmp_path / "index", QUIET)
    with pytest.raises(BadInput, match="the database was replaced while it was being read; start again"):
        captions.tokenizer_files()


@pytest.mark.parametrize("opened", [CaptionDB, partial(RegionDB, boxes=BoxOptions(min_bb=2))])
def test_a_database_that_is_replaced_while_it_is_opened_is_refused(tmp_path, world, monkeypatch, opened):
    name = "captions" if opened is CaptionDB else "regions"
    shutil.copytree(world / name, tmp_path / name)
    shutil.copytree(world / name, tmp_path / "new")

    def replaced(records):
        (tmp_path / name).rename(tmp_path / "old")
        (tmp_path / "new").rename(tmp_path / name)
        return check(records)

    check = Records.check_current
    monkeypatch.setattr(Records, "check_current", replaced)
    with pytest.raises(BadInput, match="was replaced while it was being read"):
        opened(tmp_path / name)


def test_images_of_a_split(world, tmp_path):
    words = ["--checkpoint", world / "model", "--regions", world / "regions", "--boxes.min-bb", 2]
    command(build_index_command, *words, "--images-of", world / "first", "--out", tmp_path / "index")
    assert sorted(EmbeddingIndex(tmp_path / "index").ids()) == KEYS[:4]
    with RegionWriter(tmp_path / "two", BoxOptions(min_bb=2)) as writer:
        writer.add(KEYS[0], Regions(np.ones((2, 16)), np.ones((2, 6)), np.ones(2), None))
    words = ["--checkpoint", world / "model", "--regions", tmp_path / "two", "--boxes.min-bb", 2]
    with pytest.raises(BadInput, match=r"first: 3 of its 4 images are not in .*two.*'scene_01.npz'"):
        command(build_index_command, *words, "--images-of", world / "first", "--out", tmp_path / "index")
