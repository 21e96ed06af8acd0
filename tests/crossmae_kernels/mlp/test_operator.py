"""The operator inside of PyTorch: what is called, and what is kept."""

import pytest
import torch
from operators import calls_of_operators, names_of_operators

from crossmae_kernels.testing import Draw
from crossmae_kernels.testing.problems import in_form, mlp

ROWS, WIDTH, HIDDEN = (2, 5), 32, 64


def test_operators_per_call(device):
    problem = mlp(Draw(device=device), ROWS, WIDTH, HIDDEN)
    with names_of_operators() as forward:
        out = problem.by("triton")(**problem.leaves(torch.float32))
    with names_of_operators() as backward:
        out.sum().backward()
    # The norm's affine is folded into fc1 inside of it.
    assert forward == ["crossmae_kernels::mlp"]
    assert backward == ["crossmae_kernels::mlp_backward"]


def test_a_16_bit_residual_of_another_dtype_than_autocasts_goes_to_the_reference(device):
    problem = mlp(Draw(device=device), ROWS, WIDTH, HIDDEN)
    leaves = problem.leaves(torch.float32)
    leaves["x"] = leaves["x"].detach().bfloat16()
    with (
        torch.autocast(device, torch.float16),
        pytest.raises(RuntimeError, match=r"x in float32 or torch.float16, got"),
    ):
        problem.by("triton")(**leaves)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_second_bias_of_16_bits_gets_the_sum_of_float32_gradients(device, dtype):
    draw = Draw(device=device, dtype=torch.float32)
    problem = mlp(Draw(device=device), ROWS, WIDTH, HIDDEN)
    leaves = problem.leaves(dtype) | {"x": draw.normal(*ROWS, WIDTH)}
    # Rows of some thousands nearly cancel: each, rounded to 16 bits, would be off by as much as is left of their sum.
    upstream = draw.normal(*ROWS, WIDTH, scale=3000)
    upstream[-1, -1] -= upstream.sum((0, 1)) - draw.normal(WIDTH)
    with torch.autocast(device, dtype):
        problem.by("triton")(**leaves).backward(upstream)
    rows = upstream.double().flatten(0, 1)
    exact, found = rows.sum(0), leaves["fc2_bias"].grad
    # Ten float32 additions, and one rounding.
    allowed = 10 * 2**-24 * rows.abs().sum(0) + torch.finfo(dtype).eps / 2 * exact.abs()
    assert found.dtype == dtype
    assert ((found.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("form", ["single", "tiled", "library"])
@pytest.mark.parametrize(("policy", "hidden_layers"), [("save", 1), ("recompute", 0)])
def test_saved_bytes(device, form, policy, hidden_layers):
    problem = in_form(mlp(Draw(device=device), (3, 50), WIDTH, HIDDEN, policy), form)
    leaves = problem.leaves(torch.float32)
    weights = {id(leaf) for leaf in leaves.values()}
    saved = []
    with (
        torch.autocast(device, torch.float16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
        problem.in_form(),
    ):
        problem.by("triton")(**leaves)
    # What the fold and the casts of weights keep has no rows.
    rows = [t for t in saved if id(t) not in weights and t.shape[:1] == (150,)]
    assert sum(t.numel() * t.element_size() for t in rows) == 150 * (2 * WIDTH + 4 + hidden_layers * 2 * HIDDEN)
    assert not any(t.dtype == torch.float32 and t.numel() > 150 and t.shape[0] == 150 for t in saved)
    assert not any(t.shape == (3, 50, WIDTH) for t in saved)


def test_nothing_is_kept_where_no_gradient_is_wanted(device):
    problem = mlp(Draw(device=device), ROWS, WIDTH, HIDDEN)
    with calls_of_operators() as recorded:
        problem.by("triton")(**problem.leaves(torch.float16, frozen=problem.arguments))
    operator, arguments = recorded[-1]
    assert operator.name() == "crossmae_kernels::mlp"
    _, *kept = operator(*arguments)
    assert [t.numel() for t in kept] == [0] * 6
