"""An index that changes on disk while it is searched: what is open stays whole, and what is over gives back its memory."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data.captions.tokenizers import CaptionTokenizer
from data.errors import BadInput
from data.index.editor import IndexEditor
from data.index.reader import EmbeddingIndex
from data.index.writer import IndexWriter
from data.regions.db import RegionDB, Regions
from data.regions.writer import RegionWriter
from data.search.base import SearchOptions
from model.retrieval.region_reranker import RegionReranker
from model.retrieval.retriever import Retriever
from model.serving.followed_index import FollowedIndex
from model.transformer import EncoderConfig
from model.uniter import Reranker, UniterConfig
from tests.gallery import KEYS, WORDS, small_model

VECTORS = np.random.default_rng(0).standard_normal((12, 24)).astype(np.float32)


@pytest.fixture
def retriever(tmp_path):
    model = small_model(1)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    model.save_pretrained(tmp_path / "model")
    CaptionTokenizer.from_pretrained(tmp_path / "vocab.txt").save_pretrained(tmp_path / "model/tokenizer")
    made = Retriever.from_pretrained(tmp_path / "model", write_index(tmp_path / "img", fingerprint(tmp_path / "model"), 12))
    made.backend.index.close()
    return made


def fingerprint(folder):
    from model.bi_encoder import LightningDOT  # of the saved weights

    return LightningDOT.from_pretrained(folder).fingerprint


def write_index(folder, model, number, kind="img"):
    with IndexWriter(folder, kind, 24, model=model, data="drawn") as writer:
        writer.add(KEYS[:number], VECTORS[:number])
    return folder


def mapped(folder) -> list[str]:
    """What this process maps of the folder's LMDB, as Linux lists it."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if f"{folder}/data.mdb" in line]


def taken_up(index) -> bool:
    return any([index.look(), index.look()])


def test_an_update_is_taken_up_and_the_old_state_stays_until_it_is_left(retriever, tmp_path):
    folder = tmp_path / "img"
    index = FollowedIndex(folder, "img", retriever, {"exact": SearchOptions(), "hnsw": SearchOptions("hnsw")})
    assert not taken_up(index)
    with index.use() as before:
        with IndexEditor(folder, model=retriever.model.fingerprint) as editor:
            editor.delete([KEYS[0]])
        assert taken_up(index) and index.taken_up == 1
        assert before.index.count == 12 and {hit.id for hit in before["exact"].nearest(VECTORS[:1], 12)[0]} == set(KEYS)
        assert any("(deleted)" in line for line in mapped(folder))
        with index.use() as now:
            for backend in ("exact", "hnsw"):
                assert {hit.id for hit in now[backend].nearest(VECTORS[:1], 12)[0]} == set(KEYS[1:])
    assert len(mapped(folder)) == 1 and not any("(deleted)" in line for line in mapped(folder))
    with index.use() as now:
        assert now.index.ids()


def test_many_updates_leave_one_map(retriever, tmp_path):
    folder = tmp_path / "img"
    index = FollowedIndex(folder, "img", retriever, {"exact": SearchOptions()})
    for number in range(6):
        with IndexEditor(folder, model=retriever.model.fingerprint) as editor:
            editor.replace([KEYS[number]], VECTORS[:1])
        assert taken_up(index)
    assert index.taken_up == 6 and len(mapped(folder)) == 1


def test_what_somebody_else_has_open_stays_open(retriever, tmp_path):
    folder = tmp_path / "img"
    index, other = FollowedIndex(folder, "img", retriever, {"exact": SearchOptions()}), EmbeddingIndex(folder)
    with IndexEditor(folder, model=retriever.model.fingerprint) as editor:
        editor.delete(KEYS[:6])
    assert taken_up(index)
    np.testing.assert_array_equal(other.vectors(np.arange(12)), VECTORS)  # another reader of the state before
    other.close()
    assert len(mapped(folder)) == 1


@pytest.mark.parametrize("made", ["other model", "captions", "damaged", "gone"])
def test_what_is_not_the_models_is_refused_and_the_index_before_it_answers(retriever, tmp_path, made):
    folder, there = tmp_path / "img", tmp_path / "there"
    index = FollowedIndex(folder, "img", retriever, {"exact": SearchOptions()})
    if made == "other model":
        (write_index(there, "0123", 3) / "data.mdb").replace(folder / "data.mdb")
    elif made == "captions":
        (write_index(there, retriever.model.fingerprint, 3, "txt") / "data.mdb").replace(folder / "data.mdb")
    elif made == "damaged":
        (tmp_path / "new").write_bytes(b"x" * 8192)
        (tmp_path / "new").replace(folder / "data.mdb")
    else:
        (folder / "data.mdb").unlink()
    assert not taken_up(index) and index.refused
    with index.use() as state:
        assert len(state["exact"].nearest(VECTORS[:1], 12)[0]) == 12
    (write_index(tmp_path / "again", retriever.model.fingerprint, 5) / "data.mdb").replace(folder / "data.mdb")
    assert taken_up(index) and index.refused is None
    with index.use() as state:
        assert state.index.count == 5


def test_an_index_of_another_model_is_not_opened(retriever, tmp_path):
    with pytest.raises(BadInput, match="was made by model"):
        FollowedIndex(write_index(tmp_path / "there", "0123", 3), "img", retriever, {"exact": SearchOptions()})


def write_regions(folder, number):
    drawn = np.random.default_rng(1)
    with RegionWriter(folder) as writer:
        for key in KEYS[:number]:
            arrays = drawn.random((12, 16)), drawn.random((12, 6)), np.linspace(0.9, 0.3, 12)
            writer.add(key, Regions(*(array.astype(np.float16) for array in arrays), None))
    return RegionDB(folder)


def publish(made, folder):
    """Files of one folder into another, each at once."""
    for path in sorted(path for path in made.rglob("*") if path.is_file()):
        path.replace(folder / path.relative_to(made))


def test_an_index_of_images_that_the_re_ranker_lacks_waits_for_their_regions(retriever, tmp_path):
    torch.manual_seed(0)
    sizes = EncoderConfig(len(WORDS) + 5, 16, 1, 2, 32, max_position_embeddings=40)
    retriever.reranker = RegionReranker(Reranker(UniterConfig(sizes, 16, 5)), write_regions(tmp_path / "regions", 12))
    folder = write_index(tmp_path / "small", retriever.model.fingerprint, 12)
    index = FollowedIndex(folder, "img", retriever, {"exact": SearchOptions()})
    more = [*KEYS, "new.npz"]
    with IndexEditor(folder, model=retriever.model.fingerprint) as editor:
        editor.add(["new.npz"], VECTORS[:1])
    assert not taken_up(index) and "the re-ranker has no regions of 1 of 13 images, the first: new.npz" in index.refused
    with index.use() as state:
        assert state.index.count == 12
    write_regions(tmp_path / "other", 12)
    with RegionWriter(tmp_path / "made") as writer:
        for key in more:
            writer.add(key, RegionDB(tmp_path / "other").get(KEYS[0]))
    publish(tmp_path / "made", tmp_path / "regions")
    with IndexEditor(folder, model=retriever.model.fingerprint) as editor:
        editor.replace(["new.npz"], VECTORS[1:2])
    assert taken_up(index) and index.refused is None
    with index.use() as state:
        query = state["exact"].read_texts(["a dog"])[0]
        hits = state["exact"].nearest(VECTORS[:1], 13)[0]
        assert {hit.id for hit in state["exact"].reranked(query, hits, 0.5)} == set(more)
