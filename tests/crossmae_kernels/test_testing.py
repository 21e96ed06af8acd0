"""The judge itself."""

import pytest
import torch
import torch.nn.functional as F
from oracles import naive_gelu, naive_linear, naive_norm
from torch.nn.attention import SDPBackend, sdpa_kernel

from crossmae_kernels.testing import (
    Budget,
    Draw,
    Error,
    Verdict,
    assert_within_budget,
    budgets,
    error,
    poisoned_allocations,
    worst,
)
from crossmae_kernels.testing.budget import DRAWS, magnitude
from crossmae_kernels.testing.recomputation import recomputed_attention
from crossmae_kernels.testing.rounding import random_rounding, round_at_random

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def test_errors_in_both_norms():
    exact = torch.tensor([0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert error(torch.tensor([3.0, 0.0, -1.0, 0.0]), exact) == Error(3.0, 2.5**0.5)
    assert error(torch.empty(0), torch.empty(0, dtype=torch.float64)) == Error(0.0, 0.0)
    with pytest.raises(ValueError, match="exact must be float64"):
        error(torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_at_random_takes_either_neighbour_and_on_average_the_number(dtype):
    wide = 3 * torch.randn(20_000, dtype=torch.float64)
    found = round_at_random(wide, dtype, torch.Generator().manual_seed(0)).double()
    ulp = torch.finfo(dtype).eps * 2 ** wide.abs().log2().floor()
    below = (wide / ulp).floor() * ulp
    assert ((found == below) | (found == below + ulp)).all()
    assert ((found - wide) / ulp).mean().abs() < 0.015
    # The root mean square is that of rounding to nearest, 1 / sqrt(12), times the root of 2.
    assert ((found - wide) / ulp).square().mean().sqrt() == pytest.approx(6**-0.5, rel=0.02)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_the_dtype_holds_is_not_rounded(dtype):
    values = torch.cat([torch.randn(1000), torch.tensor([0.0, 1.0, -2.0, float("inf"), 65504.0])]).to(dtype)
    same = round_at_random(values.double(), dtype, torch.Generator().manual_seed(0))
    assert torch.equal(same, values)
    with random_rounding(0):
        copies = [values.clone(), torch.stack([values, values])[1], values[torch.arange(len(values))]]
    assert all(torch.equal(copy, values) for copy in copies)


def attended(query, key, value):
    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1) @ value


def layer(x, weight, bias):
    return F.gelu(F.linear(F.layer_norm(x, x.shape[-1:]), weight, bias))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_draw_errs_as_rounding_after_each_step_does(dtype):
    """Of a norm, a linear layer and GELU, written out with a rounding to nearest after each of the three."""
    random = Draw().normal
    x, weight, bias = (t.to(dtype) for t in (random(400, 64), random(96, 64, scale=0.125), random(96)))
    steps = [lambda t: naive_norm(t, None, None, 1e-5), lambda t: naive_linear(t, weight.double(), bias.double())]
    exact = rounded = x.double()
    for step in (*steps, naive_gelu):
        exact, rounded = step(exact), step(rounded).to(dtype).double()
    with random_rounding(0):
        drawn = layer(x, weight, bias)
    assert drawn.dtype == dtype
    # More in float32, where the operators' own errors come on top.
    most = 1.1 if dtype != torch.float32 else 5
    assert 0.9 < error(drawn, exact).rms / (2**0.5 * error(rounded, exact).rms) < most


def test_draws_differ_are_repeatable_and_reach_the_backward_pass():
    x = torch.randn(8, 8).half().requires_grad_()

    def gradient(seed):
        with random_rounding(seed):
            return torch.autograd.grad((x @ x).softmax(-1).square().sum(), x)[0]

    assert torch.equal(gradient(0), gradient(0))
    assert not torch.equal(gradient(0), gradient(1))


SUMS = {
    "sum": lambda x, ones: x.sum(0),
    "sum of all": lambda x, ones: torch.stack([column.sum() for column in x.mT[:50]]),
    "mean": lambda x, ones: x.mean(0),
    "mm": lambda x, ones: ones @ x,
    "bmm": lambda x, ones: ones @ x[None],
    "baddbmm": lambda x, ones: torch.baddbmm(x[None, :1], ones[None], x[None]),
    "addmm": lambda x, ones: F.linear(ones, x.mT, x[0]),
}


@pytest.mark.parametrize("name", SUMS)
def test_no_sum_in_float32_is_lucky_in_every_draw(name):
    """One sum's errors over all draws are as large as those of other sums: each draw adds up in its own order."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2048, 400, generator=generator)
    ones = torch.ones(1, 2048)
    exact = SUMS[name](x.double(), ones.double())
    usual = magnitude(SUMS[name](x, ones).double() - exact).rms
    draws = []
    for seed in range(DRAWS):
        with random_rounding(seed):
            draws.append(SUMS[name](x, ones).double() - exact)
    worst = torch.stack(draws).abs().amax(0)
    # Added one by one, numbers whose sum is near 0 have partial sums, and so errors, of 3^-0.5 of the usual deviation:
    # a walk's variance is 1/2 on average along the way, and 1/6 if it comes back. Of 16 numbers from a normal
    # distribution with that deviation, all are below a quarter of the usual one once in 40 million times.
    assert worst.min() > usual / 4
    assert worst.median() < 4 * usual


def test_weights_of_attention_are_rounded_as_operands():
    query, key, value = (torch.randn(1, 1, 200, 16).half() for _ in range(3))
    exact = attended(*(t.double() for t in (query, key, value)))
    found = []
    for seed, call in enumerate((F.scaled_dot_product_attention, attended)):
        with random_rounding(seed):
            found.append(error(call(query, key, value), exact).rms)
    assert found[0] == pytest.approx(found[1], rel=0.2)


@pytest.mark.parametrize("scale", [None, 0.7])
def test_attention_that_finds_its_scores_again_is_attention(scale):
    random = Draw().normal
    leaves = [random(2, 3, rows, 8).double().requires_grad_() for rows in (5, 7, 7)]
    found = recomputed_attention(*leaves, scale=scale)
    expected = attended(leaves[0] * (1 if scale is None else scale * 8**0.5), *leaves[1:])
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    upstream = random(2, 3, 5, 8).double()
    gradients = [torch.autograd.grad(out, leaves, upstream) for out in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_large_scores_in_float32_may_err_as_far_as_fused_attention_does():
    """PyTorch's own saves the log-sum-exp too: a value's gradient errs 10 times as far as by saved weights."""
    random = Draw().normal
    arguments, upstream = [(scale * random(1, 2, 49, 32)).float() for scale in (10, 10, 1)], random(1, 2, 49, 32)

    def gradients(*arguments):
        leaves = [x.detach().requires_grad_() for x in arguments]
        out = F.scaled_dot_product_attention(*leaves)
        return dict(zip("qkv", torch.autograd.grad(out, leaves, upstream.to(out.dtype)), strict=True))

    with sdpa_kernel(SDPBackend.MATH):
        exact = gradients(*(x.double() for x in arguments))
        saved = error(gradients(*arguments)["v"], exact["v"]).rms
    allowed = budgets(lambda: gradients(*arguments), exact)
    # Of scores up to 400: u |score|, the rounding of either number whose difference a weight is the exponential of.
    assert 10 * saved < allowed["v"].error.rms < 4 * 400 * 2.0**-24 * magnitude(exact["v"]).rms
    assert_within_budget(gradients(*arguments), exact, allowed)


def test_draws_leave_random_numbers_and_settings_alone():
    random_state = torch.random.get_rng_state()
    with random_rounding(0):
        noise = torch.rand(4)
        torch.rand_like(noise)
    torch.random.set_rng_state(random_state)
    assert torch.equal(torch.rand(4), noise)
    assert not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()


def test_budget_is_twice_the_worst_draw_and_one_rounding():
    exact = {"out": torch.tensor([4.0, -2.0], dtype=torch.float64)}
    draws = iter([torch.tensor([4.0 + step, -2.0]).half() for step in [0.25, 0.5, *[0.0] * 14]])
    (allowed,) = budgets(lambda: {"out": next(draws)}, exact).values()
    assert allowed.dtype == torch.float16
    assert allowed.error.maximum == 1.0 + 4 / 2048
    assert allowed.error.rms == pytest.approx(2 * 0.125**0.5 + 10**0.5 / 2048, rel=1e-15)


def test_one_number_that_eager_meets_exactly_has_room_for_its_roundings():
    """A product in 16 bits, judged as if the nearest number were right."""
    x = torch.tensor(1 / 3).half()
    exact = {"out": (x * x).double()}
    (allowed,) = budgets(lambda: {"out": x * x}, exact).values()
    assert allowed.error.maximum > 2 * 2.0**-11 * exact["out"]


def test_what_exceeds_the_budget_in_either_norm_or_is_nan_or_of_another_dtype_fails():
    exact = {"out": torch.linspace(-1, 1, 1000, dtype=torch.float64)}
    eager = exact["out"].half()
    allowed = {"out": Budget(torch.float16, Error(1e-3, 4e-4))}
    assert_within_budget({"out": eager}, exact, allowed)
    spike, drift, hole = eager.clone(), eager + 6e-4, eager.clone()
    spike[500] += 2e-3
    hole[3] = float("nan")
    for wrong in (spike, drift, hole, eager.float()):
        with pytest.raises(AssertionError, match="out"):
            assert_within_budget({"out": wrong}, exact, allowed)


def test_the_worst_result_is_named():
    exact = {name: torch.ones(4, dtype=torch.float64) for name in ("a", "b")}
    allowed = {name: Budget(torch.float32, Error(1.0, 1.0)) for name in exact}
    found = {"a": torch.ones(4), "b": torch.tensor([1.0, 1.0, 1.0, 1.5])}
    assert worst(found, exact, allowed) == Verdict("b", "maximum", 0.5, 1.0)
    assert worst(found, exact, allowed, norms=("rms",)) == Verdict("b", "rms", 0.25, 1.0)


@pytest.mark.parametrize("allowed", [0.0, float("nan"), float("inf")])
def test_without_a_finite_budget_only_what_is_exact_passes(allowed):
    assert Verdict("out", "rms", 0.0, allowed).share == 0
    assert Verdict("out", "rms", 1e-9, allowed).share == float("inf")


def test_fresh_memory_is_poisoned_and_the_setting_restored(device):
    old = torch.ones(4, device=device, dtype=torch.float16)
    with poisoned_allocations():
        fresh = [
            torch.empty(4, device=device),
            torch.empty_like(old),
            old.new_empty(3, 2),
            torch.empty_strided((2, 2), (1, 2), device=device),
        ]
        counts = torch.empty(3, dtype=torch.int32, device=device)
    assert all(t.isnan().all() for t in fresh)
    assert (counts == 2**31 - 1).all()
    assert not torch.are_deterministic_algorithms_enabled()
