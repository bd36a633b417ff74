"""Pairs that know where their pictures stand in a region database, against a look-up of each."""

import numpy as np

from data.batches.pairs import JoinedPairs, PairDataset
from data.captions.db import CaptionDB
from data.regions.db import RegionDB
from tests.data.storage.test_record_sums import KEYS, write_captions, write_images


def test_pairs_know_the_rows_of_their_pictures(tmp_path):
    """Of one database and of joined ones: also where the order differs, and where keys are equal."""
    write_images(tmp_path / "a", keys=KEYS[::-1])
    write_images(tmp_path / "b", keys=KEYS[3:], seed=1)
    databases = RegionDB(tmp_path / "a"), RegionDB(tmp_path / "b")
    texts = write_captions(tmp_path, "first", KEYS[2:9]), write_captions(tmp_path, "second", KEYS[5:])
    parts = [PairDataset(CaptionDB(text), database) for text, database in zip(texts, databases)]
    for part in parts:
        assert part.region_rows.tolist() == [part.regions.keys.find(key) for key in part.images]
    joined = JoinedPairs(parts)
    order = np.random.default_rng(0).permutation(len(joined))
    alone = [parts[0].examples(np.array([n])) if n < len(parts[0]) else parts[1].examples(np.array([n - len(parts[0])])) for n in order]
    found = joined.examples(order)
    for n, one in enumerate(alone):
        assert np.array_equal(found.regions[n].features, one.regions[0].features) and found.words[n].tolist() == one.words[0].tolist()
