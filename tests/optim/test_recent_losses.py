"""Losses between two lines of metrics: means by task, speed, waiting for data, and which record is no number."""

import numpy as np
import pytest
import torch

from data.annotations.records import Caption
from data.batches.pairs import open_pairs
from data.captions.tokenizers import CaptionTokenizer
from data.captions.writer import write_caption_db
from data.errors import BadInput
from data.regions.db import BoxOptions, Regions
from data.regions.writer import RegionWriter
from model.distributed import SINGLE
from optim.losses import RecentLosses, reason_of_nan


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Six pictures of one caption each; p2 has a NaN feature, p3 an infinite box, p4 a NaN label."""
    root = tmp_path_factory.mktemp("pairs")
    (root / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nred\ndog\n")
    records = [Caption(f"p{i}.jpg", "a red dog", f"c{i}", "train", "en") for i in range(6)]
    write_caption_db(root / "captions", records, CaptionTokenizer.from_pretrained(root / "vocab.txt"), ["a.jsonl"])
    with RegionWriter(root / "regions") as writer:
        for i in range(6):
            regions = Regions(np.ones((3, 4)), np.ones((3, 6)), np.ones(3), np.ones((3, 2)))
            if i == 2:
                regions.features[1, 2] = np.nan
            elif i == 3:
                regions.norm_bb[0, 0] = np.inf
            elif i == 4:
                regions.soft_labels[2, 1] = np.nan
            writer.add(f"p{i}.npz", regions)
    return open_pairs(root / "captions", root / "regions", BoxOptions())


def test_recent_losses_are_averaged_by_task(pairs):
    recent = RecentLosses(SINGLE)
    parameter = torch.ones(2, requires_grad=True)
    for name, value in (("cmr", 1.0), ("vmlm", 5.0), ("cmr", 2.0)):
        recent.add(name, (parameter * value).mean(), pairs, np.array([0, 1, 5]), 3)
    metrics = recent.flush(3)
    assert metrics.pop("speed/pairs_per_s") > 0 and metrics.pop("speed/waiting_for_data") == 0
    assert metrics == {"train/cmr/loss": 1.5, "train/vmlm/loss": 5.0}
    recent.add("cmr", parameter.mean() * 7, pairs, np.array([0]), 1)
    assert recent.flush(4)["train/cmr/loss"] == 7.0  # and only what came since


def test_what_is_no_training_does_not_slow_the_speed(pairs, monkeypatch):
    clock = iter([0.0, 2.0, 12.0, 13.0, 20.0, 25.0])  # started; a validation from 2 to 12; a mining from 13 to 20; flushed
    monkeypatch.setattr("optim.losses.time.perf_counter", lambda: next(clock, 99.0))
    recent = RecentLosses(SINGLE)
    recent.add("cmr", torch.tensor(1.0), pairs, np.array([0]), 16)
    for _ in range(2):
        with recent.paused():
            pass
    assert recent.flush(1)["speed/pairs_per_s"] == 2.0  # 16 pairs in 25 - 10 - 7 seconds


def test_waiting_for_data_is_a_share_of_the_time_without_pauses(pairs, monkeypatch):
    # started; a batch from 1 to 3; another from 4 to 14, of which 5 to 12 are a mining; the end from 15 to 15; flushed
    clock = iter([0.0, 1.0, 3.0, 4.0, 5.0, 12.0, 14.0, 15.0, 27.0])
    monkeypatch.setattr("optim.losses.time.perf_counter", lambda: next(clock, 99.0))
    recent = RecentLosses(SINGLE)

    def batches():
        yield "a"
        with recent.paused():
            pass
        yield "b"

    assert list(recent.waited_for(batches())) == ["a", "b"]
    recent.add("cmr", torch.tensor(1.0), pairs, np.array([0]), 16)
    assert recent.flush(1)["speed/waiting_for_data"] == 25.0  # 2 + 3 of 27 - 7 seconds


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "indices, culprit",
    [([0, 2, 5], "key p2.npz .* features"), ([3, 0], "key p3.npz .* norm_bb"), ([1, 4], "key p4.npz .* soft_labels")],
)
def test_a_loss_that_is_no_number_names_the_record(pairs, value, indices, culprit):
    recent = RecentLosses(SINGLE)
    recent.add("cmr", torch.tensor(0.5), pairs, np.array([0, 1]), 2)
    recent.add("mrckl", torch.tensor(value), pairs, np.array(indices), 2)
    with pytest.raises(BadInput, match=f"loss of mrckl is {value} by step 9: {pairs.regions.folder}: {culprit}"):
        recent.flush(9)


def test_without_a_bad_record_training_diverged(pairs):
    message = reason_of_nan(pairs, np.array([5, 0]))
    assert (
        message.startswith("training diverged on the batch of caption c5 (") and str(pairs.captions.folder) in message
    )
