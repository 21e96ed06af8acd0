"""The operators inside of PyTorch: what is called, and what is kept."""

import pytest
import torch
from operators import names_of_operators

from crossmae_kernels.testing import Draw
from crossmae_kernels.testing.problems import linear_residual, norm_linear

INNER, OUTER = 32, 48


@pytest.mark.parametrize("problem", [norm_linear, linear_residual])
def test_operators_per_call(device, problem):
    problem = problem(Draw(device=device), (2, 5), INNER, OUTER)
    with names_of_operators() as forward:
        out = problem.by("triton")(**problem.leaves(torch.float32))
    with names_of_operators() as backward:
        out.sum().backward()
    # The norm's affine is folded into the weight inside of it.
    assert forward == [f"crossmae_kernels::{problem.op}"]
    assert backward == [f"crossmae_kernels::{problem.op}_backward"]


def test_a_dense_residual_has_the_upstream_gradient_itself(device):
    problem = linear_residual(Draw(device=device), (2, 5), INNER, OUTER)
    leaves = problem.leaves(torch.float32, ("x", "weight", "bias"))
    out = problem.by("triton")(**leaves)
    with names_of_operators() as called:
        out.backward(upstream := torch.randn_like(out))
    assert not called
    assert torch.equal(leaves["residual"].grad, upstream)


@pytest.mark.parametrize(
    ("problem", "bytes_of_a_row"),
    [
        (lambda *shape: norm_linear(*shape), 2 * INNER + 4),
        (lambda *shape: norm_linear(*shape, "gelu"), 2 * INNER + 4 + 2 * OUTER),
        # The input, and no residual.
        (lambda *shape: linear_residual(*shape), 2 * INNER),
    ],
    ids=["norm_linear", "gelu", "linear_residual"],
)
def test_saved_bytes(device, problem, bytes_of_a_row):
    problem = problem(Draw(device=device), (3, 50), INNER, OUTER)
    saved = []
    with (
        torch.autocast(device, torch.float16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        problem.by("triton")(**problem.leaves(torch.float32))
    rows = [t for t in saved if 150 in (t.shape[0], t.shape[:-1].numel())]
    assert sum(t.numel() * t.element_size() for t in rows) == 150 * bytes_of_a_row
