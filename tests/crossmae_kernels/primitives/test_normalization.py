"""The passes over rows, on widths of every kind."""

import pytest
import torch
from seeds import generator

from crossmae_kernels.testing import assert_within_budget, budgets, poisoned_allocations

EPS = 1e-3


def definition(x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()


@pytest.mark.budget
@pytest.mark.parametrize(("rows", "width"), [(50, 1), (147, 7), (147, 96), (49, 512), (9, 768), (9, 2049), (5, 16384)])
def test_rows_and_their_gradient(place, rows, width):
    from crossmae_kernels.primitives.normalization import normalize, normalize_backward

    device, dtype = place
    draw = generator()
    x, upstream, residual = (torch.randn(rows, width, generator=draw).to(device, dtype) for _ in range(3))
    x = x * 3 + 5

    def solve(compute):
        leaf = x.to(compute).requires_grad_()
        out = definition(leaf) if compute == torch.float64 else torch.nn.functional.layer_norm(leaf, (width,), eps=EPS)
        (dx,) = torch.autograd.grad(out, leaf, upstream.to(compute))
        return {"x_hat": out.detach(), "dx": dx + residual.to(compute)}

    exact = solve(torch.float64)
    allowed = budgets(lambda: solve(dtype), exact)
    with poisoned_allocations():
        x_hat, rstd = normalize(x, EPS, dtype)
        dx = normalize_backward(upstream, x_hat, rstd, residual, dtype)
    assert rstd.dtype == torch.float32
    torch.testing.assert_close(rstd, (x.float().var(-1, correction=0) + EPS).rsqrt(), rtol=1e-5, atol=0)
    assert_within_budget({"x_hat": x_hat, "dx": dx}, exact, allowed)


@pytest.mark.budget
def test_a_large_mean_costs_no_precision(place):
    from crossmae_kernels.primitives.normalization import normalize

    device, dtype = place
    x = (torch.randn(40, 300, generator=generator()) + 1000).to(device, dtype)
    exact = {"x_hat": definition(x.double())}
    allowed = budgets(lambda: {"x_hat": torch.nn.functional.layer_norm(x, (300,), eps=EPS)}, exact)
    assert_within_budget({"x_hat": normalize(x, EPS, dtype)[0]}, exact, allowed)
