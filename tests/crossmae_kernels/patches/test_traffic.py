"""Kernels move each byte once."""

import pytest
import torch

import crossmae_kernels as ck

BATCH, SIZE, IMAGE = 2, 16, 64
PATCHES = (IMAGE // SIZE) ** 2
COUNT = 5
VALUES = BATCH * COUNT * SIZE * SIZE * 3
IDS = BATCH * COUNT * 8


@pytest.fixture
def counted(interpreter):
    """Bytes that a function's kernels ask for."""

    def count(function):
        from crossmae_kernels.audit.traffic import count_traffic

        with count_traffic() as traffic:
            result = function()
        return traffic, result

    return count


@pytest.fixture
def arguments():
    """Images and ids; floats, or bytes with mean and std."""

    def make(pixels):
        ids = torch.stack([torch.randperm(PATCHES)[:COUNT] for _ in range(BATCH)])
        images = torch.randint(256, (BATCH, 3, IMAGE, IMAGE)).to(pixels)
        return images, ids, *((torch.rand(3), torch.rand(3)) if pixels == torch.uint8 else (None, None))

    return make


@pytest.mark.parametrize("pixels", [torch.float32, torch.float16, torch.uint8])
def test_gather(counted, arguments, pixels):
    images, ids, *statistics = arguments(pixels)
    traffic, rows = counted(lambda: ck.gather_patches(images, ids, SIZE, *statistics, impl="triton"))
    read, written = VALUES * pixels.itemsize, VALUES * rows.dtype.itemsize
    assert traffic.stored == written
    assert read + IDS <= traffic.loaded
    assert traffic.bytes <= 1.05 * (read + written + IDS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_gradient_of_gather(counted, arguments, dtype):
    images, ids, *_ = arguments(dtype)
    rows = ck.gather_patches(images.requires_grad_(), ids, SIZE, impl="triton")
    upstream = torch.randn_like(rows)
    traffic, _ = counted(lambda: torch.autograd.grad(rows, images, upstream))
    assert traffic.stored == images.numel() * dtype.itemsize
    # Each patch of an image looks through all of its ids.
    assert traffic.loaded == VALUES * dtype.itemsize + PATCHES * IDS


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pixels", [torch.float32, torch.uint8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_loss(counted, arguments, dtype, pixels, normalize):
    images, ids, *statistics = arguments(pixels)
    prediction = torch.randn(BATCH, COUNT, SIZE * SIZE * 3, dtype=dtype, requires_grad=True)

    def loss():
        return ck.patch_loss(prediction, images, ids, SIZE, normalize, *statistics, impl="triton")

    forward, result = counted(loss)
    losses = BATCH * COUNT * 4
    floor = VALUES * (pixels.itemsize + 2 * dtype.itemsize) + IDS + losses
    assert forward.stored == VALUES * dtype.itemsize + losses
    assert floor <= forward.bytes <= 1.1 * floor
    backward, _ = counted(lambda: torch.autograd.grad(result, prediction))
    assert backward.bytes == 2 * VALUES * dtype.itemsize + losses
    with torch.no_grad():
        evaluated, _ = counted(loss)
    assert evaluated.stored == losses
