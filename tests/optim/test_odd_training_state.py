"""A training state whose files are whole, and which holds what no update can go on from: refused when it is read, not by the update that
stumbles over it, nor taken for numbers."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.batches.samplers import DrawStream, Source
from data.errors import BadInput
from model.distributed import SINGLE
from model.retrieval.mining import HardNegativeOptions, HardNegatives, OriginalHardNegatives
from optim.losses import RecentLosses
from optim.optimizer import OptimOptions, build_optimizer
from optim.saving import load_optimizer, load_training
from tests.small_runs import open_run, save

NAN = float("nan")


@pytest.fixture
def trained():
    module = torch.nn.Linear(3, 2)
    optimizer = build_optimizer([module], OptimOptions())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return module, optimizer


MOMENTS = [
    lambda moments: moments.pop("exp_avg_sq"),
    lambda moments: moments.update(exp_avg=None),
    lambda moments: moments.update(exp_avg=moments["exp_avg"][:-1]),
    lambda moments: moments.update(exp_avg=moments["exp_avg"] * NAN),
    lambda moments: moments.update(exp_avg_sq=moments["exp_avg_sq"] - 1),
    lambda moments: moments.update(exp_avg=moments["exp_avg"].long()),
    lambda moments: moments.update(step=torch.tensor(NAN)),
    lambda moments: moments.update(step=torch.zeros(3)),
    lambda moments: moments.update(more=1),
]


@pytest.mark.parametrize("change", MOMENTS)
def test_odd_moments_are_refused(tmp_path, trained, change):
    module, optimizer = trained
    saved = optimizer.state_dict()
    torch.save(saved["state"], tmp_path / "optimizer-00000-of-00001.pt")
    training = {"ranks": 1, "param_groups": saved["param_groups"]}
    fresh = build_optimizer([module], OptimOptions())
    load_optimizer(fresh, tmp_path, training)
    state = copy.deepcopy(saved["state"])
    change(state[0])
    torch.save(state, tmp_path / "optimizer-00000-of-00001.pt")
    with pytest.raises((ValueError, TypeError)):  # of which a resume makes one line
        load_optimizer(fresh, tmp_path, training)


def test_settings_of_the_optimizer_are_those_of_the_recipe(tmp_path, trained):
    module, optimizer = trained
    saved = optimizer.state_dict()
    torch.save(saved["state"], tmp_path / "optimizer-00000-of-00001.pt")
    odd = [{"params": group["params"], "betas": "x", "eps": NAN, "weight_decay": 7, "step": 5} for group in saved["param_groups"]]
    fresh = build_optimizer([module], OptimOptions())
    load_optimizer(fresh, tmp_path, {"ranks": 1, "param_groups": odd})
    assert [(group["betas"], group["eps"], group["step"]) for group in fresh.param_groups] == [((0.9, 0.98), 1e-6, 5)] * 2
    assert [group["weight_decay"] for group in fresh.param_groups] == [0.01, 0.0]
    with pytest.raises(ValueError, match="groups of parameters"):
        load_optimizer(fresh, tmp_path, {"ranks": 1, "param_groups": odd[:1]})


@pytest.mark.parametrize("odd", [{"step": -1}, {"ranks": 0}, {"best": NAN}, {"best": "x"}, {"param_groups": [{}]}, {"step": 1.5}])
def test_odd_counts_of_a_checkpoint_are_refused(tmp_path, odd):
    folder = save(open_run(tmp_path, resume=False), 4, best=0.5)
    training = load_training(folder)
    torch.save(training | odd, folder / "training.pt")
    with pytest.raises(BadInput, match=r"training.pt.*point the link last to another checkpoint"):
        load_training(folder)


MINED = [torch.zeros(4, 3), torch.zeros(3, 2, dtype=torch.int32), torch.full((4, 2), 3, dtype=torch.int32), torch.full((4, 2), -2, dtype=torch.int32)]


@pytest.mark.parametrize("odd", MINED)
@pytest.mark.parametrize("kind, window", [(HardNegatives, "top"), (OriginalHardNegatives, "original")])
def test_a_ranking_of_other_data_is_refused(kind, window, odd):
    pairs = SimpleNamespace(image_of=np.array([0, 0, 1, 2]), images=["a", "b", "c"], captions=SimpleNamespace(folder="db"))
    pairs.parts = [(pairs, np.arange(3))]
    options = HardNegativeOptions(count=2 if kind is HardNegatives else 1, window=window)
    negatives = kind(pairs, options)
    negatives.mine(torch.eye(4, 5), torch.eye(3, 5))
    saved = negatives.state_dict()
    again = kind(pairs, options)
    again.load_state_dict(saved)
    assert (again.ranking == negatives.ranking).all()
    for name in saved:
        with pytest.raises(ValueError, match="what was mined"):
            again.load_state_dict(saved | {name: odd})


DRAWS = [{"position": -1}, {"position": 0.5}, {"number": -3}, {"cursors": [[-1, 0]]}, {"cursors": [[0, -1]]}, {"cursors": [0]}, {"cursors": [["a", 0]]}]


@pytest.mark.parametrize("odd", DRAWS)
def test_an_odd_place_in_the_data_is_refused(odd):
    sampler = DrawStream([Source(1.0, np.full(6, 4), np.full(6, 4))], 16, seed=0)
    with pytest.raises((ValueError, BadInput)):
        sampler.load_state_dict(sampler.state_dict() | odd)


def test_a_place_behind_the_last_batch_is_refused():
    sampler = DrawStream([Source(1.0, np.full(6, 4), np.full(6, 4))], 16, seed=0)
    sampler.load_state_dict({"position": 3, "number": 3, "cursors": [[0, 3]]})
    assert next(iter(sampler)).position == 3 and sampler.sources[0].cursor == [1, 1]  # the next pass
    sampler.load_state_dict({"position": 3, "number": 3, "cursors": [[0, 10**12]]})
    with pytest.raises(BadInput, match="of a pass that has 3"):
        next(iter(sampler))


@pytest.mark.parametrize("odd", [{"shares": [torch.zeros(2)]}, {"shares": [1.5]}, {"shares": [torch.tensor(1)]}, {"names": [3]}, {"names": []}])
def test_odd_losses_are_refused(odd):
    with pytest.raises((ValueError, TypeError)):
        RecentLosses(SINGLE).load_state_dict({"names": ["cmr"], "shares": [torch.tensor(0.5)]} | odd)
