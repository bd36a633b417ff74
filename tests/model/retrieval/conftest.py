"""Databases of 12 images with 2 captions each, a small random model, indexes, and the naive twin of encoding."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.annotations.records import Caption
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.regions.db import BoxOptions, RegionDB, Regions
from data.regions.writer import RegionWriter
from model.bi_encoder import LightningDOT
from scripts import build_index
from tests.gallery import KEYS, WORDS, command, small_model


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Databases of 12 images with 2 captions each, their pictures, and a checkpoint."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    (root / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    tokenizer = CaptionTokenizer.from_pretrained(root / "vocab.txt")
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


@pytest.fixture(scope="module")
def indexes(world):
    for kind, dtype in (("regions", "fp32"), ("captions", "fp16")):
        words = ["--checkpoint", world / "model", f"--{kind}", world / kind, "--out", world / f"index_{kind}"]
        command(build_index, *words, "--dtype", dtype, *(["--boxes.min-bb", 2] if kind == "regions" else []))
    return world / "index_regions", world / "index_captions"
