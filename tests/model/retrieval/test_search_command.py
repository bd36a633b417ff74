"""``scripts/search.py``: a text finds images, an image finds captions, and what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.annotations.records import Caption
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.errors import BadInput
from model.retrieval.encoding import encode_queries
from scripts import search
from tests.gallery import KEYS, command


def test_text_finds_images(tmp_path, world, indexes, model, matrices, capsys):
    tokenizer = CaptionTokenizer.from_pretrained(world / "model" / "tokenizer")
    scores = encode_queries(model, tokenizer, ["two big dog"]) @ matrices[0].T
    expected = [KEYS[i] for i in np.argsort(-scores[0])[:4]]
    words = ["two big dog", "--index", indexes[0], "--checkpoint", world / "model", "--k", 4]
    files = ["--photos", world / "photos", "--sheet", tmp_path / "sheet.png", "--json", tmp_path / "out.json"]
    command(search, *words, *files, positional=("query",))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines[:4]] == expected
    assert "encoding" in lines[4] and "search among 12" in lines[4] and lines[4].count(" ms") == 2
    answer = json.loads((tmp_path / "out.json").read_text())
    assert [r["id"] for r in answer["results"]] == expected
    np.testing.assert_allclose([r["score"] for r in answer["results"]], -np.sort(-scores[0])[:4], atol=1e-4)
    assert answer["milliseconds"]["encode"] > 0 and answer["milliseconds"]["search"] > 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 4 * 200


def test_image_finds_captions(world, indexes, captions, matrices, capsys):
    scores = matrices[0][3] @ matrices[1].T
    expected = [captions.ids[i] for i in np.argsort(-scores)[:5]]
    words = ["--image", KEYS[3], "--regions", world / "regions", "--boxes.min-bb", 2, "--captions", world / "captions"]
    command(search, *words, "--index", indexes[1], "--checkpoint", world / "model", "--k", 5, positional=("query",))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines[:5]] == expected
    assert [line.split(maxsplit=3)[3] for line in lines[:5]] == [captions[i]["raw"] for i in expected]


@pytest.mark.parametrize(
    "words,message",
    [
        (["--index", "INDEX"], "text query"),
        (["a dog", "--index", "INDEX", "--image", "scene_00.npz", "--regions", "R"], "text query"),
        (["--index", "INDEX", "--image", "scene_00.npz"], "go together"),
        (["a dog", "--index", "INDEX", "--sheet", "x.png"], "--photos"),
        (["a dog", "--index", "INDEX", "--photos", "PHOTOS", "--sheet", "x", "--json", "./x"], "--json and --sheet are both x"),
        (["a dog", "--index", "CAPTIONS"], "index of captions, this query needs one of images"),
        (["a dog", "--index", "INDEX", "--photos", "nowhere", "--sheet", "x.png"], "no such folder"),
        (["a dog " * 20, "--index", "INDEX"], "does not fit"),
    ],
)
def test_search_refuses(world, indexes, words, message):
    places = {"INDEX": indexes[0], "CAPTIONS": indexes[1]}
    words = [places.get(word, word) for word in words]
    with pytest.raises(BadInput, match=message):
        command(search, *words, "--checkpoint", world / "model", positional=("query",))


def test_index_of_another_model_is_one_line_and_status_2(world, indexes):
    script = Path(search.__file__)
    words = [sys.executable, script, "a dog", "--index", indexes[0], "--checkpoint", world / "other"]
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, cwd=world)
    assert done.returncode == 2 and done.stdout == ""
    error = done.stderr.splitlines()
    assert len(error) == 1 and error[0].startswith("error: ") and "index_regions" in error[0] and "made by" in error[0]


def test_captions_that_are_not_the_indexs_are_refused(tmp_path, world, indexes, captions):
    shutil.copytree(world / "captions", tmp_path / "captions")
    db = CaptionDB(tmp_path / "captions")
    records = [
        Caption(f"{db.txt2img[i][:-4]}.png", db[i]["raw"] + " more" * (i == db.ids[3]), i, "val", "en") for i in db.ids
    ]
    tokenizer = CaptionTokenizer.from_pretrained(world / "model" / "tokenizer")
    write_caption_db(tmp_path / "captions", records, tokenizer, ["test"])
    words = ["--image", KEYS[3], "--regions", world / "regions", "--boxes.min-bb", 2, "--captions", tmp_path / "captions"]
    with pytest.raises(BadInput, match=r"captions: does not hold what \S+ was built from"):
        command(search, *words, "--index", indexes[1], "--checkpoint", world / "model", positional=("query",))


def test_pictures_are_found_by_what_the_index_keeps(tmp_path, world, indexes, capsys):
    """Keys of COCO and Flickr30k without a pattern; with one stem in two folders never the other's picture."""
    names = {key: f"{'cats' if n % 2 else 'dogs'}/{n // 2}.jpg" for n, key in enumerate(KEYS)}
    for n, name in enumerate(names.values()):
        (tmp_path / "ph" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (255, 10 * n, 0)).save(tmp_path / "ph" / name, quality=100)
    shutil.copytree(indexes[0], tmp_path / "index")
    content = {"photos": str(tmp_path / "ph"), "image_key": "{stem}.npz", "pictures": names}
    (tmp_path / "index/pictures.json").write_text(json.dumps(content))
    words = ["two big dog", "--index", tmp_path / "index", "--checkpoint", world / "model", "--k", 1, "--photos", tmp_path / "ph"]
    command(search, *words, "--sheet", tmp_path / "sheet.png", positional=("query",))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"wrote {tmp_path / 'sheet.png'}" and "ms" in lines[-2]  # nothing else is said
    expected = Image.open(tmp_path / "ph" / names[lines[0].split()[2]]).getpixel((32, 32))
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.convert("RGB").getpixel((16 + 100, sheet.height - 16 - 20 - 100)) == expected
