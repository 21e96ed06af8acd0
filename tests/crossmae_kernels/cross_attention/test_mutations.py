"""Broken kernels must not pass: the tests of the kernels are only as good as what they refuse."""

import functools

import pytest
import seeds
from mutation import broken

SCALE = ("* scale_log2\n", "* (1.02 * scale_log2)\n")
MASK = ('tl.where((keys < num_keys)[{}], scores, float("-inf"))', "scores")
IDS = ("picked = tl.load(ids + rows, mask=inside, other=0)", "picked = tl.load(ids + rows, mask=inside, other=0) + 1")

# What to replace by what.
MUTATIONS = {
    "wrong scale": SCALE,
    "missing key mask": (MASK[0].format("None, :"), MASK[1], MASK[0].format(":, None"), MASK[1]),
    "ids off by one": IDS,
    "delta too small": (
        "(dweights - delta[", "(dweights - 0.9 * delta[",
        "(dweights - row_delta", "(dweights - 0.9 * row_delta",
    ),
    "last queries forgotten": ("inside = rows < num_queries", "inside = rows < num_queries - 1"),
}  # fmt: skip


@functools.cache
def to_break(seed, problem, keys, device, dtype):
    task = problem(20, keys, 1, 16, table=60)
    # One row fewer than the ids may name, so that an id off by one stays inside of the table.
    task.ids = task.ids.clamp(max=58)
    return task.judged(device, dtype)


@pytest.mark.budget
@pytest.mark.parametrize("keys", [20, 140])
def test_the_kernels_pass(problem, kernels, place, keys):
    to_break(seeds.current, problem, keys, *place)(kernels)


@pytest.mark.budget
@pytest.mark.parametrize("keys", [20, 140])
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_kernel_fails_the_budget(problem, kernels, place, tmp_path, mutation, keys):
    check = to_break(seeds.current, problem, keys, *place)
    with (
        broken("crossmae_kernels.cross_attention", tmp_path, *MUTATIONS[mutation]),
        pytest.raises(AssertionError, match="errs by"),
    ):
        check(kernels)
