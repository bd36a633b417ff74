"""Encoding into an index, asking it, and the contact sheet, on a small random model and real databases."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs import cli
from data.annotations.records import Caption
from data.captions.db import CaptionDB, load_tokenizer, write_caption_db
from data.errors import BadInput
from data.index.reader import EmbeddingIndex
from data.regions.db import BoxOptions, RegionDB, Regions
from data.regions.writer import RegionWriter
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.retrieval.encoding import (
    build_caption_index,
    build_image_index,
    encode_captions,
    encode_images,
    encode_queries,
)
from model.transformer import EncoderConfig
from scripts import build_index, contact_sheet, search

WORDS = "a an the dog cat hund über straße kůň on beach red blue green runs sits big small two".split()
KEYS = [f"scene_{i:02d}.npz" for i in range(12)]


def small_model(seed, feature_dim=16):
    torch.manual_seed(seed)
    size = EncoderConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=40, initializer_range=0.3,
    )  # fmt: skip
    return LightningDOT(LightningDOTConfig(size, size, project_dim=24, feature_dim=feature_dim, cls_token_id=2))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Databases of 12 images with 2 captions each, their pictures, and a checkpoint."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    (root / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    tokenizer = load_tokenizer(root / "vocab.txt")
    captions = []
    with RegionWriter(root / "regions", BoxOptions(min_bb=2)) as writer:
        for number, key in enumerate(KEYS):
            n = int(rng.integers(2, 9))
            boxes = rng.random((n, 6))
            writer.add(key, Regions(rng.standard_normal((n, 16)), boxes, np.ones(n), None))
            for i, language in enumerate(("en", "de")):
                text = " ".join(rng.choice(WORDS, int(rng.integers(1, 9))))
                captions.append(Caption(f"scene_{number:02d}.jpg", text, f"{number}#{i}", "test", language))
    write_caption_db(root / "captions", captions, tokenizer, annotations=["made here"])
    write_caption_db(root / "first", captions[:8], tokenizer, annotations=["made here"])
    (root / "photos").mkdir()
    for key in KEYS:
        colour = tuple(int(c) for c in rng.integers(150, 255, 3))
        Image.new("RGB", (40, 30), colour).save(root / "photos" / f"{Path(key).stem}.png")
    for name, seed, width in (("model", 1, 16), ("other", 2, 16), ("wide", 3, 20)):
        small_model(seed, width).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name / "tokenizer")
    return root


@pytest.fixture(scope="module")
def model(world):
    return LightningDOT.from_pretrained(world / "model")


@pytest.fixture(scope="module")
def regions(world):
    return RegionDB(world / "regions", BoxOptions(min_bb=2))


@pytest.fixture(scope="module")
def captions(world):
    return CaptionDB(world / "captions")


@pytest.fixture(scope="module")
def matrices(model, regions, captions):
    """The naive twin: one image, one caption at a time, nothing padded."""
    with torch.no_grad():
        images, texts = [], []
        for key in KEYS:
            image = regions[key]
            inputs = (torch.from_numpy(np.array(a))[None] for a in (image.features, image.positions))
            images.append(model.encode_image(*inputs, torch.ones(1, len(image), dtype=torch.bool)))
        for name in captions.ids:
            ids = torch.tensor([[2, *captions.input_ids(name), 3]])
            texts.append(model.encode_text(ids, torch.ones_like(ids, dtype=torch.bool)))
    return torch.cat(images).numpy(), torch.cat(texts).numpy()


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
    options = {"batch_size": batch_size, "workers": workers, "progress": False}
    images = gathered(encode_images(model, regions, KEYS, **options), len(KEYS))
    np.testing.assert_allclose(images, matrices[0], atol=1e-5)
    texts = gathered(encode_captions(model, captions, captions.ids, **options), len(captions))
    np.testing.assert_allclose(texts, matrices[1], atol=1e-5)


def test_encoding_is_longest_first_and_bf16_is_near(model, regions, matrices):
    positions = [p for batch, _ in encode_images(model, regions, KEYS, batch_size=5, progress=False) for p in batch]
    lengths = [regions.num_regions[KEYS[p]] for p in positions]
    assert lengths == sorted(lengths, reverse=True)
    half = gathered(encode_images(model, regions, KEYS, precision="bf16", progress=False), len(KEYS))
    error = np.abs(half - matrices[0]).max() / np.abs(matrices[0]).max()
    assert 0 < error < 0.05


def test_encoding_leaves_training_as_it_was(world, regions, matrices):
    """Dropout is off for the encoding only, a frozen tower stays frozen, and no random number is drawn."""
    model = LightningDOT.from_pretrained(world / "model").train()
    model.txt_model.eval()
    before = torch.get_rng_state()
    for positions, vectors in encode_images(model, regions, KEYS, batch_size=5, progress=False):
        np.testing.assert_allclose(vectors, matrices[0][positions], atol=1e-5)
        assert model.img_model.training and not model.txt_model.training and torch.is_grad_enabled()
    assert torch.equal(before, torch.get_rng_state())


def test_queries_are_encoded_as_captions_are(world, model, captions, matrices):
    tokenizer = load_tokenizer(world / "model" / "tokenizer")
    texts = [captions[i]["raw"] for i in captions.ids]
    np.testing.assert_allclose(encode_queries(model, tokenizer, texts), matrices[1], atol=1e-5)


def test_index_is_reused_while_nothing_changes(tmp_path, world, model, regions, captions):
    out = tmp_path / "index"

    def built(*args, kind=build_image_index, **options):
        """Whether the call wrote the index anew."""
        before = (out / "data.mdb").stat().st_ino if out.exists() else None
        kind(*args, out, progress=False, **options)
        return (out / "data.mdb").stat().st_ino != before

    assert built(model, regions, KEYS)
    assert not built(model, regions, KEYS)
    assert not built(model, regions, KEYS, batch_size=3, workers=1)  # neither changes what is stored
    assert built(model, regions, KEYS[:5]) and EmbeddingIndex(out).count == 5
    assert built(model, regions, KEYS[:5], dtype="fp16")
    assert built(model, regions, KEYS[:5], dtype="fp16", precision="bf16")
    assert built(model, regions, KEYS[:5])
    with RegionWriter(tmp_path / "changed", BoxOptions(min_bb=2)) as writer:
        for key in KEYS:
            image = regions[key]
            writer.add(key, Regions(image.features * 2, image.norm_bb, image.conf, None))
    assert built(model, RegionDB(tmp_path / "changed", BoxOptions(min_bb=2)), KEYS[:5])
    assert built(model, regions, KEYS[:5])
    assert built(LightningDOT.from_pretrained(world / "other"), regions, KEYS[:5])
    assert built(model, captions, captions.ids, kind=build_caption_index) and EmbeddingIndex(out).kind == "txt"
    assert not built(model, captions, captions.ids, kind=build_caption_index)


def test_encoding_refuses(tmp_path, world, model, regions, captions):
    with pytest.raises(BadInput, match=r"regions.*16 wide.*expects 20"):
        build_image_index(LightningDOT.from_pretrained(world / "wide"), regions, KEYS, tmp_path / "index")
    with pytest.raises(BadInput, match="nobody"):
        build_image_index(model, regions, [*KEYS, "nobody.npz"], tmp_path / "index")
    with pytest.raises(BadInput, match="nobody"):
        build_caption_index(model, captions, ["nobody"], tmp_path / "index")
    with pytest.raises(BadInput, match="nothing to encode"):
        build_image_index(model, regions, [], tmp_path / "index")
    with pytest.raises(BadInput, match="no fingerprint"):
        build_image_index(small_model(0), regions, KEYS, tmp_path / "index")
    with pytest.raises(BadInput, match="precision"):
        build_image_index(model, regions, KEYS, tmp_path / "index", precision="fp8")
    few = small_model(0)
    few.config.txt.vocab_size = 10
    with pytest.raises(BadInput, match=r"captions: holds word id \d+, the model's vocabulary has 10"):
        list(encode_captions(few, captions, captions.ids, progress=False))
    assert not list(tmp_path.iterdir())


def command(module, *words, positional=()):
    """Run a command in this process, as the shell would."""
    module.main(cli.parse(module.Options, [str(word) for word in words], positional))


@pytest.fixture(scope="module")
def indexes(world):
    for kind, dtype in (("regions", "fp32"), ("captions", "fp16")):
        words = ["--checkpoint", world / "model", f"--{kind}", world / kind, "--out", world / f"index_{kind}"]
        command(build_index, *words, "--dtype", dtype, *(["--boxes.min-bb", 2] if kind == "regions" else []))
    return world / "index_regions", world / "index_captions"


def test_text_finds_images(tmp_path, world, indexes, model, matrices, capsys):
    tokenizer = load_tokenizer(world / "model" / "tokenizer")
    scores = encode_queries(model, tokenizer, ["two big dog"]) @ matrices[0].T
    expected = [KEYS[i] for i in np.argsort(-scores[0])[:4]]
    words = ["two big dog", "--index", indexes[0], "--checkpoint", world / "model", "--k", 4]
    files = ["--photos", world / "photos", "--sheet", tmp_path / "sheet.png", "--json", tmp_path / "out.json"]
    command(search, *words, *files, positional=("query",))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines[:4]] == expected
    assert "encoding" in lines[4] and "search among 12" in lines[4] and lines[4].count(" ms") == 4
    answer = json.loads((tmp_path / "out.json").read_text())
    assert [r["id"] for r in answer["results"]] == expected
    np.testing.assert_allclose([r["score"] for r in answer["results"]], -np.sort(-scores[0])[:4], atol=1e-4)
    assert answer["milliseconds"]["encoding"] > 0 and answer["milliseconds"]["search"] > 0
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


def test_images_of_a_split(world, tmp_path):
    words = ["--checkpoint", world / "model", "--regions", world / "regions", "--boxes.min-bb", 2]
    command(build_index, *words, "--images-of", world / "first", "--out", tmp_path / "index")
    assert sorted(EmbeddingIndex(tmp_path / "index").ids()) == KEYS[:4]
    with RegionWriter(tmp_path / "two", BoxOptions(min_bb=2)) as writer:
        writer.add(KEYS[0], Regions(np.ones((2, 16)), np.ones((2, 6)), np.ones(2), None))
    words = ["--checkpoint", world / "model", "--regions", tmp_path / "two", "--boxes.min-bb", 2]
    with pytest.raises(BadInput, match=r"first: 3 of its 4 images are not in .*two.*'scene_01.npz'"):
        command(build_index, *words, "--images-of", world / "first", "--out", tmp_path / "index")


@pytest.mark.parametrize(
    "words,message",
    [
        (["--index", "INDEX"], "text query"),
        (["a dog", "--index", "INDEX", "--image", "scene_00.npz", "--regions", "R"], "text query"),
        (["--index", "INDEX", "--image", "scene_00.npz"], "go together"),
        (["a dog", "--index", "INDEX", "--sheet", "x.png"], "--photos"),
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


def test_contact_sheet_frames_the_hits(tmp_path, world):
    photos = contact_sheet.picture_files(world / "photos")
    assert set(photos) == {Path(key).stem for key in KEYS}
    first, second = photos["scene_00"], photos["scene_01"]
    rows = [
        ("ein Hund läuft über die Straße, " * 8, [(first, 1.5, False), (second, 1.25, True)]),
        ("kůň", [(None, 0.5, False), (first, 0.25, False)]),
    ]
    sheet = contact_sheet.contact_sheet(rows, tmp_path / "deep" / "sheet.png", thumb=100)
    with Image.open(sheet) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels.shape[1] == 2 * 16 + 2 * 100 + 10
    framed = (pixels == contact_sheet.HIT).all(-1)
    rows_framed, columns_framed = np.flatnonzero(framed.sum(1) >= 100), np.flatnonzero(framed.sum(0) >= 100)
    assert len(rows_framed) == 2 * contact_sheet.BORDER and np.ptp(rows_framed) == 99  # top and bottom of one frame
    assert columns_framed.min() == 16 + 110 and columns_framed.max() == 16 + 209  # of the second picture
    colour = Image.open(second).getpixel((0, 0))
    assert (pixels == colour).all(-1).sum() > 90 * 60  # the whole picture, scaled to the frame
    assert sorted(p.name for p in sheet.parent.iterdir()) == ["sheet.png"]


def test_contact_sheet_text_fits_and_accents_are_drawn():
    font = contact_sheet._font(18)
    for text in ("ein Hund läuft über die Straße " * 9, "x" * 300, "kurz"):
        lines = contact_sheet._wrap(text, font, 200)
        assert all(font.getlength(line) <= 200 for line in lines)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    absent = bytes(font.getmask("\uffff"))
    assert all(bytes(font.getmask(letter)) != absent for letter in "äöüßéèçœůěščřžýáíťďňĄЖΩ")


def test_contact_sheet_refuses(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    for rows, message in (
        ([], "no queries"),
        ([("q", [(None, 1.0, False)])], "none of the images"),
        ([("q", [(tmp_path / "bad.jpg", 1.0, False)])], "bad.jpg: cannot read"),
    ):
        with pytest.raises(BadInput, match=message):
            contact_sheet.contact_sheet(rows, tmp_path / "sheet.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no picture"):
        contact_sheet.picture_files(tmp_path / "empty")
    assert not (tmp_path / "sheet.png").exists()


def test_contact_sheet_command(tmp_path, world, indexes, capsys):
    words = ["--index", indexes[0], "--checkpoint", world / "model", "--photos", world / "photos"]
    command(contact_sheet, *words, "--captions", world / "captions", "--out", tmp_path / "a.png")
    assert "6 queries" in capsys.readouterr().out
    (tmp_path / "queries.txt").write_text("a dog\n\nzwei hund\n", encoding="utf-8")
    command(contact_sheet, *words, "--queries", tmp_path / "queries.txt", "--out", tmp_path / "b.png")
    assert "2 queries" in capsys.readouterr().out
    for queries, captions in ((None, None), ("x", "y")):
        with pytest.raises(BadInput, match="either"):
            contact_sheet.Options("i", "c", "p", "o", queries=queries, captions=captions)
