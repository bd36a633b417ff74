"""Batches that come from other processes through shared memory are those that were made, and stay what they are."""

import gc
import os

import numpy as np
import pytest
import torch

from data.batches.loader import AHEAD, BatchLoader, batch_loader
from data.batches.shared_memory import Packed, SharedBuffers

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.bool, torch.uint8]


def make(seed):
    """Tensors of every type and of several shapes, and what is no tensor; larger and smaller by turns."""
    generator = torch.Generator().manual_seed(seed)
    rows = 1 + 37 * seed % 50
    made = {str(t): (torch.rand(rows, 7, generator=generator) * 5).to(t) for t in DTYPES}
    return made | {
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(seed),
        "turned": torch.rand(4, rows, generator=generator).T,
        "names": [f"{seed}.npz"] * rows,
        "array": np.arange(rows),
        "nothing": None,
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
        elif isinstance(value, np.ndarray):
            assert np.array_equal(found[name], value)
        else:
            assert found[name] == value


def test_packed_and_unpacked():
    buffers = SharedBuffers(2)
    packed = [Packed.pack(make(seed), buffers, seed % 2) for seed in (3, 4)]
    found = [each.unpack(buffers, pin=False) for each in packed]
    Packed.pack(make(5), buffers, 0)  # the buffer is used again, and grows
    Packed.pack(make(1), buffers, 1)
    for seed, value in zip((3, 4), found, strict=True):
        assert_same(value, make(seed))
    assert all(len(each.pickled) < each.size + 3000 and b"float16" in each.pickled for each in packed)
    large = Packed.pack({"x": torch.zeros(1 << 20)}, buffers, 0)
    assert len(large.pickled) < 300 and large.size == 4 << 20  # no byte of a tensor is pickled
    assert Packed.pack("no tensor", buffers, 0).unpack(buffers, pin=False) == "no tensor"


def test_unpacked_tensors_can_be_changed():
    buffers = SharedBuffers(1)
    x = Packed.pack([torch.zeros(3), torch.ones(3)], buffers, 0).unpack(buffers, pin=False)
    x[0] += 5
    assert x[0].tolist() == [5, 5, 5] and x[1].tolist() == [1, 1, 1]


@pytest.mark.parametrize(("workers", "method"), [(0, None), (1, "fork"), (2, "fork"), (2, "spawn")])
def test_every_batch_arrives_in_order_and_stays(workers, method):
    draws = range(40)
    loader = batch_loader(make, draws, workers, pin=False)
    loader.multiprocessing_context = method
    for _ in range(1 if method == "spawn" else 2):
        found = list(loader)  # all are held, many more than there are buffers
        assert [draw for draw, _ in found] == list(draws)
        for draw, batch in found:
            assert_same(batch, make(draw))


def test_an_iteration_that_is_left_does_not_disturb_another():
    loader = batch_loader(make, range(30), 2, pin=False)
    left = iter(loader)
    next(left)
    for draw, batch in loader:
        assert_same(batch, make(draw))
    assert_same(next(left)[1], make(1))


def _fail(draw):
    raise ValueError(f"draw {draw} cannot be made")


def test_what_a_worker_raises_is_raised_here():
    with pytest.raises(ValueError, match="draw 0 cannot be made"):
        list(batch_loader(_fail, range(3), 1, pin=False))


def test_no_file_and_no_memory_is_left_open():
    def open_files():
        return len(os.listdir("/proc/self/fd"))

    list(batch_loader(make, range(5), 1, pin=False))
    gc.collect()
    before = open_files()
    for _ in range(3):
        list(batch_loader(make, range(5), 1, pin=False))
        iterator = iter(batch_loader(make, range(50), 1, pin=False))
        next(iterator)
        del iterator
    gc.collect()
    assert open_files() == before
    assert "memfd:batch" not in open("/proc/self/maps").read()


def _stamp(number):
    return torch.full((1000,), number)


def test_a_slow_reader_never_sees_a_buffer_that_is_written_again():
    """There is one buffer more than batches are underway."""
    loader = batch_loader(_stamp, range(200), 2, pin=False)
    assert isinstance(loader, BatchLoader) and loader.prefetch_factor == AHEAD
    for draw, batch in loader:
        for _ in range(3):
            os.sched_yield()
        assert (batch == draw).all()
