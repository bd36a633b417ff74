"""What is asked of a Retriever: words that no model knows are said, and whatever cannot be a query is one clear sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import BadInput
from data.notices import say_once
from model.retrieval.retriever import Retriever
from scripts import search
from tests.gallery import KEYS, command


@pytest.fixture(scope="module")
def retriever(world, indexes):
    return Retriever.from_pretrained(world / "model", indexes[0])


def test_unknown_words_are_said_and_stand_in_the_result(retriever, capsys):
    found = retriever.search(["xyzzy plugh!", "a big xyzzy dog", "a big dog"], 2)
    assert [query.unknown_words for query in found.queries] == [("xyzzy", "plugh", "!"), ("xyzzy",), ()]
    assert [query.is_unknown for query in found.queries] == [True, False, False]
    assert capsys.readouterr().err == ""  # whoever asks for the whole result says it
    retriever.search_images(["xyzzy plugh!", "a big xyzzy dog", "a big dog"], 2)
    assert capsys.readouterr().err.splitlines() == found.remarks() == [
        "query 'xyzzy plugh!': none of its words is in the model's vocabulary, so what is found says nothing about them",
        "query 'a big xyzzy dog': not in the model's vocabulary, and so not looked for: 'xyzzy'",
    ]


def test_the_command_says_unknown_words(world, indexes, tmp_path, capsys):
    (tmp_path / "queries.txt").write_text("xyzzy\na dog\nplugh\n")
    words = ["--index", indexes[0], "--checkpoint", world / "model", "--k", 2, "--json", tmp_path / "out.json"]
    command(search, "--queries", tmp_path / "queries.txt", *words)
    assert capsys.readouterr().err.count("none of its words is in the model's vocabulary") == 2
    answers = json.loads((tmp_path / "out.json").read_text())["queries"]
    assert [each["unknown_words"] for each in answers] == [["xyzzy"], [], ["plugh"]]


def test_more_results_than_there_are_is_said(retriever, capsys):
    say_once.cache_clear()
    assert len(retriever.search_images("a dog", 1000)) == len(KEYS)
    assert capsys.readouterr().err.endswith("index_regions: k 1,000 is lowered to 12: there are no more images\n")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (b"a dog", r"a query is a text, or a list of texts; found b'a dog' \(bytes\)"),
        (5, "a query is a text, or a list of texts; found 5"),
        ({"a dog": 1}, r"a list of texts; found \{'a dog': 1\} \(dict\)"),
        (["a", 5], "a list of texts; found 5 among them"),
        (["a", b"b"], r"found b'b' \(bytes\) among them"),
        ("\u200b", r"the query '\\u200b' has nothing in it that can be seen"),
        ("\ud83d", r"the query '\\ud83d' has nothing in it"),
        ("dog \ud83d", r"the text 'dog \\ud83d' is no UTF-8 text"),
        (Path("a dog"), r"found PosixPath\('a dog'\) \(PosixPath\)"),
        (np.array(["a dog", ""]), "a query is empty"),
    ],
)
def test_what_is_no_query_is_refused(retriever, query, message):
    with pytest.raises(BadInput, match=message):
        retriever.search_images(query)


@pytest.mark.parametrize("k", [0, -1, "5", True, 2.0, None, np.float32(3), [5]])
def test_a_number_of_results_is_a_whole_number_of_at_least_1(retriever, k):
    with pytest.raises(BadInput, match=r"^k is .*, expected .*at least 1$"):
        retriever.search_images("a dog", k)
    assert len(retriever.search_images("a dog", np.int64(3))) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "device 'gpu' is not one of auto, cpu, cuda, cuda:N"),
        ({"device": "meta"}, "device 'meta' is not one of"),
        ({"device": None}, "device 'None' is not one of"),
        ({"device": 0}, "device '0' is not one of"),
        ({"device": "cuda:99"}, "device cuda:99: .* CUDA GPUs are available"),
        ({"precision": "fp8"}, "precision is 'fp8', expected fp32, bf16 or fp16"),
        ({"precision": None}, "precision is None"),
        ({"precision": ["fp32"]}, r"precision is \['fp32'\]"),
        ({"rerank": 0}, "rerank is 0, expected at least 1"),
        ({"mix": "x"}, r"mix is 'x' \(str\), expected a number of at least 0"),
        ({"search": "hnsw"}, r"search is 'hnsw' \(str\), expected SearchOptions"),
        ({"reranker": 5}, "reranker is 5, expected a folder, or an object with a method rerank_images"),
        ({"regions": 5}, "regions is 5, expected a folder, or a RegionDB"),
        ({"tokenizer": b"x"}, r"tokenizer is b'x' \(bytes\)"),
    ],
)
def test_a_retriever_checks_its_arguments_when_it_is_made(world, indexes, options, message):
    with pytest.raises(BadInput, match=message):
        Retriever.from_pretrained(world / "model", indexes[0], **options)


def test_places_are_checked(world, indexes):
    with pytest.raises(BadInput, match="checkpoint is None, expected a folder"):
        Retriever.from_pretrained(None, indexes[0])
    with pytest.raises(BadInput, match=r"index is \[\] \(list\), expected a folder, or an index"):
        Retriever.from_pretrained(world / "model", [])
    assert Retriever.from_pretrained(world / "model", indexes[0], device="auto").device.type in ("cpu", "cuda")
    assert Retriever.from_pretrained(world / "model", indexes[0], device=torch.device("cpu")).device.type == "cpu"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "an image cannot be None: give an image id"),
        (b"x", r"an image cannot be b'x' \(bytes\)"),
        (["scene_00.npz", "scene_01.npz"], "image 'scene_00.npz' is no picture file that is there, and a key is looked up"),
        ([np.zeros(24), None], "an image cannot be None"),
        ([np.zeros(24), np.zeros(23)], r"embeddings of \[23, 24\] numbers in one list, expected 24"),
        ([], "the list of images is empty"),
        ({}, r"an image cannot be \{\} \(dict\)"),
        (True, "an array of shape"),
        (Path("absent.npz"), "absent.npz"),
        (np.full(24, np.nan), "a query holds NaN or infinity"),
    ],
)
def test_what_is_no_image_is_refused(world, indexes, image, message):
    with pytest.raises(BadInput, match=message):
        Retriever.from_pretrained(world / "model", indexes[1]).search_captions(image)
