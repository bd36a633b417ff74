import pytest
import torch

from model.dropout import Dropout


def drawn(shape, rate=0.1, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return Dropout(rate)(torch.ones(shape, dtype=dtype))


@pytest.mark.parametrize("shape", [(3, 5), (7,), (4, 4, 4), (0, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_factors_are_what_sixteen_bits_each_say(shape, dtype):
    """The twin: the generator's 64-bit words, lowest bits first, one number after the other in Python."""
    found = drawn(shape, 0.3, dtype)
    assert found.shape == shape and found.dtype == dtype
    torch.manual_seed(0)
    words = torch.empty(-(-found.numel() // 4), dtype=torch.int64).random_(-(2**63), None).tolist()
    bits = [(word >> shift) % 65536 for word in words for shift in (0, 16, 32, 48)][: found.numel()]
    signed = [each - 65536 if each >= 32768 else each for each in bits]
    dropped = round(0.3 * 65536)
    expected = torch.tensor([0.0 if each < dropped - 32768 else 1 / (1 - dropped / 65536) for each in signed]).to(dtype)
    assert torch.equal(found.flatten(), expected)


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
def test_the_rate_is_the_rate_and_the_mean_stays(rate):
    found, number = drawn((1000, 1000), rate), 1_000_000
    share = (found == 0).double().mean().item()
    assert abs(share - rate) < 5 * (rate * (1 - rate) / number) ** 0.5 + 1 / 65536
    assert abs(found.double().mean().item() - 1) < 5 * (rate / (1 - rate) / number) ** 0.5


def test_places_do_not_depend_on_one_another():
    dropped = (drawn((400_000,), 0.5) == 0).double()
    for distance in (1, 2, 3, 4, 8, 768):
        both = (dropped[:-distance] * dropped[distance:]).mean().item()
        assert abs(both - 0.25) < 0.005, distance


def test_the_gradient_is_dropped_where_the_number_is():
    x = torch.randn(50, 40, requires_grad=True)
    torch.manual_seed(3)
    y = Dropout(0.2)(x)
    y.sum().backward()
    assert torch.equal(x.grad * x.detach(), y.detach()) and 0 < (x.grad == 0).sum() < x.numel()


def test_a_seed_and_a_state_of_the_generator_repeat_it():
    assert torch.equal(drawn((30, 3)), drawn((30, 3))) and not torch.equal(drawn((30, 3)), drawn((30, 3), seed=1))
    dropout, x = Dropout(0.1), torch.ones(30, 3)
    state, first = torch.get_rng_state(), dropout(x)
    torch.set_rng_state(state)
    assert torch.equal(dropout(x), first) and not torch.equal(dropout(x), first)


@pytest.mark.parametrize("rate, expected", [(0.0, 1.0), (1.0, 0.0)])
def test_rates_that_draw_nothing(rate, expected):
    state = torch.get_rng_state()
    assert torch.equal(Dropout(rate)(torch.ones(6, 4)), torch.full((6, 4), expected))
    assert rate or torch.equal(torch.get_rng_state(), state)


def test_nothing_is_dropped_outside_training():
    x, state = torch.randn(6, 4), torch.get_rng_state()
    assert torch.equal(Dropout(0.5).eval()(x), x) and torch.equal(torch.get_rng_state(), state)
