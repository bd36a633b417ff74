"""Retrieval in one call, and scripts/search.py with files of queries and every backend."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data.batches.batch import collate_images
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.regions.db import BoxOptions, RegionDB, Regions
from data.regions.writer import RegionWriter
from data.search import BACKENDS
from data.search.base import SearchOptions
from model.bi_encoder import LightningDOT
from model.retrieval.encoding import Encoding, encode_image
from model.retrieval.indexing import build_index, update_index
from model.retrieval.queries import read_queries
from model.retrieval.retriever import Retriever
from model.retrieval.sources import caption_source, image_source
from model.transformer import EncoderConfig
from model.uniter import Reranker, UniterConfig
from scripts import build_index as build_index_command
from scripts import export_index, search
from tests.gallery import KEYS, WORDS, command
from tests.padded import padded_images

ROOT = Path(__file__).resolve().parents[3]

TEXTS = ["two big dog", "a red cat on the beach"]


@pytest.fixture
def retriever(world, indexes):
    return Retriever.from_pretrained(world / "model", indexes[0])


def best(retriever, text, images, k):
    scores = (retriever.encode_texts([text]) @ images.T)[0]
    order = np.argsort(-scores)[:k]
    return [KEYS[n] for n in order], scores[order]


def test_texts_find_images(retriever, matrices):
    for hits, text in zip([retriever.search_images(TEXTS[0], 4), *retriever.search_images(TEXTS, 4)], [TEXTS[0], *TEXTS]):
        names, scores = best(retriever, text, matrices[0], 4)
        assert [hit.id for hit in hits] == names
        np.testing.assert_allclose([hit.score for hit in hits], scores, atol=1e-4)
    assert len(retriever.search_images("dog", 1000)) == len(KEYS)


def test_weights_that_are_rounded_once_give_what_autocast_gives(world, indexes, regions):
    once = Retriever.from_pretrained(world / "model", indexes[0], regions=regions, precision="bf16")
    always = Retriever(LightningDOT.from_pretrained(world / "model"), once.backend, once.tokenizer, precision="bf16")
    in_fp32 = [sum(type(x) is nn.Linear and x.weight.dtype == torch.float32 for x in r.model.modules()) for r in (once, always)]
    assert in_fp32[0] == 0 < in_fp32[1]
    np.testing.assert_array_equal(once.encode_texts(TEXTS), always.encode_texts(TEXTS))
    np.testing.assert_array_equal(once.encode_image(regions[KEYS[0]]), always.encode_image(regions[KEYS[0]]))
    assert once.search_images(TEXTS, 4) == always.search_images(TEXTS, 4)


def test_images_find_captions(world, indexes, regions, captions, matrices):
    retriever = Retriever.from_pretrained(world / "model", indexes[1], regions=regions)
    expected = [captions.ids[n] for n in np.argsort(-(matrices[0][3] @ matrices[1].T))[:5]]
    for image in (KEYS[3], regions[KEYS[3]], matrices[0][3]):
        assert [hit.id for hit in retriever.search_captions(image, 5)] == expected
    wide = Regions(np.ones((2, 20), np.float16), np.ones((2, 6), np.float16), np.ones(2), None)
    for image, words in ((np.ones((5, 16)), r"shape \(5, 16\): give an image id, Regions"), ("nobody", "no picture 'nobody'"), (wide, r"features of shape \(2, 20\)"), (np.ones(3), r"\(1, 3\)")):
        with pytest.raises(BadInput, match=words):
            retriever.search_captions(image)
    with pytest.raises(BadInput, match="give --regions"):
        Retriever.from_pretrained(world / "model", indexes[1]).search_captions(KEYS[0])


def test_a_key_is_found_however_its_accents_are_written(world, indexes, regions, tmp_path):
    with RegionWriter(tmp_path / "regions", BoxOptions(min_bb=2)) as writer:
        writer.add("caf\u00e9.npz", regions[KEYS[0]])
    retriever = Retriever.from_pretrained(world / "model", indexes[1], regions=RegionDB(tmp_path / "regions", BoxOptions(min_bb=2)))
    assert retriever.search_captions("cafe\u0301.npz") == retriever.search_captions("caf\u00e9.npz")


def test_what_does_not_fit_is_refused(world, indexes, retriever):
    with pytest.raises(BadInput, match="made by model"):
        Retriever.from_pretrained(world / "other", indexes[0])
    with pytest.raises(BadInput, match=r"index of images.*one of captions"):
        retriever.search_captions(np.ones(24))
    for texts in ("  ", [], ["a", ""], None, ["a", None]):
        with pytest.raises(BadInput, match="empty"):
            retriever.search_images(texts)
    with pytest.raises(BadInput, match="k is 0"):
        retriever.search_images("a", 0)


class Backwards:
    """Likes last what the towers like first."""

    def rerank_images(self, text_ids, keys):
        self.seen = text_ids, keys
        return list(range(len(keys)))


def test_a_reranker_sorts_the_candidates(world, indexes, matrices):
    backwards = Backwards()
    retriever = Retriever.from_pretrained(world / "model", indexes[0], backwards, rerank=6)
    names, _ = best(retriever, TEXTS[0], matrices[0], 6)
    hits = retriever.search_images(TEXTS[0], 2)
    assert [(hit.id, hit.score) for hit in hits] == [(names[5], 5.0), (names[4], 4.0)] and backwards.seen[1] == names
    assert backwards.seen[0] == [2, *retriever.tokenizer.input_ids(TEXTS[0]), 3]
    assert len(retriever.search_images(TEXTS[0], 9)) == 9
    backwards.rerank_images = lambda text_ids, keys: [np.nan] * len(keys)
    with pytest.raises(BadInput, match="no finite score"):
        retriever.search_images(TEXTS[0], 2)
    with pytest.raises(BadInput, match="region database"):
        Retriever.from_pretrained(world / "model", indexes[0], "folder")


@torch.no_grad()
def test_a_uniter_scores_in_batches_what_it_scores_alone(world, indexes, tmp_path, monkeypatch):
    monkeypatch.setattr("model.retrieval.region_reranker.PAIRS_ON_CPU", 3)
    torch.manual_seed(0)
    sizes = EncoderConfig(64, 32, 2, 2, 64, max_position_embeddings=40, initializer_range=0.3)
    Reranker(UniterConfig(sizes, 16, 7)).save_pretrained(tmp_path / "uniter")
    db = RegionDB(world / "regions", BoxOptions(min_bb=2))
    retriever = Retriever.from_pretrained(world / "model", indexes[0], tmp_path / "uniter", db, rerank=len(KEYS))
    hits = retriever.search_images(TEXTS[0], len(KEYS))
    ids = torch.tensor([[2, *retriever.tokenizer.input_ids(TEXTS[0]), 3]])
    scores = {}
    for key in KEYS:
        images = collate_images([db.get(key, soft_labels=False)])
        scores[key] = float(retriever.reranker.scorer.reranker(ids, torch.ones_like(ids).bool(), *padded_images(images)))
    assert [hit.id for hit in hits] == sorted(KEYS, key=lambda key: -scores[key])
    np.testing.assert_allclose([hit.score for hit in hits], sorted(scores.values(), reverse=True), atol=1e-5)

    Reranker(UniterConfig(EncoderConfig(70, 32, 2, 2, 64), 16, 7)).save_pretrained(tmp_path / "another")
    with pytest.raises(BadInput, match=r"another: knows 70 word pieces, .*64: a re-ranker reads the ids of the towers"):
        Retriever.from_pretrained(world / "model", indexes[0], tmp_path / "another", db)


@pytest.mark.parametrize("backend", [pytest.param(name, marks=[pytest.mark.milvus] * (name == "milvus")) for name in BACKENDS])
def test_command_with_a_file_of_queries(tmp_path, world, indexes, retriever, matrices, backend, capsys):
    (tmp_path / "queries.txt").write_text("\n".join([TEXTS[0], "", TEXTS[1]]), encoding="utf-8")
    words = ["--checkpoint", world / "model", "--backend", backend, "--k", 3, "--json", tmp_path / "out.json"]
    if backend == "milvus":
        command(export_index, "--index", indexes[0], "--uri", tmp_path / "m.db", "--collection", "img")
        words += ["--uri", tmp_path / "m.db", "--index", "img"]
    else:
        words += ["--index", indexes[0]]
    command(search, "--queries", tmp_path / "queries.txt", *words)
    out = capsys.readouterr().out
    answer = json.loads((tmp_path / "out.json").read_text())
    assert [each["query"] for each in answer["queries"]] == TEXTS and answer["milliseconds"]["search"] > 0
    for each in answer["queries"]:
        names, scores = best(retriever, each["query"], matrices[0], 3)
        assert [hit["id"] for hit in each["results"]] == names
        np.testing.assert_allclose([hit["score"] for hit in each["results"]], scores, atol=1e-4)
        assert all(name in out for name in names)


def test_command_refuses(tmp_path):
    (tmp_path / "none.txt").write_text("\n")
    for options, words in (
        ({"query": "a", "queries": "b"}, "give one of"),
        ({"query": "a", "reranker": "r"}, "it needs a text query and --regions"),
        ({"query": "a", "regions": "r"}, "--regions has no effect without --image KEY, --reranker"),
    ):
        with pytest.raises(BadInput, match=words):
            search.Options("index", "checkpoint", **options)
    for options in (("milvus",), ("exact", None, "m.db")):
        with pytest.raises(BadInput, match="--uri go together"):
            SearchOptions(*options)
    for name, words in (("none.txt", "holds no query"), ("nowhere.txt", "cannot be read")):
        with pytest.raises(BadInput, match=words):
            read_queries(tmp_path / name)


# ---- building: updates, several processes, going on -----------------------------------------------------------------------


def test_updating_an_index(tmp_path, world, model, regions, matrices):
    out = tmp_path / "index"
    build_index(image_source(model, regions, KEYS[:5]), out, Encoding(progress=False))
    common = ["--checkpoint", world / "model", "--out", out]
    source = ["--regions", world / "regions", "--boxes.min-bb", 2]
    command(build_index_command, *common, *source, "--update", "add")
    (tmp_path / "ids.txt").write_text(f"{KEYS[2]}\n{KEYS[11]}\n")
    command(build_index_command, *common, "--delete", tmp_path / "ids.txt")
    left = [key for key in KEYS if key not in (KEYS[2], KEYS[11])]
    with RegionWriter(tmp_path / "changed", BoxOptions(min_bb=2)) as writer:
        for key in KEYS[:4]:
            image = regions[key]
            writer.add(key, Regions(-image.features, image.norm_bb, image.conf, None))
    command(build_index_command, *common, "--regions", tmp_path / "changed", "--boxes.min-bb", 2, "--update", "replace")
    changed = RegionDB(tmp_path / "changed", BoxOptions(min_bb=2))
    expected = dict(zip(KEYS, matrices[0])) | {key: encode_image(model, changed[key])[0] for key in KEYS[:4]}
    index = EmbeddingIndex(out)
    assert sorted(index.ids()) == sorted([*left, KEYS[2]])  # which comes back at its end
    for row, name in enumerate(index.ids()):
        np.testing.assert_allclose(index.vectors(row), expected[name], atol=1e-5)
    assert not np.allclose(expected[KEYS[0]], matrices[0][0], atol=1e-3)
    for options, words in (({"delete": "a", "regions": "b"}, "stands alone"), ({}, "give either")):
        with pytest.raises(BadInput, match=words):
            build_index_command.Options("checkpoint", "out", **options)
    with pytest.raises(BadInput, match="made by model"):
        update_index(image_source(LightningDOT.from_pretrained(world / "other"), regions, KEYS), out, Encoding(progress=False))


def test_building_goes_on_after_a_fault(tmp_path, model, regions, matrices, monkeypatch, capsys):
    monkeypatch.setattr("data.index.writer.COMMIT_SECONDS", 0)
    out, encoded, real = tmp_path / "index", [], type(model).embed_images

    def counted(self, images):
        if len(encoded) == 3:
            raise KeyboardInterrupt
        encoded.append(len(images))
        return real(self, images)

    monkeypatch.setattr(type(model), "embed_images", counted)
    with pytest.raises(KeyboardInterrupt):
        build_index(image_source(model, regions, KEYS), out, Encoding(batch_size=2))
    encoded[:] = []
    monkeypatch.setattr(type(model), "embed_images", lambda *a: encoded.append(len(a[1])) or real(*a))
    index = build_index(image_source(model, regions, KEYS), out, Encoding(batch_size=2))
    assert sum(encoded) == 6 and "going on after 6 of 12" in capsys.readouterr().err
    order = [KEYS.index(name) for name in index.ids()]
    np.testing.assert_allclose(index.vectors(np.arange(12)), matrices[0][order], atol=1e-5)


def test_ranks_build_the_index_of_one_process(tmp_path, world, model, captions):
    words = ["--checkpoint", world / "model", "--captions", world / "captions", "--batch-size", 5, "--device", "cpu"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    line = [*launcher, ROOT / "scripts/build_index.py", *words, "--out", tmp_path / "two"]
    done = subprocess.run([str(w) for w in line], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("24 captions") == 1
    source = caption_source(model, captions, captions.ids)
    build_index(source, tmp_path / "one", Encoding(batch_size=5, progress=False))
    one, two = (EmbeddingIndex(tmp_path / name) for name in ("one", "two"))
    assert one.ids() == two.ids() and one.header["data"] == two.header["data"]
    np.testing.assert_allclose(one.vectors(np.arange(24)), two.vectors(np.arange(24)), atol=1e-6)


def test_a_tokenizer_of_other_words_is_refused(world, indexes, tmp_path):
    Retriever.from_pretrained(world / "model", indexes[0], tokenizer=world / "vocab.txt")  # the same words
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *reversed(WORDS)]) + "\n")
    with pytest.raises(BadInput, match=r"is not the tokenizer of .*model: their vocabularies differ"):
        Retriever.from_pretrained(world / "model", indexes[0], tokenizer=tmp_path / "vocab.txt")
