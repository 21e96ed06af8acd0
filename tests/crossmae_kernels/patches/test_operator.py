"""The operators inside of PyTorch: autocast, memory, refusals."""

import pytest
import torch
from operators import allocated_bytes, calls_of_operators, names_of_operators
from torch.utils._python_dispatch import TorchDispatchMode

import crossmae_kernels as ck
from crossmae_kernels.testing import Draw
from crossmae_kernels.testing.problems import patch_loss


def _gather(images, ids, *statistics):
    return ck.gather_patches(images, ids, 5, *statistics, impl="triton")


def _loss(prediction, images, ids, *statistics):
    return ck.patch_loss(prediction, images, ids, 5, True, *statistics, impl="triton")


@pytest.fixture
def arguments(device):
    """Prediction, a leaf; images, ids, mean and std."""

    def make(pixels=torch.float32):
        leaves = patch_loss(Draw(device=device), 2, 4, 5, (2, 3), pixels=pixels).leaves(torch.float32)
        return tuple(leaves[name] for name in ("prediction", "images", "predicted_ids", "mean", "std"))

    return make


def _gradients(call, *given):
    out = call(*given)
    return [out.detach(), *torch.autograd.grad(out.sum(), [t for t in given if t is not None and t.requires_grad])]


def _equal(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_one_operator_per_call(arguments):
    prediction, images, ids, _, _ = arguments()
    with names_of_operators() as called:
        loss = _loss(prediction, images, ids)
        loss.backward()
        _gather(images.requires_grad_(), ids).sum().backward()
    names = ["patch_loss", "patch_loss_backward", "gather_patches", "gather_patches_backward"]
    assert called == [f"crossmae_kernels::{name}" for name in names]


class _Casts(TorchDispatchMode):
    """Copies to another dtype."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pixels", [torch.float32, torch.uint8])
def test_autocast_gets_its_rows_straight_from_the_kernel(arguments, device, pixels, dtype):
    _, images, ids, mean, std = arguments(pixels)
    rows = _gather(images, ids, mean, std)
    assert rows.dtype == torch.float32
    with torch.autocast(device, dtype), _Casts() as casts:
        low = _gather(images, ids, mean, std)
    assert casts.count == 0
    assert low.dtype == dtype
    assert torch.equal(low, rows.to(dtype))


def test_gradients_through_rows_in_another_dtype_come_in_that_of_the_images(arguments, device):
    _, images, ids, _, _ = arguments()
    images.requires_grad_()
    with torch.autocast(device, torch.float16):
        rows = _gather(images, ids)
    upstream = torch.randn_like(rows)
    (gradient,) = torch.autograd.grad(rows, images, upstream)
    (expected,) = torch.autograd.grad(_gather(images, ids), images, upstream.float())
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_autocast_leaves_the_loss_alone(arguments, device, dtype):
    prediction, images, ids, _, _ = arguments()
    prediction = prediction.detach().to(dtype).requires_grad_()
    expected = _gradients(_loss, prediction, images, ids)
    with torch.autocast(device, torch.float16), _Casts() as casts:
        loss = _loss(prediction, images, ids)
    assert casts.count == 0
    assert loss.dtype == torch.float32
    assert _equal([loss.detach(), *torch.autograd.grad(loss, prediction)], expected)


def test_what_is_kept_for_the_backward_pass(arguments):
    prediction, images, ids, _, _ = arguments()
    prediction = prediction.detach().half().requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        _loss(prediction, images, ids)
    assert [(t.shape, t.dtype) for t in saved] == [(prediction.shape, torch.float16)]
    saved.clear()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        _gather(images.requires_grad_(), ids)
    assert [t.data_ptr() for t in saved] == [ids.data_ptr()]


def test_nothing_is_kept_where_nobody_asks_for_gradients(arguments):
    prediction, images, ids, _, _ = arguments()
    with calls_of_operators() as recorded:
        _loss(prediction.detach(), images, ids)
    ((operator, given),) = recorded
    _, kept = operator(*given)
    assert kept.numel() == 0
    with torch.no_grad():
        frozen = _loss(prediction, images, ids)
    assert not frozen.requires_grad
    assert not _loss(prediction.detach(), images, ids).requires_grad
    assert torch.equal(frozen, _loss(prediction, images, ids).detach())


def test_no_patch_is_ever_stored_but_those_asked_for(interpreter):
    from crossmae_kernels.patches import kernels

    leaves = patch_loss(Draw(), 2, 2, 8, (4, 4)).leaves(torch.float32, frozen=("prediction",))
    prediction, images, ids = (leaves[name] for name in ("prediction", "images", "predicted_ids"))
    losses, rows = torch.randn(ids.shape), prediction.numel() * 4
    for bound, call, given in (
        (rows, kernels.gather_forward, (images, ids, None, None, 8, 8, torch.float32)),
        (images.numel() * 4, kernels.gather_backward, (prediction, ids, images.shape, 8, 8, torch.float32)),
        (rows + 4 * ids.numel(), kernels.loss_forward, (prediction, images, ids, None, None, 8, 8, True, True)),
        (4 * ids.numel(), kernels.loss_forward, (prediction, images, ids, None, None, 8, 8, True, False)),
        (rows, kernels.loss_backward, (losses, prediction)),
    ):
        with allocated_bytes() as sizes:
            call(*given)
        assert sum(sizes) == bound


def test_gradients_to_images_through_the_loss_are_the_reference_s(arguments):
    prediction, images, ids, _, _ = arguments()
    images.requires_grad_()
    with pytest.raises(RuntimeError, match="no gradient for the images"):
        _loss(prediction, images, ids)
    loss = ck.patch_loss(prediction, images, ids, 5, True)
    assert torch.autograd.grad(loss, images)[0].abs().max() > 0
    with torch.no_grad(), calls_of_operators() as recorded:
        assert torch.isfinite(_loss(prediction, images, ids))
    ((operator, given),) = recorded
    losses, _ = operator(*given)
    with pytest.raises(NotImplementedError, match="no gradient for the images"):
        losses.sum().backward()


def test_gradients_to_statistics_are_the_reference_s(arguments):
    prediction, images, ids, mean, std = arguments(torch.uint8)
    for call, given in ((_gather, (images, ids)), (_loss, (prediction, images, ids))):
        with pytest.raises(RuntimeError, match="no gradient for mean and std"):
            call(*given, mean, std.clone().requires_grad_())


def test_patches_that_do_not_fit_are_the_reference_s(device):
    images = torch.randn(1, 3, 72, 72, device=device)
    ids = torch.zeros(1, 1, dtype=torch.int64, device=device)
    with pytest.raises(RuntimeError, match=r"up to 16384 values.*3 x 72 x 72"):
        ck.gather_patches(images, ids, 72, impl="triton")
    assert torch.equal(ck.gather_patches(images, ids, 72)[0, 0], images[0].permute(1, 2, 0).flatten())


def test_the_gradient_of_a_gather_is_linear_and_has_a_gradient(arguments):
    prediction, images, ids, _, _ = arguments()
    images.requires_grad_()
    weight = torch.randn_like(prediction, requires_grad=True)
    found = []
    for impl in ("triton", "reference"):
        rows = ck.gather_patches(images, ids, 5, impl=impl)
        (gradient,) = torch.autograd.grad(rows, images, weight, create_graph=True)
        found += torch.autograd.grad((gradient * images.detach()).sum(), weight)
    assert torch.equal(*found)
