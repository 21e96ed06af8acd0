"""The kernels against the definition in float64, with the error budget."""

import pytest
import torch

import crossmae_kernels as ck
from crossmae_kernels.testing import poisoned_allocations

# Side of a patch, channels, patches down and across, patches asked for, images.
SHAPES = [
    (16, 3, (2, 3), 4, 2),
    (14, 3, (3, 2), 3, 2),
    (5, 1, (3, 5), 9, 3),
    (5, 7, (2, 2), 1, 2),
    (16, 1, (1, 2), 3, 1),
    (8, 3, (4, 4), 21, 1),
    (4, 4, (1, 1), 1, 3),
    (1, 7, (2, 3), 40, 2),
]
IDS = {"ids": lambda s: f"{s[1]}x{s[0]}x{s[0]}-{s[2][0]}x{s[2][1]}-{s[3]}of{s[4]}"}


@pytest.mark.budget
@pytest.mark.parametrize("shape", SHAPES, **IDS)
def test_gather_of_floats_and_their_gradient(problem, place, shape):
    problem(*shape).judge("gather", *place)


@pytest.mark.budget
@pytest.mark.parametrize("shape", SHAPES, **IDS)
def test_losses_of_normalised_patches(problem, place, shape):
    problem(*shape).judge("loss", *place)


@pytest.mark.budget
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pixels", [torch.float32, torch.uint8])
def test_mean_loss_of_pixels_in_another_dtype(problem, place, pixels, normalize):
    task = problem(14, pixels=pixels, normalize=normalize, ids_dtype=torch.int32)
    task.judge("loss", *place, reduction="mean")


@pytest.mark.budget
@pytest.mark.parametrize("shape", [(16, 3), (5, 1), (5, 7)])
def test_gather_of_bytes(problem, device, shape):
    problem(*shape, pixels=torch.uint8, ids_dtype=torch.int32).judge("gather", device, torch.float32)


# What a pixel becomes.
PIXELS = {
    "constant patches": lambda t: torch.full_like(t, 3.7),
    "constant but for one pixel": lambda t: torch.full_like(t, -2e4).index_fill_(3, torch.tensor([1]), -2.1e4),
    "far from zero": lambda t: 1e4 + t,
    "huge": lambda t: 1e15 * t,
    "tiny": lambda t: 1e-20 * t,
    "as small as epsilon": lambda t: 1e-3 * t,
}


@pytest.mark.budget
@pytest.mark.parametrize("pixels", PIXELS)
def test_losses_of_uncommon_pixels(problem, place, pixels):
    task = problem(8, pixels=torch.float32)
    task.images = PIXELS[pixels](task.images.float())
    task.judge("loss", *place)


@pytest.mark.budget
@pytest.mark.parametrize("pixels", ["huge", "tiny"])
def test_losses_of_uncommon_pixels_as_they_are(problem, device, pixels):
    # Not in float16: a difference beyond its range is not kept.
    task = problem(8, normalize=False)
    task.images = PIXELS[pixels](task.images.float())
    task.judge("loss", device, torch.float32)


LAYOUTS = {
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "cropped": lambda t: torch.nn.functional.pad(t, (3, 2, 1, 1))[:, :, 1:-1, 3:-2],
    "every other column": lambda t: t.repeat_interleave(2, 3)[..., ::2],
    "every other row": lambda t: t.repeat_interleave(2, 2)[:, :, ::2],
    "columns first": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "channels in the middle": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
}


def _equal(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.budget
@pytest.mark.parametrize("pixels", [torch.float32, torch.uint8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_images_change_nothing(problem, device, layout, pixels):
    task = problem(7, pixels=pixels)
    plain = task.gather("triton", device, torch.float32)
    assert _equal(task.gather("triton", device, torch.float32, layout=LAYOUTS[layout]), plain)
    # Another layout may be summed in another order.
    task.judge("loss", device, torch.float32, layout=LAYOUTS[layout])


@pytest.mark.budget
def test_images_that_are_one_expanded_image(problem, device):
    task = problem(5)
    task.images[1] = task.images[0]
    task.judge("loss", device, torch.float32, layout=lambda t: t[:1].expand_as(t))


def test_ids_and_predictions_in_any_layout(problem, device):
    task = problem(5)
    images, ids, _, _ = task.arguments(device, torch.float32)
    prediction = task.prediction.to(device, torch.float32)
    rows = ck.gather_patches(images, ids, 5, impl="triton")
    losses = ck.patch_loss(prediction, images, ids, 5, True, reduction="none", impl="triton")
    every_other = ids.repeat_interleave(2, 1)[:, ::2]
    turned = prediction.transpose(0, 2).contiguous().transpose(0, 2)
    assert torch.equal(ck.gather_patches(images, every_other, 5, impl="triton"), rows)
    assert torch.equal(ck.patch_loss(turned, images, every_other, 5, True, reduction="none", impl="triton"), losses)
    shared = ids[:1].expand(2, -1)
    same = ck.gather_patches(images, shared.contiguous(), 5, impl="triton")
    assert torch.equal(ck.gather_patches(images, shared, 5, impl="triton"), same)


def test_statistics_in_any_layout(problem, device):
    task = problem(5, pixels=torch.uint8)
    images, ids, mean, std = task.arguments(device, torch.float32)
    table = torch.stack([mean, std], -1)
    rows = ck.gather_patches(images, ids, 5, table[:, 0], table[:, 1], impl="triton")
    assert torch.equal(rows, ck.gather_patches(images, ids, 5, mean, std, impl="triton"))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 75), (1, 4, 75)], ids=str)
def test_expanded_gradients_of_rows(problem, device, shape):
    task = problem(5)
    images, ids, _, _ = task.arguments(device, torch.float32)
    rows = ck.gather_patches(images.requires_grad_(), ids, 5, impl="triton")
    upstream = torch.randn(shape, device=device).expand_as(rows)
    (expanded,) = torch.autograd.grad(rows, images, upstream, retain_graph=True)
    assert _equal([expanded], torch.autograd.grad(rows, images, upstream.contiguous()))


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (1, 4)], ids=str)
def test_expanded_gradients_of_losses(problem, device, shape):
    task = problem(5)
    images, ids, _, _ = task.arguments(device, torch.float32)
    prediction = task.prediction.to(device, torch.float32).requires_grad_()
    losses = ck.patch_loss(prediction, images, ids, 5, True, reduction="none", impl="triton")
    upstream = torch.randn(shape, device=device).expand_as(losses)
    (expanded,) = torch.autograd.grad(losses, prediction, upstream, retain_graph=True)
    assert _equal([expanded], torch.autograd.grad(losses, prediction, upstream.contiguous()))


@pytest.mark.budget
def test_more_ids_than_are_looked_through_at_a_time(problem, device, monkeypatch):
    from crossmae_kernels.patches import launch

    monkeypatch.setattr(launch, "BLOCK_IDS", 4)
    task = problem(5, 1, (2, 2), count=11)
    task.ids[0, :9] = torch.tensor([3, 0, 0, 3, 2, 2, 0, 2, 3])
    task.judge("gather", device, torch.float32)


def test_results_repeat_bitwise(problem, place):
    task = problem(5, count=9)
    for solve in (task.gather, task.loss):
        assert _equal(solve("triton", *place), solve("triton", *place))


def test_a_second_backward_equals_the_first_and_leaves_everything_alone(problem, place):
    device, dtype = place
    task = problem(5)
    images, ids, _, _ = task.arguments(device, dtype)
    images.requires_grad_()
    prediction = task.prediction.to(device, dtype).requires_grad_()
    before = [t.detach().clone() for t in (images, ids, prediction)]
    rows = ck.gather_patches(images, ids, 5, impl="triton")
    losses = ck.patch_loss(prediction, images.detach(), ids, 5, True, reduction="none", impl="triton")
    kept = [rows.detach().clone(), losses.detach().clone()]
    for out, leaf, upstream in ((rows, images, task.upstream), (losses, prediction, task.upstream_losses)):
        upstream = upstream.to(device, out.dtype)
        first = torch.autograd.grad(out, leaf, upstream, retain_graph=True)
        assert _equal(first, torch.autograd.grad(out, leaf, upstream))
    assert _equal([images.detach(), ids, prediction.detach(), rows.detach(), losses.detach()], [*before, *kept])


@pytest.mark.parametrize(("batch", "count"), [(0, 3), (2, 0)])
def test_empty_batches_and_no_ids(device, batch, count):
    images = torch.randn(batch, 3, 8, 12, device=device, requires_grad=True)
    ids = torch.zeros(batch, count, dtype=torch.int64, device=device)
    prediction = torch.randn(batch, count, 48, device=device, requires_grad=True)
    with poisoned_allocations():
        rows = ck.gather_patches(images, ids, 4, impl="triton")
        rows.sum().backward()
        losses = ck.patch_loss(prediction, images.detach(), ids, 4, True, reduction="none", impl="triton")
        losses.sum().backward()
    assert rows.shape == (batch, count, 48)
    assert losses.shape == (batch, count)
    assert torch.equal(images.grad, torch.zeros_like(images))
    assert torch.equal(prediction.grad, torch.zeros_like(prediction))


@pytest.mark.parametrize("pixels", [torch.float32, torch.uint8])
def test_patches_with_ids_out_of_range_are_not_read_and_show_as_nan(problem, device, pixels):
    # Straight to the operators: on a CPU the public functions would raise.
    task = problem(5, pixels=pixels)
    images, ids, mean, std = task.arguments(device, torch.float32)
    prediction = task.prediction.to(device, torch.float32)

    def results(ids):
        rows = torch.ops.crossmae_kernels.gather_patches(images, ids, mean, std, 5, torch.float32)
        return rows, *torch.ops.crossmae_kernels.patch_loss(prediction, images, ids, mean, std, 5, True, True)

    good = results(ids)
    ids = ids.clone()
    ids[0, 1], ids[1, 3] = -1, 2**40
    lost = torch.zeros(2, 4, dtype=torch.bool, device=device)
    lost[0, 1] = lost[1, 3] = True
    for ours, theirs in zip(results(ids), good, strict=True):
        assert ours[lost].isnan().all()
        assert torch.equal(ours[~lost], theirs[~lost])
    upstream = task.upstream.to(device, torch.float32)
    gradient = torch.ops.crossmae_kernels.gather_patches_backward(upstream, ids, images.shape, 5, torch.float32)
    upstream[lost] = 0
    ids[lost] = 0
    kept = torch.ops.crossmae_kernels.gather_patches_backward(upstream, ids, images.shape, 5, torch.float32)
    assert torch.equal(gradient, kept)
