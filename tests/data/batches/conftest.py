"""Two databases, of captions and of regions, and all pairs of them."""

import numpy as np
import pytest

from data.annotations.records import Caption
from data.batches.pairs import PairDataset
from data.captions.db import CaptionDB
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.regions.db import RegionDB
from data.regions.writer import RegionWriter
from tests.pair_databases import BOXES, COUNTS, LENGTHS, VOCABULARY, WORDS, make_regions


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folders of a caption DB (English, and German for every second caption) and of a region DB."""
    root = tmp_path_factory.mktemp("world")
    (root / "vocab.txt").write_text("".join(f"{word}\n" for word in VOCABULARY))
    rng = np.random.default_rng(1)
    records = [
        Caption(f"{stem}.jpg", " ".join(rng.choice(WORDS, n)), f"{stem}#{i}", "train", "en" if i % 2 == 0 else "de")
        for stem, lengths in LENGTHS.items()
        for i, n in enumerate(lengths)
    ]
    write_caption_db(root / "captions", records, CaptionTokenizer.from_pretrained(root / "vocab.txt"), ["a.jsonl"])
    with RegionWriter(root / "regions", BOXES) as writer:
        for seed, stem in enumerate(reversed(COUNTS)):  # another order than the captions'
            writer.add(f"{stem}.npz", make_regions(COUNTS[stem], seed=seed))
    return root


@pytest.fixture(scope="module")
def pairs(world):
    return PairDataset(CaptionDB(world / "captions"), RegionDB(world / "regions", BOXES))
