"""Tensors whose elements lie more than 2^31 apart."""

import pytest
import torch
from contract import same

from crossmae_kernels.runtime.launch import needs_wide_offsets
from crossmae_kernels.testing import Draw, solve
from crossmae_kernels.testing.problems import cross_attention


def _meta(shape, strides):
    return torch.empty_strided(shape, strides, device="meta")


def test_64_bits_begin_where_32_bits_end():
    # The last element lies at (rows - 1) * stride + (columns - 1).
    assert not needs_wide_offsets(_meta((2, 16), (2**31 - 16, 1)))
    assert needs_wide_offsets(_meta((2, 16), (2**31 - 15, 1)))
    assert not needs_wide_offsets(_meta((1, 16), (2**40, 1)))
    assert not needs_wide_offsets(_meta((0, 16), (2**40, 1)))
    assert needs_wide_offsets(_meta((4, 4), (4, 1)), _meta((2**22, 1024), (1024, 1)))


@pytest.mark.parametrize("far", ["query", "key", "table"])
def test_rows_beyond_2_to_the_31_are_found(device, far):
    """The memory between the rows is reserved but never touched."""
    problem = cross_attention(Draw(device=device), 1, 3, 3, 2, 16, table=3 if far == "table" else 0)
    name, stride = "key" if far == "key" else "query", 2**30
    memory = torch.empty(2 * stride + 32, dtype=torch.float16, device=device)

    def spread(**arguments):
        near = arguments[name]
        # The gradient comes back through the copy.
        distant = Spread.apply(near, memory, (0, stride, 1)[-near.dim() :])
        assert needs_wide_offsets(distant)
        return problem.by("triton")(**arguments | {name: distant})

    assert same(*(solve(problem, call, torch.float16) for call in (spread, problem.by("triton"))))


class Spread(torch.autograd.Function):
    """The same numbers, far apart in ``memory``."""

    @staticmethod
    def forward(ctx, near, memory, strides):
        return memory.as_strided(near.shape, strides).copy_(near)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None, None


@pytest.mark.parametrize("keys", [7, 67])
def test_both_widths_of_offsets_give_the_same(device, keys, monkeypatch):
    from crossmae_kernels.cross_attention import kernels

    problem = cross_attention(Draw(device=device), 2, 20, keys, 2, 16, table=5)
    narrow = solve(problem, problem.by("triton"), torch.float32)
    monkeypatch.setattr(kernels, "needs_wide_offsets", lambda *tensors: True)
    assert same(solve(problem, problem.by("triton"), torch.float32), narrow)
