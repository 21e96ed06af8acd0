"""Broken kernels must not pass: the tests of the kernels are only as good as what they refuse."""

import functools

import pytest
import seeds
from mutation import broken
from oracles import oracle_of
from places import in_float32_and_bfloat16

from crossmae_kernels.testing import Draw, Judge
from crossmae_kernels.testing.problems import cross_attention, self_attention_qkvpacked

pytestmark = in_float32_and_bfloat16

SCALE = ("* scale_log2\n", "* (1.04 * scale_log2)\n")
MASK = ('tl.where((keys < num_keys)[None, :], scores, float("-inf"))', "scores")
IDS = ("picked = tl.load(ids + rows, mask=inside, other=0)", "picked = tl.load(ids + rows, mask=inside, other=0) + 1")

# What to replace by what.
MUTATIONS = {
    "wrong scale": SCALE,
    "missing key mask": MASK,
    "ids off by one": IDS,
    "delta too small": (
        "(dweights - delta[", "(dweights - 0.8 * delta[",
        "(dweights - row_delta", "(dweights - 0.8 * row_delta",
    ),
    "last queries forgotten": ("inside = rows < num_queries", "inside = rows < num_queries - 1"),
}  # fmt: skip

# Of gradients that lie in one tensor with others.
OF_PACKED = {
    "an image's keys and values": ("num_keys * DKV_ROW", "num_keys * HEADS * HEAD_DIM"),
    "rows of keys and values": ("keys, DKV_ROW,", "keys, HEADS * HEAD_DIM,"),
    "an image's queries": ("num_queries * DQ_ROW", "num_queries * HEADS * HEAD_DIM"),
    "rows of queries": ("rows, DQ_ROW,", "rows, HEADS * HEAD_DIM,"),
}

keys = pytest.mark.parametrize("keys", [20, 140])
packed_keys = pytest.mark.parametrize("keys", [20, 67])


@functools.cache
def judge_of(seed, keys, device, dtype):
    problem = cross_attention(Draw(seed, device), 2, 20, keys, 1, 16, table=60)
    # One row fewer than the ids may name, so that an id off by one stays inside of the table.
    problem = problem.having(query_ids=problem.arguments["query_ids"].clamp(max=58))
    return Judge(problem, dtype, oracle_of(problem))


@functools.cache
def judge_of_packed(seed, keys, device, dtype):
    return Judge(self_attention_qkvpacked(Draw(seed, device), 2, keys, 1, 16), dtype)


def check(judge):
    judge.check(judge.problem.by("triton"))


@pytest.mark.budget
@keys
def test_the_kernels_pass(place, keys):
    check(judge_of(seeds.seeded(), keys, *place))


@pytest.mark.budget
@keys
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_kernel_fails_the_budget(place, tmp_path, mutation, keys):
    judge = judge_of(seeds.seeded(), keys, *place)
    with (
        broken("crossmae_kernels.cross_attention", tmp_path, *MUTATIONS[mutation]),
        pytest.raises(AssertionError, match="errs by"),
    ):
        check(judge)


@pytest.mark.budget
@packed_keys
@pytest.mark.parametrize("mutation", OF_PACKED)
def test_gradients_in_the_wrong_places_fail_the_budget(place, tmp_path, mutation, keys):
    judge = judge_of_packed(seeds.seeded(), keys, *place)
    with (
        broken("crossmae_kernels.cross_attention", tmp_path, *OF_PACKED[mutation]),
        pytest.raises(AssertionError, match="errs by"),
    ):
        check(judge)


@pytest.mark.budget
@packed_keys
def test_the_kernels_pass_packed(place, keys):
    check(judge_of_packed(seeds.seeded(), keys, *place))
