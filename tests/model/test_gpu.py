"""On a GPU: the same numbers as on the CPU, and training that fits it. `make test` leaves these out where there is none."""

import copy
import functools

import pytest
import torch
from ranks_worker import build, make_batch

from data.batches.ragged import Layout
from model.attention import attend
from model.objectives import OBJECTIVES
from model.objectives.gradient_cache import backward_in_chunks
from model.objectives.heads import PAPER, heads_of
from model.precision import autocast, loss_scaler
from optim.optimizer import OptimOptions, apply_update, build_optimizer

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")


@pytest.mark.parametrize("task", PAPER)
def test_losses_and_gradients_are_those_of_the_cpu(task):
    losses, gradients = [], []
    for device in (torch.device("cpu"), GPU):
        model, heads = (module.to(device) for module in build())
        loss = OBJECTIVES[task]().forward(model, heads, make_batch(task, list(range(7))).to(device)).mean
        loss.backward()
        losses.append(loss.item())
        gradients.append({n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-3, msg=name)


@pytest.mark.parametrize("first_only", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_attention_is_that_of_the_cpu(dtype, first_only):
    """In half precision it is the kernel that reads packed rows, where torch and the GPU have it."""
    torch.manual_seed(0)
    lengths = [40, 3, 12, 25, 2, 31, 9, 38, 1, 40, 17]
    on_cpu = Layout.of(lengths)
    inputs = [torch.randn(sum(lengths), 128, dtype=dtype) for _ in range(3)]
    found = []
    for device in (torch.device("cpu"), GPU):
        q, k, v = (x.to(device, torch.float32 if device != GPU else dtype).requires_grad_() for x in inputs)
        layout = on_cpu.to(device)
        out = attend(q[layout.firsts()] if first_only else q, k, v, layout, heads=2, dropout=0.0)
        out.float().square().sum().backward()
        found.append([out.float().cpu(), *(x.grad.float().cpu() for x in (q, k, v))])
    close = 1e-5 if dtype == torch.float32 else 4e-2
    for own, other in zip(*found, strict=True):
        torch.testing.assert_close(other, own, atol=close, rtol=close)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_lowers_the_loss_in_every_precision(precision):
    model, heads = (module.to(GPU) for module in build())
    optimizer, scaler = build_optimizer([model, heads], OptimOptions(lr=3e-3)), loss_scaler(GPU, precision)
    batch = make_batch("cmr", list(range(7))).to(GPU)
    losses = []
    for _ in range(30):
        with autocast(GPU, precision):
            loss = OBJECTIVES["cmr"]().forward(model, heads, batch).mean
        scaler.scale(loss).backward()
        apply_update(optimizer, scaler, 3e-3, 5.0)
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_gradient_cache_sees_the_dropout_of_the_gpu_twice():
    model = build(dropout=0.3)[0].to(GPU)
    batch = make_batch("cmr", list(range(7))).to(GPU)
    context = functools.partial(autocast, GPU, "bf16")
    cmr = OBJECTIVES["cmr"]()
    heads = heads_of(cmr, model.config)

    def loss_of(embedded):
        return cmr.contrast(embedded, heads, batch).share(7)

    found = []
    for cached in (False, True):
        twin = copy.deepcopy(model)
        torch.manual_seed(1)
        if cached:
            backward_in_chunks(functools.partial(cmr.embed, twin), batch, 3, context, loss_of)
        else:
            parts = []
            for part in batch.split(3):
                with context():
                    parts.append(cmr.embed(twin, part))
            loss_of([None if views[0] is None else torch.cat(views) for views in zip(*parts, strict=True)]).backward()
        found.append({n: p.grad for n, p in twin.named_parameters() if p.grad is not None})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-4, rtol=1e-2, msg=name)
