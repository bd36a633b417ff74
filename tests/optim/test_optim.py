"""Parameter groups, the learning rate of every step, clipping, precision."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from data.errors import BadInput
from model.bi_encoder import LightningDOT, LightningDOTConfig
from model.distributed import SINGLE
from model.objectives.heads import PretrainingHeads
from model.precision import InferenceLinear, autocast, choose_device, for_inference, loss_scaler
from model.transformer import EncoderConfig
from optim.loop import MicroBatch, Update, Updater, with_following
from optim.optimizer import OptimOptions, apply_update, build_optimizer
from optim.schedule import build_schedule


def small_model():
    torch.manual_seed(0)
    sizes = EncoderConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=8,
    )  # fmt: skip
    return LightningDOT(
        LightningDOTConfig(txt=sizes, img=sizes, project_dim=6, feature_dim=4, num_labels=3, cls_token_id=3)
    )


# ---- optimizer -------------------------------------------------------------------------------------------------------


def test_biases_and_layer_norms_are_not_decayed():
    model = small_model()
    heads = PretrainingHeads(model.config)
    optimizer = build_optimizer([model, heads], OptimOptions(weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    # by the kind of module that owns a parameter, and not by its number of dimensions or its name
    expected = {}
    for module in [*model.modules(), *heads.modules()]:
        for name, parameter in module.named_parameters(recurse=False):
            matrix = isinstance(module, nn.Linear | nn.Embedding) and name == "weight"
            assert matrix or isinstance(module, nn.LayerNorm) or name == "bias"
            expected[id(parameter)] = 0.3 if matrix else 0.0
    assert decay == expected and set(decay.values()) == {0.0, 0.3}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decay)


def test_frozen_parameters_are_left_out():
    model = small_model()
    model.txt_model.requires_grad_(False)
    optimizer = build_optimizer([model], OptimOptions())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.img_model.parameters()}


def test_steps_match_adamw_by_hand():
    """Loshchilov & Hutter's algorithm 2 with bias correction, on one matrix (decayed) and one vector (not)."""
    options = OptimOptions(lr=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.5)
    module = nn.Linear(1, 1)
    nn.init.constant_(module.weight, 2.0), nn.init.constant_(module.bias, 2.0)
    optimizer = build_optimizer([module], options)
    w = {"weight": 2.0, "bias": 2.0}
    m, v = dict.fromkeys(w, 0.0), dict.fromkeys(w, 0.0)
    for step, gradient in enumerate([0.5, -1.0, 3.0], start=1):
        module.weight.grad, module.bias.grad = torch.full((1, 1), gradient), torch.full((1,), gradient)
        optimizer.step()
        for name, decay in (("weight", 0.5), ("bias", 0.0)):
            m[name] = 0.8 * m[name] + 0.2 * gradient
            v[name] = 0.9 * v[name] + 0.1 * gradient**2
            w[name] *= 1 - 0.1 * decay
            w[name] -= 0.1 * (m[name] / (1 - 0.8**step)) / (math.sqrt(v[name] / (1 - 0.9**step)) + 1e-3)
            assert getattr(module, name).item() == pytest.approx(w[name], rel=1e-5)


def test_clipping():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    optimizer = build_optimizer([model], OptimOptions())
    model[2].bias.requires_grad_(False)  # a parameter may lack a gradient

    def set_gradients():
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator) if parameter.requires_grad else None
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    before = set_gradients()
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in before))
    assert norm > 1.5
    seen = []
    optimizer.register_step_pre_hook(
        lambda *_: seen.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    )
    scaler = loss_scaler(torch.device("cpu"), "fp32")
    for limit, factor in ((1.5, 1.5 / norm), (norm * 2, 1.0), (0, 1.0)):
        set_gradients()
        assert float(apply_update(optimizer, scaler, 0.1, limit)) == pytest.approx(norm, rel=1e-5)
        for a, b in zip(seen.pop(), before, strict=True):
            torch.testing.assert_close(a, b * factor, rtol=1e-4, atol=1e-6)
        assert all(p.grad is None for p in model.parameters()) and optimizer.param_groups[0]["lr"] == 0.1


def test_fp16_gradients_are_scaled_and_an_overflow_leaves_the_weights():
    module = nn.Linear(2, 1, bias=False)
    optimizer = build_optimizer([module], OptimOptions(weight_decay=0.0))
    scaler = loss_scaler(torch.device("cpu"), "fp16")
    before = module.weight.detach().clone()
    scaler.scale(module(torch.ones(1, 2)).sum()).backward()
    assert float(module.weight.grad[0, 0]) == scaler.get_scale() > 1000
    assert float(apply_update(optimizer, scaler, 0.1, 0)) == pytest.approx(math.sqrt(2))  # unscaled
    torch.testing.assert_close(module.weight.detach(), before - 0.1)
    scale, before = scaler.get_scale(), module.weight.detach().clone()
    module.weight.grad = torch.tensor([[float("inf"), 1.0]])
    apply_update(optimizer, scaler, 0.1, 0)
    assert torch.equal(module.weight, before) and scaler.get_scale() == scale / 2


def test_apex_is_asked_for_by_name_only():
    with pytest.raises(BadInput, match=r"optim\.algorithm apex: NVIDIA apex is not installed"):
        build_optimizer([nn.Linear(2, 2)], OptimOptions(algorithm="apex"))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"lr": 0.0}, "optim.lr must be above 0, found 0.0"),
        ({"warmup_steps": -1}, "warm-up out of range"),
        ({"warmup_ratio": 1.5}, "warm-up out of range"),
        ({"warmup_steps": 5, "warmup_ratio": 0.1}, "give warmup_steps or warmup_ratio, not both"),
        ({"schedule": "uniter_invsqrt"}, "uniter_invsqrt falls from the end of the warm-up: give warmup_steps"),
        ({"schedule": "constant", "warmup_steps": 3}, "constant has no warm-up"),
        ({"grad_clip": -1.0}, "optim.grad_clip must be 0 or above, found -1.0"),  # it would turn every gradient round
    ],
)
def test_impossible_options_are_refused(values, message):
    with pytest.raises(BadInput, match=message):
        OptimOptions(**values)


# ---- schedule --------------------------------------------------------------------------------------------------------


def test_schedule_by_hand():
    rates = [build_schedule(OptimOptions(lr=8.0, warmup_steps=4), 12)(step) for step in range(12)]
    assert rates == [2.0, 4.0, 6.0, 8.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    rates = [build_schedule(OptimOptions(lr=8.0, warmup_ratio=0.25), 8)(step) for step in range(8)]
    assert rates == pytest.approx([4.0, 8.0, 8.0, 8 * 5 / 6, 8 * 4 / 6, 8 * 3 / 6, 8 * 2 / 6, 8 / 6])
    assert [build_schedule(OptimOptions(lr=8.0), 4)(step) for step in range(4)] == [8.0, 6.0, 4.0, 2.0]
    rates = [build_schedule(OptimOptions(lr=8.0, schedule="uniter_invsqrt", warmup_ratio=0.1), 4)(step) for step in range(4)]
    assert rates == pytest.approx([8.0, 8 / 2**0.5, 8 / 3**0.5, 4.0])  # a warm-up of less than an update is one of one


@pytest.mark.parametrize(
    "warmup", [{}, {"warmup_steps": 1}, {"warmup_steps": 30}, {"warmup_ratio": 1.0}, {"warmup_steps": 90}]
)
@pytest.mark.parametrize("total", [1, 2, 30])
def test_no_step_is_wasted_and_none_exceeds_the_peak(warmup, total):
    lr_at = build_schedule(OptimOptions(lr=0.5, **warmup), total)
    rates = [lr_at(step) for step in range(total)]
    assert all(0 < rate <= 0.5 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(rates) == 0.5 or warmup == {"warmup_steps": 90} or warmup.get("warmup_steps", 0) > total


# ---- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_is_of_matrix_products_and_not_of_parameters(precision, dtype):
    model = small_model().eval()
    ids, mask = torch.randint(5, 20, (3, 6)), torch.ones(3, 6, dtype=torch.bool)
    images = torch.randn(3, 4, 4).half(), torch.rand(3, 4, 7), torch.ones(3, 4, dtype=torch.bool)
    for encode, inputs in ((model.encode_text, (ids, mask)), (model.encode_image, images)):
        with autocast("cpu", "fp32"):
            exact = encode(*inputs)
        with autocast("cpu", precision):
            rough = encode(*inputs)
        assert (exact.dtype, rough.dtype) == (torch.float32, dtype)
        torch.testing.assert_close(rough.float(), exact, atol=0.05, rtol=0.05)
        rough.float().sum().backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert {g.dtype for g in gradients} | {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_model_for_inference_computes_what_it_computed(precision):
    model = small_model().eval()
    ids, mask = torch.randint(5, 20, (3, 6)), torch.ones(3, 6, dtype=torch.bool)
    mask[1, 4:] = False
    images = torch.randn(3, 4, 4).half(), torch.rand(3, 4, 7), torch.ones(3, 4, dtype=torch.bool)
    calls = (model.encode_text, (ids, mask)), (model.encode_text, (ids[:1], mask[:1])), (model.encode_image, images)
    with torch.no_grad(), autocast("cpu", precision):
        expected = [encode(*inputs) for encode, inputs in calls]
        for_inference(model, "cpu", precision)
        found = [encode(*inputs) for encode, inputs in calls]
    kinds = {type(module) for module in model.modules()}
    if torch.backends.mkldnn.is_available() and precision == "fp32":
        assert InferenceLinear in kinds and nn.Linear not in kinds
    for one, other in zip(found, expected, strict=True):
        if precision == "fp32":
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
        else:
            assert torch.equal(one, other)


def test_a_layer_without_bias_is_made_ready_too():
    model, x = nn.Sequential(nn.Linear(7, 5, bias=False)), torch.randn(2, 3, 7)
    expected = model(x)
    for_inference(model, "cpu", "fp32")
    torch.testing.assert_close(model(x), expected)


def test_a_model_for_inference_is_not_saved(tmp_path):
    model = small_model()
    for_inference(model, "cpu", "fp32")
    with pytest.raises(BadInput, match="LightningDOT: was made ready for inference and cannot be saved"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model/model.safetensors").exists()


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(BadInput, match="device 'gpu' is not one of auto, cpu, cuda, cuda:N"):
        choose_device("gpu")
    with pytest.raises(BadInput, match="device cuda:99"):
        choose_device("cuda:99")


# ---- recorded from the original --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded():
    return json.loads((Path(__file__).parents[1] / "fixtures" / "optimizer.json").read_text())


def test_schedules_match_the_original(recorded):
    count = 0
    for name, peak in (("uniter_linear", 5e-5), ("uniter_invsqrt", 5e-5), ("hf_linear", 2e-5)):
        for case, rates in recorded["schedules"][name].items():
            warmup, total = map(int, case.split("_"))
            lr_at = build_schedule(OptimOptions(lr=peak, schedule=name, warmup_steps=warmup), total)
            assert [lr_at(step) for step in range(len(rates))] == pytest.approx(rates, rel=1e-9, abs=0)
            count += len(rates)
    assert count == 210
    assert {build_schedule(OptimOptions(lr=5e-5, schedule="constant"), 50)(step) for step in range(60)} == {5e-5}


@pytest.mark.parametrize("name", ["adamw_hf", "adamw_uniter"])
def test_adamw_matches_the_original_step_by_step(recorded, name):
    """Both of its AdamWs are one algorithm with other settings; PyTorch's is not that one."""
    trace = recorded["adamw"][name]
    settings = {"betas": (0.9, 0.999), "eps": 1e-6} | trace["settings"]
    errors = {}
    for algorithm in ("adamw_original", "adamw"):
        module = nn.Linear(4, 5, bias=False)
        module.weight.data = torch.tensor(trace["w0"])
        optimizer = build_optimizer([module], OptimOptions(algorithm=algorithm, **settings))
        errors[algorithm] = 0.0
        for gradient, expected in zip(trace["grads"], trace["trace"], strict=True):
            module.weight.grad = torch.tensor(gradient)
            optimizer.step()
            errors[algorithm] = max(
                errors[algorithm], float((module.weight.detach() - torch.tensor(expected)).abs().max())
            )
    assert errors["adamw_original"] < 1e-6 < 1e-5 < errors["adamw"]


def test_original_adamw_goes_on_from_its_saved_state(tmp_path):
    torch.manual_seed(0)
    gradients = torch.randn(4, 3, 2)

    def trained(steps, optimizer_state=None, weight=None):
        module = nn.Linear(2, 3, bias=False)
        module.weight.data = torch.ones(3, 2) if weight is None else weight.clone()
        optimizer = build_optimizer([module], OptimOptions(algorithm="adamw_original", lr=0.1))
        if optimizer_state is not None:
            optimizer.load_state_dict(optimizer_state)
        for gradient in gradients[steps]:
            module.weight.grad = gradient.clone()
            optimizer.step()
        return module.weight.data, optimizer.state_dict()

    whole, _ = trained(slice(0, 4))
    half, state = trained(slice(0, 2))
    torch.save(state, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(trained(slice(2, 4), state, half)[0], whole)


@pytest.mark.parametrize("name", ["get_optimizer", "build_optimizer"])
def test_the_original_decays_what_it_decayed(recorded, name):
    """By name: the layer norms that are not called LayerNorm are decayed."""
    sizes = EncoderConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=8,
    )  # fmt: skip
    model = LightningDOT(LightningDOTConfig(txt=sizes, img=sizes, project_dim=6, feature_dim=4, num_labels=3))
    prefix = "" if name == "get_optimizer" else "bert."
    modules = [model] if name == "get_optimizer" else [model, PretrainingHeads(model.config)]
    optimizer = build_optimizer(modules, OptimOptions(weight_decay=0.01, no_decay="original"))
    names = {id(p): prefix + n for n, p in model.named_parameters()}
    names |= {id(p): n for module in modules[1:] for n, p in module.named_parameters()}
    for group, expected in zip(optimizer.param_groups, recorded["groups"][name], strict=True):
        assert group["weight_decay"] == expected["wd"]
        unused = {"itm_output.weight", "itm_output.bias"}  # a head that the original never trained
        assert {names[id(p)] for p in group["params"]} == set(expected["names"]) - unused


# ---- accumulation ----------------------------------------------------------------------------------------------------


class _Quadratic:
    """A task of one weight w whose batch b has the loss (w - b)²."""

    def __init__(self):
        self.model = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.model.weight)

    def backward(self, micro, meeting, scaler, accumulation, last):
        loss = (self.model.weight - micro.batch.value).square().sum()
        scaler.scale(loss / accumulation).backward()
        return loss.detach()

    def pairs(self, meeting):
        return 1


@pytest.mark.parametrize(("accumulation", "max_norm"), [("mean", 0.0), ("sum", 0.0), ("mean", 5.0), ("sum", 5.0)])
def test_accumulated_gradients_are_averaged_or_summed_before_they_are_clipped(accumulation, max_norm):
    task = _Quadratic()
    optimizer = torch.optim.SGD(task.model.parameters(), lr=1.0)
    updater = Updater(task, optimizer, loss_scaler(torch.device("cpu"), "fp32"), SINGLE, max_norm, accumulation)
    batches = [SimpleNamespace(value=value, num_rows=1) for value in (0.5, -1.0, -2.5)]
    micros = [MicroBatch("loss", batch, (n,), None, None, 1) for n, batch in enumerate(batches)]
    norm, _ = updater.update(micros, 0, lr=0.1)
    gradient = sum(2 * (1 - batch.value) for batch in batches) / (3 if accumulation == "mean" else 1)  # 12 or 4
    assert float(norm) == pytest.approx(gradient)
    if max_norm:
        gradient = min(gradient, max_norm)
    assert task.model.weight.item() == pytest.approx(1 - 0.1 * gradient, abs=1e-5)


def test_the_sum_is_the_mean_with_a_norm_so_many_times_smaller():
    """Adam follows a gradient and a multiple of it alike."""
    weights = []
    for accumulation, max_norm in (("sum", 3.0), ("mean", 1.0), ("mean", 3.0)):
        task = _Quadratic()
        optimizer = torch.optim.AdamW(task.model.parameters(), lr=0.1, eps=0.0)
        updater = Updater(task, optimizer, loss_scaler(torch.device("cpu"), "fp32"), SINGLE, max_norm, accumulation)
        for step in range(4):
            batches = [SimpleNamespace(value=value + step, num_rows=1) for value in (0.5, -1.0, 4.5)]
            updater.update([MicroBatch("loss", b, (n,), None, None, 1) for n, b in enumerate(batches)], step, lr=0.1)
        weights.append(task.model.weight.item())
    assert weights[0] == pytest.approx(weights[1], abs=1e-6) and weights[0] != pytest.approx(weights[2], abs=1e-3)


# ---- the next update is known ahead ----------------------------------------------------------------------------------


def test_the_next_update_is_drawn_ahead_but_never_beyond_a_validation():
    drawn = []

    def updates():
        for number, validates in enumerate([False, False, True, True, False, True]):
            drawn.append(number)
            yield Update([], {}, str(number), validates, number == 5)

    seen = []
    for update, following in with_following(updates()):
        seen.append((update.stage, following and following.stage, list(drawn)[-1]))
    assert seen == [("0", "1", 1), ("1", "2", 2), ("2", None, 2), ("3", None, 3), ("4", "5", 5), ("5", None, 5)]
    assert list(with_following(iter([]))) == []


def test_updates_that_are_told_of_ahead_are_the_same():
    weights = []
    for ahead in (False, True):
        task = _Quadratic()
        optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
        updater = Updater(task, optimizer, loss_scaler(torch.device("cpu"), "fp32"), SINGLE, 0.0)
        updates = [
            [MicroBatch("loss", SimpleNamespace(value=float(n), num_rows=1), (n,), None, None, 1)] for n in range(4)
        ]
        for step, micros in enumerate(updates):
            stop = "SIGTERM" if step == 1 else None
            following = updates[step + 1] if ahead and step < 3 else None
            _, stopping = updater.update(micros, step, 0.1, stop, following)
            assert stopping == (step == (2 if ahead else 1))  # heard with the update that was told of then
        updater.leave()
        weights.append(task.model.weight.item())
    assert weights[0] == weights[1]
