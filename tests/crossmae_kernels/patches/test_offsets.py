"""Images whose pixels lie more than 2^31 elements apart."""

import pytest
import torch

from crossmae_kernels.testing import Draw, solve
from crossmae_kernels.testing.problems import gather_patches, patch_loss

both = pytest.mark.parametrize("build", [gather_patches, patch_loss])


@pytest.mark.parametrize("dimension", [0, 1, 2, 3])
@both
def test_pixels_beyond_2_to_the_31_are_found(device, build, dimension):
    """The memory in between is reserved but never touched. Between images offsets are always wide."""
    near = build(Draw(device=device), 2, 3, 2, (2, 2), pixels=torch.uint8)
    images = near.arguments["images"]
    strides = [4 * 4 * 3, 4 * 4, 4, 1]
    strides[dimension] = 2**31 // (images.shape[dimension] - 1) + 64
    end = sum((size - 1) * stride for size, stride in zip(images.shape, strides, strict=True)) + 1
    memory = torch.empty(end, dtype=torch.uint8, device=device)
    far = near.having(images=memory.as_strided(images.shape, strides).copy_(images))
    ours, theirs = (solve(problem, problem.by("triton"), torch.float32)["out"] for problem in (far, near))
    # Another layout may be summed in another order.
    torch.testing.assert_close(ours, theirs, rtol=0 if build is gather_patches else 1e-6, atol=0)


@both
def test_both_widths_of_offsets_give_the_same(device, build, monkeypatch):
    from crossmae_kernels.patches import kernels

    problem = build(Draw(device=device), 2, 4, 5, (2, 3))
    narrow = solve(problem, problem.by("triton"), torch.float32)
    monkeypatch.setattr(kernels, "needs_wide_offsets", lambda *tensors, dims: True)
    torch.testing.assert_close(solve(problem, problem.by("triton"), torch.float32), narrow, rtol=1e-6, atol=1e-6)
