"""What training leaves out of its images: the right share, never all of it, the same for a pair wherever it comes."""

import numpy as np
import pytest

from data.batches.batch import Examples, collate_pairs
from data.batches.thinning import Thinning
from data.errors import BadInput
from data.regions.db import Regions

META = {"CLS": 1, "SEP": 2}


def make_examples(indices, count=30):
    """Pairs whose regions say whose they are: 40 · pair + place."""
    numbers = [40 * int(i) + np.arange(count) for i in indices]
    pictures = [Regions(*(np.repeat(n[:, None], w, 1).astype(np.float32) for w in (4, 6)), n) for n in numbers]
    names = [str(i) for i in indices]
    return Examples(META, names, names, np.asarray(indices), [np.arange(3) for _ in names], pictures)


def left(indices, share=0.5, epoch=1, seed=5, count=30):
    examples = make_examples(indices, count)
    Thinning(share, seed).thin(examples, epoch, np.array(indices))
    return examples


def places(examples):
    return [regions.conf.tolist() for regions in examples.regions]


def test_the_share_is_left_out_in_order_and_all_arrays_of_a_region_together():
    examples = left(range(400), share=0.3)
    assert np.mean([len(regions) for regions in examples.regions]) == pytest.approx(21, abs=0.5)
    for index, regions in enumerate(examples.regions):
        assert (np.diff(regions.conf) > 0).all() and set(regions.conf // 40) == {index}
        assert np.array_equal(regions.features[:, 0], regions.conf) and np.array_equal(regions.norm_bb[:, 0], regions.conf)
    batch = collate_pairs(examples)
    assert batch.images.counts.tolist() == [len(regions) for regions in examples.regions]


def test_one_region_stays():
    assert {len(regions) for regions in left(range(200), share=0.99, count=2).regions} == {1}


def test_a_draw_is_of_pair_epoch_and_seed_not_of_the_batch():
    of_4, of_9, of_2 = places(left([4, 9, 2]))
    assert places(left([2, 4])) == [of_2, of_4]
    assert of_4 != [n - 40 * 5 for n in of_9]
    assert places(left([4], epoch=2)) != [of_4] != places(left([4], seed=6))


def test_regions_that_two_pairs_share_are_thinned_for_each():
    examples = make_examples([1, 1])
    examples.regions[1] = examples.regions[0]  # as a dataset gives them, which reads each image once
    whole = examples.regions[0]
    Thinning(0.5, seed=0).thin(examples, 0, np.array([1, 2]))
    assert len(whole) == 30 and places(examples)[0] != places(examples)[1]


@pytest.mark.parametrize("share", [1.0, -0.1])
def test_a_share_out_of_range(share):
    with pytest.raises(BadInput, match=f"region_dropout must be at least 0 and below 1, found {share}"):
        Thinning(share, seed=0)
