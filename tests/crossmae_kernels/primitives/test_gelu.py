"""GELU and its derivative for every finite argument of a 16-bit dtype, against float64."""

import math

import pytest
import torch


def all_finite(dtype):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype).float()
    return values[values.isfinite()]


@pytest.fixture
def evaluate(device):
    """The device functions on float32 arguments, to the precision of a dtype."""
    import triton
    from gelu_kernel import evaluate as kernel

    def run(h, dtype):
        h = h.to(device)
        value, gradient = torch.empty_like(h), torch.empty_like(h)
        # The dtype is that of an empty tensor.
        kernel[(triton.cdiv(len(h), 1024),)](h, value, gradient, h.new_empty(0, dtype=dtype), len(h), BLOCK=1024)
        return value.cpu().double(), gradient.cpu().double()

    return run


def half_unit(of, dtype):
    """Half a unit in the last place of ``dtype`` at the size of ``of``."""
    info = torch.finfo(dtype)
    return 2.0 ** of.abs().clamp(min=info.tiny).log2().floor() * info.eps / 2


# Arguments whose square is beyond float32's range have a density of 0.
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize(("dtype", "share"), [(torch.float16, 0.2), (torch.bfloat16, 0.34)])
def test_16_bits_err_by_a_part_of_half_a_unit_in_the_last_place(evaluate, dtype, share):
    arguments = all_finite(dtype)
    value, gradient = evaluate(arguments, dtype)
    h = arguments.double()
    # Far out ndtr loses its digits, and its logarithm does not.
    lower = torch.where(h < -1, torch.special.log_ndtr(h).exp(), torch.special.ndtr(h))
    density = (-h * h / 2).exp() / math.sqrt(2 * math.pi)
    exact = h * lower
    counts = exact.abs() >= 2.0**-120
    assert (((value - exact).abs() / half_unit(exact, dtype))[counts] <= share).all()
    # What is left out is as good as 0.
    assert (
        value[~counts].abs() <= max(2.0**-119, torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / 2)
    ).all()
    # The derivative is a sum whose parts cancel at -0.75; its error is measured against the larger one.
    larger = torch.maximum(lower, (h * density).abs())
    assert (((gradient - lower - h * density).abs() / half_unit(larger, dtype))[larger >= 2.0**-120] <= share).all()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_infinity_and_nan_are_as_in_pytorch(evaluate):
    arguments = torch.tensor([float("inf"), float("nan"), -0.0, 0.0])
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        value, _ = evaluate(arguments, dtype)
        assert value[0] == float("inf")
        assert value[1].isnan()
        assert not value[2:].any()


def test_float32_is_exact(evaluate):
    h = torch.linspace(-8, 8, 4001)
    value, gradient = evaluate(h, torch.float32)
    leaf = h.double().requires_grad_()
    exact = torch.nn.functional.gelu(leaf)
    exact.sum().backward()
    torch.testing.assert_close(value, exact.detach(), rtol=3e-7, atol=5e-7)
    torch.testing.assert_close(gradient, leaf.grad, rtol=3e-7, atol=5e-7)
