"""Tensors whose elements lie more than 2^31 apart."""

import pytest
import torch

import crossmae_kernels as ck
from crossmae_kernels.runtime.launch import needs_wide_offsets


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
def test_rows_beyond_2_to_the_31_are_found(problem, device, far):
    """The memory between the rows is reserved but never touched."""
    task = problem(3, 3, 2, 16, table=3 if far == "table" else 0, batch=1)
    near = task.fused(device, torch.float16)
    inputs = [t.detach() for t in task.arguments(device, torch.float16)]
    index = 1 if far == "key" else 0
    stride = 2**30
    memory = torch.empty(2 * stride + 32, dtype=torch.float16, device=device)
    inputs[index] = memory.as_strided(inputs[index].shape, (0, stride, 1)[-inputs[index].dim() :]).copy_(inputs[index])
    assert needs_wide_offsets(inputs[index])
    inputs = [t.requires_grad_() for t in inputs]
    out = ck.cross_attention(*inputs, 2, None if task.ids is None else task.ids.to(device), impl="triton")
    found = [out, *torch.autograd.grad(out, inputs, task.upstream.to(device))]
    for ours, theirs in zip(found, near, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("keys", [20, 140])
def test_both_widths_of_offsets_give_the_same(problem, device, keys, monkeypatch):
    from crossmae_kernels.cross_attention import launch

    task = problem(20, keys, 2, 16, table=5)
    narrow = task.fused(device, torch.float32)
    monkeypatch.setattr(launch, "needs_wide_offsets", lambda *tensors: True)
    for ours, theirs in zip(task.fused(device, torch.float32), narrow, strict=True):
        assert torch.equal(ours, theirs)
