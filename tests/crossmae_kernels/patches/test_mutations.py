"""Broken kernels must not pass: the tests of the kernels are only as good as what they refuse."""

import functools

import pytest
import seeds
import torch
from mutation import broken
from oracles import oracle_of

from crossmae_kernels.testing import Draw, Judge
from crossmae_kernels.testing.problems import gather_patches, patch_loss

MEAN = ("centred = values - (tl.sum(values, axis=1) * (1 / VALUES))[:, None]", "centred = values")
LEFT = ("tl.where(there, centred - left[:, None], 0.0)", "tl.where(there, centred, 0.0)")
ZEROS = "total = tl.zeros((BLOCK_H * BLOCK_W, BLOCK_C), dtype=tl.float32)"

# What is run, and what to replace by what.
MUTATIONS = {
    "biased variance": ("loss", "1 / (VALUES - 1)", "1 / VALUES"),
    "mean not subtracted": ("loss", *MEAN, *LEFT),
    "rounding of the mean left in": ("loss", *LEFT),
    "padding in the variance": ("loss", LEFT[0], "centred - left[:, None]"),
    "epsilon outside of the root": ("loss", "tl.sqrt_rn(variance + EPS)", "(tl.sqrt_rn(variance) + EPS)"),
    "gradient halved": ("loss", "(2 / VALUES)", "(1 / VALUES)"),
    "difference the other way round": ("loss", "error.to(difference", "(-error).to(difference"),
    "ids off by one": ("gather", "picked = picked.to(tl.int32)", "picked = picked.to(tl.int32) + 1"),
    "columns before rows": ("gather", "(row * PATCH_W + column) * CHANNELS", "(column * PATCH_W + row) * CHANNELS"),
    "channels the other way round": ("gather", "+ channel[None, :],", "+ (CHANNELS - 1 - channel)[None, :],"),
    "patches column by column": ("gather", "picked // columns * PATCH_H", "picked % columns * PATCH_H"),
    "last patch forgotten": ("gather", "(patch < count)", "(patch < count - 1)"),
    "only the first of equal ids": ("gather", "named & (places > place)", "places < 0"),
    "first row added to all": (
        "gather",
        ZEROS,
        "total = tl.load(dout + offsets, mask=inside, other=0.0).to(tl.float32)",
    ),
    "bytes without offset": ("bytes", "shift = lost - 255 *", "shift = lost - 0 *"),
    "bytes by another channel": ("bytes", "tl.load(std + channel,", "tl.load(std + (channel + 1) % CHANNELS,"),
}


def problem_for(op, device):
    pixels = torch.uint8 if op == "bytes" else torch.float32
    # One patch more than the ids name, so that an id off by one stays inside of the image.
    ids = torch.randint(8, (2, 7), generator=seeds.generator())
    ids[:, 5] = ids[:, 2]
    build = patch_loss if op == "loss" else gather_patches
    problem = build(Draw(seeds.seeded(), device), 2, 7, 5, (3, 3), pixels=None if op == "gather" else pixels)
    problem = problem.having(**{"predicted_ids" if op == "loss" else "ids": ids.to(device)})
    if op == "loss":
        # Constant patches, where rounding of the mean shows, and nearly constant ones, where epsilon does.
        images = problem.arguments["images"]
        images[0] = unequal_to_their_mean(9).view(3, 3).repeat_interleave(5, 0).repeat_interleave(5, 1)
        images[1, :, :10] *= 1e-3
    return problem


def unequal_to_their_mean(count):
    """Numbers of which 75 equal ones, a patch, have another mean in float32."""
    numbers = torch.linspace(1.1, 3.7, 100 * count)
    return numbers[numbers.expand(75, -1).sum(0) * (1 / 75) != numbers][:count]


@functools.cache
def judge_of(seed, op, device):
    problem = problem_for(op, device)
    return Judge(problem, torch.float32, oracle_of(problem))


@pytest.mark.budget
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_kernel_fails_the_budget(device, tmp_path, mutation):
    op, *parts = MUTATIONS[mutation]
    judge = judge_of(seeds.seeded(), op, device)
    with broken("crossmae_kernels.patches", tmp_path, *parts), pytest.raises(AssertionError, match="errs by"):
        judge.check(judge.problem.by("triton"))


@pytest.mark.budget
@pytest.mark.parametrize("op", ["gather", "loss", "bytes"])
def test_the_kernels_pass(device, op):
    judge = judge_of(seeds.seeded(), op, device)
    judge.check(judge.problem.by("triton"))
