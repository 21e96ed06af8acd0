"""Images whose pixels lie more than 2^31 elements apart."""

import pytest
import torch

import crossmae_kernels as ck


@pytest.mark.parametrize("dimension", [0, 1, 2, 3])
def test_pixels_beyond_2_to_the_31_are_found(problem, device, dimension):
    """The memory in between is reserved but never touched. Between images offsets are always wide."""
    task = problem(2, 3, (2, 2), count=3, pixels=torch.uint8)
    images, ids, mean, std = task.arguments(device, torch.float32)
    prediction = task.prediction.to(device, torch.float32)
    strides = [4 * 4 * 3, 4 * 4, 4, 1]
    strides[dimension] = 2**31 // (images.shape[dimension] - 1) + 64
    end = sum((size - 1) * stride for size, stride in zip(images.shape, strides, strict=True)) + 1
    far = torch.empty(end, dtype=torch.uint8, device=device).as_strided(images.shape, strides).copy_(images)
    rows = (ck.gather_patches(where, ids, 2, mean, std, impl="triton") for where in (images, far))
    assert torch.equal(*rows)
    losses = (ck.patch_loss(prediction, where, ids, 2, True, mean, std, impl="triton") for where in (images, far))
    # Another layout may be summed in another order.
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)


def test_both_widths_of_offsets_give_the_same(problem, device, monkeypatch):
    from crossmae_kernels.patches import launch

    task = problem(5)

    def results():
        return [*task.gather("triton", device, torch.float32), *task.loss("triton", device, torch.float32)]

    narrow = results()
    monkeypatch.setattr(launch, "needs_wide_offsets", lambda *tensors: True)
    for ours, theirs in zip(results(), narrow, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
