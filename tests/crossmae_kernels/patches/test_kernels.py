"""The kernels against the definition in float64, with the error budget."""

import pytest
import torch
from contract import same
from operators import calls_of_operators
from oracles import oracle_of
from seeds import seeded

from crossmae_kernels.testing import Draw, Judge, poisoned_allocations, solve
from crossmae_kernels.testing.problems import gather_patches, patch_loss

# Images, patches asked for, side of a patch, patches down and across, channels.
SHAPES = [
    (2, 4, 16, (2, 3), 3),
    (2, 3, 14, (3, 2), 3),
    (3, 9, 5, (3, 5), 1),
    (2, 1, 5, (2, 2), 7),
    (1, 3, 16, (1, 2), 1),
    (1, 21, 8, (4, 4), 3),
    (3, 1, 4, (1, 1), 4),
    (2, 40, 1, (2, 3), 7),
    (2, 3, (3, 8), (2, 2), 2),
    (2, 5, (1, 5), (1, 6), 1),
]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"{s[4]}x{s[2]}-{s[3][0]}x{s[3][1]}-{s[1]}of{s[0]}")


def judge(problem, dtype, call=None):
    Judge(problem, dtype, oracle_of(problem)).check(call or problem.by("triton"))


def in_32_bits(problem, name):
    return problem.having(**{name: problem.arguments[name].int()})


@pytest.mark.budget
@shapes
def test_gather_of_floats_and_their_gradient(place, shape):
    device, dtype = place
    judge(gather_patches(Draw(seeded(), device), *shape), dtype)


@pytest.mark.budget
@shapes
def test_losses_of_normalised_patches(place, shape):
    device, dtype = place
    judge(patch_loss(Draw(seeded(), device), *shape), dtype)


@pytest.mark.budget
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pixels", [torch.float32, torch.uint8])
def test_mean_loss_of_pixels_in_another_dtype(place, pixels, normalize):
    device, dtype = place
    each, mean = (
        in_32_bits(
            patch_loss(
                Draw(seeded(), device), 2, 4, 14, (2, 3), pixels=pixels, normalize=normalize, reduction=reduction
            ),
            "predicted_ids",
        )
        for reduction in ("none", "mean")
    )
    # Of one number, roundings drawn at random may all be lucky: judged are the patches.
    judge(each, dtype)
    leaves = each.leaves(dtype)
    assert torch.equal(mean.by("triton")(**leaves), each.by("triton")(**leaves).mean())


@pytest.mark.budget
@pytest.mark.parametrize(("size", "channels"), [(16, 3), (5, 1), (5, 7)])
def test_gather_of_bytes(device, size, channels):
    problem = gather_patches(Draw(seeded(), device), 2, 4, size, (2, 3), channels, torch.uint8)
    judge(in_32_bits(problem, "ids"), torch.float32)


# What a pixel becomes.
PIXELS = {
    "constant patches": lambda t: torch.full_like(t, 3.7),
    "constant but for one pixel": lambda t: torch.full_like(t, -2e4).index_fill_(3, torch.tensor([1]), -2.1e4),
    "far from zero": lambda t: 1e4 + t,
    "huge": lambda t: 1e15 * t,
    "tiny": lambda t: 1e-20 * t,
    "as small as epsilon": lambda t: 1e-3 * t,
}


def with_pixels(device, name, normalize):
    problem = patch_loss(Draw(seeded(), device), 2, 4, 8, (2, 3), pixels=torch.float32, normalize=normalize)
    return problem.having(images=PIXELS[name](problem.arguments["images"]))


@pytest.mark.budget
@pytest.mark.parametrize("pixels", PIXELS)
def test_losses_of_uncommon_pixels(place, pixels):
    device, dtype = place
    judge(with_pixels(device, pixels, normalize=True), dtype)


@pytest.mark.budget
@pytest.mark.parametrize("pixels", ["huge", "tiny"])
def test_losses_of_uncommon_pixels_as_they_are(device, pixels):
    # Not in float16: a difference beyond its range is not kept.
    judge(with_pixels(device, pixels, normalize=False), torch.float32)


LAYOUTS = {
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "cropped": lambda t: torch.nn.functional.pad(t, (3, 2, 1, 1))[:, :, 1:-1, 3:-2],
    "every other column": lambda t: t.repeat_interleave(2, 3)[..., ::2],
    "every other row": lambda t: t.repeat_interleave(2, 2)[:, :, ::2],
    "columns first": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "channels in the middle": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
}


@pytest.mark.budget
@pytest.mark.parametrize("pixels", [torch.float32, torch.uint8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_images_change_nothing(device, layout, pixels):
    gather, loss = (
        build(Draw(seeded(), device), 2, 4, 7, (2, 3), pixels=pixels) for build in (gather_patches, patch_loss)
    )

    def laid_out(problem):
        return lambda images, **others: problem.by("triton")(images=LAYOUTS[layout](images), **others)

    assert same(*(solve(gather, call, torch.float32) for call in (laid_out(gather), gather.by("triton"))))
    # Another layout may be summed in another order.
    judge(loss, torch.float32, laid_out(loss))


@pytest.mark.budget
def test_images_that_are_one_expanded_image(device):
    problem = patch_loss(Draw(seeded(), device), 2, 4, 5, (2, 3))
    one = problem.arguments["images"][:1]
    problem = problem.having(images=one.expand(2, -1, -1, -1).contiguous())
    call = problem.by("triton")
    judge(problem, torch.float32, lambda images, **others: call(images=images[:1].expand_as(images), **others))


def test_ids_that_all_images_share(device):
    problem = gather_patches(Draw(device=device), 2, 4, 5, (2, 3))
    shared = problem.arguments["ids"][:1].expand(2, -1)
    several = (problem.having(ids=ids) for ids in (shared, shared.contiguous()))
    assert same(*(solve(each, each.by("triton"), torch.float32) for each in several))


def test_statistics_in_any_layout(device):
    problem = gather_patches(Draw(device=device), 2, 4, 5, (2, 3), pixels=torch.uint8)
    table = torch.stack([problem.arguments["mean"], problem.arguments["std"]], -1)
    strided = problem.having(mean=table[:, 0], std=table[:, 1])
    assert same(*(solve(each, each.by("triton"), torch.float32) for each in (strided, problem)))


@pytest.mark.budget
def test_more_ids_than_are_looked_through_at_a_time(device, monkeypatch):
    from crossmae_kernels.patches import kernels

    monkeypatch.setattr(kernels, "BLOCK_IDS", 4)
    problem = gather_patches(Draw(seeded(), device), 2, 11, 5, (2, 2), 1)
    problem.arguments["ids"][0, :9] = torch.tensor([3, 0, 0, 3, 2, 2, 0, 2, 3])
    judge(problem, torch.float32)


@pytest.mark.parametrize("build", [gather_patches, patch_loss])
def test_no_ids(device, build):
    problem = build(Draw(device=device), 2, 0, 4, (2, 3))
    with poisoned_allocations():
        found = solve(problem, problem.by("triton"), torch.float32)
    assert found["out"].shape == ((2, 0, 48) if problem.op == "gather_patches" else (2, 0))
    assert not any(result.any() for result in found.values())


def test_gradients_of_patches_with_ids_out_of_range_go_nowhere(device):
    # Straight to the operator: on a CPU the public function would raise.
    problem = gather_patches(Draw(device=device), 2, 4, 5, (2, 3))
    with calls_of_operators() as recorded:
        solve(problem, problem.by("triton"), torch.float32)
    operator, (upstream, ids, *others) = recorded[-1]
    assert operator.name() == "crossmae_kernels::gather_patches_backward"
    lost = torch.zeros_like(ids, dtype=torch.bool)
    lost[0, 1] = lost[1, 3] = True
    outside = ids.where(~lost, torch.tensor([[-1], [2**40]], device=device))
    kept = operator(upstream.where(~lost[..., None], 0), ids.where(~lost, 0), *others)
    assert torch.equal(operator(upstream, outside, *others), kept)
