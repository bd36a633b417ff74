"""Blocks through torch.compile: the same numbers as without."""

import pytest
import torch
from ranks_worker import build, make_batch

from data.errors import BadInput
from model.objectives import OBJECTIVES
from model.transformer import compile_blocks


def test_compiled_blocks_compute_what_eager_ones_do_whatever_the_lengths():
    model, heads = build()
    try:
        compile_blocks(model)
    except BadInput as error:
        pytest.skip(str(error))
    objective = OBJECTIVES["mrfr"]()  # all positions of the image tower, position 0 of the text tower
    for rows in (range(7), range(2, 5)):
        found = []
        for compiled in (True, False):
            compile_blocks(model, compiled)
            model.zero_grad()
            outcome = objective.forward(model, heads, make_batch("mrfr", list(rows)))
            outcome.mean.backward()
            found.append((outcome.loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
        torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-5)
        assert found[0][1].keys() == found[1][1].keys()
        for name, gradient in found[1][1].items():
            torch.testing.assert_close(found[0][1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)
    counters = torch._dynamo.utils.counters["stats"]
    assert counters["unique_graphs"] <= 4  # one for all blocks and numbers of rows, and the trial's


def test_where_torch_cannot_compile_it_is_said_before_training(monkeypatch):
    def broken(function):
        raise RuntimeError("no working C++ compiler\nfound")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(BadInput, match=r"compile: torch.compile does not work here .no working C\+\+ compiler found.; it needs a C\+\+ compiler"):
        compile_blocks(build()[0])
